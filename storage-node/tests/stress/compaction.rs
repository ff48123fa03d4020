//! Readers look at every byte while writers put and delete so much that the compactor never rests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;
use storage_node::io::Engine;
use storage_node::store::{ChunkStore, PutOutcome, StoreError};
use tokio::sync::RwLock;

use super::{
    NAMES_PER_WRITER, STORE_BYTES, WRITERS, chunk, dice, from_env, next_work, open_with_metrics, seed,
};

const READERS: u64 = 6;

/// A chunk, and whether it is there: who holds the lock for reading sees it stay so.
struct Slot {
    hash: ChunkHash,
    is_present: RwLock<bool>,
}

struct Run {
    store: Arc<dyn ChunkStore>,
    slots: Vec<Slot>,
    turns: AtomicU64,
    /// Bytes of chunks that are still to be stored.
    left_bytes: AtomicU64,
    is_over: AtomicBool,
}

impl Run {
    async fn write(&self, writer: u64, seed: u64) {
        let mut dice = dice(seed);
        while !self.is_over.load(Ordering::Relaxed) {
            let turn = self.turns.fetch_add(1, Ordering::Relaxed);
            let (name, puts) = next_work(writer, turn, &mut dice);
            let slot = &self.slots[name as usize];
            let mut is_present = slot.is_present.write().await;
            if !puts {
                assert_eq!(self.store.delete(&slot.hash).await.unwrap(), *is_present);
                *is_present = false;
                continue;
            }
            let (hash, bytes) = chunk(name);
            let len = bytes.len() as u64;
            match self.store.put(hash, bytes.into()).await {
                Ok(PutOutcome::Stored) => assert!(!std::mem::replace(&mut *is_present, true)),
                Ok(PutOutcome::Present) => {
                    assert!(*is_present);
                    continue;
                }
                // The compactor has not caught up.
                Err(StoreError::Full { .. }) => continue,
                Err(error) => panic!("{error:?}"),
            }
            let take = |left: u64| Some(left.saturating_sub(len));
            let left = self.left_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            self.is_over.fetch_or(left.unwrap() <= len, Ordering::Relaxed);
        }
    }

    async fn read(&self, seed: u64) -> u64 {
        let (mut dice, mut reads) = (dice(seed), 0);
        while !self.is_over.load(Ordering::Relaxed) {
            let slot = &self.slots[dice() as usize % self.slots.len()];
            // Some reads keep writers off, so that there is one right answer; others race with them.
            let is_present = if dice().is_multiple_of(2) { Some(slot.is_present.read().await) } else { None };
            match (self.store.get(&slot.hash).await, is_present.as_deref()) {
                (Ok(bytes), None | Some(true)) => assert_eq!(ChunkHash::of(&bytes), slot.hash),
                (Ok(_), Some(false)) => panic!("a deleted chunk was found"),
                (Err(StoreError::NotFound), None | Some(false)) => {}
                (Err(error), _) => panic!("{error:?}"),
            }
            reads += 1;
        }
        reads
    }
}

async fn readers_see_right_bytes(engine: Engine) {
    let mut dice = dice(seed(&format!("compactions under {engine:?}")));
    let dir = tempfile::tempdir().unwrap();
    let metrics = MetricsRegistry::new();
    let opened = open_with_metrics(dir.path(), engine, &metrics).await;
    let slot = |name| Slot { hash: chunk(name).0, is_present: RwLock::new(false) };
    let run = Arc::new(Run {
        store: opened.chunks,
        slots: (0..WRITERS * NAMES_PER_WRITER).map(slot).collect(),
        turns: AtomicU64::new(0),
        left_bytes: AtomicU64::new(
            STORE_BYTES * from_env("DOZO_STRESS_ROUNDS").map_or(1, |rounds| rounds.max(1)),
        ),
        is_over: AtomicBool::new(false),
    });
    let spawn_writer = |writer, seed| {
        let run = Arc::clone(&run);
        tokio::spawn(async move { run.write(writer, seed).await })
    };
    let writers: Vec<_> = (0..WRITERS).map(|writer| spawn_writer(writer, dice())).collect();
    let spawn_reader = |seed| {
        let run = Arc::clone(&run);
        tokio::spawn(async move { run.read(seed).await })
    };
    let readers: Vec<_> = (0..READERS).map(|_| spawn_reader(dice())).collect();
    let mut reads = 0;
    for reader in readers {
        reads += reader.await.unwrap();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let page = metrics.render();
    let value =
        |name: &str| page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let (freed, moved) = (value("dozo_node_compactions_total "), value("dozo_node_compacted_bytes_total "));
    println!("{engine:?}: {reads} reads, {freed:?} segments freed, {moved:?} bytes moved for it");
    assert!(freed > Some(0) && moved > Some(0), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_right_bytes_under_compaction_with_io_uring() {
    readers_see_right_bytes(Engine::Uring).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_right_bytes_under_compaction_with_threads() {
    readers_see_right_bytes(Engine::Threads).await;
}
