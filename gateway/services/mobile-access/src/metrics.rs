//! The server's figures.

use common::catalogue::metrics::{MOBILE_HEARD, MOBILE_HOME_DURATION, MOBILE_REQUESTS};
use common::telemetry::MetricsRegistry;
use metrics::{Counter, Histogram};

#[derive(Clone)]
pub struct Metrics {
    registry: MetricsRegistry,
    pub heard_answered: Counter,
    pub heard_malformed: Counter,
    pub heard_limited: Counter,
    /// A home site's time to answer, in seconds.
    pub home_seconds: Histogram,
}

impl Metrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        let heard = |result| registry.counter(&MOBILE_HEARD, &[result]);
        Self {
            registry: registry.clone(),
            heard_answered: heard("answered"),
            heard_malformed: heard("malformed"),
            heard_limited: heard("limited"),
            home_seconds: registry.histogram(&MOBILE_HOME_DURATION, &[]),
        }
    }

    /// One question of a client: `result` is `ok` or the code of the refusal.
    pub fn question(&self, op: &'static str, result: &'static str) {
        self.registry.counter(&MOBILE_REQUESTS, &[op, result]).increment(1);
    }
}
