//! Which copy of a chunk is read.
//!
//! The nodes that are to have it are asked first, in the order of the placement, so that each chunk is read
//! from the same node while all are well; then the others, which may have it while chunks are on the move;
//! those that are down last. A node that is clearly slower than another comes behind it. One that has not
//! answered within its 95th percentile gets company: the next is asked as well, and who answers first sends.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::api::node::NodeClient;
use common::client::CallError;
use common::error::{ApiError, ErrorCode};
use common::hash::ChunkHash;
use common::id::NodeId;
use common::trace;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Response;
use hyper::body::Incoming;

use super::pace::{HEDGE_MAX, Paces};
use crate::metrics::Metrics;
use crate::site::{Place, SiteView};

/// So many times slower than the quickest is clearly slow, from [`SLOW_MIN`] on.
const SLOW_TIMES: u32 = 3;
const SLOW_MIN: Duration = Duration::from_millis(5);
/// How often at most a node is asked for its map because a chunk was at none.
const MAP_PAUSE: Duration = Duration::from_secs(1);

/// A copy whose node has begun to send it.
pub struct Found {
    pub node: NodeId,
    pub body: Incoming,
}

pub struct Finder {
    site: Arc<SiteView>,
    paces: Paces,
    map_asked: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
}

type Answer = Result<Response<Incoming>, CallError>;

impl Finder {
    pub fn new(site: Arc<SiteView>, metrics: Arc<Metrics>) -> Self {
        Self { site, paces: Paces::default(), map_asked: Mutex::new(None), metrics }
    }

    /// Finds a copy; the one at `failed` only if there is no other.
    pub async fn find(&self, hash: &ChunkHash, failed: Option<&NodeId>) -> Result<Found, ApiError> {
        let nodes = self.in_order(hash, failed);
        let outcome = match self.ask(hash, &nodes).await {
            // It may just have moved from a node not asked yet to one asked before.
            Err(None) if nodes.len() > 1 => {
                self.refresh_map(&nodes).await;
                let mut right = self.in_order(hash, failed);
                right.retain(|node| node.is_right);
                self.ask(hash, &right).await
            }
            outcome => outcome,
        };
        outcome.map_err(|failure| match failure {
            None => ApiError::new(ErrorCode::ChunkNotFound, "a part of the content is not at this site"),
            Some(error) => error.to_api(
                ErrorCode::NodeUnavailable,
                "the storage node that holds a part of the content does not answer; try again in a moment",
            ),
        })
    }

    /// A node broke off in the middle of a chunk.
    pub fn failed(&self, node: &NodeId) {
        self.paces.of(node).note(HEDGE_MAX);
        self.site.suspect(node);
    }

    fn in_order(&self, hash: &ChunkHash, failed: Option<&NodeId>) -> Vec<Place> {
        let mut nodes = self.site.places(hash).nodes;
        let mean = |node: &Place| self.paces.of(&node.id).mean();
        let quickest = nodes.iter().filter(|node| node.is_right && node.alive).filter_map(mean).min();
        let limit = quickest.map_or(Duration::MAX, |quickest| (quickest * SLOW_TIMES).max(SLOW_MIN));
        let is_slow = |node: &Place| node.is_right && mean(node).is_some_and(|mean| mean > limit);
        nodes.sort_by_cached_key(|node| {
            (failed == Some(&node.id), !node.alive, !node.is_right, is_slow(node))
        });
        nodes
    }

    /// The first copy in reach. `Err(None)` when every node says that it has none.
    async fn ask(&self, hash: &ChunkHash, nodes: &[Place]) -> Result<Found, Option<CallError>> {
        let mut asked = FuturesUnordered::new();
        // When those were asked that have not answered.
        let mut open: Vec<(usize, Instant)> = Vec::new();
        let (mut next, mut another, mut failure) = (0, true, None);
        loop {
            if another && let Some(node) = nodes.get(next) {
                asked.push(ask_one(next, node.client.clone(), *hash));
                open.push((next, Instant::now()));
                next += 1;
            }
            if asked.is_empty() {
                return Err(failure);
            }
            let patience = self.patience(nodes, next);
            let (index, outcome) = tokio::select! {
                Some(answer) = asked.next() => answer,
                () = tokio::time::sleep(patience), if next < nodes.len() => {
                    self.metrics.hedged_reads.increment(1);
                    another = true;
                    continue;
                }
            };
            let node = &nodes[index];
            let begun = open.iter().position(|(asked, _)| *asked == index).map(|at| open.swap_remove(at).1);
            match outcome {
                Ok(response) => {
                    if let Some(begun) = begun {
                        self.paces.of(&node.id).note(begun.elapsed());
                    }
                    self.watch(nodes, &open, asked);
                    return Ok(Found { node: node.id.clone(), body: response.into_body() });
                }
                Err(error) if error.code() == Some(ErrorCode::ChunkNotFound) => {}
                Err(error) => {
                    tracing::debug!(node = %node.id, chunk = ?hash, error = %common::error::chain(&error), "chunk not read");
                    if matches!(error, CallError::Unreachable { .. } | CallError::Timeout { .. }) {
                        self.failed(&node.id);
                    }
                    failure = Some(error);
                }
            }
            another = true;
        }
    }

    /// How long the node asked last may take before the one at `next` is asked as well. One that is not to
    /// have the chunk is hardly worth it.
    fn patience(&self, nodes: &[Place], next: usize) -> Duration {
        match (next.checked_sub(1).and_then(|last| nodes.get(last)), nodes.get(next)) {
            (Some(last), Some(next)) if next.is_right && next.alive => self.paces.of(&last.id).hedge_after(),
            _ => HEDGE_MAX,
        }
    }

    /// Notes that nodes were too slow; one that still does not answer for a while is suspected.
    fn watch(
        &self,
        nodes: &[Place],
        open: &[(usize, Instant)],
        mut asked: FuturesUnordered<impl Future<Output = (usize, Answer)> + Send + 'static>,
    ) {
        let mut late = Vec::new();
        for (index, begun) in open {
            let id = nodes[*index].id.clone();
            let pace = self.paces.of(&id);
            pace.note(begun.elapsed());
            if !pace.is_watched.swap(true, Ordering::Relaxed) {
                late.push((*index, id, pace));
            }
        }
        if late.is_empty() {
            return;
        }
        let site = self.site.clone();
        trace::spawn(async move {
            let mut answered = Vec::new();
            let all = async {
                while let Some((index, _)) = asked.next().await {
                    answered.push(index);
                }
            };
            // Over or not, what has answered by then counts.
            drop(tokio::time::timeout(HEDGE_MAX, all).await);
            for (index, id, pace) in late {
                pace.is_watched.store(false, Ordering::Relaxed);
                if !answered.contains(&index) {
                    site.suspect(&id);
                }
            }
        });
    }

    /// Takes the map of the first node that is there, if it is newer.
    async fn refresh_map(&self, nodes: &[Place]) {
        {
            let mut asked = self.map_asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.is_some_and(|at| at.elapsed() < MAP_PAUSE) {
                return;
            }
            *asked = Some(Instant::now());
        }
        let Some(node) = nodes.iter().find(|node| node.alive) else { return };
        if let Ok(Ok(map)) = tokio::time::timeout(HEDGE_MAX, node.client.map()).await {
            self.site.adopt(map);
        }
    }
}

async fn ask_one(index: usize, node: NodeClient, hash: ChunkHash) -> (usize, Answer) {
    (index, node.get_chunk(&hash).await)
}
