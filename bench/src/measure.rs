//! What was measured: times, bytes, errors and deliveries, kept by each thread of the generator and merged at the end.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use common::id::DeliveryId;
use serde::{Deserialize, Serialize};

use crate::latency::Latency;
use crate::plan::Op;
use crate::timeline::Timeline;

/// How long one request took.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From the intended start to the last byte.
    pub response: Duration,
    /// From sending to the last byte.
    pub service: Duration,
}

/// Requests of one kind that succeeded.
#[derive(Clone, Default)]
pub struct Series {
    pub requests: u64,
    pub bytes: u64,
    /// From the intended start to the last byte.
    pub response: Latency,
    /// From sending to the last byte.
    pub service: Latency,
}

impl Series {
    pub fn record(&mut self, bytes: u64, times: Times) {
        self.requests += 1;
        self.bytes += bytes;
        self.response.record(times.response);
        self.service.record(times.service);
    }

    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.response.merge(&other.response);
        self.service.merge(&other.service);
    }
}

/// Deliveries that the answers named. Counted from the first request of a run to the last, warm-up included:
/// all of them are billed.
#[derive(Clone, Default)]
pub struct Deliveries {
    /// Ids of deliveries whose every byte was received.
    pub whole: HashSet<DeliveryId>,
    /// Ids of deliveries that broke off.
    pub broken: HashSet<DeliveryId>,
    /// Ids of deliveries of ranges. One of which all bytes came is in `whole` too.
    pub in_part: HashSet<DeliveryId>,
    /// Requests that were sent and got no answer: each may have been recorded or not.
    pub unanswered: u64,
    pub sources: BTreeMap<String, u64>,
    pub classes: BTreeMap<String, u64>,
}

impl Deliveries {
    fn merge(&mut self, other: Self) {
        self.whole.extend(other.whole);
        self.broken.extend(other.broken);
        self.in_part.extend(other.in_part);
        self.unanswered += other.unanswered;
        for (mine, theirs) in [(&mut self.sources, other.sources), (&mut self.classes, other.classes)] {
            for (key, count) in theirs {
                *mine.entry(key).or_default() += count;
            }
        }
    }
}

/// Where the bytes of an answer came from, as its `Dozo-Source` header tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Not a delivery, or a server that does not tell.
    #[default]
    None,
    Hit,
    Peer,
    Origin,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Hit => "hit",
            Self::Peer => "peer",
            Self::Origin => "origin",
        }
    }

    pub fn of(header: Option<&str>) -> Self {
        match header {
            Some("hit") => Self::Hit,
            Some("peer") => Self::Peer,
            Some("origin") => Self::Origin,
            _ => Self::None,
        }
    }
}

/// Lengths up to a power of four: 1 KiB, 4 KiB, 16 KiB and so on; 0 bytes are a class of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SizeClass(u8);

impl SizeClass {
    pub fn of(len_bytes: u64) -> Self {
        match len_bytes {
            0 => Self(0),
            len => Self((u64::BITS - (len - 1).leading_zeros()).div_ceil(2) as u8 + 1),
        }
    }

    /// The longest length of the class.
    pub fn max_bytes(self) -> u64 {
        match self.0 {
            0 => 0,
            class => 1u64.checked_shl(2 * (u32::from(class) - 1)).unwrap_or(u64::MAX),
        }
    }
}

/// What requests are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Kind {
    pub op: Op,
    pub source: Source,
    pub size: SizeClass,
}

/// Everything the workers of one thread measured.
#[derive(Clone, Default)]
pub struct Tally {
    pub series: BTreeMap<Kind, Series>,
    pub timeline: Timeline,
    /// By operation and code: the server's own, or `connect`, `timeout`, `transport`.
    pub errors: BTreeMap<(Op, String), u64>,
    pub deliveries: Deliveries,
    /// Answers whose bytes, ETag or length were wrong, each told once in words.
    pub wrong: u64,
    /// Those of them that showed another version than the last acknowledged one, or a listing that did.
    pub stale: u64,
    pub wrong_examples: Vec<String>,
}

/// Most examples of wrong answers that are kept.
const EXAMPLES_MAX: usize = 5;

impl Tally {
    /// A request that succeeded, answered `at` after the start of the load; `measured`: after the warm-up.
    pub fn record(&mut self, kind: Kind, bytes: u64, times: Times, at: Duration, measured: bool) {
        self.timeline.record(kind, bytes, times, at);
        if measured {
            self.series.entry(kind).or_default().record(bytes, times);
        }
    }

    pub fn error(&mut self, op: Op, code: &str, at: Duration) {
        self.timeline.error(op, at);
        *self.errors.entry((op, code.to_owned())).or_default() += 1;
    }

    pub fn wrong(&mut self, what: String) {
        self.wrong += 1;
        if self.wrong_examples.len() < EXAMPLES_MAX {
            self.wrong_examples.push(what);
        }
    }

    pub fn merge(&mut self, other: Self) {
        for (key, series) in &other.series {
            self.series.entry(*key).or_default().merge(series);
        }
        self.timeline.merge(other.timeline);
        for (key, count) in other.errors {
            *self.errors.entry(key).or_default() += count;
        }
        self.deliveries.merge(other.deliveries);
        self.wrong += other.wrong;
        self.stale += other.stale;
        let room = EXAMPLES_MAX.saturating_sub(self.wrong_examples.len());
        self.wrong_examples.extend(other.wrong_examples.into_iter().take(room));
    }

    /// All sizes and sources of one operation, or of all with `None`.
    pub fn total(&self, op: Option<Op>) -> Series {
        self.total_where(|kind| op.is_none_or(|op| op == kind.op))
    }

    pub fn total_where(&self, wanted: impl Fn(Kind) -> bool) -> Series {
        let mut total = Series::default();
        for series in self.series.iter().filter(|(kind, _)| wanted(**kind)).map(|(_, series)| series) {
            total.merge(series);
        }
        total
    }

    pub fn error_count(&self, op: Option<Op>) -> u64 {
        let of = |(key, _): &(&(Op, String), &u64)| op.is_none_or(|op| op == key.0);
        self.errors.iter().filter(of).map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_are_powers_of_four() {
        for (len, max) in [(0, 0), (1, 1), (2, 4), (4096, 4096), (4097, 16384), (1 << 20, 1 << 20)] {
            assert_eq!(SizeClass::of(len).max_bytes(), max, "{len}");
        }
        assert_eq!(SizeClass::of(u64::MAX).max_bytes(), u64::MAX);
    }
}
