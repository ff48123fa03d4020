//! Reading chunks from the site's nodes (or this gateway's memory) and writing them there.
//!
//! | file | owns |
//! |---|---|
//! | `chunks.rs` | what the rest of the gateway calls; the memory of hot chunks |
//! | `open.rs` | a chunk being read: goes on from another copy when a node fails |
//! | `find.rs` | which copy is read |
//! | `pace.rs` | how quickly each node answers |
//! | `write.rs` | storing as many copies as the site keeps |

mod find;
mod open;
mod pace;
mod write;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use common::error::{ApiError, ErrorCode};
use common::hash::ChunkHash;
use common::manifest::{ChunkList, ChunkRef, Manifest, check_chunks};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::site::SiteView;
use find::Finder;
use open::CacheFill;

pub use open::OpenChunk;

/// Chunks being copied into the cache at once: bounds the memory of half-read ones.
const CACHE_FILLS_MAX: usize = 16;

#[derive(Clone)]
struct ByteWeight;

impl Weighter<ChunkHash, Bytes> for ByteWeight {
    fn weight(&self, _: &ChunkHash, bytes: &Bytes) -> u64 {
        // The entry itself costs about this much beside its bytes.
        bytes.len() as u64 + 128
    }
}

type ChunkCache = Cache<ChunkHash, Bytes, ByteWeight>;

/// The site's chunks, as this gateway reads and writes them.
pub struct Chunks {
    site: Arc<SiteView>,
    finder: Arc<Finder>,
    cache: Option<Arc<ChunkCache>>,
    fills: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Chunks {
    pub fn new(site: Arc<SiteView>, cache_bytes: u64, metrics: Arc<Metrics>) -> Self {
        // The estimate of entries sizes the hash table; the weight is what bounds the memory.
        let entries = (cache_bytes / 65_536).clamp(64, 1 << 20) as usize;
        let cache =
            (cache_bytes > 0).then(|| Arc::new(Cache::with_weighter(entries, cache_bytes, ByteWeight)));
        let finder = Arc::new(Finder::new(site.clone(), metrics.clone()));
        Self { site, finder, cache, fills: Arc::new(Semaphore::new(CACHE_FILLS_MAX)), metrics }
    }

    /// Opens a chunk that is in this gateway's memory.
    pub fn open_cached(&self, chunk: &ChunkRef) -> Option<OpenChunk> {
        let bytes = self.cache.as_ref()?.get(&chunk.hash)?;
        self.metrics.cache_hits.increment(1);
        Some(OpenChunk::whole(bytes))
    }

    /// Opens a chunk at the best node that has it.
    ///
    /// # Errors
    /// `ChunkNotFound` when every node answers that it has it not, `Damaged` when the only copies are,
    /// `NodeUnavailable` when a node that may have it does not answer.
    pub async fn open(&self, chunk: &ChunkRef) -> Result<OpenChunk, ApiError> {
        if let Some(open) = self.open_cached(chunk) {
            return Ok(open);
        }
        let found = self.finder.find(&chunk.hash, None).await?;
        self.metrics.cache_misses.increment(1);
        Ok(OpenChunk::stream(*chunk, found, self.cache_fill(chunk), self.finder.clone()))
    }

    fn cache_fill(&self, chunk: &ChunkRef) -> Option<CacheFill> {
        let cache = self.cache.clone()?;
        let permit = self.fills.clone().try_acquire_owned().ok()?;
        Some(CacheFill::new(chunk, cache, permit))
    }

    /// A chunk's bytes, whole.
    pub async fn read(&self, chunk: &ChunkRef) -> Result<Bytes, ApiError> {
        let mut open = self.open(chunk).await?;
        let mut bytes = BytesMut::with_capacity(chunk.len as usize);
        while let Some(piece) = open.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes.freeze())
    }

    /// The chunks of a content, in order, reading a stored list if there is one.
    pub async fn list(&self, manifest: &Manifest) -> Result<Arc<[ChunkRef]>, ApiError> {
        match &manifest.chunks {
            ChunkList::Inline(chunks) => Ok(chunks.as_slice().into()),
            ChunkList::Stored { list, .. } => decode_list(manifest, &Box::pin(self.read(list)).await?),
        }
    }
}

/// Decodes and checks a stored chunk list.
pub fn decode_list(manifest: &Manifest, bytes: &[u8]) -> Result<Arc<[ChunkRef]>, ApiError> {
    let damaged = |error: &dyn std::error::Error| {
        ApiError::new(ErrorCode::Damaged, "the content's chunk list is damaged").with_cause(error)
    };
    let chunks = ChunkList::decode(bytes).map_err(|e| damaged(&e))?;
    check_chunks(&chunks, manifest.len).map_err(|e| damaged(&e))?;
    Ok(chunks.into())
}

#[cfg(test)]
mod tests;
