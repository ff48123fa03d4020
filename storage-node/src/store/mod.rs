//! Where a node keeps chunks: one trait, three kinds of place, one conformance suite ([`conformance`]) that all of them
//! run.
//!
//! | `--store` | chunks | log |
//! |---|---|---|
//! | `device:`, `file:` | [`BlockStore`] | the same device |
//! | `memory:` | [`BlockStore`] on memory | the same memory; gone with the process |
//! | `dir:`, `s3:` | [`ObjectChunkStore`] | a file `log` in the node's data directory |

mod block;
pub mod conformance;
mod metrics;
mod object;
mod url;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;
use futures_util::future::BoxFuture;

use crate::io::{BlockIo, Engine, MemIo, MeteredIo, Target};
use crate::log::{Log, LogError, MIN_SEGMENTS, OpenLogError, OpenOptions, device_bytes, segment_bytes_for};

pub use block::BlockStore;
pub use metrics::StoreMetrics;
pub use object::ObjectChunkStore;
pub use url::{InvalidStoreUrl, StoreUrl};

pub use crate::log::PutOutcome;

/// Name of the log beside an object store, in the node's data directory.
pub(crate) const LOG_FILE: &str = "log";
/// A log file beside an object store may grow to this length; it takes space as it is written.
const LOG_FILE_BYTES: u64 = 64 << 30;

#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("no such chunk")]
    NotFound,
    #[error("the store is full: its capacity is {capacity_bytes} bytes")]
    Full { capacity_bytes: u64 },
    /// What is stored under this hash are other bytes.
    #[error("chunk {hash} is damaged")]
    Damaged { hash: ChunkHash },
    #[error("the store cannot be read or written")]
    Io { source: Arc<dyn Error + Send + Sync> },
    /// Closed, or stopped after a failed write: nothing more is stored until the node is started anew.
    #[error("the store has stopped")]
    Stopped,
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        Self::Io { source: Arc::new(error) }
    }
}

impl From<LogError> for StoreError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Full { capacity_bytes } => Self::Full { capacity_bytes },
            LogError::Stopped => Self::Stopped,
            other => Self::Io { source: Arc::new(other) },
        }
    }
}

/// Figures of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Bytes that can be used before chunks are refused.
    pub capacity_bytes: u64,
    /// Bytes taken, deleted chunks not counted. A block store counts the rows of the catalog and its own headers, an
    /// object store the bytes of chunks and nothing else; what it has not given back yet, at most about as much again
    /// in packs, is not counted.
    pub used_bytes: u64,
    pub chunks: u64,
}

/// A part of the chunks that a store has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChunkPage {
    pub hashes: Vec<ChunkHash>,
    /// Number of the page to ask for next, if there is one.
    pub next: Option<u64>,
}

/// Keeps chunks by their hash.
pub trait ChunkStore: Send + Sync + 'static {
    /// Stores a chunk whose hash the caller has verified. Equal puts at the same time are fine.
    ///
    /// # Durability
    /// The chunk survives a power cut when this resolves, whatever the outcome says.
    /// # Cancel safety
    /// Dropped before it resolves, the chunk may or may not come to be stored; it is never stored in part.
    /// # Errors
    /// `Full`: nothing is stored. `Io`, `Stopped`: all is as before, but the chunk may be there, whole, after the next
    /// start. A put that is tried again is answered like any other.
    fn put(&self, hash: ChunkHash, bytes: Bytes) -> BoxFuture<'_, Result<PutOutcome, StoreError>>;

    /// The bytes of a chunk, verified against its hash.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` if other bytes, or none, are in its place; `Io`. A block store that has stopped still
    /// reads.
    /// # Cancel safety
    /// Can be dropped at any time.
    fn get<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<Bytes, StoreError>>;

    /// Removes a chunk; says whether it was there.
    ///
    /// # Durability
    /// The chunk never shows again once this resolves, whatever happens, until it is put again.
    /// # Cancel safety
    /// Dropped before it resolves, the chunk may or may not come to be deleted; the same holds after an error.
    /// # Errors
    /// `Io`, `Stopped`. A deletion that is tried again is answered like any other.
    fn delete<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Whether the chunk is there; its bytes are not verified. What has been put is there at once, and what has been
    /// deleted is not.
    fn contains<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Lists chunks, a bounded part at a time: page 0 first, then whatever page the last one names. What is stored or
    /// deleted meanwhile may or may not be listed; every other chunk is, perhaps twice.
    fn list(&self, page: u64) -> BoxFuture<'_, Result<ChunkPage, StoreError>>;

    fn stats(&self) -> StoreStats;
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} cannot be opened", path = .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("the log in {place} cannot be opened")]
    Log { place: String, source: OpenLogError },
    #[error("the object store {url} cannot be used; {advice}")]
    Object { url: String, advice: String, source: Arc<dyn Error + Send + Sync> },
    #[error("the thread that opened the store ended early")]
    Interrupted,
}

/// A node's store and log. The log is closed when its last handle and the store are dropped.
pub struct Opened {
    pub chunks: Arc<dyn ChunkStore>,
    pub log: Log,
    /// 32 hexadecimal digits, drawn when the log was made.
    pub log_id: String,
    /// How disk requests of the log (and of a block store) reach the kernel.
    pub io_engine: &'static str,
}

/// How a store is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Makes a store also on a device or file that holds something else, which is lost.
    pub force: bool,
    pub engine: Engine,
}

/// Opens the store and the log of a node, making them if they are not there.
pub async fn open(url: &StoreUrl, data_dir: &Path, metrics: &MetricsRegistry) -> Result<Opened, OpenError> {
    open_with(url, data_dir, metrics, Options::default()).await
}

/// [`open`], in another way than usual.
pub async fn open_with(
    url: &StoreUrl,
    data_dir: &Path,
    metrics: &MetricsRegistry,
    Options { force, engine }: Options,
) -> Result<Opened, OpenError> {
    let metrics = StoreMetrics::new(metrics);
    let (log_url, log_file) = (url.clone(), data_dir.join(LOG_FILE));
    let log_metrics = metrics.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let io = MeteredIo::new(block_io(&log_url, &log_file, engine)?, log_metrics.clone());
        let io_engine = io.engine();
        let place = if log_url.has_objects() { log_file.display().to_string() } else { log_url.to_string() };
        let prefill = matches!(log_url, StoreUrl::File { prefill: true, .. });
        let options = OpenOptions { segment_bytes: segment_bytes_for(io.size_bytes()), force, prefill };
        let log = Log::open(Arc::new(io), options, log_metrics)
            .map_err(|source| OpenError::Log { place, source })?;
        Ok((log, io_engine))
    });
    let (log, io_engine) = opening.await.unwrap_or(Err(OpenError::Interrupted))?;
    let log_id = log.id();
    // After the log, which only one process can open: so nobody else is changing the objects.
    let chunks: Arc<dyn ChunkStore> = match ObjectChunkStore::open(url, &log_id, metrics).await? {
        Some(objects) => Arc::new(objects),
        None => Arc::new(BlockStore::new(log.clone())),
    };
    Ok(Opened { chunks, log_id, log, io_engine })
}

/// The device of the log.
fn block_io(url: &StoreUrl, log_file: &Path, engine: Engine) -> Result<Arc<dyn BlockIo>, OpenError> {
    let (path, target) = match url {
        StoreUrl::Memory { size_bytes } => {
            let bytes = usize::try_from(*size_bytes).unwrap_or(usize::MAX);
            return Ok(Arc::new(MemIo::new(bytes)));
        }
        StoreUrl::File { path, size_bytes, .. } => (path.as_path(), Target::file(path, *size_bytes)),
        StoreUrl::Device { path } => (path.as_path(), Target::device(path)),
        StoreUrl::Dir { .. } | StoreUrl::S3 { .. } => (log_file, Target::file(log_file, LOG_FILE_BYTES)),
    };
    target
        .and_then(|target| target.start(engine))
        .map_err(|source| OpenError::Open { path: path.into(), source })
}

/// The smallest file or memory that a block store fits in.
pub(crate) const SIZE_BYTES_MIN: u64 = device_bytes(MIN_SEGMENTS, segment_bytes_for(0));

#[cfg(test)]
mod tests;
