//! Sees that every chunk of this node is where the map says it is to be, and nowhere else.
//!
//! One mechanism for a new node, a draining one, one that comes back, other weights and other numbers of
//! copies: the node walks over its own chunks in the order of their hashes, gives each chunk's references to
//! the nodes that are to have it (*adopt*), sends the bytes to those that lack them, and drops its own copy
//! where it is not among them, once all of them have said that they have it with every reference ([`step`]).
//! Nothing of this is written down: a walk that breaks off is begun again.
//!
//! A walk goes over the chunks twice. The first time nothing is sent and what has to be is counted, so that
//! the figure of pending bytes is right from the beginning; if there is nothing, that was all. Walks follow a
//! change of the map that moves chunks, the start, and an hour in which nothing happened. Chunks that
//! gateways leave at a node that is not to have them, because another did not take them, are *strays* and
//! need no walk.
//!
//! Why no copy is lost when two nodes know different maps: a node takes references only while it is to have
//! the chunk under its own map, and drops a copy only if its own map stayed the same from before it offered
//! the references. So the node that took them begins to give the chunk away, if ever, only afterwards, and
//! asks around anew.
//!
//! References can be released while a chunk moves. One that went here meanwhile is released where it was
//! given; should the node die in between, a surplus reference stays, never too few.

mod repair;
mod step;

use std::collections::HashSet;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::backoff::Backoff;
use common::cluster::{MapEpoch, SiteEntry};
use common::config::Live;
use common::error::{ApiResult, chain};
use common::hash::ChunkHash;
use common::id::NodeId;
use common::placement::nodes_of_chunk;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::node::Node;
use crate::view::View;
use step::{Aside, Outcome, Step, Task};

pub use repair::repair;

/// A walk without a reason: it finds what went wrong unseen.
const WALK_INTERVAL: Duration = Duration::from_secs(3600);
/// How long changes of the map are gathered, and the other nodes have to hear of them.
const MAP_GATHER: Duration = Duration::from_millis(200);
/// How long a node that was away waits before it offers what it has: it has yet to hear what was released
/// meanwhile.
const RETURN_WAIT: Duration = Duration::from_secs(3);
/// How long strays are gathered.
const STRAY_GATHER: Duration = Duration::from_secs(2);
/// Strays that are remembered; a walk finds the rest.
const STRAYS_MAX: usize = 100_000;
/// What the rate is a mean over, roughly.
const RATE_TIME: Duration = Duration::from_secs(5);

/// What is being sent to other nodes, and what that may take.
pub struct Moves {
    bytes_per_s: Live,
    pending_bytes: AtomicU64,
    /// When the next bytes may go out.
    free_at: Mutex<Instant>,
    rate: Mutex<Rate>,
    strays: Mutex<HashSet<ChunkHash>>,
    stray_noted: Notify,
}

impl Moves {
    /// `bytes_per_s` 0 sets no limit.
    pub fn new(bytes_per_s: Live) -> Self {
        let now = Instant::now();
        Self {
            bytes_per_s,
            pending_bytes: AtomicU64::new(0),
            free_at: Mutex::new(now),
            rate: Mutex::new(Rate { bytes_per_s: 0.0, at: now }),
            strays: Mutex::default(),
            stray_noted: Notify::new(),
        }
    }

    /// Bytes that are still to be sent, as far as is known.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes.load(Ordering::Relaxed)
    }

    /// Bytes a second that were sent lately.
    pub fn rate_bytes_per_s(&self) -> u64 {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner).now() as u64
    }

    pub fn limit_bytes_per_s(&self) -> u64 {
        self.bytes_per_s.get()
    }

    /// Waits until so many bytes may go out.
    async fn admit(&self, bytes: u64) {
        let bytes_per_s = self.bytes_per_s.get();
        if bytes_per_s == 0 {
            return;
        }
        let at = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*free_at).max(Instant::now());
            *free_at = at + Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
            at
        };
        tokio::time::sleep_until(at).await;
    }

    fn sent(&self, bytes: u64) {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner).add(bytes);
    }

    fn show_pending(&self, node: &Node, bytes: u64) {
        self.pending_bytes.store(bytes, Ordering::Relaxed);
        node.metrics.moves.pending_bytes.set(bytes as f64);
    }

    fn take_strays(&self) -> Vec<ChunkHash> {
        let mut strays: Vec<_> =
            mem::take(&mut *self.strays.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect();
        strays.sort_unstable();
        strays
    }
}

/// Mean of the bytes sent, those of longer ago counting less.
struct Rate {
    bytes_per_s: f64,
    at: Instant,
}

impl Rate {
    fn now(&self) -> f64 {
        self.bytes_per_s * (-self.at.elapsed().as_secs_f64() / RATE_TIME.as_secs_f64()).exp()
    }

    fn add(&mut self, bytes: u64) {
        self.bytes_per_s = self.now() + bytes as f64 / RATE_TIME.as_secs_f64();
        self.at = Instant::now();
    }
}

/// What the map that this node knows says of its site, and the map's epoch; `None` while it is not in a map.
fn with_site<T>(node: &Node, take: impl FnOnce(MapEpoch, &SiteEntry) -> T) -> Option<T> {
    node.maps.with(|view| view.site().map(|site| take(view.map.epoch, site)))
}

fn maps(node: &Node) -> watch::Receiver<Arc<View>> {
    node.maps.watch()
}

/// Whether this node is to have the chunk.
pub fn belongs_here(node: &Node, hash: &ChunkHash) -> bool {
    with_site(node, |_, site| is_right(site, &node.id, hash)).unwrap_or(false)
}

fn is_right(site: &SiteEntry, id: &NodeId, hash: &ChunkHash) -> bool {
    nodes_of_chunk(site, hash).into_iter().any(|index| &site.nodes[index].id == id)
}

/// A chunk was stored or referred to here: if it belongs elsewhere, it is moved there soon.
pub fn note_stray(node: &Node, hash: &ChunkHash) {
    let is_stray = |_, site: &SiteEntry| site.nodes.len() > 1 && !is_right(site, &node.id, hash);
    if with_site(node, is_stray).unwrap_or(false) {
        let mut strays = node.moves.strays.lock().unwrap_or_else(PoisonError::into_inner);
        if strays.len() < STRAYS_MAX {
            strays.insert(*hash);
            node.moves.stray_noted.notify_one();
        }
    }
}

/// Whether every chunk belongs to the same nodes under both, and the same of them can be asked.
fn is_same_placement(a: &SiteEntry, b: &SiteEntry) -> bool {
    a.replicas == b.replicas
        && a.nodes.len() == b.nodes.len()
        && a.nodes.iter().zip(&b.nodes).all(|(a, b)| {
            (&a.id, a.state, a.weight, a.alive, &a.http) == (&b.id, b.state, b.weight, b.alive, &b.http)
        })
}

/// How a walk ended.
enum Walked {
    /// Whatever can be done is done.
    Settled,
    /// Some of it has to be tried again.
    Unsettled,
    /// Chunks belong elsewhere by now.
    Moved,
}

/// Walks for ever.
pub async fn run(node: Arc<Node>) {
    tokio::time::sleep(RETURN_WAIT).await;
    let mut maps = maps(&node);
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(300));
    loop {
        maps.mark_unchanged();
        let site = with_site(&node, |_, site| site.clone());
        let walked = match &site {
            Some(site) if site.nodes.len() > 1 => walk(&node, site).await,
            _ => Ok(Walked::Settled),
        };
        let pause = match walked {
            Ok(Walked::Settled) => {
                backoff.reset();
                WALK_INTERVAL
            }
            Ok(Walked::Unsettled) => backoff.next_delay(),
            Ok(Walked::Moved) => MAP_GATHER,
            Err(error) => {
                tracing::warn!(node = %node.id, error = chain(&error), "moving chunks pauses");
                backoff.next_delay()
            }
        };
        let next_walk = Instant::now() + pause;
        tokio::select! {
            () = tokio::time::sleep_until(next_walk) => {}
            () = changed(&node, &mut maps, site.as_ref()) => {
                backoff.reset();
                let me = site.as_ref().and_then(|site| site.node(&node.id));
                let was_away = me.is_some_and(|me| !me.alive);
                tokio::time::sleep(if was_away { RETURN_WAIT } else { MAP_GATHER }).await;
            }
            () = move_strays(&node) => {}
        }
    }
}

/// Waits until chunks belong elsewhere than `before`, or other nodes can be asked.
async fn changed(node: &Node, maps: &mut watch::Receiver<Arc<View>>, before: Option<&SiteEntry>) {
    loop {
        let is_changed = |_, site: &SiteEntry| before.is_none_or(|before| !is_same_placement(before, site));
        if with_site(node, is_changed).unwrap_or(false) {
            return;
        }
        if maps.changed().await.is_err() {
            // Only while the node is taken apart.
            return std::future::pending().await;
        }
    }
}

/// Counts what is to be sent and, if there is anything, sends it.
async fn walk(node: &Arc<Node>, site: &SiteEntry) -> ApiResult<Walked> {
    let Some(counted) = pass(node, site, Task::Count).await? else { return Ok(Walked::Moved) };
    if counted.left_bytes == 0 {
        return Ok(if counted.is_settled { Walked::Settled } else { Walked::Unsettled });
    }
    tracing::info!(node = %node.id, bytes = counted.left_bytes, "chunks are to go to other nodes");
    let Some(sent) = pass(node, site, Task::Send).await? else { return Ok(Walked::Moved) };
    tracing::info!(node = %node.id, sent = sent.sent_bytes, left = sent.left_bytes, "chunks have gone to other nodes");
    Ok(if sent.is_settled { Walked::Settled } else { Walked::Unsettled })
}

/// Goes once over all chunks; `None` if the map changed too much to go on.
async fn pass(node: &Arc<Node>, site: &SiteEntry, task: Task) -> ApiResult<Option<Outcome>> {
    let (counted, aside) = (node.moves.pending_bytes(), Aside::default());
    let (mut all, mut after) = (Outcome::default(), None);
    loop {
        let step = Step::new(node, &aside).filter(|step| is_same_placement(site, step.site()));
        let Some(step) = step else { return Ok(None) };
        let page = step::page_after(node, after.as_ref())?;
        let Some(last) = page.last() else { break };
        after = Some(last.hash);
        all.add(step.run(page, task).await?);
        let pending = match task {
            Task::Count => counted.max(all.left_bytes),
            _ => counted.saturating_sub(all.sent_bytes).max(all.left_bytes),
        };
        node.moves.show_pending(node, pending);
    }
    node.moves.show_pending(node, all.left_bytes);
    Ok(Some(all))
}

/// Moves strays as they are noted, for ever.
async fn move_strays(node: &Arc<Node>) {
    let mut backoff = Backoff::new(STRAY_GATHER, Duration::from_secs(60));
    loop {
        node.moves.stray_noted.notified().await;
        tokio::time::sleep(backoff.next_delay()).await;
        let (strays, aside) = (node.moves.take_strays(), Aside::default());
        let mut is_settled = true;
        for hashes in strays.chunks(step::PAGE_LEN) {
            match step_over(node, &aside, hashes).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(node = %node.id, error = chain(&error), "chunks stay where they do not belong");
                }
            }
            is_settled = false;
            hashes.iter().for_each(|hash| note_stray(node, hash));
        }
        if is_settled {
            backoff.reset();
        }
    }
}

/// Does for some chunks what a walk does, and sends them to all that lack them. Answers whether nothing is
/// left to do.
async fn step_over(node: &Arc<Node>, aside: &Aside, hashes: &[ChunkHash]) -> ApiResult<bool> {
    let Some(step) = Step::new(node, aside) else { return Ok(true) };
    let chunks = node.catalog.read(|rows| step::load(rows, hashes))?;
    Ok(step.run(chunks, Task::SendAll).await?.is_settled)
}
