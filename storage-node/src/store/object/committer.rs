//! The one task that writes packs: whatever is waiting when it looks becomes one pack, written by one request; then
//! all of it is acknowledged. A lone put does not wait for company; what comes while a pack is on its way gathers
//! for the next.
//!
//! A pack whose write failed may still appear in the store, at any time. The next one that succeeds says by its name
//! which pack it follows, and with that the failed one is void, whatever comes of it. Until then its deletions are in
//! doubt: a put of such a chunk is answered only when a later pack is durable.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use bytes::Bytes;
use common::hash::ChunkHash;
use tokio::sync::{mpsc, oneshot};

use super::index::Garbage;
use super::pack::{Builder, PackId};
use super::{Objects, names};
use crate::store::{PutOutcome, StoreError};

/// A pack is closed once its chunks have this many bytes.
pub const PACK_BYTES: usize = 8 << 20;
const ENTRIES_MAX: usize = 4096;
/// Times that whoever was just answered gets to run before the next pack is closed.
const TURNS: usize = 2;

/// What can be asked of the committer.
pub enum Work {
    Put { hash: ChunkHash, bytes: Bytes, reply: oneshot::Sender<Result<PutOutcome, StoreError>> },
    Delete { hash: ChunkHash, reply: oneshot::Sender<Result<bool, StoreError>> },
    Rewrite(Rewrite),
}

/// What still counts in packs that are to go.
pub struct Rewrite {
    /// Chunks and the pack they were read from; left out if they have gone meanwhile.
    pub copies: Vec<(ChunkHash, Bytes, u64)>,
    /// Deletions, kept if copies of their chunks remain.
    pub deletions: Vec<ChunkHash>,
    /// Ended copies that go with the packs.
    pub going: HashMap<ChunkHash, u32>,
    pub reply: oneshot::Sender<Result<(), StoreError>>,
}

pub struct Committer {
    objects: Arc<Objects>,
    work: mpsc::Receiver<Work>,
    /// Taken from the queue and left for the next pack.
    next: Option<Work>,
    last: u64,
    failed: Vec<PackId>,
}

impl Committer {
    /// `last` is the sequence of the last pack that is known to be durable.
    pub fn new(objects: Arc<Objects>, work: mpsc::Receiver<Work>, last: u64) -> Self {
        Self { objects, work, next: None, last, failed: Vec::new() }
    }

    /// Works until nobody can ask any more.
    pub async fn run(mut self) {
        loop {
            let first = match self.next.take() {
                Some(left) => Some(left),
                None => self.work.recv().await,
            };
            let Some(first) = first else { return };
            let batch = self.gather(first);
            if batch.must_be_written {
                self.commit(batch).await;
                for _ in 0..TURNS {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn gather(&mut self, first: Work) -> Batch {
        let mut batch = Batch::default();
        let mut work = Some(first);
        while let Some(item) = work {
            if let Some(left) = batch.take(item, &self.objects) {
                self.next = Some(left);
                break;
            }
            if batch.is_full() {
                break;
            }
            work = self.work.try_recv().ok();
        }
        batch
    }

    async fn commit(&mut self, batch: Batch) {
        let id = PackId { sequence: self.objects.next_sequence(), previous: self.last };
        let bytes = batch.pack.object_bytes() as u64;
        let written = self.objects.put(&names::pack(id), batch.pack.seal(id)).await;
        let mut index = self.objects.index.lock();
        index.unreserve(batch.reserved_bytes);
        match written {
            Ok(()) => {
                index.add_pack(id, bytes, batch.pack.entries());
                index.settle();
                if !self.failed.is_empty() {
                    index.add_fence(id.sequence);
                    self.failed.drain(..).for_each(|pack| index.add_garbage(Garbage::Pack(pack)));
                }
                drop(index);
                self.last = id.sequence;
                batch.replies.succeed();
                self.objects.changed.notify_one();
            }
            Err(error) => {
                drop(index);
                self.failed.push(id);
                batch.replies.fail(&error);
                if !matches!(error, StoreError::Full { .. }) {
                    self.fail_queue(&error);
                }
            }
        }
    }

    /// Whoever waits learns it now, not after a further attempt each.
    fn fail_queue(&mut self, error: &StoreError) {
        let mut replies = Replies::default();
        while let Some(work) = self.next.take().or_else(|| self.work.try_recv().ok()) {
            match work {
                Work::Put { reply, .. } => replies.puts.push((reply, PutOutcome::Stored)),
                Work::Delete { reply, .. } => replies.deletes.push((reply, true)),
                Work::Rewrite(rewrite) => replies.rewrites.push(rewrite.reply),
            }
        }
        replies.fail(error);
    }
}

/// What becomes one pack.
#[derive(Default)]
struct Batch {
    pack: Builder,
    /// What it does to each chunk.
    staged: HashMap<ChunkHash, Change>,
    replies: Replies,
    reserved_bytes: u64,
    must_be_written: bool,
    is_rewrite: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Put,
    Delete,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.is_rewrite || self.pack.chunk_bytes() >= PACK_BYTES || self.pack.entries().len() >= ENTRIES_MAX
    }

    /// Adds an item, or gives it back if it must come after this pack.
    fn take(&mut self, work: Work, objects: &Objects) -> Option<Work> {
        match work {
            Work::Put { hash, bytes, reply } => self.put(hash, bytes, reply, objects),
            Work::Delete { hash, reply } => self.delete(hash, reply, objects),
            Work::Rewrite(rewrite) if self.staged.is_empty() && !self.must_be_written => {
                self.rewrite(rewrite, objects);
                None
            }
            later => Some(later),
        }
    }

    fn put(
        &mut self,
        hash: ChunkHash,
        bytes: Bytes,
        reply: oneshot::Sender<Result<PutOutcome, StoreError>>,
        objects: &Objects,
    ) -> Option<Work> {
        let capacity_bytes = objects.capacity_bytes();
        let mut index = objects.index.lock();
        match self.staged.get(&hash) {
            Some(Change::Put) => self.replies.puts.push((reply, PutOutcome::Present)),
            Some(Change::Delete) => return Some(Work::Put { hash, bytes, reply }),
            None if index.is_certain(&hash) => drop(reply.send(Ok(PutOutcome::Present))),
            None if index.is_live(&hash) => {
                self.must_be_written = true;
                self.replies.puts.push((reply, PutOutcome::Present));
            }
            None if index.reserve(bytes.len() as u64, capacity_bytes) => {
                self.reserved_bytes += bytes.len() as u64;
                self.must_be_written = true;
                self.pack.add_chunk(hash, bytes);
                self.staged.insert(hash, Change::Put);
                self.replies.puts.push((reply, PutOutcome::Stored));
            }
            None => drop(reply.send(Err(StoreError::Full { capacity_bytes }))),
        }
        None
    }

    fn delete(
        &mut self,
        hash: ChunkHash,
        reply: oneshot::Sender<Result<bool, StoreError>>,
        objects: &Objects,
    ) -> Option<Work> {
        let mut index = objects.index.lock();
        let is_live = index.is_live(&hash);
        match self.staged.entry(hash) {
            Slot::Occupied(staged) if *staged.get() == Change::Put => {
                return Some(Work::Delete { hash, reply });
            }
            Slot::Occupied(_) => self.replies.deletes.push((reply, false)),
            // An object left by a put that failed must not be taken for the chunk at the next start.
            Slot::Vacant(_) if !is_live && !index.has_garbage(&hash) => drop(reply.send(Ok(false))),
            Slot::Vacant(free) => {
                free.insert(Change::Delete);
                index.doubt(hash);
                self.must_be_written = true;
                self.pack.add_deletion(hash);
                self.replies.deletes.push((reply, is_live));
            }
        }
        None
    }

    /// Nothing else is in a pack of copies, so what is decided here still holds when it is durable.
    fn rewrite(&mut self, rewrite: Rewrite, objects: &Objects) {
        let index = objects.index.lock();
        for (hash, bytes, from) in rewrite.copies {
            if index.get(&hash).is_some_and(|place| place.sequence == from) {
                self.pack.add_chunk(hash, bytes);
                self.staged.insert(hash, Change::Put);
            }
        }
        for hash in rewrite.deletions {
            let going = rewrite.going.get(&hash).copied().unwrap_or(0);
            if index.needs_deletion(&hash, going) && self.staged.insert(hash, Change::Delete).is_none() {
                self.pack.add_deletion(hash);
            }
        }
        self.is_rewrite = true;
        self.must_be_written = !self.pack.entries().is_empty();
        if self.must_be_written {
            self.replies.rewrites.push(rewrite.reply);
        } else {
            let _nobody_waits = rewrite.reply.send(Ok(()));
        }
    }
}

/// Whom to answer once the pack is durable, and what. One that cannot be sent has nobody waiting for it.
#[derive(Default)]
struct Replies {
    puts: Vec<(oneshot::Sender<Result<PutOutcome, StoreError>>, PutOutcome)>,
    deletes: Vec<(oneshot::Sender<Result<bool, StoreError>>, bool)>,
    rewrites: Vec<oneshot::Sender<Result<(), StoreError>>>,
}

impl Replies {
    fn succeed(self) {
        for (reply, outcome) in self.puts {
            let _ = reply.send(Ok(outcome));
        }
        for (reply, was_there) in self.deletes {
            let _ = reply.send(Ok(was_there));
        }
        for reply in self.rewrites {
            let _ = reply.send(Ok(()));
        }
    }

    fn fail(self, error: &StoreError) {
        for (reply, _) in self.puts {
            let _ = reply.send(Err(error.clone()));
        }
        for (reply, _) in self.deletes {
            let _ = reply.send(Err(error.clone()));
        }
        for reply in self.rewrites {
            let _ = reply.send(Err(error.clone()));
        }
    }
}
