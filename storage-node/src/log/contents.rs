//! What one segment holds: from its footer, or from its frames where it has none.

use std::io;

use common::hash::ChunkHash;

use super::format::{Entry, Footer, FrameHeader, Superblock};
use super::recovery::{OpenLogError, Place, failed, read, write};
use super::segments::Segment;
use super::walk::Walker;
use crate::io::{AlignedBuf, BLOCK, BlockIo};

/// What a segment holds, in the form of its footer.
pub(super) struct Contents {
    pub footer: Footer,
    pub is_sealed: bool,
}

/// Reads a segment's footer or, where there is none, every frame header.
pub(super) fn read_segment(
    io: &dyn BlockIo,
    superblock: &Superblock,
    place: Place,
    is_last: bool,
) -> Result<Contents, OpenLogError> {
    if let Some(footer) =
        read_footer(io, superblock, place.sequence, place.slot).map_err(failed("a footer"))?
    {
        return Ok(Contents { footer, is_sealed: true });
    }
    walk_segment(io, superblock, place, is_last)
}

/// Reads every frame header of a segment. Of the last one, frames at its end that were never acknowledged are dropped.
fn walk_segment(
    io: &dyn BlockIo,
    superblock: &Superblock,
    place: Place,
    is_last: bool,
) -> Result<Contents, OpenLogError> {
    let (mut walked, later) = walk_frames(io, superblock, place, is_last)?;
    if is_last {
        walked.drop_unacknowledged(io, &later).map_err(failed("the tail of the log"))?;
    }
    Ok(Contents { footer: walked.into_footer(), is_sealed: !is_last })
}

/// The frames of a segment, and those that were written behind a gap at its end.
fn walk_frames(
    io: &dyn BlockIo,
    superblock: &Superblock,
    place: Place,
    is_last: bool,
) -> Result<(Walked, Vec<FrameHeader>), OpenLogError> {
    let mut walked = Walked::new(place);
    let mut walker = Walker::new(io, superblock, place.sequence, place.slot, place.first_frame);
    while let Some(frame) = walker.next().map_err(failed("a frame"))? {
        walked.add(frame.header);
    }
    let at = walker.device_offset();
    let later = walker.later_frames().map_err(failed("the tail of a segment"))?;
    let settled = later.iter().map(|frame| frame.settled).max().unwrap_or(0);
    if settled >= walked.next_frame() || !is_last && !later.is_empty() {
        return Err(OpenLogError::Damaged { what: "no valid frame, and one after it that came later,", at });
    }
    Ok((walked, later))
}

/// How many frames at the end of the last segment were never acknowledged: a start drops them.
pub(super) fn unfinished_frames(
    io: &dyn BlockIo,
    superblock: &Superblock,
    place: Place,
) -> Result<u64, OpenLogError> {
    let (walked, later) = walk_frames(io, superblock, place, true)?;
    let kept = walked.acknowledged(io, &later).map_err(failed("the tail of the log"))?;
    Ok((walked.frames.len() - kept + later.len()) as u64)
}

/// The footer of a sealed segment; `None` if there is none, or it does not check.
pub(super) fn read_footer(
    io: &dyn BlockIo,
    superblock: &Superblock,
    sequence: u64,
    slot: u32,
) -> io::Result<Option<Footer>> {
    let segment_end = superblock.segment_offset(slot) + superblock.segment_bytes;
    let trailer = read(io, segment_end - BLOCK as u64, BLOCK)?;
    let Some(entries) = Footer::announced_entries(&trailer, sequence, segment_end) else { return Ok(None) };
    if entries as u64 > superblock.segment_bytes / 48 {
        return Ok(None);
    }
    let len = Footer::bytes(entries);
    let bytes = read(io, segment_end - len, len as usize)?;
    Ok(Footer::decode(&bytes, sequence, segment_end, &superblock.key))
}

/// The frames of a segment without a footer.
struct Walked {
    place: Place,
    frames: Vec<FrameHeader>,
}

impl Walked {
    fn new(place: Place) -> Self {
        Self { place, frames: Vec::new() }
    }

    fn add(&mut self, frame: FrameHeader) {
        self.frames.push(frame);
    }

    fn next_frame(&self) -> u64 {
        self.frames.last().map_or(self.place.first_frame, |frame| frame.sequence + 1)
    }

    /// Number of frames, from the first, that were acknowledged or may have been: those that a later one says were
    /// durable, and those behind them whose chunks are all there.
    fn acknowledged(&self, io: &dyn BlockIo, later: &[FrameHeader]) -> io::Result<usize> {
        let settled = self.frames.iter().chain(later).map(|frame| frame.settled).max().unwrap_or(0);
        let mut kept = self.frames.partition_point(|frame| frame.sequence <= settled);
        while kept < self.frames.len() && payload_verifies(io, &self.frames[kept])? {
            kept += 1;
        }
        Ok(kept)
    }

    /// Takes away the frames at the end that were being written when power was lost: `later` ones, behind a gap, and
    /// those whose chunks are not all there. They must not come back when a later crash leaves other bytes around
    /// them, so each is blotted out, the last one first.
    fn drop_unacknowledged(&mut self, io: &dyn BlockIo, later: &[FrameHeader]) -> io::Result<()> {
        let kept = self.acknowledged(io, later)?;
        let dropped = self.frames.split_off(kept);
        for frame in dropped.iter().chain(later).rev() {
            tracing::warn!(
                at = frame.offset,
                sequence = frame.sequence,
                "a write before the stop was incomplete and is dropped: it was never acknowledged"
            );
            write(io, AlignedBuf::heap(BLOCK), frame.offset)?;
        }
        Ok(())
    }

    fn into_footer(self) -> Footer {
        let mut footer = Footer {
            segment: self.place.sequence,
            end: BLOCK as u64,
            next_frame: self.next_frame(),
            rows_bytes: 0,
            entries: Vec::new(),
            floor: 0,
        };
        for frame in self.frames {
            for entry in frame.entries {
                match entry {
                    Entry::Chunk { at, len, hash } => {
                        footer.entries.push(Entry::Chunk { at: at + footer.end as u32, len, hash });
                    }
                    Entry::Tombstone { .. } => footer.entries.push(entry),
                    Entry::Floor { position } => footer.floor = footer.floor.max(position),
                    Entry::Rows { .. } => footer.rows_bytes += entry.rows_bytes(),
                }
            }
            footer.end += u64::from(frame.frame_bytes);
        }
        footer
    }
}

fn payload_verifies(io: &dyn BlockIo, frame: &FrameHeader) -> io::Result<bool> {
    for entry in &frame.entries {
        let Entry::Chunk { at, len, hash } = entry else { continue };
        let bytes = read(io, frame.offset + u64::from(*at), *len as usize)?;
        if ChunkHash::of(&bytes[..*len as usize]) != *hash {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The footer of a sealed segment, made anew from its frames.
pub(super) fn footer_from_frames(
    io: &dyn BlockIo,
    superblock: &Superblock,
    place: Place,
) -> Result<Footer, OpenLogError> {
    Ok(walk_segment(io, superblock, place, false)?.footer)
}

/// What a sealed segment holds, read for the compactor.
pub(super) fn contents_of(
    io: &dyn BlockIo,
    superblock: &Superblock,
    segment: &Segment,
) -> Result<Footer, OpenLogError> {
    let place = Place { sequence: segment.sequence, slot: segment.slot, first_frame: segment.first_frame };
    Ok(read_segment(io, superblock, place, false)?.footer)
}
