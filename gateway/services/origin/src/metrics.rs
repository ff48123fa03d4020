//! The server's figures: handles made once, and the middleware that counts requests.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Counter, Gauge, counter, gauge};

use common::telemetry::MetricsRegistry;

/// Requests of one operation; `outcome` is `ok`, `refused` (4xx) or `failed` (5xx).
#[derive(Clone)]
pub struct OpMetrics {
    ok: Counter,
    refused: Counter,
    failed: Counter,
}

#[derive(Clone)]
pub struct Metrics {
    registry: MetricsRegistry,
    pub contents: Gauge,
    pub sent_bytes: Counter,
    /// Bytes of sources that were read to be registered.
    pub read_bytes: Counter,
    /// Announcements that search has not acknowledged.
    pub outbox: Gauge,
    /// Scans that could not be finished.
    pub failed_scans: Counter,
}

impl Metrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        registry.scope(|| Self {
            registry: registry.clone(),
            contents: gauge!("dozo_origin_contents"),
            sent_bytes: counter!("dozo_origin_sent_bytes_total"),
            read_bytes: counter!("dozo_origin_scanned_bytes_total"),
            outbox: gauge!("dozo_origin_announcements_pending"),
            failed_scans: counter!("dozo_origin_failed_scans_total"),
        })
    }

    /// The handles of one operation, for its route.
    pub fn op(&self, op: &'static str) -> OpMetrics {
        let requests = |outcome| counter!("dozo_origin_requests_total", "op" => op, "outcome" => outcome);
        self.registry.scope(|| OpMetrics {
            ok: requests("ok"),
            refused: requests("refused"),
            failed: requests("failed"),
        })
    }
}

/// Axum middleware: counts the requests of one operation.
pub async fn count(State(op): State<OpMetrics>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
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
