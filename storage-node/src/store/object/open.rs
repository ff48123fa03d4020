//! Opening: the index is rebuilt from the names of all objects and the ends of all packs.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use tokio::sync::mpsc;

use super::committer::Committer;
use super::objects::{Objects, Room};
use super::pack::{self, Builder, Entry, HEADER_BYTES, PackError, PackId, TRAILER_BYTES, Tail};
use super::tidy::Tidier;
use super::{ObjectChunkStore, QUEUE_LEN, Stripes, names, place};
use crate::store::{OpenError, StoreError, StoreMetrics, StoreUrl};

/// Packs whose ends are read at once.
const READS: usize = 32;
/// Read from the end of a pack at first: enough for the index of 400 chunks.
const TAIL_BYTES: u64 = 16 << 10;
/// A process's sequences begin at the next multiple of this, so that they are above all that an earlier process may
/// still have been writing.
const SEQUENCES: u64 = 1 << 32;

#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("the objects cannot be listed")]
    List(#[source] object_store::Error),
    #[error("pack {name} cannot be read")]
    Pack { name: Path, source: ReadPackError },
    #[error("a pack that is void cannot be deleted")]
    Void(#[source] StoreError),
    #[error("the store cannot be written")]
    Write(#[source] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadPackError {
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Format(#[from] PackError),
}

impl ObjectChunkStore {
    /// Opens the place that a URL names for the node with this log, making it if it is not there; `None` if the URL
    /// is of a block store.
    ///
    /// # Errors
    /// `Open` for a directory; `Object` names the URL and what to do.
    pub async fn open(
        url: &StoreUrl,
        log_id: &str,
        metrics: StoreMetrics,
    ) -> Result<Option<Self>, OpenError> {
        let Some((store, room)) = place::reach(url).await? else { return Ok(None) };
        place::take(&*store, url, log_id).await?;
        Self::start(store, room, metrics).await.map(Some).map_err(|error| match error {
            RebuildError::List(source) => place::unusable(url, source),
            other => place::unusable(url, other),
        })
    }

    /// Opens a place to look at: nothing is written to it, and changes are refused.
    ///
    /// # Errors
    /// As of [`ObjectChunkStore::open`].
    pub(crate) async fn open_for_reading(
        url: &StoreUrl,
        log_id: &str,
        metrics: StoreMetrics,
    ) -> Result<Option<Self>, OpenError> {
        let Some((store, room)) = place::reach(url).await? else { return Ok(None) };
        place::check_owner(&*store, url, log_id).await?;
        let objects = Arc::new(Objects::new(store, room, metrics));
        rebuild(&objects, VoidPacks::LeftAlone).await.map_err(|error| place::unusable(url, error))?;
        let (work, _nobody_takes_it) = mpsc::channel(1);
        Ok(Some(Self { objects, stripes: Arc::new(Stripes::new()), work, tasks: Vec::new() }))
    }

    pub(super) async fn start(
        store: Arc<dyn ObjectStore>,
        room: Room,
        metrics: StoreMetrics,
    ) -> Result<Self, RebuildError> {
        let (mut store, tidier) = Self::prepare(store, room, metrics).await?;
        store.tasks.push(tokio::spawn(tidier.run()));
        Ok(store)
    }

    /// The store, and what has to run to give back space.
    pub(super) async fn prepare(
        store: Arc<dyn ObjectStore>,
        room: Room,
        metrics: StoreMetrics,
    ) -> Result<(Self, Tidier), RebuildError> {
        let objects = Arc::new(Objects::new(store, room, metrics));
        let opening = write_opening(&objects, rebuild(&objects, VoidPacks::Deleted).await?).await?;
        let (work, queue) = mpsc::channel(QUEUE_LEN);
        let committer = Committer::new(Arc::clone(&objects), queue, opening);
        let tidier = Tidier::new(Arc::clone(&objects), work.downgrade());
        let tasks = vec![tokio::spawn(committer.run())];
        Ok((Self { objects, stripes: Arc::new(Stripes::new()), work, tasks }, tidier))
    }
}

/// How often a listing is begun.
const LIST_ATTEMPTS_MAX: u32 = 10;

/// What was there when the store was opened.
struct Found {
    highest_sequence: u64,
    last_pack: u64,
}

/// What becomes of packs that count for nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VoidPacks {
    Deleted,
    LeftAlone,
}

async fn rebuild(objects: &Objects, void_packs: VoidPacks) -> Result<Found, RebuildError> {
    let mut highest = 0;
    list(objects, names::CHUNKS, |object| {
        let (hash, sequence) = names::parse_chunk(&object.location)?;
        highest = highest.max(sequence);
        objects.index.lock().add_alone(hash, sequence, u32::try_from(object.size).unwrap_or(u32::MAX));
        Some(())
    })
    .await?;
    let mut packs = Vec::new();
    list(objects, names::PACKS, |object| {
        packs.push((names::parse_pack(&object.location)?, object.size));
        Some(())
    })
    .await?;
    packs.sort_unstable();
    let void = split_void(&mut packs);
    for (id, _) in void.iter().filter(|_| void_packs == VoidPacks::Deleted) {
        objects.delete(&names::pack(*id)).await.map_err(RebuildError::Void)?;
    }
    let last_pack = packs.last().map_or(0, |(id, _)| id.sequence);
    let mut reads = stream::iter(packs)
        .map(|(id, bytes)| async move { (id, bytes, read_index(objects, id, bytes).await) })
        .buffered(READS);
    while let Some((id, bytes, read)) = reads.next().await {
        match read {
            Ok(entries) => objects.index.lock().add_pack(id, bytes, &entries),
            Err(ReadPackError::Format(error @ PackError::Damaged { .. })) => {
                let name = names::pack(id);
                tracing::error!(%name, %error, "a pack is damaged: its chunks count as missing");
                objects.metrics.damaged_chunks.increment(1);
            }
            Err(source) => return Err(RebuildError::Pack { name: names::pack(id), source }),
        }
    }
    Ok(Found { highest_sequence: highest.max(last_pack), last_pack })
}

/// Goes through the objects under a prefix; those that `take` does not know are left alone.
async fn list(
    objects: &Objects,
    prefix: &str,
    mut take: impl FnMut(&ObjectMeta) -> Option<()>,
) -> Result<(), RebuildError> {
    let (mut unknown, mut example) = (0, None);
    let prefix = Path::from(prefix);
    let mut listing = objects.store().list(Some(&prefix));
    let (mut attempt, mut is_begun) = (1, false);
    loop {
        let object = match listing.try_next().await {
            Ok(Some(object)) => object,
            Ok(None) => break,
            // The client repeats requests, but not one whose answer broke off.
            Err(error) if !is_begun && attempt < LIST_ATTEMPTS_MAX => {
                tracing::debug!(%error, attempt, "the listing broke off before its first object; once more");
                attempt += 1;
                listing = objects.store().list(Some(&prefix));
                continue;
            }
            Err(error) => return Err(RebuildError::List(error)),
        };
        is_begun = true;
        if take(&object).is_none() {
            unknown += 1;
            example.get_or_insert(object.location);
        }
    }
    if let Some(example) = example {
        tracing::warn!(%example, unknown, "objects that are not of this store; they are left alone");
    }
    Ok(())
}

/// Writes an empty pack: it makes void what earlier processes may still be writing, shows that the store can be
/// written, and takes the sequences that follow it for this process. Answers its sequence.
async fn write_opening(objects: &Objects, found: Found) -> Result<u64, RebuildError> {
    let id =
        PackId { sequence: (found.highest_sequence / SEQUENCES + 1) * SEQUENCES, previous: found.last_pack };
    let empty = Builder::default();
    objects.put(&names::pack(id), empty.seal(id)).await.map_err(RebuildError::Write)?;
    objects.start_sequence(id.sequence + 1);
    let mut index = objects.index.lock();
    index.add_pack(id, empty.object_bytes() as u64, &[]);
    index.add_fence(id.sequence);
    Ok(id.sequence)
}

/// Reads what a pack says of its chunks, from its end.
pub async fn read_index(objects: &Objects, id: PackId, bytes: u64) -> Result<Vec<Entry>, ReadPackError> {
    if bytes < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(PackError::Damaged { what: "it is too short" }.into());
    }
    let name = names::pack(id);
    let mut tail_bytes = TAIL_BYTES.min(bytes);
    loop {
        let tail = objects.get(&name, bytes - tail_bytes..bytes).await?;
        match pack::decode_tail(id, bytes, &tail) {
            Ok(Tail::Entries(entries)) => return Ok(entries),
            Ok(Tail::Longer(needed)) if needed as u64 <= bytes && needed as u64 > tail_bytes => {
                tail_bytes = needed as u64;
            }
            Ok(Tail::Longer(_)) => {
                return Err(PackError::Damaged { what: "it is shorter than its index" }.into());
            }
            Err(damaged) => {
                let start = objects.get(&name, 0..HEADER_BYTES as u64).await?;
                return Err(pack::check_version(&start).err().unwrap_or(damaged).into());
            }
        }
    }
}

/// Takes out the packs that a later one says were not there when it was written: their process was told nothing of
/// them, or that they failed.
fn split_void(packs: &mut Vec<(PackId, u64)>) -> Vec<(PackId, u64)> {
    let mut void = Vec::new();
    let mut follows = u64::MAX;
    for i in (0..packs.len()).rev() {
        let id = packs[i].0;
        if id.sequence > follows {
            void.push(packs.remove(i));
        } else {
            follows = id.previous;
        }
    }
    void
}
