//! A chunk being read, piece by piece. When the node that sends it fails, it goes on from another copy at the
//! byte where the first stopped.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use common::error::{ApiError, ErrorCode};
use common::manifest::ChunkRef;
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;

use super::ChunkCache;
use super::find::{Finder, Found};

/// How long a node may be silent in the middle of a chunk, all of which it had in memory when it began to
/// send.
const STALL_MAX: Duration = Duration::from_secs(2);
/// Nodes that may fail in the middle of one chunk before the reader hears of it.
const RESUMES_MAX: u32 = 3;

/// An opened chunk: its bytes come as pieces, in order, `None` at the end.
pub struct OpenChunk {
    kind: OpenKind,
}

enum OpenKind {
    Whole(Option<Bytes>),
    Stream(Box<Streaming>),
}

struct Streaming {
    chunk: ChunkRef,
    from: Found,
    /// Bytes that the reader still gets.
    left: usize,
    /// Bytes of this copy that the reader got from another.
    skip: usize,
    fill: Option<CacheFill>,
    finder: Arc<Finder>,
    resumes: u32,
}

/// A chunk on its way into the gateway's memory.
pub(super) struct CacheFill {
    chunk: ChunkRef,
    bytes: BytesMut,
    cache: Arc<ChunkCache>,
    _permit: OwnedSemaphorePermit,
}

impl CacheFill {
    pub fn new(chunk: &ChunkRef, cache: Arc<ChunkCache>, permit: OwnedSemaphorePermit) -> Self {
        let bytes = BytesMut::with_capacity(chunk.len as usize);
        Self { chunk: *chunk, bytes, cache, _permit: permit }
    }
}

impl OpenChunk {
    pub fn whole(bytes: Bytes) -> Self {
        Self { kind: OpenKind::Whole(Some(bytes)) }
    }

    pub(super) fn stream(chunk: ChunkRef, from: Found, fill: Option<CacheFill>, finder: Arc<Finder>) -> Self {
        let left = chunk.len as usize;
        let streaming = Streaming { chunk, from, left, skip: 0, fill, finder, resumes: 0 };
        Self { kind: OpenKind::Stream(Box::new(streaming)) }
    }

    /// The next piece. An error means that no other copy could be gone on from: the chunk must be opened
    /// anew, perhaps elsewhere; pieces given before it are good.
    pub async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        match &mut self.kind {
            OpenKind::Whole(bytes) => bytes.take().map(Ok),
            OpenKind::Stream(streaming) => streaming.next().await,
        }
    }
}

impl Streaming {
    async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        while self.left > 0 {
            let mut bytes = match self.frame().await {
                Ok(bytes) => bytes,
                Err(error) => match self.resume().await {
                    true => continue,
                    false => return Some(Err(error)),
                },
            };
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.slice(skipped..);
            if !bytes.is_empty() {
                self.left -= bytes.len();
                self.keep(&bytes);
                return Some(Ok(bytes));
            }
        }
        None
    }

    /// What the node sends next; it may be empty.
    async fn frame(&mut self) -> Result<Bytes, ApiError> {
        let failed = |what: &str| ApiError::new(ErrorCode::NodeUnavailable, what);
        let bytes = match tokio::time::timeout(STALL_MAX, self.from.body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(error))) => return Err(failed("a storage node stopped sending").with_cause(&error)),
            Ok(None) => return Err(failed("a storage node sent too little")),
            Err(_) => return Err(failed("a storage node is silent in the middle of a chunk")),
        };
        if bytes.len() > self.left + self.skip {
            return Err(ApiError::new(ErrorCode::Damaged, "a storage node sent too much"));
        }
        Ok(bytes)
    }

    /// Goes on from another copy, or the same if it is the only one. Answers whether there is one.
    async fn resume(&mut self) -> bool {
        if self.resumes == RESUMES_MAX {
            return false;
        }
        self.resumes += 1;
        let failed = self.from.node.clone();
        self.finder.failed(&failed);
        let Ok(found) = self.finder.find(&self.chunk.hash, Some(&failed)).await else { return false };
        tracing::debug!(node = %failed, other = %found.node, chunk = ?self.chunk.hash, "a chunk broke off; another copy goes on");
        self.from = found;
        self.skip = self.chunk.len as usize - self.left;
        true
    }

    fn keep(&mut self, bytes: &Bytes) {
        if let Some(fill) = &mut self.fill {
            fill.bytes.extend_from_slice(bytes);
        }
        if self.left == 0
            && let Some(done) = self.fill.take()
        {
            done.cache.insert(done.chunk.hash, done.bytes.freeze());
        }
    }
}
