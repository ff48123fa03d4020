//! The segments in use: where each is, how full it is, and how many of its chunks' bytes are still needed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::LogPosition;
use super::format::{SEGMENTS_START, Superblock};
use super::index::Location;
use crate::io::whole_blocks;

/// A segment in use. Its fields describe what is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub sequence: u64,
    pub slot: u32,
    /// Sequence of its first frame.
    pub first_frame: u64,
    /// Bytes that frames fill, from the start of the segment, its header included.
    pub end: u64,
    /// Bytes of the blocks that its chunks take, needed or not.
    pub chunk_bytes: u64,
    /// Bytes of its rows.
    pub rows_bytes: u64,
}

/// All of them. The appender alone adds and grows segments, the compactor alone takes them away.
pub(super) struct Segments {
    segment_bytes: u64,
    by_sequence: Mutex<BTreeMap<u64, Segment>>,
    slots: Box<[Slot]>,
    /// Sums over the segments in use.
    end_bytes: AtomicU64,
    chunk_bytes: AtomicU64,
    live_bytes: AtomicU64,
    floor: AtomicU64,
}

#[derive(Default)]
struct Slot {
    /// Sequence of the segment that is in it; 0 while it is free.
    sequence: AtomicU64,
    /// Bytes of the blocks of chunks that the index finds here.
    live_bytes: AtomicU64,
}

impl Segments {
    pub fn new(superblock: &Superblock) -> Self {
        Self {
            segment_bytes: superblock.segment_bytes,
            by_sequence: Mutex::default(),
            slots: (0..superblock.slots).map(|_| Slot::default()).collect(),
            end_bytes: AtomicU64::new(0),
            chunk_bytes: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            floor: AtomicU64::new(0),
        }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<u64, Segment>> {
        self.by_sequence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the order of their sequences.
    pub fn all(&self) -> Vec<Segment> {
        self.table().values().copied().collect()
    }

    pub fn contains(&self, sequence: u64) -> bool {
        self.table().contains_key(&sequence)
    }

    pub fn add(&self, segment: Segment) {
        self.slots[segment.slot as usize].sequence.store(segment.sequence, Ordering::Release);
        self.end_bytes.fetch_add(segment.end, Ordering::Relaxed);
        self.chunk_bytes.fetch_add(segment.chunk_bytes, Ordering::Relaxed);
        self.table().insert(segment.sequence, segment);
    }

    /// A frame has become durable in a segment.
    pub fn grow(&self, sequence: u64, frame_bytes: u64, chunk_bytes: u64, rows_bytes: u64) {
        if let Some(segment) = self.table().get_mut(&sequence) {
            segment.end += frame_bytes;
            segment.chunk_bytes += chunk_bytes;
            segment.rows_bytes += rows_bytes;
        }
        self.end_bytes.fetch_add(frame_bytes, Ordering::Relaxed);
        self.chunk_bytes.fetch_add(chunk_bytes, Ordering::Relaxed);
    }

    /// Takes a segment away that holds nothing needed any more.
    pub fn remove(&self, sequence: u64) {
        let Some(segment) = self.table().remove(&sequence) else { return };
        self.slots[segment.slot as usize].sequence.store(0, Ordering::Release);
        self.end_bytes.fetch_sub(segment.end, Ordering::Relaxed);
        self.chunk_bytes.fetch_sub(segment.chunk_bytes, Ordering::Relaxed);
    }

    fn slot_of(&self, location: Location) -> Option<&Slot> {
        let slot = (location.offset().checked_sub(SEGMENTS_START)?) / self.segment_bytes;
        self.slots.get(usize::try_from(slot).ok()?)
    }

    /// Sequence of the segment that a chunk lies in.
    pub fn sequence_at(&self, location: Location) -> u64 {
        self.slot_of(location).map_or(0, |slot| slot.sequence.load(Ordering::Acquire))
    }

    /// The index finds a chunk here from now on, in place of where it was `before`.
    pub fn moved(&self, before: Option<Location>, after: Option<Location>) {
        let blocks = |location: &Location| whole_blocks(location.len() as u64);
        if let Some(after) = after {
            self.live_bytes.fetch_add(blocks(&after), Ordering::Relaxed);
            if let Some(slot) = self.slot_of(after) {
                slot.live_bytes.fetch_add(blocks(&after), Ordering::AcqRel);
            }
        }
        if let Some(before) = before {
            self.live_bytes.fetch_sub(blocks(&before), Ordering::Relaxed);
            if let Some(slot) = self.slot_of(before) {
                slot.live_bytes.fetch_sub(blocks(&before), Ordering::AcqRel);
            }
        }
    }

    /// Bytes of the blocks of chunks that the index finds in a slot.
    pub fn live_bytes(&self, slot: u32) -> u64 {
        self.slots.get(slot as usize).map_or(0, |slot| slot.live_bytes.load(Ordering::Acquire))
    }

    /// Bytes that frames fill, without those of chunks that are not needed any more.
    pub fn used_bytes(&self) -> u64 {
        let (chunks, live) =
            (self.chunk_bytes.load(Ordering::Relaxed), self.live_bytes.load(Ordering::Relaxed));
        let dead = chunks.saturating_sub(live);
        self.end_bytes.load(Ordering::Relaxed).saturating_sub(dead)
    }

    /// Rows up to this position are not needed.
    pub fn floor(&self) -> LogPosition {
        LogPosition(self.floor.load(Ordering::Acquire))
    }

    /// Floors only rise.
    pub fn raise_floor(&self, floor: LogPosition) {
        self.floor.fetch_max(floor.0, Ordering::AcqRel);
    }

    /// Whether rows of the segment may be needed: for a replay, or to make the index anew.
    pub fn needs_rows_of(&self, segment: &Segment) -> bool {
        segment.rows_bytes > 0 && segment.sequence >= self.floor().0 / self.segment_bytes
    }

    /// Bytes of rows that are needed, or were appended in a segment where some are.
    pub fn needed_rows_bytes(&self) -> u64 {
        self.all().iter().filter(|segment| self.needs_rows_of(segment)).map(|s| s.rows_bytes).sum()
    }
}
