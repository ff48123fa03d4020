//! Gives back what is no longer needed: first the chunk references of holdings that went, on every node of the
//! site, then, after a grace, the chunks that nothing refers to.
//!
//! Only this worker deletes chunks that the catalog knows of.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::Duration;

use common::api::node::ChunkReleaseRequest;
use common::backoff::Backoff;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::hash::ChunkHash;
use common::manifest::{ChunkList, ChunkRef};
use common::placement::rank_for_chunk;
use futures_util::{StreamExt, stream};

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{ReapValue, Row, Since};
use crate::catalog::txn::Rows;
use crate::chunks::{self, store_error};
use crate::node::Node;

/// References that are released in one commit or call.
const PIECE_LEN: usize = 1024;
/// Queued holdings that are read at once.
const PAGE_LEN: usize = 64;
/// Chunks that are deleted at the same time.
const DELETIONS: usize = 16;
/// Grace of a chunk while the node is short of space: long enough for most of what is still being sent.
const PRESSED_GRACE: Duration = Duration::from_secs(20);
/// For so long after it refused a chunk the node counts as short of space.
const PRESSED_FOR: Duration = Duration::from_secs(300);

/// Releases the references of holdings that went, for ever.
pub async fn release(node: Arc<Node>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        match release_all(&node).await {
            Ok(true) => {
                backoff.reset();
                node.signals.reap_queued.notified().await;
            }
            Ok(false) => tokio::time::sleep(backoff.next_delay()).await,
            Err(error) => {
                tracing::warn!(node = %node.id, error = chain(&error), "references cannot be released");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Goes once through the queue. Answers whether all of it is done.
async fn release_all(node: &Node) -> ApiResult<bool> {
    let (mut after, mut done) = (key::all(Tag::Reap), true);
    loop {
        let page = node.catalog.read(|rows| queued(rows, &after))?;
        let Some((last, _)) = page.last() else { return Ok(done) };
        after.clone_from(last);
        for (key, reap) in page {
            if is_being_counted(node, &reap)? {
                done = false;
                continue;
            }
            match release_everywhere(node, &reap).await {
                Ok(()) => {
                    node.catalog
                        .commit(move |txn| {
                            txn.delete_raw(key);
                            Ok(())
                        })
                        .await?;
                }
                Err(error) => {
                    tracing::debug!(node = %node.id, name = %reap.name, error = chain(&error), "references stay for now");
                    done = false;
                }
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
fn is_being_counted(node: &Node, reap: &ReapValue) -> ApiResult<bool> {
    match reap.chunks {
        ChunkList::Inline(_) => Ok(false),
        ChunkList::Stored { .. } => {
            node.catalog.read(|rows| rows.has(Key::TallyHolding(&reap.name, reap.ref_tag)))
        }
    }
}

/// Releases a holding's references on all nodes: each has its share, and perhaps some from an earlier map.
async fn release_everywhere(node: &Node, reap: &ReapValue) -> ApiResult<()> {
    let hashes = match &reap.chunks {
        ChunkList::Inline(chunks) => chunks.iter().map(|chunk| chunk.hash).collect(),
        ChunkList::Stored { list, .. } => match read_list(node, list).await? {
            Some(chunks) => chunks.iter().map(|chunk| chunk.hash).chain([list.hash]).collect(),
            None => {
                tracing::warn!(node = %node.id, name = %reap.name, list = %list.hash, "the chunk list is at no node; its chunks keep surplus references");
                vec![list.hash]
            }
        },
    };
    let view = node.slots.view();
    for piece in hashes.chunks(PIECE_LEN) {
        release_here(
            node,
            ChunkReleaseRequest { name: reap.name.clone(), ref_tag: reap.ref_tag, chunks: piece.to_vec() },
        )
        .await?;
        for other in view.others() {
            let request = ChunkReleaseRequest {
                name: reap.name.clone(),
                ref_tag: reap.ref_tag,
                chunks: piece.to_vec(),
            };
            node.peer(other).release_chunks(&request).await.map_err(|error| {
                error.to_api(ErrorCode::NodeUnavailable, "another node of the site does not release chunks")
            })?;
        }
    }
    Ok(())
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
    let view = node.slots.view();
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
        let grace = if is_pressed { chunk_grace.min(PRESSED_GRACE) } else { chunk_grace };
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
