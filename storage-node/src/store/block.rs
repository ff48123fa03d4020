//! Chunks on a block device: entries of the node's log, found through its index.

use std::io;
use std::time::Instant;

use bytes::Bytes;
use common::hash::ChunkHash;
use futures_util::future::BoxFuture;

use super::{ChunkPage, ChunkStore, PutOutcome, StoreError, StoreStats};
use crate::io::BufferPool;
use crate::log::{Location, Log};

/// Huge pages that reads are served from.
const ARENA_BYTES: usize = 64 << 20;
/// Bytes of chunks read and not yet sent, at most; further reads wait.
const READ_BYTES_MAX: usize = 512 << 20;

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct BlockStore {
    log: Log,
    pool: BufferPool,
}

impl BlockStore {
    pub fn new(log: Log) -> Self {
        Self { log, pool: BufferPool::new(ARENA_BYTES, READ_BYTES_MAX) }
    }

    async fn read(&self, hash: &ChunkHash) -> Result<Bytes, StoreError> {
        let shared = self.log.shared();
        let mut location = shared.index.get(hash).ok_or(StoreError::NotFound)?;
        loop {
            let bytes = self.read_at(location).await?;
            shared.metrics.read_bytes.increment(bytes.len() as u64);
            if ChunkHash::of(&bytes) == *hash {
                return Ok(bytes);
            }
            // A compaction may have moved the chunk, and its former place may hold something else by now.
            let found = shared.index.get(hash).ok_or(StoreError::NotFound)?;
            if found == location {
                tracing::error!(%hash, at = location.offset(), "a chunk is damaged on the device");
                shared.metrics.damaged_chunks.increment(1);
                return Err(StoreError::Damaged { hash: *hash });
            }
            location = found;
        }
    }

    async fn read_at(&self, location: Location) -> Result<Bytes, StoreError> {
        if location.len() == 0 {
            return Ok(Bytes::new());
        }
        let begun = Instant::now();
        let shared = self.log.shared();
        let buffer = self.pool.take(location.len()).await;
        let mut buffer = shared.io.read_at(buffer, location.offset()).await?;
        buffer.set_len(location.len());
        shared.metrics.read_seconds.record(begun.elapsed().as_secs_f64());
        Ok(buffer.into_bytes())
    }
}

impl ChunkStore for BlockStore {
    fn put(&self, hash: ChunkHash, bytes: Bytes) -> BoxFuture<'_, Result<PutOutcome, StoreError>> {
        Box::pin(async move { Ok(self.log.append_chunk(hash, bytes).await?) })
    }

    fn get<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.read(hash))
    }

    fn delete<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.log.append_tombstone(*hash).await?) })
    }

    fn contains<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.log.shared().index.get(hash).is_some()) })
    }

    /// A page is a segment of the log.
    fn list(&self, page: u64) -> BoxFuture<'_, Result<ChunkPage, StoreError>> {
        Box::pin(async move {
            let log = self.log.clone();
            let listing = tokio::task::spawn_blocking(move || log.list_chunks(page));
            let (hashes, next) = listing.await.map_err(io::Error::other)??;
            Ok(ChunkPage { hashes, next })
        })
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            capacity_bytes: self.log.capacity_bytes(),
            used_bytes: self.log.used_bytes(),
            chunks: self.log.shared().index.len(),
        }
    }
}
