//! What the appender is asked for, and how a batch of it is laid out as one frame.

use std::io;

use bytes::Bytes;
use common::hash::ChunkHash;
use tokio::sync::oneshot;

use super::format::{ENTRY, Entry, FRAME_FIXED, FrameHeader};
use super::index::Location;
use super::{LogError, LogPosition, PutOutcome};
use crate::io::{AlignedBuf, whole_blocks};

pub(super) type Reply<T> = oneshot::Sender<Result<T, LogError>>;

/// What the appender's thread is told.
pub(super) enum Message {
    Work(Work),
    /// A frame's write has ended.
    Written {
        frame: u64,
        result: io::Result<AlignedBuf>,
    },
}

pub(super) enum Work {
    Rows {
        rows: Bytes,
        /// Part of a write-out, which makes room: it may take some of what is kept for the compactor.
        is_write_out: bool,
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
    /// Rows up to the position are not needed any more.
    Floor {
        position: LogPosition,
        reply: Reply<()>,
    },
    /// For the compactor: the chunk once more, unless it is not at `from` any more.
    Move {
        hash: ChunkHash,
        bytes: Bytes,
        from: Location,
        reply: Reply<()>,
    },
    /// For the compactor: takes out a chunk whose only copy is damaged.
    Drop {
        hash: ChunkHash,
        reply: Reply<()>,
    },
    /// For the compactor: a tombstone once more.
    Keep {
        hash: ChunkHash,
        of: u64,
        reply: Reply<()>,
    },
    /// Stop, once everything before it is committed.
    Close {
        reply: oneshot::Sender<()>,
    },
}

impl Work {
    /// (bytes in the header part beside the table, bytes after it)
    pub fn sizes(&self) -> (u64, u64) {
        match self {
            Self::Rows { rows, .. } => (rows.len() as u64, 0),
            Self::Chunk { bytes, .. } | Self::Move { bytes, .. } => (0, whole_blocks(bytes.len() as u64)),
            _ => (0, 0),
        }
    }

    /// Entries that it adds to the footer of its segment.
    pub fn footer_entries(&self) -> usize {
        usize::from(matches!(
            self,
            Self::Chunk { .. }
                | Self::Move { .. }
                | Self::Tombstone { .. }
                | Self::Drop { .. }
                | Self::Keep { .. }
        ))
    }

    pub fn refuse(self, error: LogError) {
        // Nobody may be waiting any more.
        match self {
            Self::Rows { reply, .. } => drop(reply.send(Err(error))),
            Self::Chunk { reply, .. } => drop(reply.send(Err(error))),
            Self::Tombstone { reply, .. } => drop(reply.send(Err(error))),
            Self::Floor { reply, .. }
            | Self::Move { reply, .. }
            | Self::Drop { reply, .. }
            | Self::Keep { reply, .. } => drop(reply.send(Err(error))),
            Self::Close { reply } => drop(reply.send(())),
        }
    }
}

/// An answer that adds no entry but holds only once a frame is durable.
pub(super) enum Rider {
    Present(Reply<PutOutcome>),
    Absent(Reply<bool>),
}

impl Rider {
    pub fn answer(self, result: Result<(), LogError>) {
        match self {
            Self::Present(reply) => drop(reply.send(result.map(|()| PutOutcome::Present))),
            Self::Absent(reply) => drop(reply.send(result.map(|()| false))),
        }
    }
}

/// A member of a batch: work that becomes an entry.
pub(super) struct Member {
    pub work: Work,
    /// Of a tombstone: the newest segment with a copy of the chunk.
    pub of: u64,
}

/// The next frame.
#[derive(Default)]
pub(super) struct Batch {
    pub members: Vec<Member>,
    pub riders: Vec<Rider>,
    pub rows_bytes: u64,
    pub payload_bytes: u64,
    pub footer_entries: usize,
}

impl Batch {
    fn header_bytes(&self, more_entries: usize, more_rows: u64) -> u64 {
        (FRAME_FIXED + (self.members.len() + more_entries) * ENTRY) as u64 + self.rows_bytes + more_rows
    }

    pub fn frame_bytes_with(&self, work: &Work) -> u64 {
        let (rows, payload) = work.sizes();
        whole_blocks(self.header_bytes(1, rows)) + self.payload_bytes + payload
    }

    pub fn add(&mut self, member: Member) {
        let (rows, payload) = member.work.sizes();
        self.rows_bytes += rows;
        self.payload_bytes += payload;
        self.footer_entries += member.work.footer_entries();
        self.members.push(member);
    }

    pub fn refuse(self, error: &LogError) {
        self.members.into_iter().for_each(|member| member.work.refuse(error.clone()));
        self.riders.into_iter().for_each(|rider| rider.answer(Err(error.clone())));
    }

    /// Lays the batch out: table, rows, then each chunk from a whole block on. `sequence`, `offset`, `segment` and
    /// `settled` are as in [`FrameHeader`].
    pub fn lay_out(&self, sequence: u64, offset: u64, segment: u64, settled: u64) -> FrameHeader {
        let header_bytes = self.header_bytes(0, 0);
        let mut rows_at = header_bytes - self.rows_bytes;
        let mut chunk_at = whole_blocks(header_bytes);
        let entries = self.members.iter().map(|member| match &member.work {
            Work::Rows { rows, .. } => {
                let at = rows_at;
                rows_at += rows.len() as u64;
                Entry::Rows { at: at as u32, len: rows.len() as u32 }
            }
            Work::Chunk { hash, bytes, .. } | Work::Move { hash, bytes, .. } => {
                let at = chunk_at;
                chunk_at += whole_blocks(bytes.len() as u64);
                Entry::Chunk { at: at as u32, len: bytes.len() as u32, hash: *hash }
            }
            Work::Tombstone { hash, .. } | Work::Drop { hash, .. } => {
                Entry::Tombstone { of: member.of, hash: *hash }
            }
            Work::Keep { hash, of, .. } => Entry::Tombstone { of: *of, hash: *hash },
            Work::Floor { position, .. } => Entry::Floor { position: position.0 },
            Work::Close { .. } => unreachable!("it does not become an entry"),
        });
        let entries: Vec<Entry> = entries.collect();
        FrameHeader {
            sequence,
            offset,
            segment,
            settled,
            header_bytes: header_bytes as u32,
            frame_bytes: chunk_at as u32,
            entries,
        }
    }

    /// Writes the frame into the buffer, which may hold an older one.
    pub fn fill(&self, buffer: &mut AlignedBuf, header: &FrameHeader, key: &[u8; 32]) {
        for (member, entry) in self.members.iter().zip(&header.entries) {
            match (&member.work, entry) {
                (Work::Rows { rows, .. }, Entry::Rows { at, .. }) => {
                    let at = *at as usize;
                    buffer[at..at + rows.len()].copy_from_slice(rows);
                }
                (Work::Chunk { bytes, .. } | Work::Move { bytes, .. }, Entry::Chunk { at, .. }) => {
                    let at = *at as usize;
                    buffer[at..at + bytes.len()].copy_from_slice(bytes);
                    let end = at + whole_blocks(bytes.len() as u64) as usize;
                    buffer[at + bytes.len()..end].fill(0);
                }
                _ => {}
            }
        }
        let header_end = whole_blocks(u64::from(header.header_bytes)) as usize;
        buffer[header.header_bytes as usize..header_end].fill(0);
        header.encode(buffer, key);
    }
}
