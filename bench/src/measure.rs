//! What was measured: latency histograms, bytes, errors and deliveries, kept by each worker and merged at the end.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use common::id::DeliveryId;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::plan::Op;

/// Durations in nanoseconds, three digits.
#[derive(Clone)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new(3).expect("3 is a number of digits that histograms have"))
    }
}

impl Latency {
    pub fn record(&mut self, duration: Duration) {
        // `saturating_record` would clip at the present range instead of growing.
        self.0.record(duration.as_nanos() as u64).expect("a histogram that grows takes every value");
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("a histogram that grows takes every value");
    }

    /// `quantile` from 0 to 1.
    pub fn at(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(quantile))
    }

    pub fn summary(&self) -> LatencySummary {
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| us(self.0.value_at_quantile(quantile));
        LatencySummary {
            mean_us: self.0.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: us(self.0.max()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencySummary {
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub p9999_us: f64,
    pub max_us: f64,
}

/// Requests of one operation and size that succeeded.
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
    pub fn record(&mut self, bytes: u64, response: Duration, service: Duration) {
        self.requests += 1;
        self.bytes += bytes;
        self.response.record(response);
        self.service.record(service);
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
    /// Requests that were sent and got no answer: each may have been recorded or not.
    pub unanswered: u64,
    pub sources: BTreeMap<String, u64>,
    pub classes: BTreeMap<String, u64>,
}

impl Deliveries {
    fn merge(&mut self, other: Self) {
        self.whole.extend(other.whole);
        self.broken.extend(other.broken);
        self.unanswered += other.unanswered;
        for (mine, theirs) in [(&mut self.sources, other.sources), (&mut self.classes, other.classes)] {
            for (key, count) in theirs {
                *mine.entry(key).or_default() += count;
            }
        }
    }
}

/// Everything one worker measured.
#[derive(Clone, Default)]
pub struct Tally {
    pub series: BTreeMap<(Op, u64), Series>,
    /// By operation and code: the server's own, or `connect`, `timeout`, `transport`.
    pub errors: BTreeMap<(Op, String), u64>,
    pub deliveries: Deliveries,
    /// Answers whose bytes, ETag or length were wrong, each told once in words.
    pub wrong: u64,
    pub wrong_examples: Vec<String>,
}

/// Most examples of wrong answers that are kept.
const EXAMPLES_MAX: usize = 5;

impl Tally {
    pub fn record(&mut self, op: Op, size: u64, bytes: u64, response: Duration, service: Duration) {
        self.series.entry((op, size)).or_default().record(bytes, response, service);
    }

    pub fn error(&mut self, op: Op, code: &str) {
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
        for (key, count) in other.errors {
            *self.errors.entry(key).or_default() += count;
        }
        self.deliveries.merge(other.deliveries);
        self.wrong += other.wrong;
        let room = EXAMPLES_MAX.saturating_sub(self.wrong_examples.len());
        self.wrong_examples.extend(other.wrong_examples.into_iter().take(room));
    }

    /// All sizes of one operation, or of all with `None`.
    pub fn total(&self, op: Option<Op>) -> Series {
        let mut total = Series::default();
        for ((each, _), series) in &self.series {
            if op.is_none_or(|op| op == *each) {
                total.merge(series);
            }
        }
        total
    }

    pub fn error_count(&self, op: Option<Op>) -> u64 {
        let of = |(key, _): &(&(Op, String), &u64)| op.is_none_or(|op| op == key.0);
        self.errors.iter().filter(of).map(|(_, count)| count).sum()
    }
}
