//! *send*: the bytes of a delivery, in order, as its reader takes them.
//!
//! One chunk is being sent while the next is being opened; nothing more is held, whatever the content's length. A
//! piece that cannot be had in one place is asked for in the next, from the byte where the first stopped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use common::error::{ApiError, ErrorCode};
use common::manifest::ChunkSlice;
use common::trace;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::chunks::{Chunks, OpenChunk};
use crate::collect::Collector;
use crate::collect::collection::Reader;
use crate::collect::elsewhere::Elsewhere;
use crate::ends::EndGuard;
use crate::limits::Pace;

/// Attempts at one chunk before an answer is broken off.
const ATTEMPTS_MAX: u32 = 4;
const RETRY_DELAY: Duration = Duration::from_millis(150);

/// Where the chunks of one answer come from.
#[derive(Clone)]
pub enum Supply {
    /// The site's nodes; what they lack or have damaged is fetched from another holder.
    Site { chunks: Arc<Chunks>, collector: Arc<Collector>, elsewhere: Arc<Elsewhere> },
    /// A collection at work: a chunk as soon as it is there.
    Collection { collection: Reader, chunks: Arc<Chunks> },
}

impl Supply {
    fn open_cached(&self, slice: &ChunkSlice) -> Option<OpenChunk> {
        match self {
            Self::Site { chunks, .. } => chunks.open_cached(&slice.chunk),
            Self::Collection { .. } => None,
        }
    }

    async fn open(&self, slice: &ChunkSlice) -> Result<OpenChunk, ApiError> {
        match self {
            Self::Site { collector, elsewhere, .. } => collector.open_or_fetch(elsewhere, slice).await,
            Self::Collection { collection, chunks } => match collection.chunk(slice.index).await? {
                Some(bytes) => Ok(OpenChunk::whole(bytes)),
                None => chunks.open(&slice.chunk).await,
            },
        }
    }

    /// Opens a slice and passes over what is not wanted of it.
    async fn open_at(&self, slice: &ChunkSlice) -> Result<OpenSlice, ApiError> {
        let mut attempt = 1;
        loop {
            match self.open(slice).await {
                Ok(chunk) => {
                    return Ok(OpenSlice::new(chunk, slice));
                }
                Err(error) if error.code.is_retryable() && attempt < ATTEMPTS_MAX => {
                    attempt += 1;
                    tokio::time::sleep(RETRY_DELAY * attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

struct OpenSlice {
    chunk: OpenChunk,
    /// Bytes still to pass over.
    skip: usize,
    /// Bytes still to send.
    left: usize,
}

impl OpenSlice {
    fn new(chunk: OpenChunk, slice: &ChunkSlice) -> Self {
        Self { chunk, skip: slice.wanted.start, left: slice.wanted.len() }
    }

    async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        while self.left > 0 {
            let mut piece = match self.chunk.next().await {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    return Some(Err(ApiError::new(
                        ErrorCode::Damaged,
                        "a chunk is shorter than its manifest says",
                    )));
                }
            };
            let skipped = self.skip.min(piece.len());
            self.skip -= skipped;
            piece = piece.slice(skipped..);
            piece.truncate(self.left);
            if !piece.is_empty() {
                self.left -= piece.len();
                return Some(Ok(piece));
            }
        }
        None
    }
}

/// The first slice, being opened while the record becomes durable.
pub struct Opening {
    supply: Supply,
    slices: VecDeque<ChunkSlice>,
    first: Option<BoxFuture<'static, Result<OpenSlice, ApiError>>>,
}

impl Opening {
    pub fn new(supply: Supply, slices: Vec<ChunkSlice>) -> Self {
        let slices = VecDeque::from(slices);
        let first = slices.front().map(|slice| open_ahead(&supply, slice));
        Self { supply, slices, first }
    }

    /// Waits until the first byte is at hand, so that what fails here still gets an error answer.
    pub async fn ready(self) -> Result<Ready, ApiError> {
        let mut sending = Ready { supply: self.supply, slices: self.slices, current: None, ahead: None };
        if let Some(first) = self.first {
            sending.current = Some(first.await?);
            sending.open_next();
        }
        Ok(sending)
    }
}

/// Starts opening a slice at once: on a task of its own, unless it is in memory.
fn open_ahead(supply: &Supply, slice: &ChunkSlice) -> BoxFuture<'static, Result<OpenSlice, ApiError>> {
    if let Some(chunk) = supply.open_cached(slice) {
        let open = OpenSlice::new(chunk, slice);
        return std::future::ready(Ok(open)).boxed();
    }
    let (supply, slice) = (supply.clone(), slice.clone());
    let task = trace::spawn(async move { supply.open_at(&slice).await });
    let task = tokio_util::task::AbortOnDropHandle::new(task);
    async move { task.await.unwrap_or_else(|error| Err(ApiError::internal(&error))) }.boxed()
}

/// An answer whose first chunk is open.
pub struct Ready {
    supply: Supply,
    /// The slice being sent, then those to come.
    slices: VecDeque<ChunkSlice>,
    current: Option<OpenSlice>,
    ahead: Option<BoxFuture<'static, Result<OpenSlice, ApiError>>>,
}

impl Ready {
    fn open_next(&mut self) {
        self.ahead = self.slices.get(1).map(|slice| open_ahead(&self.supply, slice));
    }

    /// The body of the answer, at the client's pace; `guard` learns what goes out and reports it when the body is dropped.
    pub fn into_body(self, guard: EndGuard, pace: Pace) -> Body {
        let start = (self, guard, pace, Bytes::new());
        let stream =
            futures_util::stream::unfold(start, |(mut sending, mut guard, pace, mut rest)| async move {
                if rest.is_empty() {
                    rest = match sending.next().await? {
                        Ok(piece) => piece,
                        Err(error) => return Some((Err(error), (sending, guard, pace, rest))),
                    };
                }
                let piece = rest.split_to(pace.portion(rest.len()));
                pace.take(piece.len()).await;
                guard.sent(piece.len());
                Some((Ok(piece), (sending, guard, pace, rest)))
            });
        Body::from_stream(stream)
    }

    async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        let mut attempt = 1;
        loop {
            let current = self.current.as_mut()?;
            match current.next().await {
                Some(Ok(piece)) => return Some(Ok(piece)),
                Some(Err(error)) if attempt < ATTEMPTS_MAX => {
                    tracing::debug!(%error, "a chunk broke off; going on from where it did");
                    attempt += 1;
                    let left = current.left;
                    let slice = self.slices.front()?;
                    let rest =
                        ChunkSlice { wanted: slice.wanted.end - left..slice.wanted.end, ..slice.clone() };
                    tokio::time::sleep(RETRY_DELAY).await;
                    match self.supply.open_at(&rest).await {
                        Ok(open) => self.current = Some(open),
                        Err(error) => return Some(Err(error)),
                    }
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.slices.pop_front();
                    self.current = match self.ahead.take()?.await {
                        Ok(open) => Some(open),
                        Err(error) => return Some(Err(error)),
                    };
                    self.open_next();
                }
            }
        }
    }
}
