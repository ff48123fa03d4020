//! Gives back what is no longer needed: first the chunk references of holdings that went, on every node of the
//! site, then, after a grace, the chunks that nothing refers to.
//!
//! References are released at all nodes that are there at once; a holding stays queued until every node of the site has
//! done so, for one that is down still has them when it comes back. Which ones have is kept in memory only: after a
//! restart all are asked once more.
//!
//! Only this worker deletes chunks that nothing refers to.

use std::collections::{HashMap, HashSet};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::Duration;

use common::api::node::ChunkReleaseRequest;
use common::backoff::Backoff;
use common::cluster::{NodeEntry, NodeState};
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::hash::ChunkHash;
use common::id::NodeId;
use common::manifest::{ChunkList, ChunkRef};
use common::placement::rank_for_chunk;
use futures_util::{StreamExt, future, stream};

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{ReapValue, Row, Since};
use crate::catalog::txn::Rows;
use crate::chunks::{self, store_error};
use crate::node::Node;
use crate::shard::Shard;

/// References that are released in one commit or call.
const PIECE_LEN: usize = 1024;
/// Queued holdings that are read at once.
const PAGE_LEN: usize = 64;
/// Chunks that are deleted at the same time.
const DELETIONS: usize = 16;
/// Holdings that are remembered to be released at some nodes; of more, all nodes are asked again.
const STARTED_MAX: usize = 100_000;
/// How soon the queue is looked at again at the earliest, while nodes are away.
const REQUEUED: Duration = Duration::from_secs(1);
/// How often it is looked for holdings that nobody told of.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Grace of a chunk while the node is short of space or draining: long enough for most of what is still being sent.
const PRESSED_GRACE: Duration = Duration::from_secs(20);
/// For so long after it refused a chunk the node counts as short of space.
const PRESSED_FOR: Duration = Duration::from_secs(300);

/// Releases the references of holdings that went, for ever.
pub async fn release(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    let (mut started, mut maps) = (Started::new(), shard.node.maps.watch());
    loop {
        maps.mark_unchanged();
        let pause = match release_all(&shard, &mut started).await {
            Ok(true) => {
                backoff.reset();
                // Who queued one may have gone away before it could say so.
                let _either = tokio::time::timeout(LOOK_INTERVAL, shard.signals.reap_queued.notified()).await;
                continue;
            }
            Ok(false) => backoff.next_delay(),
            Err(error) => {
                tracing::warn!(shard = %shard.id, error = chain(&error), "references cannot be released");
                backoff.next_delay()
            }
        };
        // What is queued anew does not wait for nodes that are away, and one that is back does not wait either.
        tokio::time::sleep(pause.min(REQUEUED)).await;
        tokio::select! {
            () = tokio::time::sleep(pause.saturating_sub(REQUEUED)) => {}
            () = shard.signals.reap_queued.notified() => {}
            _ = maps.changed() => {}
        }
    }
}

/// How far holdings are whose references some nodes have released and others have not, by the keys of their rows.
type Started = HashMap<Vec<u8>, Progress>;

/// A stored chunk list can be read until its own reference is released: that is the last step, once all nodes have done
/// the one before.
#[derive(Default)]
struct Progress {
    is_listed_done: bool,
    done: HashSet<NodeId>,
}

/// Goes once through the queue. Answers whether all of it is done.
async fn release_all(shard: &Shard, started: &mut Started) -> ApiResult<bool> {
    let (mut after, mut done, mut silent) = (key::all(Tag::Reap), true, HashSet::new());
    loop {
        let page = shard.read_settled(|rows| queued(rows, &after)).await?;
        let Some((last, _)) = page.last() else { return Ok(done) };
        after.clone_from(last);
        for (key, reap) in page {
            if is_being_counted(shard, &reap)? {
                done = false;
                continue;
            }
            let mut progress = started.remove(&key).unwrap_or_default();
            match release_everywhere(&shard.node, &reap, &mut progress, &mut silent).await {
                Ok(true) => {
                    shard
                        .catalog
                        .commit(move |txn| {
                            txn.delete_raw(key);
                            Ok(())
                        })
                        .await?;
                    continue;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(shard = %shard.id, name = %reap.name, error = chain(&error), "references stay for now");
                }
            }
            done = false;
            if started.len() < STARTED_MAX {
                started.insert(key, progress);
            }
        }
    }
}

type Queued = Vec<(Vec<u8>, ReapValue)>;

fn queued(rows: &(impl Rows + ?Sized), after: &[u8]) -> ApiResult<Queued> {
    let mut page = Vec::new();
    rows.scan_raw(&key::all(Tag::Reap), Bound::Excluded(after), &mut |key, value| {
        page.push((key.to_vec(), ReapValue::decode(value)?));
        Ok(if page.len() == PAGE_LEN { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(page)
}

/// Whether the list of a holding's chunks is still needed to tell who holds them no more.
fn is_being_counted(shard: &Shard, reap: &ReapValue) -> ApiResult<bool> {
    match reap.chunks {
        ChunkList::Inline(_) => Ok(false),
        ChunkList::Stored { .. } => {
            shard.catalog.read(|rows| rows.has(Key::TallyHolding(&reap.name, reap.ref_tag)))
        }
    }
}

/// Releases a holding's references on all nodes: each has its share, and perhaps some from an earlier map. Answers
/// whether all have done it; those that do not answer become `silent` and are not asked.
async fn release_everywhere(
    node: &Node,
    reap: &ReapValue,
    progress: &mut Progress,
    silent: &mut HashSet<NodeId>,
) -> ApiResult<bool> {
    let hashes_of = |chunks: &[ChunkRef]| chunks.iter().map(|chunk| chunk.hash).collect::<Vec<_>>();
    let list = match &reap.chunks {
        ChunkList::Inline(chunks) => {
            return release_at_all(node, reap, &hashes_of(chunks), &mut progress.done, silent).await;
        }
        ChunkList::Stored { list, .. } => list,
    };
    if !progress.is_listed_done {
        if progress.done.contains(&node.id) && waiting(node, &progress.done, silent).is_empty() {
            return Ok(false);
        }
        match read_list(node, list).await? {
            Some(chunks) => {
                if !release_at_all(node, reap, &hashes_of(&chunks), &mut progress.done, silent).await? {
                    return Ok(false);
                }
            }
            None => {
                tracing::warn!(node = %node.id, name = %reap.name, list = %list.hash, "the chunk list is at no node; its chunks keep surplus references, if they have any");
            }
        }
        *progress = Progress { is_listed_done: true, done: HashSet::new() };
    }
    release_at_all(node, reap, &[list.hash], &mut progress.done, silent).await
}

/// The nodes of the site that can be asked to release what they have not yet.
fn waiting(node: &Node, done: &HashSet<NodeId>, silent: &HashSet<NodeId>) -> Vec<NodeEntry> {
    let view = node.maps.view();
    let nodes = view.site().map_or(&[][..], |site| &site.nodes);
    let can_be_asked = |other: &&NodeEntry| {
        let is_there = other.alive && other.state != NodeState::Removed && other.id != node.id;
        is_there && !done.contains(&other.id) && !silent.contains(&other.id)
    };
    nodes.iter().filter(can_be_asked).cloned().collect()
}

/// Releases references at this node and at all others at the same time; adds to `done` who has done it. Answers whether
/// every node of the site has.
///
/// A node that was away may have given its references on to others before it released them. So if some have done it
/// earlier than others, all do it once more.
async fn release_at_all(
    node: &Node,
    reap: &ReapValue,
    hashes: &[ChunkHash],
    done: &mut HashSet<NodeId>,
    silent: &mut HashSet<NodeId>,
) -> ApiResult<bool> {
    let request = |piece: &[ChunkHash]| ChunkReleaseRequest {
        name: reap.name.clone(),
        ref_tag: reap.ref_tag,
        chunks: piece.to_vec(),
    };
    loop {
        let is_whole = done.is_empty();
        if !done.contains(&node.id) {
            release_here(node, request(hashes)).await?;
            done.insert(node.id.clone());
        }
        let asked = waiting(node, done, silent).into_iter().map(|other| async move {
            let peer = node.peer(&other);
            for piece in hashes.chunks(PIECE_LEN) {
                if let Err(error) = peer.release_chunks(&request(piece)).await {
                    tracing::debug!(node = %node.id, other = %other.id, error = chain(&error), "another node does not release references");
                    return (other.id, false);
                }
            }
            (other.id, true)
        });
        for (other, is_done) in future::join_all(asked).await {
            if is_done {
                done.insert(other)
            } else {
                silent.insert(other)
            };
        }
        let view = node.maps.view();
        let mut all = view.site().into_iter().flat_map(|site| &site.nodes);
        if !all.all(|other| other.state == NodeState::Removed || done.contains(&other.id)) {
            return Ok(false);
        }
        if is_whole {
            return Ok(true);
        }
        done.clear();
    }
}

/// Releases references to this node's chunks, durably.
pub async fn release_here(node: &Node, request: ChunkReleaseRequest) -> ApiResult<()> {
    let now = node.clock.now();
    let ChunkReleaseRequest { name, ref_tag, chunks: mut hashes } = request;
    while !hashes.is_empty() {
        let piece = hashes.split_off(hashes.len().saturating_sub(PIECE_LEN));
        let name = name.clone();
        let bytes = node.catalog.commit(move |txn| chunks::release(txn, &piece, ref_tag, &name, now)).await?;
        node.metrics.add_logical_bytes(-(bytes as i64));
    }
    Ok(())
}

/// Reads a stored chunk list from wherever the site has it; `None` when every node says that it has it not.
pub async fn read_list(node: &Node, list: &ChunkRef) -> ApiResult<Option<Vec<ChunkRef>>> {
    let unreadable = |error| ApiError::internal(&error);
    if let Ok(bytes) = node.chunks.get(&list.hash).await {
        return ChunkList::decode(&bytes).map(Some).map_err(unreadable);
    }
    let view = node.maps.view();
    let nodes = view.site().map_or(&[][..], |site| &site.nodes);
    let ranked = view.site().map(|site| rank_for_chunk(site, &list.hash)).unwrap_or_default();
    let mut all_answered = true;
    for other in ranked.into_iter().map(|index| &nodes[index]).filter(|other| other.id != node.id) {
        match node.peer(other).get_chunk_bytes(&list.hash).await {
            Ok(bytes) if ChunkHash::of(&bytes) == list.hash => {
                return ChunkList::decode(&bytes).map(Some).map_err(unreadable);
            }
            Err(error) if error.code() == Some(ErrorCode::ChunkNotFound) => {}
            Ok(_) | Err(_) => all_answered = false,
        }
    }
    if all_answered && matches!(node.chunks.contains(&list.hash).await, Ok(false)) {
        return Ok(None);
    }
    Err(ApiError::new(ErrorCode::NodeUnavailable, "the chunk list cannot be read at the moment"))
}

/// Deletes chunks without references once their grace is over, for ever.
pub async fn delete(node: Arc<Node>) {
    let chunk_grace = node.limits.chunk_grace;
    let mut ticks =
        tokio::time::interval((chunk_grace / 4).clamp(Duration::from_millis(50), Duration::from_secs(5)));
    loop {
        ticks.tick().await;
        let now = node.clock.now();
        let is_pressed = node.signals.refused_at().is_some_and(|at| now.since(at) < PRESSED_FOR);
        // What a draining node has without a reference goes nowhere, so it must not wait for long either.
        let is_leaving = node.maps.with(|view| view.me().is_some_and(|me| me.weight == 0));
        let grace = if is_pressed || is_leaving { chunk_grace.min(PRESSED_GRACE) } else { chunk_grace };
        let due = node.catalog.read(|rows| {
            let mut due = Vec::new();
            rows.scan(&key::all(Tag::UnreferencedChunk), &mut |key, value| {
                if now.since(Since::decode(value)?.0) >= grace {
                    due.extend(key::chunk_hash(key));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(due)
        });
        let due = match due {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(node = %node.id, error = chain(&error), "chunks without references cannot be listed");
                continue;
            }
        };
        stream::iter(due)
            .for_each_concurrent(DELETIONS, |hash| {
                let node = &node;
                async move {
                    if let Err(error) = delete_chunk(node, hash).await {
                        tracing::warn!(node = %node.id, chunk = %hash.short(), error = chain(&error), "the chunk is not deleted");
                    }
                }
            })
            .await;
    }
}

/// Deletes a chunk that still has no reference: from the store first, so that a crash in between leaves a row
/// that is tried again, never a chunk that nobody knows of.
async fn delete_chunk(node: &Node, hash: ChunkHash) -> ApiResult<()> {
    let _alone = node.chunk_locks.deleting(&hash).await;
    if node.catalog.read(|rows| rows.is_empty(&key::chunk_refs(&hash)))? {
        node.chunks.delete(&hash).await.map_err(|error| store_error(&error))?;
    }
    node.catalog.commit(move |txn| chunks::forget(txn, &hash)).await
}
