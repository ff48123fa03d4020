//! Where each chunk is, in memory: 24 bytes a chunk and the slack of the hash tables, 27 to 55 bytes in all.
//!
//! A key is half of the chunk's hash. Two chunks that share that half are not to be expected (2^64 chunks would
//! have to be tried); the whole hash is compared against the bytes at every read.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use common::hash::ChunkHash;

use crate::io::BLOCK;

/// Tables, each behind its own lock: a table that grows stops only its own chunks.
const SHARDS: usize = 64;
const LEN_BITS: u32 = 24;

type Key = [u8; 16];

/// Start and length of a chunk on the device, packed: 40 bits of block number (4 PiB), 24 bits of length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location(u64);

impl Location {
    /// `offset` is a multiple of [`BLOCK`]; `len` is at most [`super::CHUNK_BYTES_MAX`].
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
    shards: Box<[RwLock<HashMap<Key, Location>>]>,
}

impl ChunkIndex {
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    pub fn get(&self, hash: &ChunkHash) -> Option<Location> {
        let (shard, key) = self.place(hash);
        shard.read().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }

    /// Returns what was there.
    pub fn insert(&self, hash: &ChunkHash, location: Location) -> Option<Location> {
        let (shard, key) = self.place(hash);
        shard.write().unwrap_or_else(PoisonError::into_inner).insert(key, location)
    }

    pub fn remove(&self, hash: &ChunkHash) -> Option<Location> {
        let (shard, key) = self.place(hash);
        shard.write().unwrap_or_else(PoisonError::into_inner).remove(&key)
    }

    pub fn len(&self) -> u64 {
        self.shards.iter().map(|s| s.read().unwrap_or_else(PoisonError::into_inner).len() as u64).sum()
    }

    fn place(&self, hash: &ChunkHash) -> (&RwLock<HashMap<Key, Location>>, Key) {
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_bytes()[..16]);
        (&self.shards[usize::from(hash.as_bytes()[31]) % SHARDS], key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_holds_the_far_end_of_a_large_device() {
        let location = Location::new((1 << 52) - 4096, super::super::CHUNK_BYTES_MAX as u32);
        assert_eq!((location.offset(), location.len()), ((1 << 52) - 4096, super::super::CHUNK_BYTES_MAX));
        assert_eq!(size_of::<(Key, Location)>(), 24);
    }
}
