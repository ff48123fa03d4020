//! Every metric of every server: name, kind, labels with their closed sets of values, what it tells, and who tells it.
//!
//! Servers make their handles from these entries (`telemetry::MetricsRegistry`), so a metric that is not here cannot be
//! shown; dashboards and alerts are checked against the same table. Names follow Prometheus' conventions: base units at
//! the end, `_total` for counters. Who is asked (`job`, `site`, `instance`) is a label of the target, which service
//! discovery sets, never one that a server writes.

use crate::auth::Role;

/// How a metric's value behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from zero at each start.
    Counter,
    Gauge,
    /// Counts by upper bound: `_bucket`, `_sum`, `_count`.
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The values that a label may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    Of(&'static [&'static str]),
    /// Known at run time only; the number of values is bounded by what is said here.
    Any(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    pub name: &'static str,
    pub values: Values,
}

/// Who shows a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emitter {
    /// All roles.
    Every,
    Only(&'static [Role]),
    /// None: the program that makes load ([`super::load`]).
    LoadGenerator,
}

impl Emitter {
    pub fn includes(self, role: Role) -> bool {
        match self {
            Self::Every => true,
            Self::Only(roles) => roles.contains(&role),
            Self::LoadGenerator => false,
        }
    }
}

/// Where a metric is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// On a panel or in an alert.
    Shown,
    /// Read by hand when something is searched for.
    Diagnostic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [Label],
    pub help: &'static str,
    pub emitter: Emitter,
    pub watched: Watched,
}

const fn of(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values: Values::Of(values) }
}

const fn any(name: &'static str, bound: &'static str) -> Label {
    Label { name, values: Values::Any(bound) }
}

const GATEWAY: Emitter = Emitter::Only(&[Role::Gateway]);
const NODE: Emitter = Emitter::Only(&[Role::StorageNode]);
const SEARCH: Emitter = Emitter::Only(&[Role::Search]);
const ORIGIN: Emitter = Emitter::Only(&[Role::Origin]);
const BILLING: Emitter = Emitter::Only(&[Role::ServiceBilling, Role::ContentBilling]);
const MOBILE_ACCESS: Emitter = Emitter::Only(&[Role::MobileAccess]);
const EVERY: Emitter = Emitter::Every;

/// Roles, as the values of a label.
const ROLES: &[&str] =
    &["gateway", "storage-node", "search", "origin", "service-billing", "content-billing", "mobile-access"];
/// Where the site had a delivery's bytes from.
const SOURCES: &[&str] = &["hit", "peer", "origin"];
const FROM: &[&str] = &["peer", "origin"];
const FEES: &[&str] = &["service", "content"];
const RESULT: &[&str] = &["ok", "error"];
const STATUS: &str = "HTTP status codes of the API";

/// Declares each metric as a constant, and [`ALL`] of them in this order.
macro_rules! metrics {
    ($($(#[$doc:meta])* $id:ident: $kind:ident $name:literal [$($label:expr),*] $emitter:ident $watched:ident, $help:literal;)*) => {
        $(
            #[doc = $help]
            $(#[$doc])*
            pub const $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
                emitter: $emitter,
                watched: Watched::$watched,
            };
        )*
        /// Every metric, those of all servers first.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    // --- Every server ---
    BUILD_INFO: Gauge "dozo_build_info" [any("version", "one"), any("role", "one")] EVERY Shown,
        "Always 1; tells the version that runs.";
    START_TIME: Gauge "dozo_start_time_seconds" [] EVERY Shown,
        "When the server was started, in seconds since 1970.";
    READY: Gauge "dozo_ready" [] EVERY Shown,
        "1 while the server calls itself ready.";
    DRAINING: Gauge "dozo_draining" [] EVERY Shown,
        "1 once a stop was asked for.";
    HTTP_REQUESTS: Counter "dozo_http_requests_total"
        [any("route", "routes of the API"), any("code", STATUS)] EVERY Shown,
        "Requests answered on the service listener.";
    HTTP_DURATION: Histogram "dozo_http_request_duration_seconds" [any("route", "routes of the API")] EVERY Shown,
        "From a request's head to the head of its answer, without what it waited for news on the caller's wish.";
    HTTP_CONNECTIONS: Gauge "dozo_http_connections" [] EVERY Shown,
        "Open connections of the service listener.";
    CALLS: Counter "dozo_rpc_client_requests_total"
        [of("peer_role", ROLES), of("outcome", &["ok", "refused", "failed", "timeout", "unreachable"])] EVERY Shown,
        "Calls to other servers; refused is an answer 4xx, failed one 5xx.";
    CALL_DURATION: Histogram "dozo_rpc_client_duration_seconds" [of("peer_role", ROLES)] EVERY Shown,
        "From a call to the head of its answer; long polls count the time they wait.";
    LOG_MESSAGES: Counter "dozo_log_messages_total" [of("level", &["error", "warn"])] EVERY Shown,
        "Log lines of the process, those that are not written included.";
    PANICS: Counter "dozo_panics_total" [] EVERY Shown,
        "Panics of the process; each is a fault of the program.";
    CONFIG_RELOADS: Counter "dozo_config_reloads_total" [of("result", RESULT)] EVERY Shown,
        "Times that the configuration was read again while the server ran.";
    CONFIG_LAST_RELOAD: Gauge "dozo_config_last_reload_success_timestamp_seconds" [] EVERY Shown,
        "When the configuration was last read without an error, in seconds since 1970.";
    RUNTIME_WORKERS: Gauge "dozo_runtime_workers" [] EVERY Shown,
        "Threads that run the process's tasks.";
    RUNTIME_BUSY: Counter "dozo_runtime_busy_seconds_total" [] EVERY Shown,
        "Seconds that those threads ran tasks.";
    RUNTIME_TASKS: Gauge "dozo_runtime_tasks" [] EVERY Shown,
        "Tasks of the process that are not finished.";
    RUNTIME_QUEUE: Gauge "dozo_runtime_queued_tasks" [] EVERY Shown,
        "Tasks that wait for a thread to take them.";
    PROCESS_CPU: Counter "process_cpu_seconds_total" [] EVERY Shown,
        "Processor time of the process, in seconds.";
    PROCESS_RESIDENT: Gauge "process_resident_memory_bytes" [] EVERY Shown,
        "Memory of the process that is in use.";
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes" [] EVERY Diagnostic,
        "Address space of the process.";
    PROCESS_VIRTUAL_MAX: Gauge "process_virtual_memory_max_bytes" [] EVERY Diagnostic,
        "Largest address space that the process may have.";
    PROCESS_FDS: Gauge "process_open_fds" [] EVERY Shown,
        "File descriptors in use.";
    PROCESS_FDS_MAX: Gauge "process_max_fds" [] EVERY Shown,
        "Most file descriptors that the process may have.";
    PROCESS_START: Gauge "process_start_time_seconds" [] EVERY Diagnostic,
        "When the process was started, in seconds since 1970.";
    PROCESS_THREADS: Gauge "process_threads" [] EVERY Shown,
        "Threads of the process.";

    // --- Gateway ---
    GATEWAY_REQUESTS: Counter "dozo_gateway_requests_total"
        [of("op", &["put", "get", "head", "delete", "list", "library", "usage", "bucket", "peer"]), any("code", STATUS)]
        GATEWAY Shown,
        "Requests answered, by operation and HTTP status.";
    GATEWAY_REQUEST_DURATION: Histogram "dozo_gateway_request_duration_seconds"
        [of("op", &["put", "get", "head", "delete", "list", "library", "usage", "bucket", "peer"])] GATEWAY Shown,
        "From a request to the head of its answer; of a PUT all of its bytes are in that time.";
    GATEWAY_INFLIGHT: Gauge "dozo_gateway_inflight_requests" [] GATEWAY Shown,
        "Requests being answered.";
    GATEWAY_AUTHENTICATIONS: Counter "dozo_gateway_authentications_total"
        [any("result", "granted, or an error code")] GATEWAY Shown,
        "Answers of cards of the site's clients, by result.";
    GATEWAY_DELIVERIES: Counter "dozo_gateway_deliveries_total" [of("source", SOURCES)] GATEWAY Shown,
        "Deliveries begun, by where the site had the bytes from.";
    GATEWAY_FIRST_BYTE: Histogram "dozo_gateway_time_to_first_byte_seconds" [of("source", SOURCES)] GATEWAY Shown,
        "From request to first byte, record durable.";
    GATEWAY_SENT_BYTES: Counter "dozo_gateway_sent_bytes_total" [of("source", SOURCES)] GATEWAY Shown,
        "Content bytes sent to clients, by where the site had them from.";
    GATEWAY_RECEIVED_BYTES: Counter "dozo_gateway_received_bytes_total" [] GATEWAY Shown,
        "Content bytes received from clients.";
    GATEWAY_CONTENT_SIZE: Histogram "dozo_gateway_content_size_bytes" [of("op", &["put", "get"])] GATEWAY Shown,
        "Lengths of contents published and delivered.";
    GATEWAY_TOP_CLIENT_BYTES: Gauge "dozo_gateway_top_client_sent_bytes"
        [any("client", "20 clients")] GATEWAY Shown,
        "Content bytes sent since the start to the clients that got the most; about, never less.";
    GATEWAY_CACHE_HITS: Counter "dozo_gateway_cache_hits_total" [] GATEWAY Shown,
        "Chunks served from the gateway's memory.";
    GATEWAY_CACHE_MISSES: Counter "dozo_gateway_cache_misses_total" [] GATEWAY Shown,
        "Chunks read from a storage node.";
    GATEWAY_COLLECTIONS: Counter "dozo_gateway_collections_total" [of("from", FROM)] GATEWAY Shown,
        "Collections begun, by kind of source.";
    GATEWAY_COLLECTION_DURATION: Histogram "dozo_gateway_collection_duration_seconds" [of("from", FROM)] GATEWAY Shown,
        "From a collection's begin to its last byte stored, of those that were finished.";
    GATEWAY_COLLECTED_BYTES: Counter "dozo_gateway_collected_bytes_total" [of("from", FROM)] GATEWAY Shown,
        "Bytes fetched from other sites and origins.";
    GATEWAY_COLLECTIONS_FAILED: Counter "dozo_gateway_collections_failed_total" [] GATEWAY Shown,
        "Collections that found no source to finish with.";
    GATEWAY_COLLECTIONS_STOPPED: Counter "dozo_gateway_collections_stopped_total" [] GATEWAY Shown,
        "Collections stopped early, as nobody waited for them.";
    GATEWAY_COLLECTIONS_FOLLOWED: Counter "dozo_gateway_collections_followed_total" [] GATEWAY Shown,
        "Collections that another gateway carried out.";
    GATEWAY_COLLECTIONS_TAKEN_OVER: Counter "dozo_gateway_collections_taken_over_total" [] GATEWAY Shown,
        "Collections gone on with in place of a lost gateway.";
    GATEWAY_COLLECTIONS_SPARED_BYTES: Counter "dozo_gateway_collections_spared_bytes_total" [] GATEWAY Shown,
        "Bytes of collected contents that the site had already.";
    GATEWAY_COLLECTIONS_INFLIGHT: Gauge "dozo_gateway_collections_inflight" [] GATEWAY Shown,
        "Collections at work.";
    GATEWAY_COALESCED: Counter "dozo_gateway_coalesced_requests_total" [] GATEWAY Shown,
        "Requests that joined a collection at work.";
    GATEWAY_HEDGED_FETCHES: Counter "dozo_gateway_hedged_fetches_total" [] GATEWAY Shown,
        "Times another source was asked because the first was late.";
    GATEWAY_SOURCES_CHOSEN: Counter "dozo_gateway_sources_chosen_total"
        [of("reason", &["only", "nearest", "zone", "distance", "shared", "origin", "failing"])] GATEWAY Shown,
        "Rankings, by why their first source was the first.";
    GATEWAY_SOURCE_PROBES: Counter "dozo_gateway_source_probes_total" [of("outcome", &["answered", "failed"])]
        GATEWAY Shown,
        "Measured round trips to sources, by outcome.";
    GATEWAY_SOURCE_FAILURES: Counter "dozo_gateway_source_failures_total" [] GATEWAY Shown,
        "Fetches that a source failed.";
    GATEWAY_SITE_ROUND_TRIP: Gauge "dozo_gateway_site_round_trip_seconds" [any("to", "64 sites")] GATEWAY Shown,
        "Smoothed round trip to the nearest gateway of another site.";
    GATEWAY_NODES: Gauge "dozo_gateway_nodes" [of("state", &["active", "draining", "away"])] GATEWAY Shown,
        "Storage nodes of the site as the map has them; away are those whose shard another serves or nobody does.";
    GATEWAY_NODE_RETRIES: Counter "dozo_gateway_node_retries_total" [] GATEWAY Shown,
        "Calls to storage nodes that were made again.";
    GATEWAY_HEDGED_READS: Counter "dozo_gateway_hedged_reads_total" [] GATEWAY Shown,
        "Times a second copy was asked for because the first was slow.";
    GATEWAY_HASH_MISMATCHES: Counter "dozo_gateway_hash_mismatches_total" [] GATEWAY Shown,
        "Chunks from a source that did not have their hash.";
    GATEWAY_CHUNKS_REPAIRED: Counter "dozo_gateway_chunks_repaired_total" [] GATEWAY Shown,
        "Missing or damaged chunks fetched anew from another holder.";
    GATEWAY_CHUNK_COPIES_SHORT: Counter "dozo_gateway_chunk_copies_short_total" [] GATEWAY Shown,
        "Chunks stored with fewer copies than the site keeps; nodes make up for them.";
    GATEWAY_ENDS_PENDING: Gauge "dozo_gateway_ends_pending" [] GATEWAY Shown,
        "Ends of deliveries not yet reported to their node.";
    GATEWAY_ENDS_LOST: Counter "dozo_gateway_ends_lost_total" [] GATEWAY Shown,
        "Ends given up; their deliveries become 'recovered'.";
    GATEWAY_MAP_EPOCH: Gauge "dozo_gateway_map_epoch" [] GATEWAY Shown,
        "Epoch of the cluster map in use; all servers of a cluster agree within seconds.";
    GATEWAY_VISITED_DELIVERIES: Counter "dozo_gateway_visited_deliveries_total" [of("home", &["confirmed", "away"])]
        GATEWAY Shown,
        "Deliveries to clients of other sites, by whether their home confirmed them or was away.";

    // --- Storage node ---
    NODE_STATE: Gauge "dozo_node_state" [of("state", &["joining", "active", "draining", "removed"])] NODE Shown,
        "1 for the state that the map has for this node, 0 for the others.";
    NODE_CAPACITY: Gauge "dozo_node_capacity_bytes" [] NODE Shown,
        "Bytes that can be used before chunks are refused.";
    NODE_USED: Gauge "dozo_node_used_bytes" [] NODE Shown,
        "Bytes taken.";
    NODE_CHUNKS: Gauge "dozo_node_chunks" [] NODE Shown,
        "Chunks stored.";
    NODE_LOGICAL: Gauge "dozo_node_logical_bytes" [] NODE Shown,
        "Bytes of contents that refer to this node's chunks.";
    NODE_DEDUP_SAVED: Counter "dozo_node_dedup_saved_bytes_total" [] NODE Shown,
        "Bytes of contents that needed no room, as the site had their chunks.";
    NODE_READ_BYTES: Counter "dozo_node_disk_read_bytes_total" [] NODE Shown,
        "Bytes of chunks read.";
    NODE_READ_DURATION: Histogram "dozo_node_disk_read_duration_seconds" [] NODE Shown,
        "From the request of a chunk to its bytes: waiting for a buffer and for the device.";
    NODE_WRITTEN_BYTES: Counter "dozo_node_disk_written_bytes_total" [] NODE Shown,
        "Bytes written: frames of the log, objects.";
    NODE_DISK_ERRORS: Counter "dozo_node_disk_errors_total" [of("operation", &["read", "write"])] NODE Shown,
        "Requests that the device or the object store failed.";
    NODE_DISK_INFLIGHT: Gauge "dozo_node_disk_inflight_requests" [] NODE Shown,
        "Reads and writes that the device has not answered.";
    NODE_COMMITS: Counter "dozo_node_commits_total" [] NODE Shown,
        "Durable group commits of the log.";
    NODE_COMMIT_DURATION: Histogram "dozo_node_commit_duration_seconds" [] NODE Shown,
        "From a group's writing to its being durable.";
    NODE_COMMIT_ENTRIES: Histogram "dozo_node_commit_entries" [] NODE Shown,
        "Entries that a group commit made durable together.";
    NODE_COMPACTIONS: Counter "dozo_node_compactions_total" [] NODE Shown,
        "Segments of the log freed by moving what was still needed.";
    NODE_COMPACTED_BYTES: Counter "dozo_node_compacted_bytes_total" [] NODE Shown,
        "Bytes of chunks moved for it.";
    NODE_DAMAGED_CHUNKS: Counter "dozo_node_damaged_chunks_total" [] NODE Shown,
        "Reads that found other bytes than the chunk's.";
    NODE_REPAIRED_CHUNKS: Counter "dozo_node_repaired_chunks_total" [] NODE Shown,
        "Damaged or missing chunks that another node had.";
    NODE_RECOVERY_DURATION: Gauge "dozo_node_recovery_duration_seconds" [] NODE Shown,
        "How long the last start took to read the log and the catalog.";
    NODE_SCRUB_PROGRESS: Gauge "dozo_node_scrub_progress_ratio" [] NODE Shown,
        "Of the round under way; 1 while there is none.";
    NODE_SCRUB_CHUNKS: Counter "dozo_node_scrub_chunks_total" [] NODE Shown,
        "Chunks read and compared with their hash.";
    NODE_SCRUB_DAMAGED: Counter "dozo_node_scrub_damaged_total" [] NODE Shown,
        "Chunks that a scrub found damaged or missing.";
    NODE_SCRUB_SURPLUS: Counter "dozo_node_scrub_surplus_total" [] NODE Shown,
        "Chunks that nothing refers to, found by a scrub.";
    NODE_SCRUB_COMPLETED: Gauge "dozo_node_scrub_last_completed_timestamp_seconds" [] NODE Shown,
        "When the last whole round ended, in seconds since 1970.";
    NODE_MOVES_PENDING: Gauge "dozo_node_moves_pending_bytes" [] NODE Shown,
        "Bytes that this node still has to send to others.";
    NODE_MOVES_BYTES: Counter "dozo_node_moves_bytes_total" [of("direction", &["out"])] NODE Shown,
        "Bytes of chunks sent to other nodes.";
    NODE_MOVES_CHUNKS: Counter "dozo_node_moves_chunks_total" [] NODE Shown,
        "Chunks sent to other nodes.";
    NODE_MOVES_DROPPED: Counter "dozo_node_moves_dropped_chunks_total" [] NODE Shown,
        "Copies deleted here because every node that is to have the chunk has it.";
    NODE_SHARDS: Gauge "dozo_node_shards" [] NODE Shown,
        "Shards that this node serves.";
    NODE_FOLLOWERS_MISSING: Gauge "dozo_node_followers_missing" [] NODE Shown,
        "Followers that the served shards are to have and do not have in step.";
    NODE_DELIVERIES_OPEN: Gauge "dozo_node_deliveries_open" [] NODE Shown,
        "Deliveries begun and not yet recorded as ended.";
    NODE_OUTBOX_PENDING: Gauge "dozo_node_outbox_pending_records" [of("fee", FEES)] NODE Shown,
        "Delivery records that the billing server has not booked.";
    NODE_OUTBOX_STOPPED: Gauge "dozo_node_outbox_stopped" [of("fee", FEES)] NODE Shown,
        "1 once the billing server contradicted this node's records: an operator must look.";
    NODE_OUTBOX_AGE: Gauge "dozo_node_outbox_oldest_age_seconds" [of("fee", FEES)] NODE Shown,
        "How long ago the oldest delivery ended that the billing server has not booked; 0 while there is none.";
    NODE_ANNOUNCEMENTS_PENDING: Gauge "dozo_node_announcements_pending" [] NODE Shown,
        "Announcements that search has not acknowledged.";
    NODE_SURPLUS_REFERENCES: Counter "dozo_node_surplus_references_total" [] NODE Shown,
        "References that no holding needed; released.";
    NODE_TEMPORARY_CONTENTS: Gauge "dozo_node_temporary_contents" [] NODE Shown,
        "Contents kept for visitors.";
    NODE_TEMPORARY_BYTES: Gauge "dozo_node_temporary_bytes" [] NODE Shown,
        "Their lengths, whatever of it the site has for others too.";
    NODE_TEMPORARY_EXPIRED: Counter "dozo_node_temporary_expired_total" [] NODE Shown,
        "Visitors whose time was over.";

    // --- Search ---
    SEARCH_CONTENTS: Gauge "dozo_search_contents" [] SEARCH Shown,
        "Names that at least one site or origin holds in their newest version.";
    SEARCH_HOLDERS: Gauge "dozo_search_holders" [] SEARCH Shown,
        "Pairs of name and holder.";
    SEARCH_MAP_EPOCH: Gauge "dozo_search_map_epoch" [] SEARCH Shown,
        "Epoch of the cluster map.";
    SEARCH_ANNOUNCEMENTS: Counter "dozo_search_announcements_total" [] SEARCH Shown,
        "Announcements applied.";
    SEARCH_LOOKUPS: Counter "dozo_search_lookups_total" [of("result", &["found", "not_found"])] SEARCH Shown,
        "Questions where a content is, by whether anybody holds it.";
    SEARCH_SERVERS: Gauge "dozo_search_servers"
        [of("role", ROLES), of("state", &["alive", "silent"])] SEARCH Shown,
        "Servers that registered, by whether they still report.";
    SEARCH_MISSING_REPORTS: Counter "dozo_search_missing_reports_total" [] SEARCH Shown,
        "Times a holder named by search turned out not to have the content.";

    // --- Origin ---
    ORIGIN_CONTENTS: Gauge "dozo_origin_contents" [] ORIGIN Shown,
        "Originals registered.";
    ORIGIN_SENT_BYTES: Counter "dozo_origin_sent_bytes_total" [] ORIGIN Shown,
        "Bytes of originals sent to sites.";
    ORIGIN_SCANNED_BYTES: Counter "dozo_origin_scanned_bytes_total" [] ORIGIN Shown,
        "Bytes of sources read to be registered.";
    ORIGIN_ANNOUNCEMENTS_PENDING: Gauge "dozo_origin_announcements_pending" [] ORIGIN Shown,
        "Announcements that search has not acknowledged.";
    ORIGIN_FAILED_SCANS: Counter "dozo_origin_failed_scans_total" [] ORIGIN Shown,
        "Scans that could not be finished.";
    ORIGIN_REFUSED_READS: Counter "dozo_origin_refused_reads_total" [of("reason", &["busy", "changed"])] ORIGIN Shown,
        "Reads not carried out: too many wait, or the object is another than was registered.";
    ORIGIN_READS_INFLIGHT: Gauge "dozo_origin_reads_inflight" [any("bucket", "sources of the origin")] ORIGIN Shown,
        "Reads of a source at work.";
    ORIGIN_READS_WAITING: Gauge "dozo_origin_reads_waiting" [any("bucket", "sources of the origin")] ORIGIN Shown,
        "Reads that wait for their turn at a source.";
    ORIGIN_SCAN_LISTED: Gauge "dozo_origin_scan_listed_objects" [any("bucket", "sources of the origin")] ORIGIN Shown,
        "Objects that the scan under way, or the last one, has listed.";
    ORIGIN_SCAN_READ: Gauge "dozo_origin_scan_read_objects" [any("bucket", "sources of the origin")] ORIGIN Shown,
        "Objects that it has read.";
    ORIGIN_WITHDRAWALS_HELD: Gauge "dozo_origin_withdrawals_held" [any("bucket", "sources of the origin")] ORIGIN Shown,
        "Contents missing in the source and not withdrawn: too many at once to be believed.";

    // --- Billing ---
    BILLING_RECORDS: Counter "dozo_billing_records_total"
        [of("fee", FEES), of("result", &["booked", "duplicate", "exception", "refused"])] BILLING Shown,
        "Delivery records received, by what became of them.";
    BILLING_BATCHES: Counter "dozo_billing_batches_total"
        [of("fee", FEES), of("outcome", &["booked", "gap", "fork", "failed"])] BILLING Shown,
        "Batches of records answered.";
    BILLING_BATCH_DURATION: Histogram "dozo_billing_batch_duration_seconds" [of("fee", FEES)] BILLING Shown,
        "From a batch's arrival at the writer to its commit.";
    BILLING_RECORD_LAG: Histogram "dozo_billing_record_lag_seconds" [of("fee", FEES)] BILLING Shown,
        "From the end of the oldest delivery in a batch to its booking.";
    BILLING_CALLS_FORBIDDEN: Counter "dozo_billing_calls_forbidden_total" [of("fee", FEES)] BILLING Shown,
        "Calls by somebody who is known and may not make them, batches of another site's node among them.";
    BILLING_IMBALANCE: Gauge "dozo_billing_ledger_imbalance_minor_units" [of("fee", FEES)] BILLING Shown,
        "Distance of the books from balance; anything but zero is an alarm.";
    BILLING_EXCEPTIONS: Gauge "dozo_billing_exceptions" [of("fee", FEES)] BILLING Shown,
        "Records that could not be rated and wait for an operator.";
    BILLING_BALANCES: Gauge "dozo_billing_balance_minor_units"
        [
            of("fee", FEES),
            of("account", &["unbilled", "receivable", "payable", "wallet", "tax", "rounding", "bank"]),
            any("currency", "currencies of the tariffs")
        ]
        BILLING Shown,
        "Sum of the accounts of one kind; what others owe is positive.";
    BILLING_INVOICES: Gauge "dozo_billing_invoices" [of("fee", FEES)] BILLING Shown,
        "Invoices issued, credit notes among them.";
    BILLING_LAST_CLOSE: Gauge "dozo_billing_last_close_timestamp_seconds" [of("fee", FEES)] BILLING Shown,
        "When a month was last closed, in seconds since 1970; 0 before the first.";

    // --- Mobile access ---
    MOBILE_HEARD: Counter "dozo_mobile_access_heard_total" [of("result", &["answered", "malformed", "limited"])]
        MOBILE_ACCESS Shown,
        "Datagrams that came, by what became of them.";
    MOBILE_REQUESTS: Counter "dozo_mobile_access_requests_total"
        [of("op", &["challenge", "answer"]), any("result", "ok, or an error code")] MOBILE_ACCESS Shown,
        "Questions of clients, by operation and result.";
    MOBILE_HOME_DURATION: Histogram "dozo_mobile_access_home_seconds" [] MOBILE_ACCESS Shown,
        "Time to an answer of a home site's gateway.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names = HashSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
            assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(!["_bucket", "_sum", "_count"].iter().any(|end| name.ends_with(end)), "{name}");
            assert!(name.starts_with("dozo_") || name.starts_with("process_"), "{name}");
            assert!(metric.help.ends_with('.'), "{name}: {}", metric.help);
            let labels: HashSet<_> = metric.labels.iter().map(|label| label.name).collect();
            assert_eq!(labels.len(), metric.labels.len(), "{name} has a label twice");
            for target in ["job", "instance", "site", "node", "le"] {
                assert!(!labels.contains(target), "{name}: {target} is not the server's to say");
            }
        }
    }

    #[test]
    fn label_values_are_those_of_the_types_they_stand_for() {
        let roles: Vec<_> = Role::ALL.iter().map(|role| role.as_str()).collect();
        assert_eq!(roles, ROLES);
    }
}
