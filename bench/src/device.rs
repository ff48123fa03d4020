//! A node's chunk store without the network: the ceiling that a node's figures are read against.
//!
//! It goes through the trait that the node itself uses, so an append is durable and a read is verified against its
//! hash. A store believes the hash that it is given with a chunk, since nodes check it before; so appends come with
//! hashes of their numbers in place of their bytes, which keeps the cost of hashing out of what is measured.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::chunker::CHUNK_LEN_MAX;
use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;
use futures_util::future::{join_all, try_join_all};
use serde::Serialize;
use storage_node::store::{self, ChunkStore, InvalidStoreUrl, OpenError, StoreError, StoreUrl};

use crate::content::{Choices, Content};
use crate::latency::Latency;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceOp {
    /// Reads of stored chunks, chosen evenly.
    Randread,
    /// Durable writes of new chunks.
    Append,
    /// Opening a store with `chunks` chunks in it, all of them empty: one operation is one chunk found, and the times
    /// are those of a whole opening.
    Open,
}

#[derive(Debug, Clone)]
pub struct DevicePlan {
    /// As for `dozo storage-node --store`.
    pub store: String,
    /// Bytes of one chunk.
    pub block: u64,
    /// Operations in flight.
    pub depth: usize,
    pub op: DeviceOp,
    pub duration: Duration,
    /// Bytes to write before random reads begin; at most half of the store.
    pub span: u64,
    /// Chunks that a store to be opened has.
    pub chunks: u64,
    /// Folder for what the store does not hold itself; by default one that is removed afterwards.
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DeviceResult {
    pub ops_per_s: f64,
    pub mib_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("--block is {0} bytes, it must be 1 to {CHUNK_LEN_MAX}: a chunk is no longer")]
    Block(u64),
    #[error("--depth and --seconds must be above 0")]
    Nothing,
    #[error(transparent)]
    Url(#[from] InvalidStoreUrl),
    #[error("the store cannot be opened")]
    Open(#[from] OpenError),
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("a folder for the store's index cannot be made")]
    Folder(#[source] std::io::Error),
    #[error("the store holds no chunk of this size: it is too small for --block")]
    TooSmall,
}

/// Different blocks that appends take in turn.
const PREPARED: u64 = 16;

/// The `nth` chunk of a run.
#[derive(Clone, Copy)]
struct Blocks {
    seed: u64,
    len: u64,
}

impl Blocks {
    /// A hash that no block has.
    fn name(self, nth: u64) -> ChunkHash {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&self.seed.to_le_bytes());
        name[8..].copy_from_slice(&nth.to_le_bytes());
        ChunkHash::of(&name)
    }

    fn get(self, nth: u64) -> (ChunkHash, bytes::Bytes) {
        let bytes = Content::new(self.seed, nth, self.len).bytes(0, self.len as usize);
        (ChunkHash::of(&bytes), bytes)
    }
}

/// Measures a store. A store that is full ends an append run early, with what was measured.
pub async fn run(plan: &DevicePlan) -> Result<DeviceResult, DeviceError> {
    if plan.block == 0 || plan.block > CHUNK_LEN_MAX as u64 {
        return Err(DeviceError::Block(plan.block));
    }
    if plan.depth == 0 || plan.duration.is_zero() {
        return Err(DeviceError::Nothing);
    }
    let url: StoreUrl = plan.store.parse()?;
    let (folder, temporary) = match &plan.data_dir {
        Some(folder) => (folder.clone(), None),
        // Objects belong to the log beside them, so a later run on them needs the same one.
        None if url.has_objects() => {
            let name = format!("dozo-bench-{}", ChunkHash::of(url.to_string().as_bytes()).short());
            (std::env::temp_dir().join(name), None)
        }
        None => {
            let name = format!("dozo-bench-{}", common::auth::random_hex(8));
            let folder = std::env::temp_dir().join(name);
            (folder.clone(), Some(RemovedAtEnd(folder)))
        }
    };
    std::fs::create_dir_all(&folder).map_err(DeviceError::Folder)?;
    let mut opened = store::open(&url, &folder, &MetricsRegistry::new()).await?;
    let mut seed = [0u8; 8];
    common::auth::fill_random(&mut seed);
    let blocks = Blocks { seed: u64::from_le_bytes(seed), len: plan.block };
    let result = match plan.op {
        DeviceOp::Append => append(plan, blocks, &opened.chunks).await,
        DeviceOp::Randread => randread(plan, blocks, &opened.chunks).await,
        DeviceOp::Open => {
            fill_with_empty(plan, blocks, &opened.chunks).await?;
            let mut latency = Latency::default();
            let (mut elapsed, mut found) = (Duration::ZERO, 0);
            for _ in 0..OPENINGS {
                drop(opened);
                let began = Instant::now();
                opened = store::open(&url, &folder, &MetricsRegistry::new()).await?;
                latency.record(began.elapsed());
                elapsed += began.elapsed();
                found += opened.chunks.stats().chunks;
            }
            Ok(result(plan, &latency, found, elapsed))
        }
    };
    drop(opened);
    drop(temporary);
    result
}

/// Openings that are timed.
const OPENINGS: u32 = 5;

async fn fill_with_empty(
    plan: &DevicePlan,
    blocks: Blocks,
    chunks: &Arc<dyn ChunkStore>,
) -> Result<(), StoreError> {
    const LANES: u64 = 256;
    let fill = |lane: u64| {
        let (chunks, count) = (chunks.clone(), plan.chunks);
        tokio::spawn(async move {
            for nth in (lane..count).step_by(LANES as usize) {
                chunks.put(blocks.name(nth), bytes::Bytes::new()).await?;
            }
            Ok::<(), StoreError>(())
        })
    };
    for lane in join_all((0..LANES).map(fill)).await {
        lane.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))?;
    }
    Ok(())
}

struct RemovedAtEnd(PathBuf);

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        // What stays in the temporary folder is the system's to remove.
        let _left_behind = std::fs::remove_dir_all(&self.0);
    }
}

async fn append(
    plan: &DevicePlan,
    blocks: Blocks,
    chunks: &Arc<dyn ChunkStore>,
) -> Result<DeviceResult, DeviceError> {
    let next = Arc::new(AtomicU64::new(0));
    let prepared: Arc<Vec<bytes::Bytes>> = Arc::new((0..PREPARED).map(|nth| blocks.get(nth).1).collect());
    let start = Instant::now();
    let end = start + plan.duration;
    let workers = (0..plan.depth).map(|_| {
        let (chunks, next, prepared) = (chunks.clone(), next.clone(), prepared.clone());
        tokio::spawn(async move {
            let mut latency = Latency::default();
            let mut done = 0u64;
            while Instant::now() < end {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                let hash = blocks.name(nth);
                let bytes = prepared[(nth % PREPARED) as usize].clone();
                let began = Instant::now();
                match chunks.put(hash, bytes).await {
                    Ok(_) => {}
                    Err(StoreError::Full { .. }) => break,
                    Err(error) => return Err(error),
                }
                latency.record(began.elapsed());
                done += 1;
            }
            Ok((latency, done))
        })
    });
    gather(plan, start, join_all(workers).await)
}

async fn randread(
    plan: &DevicePlan,
    blocks: Blocks,
    chunks: &Arc<dyn ChunkStore>,
) -> Result<DeviceResult, DeviceError> {
    let room = chunks.stats().capacity_bytes.saturating_sub(chunks.stats().used_bytes);
    let count = plan.span.min(room / 2) / plan.block;
    if count == 0 {
        return Err(DeviceError::TooSmall);
    }
    let lanes = plan.depth.min(16) as u64;
    let fill = (0..lanes).map(|lane| async move {
        let mut hashes = Vec::new();
        for nth in (lane..count).step_by(lanes as usize) {
            let (hash, bytes) = blocks.get(nth);
            chunks.put(hash, bytes).await?;
            hashes.push(hash);
        }
        Ok::<_, StoreError>(hashes)
    });
    let hashes: Arc<Vec<ChunkHash>> = Arc::new(try_join_all(fill).await?.concat());
    let start = Instant::now();
    let end = start + plan.duration;
    let workers = (0..plan.depth).map(|worker| {
        let (chunks, hashes) = (chunks.clone(), hashes.clone());
        let mut choices = Choices::new(blocks.seed, worker as u64);
        tokio::spawn(async move {
            let mut latency = Latency::default();
            let mut done = 0u64;
            while Instant::now() < end {
                let hash = &hashes[choices.below(hashes.len() as u64) as usize];
                let began = Instant::now();
                chunks.get(hash).await?;
                latency.record(began.elapsed());
                done += 1;
            }
            Ok((latency, done))
        })
    });
    gather(plan, start, join_all(workers).await)
}

type Worked = Result<Result<(Latency, u64), StoreError>, tokio::task::JoinError>;

fn gather(plan: &DevicePlan, start: Instant, workers: Vec<Worked>) -> Result<DeviceResult, DeviceError> {
    let elapsed = start.elapsed().as_secs_f64();
    let (mut latency, mut operations) = (Latency::default(), 0);
    for worker in workers {
        let (measured, done) = match worker {
            Ok(worked) => worked?,
            Err(died) => std::panic::resume_unwind(died.into_panic()),
        };
        latency.merge(&measured);
        operations += done;
    }
    Ok(result(plan, &latency, operations, Duration::from_secs_f64(elapsed)))
}

fn result(plan: &DevicePlan, latency: &Latency, operations: u64, elapsed: Duration) -> DeviceResult {
    let summary = latency.summary();
    let ops_per_s = operations as f64 / elapsed.as_secs_f64();
    DeviceResult {
        ops_per_s,
        mib_per_s: ops_per_s * plan.block as f64 / f64::from(1 << 20),
        p50_us: summary.p50_us,
        p99_us: summary.p99_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(op: DeviceOp, store: String) -> DevicePlan {
        DevicePlan {
            store,
            block: 16 << 10,
            depth: 4,
            op,
            duration: Duration::from_millis(300),
            span: 4 << 20,
            chunks: 5000,
            data_dir: None,
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn appends_and_reads_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        for op in [DeviceOp::Append, DeviceOp::Randread, DeviceOp::Open] {
            let store = format!("file:{}?size=1GiB", folder.path().join(format!("{op:?}")).display());
            let result = run(&plan(op, store)).await.unwrap();
            assert!(result.ops_per_s > 1.0, "{op:?} {result:?}");
            assert!(result.p50_us > 0.0 && result.p99_us >= result.p50_us, "{op:?} {result:?}");
            let expected = result.ops_per_s * 16.0 / 1024.0;
            assert!((result.mib_per_s - expected).abs() < 1e-6, "{op:?} {result:?}");
        }
    }

    #[tokio::test]
    async fn a_block_longer_than_a_chunk_is_refused() {
        let plan = DevicePlan { block: 5 << 20, ..plan(DeviceOp::Append, "memory:".into()) };
        assert!(matches!(run(&plan).await, Err(DeviceError::Block(_))));
    }
}
