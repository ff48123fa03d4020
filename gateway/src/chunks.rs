//! Reading chunks from the site's nodes (or this gateway's memory) and writing them there.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use common::api::node::{ClaimRequest, NodeClient, RefTag};
use common::client::CallError;
use common::error::{ApiError, ErrorCode};
use common::hash::ChunkHash;
use common::id::NodeId;
use common::manifest::{ChunkList, ChunkRef, Manifest, check_chunks};
use common::name::ContentName;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;
use crate::site::SiteView;

/// Chunks being copied into the cache at once: bounds the memory of half-read ones.
const CACHE_FILLS_MAX: usize = 16;
/// Chunks at least this long are asked for before they are sent: the answer may save sending them.
const CLAIM_LEN_MIN: usize = 64 * 1024;

#[derive(Clone)]
struct ByteWeight;

impl Weighter<ChunkHash, Bytes> for ByteWeight {
    fn weight(&self, _: &ChunkHash, bytes: &Bytes) -> u64 {
        // The entry itself costs about this much beside its bytes.
        bytes.len() as u64 + 128
    }
}

/// An opened chunk: its bytes come as pieces, in order, `None` at the end.
pub struct OpenChunk {
    kind: OpenKind,
}

enum OpenKind {
    Whole(Option<Bytes>),
    Stream { body: Incoming, left: usize, fill: Option<CacheFill> },
}

struct CacheFill {
    hash: ChunkHash,
    bytes: BytesMut,
    cache: Arc<Cache<ChunkHash, Bytes, ByteWeight>>,
    _permit: OwnedSemaphorePermit,
}

impl OpenChunk {
    pub fn whole(bytes: Bytes) -> Self {
        Self { kind: OpenKind::Whole(Some(bytes)) }
    }

    /// The next piece. An error means that the chunk must be opened anew, perhaps elsewhere; pieces given before
    /// it are good.
    pub async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        let (body, left, fill) = match &mut self.kind {
            OpenKind::Whole(bytes) => return bytes.take().map(Ok),
            OpenKind::Stream { body, left, fill } => (body, left, fill),
        };
        while *left > 0 {
            let frame = match body.frame().await {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    return Some(Err(ApiError::new(
                        ErrorCode::NodeUnavailable,
                        "a storage node stopped sending",
                    )
                    .with_cause(&error)));
                }
                None => {
                    return Some(Err(ApiError::new(
                        ErrorCode::NodeUnavailable,
                        "a storage node sent too little",
                    )));
                }
            };
            let Ok(bytes) = frame.into_data() else { continue };
            if bytes.len() > *left {
                return Some(Err(ApiError::new(ErrorCode::Damaged, "a storage node sent too much")));
            }
            *left -= bytes.len();
            if let Some(open) = fill.as_mut() {
                open.bytes.extend_from_slice(&bytes);
                if *left == 0
                    && let Some(done) = fill.take()
                {
                    done.cache.insert(done.hash, done.bytes.freeze());
                }
            }
            if !bytes.is_empty() {
                return Some(Ok(bytes));
            }
        }
        None
    }
}

/// The site's chunks, as this gateway reads and writes them.
pub struct Chunks {
    site: Arc<SiteView>,
    cache: Option<Arc<Cache<ChunkHash, Bytes, ByteWeight>>>,
    fills: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Chunks {
    pub fn new(site: Arc<SiteView>, cache_bytes: u64, metrics: Arc<Metrics>) -> Self {
        // The estimate of entries sizes the hash table; the weight is what bounds the memory.
        let entries = (cache_bytes / 65_536).clamp(64, 1 << 20) as usize;
        let cache =
            (cache_bytes > 0).then(|| Arc::new(Cache::with_weighter(entries, cache_bytes, ByteWeight)));
        Self { site, cache, fills: Arc::new(Semaphore::new(CACHE_FILLS_MAX)), metrics }
    }

    /// Opens a chunk that is in this gateway's memory.
    pub fn open_cached(&self, chunk: &ChunkRef) -> Option<OpenChunk> {
        let bytes = self.cache.as_ref()?.get(&chunk.hash)?;
        self.metrics.cache_hits.increment(1);
        Some(OpenChunk::whole(bytes))
    }

    /// Opens a chunk at the best node that has it. `ChunkNotFound` when every node answers that it has it not,
    /// `Damaged` when the only copy is.
    pub async fn open(&self, chunk: &ChunkRef) -> Result<OpenChunk, ApiError> {
        if let Some(open) = self.open_cached(chunk) {
            return Ok(open);
        }
        let mut failure = None;
        for (node, client) in self.site.nodes_for_chunk(&chunk.hash) {
            match client.get_chunk(&chunk.hash).await {
                Ok(response) => {
                    self.metrics.cache_misses.increment(1);
                    let left = chunk.len as usize;
                    let fill = self.cache_fill(chunk);
                    return Ok(OpenChunk {
                        kind: OpenKind::Stream { body: response.into_body(), left, fill },
                    });
                }
                Err(error) if error.code() == Some(ErrorCode::ChunkNotFound) => {}
                Err(error) => {
                    tracing::debug!(%node, chunk = ?chunk.hash, error = %common::error::chain(&error), "chunk not read");
                    failure = Some(error);
                }
            }
        }
        Err(match failure {
            None => ApiError::new(ErrorCode::ChunkNotFound, "a part of the content is not at this site"),
            Some(error) => error.to_api(
                ErrorCode::NodeUnavailable,
                "the storage node that holds a part of the content does not answer; try again in a moment",
            ),
        })
    }

    fn cache_fill(&self, chunk: &ChunkRef) -> Option<CacheFill> {
        let cache = self.cache.clone()?;
        let permit = self.fills.clone().try_acquire_owned().ok()?;
        let bytes = BytesMut::with_capacity(chunk.len as usize);
        Some(CacheFill { hash: chunk.hash, bytes, cache, _permit: permit })
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

    /// Stores a chunk, durably, with a back-reference to the holding that `tag` marks. True when the site did not
    /// have the bytes before.
    pub async fn write(
        &self,
        hash: &ChunkHash,
        name: &ContentName,
        tag: RefTag,
        bytes: Bytes,
    ) -> Result<bool, ApiError> {
        let mut full = None;
        for (_, node) in self.writers(hash)? {
            match write_at(&node, hash, name, tag, bytes.clone()).await {
                Ok(stored) => return Ok(stored),
                // A full or silent node does not stop the site: the next in the ranking stands in, and reads go
                // down the same ranking.
                Err(error) if error.code() == Some(ErrorCode::NodeFull) || error.is_retryable() => {
                    full = Some(error);
                }
                Err(error) => return Err(error.to_api(ErrorCode::NodeUnavailable, "a storage node failed")),
            }
        }
        Err(match full {
            Some(error) => error.to_api(
                ErrorCode::NodeUnavailable,
                "no storage node of the site takes the content at the moment; try again in a moment",
            ),
            None => no_nodes(),
        })
    }

    /// [`Chunks::write`] for a task of its own.
    pub async fn write_owned(
        self: Arc<Self>,
        hash: ChunkHash,
        name: ContentName,
        tag: RefTag,
        bytes: Bytes,
    ) -> Result<bool, ApiError> {
        self.write(&hash, &name, tag, bytes).await
    }

    fn writers(&self, hash: &ChunkHash) -> Result<Vec<(NodeId, NodeClient)>, ApiError> {
        let nodes = self.site.nodes_for_chunk(hash);
        if nodes.is_empty() { Err(no_nodes()) } else { Ok(nodes) }
    }

    /// Which of these chunks the site lacks; those it has get their back-reference in the same step.
    pub async fn claim(
        &self,
        chunks: &[ChunkRef],
        name: &ContentName,
        tag: RefTag,
    ) -> Result<Vec<ChunkRef>, ApiError> {
        let mut missing = chunks.to_vec();
        // Each round asks the next node in each chunk's ranking for what was not found so far.
        for round in 0.. {
            let mut by_node: Vec<(NodeId, NodeClient, Vec<ChunkHash>)> = Vec::new();
            for chunk in &missing {
                let Some((id, client)) = self.site.nodes_for_chunk(&chunk.hash).into_iter().nth(round) else {
                    continue;
                };
                match by_node.iter_mut().find(|(known, ..)| known == &id) {
                    Some((.., hashes)) => hashes.push(chunk.hash),
                    None => by_node.push((id, client, vec![chunk.hash])),
                }
            }
            if by_node.is_empty() {
                break;
            }
            let mut found = std::collections::HashSet::new();
            for (node, client, hashes) in by_node {
                let request = ClaimRequest { name: name.clone(), ref_tag: tag, chunks: hashes.clone() };
                match client.claim(&request).await {
                    Ok(answer) => {
                        let lacks: std::collections::HashSet<_> = answer.missing.into_iter().collect();
                        found.extend(hashes.into_iter().filter(|h| !lacks.contains(h)));
                    }
                    // What a silent node has counts as missing: a second copy does no harm.
                    Err(error) => {
                        tracing::debug!(%node, error = %common::error::chain(&error), "claim not answered")
                    }
                }
            }
            missing.retain(|c| !found.contains(&c.hash));
        }
        Ok(missing)
    }

    /// The chunks of a content, in order, reading a stored list if there is one.
    pub async fn list(&self, manifest: &Manifest) -> Result<Arc<[ChunkRef]>, ApiError> {
        match &manifest.chunks {
            ChunkList::Inline(chunks) => Ok(chunks.as_slice().into()),
            ChunkList::Stored { list, .. } => decode_list(manifest, &self.read(list).await?),
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

async fn write_at(
    node: &NodeClient,
    hash: &ChunkHash,
    name: &ContentName,
    tag: RefTag,
    bytes: Bytes,
) -> Result<bool, CallError> {
    if bytes.len() >= CLAIM_LEN_MIN {
        let request = ClaimRequest { name: name.clone(), ref_tag: tag, chunks: vec![*hash] };
        if node.claim(&request).await?.missing.is_empty() {
            return Ok(false);
        }
    }
    node.put_chunk(hash, name, tag, bytes).await
}

fn no_nodes() -> ApiError {
    ApiError::new(ErrorCode::NodeUnavailable, "the site has no storage node yet; start one and try again")
}
