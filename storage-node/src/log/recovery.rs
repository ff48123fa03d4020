//! Opening a device: its superblock, its segments, the index of its chunks, and where the log ends.

use std::collections::VecDeque;
use std::io;

use common::hash::ChunkHash;

use super::format::{FORMAT_VERSION, FrameHeader, Kind, MIN_SEGMENTS, SEGMENTS_START, Superblock};
use super::format::{SuperblockRead, decode_segment_header, device_bytes};
use super::index::{ChunkIndex, Location};
use super::walk::{Segment, Walker};
use crate::io::{AlignedBuf, BLOCK, BlockIo, Pending, whole_blocks};

/// Segments whose frames are walked at once.
const WALKS: usize = 8;
/// Segment headers that are read at once.
const HEADER_READS: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum OpenLogError {
    #[error("{what} cannot be read or written")]
    Io { what: &'static str, source: io::Error },
    #[error(
        "the device holds something that is not a Dozo log; choose another, or clear its first 8 KiB if nothing on it is needed"
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

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> OpenLogError {
    move |source| OpenLogError::Io { what, source }
}

fn read(io: &dyn BlockIo, offset: u64, len: usize) -> io::Result<AlignedBuf> {
    io.read_at(AlignedBuf::heap(len), offset).wait()
}

/// Reads the superblock; an empty device gets one. A copy that was lost is written again.
pub(super) fn read_or_format(io: &dyn BlockIo, segment_bytes: u64) -> Result<Superblock, OpenLogError> {
    let needed_bytes = device_bytes(MIN_SEGMENTS, segment_bytes);
    if io.size_bytes() < needed_bytes {
        return Err(OpenLogError::TooSmall { found_bytes: io.size_bytes(), needed_bytes });
    }
    let both = read(io, 0, 2 * BLOCK).map_err(failed("the superblock"))?;
    let copies = [Superblock::decode(&both[..BLOCK]), Superblock::decode(&both[BLOCK..])];
    if let Some(found) =
        copies.iter().find_map(|c| if let SuperblockRead::Newer(v) = c { Some(*v) } else { None })
    {
        return Err(OpenLogError::NewerFormat { found });
    }
    let valid =
        copies.iter().find_map(|c| if let SuperblockRead::Valid(s) = c { Some(s.clone()) } else { None });
    let superblock = match valid {
        Some(superblock) => superblock,
        None if copies.iter().all(|c| *c == SuperblockRead::Empty) => new_superblock(io, segment_bytes)?,
        None => return Err(OpenLogError::NotALog),
    };
    if io.size_bytes() < superblock.device_bytes {
        let (found_bytes, needed_bytes) = (io.size_bytes(), superblock.device_bytes);
        return Err(OpenLogError::TooSmall { found_bytes, needed_bytes });
    }
    for (copy, offset) in copies.iter().zip([0, BLOCK as u64]) {
        if !matches!(copy, SuperblockRead::Valid(_)) {
            let mut block = AlignedBuf::heap(BLOCK);
            superblock.encode(&mut block);
            io.write_durable_at(block, offset).wait().map_err(failed("the superblock"))?;
        }
    }
    Ok(superblock)
}

fn new_superblock(io: &dyn BlockIo, segment_bytes: u64) -> Result<Superblock, OpenLogError> {
    io.reserve(0, SEGMENTS_START).map_err(failed("the superblock"))?;
    let mut random = [0; 48];
    getrandom::fill(&mut random).map_err(|e| failed("the source of random numbers")(io::Error::other(e)))?;
    let (mut log_id, mut key) = ([0; 16], [0; 32]);
    log_id.copy_from_slice(&random[..16]);
    key.copy_from_slice(&random[16..]);
    let slots = ((io.size_bytes() - SEGMENTS_START) / segment_bytes).min(u64::from(u32::MAX));
    Ok(Superblock { log_id, key, segment_bytes, slots, device_bytes: device_bytes(slots, segment_bytes) })
}

pub(super) struct Recovered {
    pub index: ChunkIndex,
    pub segments: Vec<Segment>,
    /// Slots without a segment, in the order in which to take them.
    pub free_slots: VecDeque<u32>,
    /// Bytes of the last segment that frames fill, its header included.
    pub end: u64,
    pub next_frame: u64,
    pub appended_bytes: u64,
    pub dead_bytes: u64,
}

/// What a segment's frames say.
struct Walked {
    changes: Vec<Change>,
    end: u64,
    next_frame: u64,
}

struct Change {
    hash: ChunkHash,
    /// `None` for a tombstone.
    location: Option<Location>,
}

pub(super) fn recover(io: &dyn BlockIo, superblock: &Superblock) -> Result<Recovered, OpenLogError> {
    let (segments, free_slots) = find_segments(io, superblock)?;
    let index = ChunkIndex::new();
    let (mut dead_bytes, mut end, mut next_frame) = (0, 0, 1);
    for (group, batch) in segments.chunks(WALKS).enumerate() {
        let walked: Vec<Result<Walked, OpenLogError>> = std::thread::scope(|scope| {
            let walks: Vec<_> = (0..batch.len())
                .map(|i| {
                    let (segment, next) = (batch[i], segments.get(group * WALKS + i + 1));
                    scope.spawn(move || walk_segment(io, superblock, segment, next))
                })
                .collect();
            walks
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        for segment in walked {
            let segment = segment?;
            for Change { hash, location } in segment.changes {
                let replaced = match location {
                    Some(location) => index.insert(&hash, location),
                    None => index.remove(&hash),
                };
                dead_bytes += replaced.map_or(0, |r| whole_blocks(r.len() as u64));
            }
            (end, next_frame) = (segment.end, segment.next_frame);
        }
    }
    let full = segments.len().saturating_sub(1) as u64;
    let appended_bytes = full * superblock.segment_bytes + end;
    Ok(Recovered { index, segments, free_slots, end, next_frame, appended_bytes, dead_bytes })
}

/// Reads the first block of every slot.
fn find_segments(
    io: &dyn BlockIo,
    superblock: &Superblock,
) -> Result<(Vec<Segment>, VecDeque<u32>), OpenLogError> {
    let (mut segments, mut free_slots) = (Vec::new(), VecDeque::new());
    let slots: Vec<u32> = (0..superblock.slots as u32).collect();
    for group in slots.chunks(HEADER_READS) {
        let reads: Vec<Pending> = group
            .iter()
            .map(|slot| io.read_at(AlignedBuf::heap(BLOCK), superblock.segment_offset(*slot)))
            .collect();
        for (slot, read) in group.iter().zip(reads) {
            let block = read.wait().map_err(failed("a segment header"))?;
            match decode_segment_header(&block, superblock.segment_offset(*slot), &superblock.key) {
                Some((sequence, first_frame)) => {
                    segments.push(Segment { sequence, slot: *slot, first_frame });
                }
                None => free_slots.push_back(*slot),
            }
        }
    }
    segments.sort_unstable_by_key(|s| s.sequence);
    for (segment, expected) in segments.iter().zip(1..) {
        if segment.sequence != expected {
            let at = superblock.segment_offset(segment.slot);
            return Err(OpenLogError::Damaged { what: "the header of a segment before the one", at });
        }
    }
    Ok((segments, free_slots))
}

fn walk_segment(
    io: &dyn BlockIo,
    superblock: &Superblock,
    segment: Segment,
    next: Option<&Segment>,
) -> Result<Walked, OpenLogError> {
    let next_first = next.map(|n| n.first_frame);
    let mut walker = Walker::new(io, superblock, segment);
    let mut changes = Vec::new();
    // The last frame, and how many changes came before it.
    let mut last: Option<(FrameHeader, usize)> = None;
    while !walker.has_reached(next_first) {
        let at = walker.device_offset();
        let Some(frame) = walker.next().map_err(failed("a frame"))? else {
            if next.is_some() {
                return Err(OpenLogError::Damaged { what: "no valid frame", at });
            }
            break;
        };
        let before = changes.len();
        changes.extend(changes_of(&frame.header));
        last = Some((frame.header, before));
    }
    let mut end = walker.offset();
    let mut next_frame = walker.next_sequence().unwrap_or(segment.first_frame);
    if next.is_none() {
        let at = walker.device_offset();
        if walker.find_later_frame().map_err(failed("the tail of the log"))?.is_some() {
            return Err(OpenLogError::Damaged { what: "no valid frame, and valid ones after it,", at });
        }
        if let Some((frame, before)) = last
            && !payload_verifies(io, &frame).map_err(failed("the last frame"))?
        {
            blot_out(io, &frame).map_err(failed("the last frame"))?;
            changes.truncate(before);
            end -= u64::from(frame.frame_bytes);
            next_frame = frame.sequence;
        }
    }
    Ok(Walked { changes, end, next_frame })
}

fn changes_of(frame: &FrameHeader) -> impl Iterator<Item = Change> {
    frame.entries.iter().filter(|e| e.kind != Kind::Rows).map(|entry| {
        let chunk = entry.kind == Kind::Chunk;
        let location = chunk.then(|| Location::new(frame.offset + u64::from(entry.at), entry.len));
        Change { hash: entry.hash, location }
    })
}

fn payload_verifies(io: &dyn BlockIo, frame: &FrameHeader) -> io::Result<bool> {
    for entry in frame.entries.iter().filter(|e| e.kind == Kind::Chunk && e.len > 0) {
        let bytes = read(io, frame.offset + u64::from(entry.at), entry.len as usize)?;
        if ChunkHash::of(&bytes[..entry.len as usize]) != entry.hash {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A frame that was not acknowledged must not come back when a later crash leaves other bytes behind it.
fn blot_out(io: &dyn BlockIo, frame: &FrameHeader) -> io::Result<()> {
    tracing::warn!(
        at = frame.offset,
        sequence = frame.sequence,
        "the last write before the stop was incomplete and is dropped: it was never acknowledged"
    );
    io.write_durable_at(AlignedBuf::heap(BLOCK), frame.offset).wait().map(|_| ())
}
