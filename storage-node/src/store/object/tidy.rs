//! Gives back space, in the background and with little haste: deletes objects in which nothing counts, and rewrites
//! packs of which little does.
//!
//! A pack is deleted only when everything in it that counts is durable in a later one. Packs go in the order of their
//! sequences, each only after the one before it is gone: a deletion is later than the copies that it ends, so it
//! outlives them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::backoff::Backoff;
use common::error::chain;
use common::hash::ChunkHash;
use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};

use super::committer::{PACK_BYTES, Rewrite, Work};
use super::index::Garbage;
use super::names;
use super::objects::Objects;
use super::open::{ReadPackError, read_index};
use super::pack::{Entry, PackId};
use crate::store::StoreError;

/// Of the time, this part at most is spent tidying: one in so many.
const SHARE: u32 = 5;
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Objects that are deleted in one round, and at once.
const GARBAGE_PER_ROUND: usize = 256;
const DELETIONS: usize = 8;

pub struct Tidier {
    objects: Arc<Objects>,
    work: mpsc::WeakSender<Work>,
    /// Packs that cannot be rewritten. They stay as they are while this process runs.
    damaged: HashSet<u64>,
}

impl Tidier {
    pub fn new(objects: Arc<Objects>, work: mpsc::WeakSender<Work>) -> Self {
        Self { objects, work, damaged: HashSet::new() }
    }

    /// Tidies until the store is closed.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            let began = Instant::now();
            match self.round().await {
                Ok(true) => tokio::time::sleep((began.elapsed() * (SHARE - 1)).max(PAUSE_MIN)).await,
                Ok(false) => {
                    backoff.reset();
                    self.objects.changed.notified().await;
                }
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "space cannot be given back; it is tried again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// One bounded piece of work; says whether there was any.
    pub async fn round(&mut self) -> Result<bool, StoreError> {
        let emptied = self.delete_garbage().await?;
        let packs = self.objects.index.lock().worth_rewriting(PACK_BYTES as u64, &self.damaged);
        if packs.is_empty() {
            return Ok(emptied);
        }
        self.rewrite(packs).await?;
        Ok(true)
    }

    async fn delete_garbage(&self) -> Result<bool, StoreError> {
        let garbage = self.objects.index.lock().garbage(GARBAGE_PER_ROUND);
        let any = !garbage.is_empty();
        let deletions = stream::iter(garbage).map(|garbage| self.delete_object(garbage));
        let mut results = deletions.buffer_unordered(DELETIONS);
        while let Some(result) = results.next().await {
            result?;
        }
        Ok(any)
    }

    async fn delete_object(&self, garbage: Garbage) -> Result<(), StoreError> {
        let name = match garbage {
            Garbage::Chunk(hash, sequence) => names::chunk(&hash, sequence),
            Garbage::Pack(id) => names::pack(id),
        };
        self.objects.delete(&name).await?;
        self.objects.index.lock().forget_garbage(&garbage);
        Ok(())
    }

    async fn rewrite(&mut self, packs: Vec<PackId>) -> Result<(), StoreError> {
        let (mut copies, mut deletions) = (Vec::new(), Vec::new());
        let (mut going, mut read) = (HashMap::new(), Vec::new());
        for id in packs {
            let Some((entries, chunks)) = self.read_live(id).await? else {
                self.damaged.insert(id.sequence);
                continue;
            };
            let live: HashSet<ChunkHash> = chunks.iter().map(|(hash, _)| *hash).collect();
            for entry in &entries {
                if entry.is_deletion() {
                    deletions.push(entry.hash);
                } else if !live.contains(&entry.hash) {
                    *going.entry(entry.hash).or_default() += 1;
                }
            }
            copies.extend(chunks.into_iter().map(|(hash, bytes)| (hash, bytes, id.sequence)));
            read.push((id, entries));
        }
        let (reply, answer) = oneshot::channel();
        let work = self.work.upgrade().ok_or(StoreError::Stopped)?;
        let rewrite = Rewrite { copies, deletions, going, reply };
        work.send(Work::Rewrite(rewrite)).await.map_err(|_closed| StoreError::Stopped)?;
        drop(work);
        answer.await.unwrap_or(Err(StoreError::Stopped))?;
        for (id, entries) in read {
            if !self.objects.index.lock().is_without_chunks(id.sequence) {
                return Ok(());
            }
            self.objects.delete(&names::pack(id)).await?;
            self.objects.index.lock().forget_pack(id.sequence, &entries);
        }
        Ok(())
    }

    /// All entries of a pack and the chunks of it that count; `None` if one of those is damaged.
    async fn read_live(
        &self,
        id: PackId,
    ) -> Result<Option<(Vec<Entry>, Vec<(ChunkHash, Bytes)>)>, StoreError> {
        let Some(bytes) = self.objects.index.lock().pack_bytes(id.sequence) else { return Ok(None) };
        let entries = match read_index(&self.objects, id, bytes).await {
            Ok(entries) => entries,
            Err(ReadPackError::Store(StoreError::NotFound)) => {
                tracing::error!(name = %names::pack(id), "a pack is missing");
                return Ok(None);
            }
            Err(ReadPackError::Store(error)) => return Err(error),
            Err(ReadPackError::Format(error)) => {
                tracing::error!(name = %names::pack(id), %error, "a pack is damaged");
                return Ok(None);
            }
        };
        let live: Vec<Entry> = {
            let index = self.objects.index.lock();
            let is_live = |e: &&Entry| {
                !e.is_deletion() && index.get(&e.hash).is_some_and(|place| place.sequence == id.sequence)
            };
            entries.iter().filter(is_live).copied().collect()
        };
        // An empty range cannot be asked for.
        let long = live.iter().filter(|e| e.len > 0);
        let ranges: Vec<_> =
            long.map(|e| u64::from(e.offset)..u64::from(e.offset) + u64::from(e.len)).collect();
        let mut parts = self.objects.get_parts(&names::pack(id), &ranges).await?.into_iter();
        let mut chunks = Vec::with_capacity(live.len());
        for entry in live {
            let bytes = if entry.len > 0 { parts.next().unwrap_or_default() } else { Bytes::new() };
            if ChunkHash::of(&bytes) != entry.hash {
                tracing::error!(hash = %entry.hash, name = %names::pack(id), "a packed chunk is damaged");
                self.objects.metrics.damaged_chunks.increment(1);
                return Ok(None);
            }
            chunks.push((entry.hash, bytes));
        }
        Ok(Some((entries, chunks)))
    }
}
