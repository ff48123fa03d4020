//! The server's figures: handles made once, and the middleware that counts and times requests.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use common::telemetry::MetricsRegistry;

/// Figures of one operation; `outcome` is `ok`, `refused` (4xx) or `failed` (5xx).
#[derive(Clone)]
pub struct OpMetrics {
    ok: Counter,
    refused: Counter,
    failed: Counter,
    seconds: Histogram,
}

#[derive(Clone)]
pub struct Metrics {
    registry: MetricsRegistry,
    /// Names that at least one site or origin holds in their newest version.
    pub contents: Gauge,
    /// Pairs of name and holder.
    pub holders: Gauge,
    pub map_epoch: Gauge,
    pub announcements: Counter,
}

impl Metrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        registry.scope(|| Self {
            registry: registry.clone(),
            contents: gauge!("dozo_search_contents"),
            holders: gauge!("dozo_search_holders"),
            map_epoch: gauge!("dozo_search_map_epoch"),
            announcements: counter!("dozo_search_announcements_total"),
        })
    }

    /// The handles of one operation, for its route.
    pub fn op(&self, op: &'static str) -> OpMetrics {
        let requests = |outcome| counter!("dozo_search_requests_total", "op" => op, "outcome" => outcome);
        self.registry.scope(|| OpMetrics {
            ok: requests("ok"),
            refused: requests("refused"),
            failed: requests("failed"),
            seconds: histogram!("dozo_search_request_seconds", "op" => op),
        })
    }
}

/// Axum middleware: counts and times one operation. Long polls count the time they wait.
pub async fn measure(State(op): State<OpMetrics>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let response = next.run(request).await;
    op.seconds.record(begin.elapsed());
    let status = response.status();
    let outcome = if status.is_server_error() {
        &op.failed
    } else if status.is_client_error() {
        &op.refused
    } else {
        &op.ok
    };
    outcome.increment(1);
    response
}
