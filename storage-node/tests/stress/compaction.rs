//! Readers look at every byte while writers put and delete so much that the compactor never rests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;
use storage_node::io::Engine;
use storage_node::store::{ChunkStore, PutOutcome, StoreError};
use tokio::sync::RwLock;

use super::{STORE_BYTES, chunk, dice, from_env, open_with_metrics, seed};

const NAMES: u64 = 200;
const WRITERS: u64 = 6;
const READERS: u64 = 4;

/// A chunk, and whether it is there: who holds the lock for reading sees it stay so.
struct Slot {
    hash: ChunkHash,
    bytes: Vec<u8>,
    is_present: RwLock<bool>,
}

struct Run {
    store: Arc<dyn ChunkStore>,
    slots: Vec<Slot>,
    /// Bytes of chunks that are still to be stored.
    left_bytes: AtomicU64,
    is_over: AtomicBool,
}

impl Run {
    /// Low numbers come often and high ones seldom: some chunks die young, others are moved by compactions.
    fn any_slot(&self, dice: &mut impl FnMut() -> u64) -> &Slot {
        &self.slots[(dice() % NAMES).min(dice() % NAMES) as usize]
    }

    async fn write(&self, seed: u64) {
        let mut dice = dice(seed);
        while !self.is_over.load(Ordering::Relaxed) {
            let slot = self.any_slot(&mut dice);
            let mut is_present = slot.is_present.write().await;
            if *is_present {
                assert!(self.store.delete(&slot.hash).await.unwrap(), "it was there");
                *is_present = false;
                continue;
            }
            match self.store.put(slot.hash, slot.bytes.clone().into()).await {
                Ok(outcome) => assert_eq!(outcome, PutOutcome::Stored),
                // The compactor has not caught up.
                Err(StoreError::Full { .. }) => continue,
                Err(error) => panic!("{error:?}"),
            }
            *is_present = true;
            let len = slot.bytes.len() as u64;
            let take = |left: u64| Some(left.saturating_sub(len));
            let left = self.left_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            self.is_over.fetch_or(left.unwrap() <= len, Ordering::Relaxed);
        }
    }

    async fn read(&self, seed: u64) -> u64 {
        let (mut dice, mut reads) = (dice(seed), 0);
        while !self.is_over.load(Ordering::Relaxed) {
            let slot = self.any_slot(&mut dice);
            // Some reads keep writers off, so that there is one right answer; others race with them.
            let is_present = if dice().is_multiple_of(2) { Some(slot.is_present.read().await) } else { None };
            match (self.store.get(&slot.hash).await, is_present.as_deref()) {
                (Ok(bytes), None | Some(true)) => assert!(bytes == slot.bytes, "other bytes"),
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
    let slot = |name| {
        let (hash, bytes) = chunk(name);
        Slot { hash, bytes, is_present: RwLock::new(false) }
    };
    let run = Arc::new(Run {
        store: opened.chunks,
        slots: (0..NAMES).map(slot).collect(),
        left_bytes: AtomicU64::new(
            STORE_BYTES * from_env("DOZO_STRESS_ROUNDS").map_or(1, |rounds| rounds.max(1)),
        ),
        is_over: AtomicBool::new(false),
    });
    let spawn_writer = |seed| {
        let run = Arc::clone(&run);
        tokio::spawn(async move { run.write(seed).await })
    };
    let writers: Vec<_> = (0..WRITERS).map(|_| spawn_writer(dice())).collect();
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
    let compactions = page.lines().find_map(|line| line.strip_prefix("dozo_node_compactions_total "));
    println!("{engine:?}: {reads} reads, {compactions:?} compactions");
    assert!(compactions.is_some_and(|count| count != "0"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_right_bytes_under_compaction_with_io_uring() {
    readers_see_right_bytes(Engine::Uring).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_right_bytes_under_compaction_with_threads() {
    readers_see_right_bytes(Engine::Threads).await;
}
