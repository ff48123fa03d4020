//! The node's figures. Handles are made once; nothing looks a metric up by name later.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use common::telemetry::MetricsRegistry;
use metrics::{Counter, Gauge, counter, gauge};

use crate::catalog::key::Fee;

/// Operations as they are counted, by the route's method and path.
const OPERATIONS: &[(&str, &str, &str)] = &[
    ("POST", "/v1/holdings/resolve", "resolve"),
    ("POST", "/v1/holdings/hold", "hold"),
    ("POST", "/v1/holdings/withdraw", "withdraw"),
    ("POST", "/v1/holdings/release", "release"),
    ("GET", "/v1/holdings/clients", "clients"),
    ("POST", "/v1/chunks/claim", "claim"),
    ("POST", "/v1/chunks/refs", "chunk_refs"),
    ("POST", "/v1/chunks/adopt", "chunk_adopt"),
    ("POST", "/v1/chunks/release", "chunk_release"),
    ("PUT", "/v1/chunks/{hash}", "put_chunk"),
    ("GET", "/v1/chunks/{hash}", "get_chunk"),
    ("POST", "/v1/deliveries/begin", "begin"),
    ("POST", "/v1/deliveries/open", "open"),
    ("POST", "/v1/deliveries/join", "join"),
    ("POST", "/v1/deliveries/end", "end"),
    ("POST", "/v1/library/add", "library_add"),
    ("POST", "/v1/library/drop", "library_drop"),
    ("GET", "/v1/library", "library"),
    ("GET", "/v1/library/row", "library_row"),
    ("GET", "/v1/library/account", "account"),
    ("POST", "/v1/holdings/check-refs", "check_refs"),
    ("POST", "/v1/temporary/keep", "keep_temporary"),
    ("POST", "/v1/temporary/complete", "complete_temporary"),
    ("POST", "/v1/temporary/begin", "begin_away"),
    ("POST", "/v1/temporary/ends", "keep_ends"),
    ("POST", "/v1/temporary/list", "list_temporary"),
    ("GET", "/v1/temporary/kept", "kept_temporary"),
    ("POST", "/v1/tally", "tally"),
    ("POST", "/v1/tally/sums", "tally_sums"),
    ("POST", "/v1/slots/export", "export"),
    ("POST", "/v1/shards/{shard}/ship", "ship"),
    ("GET", "/v1/audit", "audit"),
    ("GET", "/v1/map", "map"),
];

struct Outcomes {
    ok: Counter,
    /// Answered 4xx.
    refused: Counter,
    /// Answered 5xx.
    failed: Counter,
}

impl Outcomes {
    fn new(op: &'static str) -> Self {
        let of =
            |outcome: &'static str| counter!("dozo_node_requests_total", "op" => op, "outcome" => outcome);
        Self { ok: of("ok"), refused: of("refused"), failed: of("failed") }
    }
}

pub struct Metrics {
    /// In the order of [`OPERATIONS`].
    requests: Vec<Outcomes>,
    pub used_bytes: Gauge,
    pub capacity_bytes: Gauge,
    pub chunks: Gauge,
    logical_bytes: Gauge,
    pub moves: MoveMetrics,
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
    /// 1 once the receiver contradicted this node's records: an operator must look.
    pub stopped: Gauge,
}

impl OutboxMetrics {
    fn new(fee: Fee) -> Self {
        let fee = fee.as_str();
        let stopped = gauge!("dozo_node_outbox_stopped", "fee" => fee);
        stopped.set(0.0);
        Self { pending_records: gauge!("dozo_node_outbox_pending_records", "fee" => fee), stopped }
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
    fn new() -> Self {
        Self {
            pending_bytes: gauge!("dozo_node_moves_pending_bytes"),
            bytes_out: counter!("dozo_node_moves_bytes_total", "direction" => "out"),
            chunks: counter!("dozo_node_moves_chunks_total"),
            dropped_chunks: counter!("dozo_node_moves_dropped_chunks_total"),
            repaired_chunks: counter!("dozo_node_repaired_chunks_total"),
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
    fn new() -> Self {
        Self {
            contents: gauge!("dozo_node_temporary_contents"),
            bytes: gauge!("dozo_node_temporary_bytes"),
            expired: counter!("dozo_node_temporary_expired_total"),
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
    fn new() -> Self {
        Self {
            progress_ratio: gauge!("dozo_node_scrub_progress_ratio"),
            chunks: counter!("dozo_node_scrub_chunks_total"),
            damaged: counter!("dozo_node_scrub_damaged_total"),
            surplus: counter!("dozo_node_scrub_surplus_total"),
            last_completed_timestamp_seconds: gauge!("dozo_node_scrub_last_completed_timestamp_seconds"),
        }
    }
}

impl Metrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        registry.scope(|| {
            let metrics = Self {
                requests: OPERATIONS.iter().map(|(_, _, op)| Outcomes::new(op)).collect(),
                used_bytes: gauge!("dozo_node_used_bytes"),
                capacity_bytes: gauge!("dozo_node_capacity_bytes"),
                chunks: gauge!("dozo_node_chunks"),
                logical_bytes: gauge!("dozo_node_logical_bytes"),
                moves: MoveMetrics::new(),
                deliveries_open: gauge!("dozo_node_deliveries_open"),
                announcements_pending: gauge!("dozo_node_announcements_pending"),
                surplus_references: counter!("dozo_node_surplus_references_total"),
                service: OutboxMetrics::new(Fee::Service),
                content: OutboxMetrics::new(Fee::Content),
                scrub: ScrubMetrics::new(),
                temporary: TemporaryMetrics::new(),
                logical: AtomicU64::new(0),
                open: AtomicI64::new(0),
            };
            metrics.moves.pending_bytes.set(0.0);
            metrics.logical_bytes.set(0.0);
            metrics.deliveries_open.set(0.0);
            metrics.announcements_pending.set(0.0);
            metrics
        })
    }

    /// Counts an answer by the route that gave it.
    pub fn count_request(&self, method: &http::Method, path: &str, status: http::StatusCode) {
        let index = OPERATIONS.iter().position(|(m, p, _)| *p == path && *m == method.as_str());
        let Some(outcomes) = index.and_then(|index| self.requests.get(index)) else { return };
        match status.as_u16() {
            ..400 => outcomes.ok.increment(1),
            400..500 => outcomes.refused.increment(1),
            _ => outcomes.failed.increment(1),
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
