//! The log of a node: everything durable on a device, chunks and catalog rows alike, in the order it was
//! acknowledged.
//!
//! # On the device
//! All integers are little-endian, everything begins at a multiple of 4096 bytes.
//! ```text
//! device    0        superblock
//!           4096     superblock, a second copy
//!           1 MiB    slot 0, then slot 1, ...; each `segment_bytes` long, and free or with one segment in it
//!
//! superblock    0   8  "DOZOLOG\0"           slot header       0   8  "DOZOSEG\0", or "DOZOFRE\0" in a freed slot
//!               8   4  format version (1)                      8   8  sequence of the segment, from 1
//!              12   4  zero                                   16   8  sequence of its first frame; zero if freed
//!              16  16  log id, random                         24   8  own offset on the device
//!              32  32  key, random                            32  32  check of bytes 0..32
//!              64   8  segment_bytes                              the rest of the block is zero;
//!              72   8  number of slots                            all of it in a slot that was never used
//!              80   8  bytes of the device
//!              88   8  zero                       footer        at the end of a sealed segment:
//!              96  32  BLAKE3 of bytes 0..96            table     its chunk and tombstone entries, padded with zeros;
//!                  the rest of the block is zero                  `where` of a chunk counts from the segment's start
//!                                                     trailer   0   8  "DOZOFTR\0"
//! frame         0   8  "DOZOFRM\0"                              8   8  sequence of the segment
//!               8   8  sequence, from 1                       16   8  offset of the segment's end on the device
//!              16   8  own offset on the device               24   8  bytes of the segment that frames fill
//!              24   4  bytes of the header part               32   8  sequence of the frame behind its last
//!              28   4  bytes of the whole frame               40   8  bytes of rows in it
//!              32   4  number of entries                      48   8  the last floor in it, zero if none
//!              36   4  zero                                   56   8  number of entries in the table
//!              40   8  sequence of its segment                64  32  check of bytes 0..64 and the table
//!              48   8  last frame that was durable                    the rest of the block is zero
//!              56  32  check of the header part without this field
//!              88      entries, 48 bytes each             entry     0   1  kind: 1 rows, 2 chunk, 3 tombstone, 4 floor
//!                      rows, one after the other, then              1   3  zero
//!                        zeros up to a whole block                  4   4  length in bytes
//!                      chunks, each from a whole block on            8   8  where: the bytes, from the frame's start;
//!                        and padded with zeros                             of a tombstone: newest segment it speaks of;
//!                                                                        of a floor: the position
//!                                                                 16  32  hash of the chunk; zero for rows and floor
//! ```
//! A *check* is BLAKE3 keyed with the superblock's key. The key never leaves the device: no chunk that a client
//! stores, and nothing left over from an earlier use of the device, can pass for a header. Own offsets and sequences
//! in what is checked expose a write that went astray or never arrived. Superblock, slot header and trailer fit in
//! one sector, so each is written wholly or not at all. Headers and rows come before chunks in a frame, so that
//! recovery and replays read little; the footer spares them even that.
//!
//! # Commits and recovery
//! One thread appends. Everything that is waiting when it looks becomes one frame, written by one durable write;
//! then all of it is acknowledged. Where much is waiting a second frame is written while the first one still is;
//! frames are acknowledged in their order. A frame never crosses the end of a segment, and all frames of a segment
//! are durable before its footer and the next segment's header are written.
//!
//! Opening reads the footers of sealed segments, and walks the frame headers of the last one. Its last frames count
//! only if no later one says that they were durable and their chunks verify too; otherwise they were never
//! acknowledged, and are blotted out. A header that does not check *before* a frame that was durable is damage: the
//! log refuses to open and names the place, because what follows from silently ending there would be lost. A chunk
//! that is damaged costs only itself, and is found when it is read.
//!
//! # Space
//! The compactor copies what is needed of a mostly dead segment to the end of the log and frees its slot. A copied
//! chunk is the same chunk, so whichever copy recovery finds last is right. A tombstone is copied for as long as the
//! segment that it speaks of exists: until then a copy could come back. Rows are not copied: the catalog writes out
//! all that it holds now and then, and sets a *floor* behind which no row is needed.
//!
//! Slots are kept back so that this works on a full device: [`RESERVED_SEGMENTS`] and room for the catalog from
//! chunks, two of them from rows and deletions as well, for the compactor. Rows that are written out so that the floor
//! can rise may take one of these two: what they free needs no room to be freed.

mod appender;
mod batch;
mod compaction;
mod compactor;
mod contents;
mod format;
mod free_slots;
mod index;
mod listing;
mod prefill;
mod recovery;
mod segments;
mod superblock;
pub(crate) mod survey;
mod walk;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use common::hash::ChunkHash;
use tokio::sync::{Semaphore, oneshot};

use crate::io::{BLOCK, BlockIo};
use crate::store::StoreMetrics;
use appender::Appender;
use batch::{Message, Work};
use compactor::{Alarm, Compactor};
#[cfg(test)]
pub(crate) use format::SEGMENTS_START;
use format::Superblock;
pub(crate) use format::{MIN_SEGMENTS, device_bytes};
use free_slots::FreeSlots;
use index::ChunkIndex;
pub(crate) use index::Location;
pub use recovery::OpenLogError;
use segments::Segments;
use walk::Walker;

/// The longest rows entry.
pub const ROWS_BYTES_MAX: usize = 12 << 20;
/// The longest chunk. Chunks are cut at 4 MiB; the index has room for no more than this.
pub const CHUNK_BYTES_MAX: usize = 8 << 20;
/// Slots that chunks may not take: two for rows and deletions on a full device, two for the compactor.
pub(crate) const RESERVED_SEGMENTS: usize = 4;
/// Free slots beside the reserved ones below which every gain counts.
const PRESSED_SLOTS: usize = 2;
/// Bytes of chunks that wait to be written or are being written, at most; further ones wait outside.
const QUEUED_BYTES_MAX: usize = 64 << 20;

/// Bytes of a segment on a device of that size: 16 to 64 MiB, so that there are enough of them on a small one.
pub(crate) const fn segment_bytes_for(device_bytes: u64) -> u64 {
    const SEGMENT_BYTES_MIN: u64 = 16 << 20;
    const SEGMENT_BYTES_MAX: u64 = 64 << 20;
    let wanted = device_bytes / 64;
    if wanted >= SEGMENT_BYTES_MAX {
        SEGMENT_BYTES_MAX
    } else if wanted <= SEGMENT_BYTES_MIN {
        SEGMENT_BYTES_MIN
    } else {
        1 << wanted.ilog2()
    }
}

/// A rows entry's place in the order of all. Zero is before every entry; a replay after a position visits what
/// was appended later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPosition(pub u64);

// Sequence of the segment times its size, plus the frame's offset in it, plus the entry's number in the frame,
// which stays below the 4096 bytes that every frame takes.
impl LogPosition {
    fn new(frame_start: u64, entry: usize) -> Self {
        Self(frame_start + entry as u64)
    }

    /// From the start of its segment.
    fn frame_offset(self, segment_bytes: u64) -> u64 {
        self.0 % segment_bytes / BLOCK as u64 * BLOCK as u64
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("the log is full: all of its {capacity_bytes} bytes are taken")]
    Full { capacity_bytes: u64 },
    #[error("an entry of {len} bytes is too long for the log: {max} bytes at most")]
    TooLong { len: usize, max: usize },
    /// The write that failed; from then on the log is stopped.
    #[error("the log cannot be written")]
    Io { source: Arc<std::io::Error> },
    /// Closed, or stopped by an earlier failure: nothing more is acknowledged until the node is started anew.
    #[error("the log has stopped")]
    Stopped,
}

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Takes rows entries one by one; an error ends the replay.
pub type RowsVisitor<'a> = dyn FnMut(LogPosition, &[u8]) -> Result<(), BoxError> + 'a;

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("the log cannot be read")]
    Io(#[from] std::io::Error),
    #[error("the log is damaged at byte {at} of the device: no valid frame")]
    Damaged { at: u64 },
    /// The reader has not seen rows that the log no longer has; it must begin anew.
    #[error("rows behind position {} are needed, the log has none before {}", .after.0, .floor.0)]
    Reclaimed { after: LogPosition, floor: LogPosition },
    /// The reader knows entries that the log does not have, as after a device was put back from a copy.
    #[error("position {} lies beyond the end of the log at {}", .after.0, .end.0)]
    BeyondEnd { after: LogPosition, end: LogPosition },
    #[error("an entry of the log was not accepted")]
    Visit(#[source] BoxError),
}

/// Whether a chunk was new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    Stored,
    /// It was there already, durably.
    Present,
}

/// The log of one device. Clones are handles of the same log; dropping the last one flushes it and closes the
/// device.
#[derive(Clone)]
pub struct Log(Arc<Handle>);

struct Handle {
    messages: Sender<Message>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Whether [`Log::close`] was asked for.
    closed: AtomicBool,
    queued: Semaphore,
    shared: Arc<Shared>,
}

/// What the log's threads share with readers.
pub(crate) struct Shared {
    pub io: Arc<dyn BlockIo>,
    pub index: ChunkIndex,
    pub metrics: StoreMetrics,
    superblock: Superblock,
    segments: Segments,
    free_slots: FreeSlots,
    /// Wakes the compactor.
    alarm: Alarm,
    /// Bytes of frames since the start.
    appended_bytes: AtomicU64,
    /// Bytes that the compactor could give back if it were not for rows that are needed.
    blocked_bytes: AtomicU64,
}

impl Shared {
    /// Slots that chunks may not take: the reserve, and room for the catalog to be written out anew.
    fn reserved_segments(&self) -> usize {
        let rows = self.segments.needed_rows_bytes().div_ceil(self.superblock.segment_bytes);
        // Rows never keep more than half of a device.
        let rows = rows.saturating_sub(1).min(self.superblock.slots / 2);
        RESERVED_SEGMENTS + rows as usize
    }

    /// Whether slots are so few that every gain counts.
    fn is_pressed(&self) -> bool {
        self.free_slots.len() <= self.reserved_segments() + PRESSED_SLOTS
    }

    /// Bytes that chunks and rows may fill before chunks are refused.
    fn capacity_bytes(&self) -> u64 {
        (self.superblock.slots - RESERVED_SEGMENTS as u64) * self.superblock.segment_bytes
    }
}

/// How a log is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenOptions {
    /// Of a log that is made anew.
    pub segment_bytes: u64,
    /// Makes a log also on a device that holds something else, which is lost.
    pub force: bool,
    /// Writes all free slots with zeros before the log is used: appends to space that was written cost half.
    pub prefill: bool,
}

impl Log {
    /// Opens the log on a device, making it if the device is empty. Blocks: reads what every segment holds.
    pub(crate) fn open(
        io: Arc<dyn BlockIo>,
        options: OpenOptions,
        metrics: StoreMetrics,
    ) -> Result<Self, OpenLogError> {
        let (log, appender) = Self::prepare(io, options, metrics)?;
        if options.prefill {
            prefill::all(&log.0.shared).map_err(|source| OpenLogError::Io { what: "a free slot", source })?;
        }
        let failed = |source| OpenLogError::Io { what: "a thread of the log", source };
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let compactor = Compactor::new(Arc::clone(&log.0.shared), log.0.messages.clone());
        let threads = [
            thread("dozo-log").spawn(move || appender.run()).map_err(failed)?,
            thread("dozo-compact").spawn(move || compactor.run()).map_err(failed)?,
        ];
        log.0.threads.lock().unwrap_or_else(PoisonError::into_inner).extend(threads);
        Ok(log)
    }

    /// Opens the log of a device to look at: nothing can be appended, and nothing runs.
    pub(crate) fn open_for_reading(
        io: Arc<dyn BlockIo>,
        metrics: StoreMetrics,
    ) -> Result<Self, OpenLogError> {
        let options =
            OpenOptions { segment_bytes: segment_bytes_for(io.size_bytes()), force: false, prefill: false };
        let (log, _never_run) = Self::prepare(io, options, metrics)?;
        Ok(log)
    }

    /// The log and what has to run for it, not running yet.
    fn prepare(
        io: Arc<dyn BlockIo>,
        options: OpenOptions,
        metrics: StoreMetrics,
    ) -> Result<(Self, Appender), OpenLogError> {
        let superblock = superblock::read_or_format(&*io, options)?;
        let recovered = recovery::recover(&*io, &superblock)?;
        let shared = Arc::new(Shared {
            io,
            index: recovered.index,
            metrics,
            superblock,
            segments: recovered.segments,
            free_slots: recovered.free_slots,
            alarm: Alarm::default(),
            appended_bytes: AtomicU64::new(0),
            blocked_bytes: AtomicU64::new(0),
        });
        let (messages, queue) = channel();
        let appender = Appender::new(Arc::clone(&shared), messages.clone(), queue, recovered.tail);
        let handle = Handle {
            messages,
            threads: Mutex::default(),
            closed: AtomicBool::new(false),
            queued: Semaphore::new(QUEUED_BYTES_MAX),
            shared,
        };
        Ok((Self(Arc::new(handle)), appender))
    }

    /// 32 hexadecimal digits, drawn when the log was made.
    pub fn id(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0.shared.superblock.log_id))
    }

    /// Appends one rows entry, grouped with everything else that is being appended.
    ///
    /// # Durability
    /// It survives a power cut when this resolves.
    /// # Cancel safety
    /// Once polled the entry is appended even if the future is dropped.
    pub async fn append_rows(&self, rows: Bytes) -> Result<LogPosition, LogError> {
        self.ask(|reply| Work::Rows { rows, is_write_out: false, reply })?
            .await
            .unwrap_or(Err(LogError::Stopped))
    }

    /// [`Log::append_rows`] for a thread of its own; must not be called from a task.
    pub fn append_rows_blocking(&self, rows: Bytes) -> Result<LogPosition, LogError> {
        let answer = self.ask(|reply| Work::Rows { rows, is_write_out: false, reply })?;
        answer.blocking_recv().unwrap_or(Err(LogError::Stopped))
    }

    /// [`Log::append_rows_blocking`] for rows that are written out so that the floor can be raised: they are taken
    /// also when the log has no room for others.
    pub fn write_out_rows_blocking(&self, rows: Bytes) -> Result<LogPosition, LogError> {
        let answer = self.ask(|reply| Work::Rows { rows, is_write_out: true, reply })?;
        answer.blocking_recv().unwrap_or(Err(LogError::Stopped))
    }

    /// Says, durably, that rows up to `position` are not needed any more: whatever they left stands in rows behind
    /// it. For a thread of its own.
    pub fn raise_floor_blocking(&self, position: LogPosition) -> Result<(), LogError> {
        let answer = self.ask(|reply| Work::Floor { position, reply })?;
        let raised = answer.blocking_recv().unwrap_or(Err(LogError::Stopped));
        self.0.shared.blocked_bytes.store(0, Ordering::Release);
        self.0.shared.alarm.ring();
        raised
    }

    /// Rows up to this position are not needed, and may be gone.
    pub fn floor(&self) -> LogPosition {
        self.0.shared.segments.floor()
    }

    /// Whether a floor at this position would stand in a later segment than the one that is: only then it gives
    /// something back.
    pub fn is_higher_floor(&self, position: LogPosition) -> bool {
        let segment = |position: LogPosition| position.0 / self.segment_bytes();
        segment(position) > segment(self.floor())
    }

    /// Bytes of rows behind the floor, with those before it in the same segment.
    pub fn needed_rows_bytes(&self) -> u64 {
        self.0.shared.segments.needed_rows_bytes()
    }

    /// Bytes that could be given back if the floor were above them, when nothing else can be.
    pub fn blocked_bytes(&self) -> u64 {
        self.0.shared.blocked_bytes.load(Ordering::Acquire)
    }

    /// Whether slots are few.
    pub fn is_pressed(&self) -> bool {
        self.0.shared.is_pressed()
    }

    pub fn segment_bytes(&self) -> u64 {
        self.0.shared.superblock.segment_bytes
    }

    /// Visits every rows entry after `after` that was acknowledged before this call, in order. Blocks; must not
    /// be called from a task. Position 0 stands for a reader that knows nothing, and begins at the floor.
    pub fn replay_rows(&self, after: LogPosition, visit: &mut RowsVisitor<'_>) -> Result<(), ReplayError> {
        let shared = &self.0.shared;
        let (superblock, floor) = (&shared.superblock, shared.segments.floor());
        if after.0 > 0 && after < floor {
            return Err(ReplayError::Reclaimed { after, floor });
        }
        let segments = shared.segments.all();
        let end = segments.last().map_or(0, |last| last.sequence * superblock.segment_bytes + last.end);
        if after.0 > 0 && after.0 >= end {
            return Err(ReplayError::BeyondEnd { after, end: LogPosition(end) });
        }
        let after = after.max(floor);
        let from_segment = after.0 / superblock.segment_bytes;
        for segment in segments.iter().filter(|s| s.sequence >= from_segment && s.rows_bytes > 0) {
            let (sequence, slot) = (segment.sequence, segment.slot);
            let mut walker = Walker::new(&*shared.io, superblock, sequence, slot, segment.first_frame);
            if sequence == from_segment {
                walker.resume_at(after.frame_offset(superblock.segment_bytes));
            }
            while walker.offset() < segment.end {
                let at = walker.device_offset();
                let start = sequence * superblock.segment_bytes + walker.offset();
                let frame = walker.next()?.ok_or(ReplayError::Damaged { at })?;
                for (position, rows) in frame.rows(start).filter(|(position, _)| *position > after) {
                    visit(position, rows).map_err(ReplayError::Visit)?;
                }
            }
        }
        Ok(())
    }

    /// Commits what is queued, then stops: whatever is asked later is answered with [`LogError::Stopped`].
    /// Chunks can be read until the last handle is dropped.
    pub async fn close(&self) {
        let answer = self.ask(|reply| Work::Close { reply });
        self.0.closed.store(true, Ordering::Release);
        self.0.shared.alarm.stop();
        if let Ok(answer) = answer {
            // Without an answer the thread has ended already.
            let _ = answer.await;
        }
    }

    pub(crate) async fn append_chunk(&self, hash: ChunkHash, bytes: Bytes) -> Result<PutOutcome, LogError> {
        // The semaphore is never closed. One that is longer than the bound is refused by its length.
        let share = bytes.len().min(QUEUED_BYTES_MAX) as u32;
        let _share = self.0.queued.acquire_many(share).await.map_err(|_| LogError::Stopped)?;
        self.ask(|reply| Work::Chunk { hash, bytes, reply })?.await.unwrap_or(Err(LogError::Stopped))
    }

    pub(crate) async fn append_tombstone(&self, hash: ChunkHash) -> Result<bool, LogError> {
        self.ask(|reply| Work::Tombstone { hash, reply })?.await.unwrap_or(Err(LogError::Stopped))
    }

    /// Hashes of the chunks in the first segment from sequence `from` on, and where to go on. Blocks.
    pub(crate) fn list_chunks(&self, from: u64) -> std::io::Result<(Vec<ChunkHash>, Option<u64>)> {
        listing::list(&self.0.shared, from)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.0.shared.capacity_bytes()
    }

    /// Bytes of the log without those of deleted chunks.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.0.shared.segments.used_bytes()
    }

    fn ask<T>(
        &self,
        work: impl FnOnce(oneshot::Sender<T>) -> Work,
    ) -> Result<oneshot::Receiver<T>, LogError> {
        if self.0.closed.load(Ordering::Acquire) {
            return Err(LogError::Stopped);
        }
        let (reply, answer) = oneshot::channel();
        self.0.messages.send(Message::Work(work(reply))).map_err(|_| LogError::Stopped)?;
        Ok(answer)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.alarm.stop();
        let (reply, _) = oneshot::channel();
        // A failed send means that the appender has ended.
        let _ = self.messages.send(Message::Work(Work::Close { reply }));
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A panic was reported by its own thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
