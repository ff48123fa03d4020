//! Opening a log: its segments, the index of its chunks, and where it ends.

use std::collections::HashMap;
use std::io;

use common::hash::ChunkHash;

use super::LogPosition;
use super::appender::Head;
use super::contents::{Contents, read_segment};
use super::format::{Entry, FORMAT_VERSION, FrameHeader, SlotHeader, Superblock};
use super::free_slots::FreeSlots;
use super::index::{ChunkIndex, Location};
use super::segments::{Segment, Segments};
use crate::io::{AlignedBuf, BLOCK, BlockIo, Pending, whole_blocks};

/// Segments that are read at once.
const READS: usize = 8;
/// Slot headers that are read at once.
const HEADER_READS: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum OpenLogError {
    #[error("{what} cannot be read or written")]
    Io { what: &'static str, source: io::Error },
    #[error(
        "the device holds something that is not a Dozo log; choose another, or pass --force if nothing on it is needed"
    )]
    NotALog,
    #[error(
        "the log has format {found}, this version of dozo reads formats up to {FORMAT_VERSION}; update dozo"
    )]
    NewerFormat { found: u32 },
    #[error("the device has {found_bytes} bytes; {needed_bytes} are needed")]
    TooSmall { found_bytes: u64, needed_bytes: u64 },
    #[error("the log is damaged: {what} at byte {at} of the device")]
    Damaged { what: &'static str, at: u64 },
}

pub(super) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> OpenLogError {
    move |source| OpenLogError::Io { what, source }
}

pub(super) fn read(io: &dyn BlockIo, offset: u64, len: usize) -> io::Result<AlignedBuf> {
    io.read_at(AlignedBuf::heap(len), offset).wait()
}

pub(super) fn write(io: &dyn BlockIo, block: AlignedBuf, offset: u64) -> io::Result<()> {
    io.write_durable_at(block, offset).wait().map(drop)
}

/// Shows the first two blocks of each slot, a few slots at a time: the slot's header, and where its first frame begins.
pub(super) fn for_each_slot(
    io: &dyn BlockIo,
    superblock: &Superblock,
    mut visit: impl FnMut(u32, &[u8], &[u8]) -> Result<(), OpenLogError>,
) -> Result<(), OpenLogError> {
    let slots: Vec<u32> = (0..superblock.slots as u32).collect();
    for group in slots.chunks(HEADER_READS) {
        let read = |slot: &u32| io.read_at(AlignedBuf::heap(2 * BLOCK), superblock.segment_offset(*slot));
        let reads: Vec<Pending> = group.iter().map(read).collect();
        for (slot, read) in group.iter().zip(reads) {
            let blocks = read.wait().map_err(failed("a slot"))?;
            visit(*slot, &blocks[..BLOCK], &blocks[BLOCK..])?;
        }
    }
    Ok(())
}

pub(super) struct Recovered {
    pub index: ChunkIndex,
    pub segments: Segments,
    pub free_slots: FreeSlots,
    pub tail: Tail,
}

/// Where the log goes on.
pub(super) struct Tail {
    pub head: Option<Head>,
    pub next_segment: u64,
    pub next_frame: u64,
    /// Copies, by chunk and segment, that a compaction which did not come to its end left behind. Each needs a
    /// tombstone: otherwise it could come back when the other copy is gone.
    pub surplus_copies: Vec<(ChunkHash, u64)>,
}

pub(super) fn recover(io: &dyn BlockIo, superblock: &Superblock) -> Result<Recovered, OpenLogError> {
    let Found { places, free_slots, newest } = find_segments(io, superblock)?;
    let mut building = Building {
        superblock,
        index: ChunkIndex::new(),
        segments: Segments::new(superblock),
        surplus: HashMap::new(),
    };
    let (mut head, mut next_frame) = (None, 1);
    let mut last: Option<(Place, u64)> = None;
    for group in places.chunks(READS) {
        let read: Vec<Result<Contents, OpenLogError>> = std::thread::scope(|scope| {
            let is_last = |place: &Place| place.sequence == places[places.len() - 1].sequence;
            let reads: Vec<_> = group
                .iter()
                .map(|place| scope.spawn(move || read_segment(io, superblock, *place, is_last(place))))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            reads.into_iter().map(join).collect()
        });
        for (place, contents) in group.iter().zip(read) {
            let contents = contents?;
            // Nothing was appended between a segment and the next.
            if let Some((before, next_frame)) = last
                && before.sequence + 1 == place.sequence
                && next_frame != place.first_frame
            {
                let at = superblock.segment_offset(before.slot);
                return Err(OpenLogError::Damaged { what: "the end of the segment", at });
            }
            building.add(*place, &contents);
            next_frame = contents.footer.next_frame;
            last = Some((*place, next_frame));
            let Contents { footer, is_sealed } = contents;
            head = Some(Head {
                sequence: place.sequence,
                slot: place.slot,
                end: footer.end,
                entries: footer.entries,
                rows_bytes: footer.rows_bytes,
                floor: footer.floor,
                sealed: is_sealed,
            });
        }
    }
    let Building { index, segments, surplus, .. } = building;
    let surplus_copies =
        surplus.into_iter().flat_map(|(hash, of)| of.into_iter().map(move |of| (hash, of))).collect();
    let tail = Tail { head, next_segment: newest + 1, next_frame, surplus_copies };
    let free_slots = FreeSlots::new(free_slots, |slot| {
        io.is_written(superblock.segment_offset(slot) + BLOCK as u64, superblock.segment_bytes - BLOCK as u64)
    });
    Ok(Recovered { index, segments, free_slots, tail })
}

/// What is known of a segment before it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub sequence: u64,
    pub slot: u32,
    pub first_frame: u64,
}

struct Found {
    /// In the order of their sequences.
    places: Vec<Place>,
    free_slots: Vec<u32>,
    /// Sequence of the newest segment that there ever was.
    newest: u64,
}

/// What a slot was found to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum SlotState {
    Segment(Place),
    /// The header of the segment that is in it was lost.
    Headless(Place),
    Freed {
        sequence: u64,
    },
    Empty,
    /// Neither its header nor a first frame can be read.
    Unreadable,
}

/// Reads the header of every slot.
pub(super) fn slot_states(
    io: &dyn BlockIo,
    superblock: &Superblock,
) -> Result<Vec<(u32, SlotState)>, OpenLogError> {
    let mut states = Vec::with_capacity(superblock.slots as usize);
    for_each_slot(io, superblock, |slot, header, first| {
        let (freed, otherwise) =
            match SlotHeader::decode(header, superblock.segment_offset(slot), &superblock.key) {
                SlotHeader::Segment { sequence, first_frame } => {
                    states.push((slot, SlotState::Segment(Place { sequence, slot, first_frame })));
                    return Ok(());
                }
                SlotHeader::Freed { sequence } => (Some(sequence), SlotState::Freed { sequence }),
                SlotHeader::Empty => (Some(0), SlotState::Empty),
                SlotHeader::Unreadable => (None, SlotState::Unreadable),
            };
        let lost = lost_header(io, superblock, slot, first)?.filter(|lost| Some(lost.sequence) > freed);
        states.push((slot, lost.map_or(otherwise, SlotState::Headless)));
        Ok(())
    })?;
    Ok(states)
}

/// Finds the segments. A header that was lost is made again from the segment's first frame.
fn find_segments(io: &dyn BlockIo, superblock: &Superblock) -> Result<Found, OpenLogError> {
    let mut found = Found { places: Vec::new(), free_slots: Vec::new(), newest: 0 };
    for (slot, state) in slot_states(io, superblock)? {
        let at = superblock.segment_offset(slot);
        match state {
            SlotState::Segment(place) => found.places.push(place),
            SlotState::Headless(place) => {
                tracing::warn!(
                    at,
                    sequence = place.sequence,
                    "a segment's header was lost and is made again"
                );
                write_slot_header(io, superblock, &place)?;
                found.places.push(place);
            }
            SlotState::Freed { sequence } => {
                found.newest = found.newest.max(sequence);
                found.free_slots.push(slot);
            }
            SlotState::Empty => found.free_slots.push(slot),
            SlotState::Unreadable => {
                return Err(OpenLogError::Damaged { what: "no valid slot header", at });
            }
        }
    }
    found.places.sort_unstable_by_key(|place| place.sequence);
    found.newest = found.newest.max(found.places.last().map_or(0, |place| place.sequence));
    Ok(found)
}

pub(super) fn write_slot_header(
    io: &dyn BlockIo,
    superblock: &Superblock,
    place: &Place,
) -> Result<(), OpenLogError> {
    let offset = superblock.segment_offset(place.slot);
    let header = SlotHeader::Segment { sequence: place.sequence, first_frame: place.first_frame };
    let mut block = AlignedBuf::heap(BLOCK);
    header.encode(&mut block, offset, &superblock.key);
    write(io, block, offset).map_err(failed("a slot header"))
}

/// The segment whose first frame lies in the slot, going by its first block alone.
fn lost_header(
    io: &dyn BlockIo,
    superblock: &Superblock,
    slot: u32,
    first: &[u8],
) -> Result<Option<Place>, OpenLogError> {
    let offset = superblock.segment_offset(slot) + BLOCK as u64;
    let Some(len) = FrameHeader::announced_bytes(first) else { return Ok(None) };
    let room = superblock.segment_bytes - BLOCK as u64;
    if u64::from(len) > room {
        return Ok(None);
    }
    let bytes = read(io, offset, whole_blocks(u64::from(len)) as usize).map_err(failed("a frame"))?;
    let frame = FrameHeader::decode(&bytes, offset, &superblock.key);
    Ok(frame.map(|frame| Place { sequence: frame.segment, slot, first_frame: frame.sequence }))
}

/// Index and figures, as far as segments were read.
struct Building<'a> {
    superblock: &'a Superblock,
    index: ChunkIndex,
    segments: Segments,
    /// Copies that a later one took the place of, without a tombstone in between.
    surplus: HashMap<ChunkHash, Vec<u64>>,
}

impl Building<'_> {
    /// Segments come in the order of their sequences.
    fn add(&mut self, place: Place, contents: &Contents) {
        let footer = &contents.footer;
        let blocks = |entry: &Entry| match entry {
            Entry::Chunk { len, .. } => whole_blocks(u64::from(*len)),
            _ => 0,
        };
        self.segments.add(Segment {
            sequence: place.sequence,
            slot: place.slot,
            first_frame: place.first_frame,
            end: footer.end,
            chunk_bytes: footer.entries.iter().map(blocks).sum(),
            rows_bytes: footer.rows_bytes,
        });
        self.segments.raise_floor(LogPosition(footer.floor));
        let start = self.superblock.segment_offset(place.slot);
        for entry in &footer.entries {
            match *entry {
                Entry::Chunk { at, len, hash } => {
                    let location = Location::new(start + u64::from(at), len);
                    let before = self.index.insert(&hash, location);
                    self.segments.moved(before, Some(location));
                    if let Some(before) = before {
                        self.surplus.entry(hash).or_default().push(self.segments.sequence_at(before));
                    }
                }
                Entry::Tombstone { of, hash } => {
                    if let Some(surplus) = self.surplus.get_mut(&hash) {
                        surplus.retain(|sequence| *sequence != of);
                    }
                    let here = self.index.get(&hash).map(|location| self.segments.sequence_at(location));
                    if here.is_some_and(|sequence| sequence <= of) {
                        self.segments.moved(self.index.remove(&hash), None);
                    }
                }
                Entry::Rows { .. } | Entry::Floor { .. } => {}
            }
        }
    }
}
