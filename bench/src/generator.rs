//! The load generator's own part in what was measured. Where the generator was the limit, the numbers tell of it and not
//! of the system, and no verdict may rest on them.
//!
//! On one machine the generator and the servers share the cores. That alone is no reason to refuse a verdict, as ratios
//! are measured like that on both sides, but it is told: how long the generator's threads waited for a core.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::process::thread_cpu_time;

/// A thread that works for more than this share of the time is the limit: what it does takes turns with its waiting.
const BUSY_MAX: f64 = 0.9;
/// Lag up to this share of the measured p99 leaves the p99 the system's.
const LAG_SHARE_MAX: f64 = 0.5;
/// Lag up to this, in microseconds, is what a sleeping thread needs to wake up.
const LAG_FLOOR_US: f64 = 1_000.0;
/// Arrivals that may be lost before the times of the others are too good to be true.
const DROPPED_SHARE_MAX: f64 = 0.001;

/// What a thread of the generator did with its time.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct ThreadTime {
    pub wall_s: f64,
    pub cpu_s: f64,
    /// Ready to work, and no core was free.
    pub waited_s: f64,
}

/// Measures the thread that it is started and read on.
pub struct ThreadClock {
    start: Instant,
    cpu: Duration,
    waited: Duration,
}

impl ThreadClock {
    pub fn start() -> Self {
        Self { start: Instant::now(), cpu: thread_cpu_time(), waited: thread_waited() }
    }

    pub fn read(&self) -> ThreadTime {
        ThreadTime {
            wall_s: self.start.elapsed().as_secs_f64(),
            cpu_s: thread_cpu_time().saturating_sub(self.cpu).as_secs_f64(),
            waited_s: thread_waited().saturating_sub(self.waited).as_secs_f64(),
        }
    }
}

/// Time that the calling thread was ready and had no core; 0 on kernels that do not tell.
fn thread_waited() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split_ascii_whitespace().nth(1).and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.unwrap_or(0))
}

/// The check, as it stands in a report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Generator {
    pub threads: Vec<ThreadTime>,
    /// Share of the time that the busiest thread worked.
    pub busy_max: f64,
    /// Share of the time that threads waited for a core, at most.
    pub waited_max: f64,
    /// Share of the arrivals that were never sent.
    pub dropped_share: f64,
    /// How late the pacer let requests go; 0 in a closed loop.
    pub lag_p99_us: f64,
    /// Why the numbers tell of the generator and not of the system; nothing if they tell of the system.
    pub faults: Vec<String>,
    /// More waited than may: what the system did to those that were never sent is not in the numbers.
    pub overrun: Option<String>,
}

/// What the check is made from.
pub struct Evidence {
    pub threads: Vec<ThreadTime>,
    pub requests: u64,
    pub dropped: u64,
    /// 0 in a closed loop.
    pub lag_p99_us: f64,
    pub response_p99_us: f64,
}

impl Generator {
    pub fn judge(evidence: Evidence) -> Self {
        let Evidence { threads, requests, dropped, lag_p99_us, response_p99_us } = evidence;
        let most = |part: fn(&ThreadTime) -> f64| {
            threads
                .iter()
                .filter(|thread| thread.wall_s > 0.0)
                .map(|t| part(t) / t.wall_s)
                .fold(0.0, f64::max)
        };
        let (busy_max, waited_max) = (most(|t| t.cpu_s), most(|t| t.waited_s));
        let dropped_share = dropped as f64 / (requests + dropped).max(1) as f64;
        let mut faults = Vec::new();
        if busy_max > BUSY_MAX {
            faults.push(format!(
                "a thread of the load generator worked {:.0} % of the time, so its core was the bottleneck: use more \
                 --threads, less --verify, or another machine",
                busy_max * 100.0
            ));
        }
        if lag_p99_us > LAG_FLOOR_US && lag_p99_us > LAG_SHARE_MAX * response_p99_us {
            faults.push(format!(
                "the pacer let requests go up to {:.1} ms late (p99), more than half of the p99 that was measured ({:.1} \
                 ms): use a lower --rate, or cores that nobody else uses",
                lag_p99_us / 1e3,
                response_p99_us / 1e3
            ));
        }
        let overrun = (dropped_share > DROPPED_SHARE_MAX).then(|| {
            format!(
                "{dropped} arrivals ({:.1} %) were never sent, because too many waited: the times of the others are too \
                 good; use a lower --rate or more --in-flight",
                dropped_share * 100.0
            )
        });
        Self { threads, busy_max, waited_max, dropped_share, lag_p99_us, faults, overrun }
    }

    /// Why no verdict may rest on the run; `None` if one may.
    pub fn refusal(&self) -> Option<String> {
        let all: Vec<&str> = self.faults.iter().chain(&self.overrun).map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// In one line.
    pub fn to_text(&self) -> String {
        match self.refusal() {
            Some(why) => format!("no verdict on the system: {why}"),
            None => format!(
                "its busiest thread worked {:.0} % of the time, and threads waited for a core up to {:.0} %",
                self.busy_max * 100.0,
                self.waited_max * 100.0
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Stage, drive};
    use crate::plan::{Pace, Plan};
    use crate::schedule::Arrivals;
    use crate::testing::{Server, Work, closed_loop};

    fn evidence() -> Evidence {
        let thread = ThreadTime { wall_s: 10.0, cpu_s: 5.0, waited_s: 1.0 };
        Evidence {
            threads: vec![thread],
            requests: 100_000,
            dropped: 0,
            lag_p99_us: 90.0,
            response_p99_us: 900.0,
        }
    }

    #[test]
    fn a_generator_that_held_the_run_back_is_told_in_words() {
        let fault = |evidence| Generator::judge(evidence).refusal().unwrap_or_default();
        assert_eq!(fault(evidence()), "");
        let busy = ThreadTime { wall_s: 10.0, cpu_s: 9.7, waited_s: 0.0 };
        assert!(fault(Evidence { threads: vec![busy], ..evidence() }).contains("worked 97 % of the time"));
        let late = Evidence { lag_p99_us: 8_000.0, response_p99_us: 9_000.0, ..evidence() };
        assert!(fault(late).contains("8.0 ms late"));
        let slow = Evidence { lag_p99_us: 8_000.0, response_p99_us: 100_000.0, ..evidence() };
        assert_eq!(fault(slow), "", "the system was slow, not the pacer");
        assert!(fault(Evidence { dropped: 1_000, ..evidence() }).contains("1000 arrivals (1.0 %)"));
    }

    /// The load begins at a time that is over: every arrival is late, and no fault of the server.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_pacer_that_lags_is_seen_in_a_load() {
        let length = Duration::from_millis(500);
        let target = Server::start(Work { answer_time: Duration::ZERO, at_once: usize::MAX }).await;
        let pace = Pace::Open { rate: 200.0, arrivals: Arrivals::Constant };
        let plan = Plan { pace, ..closed_loop(8, length) };
        let late = Stage { start: Instant::now().checked_sub(length), ..Stage::default() };
        let load = drive(&plan, &target, &late).await.unwrap();
        let refusal = load.generator().refusal().unwrap_or_default();
        assert!(refusal.contains("ms late (p99)"), "{refusal:?}");
        assert!(load.threads.len() == 1 && load.threads[0].wall_s > 0.0);
    }

    #[test]
    fn a_thread_that_works_all_the_time_is_seen() {
        let clock = ThreadClock::start();
        let (begin, mut sum) = (thread_cpu_time(), 0u64);
        while thread_cpu_time() < begin + Duration::from_millis(100) {
            sum = sum.wrapping_add(crate::content::mix(sum));
        }
        let worked = clock.read();
        assert!(worked.cpu_s >= 0.1 && worked.cpu_s <= worked.wall_s + 0.02, "{worked:?} ({sum})");
        // On a machine that others use too, a thread that never sleeps works or waits for a core.
        let wanted = (worked.cpu_s + worked.waited_s) / worked.wall_s;
        assert!(wanted > 0.8 || worked.waited_s == 0.0, "{worked:?}");
        let clock = ThreadClock::start();
        std::thread::sleep(Duration::from_millis(50));
        assert!(clock.read().cpu_s < 0.02);
    }
}
