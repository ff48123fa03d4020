//! The one thread that writes: it makes a frame of all that is waiting, writes it durably, then answers.
//!
//! Only this thread changes the index, and only after the write: whoever finds a chunk there finds it durable.
//! After a write that failed nothing can be said about the device any more, so nothing is acknowledged again.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use common::hash::ChunkHash;

use super::batch::{Batch, Member, Message, Rider, Work};
use super::format::{Entry, Footer, FrameHeader, SlotHeader};
use super::recovery::Tail;
use super::segments::Segment;
use super::{CHUNK_BYTES_MAX, LogError, LogPosition, PutOutcome, ROWS_BYTES_MAX, Shared};
use crate::io::{AlignedBuf, BLOCK};
use crate::log::Location;

/// A frame takes no more than this unless a single entry is longer.
const FRAME_BYTES_TARGET: u64 = 4 << 20;
/// Entries of one frame; a position counts them in 12 bits.
const FRAME_ENTRIES_MAX: usize = 1024;
/// Frames being written at once.
const IN_FLIGHT_MAX: usize = 2;
/// A frame is written beside another only if at least this much is waiting: small work gains more from gathering.
const OVERLAP_BYTES_MIN: u64 = 64 << 10;
/// Rows and deletions leave this many slots to the compactor.
const COMPACTOR_SEGMENTS: usize = 2;

/// The segment that frames go to.
pub(super) struct Head {
    pub sequence: u64,
    pub slot: u32,
    /// Bytes that frames fill, those being written included.
    pub end: u64,
    /// The footer as far as it is known.
    pub entries: Vec<Entry>,
    pub rows_bytes: u64,
    pub floor: u64,
    /// A sealed one, found so at the start, takes no more frames.
    pub sealed: bool,
}

/// A frame being written.
struct InFlight {
    batch: Batch,
    header: FrameHeader,
    /// Position of the frame.
    start: u64,
    begun: Instant,
    result: Option<io::Result<AlignedBuf>>,
}

/// What becomes of a chunk in a frame that is not durable yet.
struct Touch {
    present: bool,
    frame: u64,
}

pub(super) struct Appender {
    shared: Arc<Shared>,
    /// To itself, for the ends of writes.
    messages: Sender<Message>,
    queue: Receiver<Message>,
    waiting: VecDeque<Work>,
    waiting_bytes: u64,
    in_flight: VecDeque<InFlight>,
    touched: HashMap<ChunkHash, Touch>,
    head: Option<Head>,
    next_segment: u64,
    next_frame: u64,
    /// Kept from frame to frame.
    buffers: Vec<AlignedBuf>,
    /// Bytes that must be waiting for a frame beside another.
    overlap_bytes_min: u64,
    stopped: bool,
    closed: bool,
}

/// Whether work can join the batch.
enum Room {
    Here,
    /// In the next frame, or once all frames in flight are durable.
    Later,
}

impl Appender {
    pub fn new(shared: Arc<Shared>, messages: Sender<Message>, queue: Receiver<Message>, tail: Tail) -> Self {
        let keep = |(hash, of)| {
            // Nobody waits for it: the next start would only find the same again.
            let (reply, _) = tokio::sync::oneshot::channel();
            Work::Keep { hash, of, reply }
        };
        Self {
            shared,
            messages,
            queue,
            waiting: tail.surplus_copies.into_iter().map(keep).collect(),
            waiting_bytes: 0,
            in_flight: VecDeque::new(),
            touched: HashMap::new(),
            head: tail.head,
            next_segment: tail.next_segment,
            next_frame: tail.next_frame,
            buffers: Vec::new(),
            overlap_bytes_min: OVERLAP_BYTES_MIN,
            stopped: false,
            closed: false,
        }
    }

    /// Writes any frame beside another, as if much were waiting.
    #[cfg(test)]
    pub fn overlap_anything(&mut self) {
        self.overlap_bytes_min = 0;
    }

    /// Until the log is closed or its last handle is gone.
    pub fn run(mut self) {
        while self.turn() {}
    }

    /// Deals with what is queued, without waiting for more.
    #[cfg(test)]
    pub fn catch_up(&mut self) {
        let next = self.queue.try_recv().ok();
        self.work_through(next);
    }

    /// Waits for a message and deals with all that are queued by then. False once there will be no more.
    fn turn(&mut self) -> bool {
        let next = self.queue.recv().ok();
        self.work_through(next);
        !self.closed
    }

    fn work_through(&mut self, mut next: Option<Message>) {
        while let Some(message) = next {
            self.take(message);
            while let Ok(message) = self.queue.try_recv() {
                self.take(message);
            }
            self.submit();
            next = self.queue.try_recv().ok();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Work(work) => {
                let (rows, payload) = work.sizes();
                self.waiting_bytes += rows + payload;
                self.waiting.push_back(work);
            }
            Message::Written { frame, result } => self.written(frame, result),
        }
    }

    /// Writes what is waiting, as far as frames may be in flight.
    fn submit(&mut self) {
        while !self.waiting.is_empty() && self.in_flight.len() < IN_FLIGHT_MAX {
            if !self.in_flight.is_empty() && self.waiting_bytes < self.overlap_bytes_min {
                return;
            }
            let mut batch = Batch::default();
            let mut given_back = None;
            while given_back.is_none()
                && batch.members.len() < FRAME_ENTRIES_MAX
                && let Some(work) = self.waiting.pop_front()
            {
                let (rows, payload) = work.sizes();
                self.waiting_bytes -= rows + payload;
                given_back = self.admit(&mut batch, work);
            }
            let must_wait = given_back.is_some() && batch.members.is_empty();
            if let Some(work) = given_back {
                let (rows, payload) = work.sizes();
                self.waiting_bytes += rows + payload;
                self.waiting.push_front(work);
            }
            if !batch.members.is_empty() {
                self.write(batch);
            }
            if must_wait || self.closed {
                return;
            }
        }
    }

    /// Takes work into the batch or answers it. Gives it back if it has to wait.
    fn admit(&mut self, batch: &mut Batch, work: Work) -> Option<Work> {
        let is_idle = batch.members.is_empty() && self.in_flight.is_empty();
        if let Work::Close { reply } = work {
            if !is_idle {
                return Some(Work::Close { reply });
            }
            self.closed = true;
            let _ = reply.send(());
            return None;
        }
        if self.stopped || self.closed {
            work.refuse(LogError::Stopped);
            return None;
        }
        let member = self.settle(batch, work)?;
        match self.check_length(&member.work).and_then(|()| self.find_room(batch, &member.work)) {
            Ok(Room::Here) => {
                self.touch(&member.work);
                batch.add(member);
            }
            Ok(Room::Later) => return Some(member.work),
            Err(error) => member.work.refuse(error),
        }
        None
    }

    /// Remembers what the next frame does to a chunk.
    fn touch(&mut self, work: &Work) {
        let (hash, present) = match work {
            Work::Chunk { hash, .. } | Work::Move { hash, .. } => (*hash, true),
            Work::Tombstone { hash, .. } | Work::Drop { hash, .. } => (*hash, false),
            _ => return,
        };
        self.touched.insert(hash, Touch { present, frame: self.next_frame });
    }

    /// Answers what needs no entry: a chunk that is there, the deletion of one that is not. If that is so only
    /// through a frame that is not durable yet, the answer waits for it.
    fn settle(&mut self, batch: &mut Batch, work: Work) -> Option<Member> {
        match work {
            Work::Chunk { hash, reply, bytes } => {
                match self.touched.get(&hash) {
                    Some(Touch { present: true, frame }) => {
                        let frame = *frame;
                        self.ride(batch, frame, Rider::Present(reply));
                        return None;
                    }
                    None if self.shared.index.get(&hash).is_some() => {
                        let _ = reply.send(Ok(PutOutcome::Present));
                        return None;
                    }
                    _ => {}
                }
                Some(Member { work: Work::Chunk { hash, bytes, reply }, of: 0 })
            }
            Work::Tombstone { hash, reply } => {
                let of = match (self.touched.get(&hash), self.shared.index.get(&hash)) {
                    (Some(Touch { present: false, frame }), _) => {
                        let frame = *frame;
                        self.ride(batch, frame, Rider::Absent(reply));
                        return None;
                    }
                    // What is in flight, or in this batch, lies in the segment that frames go to.
                    (Some(Touch { present: true, .. }), _) => self.head.as_ref().map_or(0, |h| h.sequence),
                    (None, Some(location)) => self.shared.segments.sequence_at(location),
                    (None, None) => {
                        let _ = reply.send(Ok(false));
                        return None;
                    }
                };
                Some(Member { work: Work::Tombstone { hash, reply }, of })
            }
            Work::Drop { hash, reply } => {
                let found = self.shared.index.get(&hash).filter(|_| !self.touched.contains_key(&hash));
                let Some(location) = found else {
                    let _ = reply.send(Ok(()));
                    return None;
                };
                let of = self.shared.segments.sequence_at(location);
                Some(Member { work: Work::Drop { hash, reply }, of })
            }
            Work::Move { hash, bytes, from, reply } => {
                if self.touched.contains_key(&hash) || self.shared.index.get(&hash) != Some(from) {
                    // Deleted since: nothing is left to be moved.
                    let _ = reply.send(Ok(()));
                    return None;
                }
                Some(Member { work: Work::Move { hash, bytes, from, reply }, of: 0 })
            }
            other => Some(Member { work: other, of: 0 }),
        }
    }

    /// Lets an answer wait for a frame: one in flight, or the batch that becomes the next.
    fn ride(&mut self, batch: &mut Batch, frame: u64, rider: Rider) {
        match self.in_flight.iter_mut().find(|f| f.header.sequence == frame) {
            Some(in_flight) => in_flight.batch.riders.push(rider),
            None => batch.riders.push(rider),
        }
    }

    fn check_length(&self, work: &Work) -> Result<(), LogError> {
        let (len, limit) = match work {
            Work::Rows { rows, .. } => (rows.len(), ROWS_BYTES_MAX),
            Work::Chunk { bytes, .. } => (bytes.len(), CHUNK_BYTES_MAX),
            _ => return Ok(()),
        };
        // Beside it the segment holds its own header, the frame's, padding, and a footer.
        let max = limit.min(self.shared.superblock.segment_bytes as usize - 5 * BLOCK);
        if len > max { Err(LogError::TooLong { len, max }) } else { Ok(()) }
    }

    /// Whether the work can join the batch; opens the next segment if need be.
    fn find_room(&mut self, batch: &Batch, work: &Work) -> Result<Room, LogError> {
        let full = LogError::Full { capacity_bytes: self.shared.capacity_bytes() };
        let is_write_out = matches!(work, Work::Rows { is_write_out: true, .. });
        let is_compactors =
            matches!(work, Work::Move { .. } | Work::Drop { .. } | Work::Keep { .. } | Work::Floor { .. });
        let makes_room = is_write_out || is_compactors;
        let frame_bytes = batch.frame_bytes_with(work);
        let is_first = batch.members.is_empty();
        if !is_first && frame_bytes > FRAME_BYTES_TARGET {
            return Ok(Room::Later);
        }
        if let Some(head) = self.head.as_ref().filter(|head| !head.sealed) {
            let entries = head.entries.len() + batch.footer_entries + work.footer_entries();
            let room = self.shared.superblock.segment_bytes - head.end;
            if frame_bytes + Footer::bytes(entries) <= room {
                // On a device as full as that the compactor has the last room to itself.
                let is_kept = !makes_room && self.shared.free_slots.len() < COMPACTOR_SEGMENTS;
                return if is_kept { Err(full) } else { Ok(Room::Here) };
            }
        }
        let kept_back = match work {
            Work::Chunk { .. } => self.shared.reserved_segments(),
            _ if is_compactors => 0,
            // What it frees needs no room to be freed, so one slot is enough for the compactor meanwhile.
            _ if is_write_out => COMPACTOR_SEGMENTS - 1,
            _ => COMPACTOR_SEGMENTS,
        };
        if self.shared.free_slots.len() <= kept_back {
            self.shared.alarm.ring();
            return Err(full);
        }
        if !is_first || !self.in_flight.is_empty() {
            return Ok(Room::Later);
        }
        self.open_segment()?;
        Ok(Room::Here)
    }

    /// Seals the segment that is full and begins the next. Nothing is in flight.
    fn open_segment(&mut self) -> Result<(), LogError> {
        let full = LogError::Full { capacity_bytes: self.shared.capacity_bytes() };
        let Some(slot) = self.shared.free_slots.take() else { return Err(full) };
        let superblock = &self.shared.superblock;
        let (offset, segment_bytes) = (superblock.segment_offset(slot), superblock.segment_bytes);
        if let Err(error) = self.shared.io.reserve(offset, segment_bytes) {
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            self.shared.free_slots.give(slot, false);
            return Err(match error.kind() {
                StorageFull | QuotaExceeded | FileTooLarge => full,
                _ => self.stop(error),
            });
        }
        self.seal()?;
        let superblock = &self.shared.superblock;
        let sequence = self.next_segment;
        let mut block = AlignedBuf::heap(BLOCK);
        let header = SlotHeader::Segment { sequence, first_frame: self.next_frame };
        header.encode(&mut block, offset, &superblock.key);
        let result = self.shared.io.write_durable_at(block, offset).wait();
        if let Err(error) = result {
            return Err(self.stop(error));
        }
        self.next_segment += 1;
        let end = BLOCK as u64;
        let first_frame = self.next_frame;
        self.shared.segments.add(Segment { sequence, slot, first_frame, end, chunk_bytes: 0, rows_bytes: 0 });
        self.head =
            Some(Head { sequence, slot, end, entries: Vec::new(), rows_bytes: 0, floor: 0, sealed: false });
        self.shared.alarm.ring();
        Ok(())
    }

    /// Writes the footer of the segment that frames went to.
    fn seal(&mut self) -> Result<(), LogError> {
        let Some(head) = self.head.as_mut().filter(|head| !head.sealed) else { return Ok(()) };
        let superblock = &self.shared.superblock;
        let footer = Footer {
            segment: head.sequence,
            end: head.end,
            next_frame: self.next_frame,
            rows_bytes: head.rows_bytes,
            entries: std::mem::take(&mut head.entries),
            floor: head.floor,
        };
        head.sealed = true;
        let segment_end = superblock.segment_offset(head.slot) + superblock.segment_bytes;
        let mut buffer = AlignedBuf::heap(Footer::bytes(footer.entries.len()) as usize);
        footer.encode(&mut buffer, segment_end, &superblock.key);
        let offset = segment_end - buffer.len() as u64;
        let written = self.shared.io.write_durable_at(buffer, offset).wait();
        written.map(drop).map_err(|error| self.stop(error))
    }

    fn stop(&mut self, error: io::Error) -> LogError {
        tracing::error!(%error, "the log cannot be written: nothing more is acknowledged until the node restarts");
        self.stopped = true;
        LogError::Io { source: Arc::new(error) }
    }

    /// Begins the write of a batch; [`Appender::find_room`] has seen to its room.
    fn write(&mut self, batch: Batch) {
        let Some(head) = self.head.as_mut() else { return batch.refuse(&LogError::Stopped) };
        let superblock = &self.shared.superblock;
        let offset = superblock.segment_offset(head.slot) + head.end;
        let settled = self.in_flight.front().map_or(self.next_frame, |f| f.header.sequence) - 1;
        let frame = self.next_frame;
        let header = batch.lay_out(frame, offset, head.sequence, settled);
        let start = head.sequence * superblock.segment_bytes + head.end;
        for entry in &header.entries {
            match *entry {
                Entry::Chunk { at, len, hash } => {
                    head.entries.push(Entry::Chunk { at: at + head.end as u32, len, hash });
                }
                Entry::Tombstone { .. } => head.entries.push(*entry),
                Entry::Floor { position } => head.floor = head.floor.max(position),
                Entry::Rows { .. } => head.rows_bytes += entry.rows_bytes(),
            }
        }
        head.end += u64::from(header.frame_bytes);
        self.next_frame += 1;
        let mut buffer = self.take_buffer(header.frame_bytes as usize);
        batch.fill(&mut buffer, &header, &self.shared.superblock.key);
        self.in_flight.push_back(InFlight { batch, header, start, begun: Instant::now(), result: None });
        let messages = self.messages.clone();
        let done = move |result| {
            // A failed send means that the appender has ended, and with it whoever waits.
            let _ = messages.send(Message::Written { frame, result });
        };
        self.shared.io.write_durable_then(buffer, offset, Box::new(done));
    }

    fn take_buffer(&mut self, len: usize) -> AlignedBuf {
        let kept = self.buffers.iter().position(|buffer| buffer.capacity() >= len);
        let mut buffer = match kept {
            Some(index) => self.buffers.swap_remove(index),
            None => AlignedBuf::heap(len.next_power_of_two()),
        };
        buffer.set_len(len);
        buffer
    }

    /// Notes the end of a write, and answers the frames that are durable with all before them.
    fn written(&mut self, frame: u64, result: io::Result<AlignedBuf>) {
        if let Some(in_flight) = self.in_flight.iter_mut().find(|f| f.header.sequence == frame) {
            in_flight.result = Some(result);
        }
        while let Some(InFlight { batch, header, start, begun, result }) =
            self.in_flight.pop_front_if(|front| front.result.is_some())
        {
            match result {
                Some(Ok(buffer)) if !self.stopped => {
                    if buffer.capacity() as u64 <= FRAME_BYTES_TARGET && self.buffers.len() < IN_FLIGHT_MAX {
                        self.buffers.push(buffer);
                    }
                    self.commit(batch, &header, start, begun);
                }
                Some(Err(error)) if !self.stopped => {
                    let error = self.stop(error);
                    batch.refuse(&error);
                }
                // What follows a frame that failed is not found after it.
                _ => batch.refuse(&LogError::Stopped),
            }
        }
    }

    /// Makes a durable frame's changes visible, in order, and tells everyone.
    fn commit(&mut self, batch: Batch, header: &FrameHeader, start: u64, begun: Instant) {
        let (index, segments) = (&self.shared.index, &self.shared.segments);
        let rows_bytes = header.entries.iter().map(Entry::rows_bytes).sum();
        segments.grow(header.segment, u64::from(header.frame_bytes), batch.payload_bytes, rows_bytes);
        self.shared.appended_bytes.fetch_add(u64::from(header.frame_bytes), Ordering::Relaxed);
        let metrics = &self.shared.metrics;
        metrics.commits.increment(1);
        metrics.written_bytes.increment(u64::from(header.frame_bytes));
        metrics.commit_entries.record(header.entries.len() as f64);
        metrics.commit_seconds.record(begun.elapsed().as_secs_f64());
        for (i, (member, entry)) in batch.members.into_iter().zip(&header.entries).enumerate() {
            if let Entry::Chunk { at, len, hash } = entry {
                let location = Location::new(header.offset + u64::from(*at), *len);
                segments.moved(index.insert(hash, location), Some(location));
            }
            // A reply that cannot be sent has nobody waiting for it.
            match member.work {
                Work::Rows { reply, .. } => drop(reply.send(Ok(LogPosition::new(start, i)))),
                Work::Chunk { reply, .. } => drop(reply.send(Ok(PutOutcome::Stored))),
                Work::Tombstone { hash, reply } => {
                    segments.moved(index.remove(&hash), None);
                    let _ = reply.send(Ok(true));
                }
                Work::Drop { hash, reply } => {
                    segments.moved(index.remove(&hash), None);
                    let _ = reply.send(Ok(()));
                }
                Work::Floor { position, reply } => {
                    segments.raise_floor(position);
                    let _ = reply.send(Ok(()));
                }
                Work::Move { reply, .. } | Work::Keep { reply, .. } => drop(reply.send(Ok(()))),
                Work::Close { .. } => {}
            }
            if let Entry::Chunk { hash, .. } | Entry::Tombstone { hash, .. } = entry
                && self.touched.get(hash).is_some_and(|touch| touch.frame == header.sequence)
            {
                self.touched.remove(hash);
            }
        }
        batch.riders.into_iter().for_each(|rider| rider.answer(Ok(())));
    }
}
