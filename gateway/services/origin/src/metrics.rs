//! The server's figures: handles made once.

use common::catalogue::metrics::{
    ORIGIN_ANNOUNCEMENTS_PENDING, ORIGIN_CONTENTS, ORIGIN_FAILED_SCANS, ORIGIN_READS_INFLIGHT,
    ORIGIN_READS_WAITING, ORIGIN_REFUSED_READS, ORIGIN_SCAN_LISTED, ORIGIN_SCAN_READ, ORIGIN_SCANNED_BYTES,
    ORIGIN_SENT_BYTES, ORIGIN_WITHDRAWALS_HELD,
};
use common::id::BucketName;
use common::telemetry::MetricsRegistry;
use metrics::{Counter, Gauge};

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
        Self {
            registry: registry.clone(),
            contents: registry.gauge(&ORIGIN_CONTENTS, &[]),
            sent_bytes: registry.counter(&ORIGIN_SENT_BYTES, &[]),
            read_bytes: registry.counter(&ORIGIN_SCANNED_BYTES, &[]),
            outbox: registry.gauge(&ORIGIN_ANNOUNCEMENTS_PENDING, &[]),
            failed_scans: registry.counter(&ORIGIN_FAILED_SCANS, &[]),
            busy_reads: registry.counter(&ORIGIN_REFUSED_READS, &["busy"]),
            changed_reads: registry.counter(&ORIGIN_REFUSED_READS, &["changed"]),
        }
    }

    /// The handles of one source.
    pub fn source(&self, bucket: &BucketName) -> SourceMetrics {
        let gauge = |metric| self.registry.gauge(metric, &[bucket.as_str()]);
        SourceMetrics {
            reads_inflight: gauge(&ORIGIN_READS_INFLIGHT),
            reads_waiting: gauge(&ORIGIN_READS_WAITING),
            scan_listed: gauge(&ORIGIN_SCAN_LISTED),
            scan_read: gauge(&ORIGIN_SCAN_READ),
            withdrawals_held: gauge(&ORIGIN_WITHDRAWALS_HELD),
        }
    }
}
