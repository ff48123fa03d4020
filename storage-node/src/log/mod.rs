//! The log of a node: everything durable on a device, chunks and catalog rows alike, in the order it was
//! acknowledged.
//!
//! # On the device
//! All integers are little-endian, everything begins at a multiple of 4096 bytes.
//! ```text
//! device    0        superblock
//!           4096     superblock, a second copy
//!           1 MiB    segment of slot 0, then slot 1, ...; each `segment_bytes` long (64 MiB)
//!
//! superblock    0   8  "DOZOLOG\0"           segment header    0   8  "DOZOSEG\0"
//!               8   4  format version (1)                      8   8  sequence of the segment, from 1
//!              12   4  zero                                   16   8  sequence of its first frame
//!              16  16  log id, random                         24   8  own offset on the device
//!              32  32  key, random                            32  32  check of bytes 0..32
//!              64   8  segment_bytes                              the rest of the block is zero
//!              72   8  number of slots
//!              80   8  bytes of the device
//!              88   8  zero
//!              96  32  BLAKE3 of bytes 0..96
//!                  the rest of the block is zero
//!
//! frame         0   8  "DOZOFRM\0"           entry             0   1  kind: 1 rows, 2 chunk, 3 tombstone
//!               8   8  sequence, from 1                        1   3  zero
//!              16   8  own offset on the device                4   4  length in bytes
//!              24   4  bytes of the header part                8   4  where its bytes are, from the frame's start
//!              28   4  bytes of the whole frame               12   4  zero
//!              32   4  number of entries                      16  32  hash of the chunk; zero for rows
//!              36   4  zero
//!              40   8  sequence of its segment
//!              48  32  check of the header part without this field
//!              80      entries, 48 bytes each
//!                      rows entries, one after the other, then zeros up to a whole block
//!                      chunks, each from a whole block on and padded with zeros
//! ```
//! A *check* is BLAKE3 keyed with the superblock's key. The key never leaves the device: no chunk that a client
//! stores, and nothing left over from an earlier use of the device, can pass for a header. Superblock and segment
//! header fit in one sector, so each is written wholly or not at all.
//!
//! # Commits and recovery
//! One thread appends. Everything that is waiting when it looks becomes one frame, written by one durable write;
//! then all of it is acknowledged. One frame is in flight at a time, so after a crash at most the last one can be
//! incomplete. A frame never crosses the end of a segment; segments are filled in the order of their sequence.
//!
//! Opening walks the frame headers. The last frame counts only if its chunks verify too; otherwise it was never
//! acknowledged, and is blotted out. A header that does not check *before* the last good frame is damage: the log
//! refuses to open and names the place, because what follows from silently ending there would be lost. A chunk
//! that is damaged costs only itself, and is found when it is read.
//!
//! # Limits
//! Segments are not reclaimed yet: a deleted chunk is no longer counted as used, but its space comes back only
//! with a compaction of its segment, which this format allows and this version does not do. When only the
//! reserved segments are left chunks are refused, and rows and deletions go on until those are full as well.

mod appender;
mod format;
mod index;
mod recovery;
mod walk;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use common::hash::ChunkHash;
use tokio::sync::oneshot;

use crate::io::{BLOCK, BlockIo};
use crate::store::StoreMetrics;
use appender::{Appender, Work};
use format::Superblock;
pub(crate) use format::{MIN_SEGMENTS, SEGMENTS_START, device_bytes};
use index::ChunkIndex;
pub(crate) use index::Location;
pub use recovery::OpenLogError;
use walk::{Segment, Walker};

/// Bytes of a segment, unless a test wants less.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 20;
/// The longest rows entry.
pub const ROWS_BYTES_MAX: usize = 32 << 20;
/// The longest chunk. Chunks are cut at 4 MiB; the index has room for no more than this.
pub const CHUNK_BYTES_MAX: usize = 8 << 20;
/// Segments that chunks may not take, so that rows and deletions work on a full device.
pub(crate) const RESERVED_SEGMENTS: usize = 2;

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

/// Declared in the order in which they end: first no more work, then the thread, then the device.
struct Handle {
    work: Mutex<Option<Sender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
}

/// What the appending thread shares with readers.
pub(crate) struct Shared {
    pub io: Arc<dyn BlockIo>,
    pub index: ChunkIndex,
    pub metrics: StoreMetrics,
    superblock: Superblock,
    written: Mutex<Written>,
    /// Bytes of live and dead entries, headers and slack: from the first segment to the end of the log.
    appended_bytes: AtomicU64,
    /// Bytes of deleted chunks.
    dead_bytes: AtomicU64,
}

/// The part of the device that is durable.
struct Written {
    /// In the order of their sequences.
    segments: Vec<Segment>,
    /// Bytes of the last segment that frames fill, its header included.
    end: u64,
}

impl Shared {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device_offset(&self, segment: &Segment, offset: u64) -> u64 {
        self.superblock.segment_offset(segment.slot) + offset
    }

    fn note_end(&self, written: &Written) {
        let full = written.segments.len().saturating_sub(1) as u64;
        self.appended_bytes.store(full * self.superblock.segment_bytes + written.end, Ordering::Relaxed);
    }

    /// Bytes that chunks and rows may fill before chunks are refused.
    fn capacity_bytes(&self) -> u64 {
        (self.superblock.slots - RESERVED_SEGMENTS as u64) * self.superblock.segment_bytes
    }
}

impl Log {
    /// Opens the log on a device, making it if the device is empty. Blocks: reads every frame header.
    pub(crate) fn open(
        io: Arc<dyn BlockIo>,
        segment_bytes: u64,
        metrics: StoreMetrics,
    ) -> Result<Self, OpenLogError> {
        let (log, appender) = Self::prepare(io, segment_bytes, metrics)?;
        let thread = std::thread::Builder::new()
            .name("dozo-log".into())
            .spawn(move || appender.run())
            .map_err(|source| OpenLogError::Io { what: "the thread of the log", source })?;
        *log.0.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(log)
    }

    /// The log and what has to run for it, not running yet.
    fn prepare(
        io: Arc<dyn BlockIo>,
        segment_bytes: u64,
        metrics: StoreMetrics,
    ) -> Result<(Self, Appender), OpenLogError> {
        let superblock = recovery::read_or_format(&*io, segment_bytes)?;
        let recovered = recovery::recover(&*io, &superblock)?;
        let shared = Arc::new(Shared {
            io,
            index: recovered.index,
            metrics,
            superblock,
            appended_bytes: AtomicU64::new(recovered.appended_bytes),
            dead_bytes: AtomicU64::new(recovered.dead_bytes),
            written: Mutex::new(Written { segments: recovered.segments, end: recovered.end }),
        });
        let (work, queue) = channel();
        let appender = Appender::new(Arc::clone(&shared), queue, recovered.next_frame, recovered.free_slots);
        let handle = Handle { work: Mutex::new(Some(work)), thread: Mutex::new(None), shared };
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
        let (reply, answer) = oneshot::channel();
        self.send(Work::Rows { rows, reply })?;
        answer.await.unwrap_or(Err(LogError::Stopped))
    }

    /// [`Log::append_rows`] for a thread of its own; must not be called from a task.
    pub fn append_rows_blocking(&self, rows: Bytes) -> Result<LogPosition, LogError> {
        let (reply, answer) = oneshot::channel();
        self.send(Work::Rows { rows, reply })?;
        answer.blocking_recv().unwrap_or(Err(LogError::Stopped))
    }

    /// Visits every rows entry after `after` that was acknowledged before this call, in order. Blocks; must not
    /// be called from a task.
    pub fn replay_rows(&self, after: LogPosition, visit: &mut RowsVisitor<'_>) -> Result<(), ReplayError> {
        let shared = &self.0.shared;
        let superblock = &shared.superblock;
        let (segments, end) = {
            let written = shared.written();
            (written.segments.clone(), written.end)
        };
        let Some(last) = segments.last() else {
            return if after.0 == 0 {
                Ok(())
            } else {
                Err(ReplayError::BeyondEnd { after, end: LogPosition(0) })
            };
        };
        let log_end = LogPosition(last.sequence * superblock.segment_bytes + end);
        if after >= log_end {
            return Err(ReplayError::BeyondEnd { after, end: log_end });
        }
        let from_segment = after.0 / superblock.segment_bytes;
        for (i, segment) in segments.iter().enumerate().filter(|(_, s)| s.sequence >= from_segment) {
            let until = if i + 1 == segments.len() { end } else { superblock.segment_bytes };
            let next_first = segments.get(i + 1).map(|next| next.first_frame);
            let mut walker = Walker::new(&*shared.io, superblock, *segment);
            if segment.sequence == from_segment {
                walker.resume_at(after.frame_offset(superblock.segment_bytes));
            }
            while walker.offset() < until && !walker.has_reached(next_first) {
                let at = walker.device_offset();
                let start = segment.sequence * superblock.segment_bytes + walker.offset();
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
        let (reply, answer) = oneshot::channel();
        if self.send(Work::Close { reply }).is_ok() {
            // Without an answer the thread has ended already.
            let _ = answer.await;
        }
    }

    pub(crate) async fn append_chunk(&self, hash: ChunkHash, bytes: Bytes) -> Result<PutOutcome, LogError> {
        let (reply, answer) = oneshot::channel();
        self.send(Work::Chunk { hash, bytes, reply })?;
        answer.await.unwrap_or(Err(LogError::Stopped))
    }

    pub(crate) async fn append_tombstone(&self, hash: ChunkHash) -> Result<bool, LogError> {
        let (reply, answer) = oneshot::channel();
        self.send(Work::Tombstone { hash, reply })?;
        answer.await.unwrap_or(Err(LogError::Stopped))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.0.shared.capacity_bytes()
    }

    /// Bytes of the log without those of deleted chunks.
    pub(crate) fn used_bytes(&self) -> u64 {
        let dead = self.0.shared.dead_bytes.load(Ordering::Relaxed);
        self.0.shared.appended_bytes.load(Ordering::Relaxed).saturating_sub(dead)
    }

    fn send(&self, work: Work) -> Result<(), LogError> {
        let sender = self.0.work.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().and_then(|s| s.send(work).ok()).ok_or(LogError::Stopped)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
