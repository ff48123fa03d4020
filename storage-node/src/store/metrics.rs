//! Handles of the metrics that stores and the log keep.

use common::telemetry::MetricsRegistry;
use metrics::{Counter, Histogram};

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
}

impl StoreMetrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        registry.scope(|| Self {
            read_bytes: metrics::counter!("dozo_node_disk_read_bytes_total"),
            read_seconds: metrics::histogram!("dozo_node_disk_read_duration_seconds"),
            written_bytes: metrics::counter!("dozo_node_disk_written_bytes_total"),
            commits: metrics::counter!("dozo_node_commits_total"),
            commit_seconds: metrics::histogram!("dozo_node_commit_duration_seconds"),
            commit_entries: metrics::histogram!("dozo_node_commit_entries"),
            compactions: metrics::counter!("dozo_node_compactions_total"),
            compacted_bytes: metrics::counter!("dozo_node_compacted_bytes_total"),
            damaged_chunks: metrics::counter!("dozo_node_damaged_chunks_total"),
        })
    }
}
