//! What is on a device, looked at block by block and told as it is; and making again what can be made again.
//!
//! Looking writes nothing, and goes on behind damage where opening the log would stop.

use std::cmp::Ordering;
use std::io;

use serde::Serialize;

use super::contents::{footer_from_frames, read_footer, unfinished_frames};
use super::format::{Entry, Footer, MIN_SEGMENTS, Superblock, SuperblockRead, device_bytes};
use super::recovery::{self, OpenLogError, Place, SlotState, failed};
use super::superblock::write_superblock;
use super::walk::Walker;
use crate::io::{AlignedBuf, BLOCK, BlockIo};

/// Damaged places that are kept of one kind; more are only counted.
const PLACES_MAX: usize = 100;

/// Figures of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LogFigures {
    pub log_id: String,
    pub device_bytes: u64,
    pub segment_bytes: u64,
    /// Of the two copies of the superblock, those that are good.
    pub superblock_copies: u32,
    pub slots: u64,
    pub slots_in_use: u64,
    pub slots_freed: u64,
    pub slots_never_used: u64,
    /// Without a readable header and first frame.
    pub slots_unreadable: u64,
    /// Segments with a good footer.
    pub segments_sealed: u64,
    /// The segment that is being written, which has no footer yet.
    pub segments_open: u64,
    pub footers_damaged: u64,
    pub frames: u64,
    /// Places where frames should be and none can be read.
    pub frame_gaps: u64,
    /// Frames at the end of the log that were being written when the node stopped. Never acknowledged.
    pub frames_unfinished: u64,
    /// Copies of chunks in all frames, needed or not.
    pub chunk_copies: u64,
    pub tombstones: u64,
    pub rows_entries: u64,
    /// Rows entries behind the floor: what a replay from nothing reads.
    pub rows_entries_needed: u64,
    pub rows_bytes: u64,
    /// Rows up to this position are not needed.
    pub floor: u64,
}

/// Where frames should be and none can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    pub segment: u64,
    /// On the device.
    pub at: u64,
    pub bytes: u64,
    /// Positions of rows that may have been there: those before `to`.
    pub from: u64,
    pub to: u64,
    /// Bytes of rows that the whole segment lost, where its footer tells.
    pub lost_rows_bytes: Option<u64>,
    /// The segment's footer knows its chunks, so they are not lost.
    pub has_footer: bool,
}

/// A log as it was found.
pub(crate) struct Survey {
    superblock: Superblock,
    pub figures: LogFigures,
    /// Offsets of superblock copies that are not good.
    pub lost_superblocks: Vec<u64>,
    lost_headers: Vec<Place>,
    lost_footers: Vec<Place>,
    /// Offsets of slots.
    pub unreadable_slots: Vec<u64>,
    pub gaps: Vec<Gap>,
    /// Segments whose last frames are missing although a later segment was begun.
    pub cut_segments: Vec<u64>,
}

/// Looks at a device. Reads every frame header; blocks.
///
/// # Errors
/// Of the device, and when it has no superblock that can be read.
pub(crate) fn survey(io: &dyn BlockIo) -> Result<Survey, OpenLogError> {
    let needed_bytes = device_bytes(MIN_SEGMENTS, BLOCK as u64);
    if io.size_bytes() < needed_bytes {
        return Err(OpenLogError::TooSmall { found_bytes: io.size_bytes(), needed_bytes });
    }
    let both = recovery::read(io, 0, 2 * BLOCK).map_err(failed("the superblock"))?;
    let (mut found, mut lost_superblocks) = (None, Vec::new());
    for (copy, offset) in both.chunks_exact(BLOCK).zip([0, BLOCK as u64]) {
        match Superblock::decode(copy) {
            SuperblockRead::Valid(superblock) => found = Some(superblock),
            SuperblockRead::Newer(found) => return Err(OpenLogError::NewerFormat { found }),
            SuperblockRead::Empty | SuperblockRead::Foreign => lost_superblocks.push(offset),
        }
    }
    let superblock = found.ok_or(OpenLogError::NotALog)?;
    if io.size_bytes() < superblock.device_bytes {
        let (found_bytes, needed_bytes) = (io.size_bytes(), superblock.device_bytes);
        return Err(OpenLogError::TooSmall { found_bytes, needed_bytes });
    }
    let figures = LogFigures {
        log_id: format!("{:032x}", u128::from_be_bytes(superblock.log_id)),
        device_bytes: superblock.device_bytes,
        segment_bytes: superblock.segment_bytes,
        superblock_copies: 2 - lost_superblocks.len() as u32,
        slots: superblock.slots,
        ..LogFigures::default()
    };
    let mut survey = Survey {
        superblock,
        figures,
        lost_superblocks,
        lost_headers: Vec::new(),
        lost_footers: Vec::new(),
        unreadable_slots: Vec::new(),
        gaps: Vec::new(),
        cut_segments: Vec::new(),
    };
    let places = survey.look_at_slots(io)?;
    survey.look_at_segments(io, &places)?;
    Ok(survey)
}

impl Survey {
    /// Offsets of slots whose header was lost and can be made again.
    pub fn lost_headers(&self) -> impl Iterator<Item = u64> {
        self.lost_headers.iter().map(|place| self.superblock.segment_offset(place.slot))
    }

    /// Sequences of segments whose footer is damaged and can be made again.
    pub fn lost_footers(&self) -> impl Iterator<Item = u64> {
        self.whole_without_footer().map(|place| place.sequence)
    }

    /// Segments with a damaged footer whose frames are all there.
    fn whole_without_footer(&self) -> impl Iterator<Item = &Place> {
        self.lost_footers.iter().filter(|place| {
            !self.cut_segments.contains(&place.sequence)
                && !self.gaps.iter().any(|gap| gap.segment == place.sequence)
        })
    }

    /// The segments in the order of their sequences.
    fn look_at_slots(&mut self, io: &dyn BlockIo) -> Result<Vec<Place>, OpenLogError> {
        let mut places = Vec::new();
        for (slot, state) in recovery::slot_states(io, &self.superblock)? {
            match state {
                SlotState::Segment(place) => places.push(place),
                SlotState::Headless(place) => {
                    self.lost_headers.push(place);
                    places.push(place);
                }
                SlotState::Freed { .. } => self.figures.slots_freed += 1,
                SlotState::Empty => self.figures.slots_never_used += 1,
                SlotState::Unreadable => {
                    self.figures.slots_unreadable += 1;
                    self.unreadable_slots.push(self.superblock.segment_offset(slot));
                }
            }
        }
        self.figures.slots_in_use = places.len() as u64;
        places.sort_unstable_by_key(|place| place.sequence);
        Ok(places)
    }

    fn look_at_segments(&mut self, io: &dyn BlockIo, places: &[Place]) -> Result<(), OpenLogError> {
        let mut rows_entries = Vec::with_capacity(places.len());
        for (i, place) in places.iter().enumerate() {
            let footer =
                read_footer(io, &self.superblock, place.sequence, place.slot).map_err(failed("a footer"))?;
            let is_last = i + 1 == places.len();
            match (&footer, is_last) {
                (Some(_), _) => self.figures.segments_sealed += 1,
                (None, true) => self.figures.segments_open += 1,
                (None, false) => {
                    self.figures.footers_damaged += 1;
                    self.lost_footers.push(*place);
                }
            }
            let walked =
                self.walk(io, *place, footer.as_ref(), is_last).map_err(failed("the frames of a segment"))?;
            let is_whole = self.gaps.iter().all(|gap| gap.segment != place.sequence);
            if footer.is_none() && is_last && is_whole {
                self.figures.frames_unfinished = unfinished_frames(io, &self.superblock, *place)?;
            }
            let next = places.get(i + 1);
            if footer.is_none()
                && next.is_some_and(|next| {
                    next.sequence == place.sequence + 1 && next.first_frame != walked.next_frame
                })
            {
                self.cut_segments.push(place.sequence);
            }
            rows_entries.push(walked.rows_entries);
        }
        // Which rows are needed is known only now: the last floor stands anywhere.
        let floor = self.figures.floor;
        for (place, entries) in places.iter().zip(rows_entries) {
            self.figures.rows_entries_needed +=
                match place.sequence.cmp(&(floor / self.superblock.segment_bytes)) {
                    Ordering::Less => 0,
                    Ordering::Greater => entries,
                    Ordering::Equal => self.rows_behind(io, *place, floor).map_err(failed("a segment"))?,
                };
        }
        Ok(())
    }

    /// Rows entries of a segment behind a position, up to a gap.
    fn rows_behind(&self, io: &dyn BlockIo, place: Place, floor: u64) -> io::Result<u64> {
        let start = place.sequence * self.superblock.segment_bytes;
        let mut walker = Walker::new(io, &self.superblock, place.sequence, place.slot, place.first_frame);
        let mut behind = 0;
        loop {
            let at = start + walker.offset();
            let Some(frame) = walker.next()? else { return Ok(behind) };
            behind += frame.rows(at).filter(|(position, _)| position.0 > floor).count() as u64;
        }
    }

    /// Goes over a segment's frames, and over gaps between them.
    fn walk(
        &mut self,
        io: &dyn BlockIo,
        place: Place,
        footer: Option<&Footer>,
        is_last: bool,
    ) -> io::Result<WalkedSegment> {
        let segment_start = self.superblock.segment_offset(place.slot);
        let position = place.sequence * self.superblock.segment_bytes;
        let end = footer.map(|footer| footer.end);
        let superblock = self.superblock.clone();
        let mut walked = WalkedSegment { next_frame: place.first_frame, ..WalkedSegment::default() };
        let mut walker = Walker::new(io, &superblock, place.sequence, place.slot, place.first_frame);
        let first_gap = self.gaps.len();
        loop {
            while end.is_none_or(|end| walker.offset() < end) {
                let Some(frame) = walker.next()? else { break };
                walked.next_frame = frame.header.sequence + 1;
                self.figures.frames += 1;
                for entry in &frame.header.entries {
                    self.count(entry);
                    walked.rows_entries += u64::from(matches!(entry, Entry::Rows { .. }));
                    walked.rows_bytes += entry.rows_bytes();
                }
            }
            if end.is_some_and(|end| walker.offset() >= end) {
                break;
            }
            let at = walker.offset();
            let later = walker.later_frames()?;
            let settled = later.iter().map(|frame| frame.settled).max().unwrap_or(0);
            if is_last && end.is_none() && settled < walked.next_frame {
                break;
            }
            let next = later.first();
            let Some(gap_end) = next.map(|next| next.offset - segment_start).or(end) else { break };
            self.figures.frame_gaps += 1;
            if self.gaps.len() < PLACES_MAX {
                self.gaps.push(Gap {
                    segment: place.sequence,
                    at: segment_start + at,
                    bytes: gap_end - at,
                    from: position + at,
                    to: position + gap_end,
                    lost_rows_bytes: None,
                    has_footer: footer.is_some(),
                });
            }
            let Some(next) = next else { break };
            walker = Walker::new(io, &superblock, place.sequence, place.slot, next.sequence);
            walker.resume_at(gap_end);
        }
        if let Some(footer) = footer {
            self.figures.floor = self.figures.floor.max(footer.floor);
            let lost = footer.rows_bytes.saturating_sub(walked.rows_bytes);
            self.gaps[first_gap..].iter_mut().for_each(|gap| gap.lost_rows_bytes = Some(lost));
        }
        self.figures.rows_entries += walked.rows_entries;
        self.figures.rows_bytes += walked.rows_bytes;
        Ok(walked)
    }

    fn count(&mut self, entry: &Entry) {
        match entry {
            Entry::Chunk { .. } => self.figures.chunk_copies += 1,
            Entry::Tombstone { .. } => self.figures.tombstones += 1,
            Entry::Floor { position } => self.figures.floor = self.figures.floor.max(*position),
            Entry::Rows { .. } => {}
        }
    }

    /// Writes lost copies of the superblock, lost slot headers, and damaged footers whose frames are all there; says each
    /// thing that was done. Blocks.
    pub fn repair(&self, io: &dyn BlockIo) -> Result<Vec<String>, OpenLogError> {
        let mut done = Vec::new();
        for offset in &self.lost_superblocks {
            write_superblock(io, &self.superblock, *offset)?;
            done.push(format!("the copy of the superblock at byte {offset} was written again"));
        }
        for place in &self.lost_headers {
            recovery::write_slot_header(io, &self.superblock, place)?;
            done.push(format!(
                "the header of segment {} was made again at byte {}",
                place.sequence,
                self.superblock.segment_offset(place.slot)
            ));
        }
        for place in self.whole_without_footer() {
            self.write_footer(io, *place)?;
            done.push(format!("the footer of segment {} was made again from its frames", place.sequence));
        }
        Ok(done)
    }

    fn write_footer(&self, io: &dyn BlockIo, place: Place) -> Result<(), OpenLogError> {
        let footer = footer_from_frames(io, &self.superblock, place)?;
        let segment_end = self.superblock.segment_offset(place.slot) + self.superblock.segment_bytes;
        let mut buffer = AlignedBuf::heap(Footer::bytes(footer.entries.len()) as usize);
        footer.encode(&mut buffer, segment_end, &self.superblock.key);
        let offset = segment_end - buffer.len() as u64;
        recovery::write(io, buffer, offset).map_err(failed("a footer"))
    }
}

/// What the frames of one segment hold.
#[derive(Default)]
struct WalkedSegment {
    next_frame: u64,
    rows_entries: u64,
    rows_bytes: u64,
}
