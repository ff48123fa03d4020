//! What happened when: a row a second, latencies by phase, and every failure in full.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::latency::{Latency, LatencySummary};

/// Failures that are kept in full; more are only counted.
const FAILURES_MAX: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Put,
    /// Of a key of the worker's own.
    Get,
    /// GET of a content that somebody else put, once and for all.
    Cross,
    /// A GET in two ranges, the second of which goes on where the first ended.
    Range,
    Head,
    List,
    Delete,
}

/// In what way an answer was not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A status that was not to be.
    Refused,
    /// No gateway could be reached, or the connection broke.
    Connection,
    Timeout,
    WrongBytes,
    /// A wrong ETag, length or hash, or no delivery where there must be one.
    WrongAnswer,
    /// What was acknowledged is not what is read.
    StaleRead,
    WrongList,
}

/// A fault, told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub answer: String,
}

impl Fault {
    pub fn new(kind: FaultKind, answer: impl Into<String>) -> Self {
        Self { kind, answer: answer.into() }
    }
}

/// One request that went wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    pub at_s: f64,
    /// Milliseconds since 1970, to find it in the servers' logs.
    pub unix_ms: u64,
    pub phase: String,
    pub op: Op,
    pub kind: FaultKind,
    pub request: String,
    pub gateway: String,
    pub answer: String,
}

/// One second.
#[derive(Debug, Clone, Serialize)]
pub struct Second {
    pub second: u64,
    pub phase: String,
    pub ops: BTreeMap<Op, OpSecond>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct OpSecond {
    pub requests: u64,
    pub failures: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

/// One phase.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub name: String,
    pub from_s: f64,
    pub to_s: f64,
    pub failures: u64,
    pub ops: BTreeMap<Op, OpPhase>,
}

#[derive(Debug, Clone, Serialize)]
pub struct OpPhase {
    pub requests: u64,
    pub requests_per_s: f64,
    pub mib_per_s: f64,
    /// From the intended start.
    pub response: LatencySummary,
}

#[derive(Default)]
struct Series {
    requests: u64,
    bytes: u64,
    response: Latency,
}

struct OpenPhase {
    name: String,
    from: Duration,
    failures: u64,
    ops: BTreeMap<Op, Series>,
}

impl OpenPhase {
    fn new(name: &str, from: Duration) -> Self {
        Self { name: name.to_owned(), from, failures: 0, ops: BTreeMap::new() }
    }
}

#[derive(Default)]
struct OpenSecond {
    second: u64,
    /// Response times in microseconds, and failures.
    ops: BTreeMap<Op, (Vec<u32>, u64)>,
}

struct Inner {
    phases: Vec<OpenPhase>,
    seconds: Vec<Second>,
    open: OpenSecond,
    failures: Vec<Failure>,
}

pub struct Recorder {
    start: Instant,
    phase: AtomicUsize,
    failures: AtomicU64,
    requests: AtomicU64,
    inner: Mutex<Inner>,
}

/// When a request was meant to start, and in which phase that was.
#[derive(Clone, Copy)]
pub struct Started {
    pub intended: Instant,
    phase: usize,
}

impl Recorder {
    /// The first phase begins now.
    pub fn new(phase: &str) -> Self {
        let inner = Inner {
            phases: vec![OpenPhase::new(phase, Duration::ZERO)],
            seconds: Vec::new(),
            open: OpenSecond::default(),
            failures: Vec::new(),
        };
        Self {
            start: Instant::now(),
            phase: AtomicUsize::new(0),
            failures: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            inner: Mutex::new(inner),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What starts from now on belongs to this phase.
    pub fn mark(&self, phase: &str) {
        let mut inner = self.inner();
        inner.phases.push(OpenPhase::new(phase, self.start.elapsed()));
        self.phase.store(inner.phases.len() - 1, Ordering::Relaxed);
    }

    pub fn started(&self, intended: Instant) -> Started {
        Started { intended, phase: self.phase.load(Ordering::Relaxed) }
    }

    pub fn succeeded(&self, op: Op, started: Started, bytes: u64) {
        let now = Instant::now();
        let response = now.saturating_duration_since(started.intended);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.inner();
        let series = inner.phases[started.phase].ops.entry(op).or_default();
        series.requests += 1;
        series.bytes += bytes;
        series.response.record(response);
        let micros = u32::try_from(response.as_micros()).unwrap_or(u32::MAX);
        self.second(&mut inner, now).ops.entry(op).or_default().0.push(micros);
    }

    pub fn failed(&self, op: Op, started: Started, request: String, gateway: &str, fault: Fault) {
        let now = Instant::now();
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.inner();
        self.second(&mut inner, now).ops.entry(op).or_default().1 += 1;
        inner.phases[started.phase].failures += 1;
        if inner.failures.len() < FAILURES_MAX {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let failure = Failure {
                at_s: (now - self.start).as_secs_f64(),
                unix_ms: since_1970.as_millis() as u64,
                phase: inner.phases[started.phase].name.clone(),
                op,
                kind: fault.kind,
                request,
                gateway: gateway.to_owned(),
                answer: fault.answer,
            };
            inner.failures.push(failure);
        }
    }

    /// The second that is being filled; those before are closed.
    fn second<'a>(&self, inner: &'a mut Inner, now: Instant) -> &'a mut OpenSecond {
        let second = (now - self.start).as_secs();
        if second > inner.open.second {
            inner.close_second();
            inner.open.second = second;
        }
        &mut inner.open
    }

    /// Requests that succeeded so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn failure_count(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The failures so far, the first thousand of them.
    pub fn failures(&self) -> Vec<Failure> {
        self.inner().failures.clone()
    }

    /// Everything, up to now.
    pub fn finish(&self) -> (Vec<Phase>, Vec<Second>) {
        let mut inner = self.inner();
        inner.close_second();
        let ends: Vec<Duration> =
            inner.phases.iter().skip(1).map(|phase| phase.from).chain([self.start.elapsed()]).collect();
        let phases = inner.phases.iter().zip(ends).map(|(phase, to)| phase.close(to)).collect();
        (phases, std::mem::take(&mut inner.seconds))
    }
}

impl OpenPhase {
    fn close(&self, to: Duration) -> Phase {
        let seconds = to.saturating_sub(self.from).as_secs_f64().max(f64::EPSILON);
        let close = |series: &Series| OpPhase {
            requests: series.requests,
            requests_per_s: series.requests as f64 / seconds,
            mib_per_s: series.bytes as f64 / f64::from(1 << 20) / seconds,
            response: series.response.summary(),
        };
        Phase {
            name: self.name.clone(),
            from_s: self.from.as_secs_f64(),
            to_s: to.as_secs_f64(),
            failures: self.failures,
            ops: self.ops.iter().map(|(op, series)| (*op, close(series))).collect(),
        }
    }
}

impl Inner {
    fn close_second(&mut self) {
        let open = std::mem::take(&mut self.open);
        if open.ops.is_empty() {
            return;
        }
        let at = Duration::from_secs(open.second + 1);
        let phase = self.phases.iter().rev().find(|phase| phase.from < at);
        let close = |(mut times, failures): (Vec<u32>, u64)| {
            times.sort_unstable();
            let rank = |quantile: f64| {
                let place = (times.len() as f64 * quantile).ceil() as usize;
                times.get(place.saturating_sub(1)).copied().map_or(0.0, f64::from)
            };
            OpSecond {
                requests: times.len() as u64,
                failures,
                p50_us: rank(0.5),
                p99_us: rank(0.99),
                max_us: rank(1.0),
            }
        };
        self.seconds.push(Second {
            second: open.second,
            phase: phase.map_or_else(String::new, |phase| phase.name.clone()),
            ops: open.ops.into_iter().map(|(op, samples)| (op, close(samples))).collect(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_belongs_to_the_phase_in_which_it_was_to_start() {
        let recorder = Recorder::new("before");
        let early = recorder.started(Instant::now());
        recorder.mark("during");
        recorder.succeeded(Op::Get, early, 1 << 20);
        let late = recorder.started(Instant::now());
        recorder.succeeded(Op::Put, late, 0);
        recorder.failed(Op::Put, late, "PUT /x".into(), "g1", Fault::new(FaultKind::Refused, "503"));
        assert_eq!((recorder.requests(), recorder.failure_count()), (2, 1));
        assert_eq!(recorder.failures()[0].phase, "during");
        let (phases, seconds) = recorder.finish();
        let names: Vec<(&str, u64)> = phases.iter().map(|p| (p.name.as_str(), p.failures)).collect();
        assert_eq!(names, [("before", 0), ("during", 1)]);
        assert_eq!(phases[0].ops[&Op::Get].requests, 1);
        assert!(!phases[0].ops.contains_key(&Op::Put));
        assert!(phases[0].to_s <= phases[1].from_s + 1e-9);
        let puts: u64 = seconds.iter().filter_map(|s| s.ops.get(&Op::Put)).map(|o| o.requests).sum();
        let failures: u64 = seconds.iter().filter_map(|s| s.ops.get(&Op::Put)).map(|o| o.failures).sum();
        assert_eq!((puts, failures), (1, 1));
    }
}
