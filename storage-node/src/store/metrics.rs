//! Handles of the metrics that stores and the log keep.

use common::catalogue::metrics::{
    NODE_COMMIT_DURATION, NODE_COMMIT_ENTRIES, NODE_COMMITS, NODE_COMPACTED_BYTES, NODE_COMPACTIONS,
    NODE_DAMAGED_CHUNKS, NODE_DISK_ERRORS, NODE_DISK_INFLIGHT, NODE_READ_BYTES, NODE_READ_DURATION,
    NODE_WRITTEN_BYTES,
};
use common::telemetry::MetricsRegistry;
use metrics::{Counter, Gauge, Histogram};

use crate::io::Operation;

#[derive(Clone)]
pub struct StoreMetrics {
    /// Bytes of chunks read.
    pub read_bytes: Counter,
    /// From the request to the bytes: waiting for a buffer and for the device.
    pub read_seconds: Histogram,
    /// Bytes written: frames of the log, objects.
    pub written_bytes: Counter,
    /// Durable group commits of the log.
    pub commits: Counter,
    pub commit_seconds: Histogram,
    pub commit_entries: Histogram,
    /// Segments freed by compaction.
    pub compactions: Counter,
    /// Bytes of chunks that were moved for it.
    pub compacted_bytes: Counter,
    /// Reads that found other bytes than the chunk's.
    pub damaged_chunks: Counter,
    /// Requests that the device has not answered.
    pub disk_inflight: Gauge,
    read_errors: Counter,
    write_errors: Counter,
}

impl StoreMetrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        let counter = |metric| registry.counter(metric, &[]);
        let histogram = |metric| registry.histogram(metric, &[]);
        Self {
            read_bytes: counter(&NODE_READ_BYTES),
            read_seconds: histogram(&NODE_READ_DURATION),
            written_bytes: counter(&NODE_WRITTEN_BYTES),
            commits: counter(&NODE_COMMITS),
            commit_seconds: histogram(&NODE_COMMIT_DURATION),
            commit_entries: histogram(&NODE_COMMIT_ENTRIES),
            compactions: counter(&NODE_COMPACTIONS),
            compacted_bytes: counter(&NODE_COMPACTED_BYTES),
            damaged_chunks: counter(&NODE_DAMAGED_CHUNKS),
            disk_inflight: registry.gauge(&NODE_DISK_INFLIGHT, &[]),
            read_errors: registry.counter(&NODE_DISK_ERRORS, &["read"]),
            write_errors: registry.counter(&NODE_DISK_ERRORS, &["write"]),
        }
    }

    /// The device, or the object store, failed a request.
    pub fn disk_error(&self, operation: Operation) {
        match operation {
            Operation::Read => self.read_errors.increment(1),
            Operation::WriteDurable => self.write_errors.increment(1),
        }
    }
}
