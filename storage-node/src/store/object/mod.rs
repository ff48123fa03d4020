//! Chunks as objects, in a directory or any S3-compatible store.
//!
//! A chunk of [`ALONE_BYTES`] or more is an object of its own. Smaller ones that arrive together share an object, a
//! *pack* (format: [`pack`]), so that a chunk of 4 KiB does not cost a request; deletions, of either kind of chunk,
//! are entries of later packs. Where each chunk is, is known from an index in memory, rebuilt at the start from the
//! names of the objects and the ends of the packs.
//!
//! # What is relied on, and what is not
//! An object is put wholly or not at all, and a listing shows what was put before. Nothing else: no conditional
//! requests, and a request that failed may still be carried out later. So no name is used twice ([`names`]), and a
//! pack whose write failed is made void by the one after it ([`committer`]). One node at a time uses a place; the
//! object `owner` has the id of the node's log, and another node is refused.
//!
//! # If the process ends at any point
//! | while | what the next start finds |
//! |---|---|
//! | a chunk or pack is written | all of it or nothing; nobody was told that it is there |
//! | a deletion is written | the same: it has come true, or not |
//! | a large chunk's object is being deleted | the deletion is durable already; the object goes then |
//! | a pack is rewritten | the old packs, until the new one is durable and after it until they are deleted, in order: a deletion goes last, after all copies that it ends |
//!
//! What is found that counts no more, because of a deletion or of a copy in a later pack, is deleted in the background.

mod committer;
#[cfg(test)]
mod flaky;
mod index;
mod names;
mod objects;
mod open;
mod pack;
mod place;
mod tidy;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use common::hash::ChunkHash;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{ChunkPage, ChunkStore, PutOutcome, StoreError, StoreStats};
use crate::log::{CHUNK_BYTES_MAX, LogError};
use committer::Work;
use index::{Garbage, Place};
use objects::{Objects, REQUEST_LIMIT};

/// Chunks from this size on are objects of their own.
pub const ALONE_BYTES: usize = 128 << 10;
/// Puts of large chunks that share a stripe wait for each other, so that each is written and counted once.
const STRIPES: usize = 1024;
/// Changes of packed chunks that may wait for the committer.
const QUEUE_LEN: usize = 1024;

/// See the module.
pub struct ObjectChunkStore {
    objects: Arc<Objects>,
    stripes: Arc<Stripes>,
    work: mpsc::Sender<Work>,
    /// Ended with the store.
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for ObjectChunkStore {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Keeps puts of equal large chunks in order.
struct Stripes(Box<[Mutex<()>]>);

impl Stripes {
    fn new() -> Self {
        Self((0..STRIPES).map(|_| Mutex::default()).collect())
    }

    async fn lock(&self, hash: &ChunkHash) -> MutexGuard<'_, ()> {
        let bytes = hash.as_bytes();
        self.0[usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) % STRIPES].lock().await
    }
}

/// Stores a chunk as an object of its own.
async fn put_alone(
    objects: &Objects,
    stripes: &Stripes,
    hash: ChunkHash,
    bytes: Bytes,
) -> Result<PutOutcome, StoreError> {
    let Ok(_alone) = tokio::time::timeout(REQUEST_LIMIT, stripes.lock(&hash)).await else {
        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
    };
    if objects.index.get(&hash).is_some() {
        return Ok(PutOutcome::Present);
    }
    let len = bytes.len() as u64;
    let capacity_bytes = objects.capacity_bytes();
    if !objects.index.lock().reserve(len, capacity_bytes) {
        return Err(StoreError::Full { capacity_bytes });
    }
    let sequence = objects.next_sequence();
    let written = objects.put(&names::chunk(&hash, sequence), bytes.into()).await;
    let mut index = objects.index.lock();
    index.unreserve(len);
    match written {
        Ok(()) => {
            index.add_alone(hash, sequence, len as u32);
            Ok(PutOutcome::Stored)
        }
        Err(error) => {
            // It may be there all the same.
            index.add_garbage(Garbage::Chunk(hash, sequence));
            objects.changed.notify_one();
            Err(error)
        }
    }
}

impl ObjectChunkStore {
    async fn store(&self, hash: ChunkHash, bytes: Bytes) -> Result<PutOutcome, StoreError> {
        if bytes.len() > CHUNK_BYTES_MAX {
            return Err(LogError::TooLong { len: bytes.len(), max: CHUNK_BYTES_MAX }.into());
        }
        let is_live = {
            let index = self.objects.index.lock();
            if index.is_certain(&hash) {
                return Ok(PutOutcome::Present);
            }
            index.is_live(&hash)
        };
        // One that is live and yet not certain is about to be deleted: the committer knows what becomes of it.
        if bytes.len() < ALONE_BYTES || is_live {
            return self.ask(|reply| Work::Put { hash, bytes, reply }).await;
        }
        // On a task of its own: what comes of it is entered even if nobody waits for it any more.
        let (objects, stripes) = (Arc::clone(&self.objects), Arc::clone(&self.stripes));
        let put = tokio::spawn(async move { put_alone(&objects, &stripes, hash, bytes).await });
        put.await.unwrap_or(Err(StoreError::Stopped))
    }

    async fn read(&self, hash: &ChunkHash) -> Result<Bytes, StoreError> {
        let mut place = self.objects.index.get(hash).ok_or(StoreError::NotFound)?;
        loop {
            let fetched = self.fetch(hash, place).await;
            let is_missing = match fetched {
                Ok(bytes) if ChunkHash::of(&bytes) == *hash => return Ok(bytes),
                Ok(_) => false,
                Err(StoreError::NotFound) => true,
                Err(error) => return Err(error),
            };
            match self.objects.index.get(hash) {
                // It has been moved or deleted since.
                Some(now) if now != place => place = now,
                None => return Err(StoreError::NotFound),
                // Whoever is told that it is damaged may give it up: so first, is this the right place?
                Some(_) if is_missing => break self.objects.check_place().await?,
                Some(_) => break,
            }
        }
        tracing::error!(%hash, sequence = place.sequence, "a chunk is damaged in the object store");
        self.objects.metrics.damaged_chunks.increment(1);
        Err(StoreError::Damaged { hash: *hash })
    }

    async fn fetch(&self, hash: &ChunkHash, place: Place) -> Result<Bytes, StoreError> {
        if place.len == 0 {
            return Ok(Bytes::new());
        }
        let name = match place.offset {
            0 => names::chunk(hash, place.sequence),
            _ => {
                let id = self.objects.index.lock().pack_id(place.sequence).ok_or(StoreError::NotFound)?;
                names::pack(id)
            }
        };
        let start = u64::from(place.offset);
        self.objects.get(&name, start..start + u64::from(place.len)).await
    }

    /// Has the committer do something, which it does even if nobody waits for it any more.
    async fn ask<T>(
        &self,
        work: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Work,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.work.send(work(reply)).await.map_err(|_closed| StoreError::Stopped)?;
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }
}

impl ChunkStore for ObjectChunkStore {
    fn put(&self, hash: ChunkHash, bytes: Bytes) -> BoxFuture<'_, Result<PutOutcome, StoreError>> {
        Box::pin(self.store(hash, bytes))
    }

    fn get<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.read(hash))
    }

    fn delete<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(self.ask(|reply| Work::Delete { hash: *hash, reply }))
    }

    fn contains<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.objects.index.get(hash).is_some()) })
    }

    /// A page is what begins with the same four bits.
    fn list(&self, page: u64) -> BoxFuture<'_, Result<ChunkPage, StoreError>> {
        let hashes = self.objects.index.lock().hashes(|hash| u64::from(hash.as_bytes()[0] >> 4) == page);
        Box::pin(async move { Ok(ChunkPage { hashes, next: (page < 15).then_some(page + 1) }) })
    }

    fn stats(&self) -> StoreStats {
        let capacity_bytes = self.objects.capacity_bytes();
        let index = self.objects.index.lock();
        StoreStats { capacity_bytes, used_bytes: index.used_bytes(), chunks: index.chunks() }
    }
}

#[cfg(test)]
mod tests;
