//! Packs, deletions and rewriting on a store that fails at every possible write, and on one that is damaged.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::flaky::{Fate, Flaky};
use super::objects::Room;
use super::open::RebuildError;
use super::tidy::Tidier;
use super::*;
use crate::store::StoreMetrics;
use crate::store::conformance::{UsedBytes, conforms, sample};

const CAPACITY_BYTES: u64 = 1 << 30;

async fn open(flaky: &Arc<Flaky>) -> Result<(ObjectChunkStore, Tidier), RebuildError> {
    let metrics = StoreMetrics::new(&MetricsRegistry::new());
    flaky.inner.put(&names::owner(), "test".into()).await.unwrap();
    let store: Arc<dyn ObjectStore> = Arc::<Flaky>::clone(flaky);
    ObjectChunkStore::prepare(store, Room::Fixed(CAPACITY_BYTES), metrics).await
}

async fn sizes(inner: &InMemory, prefix: &str) -> Vec<(Path, u64)> {
    let found = inner.list(Some(&Path::from(prefix))).map_ok(|o| (o.location, o.size));
    let mut found: Vec<_> = found.try_collect().await.unwrap();
    found.sort();
    found
}

/// The test's chunks by number; every fifth is an object of its own.
fn chunk(name: u64) -> (ChunkHash, Bytes) {
    sample(name, if name.is_multiple_of(5) { ALONE_BYTES + name as usize } else { 500 + 100 * name as usize })
}

const NAMES: u64 = 14;

/// What must be found: `None` where both will do.
#[derive(Default)]
struct Model(BTreeMap<u64, Option<bool>>);

impl Model {
    async fn apply(&mut self, store: &ObjectChunkStore, name: u64, put: bool) {
        let (hash, bytes) = chunk(name);
        let done =
            if put { store.put(hash, bytes).await.map(drop) } else { store.delete(&hash).await.map(drop) };
        self.0.insert(name, done.is_ok().then_some(put));
    }

    /// Changes of several chunks at once; says whether all were acknowledged.
    async fn apply_group(&mut self, store: &ObjectChunkStore, group: &[(u64, bool)]) -> bool {
        let changes = group.iter().map(|(name, put)| async move {
            let mut one = Self::default();
            one.apply(store, *name, *put).await;
            one.0
        });
        let done: Vec<_> = join_all(changes).await.into_iter().flatten().collect();
        self.0.extend(done.iter().copied());
        done.iter().all(|(_, state)| state.is_some())
    }

    async fn check(&self, store: &ObjectChunkStore, context: &str) {
        let mut sum = (0, 0);
        for name in 0..NAMES {
            let (hash, bytes) = chunk(name);
            let found = match store.get(&hash).await {
                Ok(read) => {
                    assert!(read == bytes, "{context}: chunk {name} has other bytes");
                    sum = (sum.0 + 1, sum.1 + bytes.len() as u64);
                    true
                }
                Err(StoreError::NotFound) => false,
                Err(error) => panic!("{context}: chunk {name}: {error:?}"),
            };
            assert_eq!(store.contains(&hash).await.unwrap(), found, "{context}: chunk {name}");
            if let Some(expected) = self.0.get(&name).copied().unwrap_or(Some(false)) {
                assert_eq!(found, expected, "{context}: whether chunk {name} is there");
            }
        }
        let stats = store.stats();
        assert_eq!((stats.chunks, stats.used_bytes), sum, "{context}: figures");
    }
}

/// A life of the store: groups of changes and rounds of tidying. The first failure ends it.
async fn live(store: &ObjectChunkStore, tidier: &mut Tidier, model: &mut Model, seed: u64, groups: u64) {
    let mut dice = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for _ in 0..groups {
        let mut group = BTreeMap::new();
        for _ in 0..6 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            group.insert(dice % NAMES, (dice >> 32).is_multiple_of(2));
        }
        if !model.apply_group(store, &group.into_iter().collect::<Vec<_>>()).await {
            return;
        }
        // Not always, so that there is more than one pack to rewrite at a time.
        while dice.is_multiple_of(4) {
            match tidier.round().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return,
            }
        }
    }
}

#[tokio::test]
async fn whatever_write_fails_and_whenever_it_is_carried_out_nothing_acknowledged_is_lost() {
    for seed in 0..6 {
        let flaky = Flaky::new(Arc::default());
        let (store, mut tidier) = open(&flaky).await.unwrap();
        live(&store, &mut tidier, &mut Model::default(), seed, 20).await;
        let writes = flaky.writes();
        assert!(writes > 20, "{writes}");
        for (strike, fate) in
            (0..writes).flat_map(|s| [Fate::Lost, Fate::Unanswered, Fate::Late].map(|f| (s, f)))
        {
            let context = format!("seed {seed}, {fate:?} at write {strike}");
            let (inner, mut model) = (Arc::default(), Model::default());
            let first = Flaky::new(Arc::clone(&inner));
            first.strike(strike, fate, true);
            if let Ok((store, mut tidier)) = open(&first).await {
                live(&store, &mut tidier, &mut model, seed, 20).await;
            }

            let flaky = Flaky::new(Arc::clone(&inner));
            let (store, mut tidier) = open(&flaky).await.unwrap();
            model.check(&store, &format!("{context}, second life")).await;
            live(&store, &mut tidier, &mut model, seed + 100, 3).await;
            let late_chunk = first.late_chunk().and_then(|path| names::parse_chunk(&path));
            first.carry_out_late().await;
            live(&store, &mut tidier, &mut model, seed + 200, 3).await;
            model.check(&store, &format!("{context}, second life, at its end")).await;
            drop((store, tidier));

            // A large chunk that arrives late, and that nobody was told of, is a surplus.
            if let Some((hash, _)) = late_chunk {
                let name = (0..NAMES).find(|name| chunk(*name).0 == hash).unwrap();
                if model.0.get(&name).copied().flatten() == Some(false) {
                    model.0.insert(name, None);
                }
            }
            let (store, _tidier) = open(&Flaky::new(inner)).await.unwrap();
            model.check(&store, &format!("{context}, third life")).await;
        }
    }
}

#[tokio::test]
async fn one_failure_in_between_leaves_a_store_that_goes_on() {
    for seed in 0..6 {
        for (strike, fate) in (1..40).flat_map(|s| [Fate::Lost, Fate::Unanswered, Fate::Late].map(|f| (s, f)))
        {
            let context = format!("seed {seed}, {fate:?} at write {strike}");
            let (flaky, mut model) = (Flaky::new(Arc::default()), Model::default());
            flaky.strike(strike, fate, false);
            let (store, mut tidier) = open(&flaky).await.unwrap();
            live(&store, &mut tidier, &mut model, seed, 5).await;
            model.check(&store, &context).await;
            live(&store, &mut tidier, &mut model, seed + 100, 3).await;
            let late_chunk = flaky.late_chunk().is_some();
            flaky.carry_out_late().await;
            live(&store, &mut tidier, &mut model, seed + 200, 3).await;
            model.check(&store, &format!("{context}, at the end")).await;
            drop((store, tidier));
            let (store, _tidier) = open(&Flaky::new(Arc::clone(&flaky.inner))).await.unwrap();
            if !late_chunk {
                model.check(&store, &format!("{context}, after it was opened again")).await;
            }
        }
    }
}

#[tokio::test]
async fn a_put_after_a_deletion_that_failed_is_not_undone_by_it() {
    let flaky = Flaky::new(Arc::default());
    let (store, _tidier) = open(&flaky).await.unwrap();
    for (hash, bytes) in [chunk(1), chunk(5)] {
        store.put(hash, bytes.clone()).await.unwrap();
        flaky.strike(0, Fate::Late, false);
        assert!(store.delete(&hash).await.is_err());
        assert_eq!(store.put(hash, bytes).await.unwrap(), PutOutcome::Present);
    }
    flaky.carry_out_late().await;
    drop(store);
    let (store, _tidier) = open(&flaky).await.unwrap();
    assert!(store.get(&chunk(1).0).await.is_ok() && store.get(&chunk(5).0).await.is_ok());
    assert_eq!(store.stats().chunks, 2);
}

#[tokio::test]
async fn a_lone_put_does_not_wait_and_those_that_come_meanwhile_share_a_pack() {
    let flaky = Flaky::new(Arc::default());
    let (store, _tidier) = open(&flaky).await.unwrap();
    let store = Arc::new(store);
    let before = flaky.writes();
    store.put(chunk(1).0, chunk(1).1).await.unwrap();
    assert_eq!(flaky.writes() - before, 1);

    flaky.gate.forget_permits(usize::MAX);
    let put = |name: u64| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.put(sample(name, 4096).0, sample(name, 4096).1).await })
    };
    let arrived = flaky.arrived();
    let first = put(1000);
    while flaky.arrived() == arrived {
        tokio::task::yield_now().await;
    }
    let rest: Vec<_> = (0..100).map(|i| put(2000 + i)).collect();
    while QUEUE_LEN - store.work.capacity() < rest.len() {
        tokio::task::yield_now().await;
    }
    flaky.gate.add_permits(2);
    assert_eq!(first.await.unwrap().unwrap(), PutOutcome::Stored);
    for put in rest {
        assert_eq!(put.await.unwrap().unwrap(), PutOutcome::Stored);
    }
    assert_eq!(flaky.writes() - before, 3, "two requests for 101 chunks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_memory_conforms_while_it_is_tidied() {
    let metrics = StoreMetrics::new(&MetricsRegistry::new());
    let room = Room::Fixed(CAPACITY_BYTES);
    let store = ObjectChunkStore::start(Arc::new(InMemory::new()), room, metrics).await.unwrap();
    conforms(&store, UsedBytes::OfChunks).await;
}

#[tokio::test]
async fn space_comes_back_and_deletions_last() {
    let inner = Arc::<InMemory>::default();
    let flaky = Flaky::new(Arc::clone(&inner));
    let (store, mut tidier) = open(&flaky).await.unwrap();
    let chunks: Vec<_> = (0..1000).map(|i| sample(9000 + i, if i == 0 { 0 } else { 4096 })).collect();
    join_all(chunks.iter().map(|(hash, bytes)| store.put(*hash, bytes.clone()))).await;
    let (kept, gone) = chunks.split_at(100);
    join_all(gone.iter().map(|(hash, _)| store.delete(hash))).await;
    while tidier.round().await.unwrap() {}
    let packs = sizes(&inner, "packs").await;
    let bytes: u64 = packs.iter().map(|(_, size)| size).sum();
    assert!(bytes < 2 * (100 * 4096 + 900 * 40), "{bytes} bytes in {} packs for 100 chunks", packs.len());
    for (hash, bytes) in kept {
        assert_eq!(store.get(hash).await.unwrap(), bytes);
    }
    drop(store);
    let (store, _tidier) = open(&flaky).await.unwrap();
    assert_eq!(store.stats().chunks, 100);
    for (hash, _) in gone {
        assert!(!store.contains(hash).await.unwrap());
    }
}

#[tokio::test]
async fn many_small_packs_are_joined_and_old_deletions_dropped() {
    let inner = Arc::<InMemory>::default();
    let flaky = Flaky::new(Arc::clone(&inner));
    let (store, mut tidier) = open(&flaky).await.unwrap();
    for i in 0..300 {
        let (hash, bytes) = sample(i, 2000);
        store.put(hash, bytes).await.unwrap();
        if i % 2 == 0 {
            store.delete(&hash).await.unwrap();
        }
        tidier.round().await.unwrap();
    }
    while tidier.round().await.unwrap() {}
    let packs = sizes(&inner, "packs").await;
    let bytes: u64 = packs.iter().map(|(_, size)| size).sum();
    assert!(packs.len() <= 70, "{} packs", packs.len());
    assert!(bytes < 150 * 2100 + 70 * 200, "{bytes} bytes");
    drop(store);
    let (store, _tidier) = open(&flaky).await.unwrap();
    assert_eq!(store.stats().chunks, 150);
}

#[tokio::test]
async fn the_object_of_a_deleted_large_chunk_goes() {
    let flaky = Flaky::new(Arc::default());
    let (store, mut tidier) = open(&flaky).await.unwrap();
    let (hash, bytes) = chunk(5);
    store.put(hash, bytes).await.unwrap();
    assert_eq!(sizes(&flaky.inner, "chunks").await.len(), 1);
    assert!(store.delete(&hash).await.unwrap());
    while tidier.round().await.unwrap() {}
    assert!(sizes(&flaky.inner, "chunks").await.is_empty());
}

async fn tamper(inner: &InMemory, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = inner.get(path).await.unwrap().bytes().await.unwrap().to_vec();
    change(&mut bytes);
    inner.put(path, bytes.into()).await.unwrap();
}

/// The pack of the last put.
async fn last_pack(inner: &InMemory) -> Path {
    sizes(inner, "packs").await.pop().unwrap().0
}

#[tokio::test]
async fn a_damaged_chunk_is_never_answered_and_can_be_replaced() {
    let flaky = Flaky::new(Arc::default());
    let (store, mut tidier) = open(&flaky).await.unwrap();
    for name in [1, 5] {
        let (hash, bytes) = chunk(name);
        store.put(hash, bytes.clone()).await.unwrap();
        let path = if name == 1 {
            last_pack(&flaky.inner).await
        } else {
            sizes(&flaky.inner, "chunks").await[0].0.clone()
        };
        tamper(&flaky.inner, &path, |object| object[300] ^= 1).await;
        assert!(matches!(store.get(&hash).await, Err(StoreError::Damaged { .. })));
        // As the node does: taken out, then put again.
        assert!(store.delete(&hash).await.unwrap());
        assert_eq!(store.put(hash, bytes.clone()).await.unwrap(), PutOutcome::Stored);
        assert_eq!(store.get(&hash).await.unwrap(), bytes);
        flaky.inner.delete(&path).await.unwrap();
    }
    while tidier.round().await.unwrap() {}
    let (hash, _) = chunk(5);
    flaky.inner.delete(&sizes(&flaky.inner, "chunks").await[0].0).await.unwrap();
    assert!(matches!(store.get(&hash).await, Err(StoreError::Damaged { .. })), "its object is gone");
    flaky.inner.delete(&names::owner()).await.unwrap();
    assert!(matches!(store.get(&hash).await, Err(StoreError::Io { .. })), "everything is gone");
}

#[tokio::test]
async fn a_pack_with_a_damaged_chunk_is_not_rewritten_and_the_rest_of_it_stays() {
    let flaky = Flaky::new(Arc::default());
    let (store, mut tidier) = open(&flaky).await.unwrap();
    let chunks: Vec<_> = (0..10).map(|i| sample(i, 1000)).collect();
    join_all(chunks.iter().map(|(hash, bytes)| store.put(*hash, bytes.clone()))).await;
    let path = last_pack(&flaky.inner).await;
    tamper(&flaky.inner, &path, |object| object[40] ^= 1).await;
    join_all(chunks[2..].iter().map(|(hash, _)| store.delete(hash))).await;
    while tidier.round().await.unwrap() {}
    assert!(matches!(store.get(&chunks[0].0).await, Err(StoreError::Damaged { .. })));
    assert_eq!(store.get(&chunks[1].0).await.unwrap(), chunks[1].1);
}

#[tokio::test]
async fn a_damaged_pack_costs_its_chunks_and_no_others() {
    let flaky = Flaky::new(Arc::default());
    let (store, _tidier) = open(&flaky).await.unwrap();
    store.put(chunk(1).0, chunk(1).1).await.unwrap();
    let damaged = last_pack(&flaky.inner).await;
    store.put(chunk(2).0, chunk(2).1).await.unwrap();
    drop(store);
    tamper(&flaky.inner, &damaged, |object| *object.last_mut().unwrap() ^= 1).await;
    let (store, _tidier) = open(&flaky).await.unwrap();
    assert!(matches!(store.get(&chunk(1).0).await, Err(StoreError::NotFound)));
    assert_eq!(store.get(&chunk(2).0).await.unwrap(), chunk(2).1);
    assert_eq!(store.put(chunk(1).0, chunk(1).1).await.unwrap(), PutOutcome::Stored);
}

#[tokio::test]
async fn a_pack_of_a_later_format_is_refused_by_name() {
    let flaky = Flaky::new(Arc::default());
    let (store, _tidier) = open(&flaky).await.unwrap();
    store.put(chunk(1).0, chunk(1).1).await.unwrap();
    drop(store);
    let path = last_pack(&flaky.inner).await;
    tamper(&flaky.inner, &path, |object| {
        object[8] = 2;
        *object.last_mut().unwrap() ^= 1;
    })
    .await;
    let error = open(&flaky).await.map(drop).unwrap_err();
    let text = common::error::chain(&error);
    assert!(text.contains(path.as_ref()) && text.contains("format 2"), "{text}");
}

#[tokio::test]
async fn a_full_store_refuses_chunks_and_takes_deletions() {
    let metrics = StoreMetrics::new(&MetricsRegistry::new());
    let room = Room::Fixed(200_000);
    let store = ObjectChunkStore::start(Arc::new(InMemory::new()), room, metrics).await.unwrap();
    let (small, large) = (sample(1, 90_000), sample(2, 150_000));
    store.put(small.0, small.1.clone()).await.unwrap();
    let full = store.put(large.0, large.1.clone()).await;
    assert!(matches!(full, Err(StoreError::Full { capacity_bytes: 200_000 })), "{full:?}");
    assert!(store.delete(&small.0).await.unwrap());
    store.put(large.0, large.1).await.unwrap();
    assert!(matches!(store.put(small.0, small.1).await, Err(StoreError::Full { .. })));
    assert_eq!((store.stats().chunks, store.stats().used_bytes), (1, 150_000));
}
