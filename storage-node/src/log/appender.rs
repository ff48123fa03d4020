//! The one thread that writes: it makes a frame of all that is waiting, writes it durably, then answers.
//!
//! Only this thread changes the index, and only after the write: whoever finds a chunk there finds it durable.
//! After a write that failed nothing can be said about the device any more, so nothing is acknowledged again.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use bytes::Bytes;
use common::hash::ChunkHash;
use tokio::sync::oneshot;

use super::format::{ENTRY, Entry, FRAME_FIXED, FrameHeader, Kind, encode_segment_header};
use super::walk::Segment;
use super::{CHUNK_BYTES_MAX, LogError, LogPosition, PutOutcome, RESERVED_SEGMENTS, ROWS_BYTES_MAX, Shared};
use crate::io::{AlignedBuf, BLOCK, whole_blocks};
use crate::log::Location;

/// A frame takes no more than this unless a single entry is longer.
const FRAME_BYTES_TARGET: u64 = 4 << 20;
/// Entries of one frame; a position counts them in 12 bits.
const FRAME_ENTRIES_MAX: usize = 1024;

type Reply<T> = oneshot::Sender<Result<T, LogError>>;

pub(super) enum Work {
    Rows {
        rows: Bytes,
        reply: Reply<LogPosition>,
    },
    Chunk {
        hash: ChunkHash,
        bytes: Bytes,
        reply: Reply<PutOutcome>,
    },
    Tombstone {
        hash: ChunkHash,
        reply: Reply<bool>,
    },
    /// Stop, once everything before it is committed.
    Close {
        reply: oneshot::Sender<()>,
    },
}

impl Work {
    /// (bytes in the header part beside the table, bytes after it)
    fn sizes(&self) -> (u64, u64) {
        match self {
            Self::Rows { rows, .. } => (rows.len() as u64, 0),
            Self::Chunk { bytes, .. } => (0, whole_blocks(bytes.len() as u64)),
            Self::Tombstone { .. } | Self::Close { .. } => (0, 0),
        }
    }

    fn refuse(self, error: LogError) {
        // Nobody may be waiting any more.
        match self {
            Self::Rows { reply, .. } => drop(reply.send(Err(error))),
            Self::Chunk { reply, .. } => drop(reply.send(Err(error))),
            Self::Tombstone { reply, .. } => drop(reply.send(Err(error))),
            Self::Close { reply } => drop(reply.send(())),
        }
    }
}

/// The next frame.
#[derive(Default)]
struct Batch {
    members: Vec<Work>,
    rows_bytes: u64,
    payload_bytes: u64,
    /// Whether a chunk that the batch touches will be there after it.
    touched: HashMap<ChunkHash, bool>,
    /// Answers that add no entry but hold only once this frame is durable.
    riders: Vec<Rider>,
}

enum Rider {
    Present(Reply<PutOutcome>),
    Absent(Reply<bool>),
}

impl Batch {
    fn header_bytes(&self, more_entries: usize, more_rows: u64) -> u64 {
        (FRAME_FIXED + (self.members.len() + more_entries) * ENTRY) as u64 + self.rows_bytes + more_rows
    }

    fn frame_bytes_with(&self, work: &Work) -> u64 {
        let (rows, payload) = work.sizes();
        whole_blocks(self.header_bytes(1, rows)) + self.payload_bytes + payload
    }

    fn add(&mut self, work: Work) {
        let (rows, payload) = work.sizes();
        self.rows_bytes += rows;
        self.payload_bytes += payload;
        match &work {
            Work::Chunk { hash, .. } => drop(self.touched.insert(*hash, true)),
            Work::Tombstone { hash, .. } => drop(self.touched.insert(*hash, false)),
            Work::Rows { .. } | Work::Close { .. } => {}
        }
        self.members.push(work);
    }

    fn refuse(self, error: &LogError) {
        for work in self.members {
            work.refuse(error.clone());
        }
        for rider in self.riders {
            match rider {
                Rider::Present(reply) => drop(reply.send(Err(error.clone()))),
                Rider::Absent(reply) => drop(reply.send(Err(error.clone()))),
            }
        }
    }
}

pub(super) struct Appender {
    shared: Arc<Shared>,
    queue: Receiver<Work>,
    next_frame: u64,
    free_slots: VecDeque<u32>,
    /// Kept from frame to frame.
    buffer: Option<AlignedBuf>,
    stopped: bool,
}

impl Appender {
    pub fn new(
        shared: Arc<Shared>,
        queue: Receiver<Work>,
        next_frame: u64,
        free_slots: VecDeque<u32>,
    ) -> Self {
        Self { shared, queue, next_frame, free_slots, buffer: None, stopped: false }
    }

    /// Until the last handle of the log is gone, or it is closed.
    pub fn run(mut self) {
        while self.work() {}
    }

    /// Waits for work and commits all that is queued by then, in as many frames as it takes. False once there
    /// will be no more.
    pub fn work(&mut self) -> bool {
        let mut next = self.queue.recv().ok();
        let had_work = next.is_some();
        while let Some(first) = next {
            if let Work::Close { reply } = first {
                let _ = reply.send(());
                return false;
            }
            let mut batch = Batch::default();
            next = self.admit(&mut batch, first);
            while next.is_none() && batch.members.len() < FRAME_ENTRIES_MAX {
                let Ok(work) = self.queue.try_recv() else { break };
                next = self.admit(&mut batch, work);
            }
            self.commit(batch);
        }
        had_work
    }

    /// Takes work into the batch or answers it. Gives it back if it has to wait for the next frame.
    fn admit(&mut self, batch: &mut Batch, work: Work) -> Option<Work> {
        if matches!(work, Work::Close { .. }) {
            return Some(work);
        }
        if self.stopped {
            work.refuse(LogError::Stopped);
            return None;
        }
        let work = self.settle(batch, work)?;
        match self.check_length(&work).and_then(|()| self.find_room(batch, &work)) {
            Ok(true) => batch.add(work),
            Ok(false) => return Some(work),
            Err(error) => work.refuse(error),
        }
        None
    }

    /// Answers what needs no entry: a chunk that is there, the deletion of one that is not. If that is so only
    /// through this batch, the answer waits for it.
    fn settle(&self, batch: &mut Batch, work: Work) -> Option<Work> {
        let present = |hash: &ChunkHash| match batch.touched.get(hash) {
            Some(present) => (*present, true),
            None => (self.shared.index.get(hash).is_some(), false),
        };
        match work {
            Work::Chunk { hash, bytes, reply } => match present(&hash) {
                (false, _) => Some(Work::Chunk { hash, bytes, reply }),
                (true, false) => {
                    let _ = reply.send(Ok(PutOutcome::Present));
                    None
                }
                (true, true) => {
                    batch.riders.push(Rider::Present(reply));
                    None
                }
            },
            Work::Tombstone { hash, reply } => match present(&hash) {
                (true, _) => Some(Work::Tombstone { hash, reply }),
                (false, false) => {
                    let _ = reply.send(Ok(false));
                    None
                }
                (false, true) => {
                    batch.riders.push(Rider::Absent(reply));
                    None
                }
            },
            other => Some(other),
        }
    }

    fn check_length(&self, work: &Work) -> Result<(), LogError> {
        let (len, limit) = match work {
            Work::Rows { rows, .. } => (rows.len(), ROWS_BYTES_MAX),
            Work::Chunk { bytes, .. } => (bytes.len(), CHUNK_BYTES_MAX),
            Work::Tombstone { .. } | Work::Close { .. } => return Ok(()),
        };
        // Beside it the segment holds its own header, the frame's, and the padding.
        let max = limit.min(self.shared.superblock.segment_bytes as usize - 3 * BLOCK);
        if len > max { Err(LogError::TooLong { len, max }) } else { Ok(()) }
    }

    /// Whether the work can join the batch; opens the next segment if an empty batch needs it.
    fn find_room(&mut self, batch: &Batch, work: &Work) -> Result<bool, LogError> {
        let needed = batch.frame_bytes_with(work);
        let first = batch.members.is_empty();
        if !first && needed > FRAME_BYTES_TARGET {
            return Ok(false);
        }
        if needed <= self.room_in_segment() {
            return Ok(true);
        }
        let kept_back = if matches!(work, Work::Chunk { .. }) { RESERVED_SEGMENTS } else { 0 };
        if self.free_slots.len() <= kept_back {
            return Err(LogError::Full { capacity_bytes: self.shared.capacity_bytes() });
        }
        if first {
            self.open_segment()?;
        }
        Ok(first)
    }

    fn room_in_segment(&self) -> u64 {
        let written = self.shared.written();
        if written.segments.is_empty() { 0 } else { self.shared.superblock.segment_bytes - written.end }
    }

    fn open_segment(&mut self) -> Result<(), LogError> {
        let superblock = &self.shared.superblock;
        let full = LogError::Full { capacity_bytes: self.shared.capacity_bytes() };
        let Some(slot) = self.free_slots.front().copied() else { return Err(full) };
        let offset = superblock.segment_offset(slot);
        if let Err(error) = self.shared.io.reserve(offset, superblock.segment_bytes) {
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            return Err(match error.kind() {
                StorageFull | QuotaExceeded | FileTooLarge => full,
                _ => self.stop(error),
            });
        }
        let sequence = self.shared.written().segments.last().map_or(1, |s| s.sequence + 1);
        let mut block = AlignedBuf::heap(BLOCK);
        encode_segment_header(&mut block, sequence, self.next_frame, offset, &superblock.key);
        let result = self.shared.io.write_durable_at(block, offset).wait();
        if let Err(error) = result {
            return Err(self.stop(error));
        }
        self.free_slots.pop_front();
        let mut written = self.shared.written();
        written.segments.push(Segment { sequence, slot, first_frame: self.next_frame });
        written.end = BLOCK as u64;
        self.shared.note_end(&written);
        Ok(())
    }

    fn stop(&mut self, error: io::Error) -> LogError {
        tracing::error!(%error, "the log cannot be written: nothing more is acknowledged until the node restarts");
        self.stopped = true;
        LogError::Io { source: Arc::new(error) }
    }

    fn commit(&mut self, batch: Batch) {
        if batch.members.is_empty() {
            return;
        }
        let begun = Instant::now();
        let (segment, end) = {
            let written = self.shared.written();
            // `find_room` opened it before the batch took its first member.
            let Some(segment) = written.segments.last().copied() else { return };
            (segment, written.end)
        };
        let header =
            frame_header(&batch, self.next_frame, &segment, self.shared.device_offset(&segment, end));
        let mut buffer = self.take_buffer(header.frame_bytes as usize);
        fill(&mut buffer, &header, &batch.members, &self.shared.superblock.key);
        match self.shared.io.write_durable_at(buffer, header.offset).wait() {
            Ok(buffer) => self.buffer = Some(buffer).filter(|b| b.capacity() as u64 <= FRAME_BYTES_TARGET),
            Err(error) => {
                let error = self.stop(error);
                return batch.refuse(&error);
            }
        }
        self.next_frame += 1;
        {
            let mut written = self.shared.written();
            written.end = end + u64::from(header.frame_bytes);
            self.shared.note_end(&written);
        }
        let metrics = &self.shared.metrics;
        metrics.commits.increment(1);
        metrics.written_bytes.increment(u64::from(header.frame_bytes));
        metrics.commit_entries.record(header.entries.len() as f64);
        metrics.commit_seconds.record(begun.elapsed().as_secs_f64());
        let start = segment.sequence * self.shared.superblock.segment_bytes + end;
        self.answer(batch, &header, start);
    }

    fn take_buffer(&mut self, len: usize) -> AlignedBuf {
        let kept = self.buffer.take().filter(|b| b.capacity() >= len);
        let mut buffer = kept.unwrap_or_else(|| AlignedBuf::heap(len.next_power_of_two()));
        buffer.set_len(len);
        buffer
    }

    /// Makes the frame's changes visible, in order, and tells everyone.
    fn answer(&self, batch: Batch, header: &FrameHeader, start: u64) {
        let dead = |location: Option<Location>| {
            let bytes = location.map_or(0, |l| whole_blocks(l.len() as u64));
            self.shared.dead_bytes.fetch_add(bytes, Ordering::Relaxed);
        };
        for (i, (work, entry)) in batch.members.into_iter().zip(&header.entries).enumerate() {
            // A reply that cannot be sent has nobody waiting for it.
            match work {
                Work::Rows { reply, .. } => drop(reply.send(Ok(LogPosition::new(start, i)))),
                Work::Chunk { hash, reply, .. } => {
                    let location = Location::new(header.offset + u64::from(entry.at), entry.len);
                    dead(self.shared.index.insert(&hash, location));
                    let _ = reply.send(Ok(PutOutcome::Stored));
                }
                Work::Tombstone { hash, reply } => {
                    dead(self.shared.index.remove(&hash));
                    let _ = reply.send(Ok(true));
                }
                Work::Close { reply } => drop(reply.send(())),
            }
        }
        for rider in batch.riders {
            match rider {
                Rider::Present(reply) => drop(reply.send(Ok(PutOutcome::Present))),
                Rider::Absent(reply) => drop(reply.send(Ok(false))),
            }
        }
    }
}

/// Lays the batch out: table, rows, then each chunk from a whole block on.
fn frame_header(batch: &Batch, sequence: u64, segment: &Segment, offset: u64) -> FrameHeader {
    let header_bytes = batch.header_bytes(0, 0);
    let mut rows_at = header_bytes - batch.rows_bytes;
    let mut chunk_at = whole_blocks(header_bytes);
    let no_hash = ChunkHash::from_bytes([0; 32]);
    let entries = batch.members.iter().map(|work| match work {
        Work::Rows { rows, .. } => {
            let at = rows_at;
            rows_at += rows.len() as u64;
            Entry { kind: Kind::Rows, len: rows.len() as u32, at: at as u32, hash: no_hash }
        }
        Work::Chunk { hash, bytes, .. } => {
            let at = chunk_at;
            chunk_at += whole_blocks(bytes.len() as u64);
            Entry { kind: Kind::Chunk, len: bytes.len() as u32, at: at as u32, hash: *hash }
        }
        Work::Tombstone { hash, .. } => Entry { kind: Kind::Tombstone, len: 0, at: 0, hash: *hash },
        Work::Close { .. } => unreachable!("a batch ends before a close"),
    });
    let entries: Vec<Entry> = entries.collect();
    FrameHeader {
        sequence,
        offset,
        segment: segment.sequence,
        header_bytes: header_bytes as u32,
        frame_bytes: chunk_at as u32,
        entries,
    }
}

/// Writes the frame into the buffer, which may hold an older one.
fn fill(buffer: &mut AlignedBuf, header: &FrameHeader, members: &[Work], key: &[u8; 32]) {
    for (work, entry) in members.iter().zip(&header.entries) {
        let at = entry.at as usize;
        match work {
            Work::Rows { rows, .. } => buffer[at..at + rows.len()].copy_from_slice(rows),
            Work::Chunk { bytes, .. } => {
                buffer[at..at + bytes.len()].copy_from_slice(bytes);
                let end = at + whole_blocks(bytes.len() as u64) as usize;
                buffer[at + bytes.len()..end].fill(0);
            }
            Work::Tombstone { .. } | Work::Close { .. } => {}
        }
    }
    let header_end = whole_blocks(u64::from(header.header_bytes)) as usize;
    buffer[header.header_bytes as usize..header_end].fill(0);
    header.encode(buffer, key);
}
