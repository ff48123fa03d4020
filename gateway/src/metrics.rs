//! The gateway's figures: handles made once, cheap to use.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use common::record::DeliveryPath;
use common::telemetry::MetricsRegistry;
use metrics::{Counter, Gauge, Histogram};

use crate::collect::sources::figures::SourceFigures;

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    Put,
    Get,
    Head,
    Delete,
    List,
    Library,
    Usage,
    Bucket,
    Peer,
}

impl Op {
    fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Library => "library",
            Self::Usage => "usage",
            Self::Bucket => "bucket",
            Self::Peer => "peer",
        }
    }
}

/// Shared by every part of the gateway in an `Arc`.
pub struct Metrics {
    registry: MetricsRegistry,
    requests: RwLock<HashMap<(Op, u16), Counter>>,
    deliveries: [Counter; 3],
    time_to_first_byte: [Histogram; 3],
    collected_bytes: [Counter; 2],
    collections: [Counter; 2],
    pub collections_failed: Counter,
    pub collections_stopped: Counter,
    pub collections_followed: Counter,
    pub collections_taken_over: Counter,
    pub collections_spared_bytes: Counter,
    pub hedged_fetches: Counter,
    pub collections_inflight: Gauge,
    pub coalesced: Counter,
    pub sent_bytes: Counter,
    pub received_bytes: Counter,
    pub cache_hits: Counter,
    pub cache_misses: Counter,
    pub inflight: Gauge,
    pub node_retries: Counter,
    pub ends_pending: Gauge,
    pub ends_lost: Counter,
    pub hash_mismatches: Counter,
    pub chunks_repaired: Counter,
    pub hedged_reads: Counter,
    pub chunk_copies_short: Counter,
    pub map_epoch: Gauge,
    pub sources: SourceFigures,
}

fn path_index(path: DeliveryPath) -> usize {
    match path {
        DeliveryPath::Hit => 0,
        DeliveryPath::Peer => 1,
        DeliveryPath::Origin => 2,
    }
}

impl Metrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        const PATHS: [&str; 3] = ["hit", "peer", "origin"];
        registry.scope(|| {
            describe();
            Self {
                registry: registry.clone(),
                requests: RwLock::default(),
                deliveries: PATHS.map(|s| metrics::counter!("dozo_gateway_deliveries_total", "source" => s)),
                time_to_first_byte: PATHS
                    .map(|s| metrics::histogram!("dozo_gateway_time_to_first_byte_seconds", "source" => s)),
                collected_bytes: ["peer", "origin"]
                    .map(|s| metrics::counter!("dozo_gateway_collected_bytes_total", "from" => s)),
                collections: ["peer", "origin"]
                    .map(|s| metrics::counter!("dozo_gateway_collections_total", "from" => s)),
                collections_failed: metrics::counter!("dozo_gateway_collections_failed_total"),
                collections_stopped: metrics::counter!("dozo_gateway_collections_stopped_total"),
                collections_followed: metrics::counter!("dozo_gateway_collections_followed_total"),
                collections_taken_over: metrics::counter!("dozo_gateway_collections_taken_over_total"),
                collections_spared_bytes: metrics::counter!("dozo_gateway_collections_spared_bytes_total"),
                hedged_fetches: metrics::counter!("dozo_gateway_hedged_fetches_total"),
                collections_inflight: metrics::gauge!("dozo_gateway_collections_inflight"),
                coalesced: metrics::counter!("dozo_gateway_coalesced_requests_total"),
                sent_bytes: metrics::counter!("dozo_gateway_sent_bytes_total"),
                received_bytes: metrics::counter!("dozo_gateway_received_bytes_total"),
                cache_hits: metrics::counter!("dozo_gateway_cache_hits_total"),
                cache_misses: metrics::counter!("dozo_gateway_cache_misses_total"),
                inflight: metrics::gauge!("dozo_gateway_inflight_requests"),
                node_retries: metrics::counter!("dozo_gateway_node_retries_total"),
                ends_pending: metrics::gauge!("dozo_gateway_ends_pending"),
                ends_lost: metrics::counter!("dozo_gateway_ends_lost_total"),
                hash_mismatches: metrics::counter!("dozo_gateway_hash_mismatches_total"),
                chunks_repaired: metrics::counter!("dozo_gateway_chunks_repaired_total"),
                hedged_reads: metrics::counter!("dozo_gateway_hedged_reads_total"),
                chunk_copies_short: metrics::counter!("dozo_gateway_chunk_copies_short_total"),
                map_epoch: metrics::gauge!("dozo_gateway_map_epoch"),
                sources: SourceFigures::new(registry),
            }
        })
    }

    /// One answered request.
    pub fn request(&self, op: Op, status: u16) {
        let key = (op, status);
        if let Some(counter) = self.requests.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            counter.increment(1);
            return;
        }
        let make = || metrics::counter!("dozo_gateway_requests_total", "op" => op.as_str(), "code" => status.to_string());
        let counter = self.registry.scope(make);
        counter.increment(1);
        self.requests.write().unwrap_or_else(PoisonError::into_inner).insert(key, counter);
    }

    pub fn delivery(&self, path: DeliveryPath) {
        self.deliveries[path_index(path)].increment(1);
    }

    pub fn first_byte(&self, path: DeliveryPath, seconds: f64) {
        self.time_to_first_byte[path_index(path)].record(seconds);
    }

    /// `path` is [`DeliveryPath::Peer`] or [`DeliveryPath::Origin`].
    pub fn collected(&self, path: DeliveryPath, bytes: u64) {
        self.collected_bytes[path_index(path).saturating_sub(1)].increment(bytes);
    }

    pub fn collection(&self, path: DeliveryPath) {
        self.collections[path_index(path).saturating_sub(1)].increment(1);
    }
}

fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram};
    counter!("dozo_gateway_requests_total", "Requests answered, by operation and HTTP status.");
    counter!("dozo_gateway_deliveries_total", "Deliveries begun, by where the site had the bytes from.");
    histogram!("dozo_gateway_time_to_first_byte_seconds", "From request to first byte, record durable.");
    counter!("dozo_gateway_collections_total", "Collections begun, by kind of source.");
    counter!("dozo_gateway_collected_bytes_total", "Bytes fetched from other sites and origins.");
    counter!("dozo_gateway_collections_failed_total", "Collections that found no source to finish with.");
    counter!(
        "dozo_gateway_collections_stopped_total",
        "Collections stopped early, as nobody waited for them."
    );
    counter!("dozo_gateway_collections_followed_total", "Collections that another gateway carried out.");
    counter!(
        "dozo_gateway_collections_taken_over_total",
        "Collections gone on with in place of a lost gateway."
    );
    counter!(
        "dozo_gateway_collections_spared_bytes_total",
        "Bytes of collected contents that the site had already."
    );
    counter!(
        "dozo_gateway_hedged_fetches_total",
        "Times another source was asked because the first was late."
    );
    gauge!("dozo_gateway_collections_inflight", "Collections at work.");
    counter!("dozo_gateway_coalesced_requests_total", "Requests that joined a collection at work.");
    counter!("dozo_gateway_sent_bytes_total", "Content bytes sent to clients.");
    counter!("dozo_gateway_received_bytes_total", "Content bytes received from clients.");
    counter!("dozo_gateway_cache_hits_total", "Chunks served from the gateway's memory.");
    counter!("dozo_gateway_cache_misses_total", "Chunks read from a storage node.");
    gauge!("dozo_gateway_inflight_requests", "Requests being answered.");
    counter!("dozo_gateway_node_retries_total", "Calls to storage nodes that were made again.");
    gauge!("dozo_gateway_ends_pending", "Ends of deliveries not yet reported to their node.");
    counter!("dozo_gateway_ends_lost_total", "Ends given up; their deliveries become 'recovered'.");
    counter!("dozo_gateway_hash_mismatches_total", "Chunks from a source that did not have their hash.");
    counter!(
        "dozo_gateway_chunks_repaired_total",
        "Missing or damaged chunks fetched anew from another holder."
    );
    counter!(
        "dozo_gateway_hedged_reads_total",
        "Times a second copy was asked for because the first was slow."
    );
    counter!(
        "dozo_gateway_chunk_copies_short_total",
        "Chunks stored with fewer copies than the site keeps; nodes make up for them."
    );
    gauge!("dozo_gateway_map_epoch", "Epoch of the cluster map in use.");
}
