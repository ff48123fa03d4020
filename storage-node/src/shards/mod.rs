//! The shards that this node serves, and those that it follows.
//!
//! The map says for each shard who is its *primary* and who its *followers* are. One rule keeps what was acknowledged:
//! the primary answers a change only when every follower in the map has it, durably, and only such a follower ever
//! becomes primary. Who is in the map is decided by search in one transaction each. An old primary that has not heard
//! of it yet gets no acknowledgement from its follower any more, so of two nodes only one changes anything that counts;
//! the other may still answer reads until its map comes.
//!
//! ```text
//! primary                                  follower                              search
//!   question ────────────────────────────▶ how far are you?
//!   begin, rows and entries mixed, whole ─▶ (only if its history is another)
//!   entries ─────────────────────────────▶ durable, where I am
//!   from here on answers wait for it
//!   add follower ──────────────────────────────────────────────────────────────▶ map
//!   hand over (to the shard's own node) ───────────────────────────────────────▶ map, next term
//! ```
//! | file | owns |
//! |---|---|
//! | `mod.rs` | which shards are served, and their workers |
//! | `ship.rs` | a primary's side: keeping followers up to date, choosing them, handing over |
//! | `follow.rs` | a follower's side |

mod follow;
mod ship;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::NodeId;
use tokio::task::JoinSet;

use crate::catalog::Scope;
use crate::catalog::key::{self, Fee, Key};
use crate::catalog::rows::ShardPosition;
use crate::catalog::stream::Stream;
use crate::catalog::txn::Rows;
use crate::node::Node;
use crate::shard::Shard;
use crate::view::View;
use crate::{closing, feed, given_up, map_watch, outbox, reaper, slot_moves, tally, temporary};

pub use follow::{receive, tidy};

/// How long after a failure to take a shard over it is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// The shards that this node serves at this moment.
#[derive(Default)]
pub struct Shards {
    served: RwLock<HashMap<NodeId, Arc<Shard>>>,
    followed: follow::Followed,
}

impl Shards {
    pub fn get(&self, id: &NodeId) -> Option<Arc<Shard>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Shard>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn insert(&self, shard: Arc<Shard>) {
        self.served.write().unwrap_or_else(PoisonError::into_inner).insert(shard.id.clone(), shard);
    }

    /// Stops to serve those that another node serves under a newer map, or this one in another term.
    pub fn close_deposed(&self, view: &View) {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        served.retain(|id, shard| {
            let keeps = view.term_of(id) == Some(shard.stream.term());
            if !keeps {
                shard.close();
            }
            keeps
        });
    }

    /// Serves none any more.
    pub fn close(&self) {
        let served = std::mem::take(&mut *self.served.write().unwrap_or_else(PoisonError::into_inner));
        served.values().for_each(|shard| shard.close());
    }
}

/// The rows of a shard in this node's catalog.
fn scope_of(node: &Node, shard: &NodeId, stream: Option<Arc<Stream>>) -> Scope {
    let prefix = if *shard == node.id { Vec::new() } else { key::shard_prefix(shard) };
    Scope::new(prefix, stream)
}

struct Served {
    shard: Arc<Shard>,
    _workers: JoinSet<()>,
}

/// Serves the shards that the map gives to this node, for ever.
pub async fn serve(node: Arc<Node>) {
    let mut served: HashMap<NodeId, Served> = HashMap::new();
    let mut views = node.maps.watch();
    loop {
        let view = views.borrow_and_update().clone();
        served.retain(|id, served| {
            let keeps = view.term_of(id) == Some(served.shard.stream.term());
            if !keeps {
                tracing::info!(node = %node.id, shard = %id, "another node serves the shard from now on");
            }
            keeps
        });
        let mut all_taken = true;
        for (id, term) in view.served() {
            if served.contains_key(id) {
                continue;
            }
            match take(&node, id, term).await {
                Ok(one) => {
                    node.shards.insert(one.shard.clone());
                    served.insert(id.clone(), one);
                }
                Err(error) => {
                    tracing::warn!(node = %node.id, shard = %id, error = chain(&error), "the shard is not served yet");
                    all_taken = false;
                }
            }
        }
        let is_known = view.me().is_some();
        node.health.set("shards", if all_taken && is_known { Ok(()) } else { Err("not served yet".into()) });
        if all_taken {
            // The sender lives as long as the node, so this ends with a new map.
            let _changed = views.changed().await;
        } else {
            let _either = tokio::time::timeout(AGAIN, views.changed()).await;
        }
    }
}

/// Begins to serve a shard.
async fn take(node: &Arc<Node>, id: &NodeId, term: u64) -> ApiResult<Served> {
    // In a commit: what came from the primary before is in the rows then, and what comes later is refused, for this
    // node knows by now that it is the primary itself.
    let rows = node.catalog.scoped(scope_of(node, id, None));
    let (at, is_whole) = rows
        .commit(|txn| {
            let at = txn.get::<ShardPosition>(Key::ShardPosition)?.unwrap_or_default();
            Ok((at, !txn.has(Key::Syncing)?))
        })
        .await?;
    if !is_whole {
        return Err(ApiError::new(ErrorCode::Unavailable, "rows of the shard are missing here"));
    }
    let stream = Arc::new(Stream::new(term, at));
    let catalog = node.catalog.scoped(scope_of(node, id, Some(stream.clone())));
    let shard = Arc::new(Shard::new(id.clone(), node.clone(), catalog, stream));
    shard.catalog.read(|rows| shard.recall(rows))?;
    ship::require_followers(&shard);
    tracing::info!(node = %node.id, shard = %id, term, seq = at.seq, "serving the shard");
    let workers = spawn_workers(&shard);
    Ok(Served { shard, _workers: workers })
}

fn spawn_workers(shard: &Arc<Shard>) -> JoinSet<()> {
    let started = shard.node.clock.now();
    let mut workers = JoinSet::new();
    workers.spawn(ship::ship(shard.clone()));
    if shard.id == shard.node.id {
        workers.spawn(map_watch::keep_epoch(shard.clone()));
    }
    workers.spawn(feed::follow(shard.clone()));
    workers.spawn(outbox::announcements::send(shard.clone()));
    workers.spawn(outbox::snapshot::send(shard.clone()));
    workers.spawn(outbox::billing::send(shard.clone(), Fee::Service));
    workers.spawn(outbox::billing::send(shard.clone(), Fee::Content));
    workers.spawn(slot_moves::take_over(shard.clone()));
    workers.spawn(slot_moves::settle(shard.clone()));
    workers.spawn(closing::close(shard.clone(), started));
    workers.spawn(reaper::release(shard.clone()));
    workers.spawn(given_up::run(shard.clone()));
    workers.spawn(tally::worker::run(shard.clone()));
    workers.spawn(outbox::home::send(shard.clone()));
    workers.spawn(temporary::expire(shard.clone()));
    workers
}
