//! The node's figures. Handles are made once; nothing looks a metric up by name later.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use common::catalogue::metrics::{
    NODE_ANNOUNCEMENTS_PENDING, NODE_CAPACITY, NODE_CHUNKS, NODE_DEDUP_SAVED, NODE_DELIVERIES_OPEN,
    NODE_FOLLOWERS_MISSING, NODE_LOGICAL, NODE_MOVES_BYTES, NODE_MOVES_CHUNKS, NODE_MOVES_DROPPED,
    NODE_MOVES_PENDING, NODE_OUTBOX_AGE, NODE_OUTBOX_PENDING, NODE_OUTBOX_STOPPED, NODE_RECOVERY_DURATION,
    NODE_REPAIRED_CHUNKS, NODE_SCRUB_CHUNKS, NODE_SCRUB_COMPLETED, NODE_SCRUB_DAMAGED, NODE_SCRUB_PROGRESS,
    NODE_SCRUB_SURPLUS, NODE_SHARDS, NODE_STATE, NODE_SURPLUS_REFERENCES, NODE_TEMPORARY_BYTES,
    NODE_TEMPORARY_CONTENTS, NODE_TEMPORARY_EXPIRED, NODE_USED,
};
use common::cluster::NodeState;
use common::telemetry::MetricsRegistry;
use metrics::{Counter, Gauge};

use crate::catalog::key::Fee;

pub struct Metrics {
    registry: MetricsRegistry,
    pub used_bytes: Gauge,
    pub capacity_bytes: Gauge,
    pub chunks: Gauge,
    logical_bytes: Gauge,
    /// Bytes of contents whose chunks were there already.
    pub dedup_saved_bytes: Counter,
    pub moves: MoveMetrics,
    /// Shards served here.
    pub shards: Gauge,
    pub followers_missing: Gauge,
    /// How long the start took to read the log and the catalog.
    pub recovery_seconds: Gauge,
    deliveries_open: Gauge,
    pub announcements_pending: Gauge,
    /// References that no holding needed; released.
    pub surplus_references: Counter,
    service: OutboxMetrics,
    content: OutboxMetrics,
    pub scrub: ScrubMetrics,
    pub temporary: TemporaryMetrics,
    logical: AtomicU64,
    open: AtomicI64,
}

/// Figures of one billing outbox.
pub struct OutboxMetrics {
    pub pending_records: Gauge,
    /// Of the oldest of them.
    pub oldest_age_seconds: Gauge,
    /// 1 once the receiver contradicted this node's records: an operator must look.
    pub stopped: Gauge,
}

impl OutboxMetrics {
    fn new(registry: &MetricsRegistry, fee: Fee) -> Self {
        let gauge = |metric| registry.gauge(metric, &[fee.as_str()]);
        Self {
            pending_records: gauge(&NODE_OUTBOX_PENDING),
            oldest_age_seconds: gauge(&NODE_OUTBOX_AGE),
            stopped: gauge(&NODE_OUTBOX_STOPPED),
        }
    }
}

/// Figures of what moves between the site's nodes.
pub struct MoveMetrics {
    /// Bytes that this node still has to send.
    pub pending_bytes: Gauge,
    pub bytes_out: Counter,
    pub chunks: Counter,
    /// Copies that were deleted here because every node that is to have the chunk has it.
    pub dropped_chunks: Counter,
    /// Damaged or missing chunks that another node had.
    pub repaired_chunks: Counter,
}

impl MoveMetrics {
    fn new(registry: &MetricsRegistry) -> Self {
        Self {
            pending_bytes: registry.gauge(&NODE_MOVES_PENDING, &[]),
            bytes_out: registry.counter(&NODE_MOVES_BYTES, &["out"]),
            chunks: registry.counter(&NODE_MOVES_CHUNKS, &[]),
            dropped_chunks: registry.counter(&NODE_MOVES_DROPPED, &[]),
            repaired_chunks: registry.counter(&NODE_REPAIRED_CHUNKS, &[]),
        }
    }
}

/// Figures of what the node's shards keep for visitors.
pub struct TemporaryMetrics {
    pub contents: Gauge,
    /// Their lengths, whatever of it the site has for others too.
    pub bytes: Gauge,
    /// Visitors whose time was over.
    pub expired: Counter,
}

impl TemporaryMetrics {
    fn new(registry: &MetricsRegistry) -> Self {
        Self {
            contents: registry.gauge(&NODE_TEMPORARY_CONTENTS, &[]),
            bytes: registry.gauge(&NODE_TEMPORARY_BYTES, &[]),
            expired: registry.counter(&NODE_TEMPORARY_EXPIRED, &[]),
        }
    }
}

/// Figures of the scrub.
pub struct ScrubMetrics {
    /// Of the round under way; 1 while there is none.
    pub progress_ratio: Gauge,
    pub chunks: Counter,
    pub damaged: Counter,
    pub surplus: Counter,
    pub last_completed_timestamp_seconds: Gauge,
}

impl ScrubMetrics {
    fn new(registry: &MetricsRegistry) -> Self {
        Self {
            progress_ratio: registry.gauge(&NODE_SCRUB_PROGRESS, &[]),
            chunks: registry.counter(&NODE_SCRUB_CHUNKS, &[]),
            damaged: registry.counter(&NODE_SCRUB_DAMAGED, &[]),
            surplus: registry.counter(&NODE_SCRUB_SURPLUS, &[]),
            last_completed_timestamp_seconds: registry.gauge(&NODE_SCRUB_COMPLETED, &[]),
        }
    }
}

impl Metrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        Self {
            registry: registry.clone(),
            used_bytes: registry.gauge(&NODE_USED, &[]),
            capacity_bytes: registry.gauge(&NODE_CAPACITY, &[]),
            chunks: registry.gauge(&NODE_CHUNKS, &[]),
            logical_bytes: registry.gauge(&NODE_LOGICAL, &[]),
            dedup_saved_bytes: registry.counter(&NODE_DEDUP_SAVED, &[]),
            moves: MoveMetrics::new(registry),
            shards: registry.gauge(&NODE_SHARDS, &[]),
            followers_missing: registry.gauge(&NODE_FOLLOWERS_MISSING, &[]),
            deliveries_open: registry.gauge(&NODE_DELIVERIES_OPEN, &[]),
            announcements_pending: registry.gauge(&NODE_ANNOUNCEMENTS_PENDING, &[]),
            recovery_seconds: registry.gauge(&NODE_RECOVERY_DURATION, &[]),
            surplus_references: registry.counter(&NODE_SURPLUS_REFERENCES, &[]),
            service: OutboxMetrics::new(registry, Fee::Service),
            content: OutboxMetrics::new(registry, Fee::Content),
            scrub: ScrubMetrics::new(registry),
            temporary: TemporaryMetrics::new(registry),
            logical: AtomicU64::new(0),
            open: AtomicI64::new(0),
        }
    }

    /// Shows the state that the map has for this node; `None` while it has none.
    pub fn show_state(&self, state: Option<NodeState>) {
        let current = match state {
            None => "joining",
            Some(NodeState::Active) => "active",
            Some(NodeState::Draining) => "draining",
            Some(NodeState::Removed) => "removed",
        };
        for state in ["joining", "active", "draining", "removed"] {
            self.registry.gauge(&NODE_STATE, &[state]).set(f64::from(u8::from(state == current)));
        }
    }

    pub fn outbox(&self, fee: Fee) -> &OutboxMetrics {
        match fee {
            Fee::Service => &self.service,
            Fee::Content => &self.content,
        }
    }

    /// Bytes of contents that refer to this node's chunks.
    pub fn logical_bytes(&self) -> u64 {
        self.logical.load(Ordering::Relaxed)
    }

    pub fn add_logical_bytes(&self, change: i64) {
        let before = self.logical.fetch_add(change as u64, Ordering::Relaxed);
        self.logical_bytes.set(before.wrapping_add(change as u64) as f64);
    }

    pub fn add_open_deliveries(&self, change: i64) {
        let before = self.open.fetch_add(change, Ordering::Relaxed);
        self.deliveries_open.set((before + change) as f64);
    }
}
