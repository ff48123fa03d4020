//! Where each chunk is, in memory: 24 bytes a chunk, 28 to 36 with the slack of its table.
//!
//! A key is half of the chunk's hash. Two chunks that share that half are not to be expected (2^64 chunks would
//! have to be tried); the whole hash is compared against the bytes at every read.
//!
//! The tables are open-addressed and grow by a quarter instead of doubling, so that the slack stays small; each
//! shard grows by itself, so that growing copies a small part of the whole.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use common::hash::ChunkHash;

use crate::io::BLOCK;

/// Tables, each behind its own lock: a table that grows stops only its own chunks.
const SHARDS: usize = 256;
const LEN_BITS: u32 = 24;

type Key = [u8; 16];

/// Start and length of a chunk on the device, packed: 40 bits of block number (4 PiB), 24 bits of length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location(u64);

impl Location {
    /// `offset` is a multiple of [`BLOCK`] and not 0; `len` is at most [`super::CHUNK_BYTES_MAX`].
    pub fn new(offset: u64, len: u32) -> Self {
        Self((offset / BLOCK as u64) << LEN_BITS | u64::from(len))
    }

    pub fn offset(self) -> u64 {
        (self.0 >> LEN_BITS) * BLOCK as u64
    }

    pub fn len(self) -> usize {
        (self.0 & ((1 << LEN_BITS) - 1)) as usize
    }
}

pub(crate) struct ChunkIndex {
    shards: Box<[RwLock<Table>]>,
    len: AtomicU64,
}

impl ChunkIndex {
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect(), len: AtomicU64::new(0) }
    }

    pub fn get(&self, hash: &ChunkHash) -> Option<Location> {
        let (shard, key) = self.place(hash);
        shard.read().unwrap_or_else(PoisonError::into_inner).get(&key)
    }

    /// Returns what was there.
    pub fn insert(&self, hash: &ChunkHash, location: Location) -> Option<Location> {
        let (shard, key) = self.place(hash);
        let before = shard.write().unwrap_or_else(PoisonError::into_inner).insert(key, location);
        if before.is_none() {
            self.len.fetch_add(1, Ordering::Relaxed);
        }
        before
    }

    pub fn remove(&self, hash: &ChunkHash) -> Option<Location> {
        let (shard, key) = self.place(hash);
        let removed = shard.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
        if removed.is_some() {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }

    /// Chunks in all.
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Bytes of the tables.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> u64 {
        let bytes = |table: &RwLock<Table>| {
            table.read().unwrap_or_else(PoisonError::into_inner).slots.len() * size_of::<Slot>()
        };
        self.shards.iter().map(bytes).sum::<usize>() as u64
    }

    fn place(&self, hash: &ChunkHash) -> (&RwLock<Table>, Key) {
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_bytes()[..16]);
        (&self.shards[usize::from(hash.as_bytes()[31]) % SHARDS], key)
    }
}

/// An entry; one whose location is 0 is empty, since nothing lies at the start of a device but its superblock.
#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    location: u64,
}

const EMPTY: Slot = Slot { key: [0; 16], location: 0 };

/// Linear probing over slots in the order of their keys' hashes. A removal moves the rest of its run back, so
/// there are no grave marks.
#[derive(Default)]
struct Table {
    slots: Box<[Slot]>,
    len: usize,
}

/// Fullest load, in eighths: 24 bytes / (7/8) = 27.4, and behind a growth by a quarter 34.3.
const LOAD_MAX_EIGHTHS: usize = 7;
const CAPACITY_MIN: usize = 8;

impl Table {
    /// Where a key would be if nothing were in its way. Keys are parts of hashes: any bits of them are random.
    fn home(key: &Key, capacity: usize) -> usize {
        let mut head = [0; 8];
        head.copy_from_slice(&key[..8]);
        ((u128::from(u64::from_le_bytes(head)) * capacity as u128) >> 64) as usize
    }

    /// The slot of the key, or the empty one where it would go.
    fn find(&self, key: &Key) -> usize {
        let mut at = Self::home(key, self.slots.len());
        while self.slots[at].location != 0 && self.slots[at].key != *key {
            at = self.after(at);
        }
        at
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    fn get(&self, key: &Key) -> Option<Location> {
        if self.len == 0 {
            return None;
        }
        Some(self.slots[self.find(key)].location).filter(|location| *location != 0).map(Location)
    }

    fn insert(&mut self, key: Key, location: Location) -> Option<Location> {
        if (self.len + 1) * 8 > self.slots.len() * LOAD_MAX_EIGHTHS {
            self.grow();
        }
        let at = self.find(&key);
        let before = std::mem::replace(&mut self.slots[at], Slot { key, location: location.0 }).location;
        if before != 0 {
            return Some(Location(before));
        }
        self.len += 1;
        None
    }

    fn remove(&mut self, key: &Key) -> Option<Location> {
        if self.len == 0 {
            return None;
        }
        let mut hole = self.find(key);
        let removed = self.slots[hole].location;
        if removed == 0 {
            return None;
        }
        let capacity = self.slots.len();
        let mut at = self.after(hole);
        while self.slots[at].location != 0 {
            let home = Self::home(&self.slots[at].key, capacity);
            // An entry may move into the hole unless that would put it before its home.
            let way_from_home = (at + capacity - home) % capacity;
            let way_from_hole = (at + capacity - hole) % capacity;
            if way_from_home >= way_from_hole {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.slots[hole] = EMPTY;
        self.len -= 1;
        Some(Location(removed))
    }

    fn grow(&mut self) {
        let capacity = (self.slots.len() + self.slots.len() / 4).max(CAPACITY_MIN);
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; capacity].into());
        for slot in old.into_iter().filter(|slot| slot.location != 0) {
            let at = self.find(&slot.key);
            self.slots[at] = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::{Strategy, any};

    use super::*;

    fn hash(n: u64) -> ChunkHash {
        ChunkHash::of(&n.to_le_bytes())
    }

    #[test]
    fn a_location_holds_the_far_end_of_a_large_device() {
        let location = Location::new((1 << 52) - 4096, super::super::CHUNK_BYTES_MAX as u32);
        assert_eq!((location.offset(), location.len()), ((1 << 52) - 4096, super::super::CHUNK_BYTES_MAX));
        assert_eq!(size_of::<Slot>(), 24);
    }

    #[test]
    fn a_chunk_takes_at_most_40_bytes_however_many_there_are() {
        let index = ChunkIndex::new();
        for n in 0..400_000u64 {
            index.insert(&hash(n), Location::new(4096 * (n + 1), 1));
            if n > 20_000 && n.is_multiple_of(5_000) {
                let bytes = index.memory_bytes() as f64 / index.len() as f64;
                assert!(bytes <= 40.0, "{bytes} bytes a chunk at {n}");
            }
        }
        assert_eq!(index.len(), 400_000);
    }

    proptest::proptest! {
        #[test]
        fn a_table_does_what_a_map_does(
            ops in proptest::collection::vec((any::<bool>(), 0..60u8).prop_map(|(put, key)| (put, key)), 0..400)
        ) {
            let (mut table, mut model) = (Table::default(), HashMap::new());
            for (n, (put, name)) in ops.into_iter().enumerate() {
                // Few homes, so that runs collide, wrap around and are closed up.
                let mut key = [name; 16];
                key[..8].copy_from_slice(&(u64::from(name % 5) << 61 | u64::from(name)).to_le_bytes());
                if put {
                    let location = Location::new(4096 * (n as u64 + 1), 7);
                    assert_eq!(table.insert(key, location), model.insert(key, location));
                } else {
                    assert_eq!(table.remove(&key), model.remove(&key));
                }
                assert_eq!(table.len, model.len());
                for (key, location) in &model {
                    assert_eq!(table.get(key), Some(*location));
                }
            }
        }
    }
}
