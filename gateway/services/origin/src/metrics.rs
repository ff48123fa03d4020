//! The server's figures: handles made once, and the middleware that counts requests.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Counter, Gauge, counter, gauge};

use common::id::BucketName;
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
    /// Reads that were not carried out: too many wait; the object is another than was registered.
    pub busy_reads: Counter,
    pub changed_reads: Counter,
}

/// Figures of one source, zero once it is removed.
#[derive(Clone)]
pub struct SourceMetrics {
    pub reads_inflight: Gauge,
    pub reads_waiting: Gauge,
    /// Objects that the scan under way, or the last one, has listed.
    pub scan_listed: Gauge,
    pub scan_read: Gauge,
    /// Contents that are missing in the source and not withdrawn: too many at once to be believed.
    pub withdrawals_held: Gauge,
}

impl SourceMetrics {
    pub fn clear(&self) {
        let Self { reads_inflight, reads_waiting, scan_listed, scan_read, withdrawals_held } = self;
        for gauge in [reads_inflight, reads_waiting, scan_listed, scan_read, withdrawals_held] {
            gauge.set(0.0);
        }
    }
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
            busy_reads: counter!("dozo_origin_refused_reads_total", "reason" => "busy"),
            changed_reads: counter!("dozo_origin_refused_reads_total", "reason" => "changed"),
        })
    }

    /// The handles of one source.
    pub fn source(&self, bucket: &BucketName) -> SourceMetrics {
        let bucket = bucket.to_string();
        self.registry.scope(|| SourceMetrics {
            reads_inflight: gauge!("dozo_origin_reads_inflight", "bucket" => bucket.clone()),
            reads_waiting: gauge!("dozo_origin_reads_waiting", "bucket" => bucket.clone()),
            scan_listed: gauge!("dozo_origin_scan_listed_objects", "bucket" => bucket.clone()),
            scan_read: gauge!("dozo_origin_scan_read_objects", "bucket" => bucket.clone()),
            withdrawals_held: gauge!("dozo_origin_withdrawals_held", "bucket" => bucket),
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
