//! What the routes and workers of one storage node share. What those of one shard share is in [`crate::shard`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::api::node::NodeClient;
use common::api::search::SearchClient;
use common::client::ServerClient;
use common::cluster::{ClusterMap, NodeEntry};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{NodeId, SiteId};
use common::placement::Slot;
use common::server::Health;
use common::time::{Clock, UnixMillis};
use tokio::sync::{Mutex, watch};

use crate::catalog::Catalog;
use crate::chunks::ChunkLocks;
use crate::config::Limits;
use crate::leases::Leases;
use crate::map_watch;
use crate::metrics::Metrics;
use crate::mover::Moves;
use crate::scrub::Scrub;
use crate::shard::Shard;
use crate::shards::Shards;
use crate::store::ChunkStore;
use crate::view::Maps;

/// What is said to those who wait for something on this node.
#[derive(Default)]
pub struct Signals {
    /// When a chunk was last refused for want of space, in milliseconds since 1970; 0 if never.
    refused_at_ms: AtomicU64,
}

impl Signals {
    /// A chunk was refused for want of space.
    pub fn refused(&self, now: UnixMillis) {
        self.refused_at_ms.fetch_max(now.0, Ordering::Relaxed);
    }

    /// When a chunk was last refused for want of space.
    pub fn refused_at(&self) -> Option<UnixMillis> {
        Some(self.refused_at_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0).map(UnixMillis)
    }
}

/// One storage node.
pub struct Node {
    pub id: NodeId,
    pub site: SiteId,
    /// As configured, without credentials.
    pub store: String,
    pub clock: Clock,
    pub limits: Limits,
    /// For the rows that are the node's own affair: its chunks and who refers to them.
    pub catalog: Catalog,
    pub chunks: Arc<dyn ChunkStore>,
    pub chunk_locks: ChunkLocks,
    pub leases: Leases,
    pub scrub: Scrub,
    pub moves: Moves,
    pub maps: Arc<Maps>,
    pub shards: Shards,
    pub search: SearchClient,
    pub client: ServerClient,
    pub metrics: Metrics,
    pub signals: Signals,
    pub health: Health,
    /// Epoch in which search has the node's records numbered; 0 until search said so.
    pub record_epoch: watch::Sender<u64>,
    pub map_path: PathBuf,
    /// Held while a new map is made durable.
    pub map_writing: Mutex<()>,
}

impl Node {
    /// A client of another node.
    pub fn peer(&self, node: &NodeEntry) -> NodeClient {
        NodeClient::new(self.client.clone(), &node.http)
    }

    /// A client of whoever serves a node's shard.
    pub fn shard_peer(&self, shard: &NodeId) -> ApiResult<NodeClient> {
        let peer = self.maps.with(|view| Some(self.peer(view.site()?.shard_primary(shard)?)));
        peer.ok_or_else(|| {
            ApiError::new(ErrorCode::NodeUnavailable, format!("nobody serves the shard of {shard}"))
        })
    }

    /// The shard that decides for a slot, if this node serves it.
    pub fn shard_with(&self, slot: Slot) -> ApiResult<Arc<Shard>> {
        let owner = self.maps.with(|view| Some(view.site()?.slot_owner(slot)?.id.clone()));
        let Some(owner) = owner else {
            return Err(ApiError::new(ErrorCode::WrongNode, format!("slot {} has no owner yet", slot.0)));
        };
        self.shard(&owner)
    }

    /// A shard that this node serves. `WrongNode` when another does, `SlotMoving` while it is being taken over.
    pub fn shard(&self, id: &NodeId) -> ApiResult<Arc<Shard>> {
        if let Some(shard) = self.shards.get(id) {
            return Ok(shard);
        }
        let (code, what) = match self.maps.with(|view| view.term_of(id)) {
            Some(_) => (ErrorCode::SlotMoving, "is being taken over"),
            None => (ErrorCode::WrongNode, "is served by another node"),
        };
        Err(ApiError::new(code, format!("the shard of {id} {what} under map {}", self.maps.epoch().0)))
    }

    /// Takes a newer map, durably first: after a restart the node must not believe an older one. `Conflict` for a map
    /// that does not take account of the one the node has, whatever its number: the node would give up rows that
    /// nobody else has.
    pub async fn adopt(&self, map: ClusterMap) -> ApiResult<()> {
        let _one_at_a_time = self.map_writing.lock().await;
        let known = self.maps.with(|view| view.map.id());
        if map.epoch <= known.epoch {
            return Ok(());
        }
        if !map.follows(&known) {
            let message = format!(
                "search gives map {}, which does not follow from this node's map {}; the node keeps its own until \
                 search has taken that over (`/readyz?verbose` of search says what that waits for)",
                map.epoch.0, known.epoch.0
            );
            return Err(ApiError::new(ErrorCode::Conflict, message));
        }
        let (path, written) = (self.map_path.clone(), map.clone());
        tokio::task::spawn_blocking(move || map_watch::save(&path, &written))
            .await
            .map_err(|error| ApiError::internal(&error))?
            .map_err(|error| ApiError::internal(&error))?;
        let view = self.maps.look_at(map);
        // First, so that nothing is committed in an old term by somebody who sees the new map.
        self.shards.close_deposed(&view);
        self.maps.adopt(view);
        self.report_map();
        Ok(())
    }

    /// The node is ready once it is in the map that it has.
    pub fn report_map(&self) {
        let state = self.maps.with(|view| view.me().map(|entry| entry.state));
        self.metrics.show_state(state);
        let known = state.is_some();
        self.health
            .set("map", if known { Ok(()) } else { Err("the node is not in the cluster map yet".into()) });
    }
}
