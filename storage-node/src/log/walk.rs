//! Reading the frames of one segment in their order, for recovery and for replays.

use std::io;

use super::LogPosition;
use super::format::{Entry, FrameHeader, Superblock};
use crate::io::{AlignedBuf, BLOCK, BlockIo, whole_blocks};

/// The most that is read ahead where frames lie close together.
const AHEAD_BYTES_MAX: u64 = 256 << 10;

/// A frame whose header part checks.
pub(super) struct Frame<'a> {
    pub header: FrameHeader,
    /// The header part, with the rows in it.
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The rows entries with their positions; `start` is the position of the frame.
    pub fn rows(&self, start: u64) -> impl Iterator<Item = (LogPosition, &'a [u8])> {
        let bytes = self.bytes;
        self.header.entries.iter().enumerate().filter_map(move |(i, entry)| match entry {
            Entry::Rows { at, len } => {
                let at = *at as usize;
                Some((LogPosition::new(start, i), &bytes[at..at + *len as usize]))
            }
            _ => None,
        })
    }
}

/// Goes from frame to frame. Reads little where chunks lie between the headers, more where they do not.
pub(super) struct Walker<'a> {
    io: &'a dyn BlockIo,
    superblock: &'a Superblock,
    /// Sequence of the segment and the slot that it lies in.
    segment: u64,
    slot: u32,
    /// Where the next frame begins, from the start of the segment.
    offset: u64,
    /// Its sequence; unknown after a jump.
    expected: Option<u64>,
    window: AlignedBuf,
    /// The part of the segment that `window` shows.
    window_at: u64,
    window_len: u64,
    ahead_bytes: u64,
}

impl<'a> Walker<'a> {
    /// At the first frame of a segment.
    pub fn new(
        io: &'a dyn BlockIo,
        superblock: &'a Superblock,
        segment: u64,
        slot: u32,
        first_frame: u64,
    ) -> Self {
        Self {
            io,
            superblock,
            segment,
            slot,
            offset: BLOCK as u64,
            expected: Some(first_frame),
            window: AlignedBuf::heap(BLOCK),
            window_at: 0,
            window_len: 0,
            ahead_bytes: BLOCK as u64,
        }
    }

    /// Goes on at a frame that is known to begin at `offset`.
    pub fn resume_at(&mut self, offset: u64) {
        if offset > self.offset {
            self.offset = offset;
            self.expected = None;
        }
    }

    /// Where the next frame begins, or would, from the start of the segment.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn device_offset(&self) -> u64 {
        self.superblock.segment_offset(self.slot) + self.offset
    }

    /// The next frame; `None` if what lies there is not it.
    pub fn next(&mut self) -> io::Result<Option<Frame<'_>>> {
        let Some((header, header_bytes)) = self.header_at(self.offset)? else { return Ok(None) };
        if self.expected.is_some_and(|expected| expected != header.sequence) {
            return Ok(None);
        }
        let start = (self.offset - self.window_at) as usize;
        self.offset += u64::from(header.frame_bytes);
        self.expected = Some(header.sequence + 1);
        Ok(Some(Frame { header, bytes: &self.window[start..start + header_bytes] }))
    }

    /// Frames that were written behind the place where the walk ended, wherever they begin.
    pub fn later_frames(&mut self) -> io::Result<Vec<FrameHeader>> {
        let first = self.expected.unwrap_or(0);
        self.ahead_bytes = AHEAD_BYTES_MAX;
        let (mut offset, mut later) = (self.offset, Vec::new());
        while offset < self.superblock.segment_bytes {
            let found = self.header_at(offset)?.map(|(header, _)| header).filter(|h| h.sequence >= first);
            offset += found.as_ref().map_or(BLOCK as u64, |header| u64::from(header.frame_bytes));
            later.extend(found);
        }
        Ok(later)
    }

    /// The checked header of a frame of this segment that begins at `offset`, and its length.
    fn header_at(&mut self, offset: u64) -> io::Result<Option<(FrameHeader, usize)>> {
        let room = self.superblock.segment_bytes - offset;
        if room < BLOCK as u64 {
            return Ok(None);
        }
        let Some(header_bytes) = FrameHeader::announced_bytes(self.read(offset, BLOCK as u64)?) else {
            return Ok(None);
        };
        if u64::from(header_bytes) > room {
            return Ok(None);
        }
        let (device_offset, key, segment) =
            (self.superblock.segment_offset(self.slot) + offset, self.superblock.key, self.segment);
        let bytes = self.read(offset, whole_blocks(u64::from(header_bytes)))?;
        let header = FrameHeader::decode(bytes, device_offset, &key)
            .filter(|h| h.segment == segment && u64::from(h.frame_bytes) <= room);
        Ok(header.map(|h| (h, header_bytes as usize)))
    }

    /// Bytes of the segment, through the window.
    fn read(&mut self, offset: u64, len: u64) -> io::Result<&[u8]> {
        let window_end = self.window_at + self.window_len;
        if offset < self.window_at || offset + len > window_end {
            let goes_on = offset >= self.window_at && offset <= window_end;
            self.ahead_bytes =
                if goes_on { (self.ahead_bytes * 2).min(AHEAD_BYTES_MAX) } else { BLOCK as u64 };
            let take = len.max(self.ahead_bytes).min(self.superblock.segment_bytes - offset);
            let mut window = std::mem::replace(&mut self.window, AlignedBuf::heap(0));
            if window.capacity() < take as usize {
                window = AlignedBuf::heap(take as usize);
            }
            window.set_len(take as usize);
            self.window_len = 0;
            let at = self.superblock.segment_offset(self.slot) + offset;
            self.window = self.io.read_at(window, at).wait()?;
            (self.window_at, self.window_len) = (offset, take);
        }
        let start = (offset - self.window_at) as usize;
        Ok(&self.window[start..start + len as usize])
    }
}
