//! The gateway's figures: handles made once, cheap to use.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use common::catalogue::metrics::{
    GATEWAY_AUTHENTICATIONS, GATEWAY_CACHE_HITS, GATEWAY_CACHE_MISSES, GATEWAY_CHUNK_COPIES_SHORT,
    GATEWAY_CHUNKS_REPAIRED, GATEWAY_COALESCED, GATEWAY_COLLECTED_BYTES, GATEWAY_COLLECTION_DURATION,
    GATEWAY_COLLECTIONS, GATEWAY_COLLECTIONS_FAILED, GATEWAY_COLLECTIONS_FOLLOWED,
    GATEWAY_COLLECTIONS_INFLIGHT, GATEWAY_COLLECTIONS_SPARED_BYTES, GATEWAY_COLLECTIONS_STOPPED,
    GATEWAY_COLLECTIONS_TAKEN_OVER, GATEWAY_CONTENT_SIZE, GATEWAY_DELIVERIES, GATEWAY_ENDS_LOST,
    GATEWAY_ENDS_PENDING, GATEWAY_FIRST_BYTE, GATEWAY_HASH_MISMATCHES, GATEWAY_HEDGED_FETCHES,
    GATEWAY_HEDGED_READS, GATEWAY_INFLIGHT, GATEWAY_MAP_EPOCH, GATEWAY_NODE_RETRIES, GATEWAY_NODES,
    GATEWAY_RECEIVED_BYTES, GATEWAY_REQUEST_DURATION, GATEWAY_REQUESTS, GATEWAY_SENT_BYTES,
    GATEWAY_VISITED_DELIVERIES,
};
use common::cluster::{NodeState, SiteEntry};
use common::record::DeliveryPath;
use common::telemetry::MetricsRegistry;
use metrics::{Counter, Gauge, Histogram};

use crate::collect::sources::figures::SourceFigures;
use crate::heaviest::HeaviestClients;

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
    const ALL: [Self; 9] = [
        Self::Put,
        Self::Get,
        Self::Head,
        Self::Delete,
        Self::List,
        Self::Library,
        Self::Usage,
        Self::Bucket,
        Self::Peer,
    ];

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
    /// In the order of [`Op::ALL`].
    durations: [Histogram; Op::ALL.len()],
    deliveries: [Counter; 3],
    time_to_first_byte: [Histogram; 3],
    sent_bytes: [Counter; 3],
    collected_bytes: [Counter; 2],
    collections: [Counter; 2],
    collection_durations: [Histogram; 2],
    pub collections_failed: Counter,
    pub collections_stopped: Counter,
    pub collections_followed: Counter,
    pub collections_taken_over: Counter,
    pub collections_spared_bytes: Counter,
    pub hedged_fetches: Counter,
    pub collections_inflight: Gauge,
    pub coalesced: Counter,
    pub received_bytes: Counter,
    /// Lengths in bytes of contents published, and of those delivered.
    pub published_size: Histogram,
    pub delivered_size: Histogram,
    pub heaviest: HeaviestClients,
    pub cache_hits: Counter,
    pub cache_misses: Counter,
    pub inflight: Gauge,
    pub nodes: NodeStates,
    pub node_retries: Counter,
    pub ends_pending: Gauge,
    pub ends_lost: Counter,
    pub hash_mismatches: Counter,
    pub chunks_repaired: Counter,
    pub hedged_reads: Counter,
    pub chunk_copies_short: Counter,
    pub map_epoch: Gauge,
    pub sources: SourceFigures,
    /// Deliveries to clients of other sites whose home confirmed them.
    pub visited_confirmed: Counter,
    /// Of what was kept, while their home was away.
    pub visited_away: Counter,
}

fn path_index(path: DeliveryPath) -> usize {
    match path {
        DeliveryPath::Hit => 0,
        DeliveryPath::Peer => 1,
        DeliveryPath::Origin => 2,
    }
}

/// As labels say it, in the order of [`path_index`].
const PATHS: [&str; 3] = ["hit", "peer", "origin"];
const SOURCES: [&str; 2] = ["peer", "origin"];

impl Metrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        let counter = |metric| registry.counter(metric, &[]);
        let gauge = |metric| registry.gauge(metric, &[]);
        Self {
            registry: registry.clone(),
            requests: RwLock::default(),
            durations: Op::ALL.map(|op| registry.histogram(&GATEWAY_REQUEST_DURATION, &[op.as_str()])),
            deliveries: PATHS.map(|s| registry.counter(&GATEWAY_DELIVERIES, &[s])),
            time_to_first_byte: PATHS.map(|s| registry.histogram(&GATEWAY_FIRST_BYTE, &[s])),
            sent_bytes: PATHS.map(|s| registry.counter(&GATEWAY_SENT_BYTES, &[s])),
            collected_bytes: SOURCES.map(|s| registry.counter(&GATEWAY_COLLECTED_BYTES, &[s])),
            collections: SOURCES.map(|s| registry.counter(&GATEWAY_COLLECTIONS, &[s])),
            collection_durations: SOURCES.map(|s| registry.histogram(&GATEWAY_COLLECTION_DURATION, &[s])),
            collections_failed: counter(&GATEWAY_COLLECTIONS_FAILED),
            collections_stopped: counter(&GATEWAY_COLLECTIONS_STOPPED),
            collections_followed: counter(&GATEWAY_COLLECTIONS_FOLLOWED),
            collections_taken_over: counter(&GATEWAY_COLLECTIONS_TAKEN_OVER),
            collections_spared_bytes: counter(&GATEWAY_COLLECTIONS_SPARED_BYTES),
            hedged_fetches: counter(&GATEWAY_HEDGED_FETCHES),
            collections_inflight: gauge(&GATEWAY_COLLECTIONS_INFLIGHT),
            coalesced: counter(&GATEWAY_COALESCED),
            received_bytes: counter(&GATEWAY_RECEIVED_BYTES),
            published_size: registry.histogram(&GATEWAY_CONTENT_SIZE, &["put"]),
            delivered_size: registry.histogram(&GATEWAY_CONTENT_SIZE, &["get"]),
            heaviest: HeaviestClients::new(registry),
            cache_hits: counter(&GATEWAY_CACHE_HITS),
            cache_misses: counter(&GATEWAY_CACHE_MISSES),
            inflight: gauge(&GATEWAY_INFLIGHT),
            nodes: NodeStates::new(registry),
            node_retries: counter(&GATEWAY_NODE_RETRIES),
            ends_pending: gauge(&GATEWAY_ENDS_PENDING),
            ends_lost: counter(&GATEWAY_ENDS_LOST),
            hash_mismatches: counter(&GATEWAY_HASH_MISMATCHES),
            chunks_repaired: counter(&GATEWAY_CHUNKS_REPAIRED),
            hedged_reads: counter(&GATEWAY_HEDGED_READS),
            chunk_copies_short: counter(&GATEWAY_CHUNK_COPIES_SHORT),
            map_epoch: gauge(&GATEWAY_MAP_EPOCH),
            sources: SourceFigures::new(registry),
            visited_confirmed: registry.counter(&GATEWAY_VISITED_DELIVERIES, &["confirmed"]),
            visited_away: registry.counter(&GATEWAY_VISITED_DELIVERIES, &["away"]),
        }
    }

    /// One answered request.
    pub fn request(&self, op: Op, status: u16, took: Duration) {
        self.durations[op as usize].record(took);
        let key = (op, status);
        if let Some(counter) = self.requests.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            counter.increment(1);
            return;
        }
        let counter = self.registry.counter(&GATEWAY_REQUESTS, &[op.as_str(), &status.to_string()]);
        counter.increment(1);
        self.requests.write().unwrap_or_else(PoisonError::into_inner).insert(key, counter);
    }

    /// A card's answer: `granted`, or the code of the refusal.
    pub fn authentication(&self, result: &'static str) {
        self.registry.counter(&GATEWAY_AUTHENTICATIONS, &[result]).increment(1);
    }

    pub fn delivery(&self, path: DeliveryPath) {
        self.deliveries[path_index(path)].increment(1);
    }

    /// Content bytes that went out to a client.
    pub fn sent(&self, path: DeliveryPath, bytes: u64) {
        self.sent_bytes[path_index(path)].increment(bytes);
    }

    pub fn first_byte(&self, path: DeliveryPath, took: Duration) {
        self.time_to_first_byte[path_index(path)].record(took);
    }

    /// `path` is [`DeliveryPath::Peer`] or [`DeliveryPath::Origin`].
    pub fn collected(&self, path: DeliveryPath, bytes: u64) {
        self.collected_bytes[path_index(path).saturating_sub(1)].increment(bytes);
    }

    pub fn collection(&self, path: DeliveryPath) {
        self.collections[path_index(path).saturating_sub(1)].increment(1);
    }

    /// A collection from there is finished.
    pub fn collection_took(&self, path: DeliveryPath, took: Duration) {
        self.collection_durations[path_index(path).saturating_sub(1)].record(took);
    }
}

/// Gauges of the site's nodes by state.
pub struct NodeStates {
    active: Gauge,
    draining: Gauge,
    away: Gauge,
}

impl NodeStates {
    fn new(registry: &MetricsRegistry) -> Self {
        let of = |state| registry.gauge(&GATEWAY_NODES, &[state]);
        Self { active: of("active"), draining: of("draining"), away: of("away") }
    }

    /// Shows the site as a new map has it.
    pub fn show(&self, site: &SiteEntry) {
        let (mut active, mut draining, mut away) = (0, 0, 0);
        for node in &site.nodes {
            match node.state {
                NodeState::Removed => {}
                _ if !node.alive => away += 1,
                NodeState::Active => active += 1,
                NodeState::Draining => draining += 1,
            }
        }
        self.active.set(f64::from(active));
        self.draining.set(f64::from(draining));
        self.away.set(f64::from(away));
    }
}
