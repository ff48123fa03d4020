//! The gateway's view of its site: the newest cluster map, and calls to the node that owns a slot.
//!
//! The map is long-polled from search. While search is down the last one stays in use, and a gateway that starts
//! then asks the storage nodes it is told of by [`SiteView::adopt`].

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use common::api::node::NodeClient;
use common::api::search::SearchClient;
use common::backoff::Backoff;
use common::client::{CallError, ServerClient};
use common::cluster::{ClusterMap, MapEpoch, SiteEntry};
use common::error::{ApiError, ErrorCode};
use common::hash::ChunkHash;
use common::id::{NodeId, SiteId};
use common::placement::{SLOT_COUNT, Slot, rank_for_chunk};
use common::server::Health;
use futures_util::future::join_all;
use std::sync::Arc;
use tokio::sync::watch;

use crate::metrics::Metrics;

const MAP_WAIT: Duration = Duration::from_secs(20);

pub struct SiteView {
    pub id: SiteId,
    view: watch::Sender<View>,
    server: ServerClient,
    patience: Duration,
    metrics: Arc<Metrics>,
}

/// A map, and clients of the site's nodes made ready for use, in the map's order.
#[derive(Default)]
struct View {
    map: Arc<ClusterMap>,
    nodes: Vec<NodeClient>,
}

impl SiteView {
    pub fn new(id: SiteId, server: ServerClient, patience: Duration, metrics: Arc<Metrics>) -> Self {
        Self { id, view: watch::Sender::new(View::default()), server, patience, metrics }
    }

    pub fn map(&self) -> Arc<ClusterMap> {
        self.view.borrow().map.clone()
    }

    /// Takes a map if it is newer than the one in use.
    pub fn adopt(&self, map: ClusterMap) {
        let epoch = map.epoch;
        let newer = self.view.send_if_modified(|current| {
            let newer = epoch > current.map.epoch;
            if newer {
                let nodes = map.site(&self.id).map_or(&[][..], |site| &site.nodes);
                let nodes = nodes.iter().map(|n| NodeClient::new(self.server.clone(), &n.http)).collect();
                *current = View { map: Arc::new(map), nodes };
            }
            newer
        });
        if newer {
            self.metrics.map_epoch.set(epoch.0 as f64);
        }
    }

    /// Follows search's map for ever.
    pub async fn follow(self: Arc<Self>, search: SearchClient, health: Health) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let epoch = self.view.borrow().map.epoch;
            let wait = if epoch == MapEpoch::default() { Duration::ZERO } else { MAP_WAIT };
            match search.map(epoch, wait).await {
                Ok(map) => {
                    backoff.reset();
                    self.adopt(map);
                    let has_nodes =
                        self.view.borrow().map.site(&self.id).is_some_and(|s| !s.slot_owners.is_empty());
                    let state =
                        if has_nodes { Ok(()) } else { Err("the site has no storage node yet".to_owned()) };
                    if state.is_err() {
                        // The map changes when the first node joins; ask for that change, not in a loop.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    health.set("map", state);
                }
                Err(error) => {
                    tracing::warn!(error = %common::error::chain(&error), "search gives no map; the last one stays in use");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// What `take` finds with the site and its node clients; `None` while there is no map.
    fn with_site<T>(&self, take: impl FnOnce(&SiteEntry, &[NodeClient]) -> T) -> Option<T> {
        let view = self.view.borrow();
        view.map.site(&self.id).map(|site| take(site, &view.nodes))
    }

    /// Clients of the site's nodes for a chunk, best first.
    pub fn nodes_for_chunk(&self, hash: &ChunkHash) -> Vec<(NodeId, NodeClient)> {
        let rank = |site: &SiteEntry, clients: &[NodeClient]| {
            let ranked = rank_for_chunk(site, hash).into_iter();
            ranked.map(|index| (site.nodes[index].id.clone(), clients[index].clone())).collect::<Vec<_>>()
        };
        self.with_site(rank).unwrap_or_default()
    }

    /// The site's nodes that are there.
    pub fn nodes(&self) -> Vec<(NodeId, NodeClient)> {
        let all = |site: &SiteEntry, clients: &[NodeClient]| {
            let there = site.nodes.iter().zip(clients).filter(|(node, _)| node.alive);
            there.map(|(node, client)| (node.id.clone(), client.clone())).collect::<Vec<_>>()
        };
        self.with_site(all).unwrap_or_default()
    }

    /// Who serves a node's shard.
    pub fn shard_primary(&self, shard: &NodeId) -> Option<NodeClient> {
        let find = |site: &SiteEntry, clients: &[NodeClient]| {
            let index = site.primary_index(site.node(shard)?)?;
            Some(clients[index].clone())
        };
        self.with_site(find).flatten()
    }

    /// The shard that has a slot and who serves it, as far as this gateway knows.
    pub fn owner(&self, slot: Slot) -> Option<(NodeId, NodeClient)> {
        let find = |site: &SiteEntry, clients: &[NodeClient]| {
            let shard = site.slot_owner(slot)?;
            let index = site.primary_index(shard)?;
            Some((shard.id.clone(), clients[index].clone()))
        };
        self.with_site(find).flatten()
    }

    /// The shard that has both slots, if one does, and who serves it.
    pub fn owner_of_both(&self, a: Slot, b: Slot) -> Option<(NodeId, NodeClient)> {
        let (shard, primary) = self.owner(a)?;
        self.owner(b).filter(|(other, _)| *other == shard).map(|_| (shard, primary))
    }

    /// Calls the owners of all slots, each with those that it owns; again, for what is left, while slots move or an owner
    /// does not answer, for at most the configured patience. The answers are of all slots, each once.
    pub async fn ask_all_owners<A, F>(
        &self,
        call: impl Fn(NodeClient, Vec<Slot>) -> F,
    ) -> Result<Vec<A>, ApiError>
    where
        F: Future<Output = Result<A, CallError>>,
    {
        let deadline = Instant::now() + self.patience;
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(300));
        let (mut left, mut answers): (Vec<Slot>, _) = ((0..SLOT_COUNT).map(Slot).collect(), Vec::new());
        loop {
            let mut owners: BTreeMap<NodeId, (NodeClient, Vec<Slot>)> = BTreeMap::new();
            for slot in left.drain(..) {
                let (shard, owner) = self.owner(slot).ok_or_else(|| self.no_node())?;
                owners.entry(shard).or_insert_with(|| (owner, Vec::new())).1.push(slot);
            }
            let asked = owners.into_values().map(|(owner, slots)| {
                let asked = call(owner.clone(), slots.clone());
                async move { (asked.await, owner, slots) }
            });
            let mut failed = None;
            for (answer, owner, slots) in join_all(asked).await {
                match answer {
                    Ok(answer) => answers.push(answer),
                    Err(error) => {
                        left.extend(slots);
                        failed = Some((error, owner));
                    }
                }
            }
            let Some((error, owner)) = failed else { return Ok(answers) };
            self.wait_to_ask_again(&error, &owner, deadline, &mut backoff).await?;
        }
    }

    /// Calls the owner of a slot, again while the slot moves or its owner does not answer, for at most the
    /// configured patience. `call` must be safe to repeat.
    pub async fn ask_owner<A, F>(&self, slot: Slot, call: impl Fn(NodeClient) -> F) -> Result<A, ApiError>
    where
        F: Future<Output = Result<A, CallError>>,
    {
        let deadline = Instant::now() + self.patience;
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(300));
        loop {
            let (_, owner) = self.owner(slot).ok_or_else(|| self.no_node())?;
            match call(owner.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.wait_to_ask_again(&error, &owner, deadline, &mut backoff).await?,
            }
        }
    }

    fn no_node(&self) -> ApiError {
        ApiError::new(
            ErrorCode::NodeUnavailable,
            format!("site {} has no storage node yet; start one and try again", self.id),
        )
    }

    /// Waits a moment, and for a newer map if the node has one; the error once that is of no use any more.
    async fn wait_to_ask_again(
        &self,
        error: &CallError,
        owner: &NodeClient,
        deadline: Instant,
        backoff: &mut Backoff,
    ) -> Result<(), ApiError> {
        if !error.is_retryable() || Instant::now() >= deadline {
            return Err(error.to_api(
                ErrorCode::NodeUnavailable,
                "the storage node for this request does not answer; try again in a moment",
            ));
        }
        self.metrics.node_retries.increment(1);
        if error.code() == Some(ErrorCode::WrongNode) {
            // The node knows a newer map than we do, also while search is down.
            if let Ok(map) = owner.map().await {
                self.adopt(map);
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
        Ok(())
    }
}
