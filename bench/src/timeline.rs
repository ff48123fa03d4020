//! What happened in each second of a run, by operation and source.
//!
//! A request belongs to the second in which its answer was complete: a stall shows as seconds without answers, and
//! then as one whose answers took long. Only the present second is kept as a full histogram; what is over is kept as
//! the buckets that have counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::latency::{Buckets, Latency};
use crate::measure::{Kind, Source, Times};
use crate::plan::Op;
use crate::progress::Progress;

/// Seconds that are told apart by operation and source.
pub type Lane = (Op, Source);

/// One operation and source in one second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    pub requests: u64,
    pub bytes: u64,
    pub errors: u64,
    /// From the intended start.
    pub response: Buckets,
    /// From sending.
    pub service: Buckets,
}

impl Second {
    pub fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.response.merge(&other.response);
        self.service.merge(&other.service);
    }
}

#[derive(Clone, Default)]
struct Open {
    requests: u64,
    bytes: u64,
    errors: u64,
    response: Latency,
    service: Latency,
}

/// Seconds since the start of the load, warm-up included.
#[derive(Clone, Default)]
pub struct Timeline {
    closed: BTreeMap<(u64, Lane), Second>,
    open_second: u64,
    open: BTreeMap<Lane, Open>,
    progress: Option<Arc<Progress>>,
}

impl Timeline {
    /// Seconds that were measured elsewhere.
    pub fn of(closed: BTreeMap<(u64, Lane), Second>) -> Self {
        Self { closed, ..Self::default() }
    }

    /// Has each second told when it is over.
    pub fn tell(&mut self, progress: Option<Arc<Progress>>) {
        self.progress = progress;
    }

    pub fn record(&mut self, kind: Kind, bytes: u64, times: Times, at: Duration) {
        let open = self.open((kind.op, kind.source), at);
        open.requests += 1;
        open.bytes += bytes;
        open.response.record(times.response);
        open.service.record(times.service);
    }

    pub fn error(&mut self, op: Op, at: Duration) {
        self.open((op, Source::None), at).errors += 1;
    }

    /// An answer that is a little older than the newest counts for the newest's second.
    fn open(&mut self, lane: Lane, at: Duration) -> &mut Open {
        if at.as_secs() > self.open_second {
            self.close();
            self.open_second = at.as_secs();
        }
        self.open.entry(lane).or_default()
    }

    fn close(&mut self) {
        for (lane, open) in &mut self.open {
            if open.requests + open.errors == 0 {
                continue;
            }
            let second = Second {
                requests: std::mem::take(&mut open.requests),
                bytes: std::mem::take(&mut open.bytes),
                errors: std::mem::take(&mut open.errors),
                response: open.response.take_buckets(),
                service: open.service.take_buckets(),
            };
            if let Some(progress) = &self.progress {
                progress.add(self.open_second, *lane, &second);
            }
            self.closed.entry((self.open_second, *lane)).or_default().merge(second);
        }
    }

    pub fn merge(&mut self, mut other: Self) {
        self.close();
        other.close();
        for (key, second) in other.closed {
            self.closed.entry(key).or_default().merge(second);
        }
    }

    /// Every second that had an answer or an error, in order.
    pub fn finish(mut self) -> BTreeMap<(u64, Lane), Second> {
        self.close();
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::SizeClass;

    fn kind(op: Op) -> Kind {
        Kind { op, source: Source::Hit, size: SizeClass::of(1) }
    }

    fn times(ms: u64) -> Times {
        Times { response: Duration::from_millis(2 * ms), service: Duration::from_millis(ms) }
    }

    #[test]
    fn two_threads_seconds_are_added_up() {
        let (mut one, mut two) = (Timeline::default(), Timeline::default());
        for ms in [100, 900, 1100, 5500] {
            one.record(kind(Op::Get), 10, times(3), Duration::from_millis(ms));
        }
        two.record(kind(Op::Get), 5, times(7), Duration::from_millis(950));
        two.error(Op::Put, Duration::from_millis(5999));
        one.merge(two);
        let seconds = one.finish();
        let lane = (Op::Get, Source::Hit);
        let counts: Vec<(u64, u64, u64)> =
            seconds.iter().map(|((second, _), s)| (*second, s.requests, s.errors)).collect();
        assert_eq!(counts, [(0, 3, 0), (1, 1, 0), (5, 1, 0), (5, 0, 1)]);
        let first = &seconds[&(0, lane)];
        assert_eq!(first.bytes, 25);
        let response = first.response.to_latency();
        assert!(response.at(1.0) >= Duration::from_millis(14) && response.at(0.5) < Duration::from_millis(7));
    }
}
