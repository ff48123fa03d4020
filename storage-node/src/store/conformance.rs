//! What every [`ChunkStore`] must do, as tests that any implementation can run: [`conforms`] for one that is empty,
//! [`survives_reopening`] for one that outlives its process.
//!
//! Both panic with what was expected and what was found. They need a store with room for [`NEEDED_BYTES`] and a tokio
//! runtime, and take a few seconds.

use std::fmt::Debug;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use common::hash::ChunkHash;
use futures_util::future::{BoxFuture, join_all};

use super::{ChunkStore, PutOutcome, StoreError};

/// Room that a store needs for the tests.
pub const NEEDED_BYTES: u64 = 100 << 20;

/// From nothing to the largest chunk, and around the sizes at which stores change their ways: blocks of 4 KiB, packs
/// of chunks below 128 KiB.
const LENGTHS: [usize; 11] = [0, 1, 4095, 4096, 4097, 70_000, 131_071, 131_072, 131_073, 1 << 20, 4 << 20];
/// In flight at once.
const MANY: usize = 400;

/// What a store counts as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsedBytes {
    /// The bytes of its chunks and nothing else.
    OfChunks,
    /// Also what it takes for itself, in the background as well: a deletion or an opening may add up to this.
    WithOverhead { change_bytes_max: u64 },
}

/// A chunk that names itself: the same for the same seed and length.
pub fn sample(seed: u64, len: usize) -> (ChunkHash, Bytes) {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    (ChunkHash::of(&bytes), bytes.into())
}

/// What a store must do while it is open. It must be empty; it is empty again at the end.
pub async fn conforms(store: &dyn ChunkStore, used_bytes: UsedBytes) {
    let suite = Suite { store, used_bytes };
    let stats = store.stats();
    assert_eq!(stats.chunks, 0, "the store must be empty at first");
    assert!(stats.capacity_bytes - stats.used_bytes >= NEEDED_BYTES, "too little room: {stats:?}");

    suite.every_length_is_stored_and_read().await;
    suite.what_is_deleted_is_gone_and_can_come_back().await;
    suite.of_equal_puts_at_once_one_stores().await;
    suite.puts_and_deletions_of_one_chunk_end_in_one_state().await;
    suite.many_at_once().await;
    suite.reads_given_up_do_no_harm().await;
    suite.puts_given_up_leave_all_or_nothing().await;
}

/// What a store must still know after it was closed. `open` opens the same store each time, empty at first; the one
/// before has been dropped then.
pub async fn survives_reopening<F>(mut open: F, used_bytes: UsedBytes)
where
    F: FnMut() -> BoxFuture<'static, Arc<dyn ChunkStore>>,
{
    let chunks: Vec<_> = LENGTHS.iter().map(|len| sample(70, *len)).collect();
    let store = open().await;
    assert_eq!(store.stats().chunks, 0, "the store must be empty at first");
    for (hash, bytes) in &chunks {
        stored(&*store, *hash, bytes).await;
    }
    // Of all lengths, with a neighbour in the same pack or frame that stays.
    let (gone, kept): (Vec<_>, Vec<_>) = chunks.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    join_all(gone.iter().map(|(_, (hash, _))| deleted(&*store, hash))).await;
    let (hash, bytes) = gone[1].1;
    stored(&*store, *hash, bytes).await;

    let store = reopen(store, &mut open, used_bytes).await;
    for (_, (hash, bytes)) in &kept {
        reads(&*store, hash, bytes).await;
        let put = ok("put", store.put(*hash, bytes.clone()).await);
        assert_eq!(put, PutOutcome::Present, "a chunk of {} bytes that is there is put again", bytes.len());
    }
    for (i, (hash, bytes)) in &gone {
        if *i == gone[1].0 {
            reads(&*store, hash, bytes).await;
            deleted(&*store, hash).await;
        }
        is_absent(&*store, hash).await;
        stored(&*store, *hash, bytes).await;
    }

    let store = reopen(store, &mut open, used_bytes).await;
    assert_eq!(store.stats().chunks, chunks.len() as u64, "chunks after the second opening");
    for (hash, bytes) in &chunks {
        reads(&*store, hash, bytes).await;
    }
    let suite = Suite { store: &*store, used_bytes };
    suite.delete_all(&chunks).await;

    let store = reopen(store, &mut open, used_bytes).await;
    assert_eq!(store.stats().chunks, 0, "chunks after all were deleted and the store was opened again");
    for (hash, _) in &chunks {
        is_absent(&*store, hash).await;
    }
}

/// Closes and opens; the figures must be the same.
async fn reopen(
    store: Arc<dyn ChunkStore>,
    open: &mut impl FnMut() -> BoxFuture<'static, Arc<dyn ChunkStore>>,
    used_bytes: UsedBytes,
) -> Arc<dyn ChunkStore> {
    let before = store.stats();
    drop(store);
    let store = open().await;
    let after = store.stats();
    assert_eq!(after.chunks, before.chunks, "chunks after the store was opened again");
    let is_kept = match used_bytes {
        UsedBytes::OfChunks => after.used_bytes == before.used_bytes,
        UsedBytes::WithOverhead { change_bytes_max } => {
            after.used_bytes <= before.used_bytes + change_bytes_max
        }
    };
    assert!(is_kept, "used bytes after the store was opened again: {after:?}, before: {before:?}");
    store
}

struct Suite<'a> {
    store: &'a dyn ChunkStore,
    used_bytes: UsedBytes,
}

impl Suite<'_> {
    async fn every_length_is_stored_and_read(&self) {
        let chunks: Vec<_> = LENGTHS.iter().map(|len| sample(1, *len)).collect();
        for (i, (hash, bytes)) in chunks.iter().enumerate() {
            is_absent(self.store, hash).await;
            let was_there = ok("delete", self.store.delete(hash).await);
            assert!(!was_there, "a chunk that was never put is deleted");
            stored(self.store, *hash, bytes).await;
            let again = ok("put", self.store.put(*hash, bytes.clone()).await);
            assert_eq!(again, PutOutcome::Present, "a chunk of {} bytes is put again", bytes.len());
            reads(self.store, hash, bytes).await;
            self.holds(&chunks[..=i]);
        }
        self.delete_all(&chunks).await;
    }

    async fn what_is_deleted_is_gone_and_can_come_back(&self) {
        let chunks: Vec<_> = LENGTHS.iter().map(|len| sample(2, *len)).collect();
        for (hash, bytes) in &chunks {
            for _ in 0..3 {
                stored(self.store, *hash, bytes).await;
                reads(self.store, hash, bytes).await;
                deleted(self.store, hash).await;
                let again = ok("delete", self.store.delete(hash).await);
                assert!(!again, "a chunk of {} bytes is deleted twice", bytes.len());
                is_absent(self.store, hash).await;
            }
        }
        self.holds(&[]);
    }

    async fn of_equal_puts_at_once_one_stores(&self) {
        let chunks: Vec<_> = LENGTHS.iter().map(|len| sample(3, *len)).collect();
        for (hash, bytes) in &chunks {
            let puts = join_all((0..20).map(|_| self.store.put(*hash, bytes.clone()))).await;
            let outcomes: Vec<_> = puts.into_iter().map(|put| ok("put", put)).collect();
            let stored = outcomes.iter().filter(|outcome| **outcome == PutOutcome::Stored).count();
            assert_eq!(stored, 1, "of 20 equal puts of {} bytes at once one stores", bytes.len());
        }
        self.holds(&chunks);
        self.delete_all(&chunks).await;
    }

    async fn puts_and_deletions_of_one_chunk_end_in_one_state(&self) {
        for len in [5000, 200_000] {
            let (hash, bytes) = sample(4, len);
            for _ in 0..10 {
                let changes = join_all((0..12).map(|i| {
                    let bytes = bytes.clone();
                    async move {
                        match i % 3 {
                            0 => drop(ok("delete", self.store.delete(&hash).await)),
                            1 => drop(ok("put", self.store.put(hash, bytes).await)),
                            _ => match self.store.get(&hash).await {
                                Ok(read) => assert_eq!(read, bytes, "a chunk that is put and deleted"),
                                Err(StoreError::NotFound) => {}
                                Err(error) => panic!("get: {error:?}"),
                            },
                        }
                    }
                }));
                changes.await;
                let is_there = ok("contains", self.store.contains(&hash).await);
                assert_eq!(self.store.get(&hash).await.is_ok(), is_there, "what is there can be read");
                assert_eq!(self.store.stats().chunks, u64::from(is_there), "a chunk counts once or not");
            }
            ok("delete", self.store.delete(&hash).await);
        }
        self.holds(&[]);
    }

    async fn many_at_once(&self) {
        let chunks: Vec<_> =
            (0..MANY).map(|i| sample(1000 + i as u64, i * 37 % 9000 + i % 7 * 20_000)).collect();
        let work = chunks.iter().map(|(hash, bytes)| async move {
            stored(self.store, *hash, bytes).await;
            reads(self.store, hash, bytes).await;
        });
        join_all(work).await;
        self.holds(&chunks);
        let reads = chunks.iter().map(|(hash, bytes)| reads(self.store, hash, bytes));
        join_all(reads).await;
        self.lists(&chunks).await;
        self.delete_all(&chunks).await;
        self.lists(&[]).await;
    }

    /// The pages of the list have these chunks and no others.
    async fn lists(&self, chunks: &[(ChunkHash, Bytes)]) {
        let (mut listed, mut next) = (Vec::new(), Some(0));
        while let Some(page) = next {
            let page = ok("list", self.store.list(page).await);
            listed.extend(page.hashes.iter().map(|hash| *hash.as_bytes()));
            next = page.next;
        }
        let mut stored: Vec<_> = chunks.iter().map(|(hash, _)| *hash.as_bytes()).collect();
        listed.sort_unstable();
        stored.sort_unstable();
        assert_eq!(listed, stored, "listed chunks and those that are stored");
    }

    async fn reads_given_up_do_no_harm(&self) {
        let chunks: Vec<_> = [4096, 1 << 20, 4 << 20].iter().map(|len| sample(5, *len)).collect();
        for (hash, bytes) in &chunks {
            stored(self.store, *hash, bytes).await;
        }
        for polls in 0..20 {
            for (hash, _) in &chunks {
                give_up(self.store.get(hash), polls).await;
            }
        }
        for (hash, bytes) in &chunks {
            reads(self.store, hash, bytes).await;
        }
        self.holds(&chunks);
        self.delete_all(&chunks).await;
    }

    async fn puts_given_up_leave_all_or_nothing(&self) {
        let chunks: Vec<_> = (0..60).map(|i| sample(6000 + i, [3000, 150_000][i as usize % 2])).collect();
        for (i, (hash, bytes)) in chunks.iter().enumerate() {
            give_up(self.store.put(*hash, bytes.clone()), i / 3).await;
        }
        for (hash, bytes) in &chunks {
            match self.store.get(hash).await {
                Ok(read) => assert_eq!(read, bytes, "a chunk whose put was given up"),
                Err(StoreError::NotFound) => {}
                Err(error) => panic!("get of a chunk whose put was given up: {error:?}"),
            }
            ok("put", self.store.put(*hash, bytes.clone()).await);
            reads(self.store, hash, bytes).await;
        }
        self.holds(&chunks);
        self.delete_all(&chunks).await;
    }

    /// The figures are those of these chunks.
    fn holds(&self, chunks: &[(ChunkHash, Bytes)]) {
        let stats = self.store.stats();
        let sum: u64 = chunks.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        assert_eq!(stats.chunks, chunks.len() as u64, "chunks");
        match self.used_bytes {
            UsedBytes::OfChunks => assert_eq!(stats.used_bytes, sum, "used bytes"),
            UsedBytes::WithOverhead { .. } => assert!(stats.used_bytes >= sum, "used bytes below {sum}"),
        }
        assert!(stats.capacity_bytes >= stats.used_bytes, "more used than there is: {stats:?}");
    }

    /// Deletes all that the store has, at once; their bytes come back.
    async fn delete_all(&self, chunks: &[(ChunkHash, Bytes)]) {
        let before = self.store.stats();
        join_all(chunks.iter().map(|(hash, _)| deleted(self.store, hash))).await;
        self.holds(&[]);
        let sum: u64 = chunks.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if let UsedBytes::WithOverhead { change_bytes_max } = self.used_bytes {
            let after = self.store.stats();
            assert!(
                after.used_bytes + sum <= before.used_bytes + change_bytes_max * chunks.len() as u64,
                "used bytes after {} deletions of {sum} bytes: {after:?}, before: {before:?}",
                chunks.len()
            );
        }
    }
}

async fn stored(store: &dyn ChunkStore, hash: ChunkHash, bytes: &Bytes) {
    let outcome = ok("put", store.put(hash, bytes.clone()).await);
    assert_eq!(outcome, PutOutcome::Stored, "a chunk of {} bytes that was not there is put", bytes.len());
}

async fn deleted(store: &dyn ChunkStore, hash: &ChunkHash) {
    let was_there = ok("delete", store.delete(hash).await);
    assert!(was_there, "chunk {hash:?}, which was there, is deleted");
}

async fn reads(store: &dyn ChunkStore, hash: &ChunkHash, bytes: &Bytes) {
    let read = ok("get", store.get(hash).await);
    // Not compared by `assert_eq`: nobody wants to see 4 MiB.
    assert!(read == *bytes, "{} bytes were put and {} others read", bytes.len(), read.len());
    assert!(ok("contains", store.contains(hash).await), "a chunk that can be read is there");
}

async fn is_absent(store: &dyn ChunkStore, hash: &ChunkHash) {
    assert!(!ok("contains", store.contains(hash).await), "chunk {hash:?} is not there");
    let read = store.get(hash).await;
    assert!(matches!(read, Err(StoreError::NotFound)), "a chunk that is not there is read as {read:?}");
}

/// Polls a future so many times, then drops it.
async fn give_up<T>(mut future: BoxFuture<'_, T>, polls: usize) {
    for _ in 0..polls {
        let poll = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if poll.is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn ok<T, E: Debug>(what: &str, result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error:?}"),
    }
}
