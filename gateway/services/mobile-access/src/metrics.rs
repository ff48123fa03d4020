//! The server's figures.

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
        let heard = |result| metrics::counter!("dozo_mobile_access_heard_total", "result" => result);
        registry.scope(|| {
            describe();
            Self {
                registry: registry.clone(),
                heard_answered: heard("answered"),
                heard_malformed: heard("malformed"),
                heard_limited: heard("limited"),
                home_seconds: metrics::histogram!("dozo_mobile_access_home_seconds"),
            }
        })
    }

    /// One question of a client: `result` is `ok` or the code of the refusal.
    pub fn question(&self, op: &'static str, result: &'static str) {
        let make = || metrics::counter!("dozo_mobile_access_requests_total", "op" => op, "result" => result);
        self.registry.scope(make).increment(1);
    }
}

fn describe() {
    use metrics::{describe_counter as counter, describe_histogram as histogram};
    counter!("dozo_mobile_access_heard_total", "Datagrams that came, by what became of them.");
    counter!("dozo_mobile_access_requests_total", "Questions of clients, by operation and result.");
    histogram!("dozo_mobile_access_home_seconds", "Time to an answer of a home site's gateway.");
}
