//! Where every chunk is, in memory: 60 to 110 bytes for each, rebuilt whenever the store is opened.
//!
//! It tells what the objects say, and nothing that they do not: a change is entered only when the object that says so
//! is durable. When several objects have copies of a chunk, the one of the highest sequence counts; a deletion ends
//! every copy of a lower sequence. What does not count any more is remembered until its object is gone, because
//! until then its deletion must not be forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::hash::ChunkHash;

use super::pack::{ENTRY_BYTES, Entry, HEADER_BYTES, PackId, TRAILER_BYTES};

/// Packs below this are worth joining, once there are many.
const SMALL_PACK_BYTES: u64 = 1 << 20;
const SMALL_PACKS_MAX: usize = 64;
/// What a pack has without its chunks and entries.
const FRAME_BYTES: u64 = (HEADER_BYTES + TRAILER_BYTES) as u64;

/// Where a chunk's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of the pack, or of the chunk's own object.
    pub sequence: u64,
    /// In the pack; 0 for an object of its own.
    pub offset: u32,
    pub len: u32,
}

impl Place {
    pub fn alone(sequence: u64, len: u32) -> Self {
        Self { sequence, offset: 0, len }
    }

    fn is_packed(&self) -> bool {
        self.offset != 0
    }
}

struct Pack {
    previous: u64,
    bytes: u64,
    /// Bytes of its chunks that count, and of all its entries that may.
    used_bytes: u64,
    live_chunks: u32,
}

impl Pack {
    /// Rewriting it frees more than it costs. Deletions never make a pack sparse: they may have to be carried along.
    fn is_sparse(&self) -> bool {
        self.used_bytes == 0 || self.used_bytes * 2 < self.bytes - FRAME_BYTES
    }
}

/// An object that is to be deleted: nothing in it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Garbage {
    Chunk(ChunkHash, u64),
    Pack(PackId),
}

#[derive(Default)]
pub struct State {
    live: HashMap<ChunkHash, Place>,
    packs: BTreeMap<u64, Pack>,
    /// Packs that are worth rewriting.
    sparse: BTreeSet<u64>,
    small: BTreeSet<u64>,
    /// Packs of this process that say what before them is void.
    fences: HashSet<u64>,
    /// Copies in packs that do not count any more.
    dead: HashMap<ChunkHash, u32>,
    garbage: BTreeSet<Garbage>,
    /// Chunks whose deletion has been begun, and either is not written yet or may have failed: they are there, and
    /// perhaps not for long.
    doubtful: HashSet<ChunkHash>,
    used_bytes: u64,
    /// Of chunks that are being written.
    reserved_bytes: u64,
}

#[derive(Default)]
pub struct Index(Mutex<State>);

impl Index {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, hash: &ChunkHash) -> Option<Place> {
        self.lock().live.get(hash).copied()
    }
}

impl State {
    pub fn get(&self, hash: &ChunkHash) -> Option<Place> {
        self.live.get(hash).copied()
    }

    pub fn is_live(&self, hash: &ChunkHash) -> bool {
        self.live.contains_key(hash)
    }

    pub fn is_doubtful(&self, hash: &ChunkHash) -> bool {
        self.doubtful.contains(hash)
    }

    /// There, and to stay.
    pub fn is_certain(&self, hash: &ChunkHash) -> bool {
        self.is_live(hash) && !self.is_doubtful(hash)
    }

    pub fn doubt(&mut self, hash: ChunkHash) {
        self.doubtful.insert(hash);
    }

    /// A pack has become durable: all deletions begun before it have come true or never will.
    pub fn settle(&mut self) {
        self.doubtful = HashSet::new();
    }

    /// Chunks that are there and wanted.
    pub fn hashes(&self, is_wanted: impl Fn(&ChunkHash) -> bool) -> Vec<ChunkHash> {
        self.live.keys().filter(|hash| is_wanted(hash)).copied().collect()
    }

    pub fn chunks(&self) -> u64 {
        self.live.len() as u64
    }

    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Takes room for a chunk that is to be written; says whether there was enough.
    pub fn reserve(&mut self, len: u64, capacity_bytes: u64) -> bool {
        let fits = self.used_bytes + self.reserved_bytes + len <= capacity_bytes;
        if fits {
            self.reserved_bytes += len;
        }
        fits
    }

    pub fn unreserve(&mut self, len: u64) {
        self.reserved_bytes -= len;
    }

    /// A large chunk's own object is durable.
    pub fn add_alone(&mut self, hash: ChunkHash, sequence: u64, len: u32) {
        self.add_copy(hash, Place::alone(sequence, len));
    }

    /// A pack is durable. Packs are added in the order of their sequences.
    pub fn add_pack(&mut self, id: PackId, bytes: u64, entries: &[Entry]) {
        let used_bytes = (entries.len() * ENTRY_BYTES) as u64;
        self.packs.insert(id.sequence, Pack { previous: id.previous, bytes, used_bytes, live_chunks: 0 });
        // Deletions end what came before the pack, not what is in it.
        for deletion in entries.iter().filter(|e| e.is_deletion()) {
            if self.live.get(&deletion.hash).is_some_and(|place| place.sequence < id.sequence)
                && let Some(place) = self.live.remove(&deletion.hash)
            {
                self.used_bytes -= u64::from(place.len);
                self.end_copy(deletion.hash, place);
            }
        }
        for chunk in entries.iter().filter(|e| !e.is_deletion()) {
            let place = Place { sequence: id.sequence, offset: chunk.offset, len: chunk.len };
            self.add_copy(chunk.hash, place);
        }
        self.judge(id.sequence);
    }

    fn add_copy(&mut self, hash: ChunkHash, place: Place) {
        if let Some(pack) = self.packs.get_mut(&place.sequence).filter(|_| place.is_packed()) {
            pack.used_bytes += u64::from(place.len);
            pack.live_chunks += 1;
        }
        match self.live.get(&hash).copied() {
            Some(newer) if newer.sequence > place.sequence => self.end_copy(hash, place),
            Some(older) => {
                self.live.insert(hash, place);
                self.end_copy(hash, older);
            }
            None => {
                self.live.insert(hash, place);
                self.used_bytes += u64::from(place.len);
            }
        }
    }

    fn end_copy(&mut self, hash: ChunkHash, place: Place) {
        if !place.is_packed() {
            self.garbage.insert(Garbage::Chunk(hash, place.sequence));
            return;
        }
        *self.dead.entry(hash).or_default() += 1;
        if let Some(pack) = self.packs.get_mut(&place.sequence) {
            pack.used_bytes -= u64::from(place.len) + ENTRY_BYTES as u64;
            pack.live_chunks -= 1;
        }
        self.judge(place.sequence);
    }

    fn judge(&mut self, sequence: u64) {
        let Some(pack) = self.packs.get(&sequence) else { return };
        let put = |set: &mut BTreeSet<u64>, is_in: bool| {
            if is_in { set.insert(sequence) } else { set.remove(&sequence) }
        };
        put(&mut self.sparse, pack.is_sparse());
        put(&mut self.small, pack.bytes < SMALL_PACK_BYTES);
    }

    /// Packs to rewrite into one of at most about `bytes_max`, in the order of their sequences.
    ///
    /// Left alone are the last pack, which keeps the order from starting anew, and this process's fences: what they
    /// make void may still arrive.
    pub fn worth_rewriting(&self, bytes_max: u64, except: &HashSet<u64>) -> Vec<PackId> {
        let none = BTreeSet::new();
        let small = if self.small.len() > SMALL_PACKS_MAX { &self.small } else { &none };
        let last = self.packs.last_key_value().map_or(0, |(sequence, _)| *sequence);
        let (mut chosen, mut sum) = (Vec::new(), 0);
        for sequence in self.sparse.union(small).filter(|s| **s != last && !except.contains(s)) {
            let Some(pack) = self.packs.get(sequence).filter(|_| !self.fences.contains(sequence)) else {
                continue;
            };
            if sum + pack.used_bytes > bytes_max && !chosen.is_empty() {
                if sum > bytes_max / 2 {
                    break;
                }
                continue;
            }
            sum += pack.used_bytes;
            chosen.push(PackId { sequence: *sequence, previous: pack.previous });
        }
        chosen
    }

    /// The pack was written after a gap, and makes void what may yet appear in it.
    pub fn add_fence(&mut self, sequence: u64) {
        self.fences.insert(sequence);
    }

    pub fn pack_bytes(&self, sequence: u64) -> Option<u64> {
        self.packs.get(&sequence).map(|pack| pack.bytes)
    }

    pub fn pack_id(&self, sequence: u64) -> Option<PackId> {
        self.packs.get(&sequence).map(|pack| PackId { sequence, previous: pack.previous })
    }

    /// Whether nothing in the pack counts, deletions aside.
    pub fn is_without_chunks(&self, sequence: u64) -> bool {
        self.packs.get(&sequence).is_none_or(|pack| pack.live_chunks == 0)
    }

    /// Whether a deletion still has copies to end once the objects that hold `going` of them are gone.
    pub fn needs_deletion(&self, hash: &ChunkHash, going: u32) -> bool {
        if self.is_live(hash) {
            return false;
        }
        self.dead.get(hash).copied().unwrap_or(0) > going || self.has_garbage(hash)
    }

    /// Whether there are, or may be, objects of the chunk that do not count.
    pub fn has_garbage(&self, hash: &ChunkHash) -> bool {
        self.garbage.range(Garbage::Chunk(*hash, 0)..=Garbage::Chunk(*hash, u64::MAX)).next().is_some()
    }

    /// The pack's object is gone.
    pub fn forget_pack(&mut self, sequence: u64, entries: &[Entry]) {
        self.packs.remove(&sequence);
        self.sparse.remove(&sequence);
        self.small.remove(&sequence);
        for chunk in entries.iter().filter(|e| !e.is_deletion()) {
            if let Some(copies) = self.dead.get_mut(&chunk.hash) {
                *copies -= 1;
                if *copies == 0 {
                    self.dead.remove(&chunk.hash);
                }
            }
        }
    }

    pub fn add_garbage(&mut self, garbage: Garbage) {
        self.garbage.insert(garbage);
    }

    pub fn garbage(&self, max: usize) -> Vec<Garbage> {
        self.garbage.iter().copied().take(max).collect()
    }

    pub fn forget_garbage(&mut self, garbage: &Garbage) {
        self.garbage.remove(garbage);
    }
}
