//! Chunks of this node and who refers to them.
//!
//! A chunk may be deleted only while no put or claim of it is under way: both hold its [`ChunkLocks`] shared, the
//! reaper holds it alone. A chunk counts as present when the store has it *and* its row is there; a crash
//! between the two leaves one of them, and the next put completes it.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use common::api::node::{ChunkRefs, RefTag};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::ChunkHash;
use common::name::ContentName;
use common::time::UnixMillis;
use common::trace::{Stage, stage};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{ChunkValue, Since};
use crate::catalog::txn::{Rows, Txn};
use crate::mover;
use crate::node::Node;
use crate::store::StoreError;

const LOCKS: usize = 64;

/// A chunk's bytes, verified. If the stored ones turn out damaged, those of another node are put in their place and
/// answered.
pub async fn read(node: &Node, hash: &ChunkHash) -> ApiResult<Bytes> {
    match read_own(node, hash).await {
        Err(error) if error.code == ErrorCode::Damaged => mover::repair(node, hash).await.ok_or(error),
        read => read,
    }
}

/// A chunk's bytes as they are stored here, verified. Those that are damaged twice in a row are taken out of the store
/// while the chunk's references stay: it counts as missing from then on, so whoever has a good copy can put it again.
pub async fn read_own(node: &Node, hash: &ChunkHash) -> ApiResult<Bytes> {
    match stage(Stage::Disk, node.chunks.get(hash)).await {
        Err(StoreError::Damaged { .. }) => {}
        read => return read.map_err(|error| store_error(&error)),
    }
    let _alone = stage(Stage::Queue, node.chunk_locks.deleting(hash)).await;
    let again = stage(Stage::Disk, node.chunks.get(hash)).await;
    if let Err(StoreError::Damaged { .. }) = &again {
        tracing::error!(chunk = %hash, "a stored chunk is damaged; it is taken out and waits for a good copy");
        node.chunks.delete(hash).await.map_err(|error| store_error(&error))?;
    }
    again.map_err(|error| store_error(&error))
}

/// Keeps deletion apart from use, by groups of chunks.
pub struct ChunkLocks {
    locks: Vec<RwLock<()>>,
}

impl Default for ChunkLocks {
    fn default() -> Self {
        Self { locks: (0..LOCKS).map(|_| RwLock::new(())).collect() }
    }
}

impl ChunkLocks {
    /// Whether one lock stands for both chunks.
    pub fn is_shared(a: &ChunkHash, b: &ChunkHash) -> bool {
        Self::index(a) == Self::index(b)
    }

    fn index(hash: &ChunkHash) -> usize {
        usize::from(hash.as_bytes()[0]) % LOCKS
    }

    /// Held while a chunk is stored or claimed.
    pub async fn using(&self, hash: &ChunkHash) -> RwLockReadGuard<'_, ()> {
        self.locks[Self::index(hash)].read().await
    }

    /// As [`ChunkLocks::using`] for many; taken in one order, so two callers never wait for each other.
    pub async fn using_all(&self, hashes: &[ChunkHash]) -> Vec<RwLockReadGuard<'_, ()>> {
        let mut indices: Vec<usize> = hashes.iter().map(Self::index).collect();
        indices.sort_unstable();
        indices.dedup();
        let mut guards = Vec::with_capacity(indices.len());
        for index in indices {
            guards.push(self.locks[index].read().await);
        }
        guards
    }

    /// Held while a chunk is deleted, with all that share its lock.
    pub async fn deleting(&self, hash: &ChunkHash) -> RwLockWriteGuard<'_, ()> {
        self.locks[Self::index(hash)].write().await
    }
}

/// Adds a reference to a chunk that is being stored. Answers the logical bytes that it adds.
pub fn add_ref(
    txn: &mut Txn<'_>,
    hash: &ChunkHash,
    len: u32,
    tag: RefTag,
    name: &ContentName,
) -> ApiResult<u64> {
    if !txn.has(Key::Chunk(hash))? {
        txn.put(Key::Chunk(hash), &ChunkValue { len });
    }
    link(txn, hash, len, tag, name)
}

fn link(txn: &mut Txn<'_>, hash: &ChunkHash, len: u32, tag: RefTag, name: &ContentName) -> ApiResult<u64> {
    let key = Key::ChunkRef(hash, tag, name);
    if txn.has(key)? {
        return Ok(0);
    }
    txn.put_empty(key);
    if txn.has(Key::UnreferencedChunk(hash))? {
        txn.delete(Key::UnreferencedChunk(hash));
    }
    Ok(u64::from(len))
}

/// Adds a reference to each of `present` (chunks that the store has). Answers those without a row, which count
/// as missing, and the logical bytes added.
pub fn claim(
    txn: &mut Txn<'_>,
    present: &[ChunkHash],
    tag: RefTag,
    name: &ContentName,
) -> ApiResult<(Vec<ChunkHash>, u64)> {
    let (mut missing, mut bytes) = (Vec::new(), 0);
    for hash in present {
        match txn.get::<ChunkValue>(Key::Chunk(hash))? {
            Some(chunk) => bytes += link(txn, hash, chunk.len, tag, name)?,
            None => missing.push(*hash),
        }
    }
    Ok((missing, bytes))
}

/// Adds references that another node gave on, each to a chunk that the store has. Answers the chunks without a row, which
/// count as missing, and the logical bytes added.
pub fn adopt(txn: &mut Txn<'_>, present: &[ChunkRefs]) -> ApiResult<(Vec<ChunkHash>, u64)> {
    let (mut missing, mut bytes) = (Vec::new(), 0);
    for ChunkRefs { hash, refs } in present {
        let Some(chunk) = txn.get::<ChunkValue>(Key::Chunk(hash))? else {
            missing.push(*hash);
            continue;
        };
        for (tag, name) in refs {
            bytes += link(txn, hash, chunk.len, *tag, name)?;
        }
    }
    Ok((missing, bytes))
}

/// Whether the catalog has a chunk with all these references.
pub fn is_adopted(rows: &(impl Rows + ?Sized), chunk: &ChunkRefs) -> ApiResult<bool> {
    let ChunkRefs { hash, refs } = chunk;
    let mut has_all = rows.has(Key::Chunk(hash))?;
    for (tag, name) in refs {
        has_all = has_all && rows.has(Key::ChunkRef(hash, *tag, name))?;
    }
    Ok(has_all)
}

/// Removes a holding's references; chunks left without any wait for deletion. Answers the logical bytes that go.
pub fn release(
    txn: &mut Txn<'_>,
    hashes: &[ChunkHash],
    tag: RefTag,
    name: &ContentName,
    now: UnixMillis,
) -> ApiResult<u64> {
    let mut bytes = 0;
    for hash in hashes {
        let key = Key::ChunkRef(hash, tag, name);
        if !txn.has(key)? {
            continue;
        }
        txn.delete(key);
        bytes += txn.get::<ChunkValue>(Key::Chunk(hash))?.map_or(0, |chunk| u64::from(chunk.len));
        if txn.is_empty(&key::chunk_refs(hash))? {
            txn.put(Key::UnreferencedChunk(hash), &Since(now));
        }
    }
    Ok(bytes)
}

/// Forgets a chunk that the store no longer has, unless it is referred to.
pub fn forget(txn: &mut Txn<'_>, hash: &ChunkHash) -> ApiResult<()> {
    if txn.is_empty(&key::chunk_refs(hash))? {
        txn.delete(Key::Chunk(hash));
    }
    txn.delete(Key::UnreferencedChunk(hash));
    Ok(())
}

/// Removes a chunk's rows together with its references, which other nodes have by now. Answers the logical bytes that
/// go.
pub fn hand_off(txn: &mut Txn<'_>, hash: &ChunkHash) -> ApiResult<u64> {
    let len = txn.get::<ChunkValue>(Key::Chunk(hash))?.map_or(0, |chunk| u64::from(chunk.len));
    let refs = refs(txn, hash)?;
    for (tag, name) in &refs {
        txn.delete(Key::ChunkRef(hash, *tag, name));
    }
    txn.delete(Key::Chunk(hash));
    txn.delete(Key::UnreferencedChunk(hash));
    Ok(len * refs.len() as u64)
}

/// What refers to a chunk, in the order of the keys.
pub fn refs(rows: &(impl Rows + ?Sized), hash: &ChunkHash) -> ApiResult<Vec<(RefTag, ContentName)>> {
    let mut refs = Vec::new();
    rows.scan(&key::chunk_refs(hash), &mut |key, _| {
        refs.extend(key::chunk_ref(key).map(|(_, tag, name)| (tag, name)));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(refs)
}

/// Chunks that have a row, in the order of their hashes, behind `after`; `max` at most.
pub fn rows_after(
    rows: &(impl Rows + ?Sized),
    after: Option<&ChunkHash>,
    max: usize,
) -> ApiResult<Vec<ChunkHash>> {
    let prefix = key::all(Tag::Chunk);
    let from = after.map(|hash| Key::Chunk(hash).encode());
    let from = from.as_deref().map_or(Bound::Included(prefix.as_slice()), Bound::Excluded);
    let mut page = Vec::with_capacity(max);
    rows.scan_raw(&prefix, from, &mut |key, _| {
        page.extend(key::chunk_hash(key));
        Ok(if page.len() == max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(page)
}

/// Sum of the lengths of referenced chunks, each as often as it is referred to: one walk over all references.
pub fn logical_bytes(rows: &(impl Rows + ?Sized)) -> ApiResult<u64> {
    let (mut sum, mut last) = (0u64, None::<(ChunkHash, u64)>);
    rows.scan(&key::all(Tag::ChunkRef), &mut |key, _| {
        let Some(hash) = key::chunk_hash(key) else { return Ok(ControlFlow::Continue(())) };
        let len = match last {
            Some((same, len)) if same == hash => len,
            _ => rows.get::<ChunkValue>(Key::Chunk(&hash))?.map_or(0, |chunk| u64::from(chunk.len)),
        };
        last = Some((hash, len));
        sum += len;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(sum)
}

/// What a failure of the store is to the caller.
pub fn store_error(error: &StoreError) -> ApiError {
    let (code, message) = match error {
        StoreError::NotFound => (ErrorCode::ChunkNotFound, "this node does not have the chunk"),
        StoreError::Full { .. } => (ErrorCode::NodeFull, "the node is full; delete contents or add a node"),
        StoreError::Damaged { .. } => (ErrorCode::Damaged, "the stored chunk is damaged"),
        StoreError::Stopped => (ErrorCode::Unavailable, "the node's store has stopped"),
        _ => (ErrorCode::Unavailable, "the node's store failed"),
    };
    ApiError::new(code, message).with_cause(error)
}
