//! Freeing one segment: what is needed of it is appended once more, then its slot is marked as free.
//!
//! A compaction is a row of steps, each a batch of work for the appender; the next may be taken once the answers of
//! the one before are there. It may end after any of them: what was moved is simply there twice until the next try.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use common::hash::ChunkHash;
use tokio::sync::oneshot;

use super::batch::Work;
use super::contents::contents_of;
use super::format::{Entry, SlotHeader};
use super::index::Location;
use super::recovery::OpenLogError;
use super::segments::Segment;
use super::{LogError, LogPosition, Shared};
use crate::io::{AlignedBuf, BLOCK, whole_blocks};

/// Bytes of the segment that one step reads, unless a single chunk is longer.
const STEP_BYTES: u64 = 4 << 20;
/// Tombstones that one step copies.
const STEP_TOMBSTONES: usize = 4096;
/// Free slots whose space is kept: appends to space that was written before cost half.
const WRITTEN_SLOTS_KEPT: usize = 8;

#[derive(Debug, thiserror::Error)]
pub(super) enum CompactionError {
    #[error("the segment cannot be read")]
    Read(#[source] OpenLogError),
    #[error("the device cannot be read or written")]
    Io(#[from] io::Error),
    #[error("the log does not take what is to be kept")]
    Log(#[from] LogError),
    #[error("{bytes} bytes of the segment are still in use")]
    InUse { bytes: u64 },
}

/// Work for the appender, and where its answers come.
#[derive(Default)]
pub(super) struct Step {
    pub work: Vec<Work>,
    pub answers: Vec<oneshot::Receiver<Result<(), LogError>>>,
    /// Bytes read and to be written.
    pub bytes: u64,
}

impl Step {
    fn add(&mut self, work: impl FnOnce(oneshot::Sender<Result<(), LogError>>) -> Work) {
        let (reply, answer) = oneshot::channel();
        self.work.push(work(reply));
        self.answers.push(answer);
    }
}

pub(super) struct Compaction<'a> {
    shared: &'a Shared,
    segment: Segment,
    /// Entries still to be looked at, in the order of the device.
    entries: VecDeque<Entry>,
}

impl<'a> Compaction<'a> {
    /// Reads what the segment holds.
    pub fn begin(shared: &'a Shared, segment: Segment) -> Result<Self, CompactionError> {
        let footer = contents_of(&*shared.io, &shared.superblock, &segment).map_err(CompactionError::Read)?;
        let mut entries = VecDeque::from(footer.entries);
        if footer.floor > 0 {
            entries.push_front(Entry::Floor { position: footer.floor });
        }
        Ok(Self { shared, segment, entries })
    }

    fn start(&self) -> u64 {
        self.shared.superblock.segment_offset(self.segment.slot)
    }

    /// The next work; without any, all is done.
    pub fn step(&mut self) -> Result<Step, CompactionError> {
        let mut step = Step::default();
        let mut chunks: Vec<(ChunkHash, Location)> = Vec::new();
        while let Some(entry) = self.entries.front() {
            match *entry {
                Entry::Chunk { at, len, hash } => {
                    let location = Location::new(self.start() + u64::from(at), len);
                    if self.shared.index.get(&hash) == Some(location) {
                        let first = chunks.first().map_or(location.offset(), |(_, l)| l.offset());
                        let end = location.offset() + whole_blocks(u64::from(len));
                        if !chunks.is_empty() && end - first > STEP_BYTES {
                            break;
                        }
                        chunks.push((hash, location));
                    }
                }
                Entry::Tombstone { of, hash } => {
                    if step.work.len() == STEP_TOMBSTONES {
                        break;
                    }
                    // One that speaks of this very segment has done its duty.
                    if of != self.segment.sequence && self.shared.segments.contains(of) {
                        step.add(|reply| Work::Keep { hash, of, reply });
                    }
                }
                Entry::Floor { position } => {
                    let position = LogPosition(position);
                    if position == self.shared.segments.floor() {
                        step.add(|reply| Work::Floor { position, reply });
                    }
                }
                Entry::Rows { .. } => {}
            }
            self.entries.pop_front();
        }
        self.take_chunks(&mut step, &chunks)?;
        Ok(step)
    }

    /// Reads chunks that lie close together in one go.
    fn take_chunks(&self, step: &mut Step, chunks: &[(ChunkHash, Location)]) -> Result<(), CompactionError> {
        let (Some((_, first)), Some((_, last))) = (chunks.first(), chunks.last()) else { return Ok(()) };
        let start = first.offset();
        let len = last.offset() + whole_blocks(last.len() as u64) - start;
        let window = if len == 0 {
            Bytes::new()
        } else {
            self.shared.io.read_at(AlignedBuf::heap(len as usize), start).wait()?.into_bytes()
        };
        step.bytes += 2 * len;
        for (hash, location) in chunks {
            let at = (location.offset() - start) as usize;
            let bytes = window.slice(at..at + location.len());
            let (hash, from) = (*hash, *location);
            match self.verified(hash, from, bytes)? {
                Some(bytes) => step.add(|reply| Work::Move { hash, bytes, from, reply }),
                None => step.add(|reply| Work::Drop { hash, reply }),
            }
        }
        Ok(())
    }

    /// The bytes of a chunk, read once more if they are not its own; `None` when it is damaged.
    fn verified(
        &self,
        hash: ChunkHash,
        location: Location,
        bytes: Bytes,
    ) -> Result<Option<Bytes>, CompactionError> {
        if ChunkHash::of(&bytes) == hash {
            return Ok(Some(bytes));
        }
        let again = AlignedBuf::heap(location.len());
        let again = self.shared.io.read_at(again, location.offset()).wait()?.into_bytes();
        let again = again.slice(..location.len());
        if ChunkHash::of(&again) == hash {
            return Ok(Some(again));
        }
        tracing::error!(%hash, at = location.offset(), "a chunk is damaged on the device; it is taken out and waits for a good copy");
        self.shared.metrics.damaged_chunks.increment(1);
        Ok(None)
    }

    /// Marks the slot as free, durably, and gives it to those that are.
    ///
    /// # Errors
    /// `InUse` when a chunk is still found in the segment; nothing is freed then.
    pub fn finish(self) -> Result<(), CompactionError> {
        let (shared, slot) = (self.shared, self.segment.slot);
        let bytes = shared.segments.live_bytes(slot);
        if bytes > 0 {
            return Err(CompactionError::InUse { bytes });
        }
        let mut block = AlignedBuf::heap(BLOCK);
        let header = SlotHeader::Freed { sequence: self.segment.sequence };
        header.encode(&mut block, self.start(), &shared.superblock.key);
        shared.io.write_durable_at(block, self.start()).wait()?;
        shared.segments.remove(self.segment.sequence);
        let keeps_space = shared.free_slots.written_len() < WRITTEN_SLOTS_KEPT;
        if !keeps_space {
            let len = shared.superblock.segment_bytes - BLOCK as u64;
            if let Err(error) = shared.io.discard(self.start() + BLOCK as u64, len) {
                tracing::warn!(%error, "the space of a freed segment is not given back to the device");
            }
        }
        shared.free_slots.give(slot, keeps_space);
        Ok(())
    }
}
