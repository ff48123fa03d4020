//! Fetches what is to be kept for visitors, and passes each chunk on as soon as it is here.
//!
//! A fill is of one temporary content at this gateway, however many visitors read it. It goes through the content in
//! order; a reader that wants another chunk has it fetched at once. A chunk that the site has is not fetched, and none is
//! fetched twice at the same time. Sources are asked from the nearest to the farthest, home among them; one that fails in
//! the middle is followed by the next. When nobody reads any more the fill ends: what is here stays, and the next request
//! goes on from there.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::api::node::RefTag;
use common::api::search::{ContentInfo, SearchClient};
use common::api::temporary::CompleteRequest;
use common::backoff::Backoff;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::hash::ChunkHash;
use common::manifest::{ChunkList, ChunkRef, ChunkSlice, Manifest};
use common::name::ContentName;
use common::placement::Slot;
use common::possession::Possession;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{OnceCell, Semaphore, watch};

use crate::chunks::{Chunks, OpenChunk, decode_list};
use crate::collect::Collector;
use crate::collect::sources::{Candidate, Sources};
use crate::site::SiteView;

/// Chunks of one fill that are on their way in order.
const IN_FLIGHT: usize = 4;
/// Chunks of all fills that are on their way or being stored: bounds the memory.
const CHUNKS_MAX: usize = 64;
/// Chunks that the site is asked for at once.
const CLAIM_LEN: usize = 64;
/// How long sources are asked again and again for one chunk.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a ranking of the sources holds.
const RANKED_FOR: Duration = Duration::from_secs(2);
/// So long a fill waits for another reader.
const IDLE_MAX: Duration = Duration::from_secs(2);

/// What a visitor's request needs of a content.
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// The site has all of it.
    Whole(RefTag),
    /// What is missing is fetched, and stored for who has the tag.
    Fill(RefTag),
    /// What is missing is fetched and passed on.
    Unkept,
}

/// What all fills of a gateway share.
pub struct Fills {
    site: Arc<SiteView>,
    chunks: Arc<Chunks>,
    collector: Arc<Collector>,
    sources: Arc<Sources>,
    search: SearchClient,
    room: Semaphore,
    at_work: Mutex<HashMap<(ContentName, RefTag), Begun>>,
}

/// A fill that has begun, or is about to.
type Begun = Arc<OnceCell<Arc<Fill>>>;

/// One content on its way here.
struct Fill {
    fills: Arc<Fills>,
    possession: Possession,
    wanted: Wanted,
    list: Arc<[ChunkRef]>,
    /// The parts of the list, [`CLAIM_LEN`] chunks each, that the site was asked for.
    claimed: Vec<OnceCell<()>>,
    parts: Mutex<Parts>,
    readers: AtomicUsize,
    /// Who may be asked, as it was found a moment ago.
    ranked: tokio::sync::Mutex<Option<(Instant, Arc<Ranked>)>>,
}

/// Who has the content, nearest first.
struct Ranked {
    info: ContentInfo,
    candidates: Vec<Candidate>,
}

#[derive(Default)]
struct Parts {
    /// Chunks that the site has.
    here: HashSet<ChunkHash>,
    coming: HashMap<ChunkHash, watch::Receiver<Coming>>,
}

/// How far a chunk is.
#[derive(Clone, Default)]
enum Coming {
    #[default]
    Asked,
    /// Verified; it is being stored.
    Fetched(Bytes),
    Stored,
    Failed(ApiError),
}

/// A reader of a content that may be on its way.
pub struct Reading {
    fill: Arc<Fill>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.fill.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Reading {
    fn new(fill: Arc<Fill>) -> Arc<Self> {
        fill.readers.fetch_add(1, Ordering::AcqRel);
        Arc::new(Self { fill })
    }

    pub fn list(&self) -> &Arc<[ChunkRef]> {
        &self.fill.list
    }

    pub fn open_cached(&self, chunk: &ChunkRef) -> Option<OpenChunk> {
        self.fill.fills.chunks.open_cached(chunk)
    }

    /// A chunk: of the site if it has it, else as soon as it was fetched.
    pub async fn open(&self, slice: &ChunkSlice) -> ApiResult<OpenChunk> {
        let fill = &self.fill;
        if fill.is_here(slice.index, &slice.chunk).await? {
            match fill.fills.chunks.open(&slice.chunk).await {
                Err(error) if matches!(error.code, ErrorCode::ChunkNotFound | ErrorCode::Damaged) => {
                    fill.parts().here.remove(&slice.chunk.hash);
                }
                opened => return opened,
            }
        }
        let mut coming = fill.coming(&slice.chunk, slice.offset);
        let reached = coming.wait_for(|coming| !matches!(coming, Coming::Asked)).await;
        match reached.map(|coming| coming.clone()) {
            Ok(Coming::Fetched(bytes)) => Ok(OpenChunk::whole(bytes)),
            Ok(Coming::Failed(error)) => Err(error),
            Ok(Coming::Stored | Coming::Asked) => fill.fills.chunks.open(&slice.chunk).await,
            Err(error) => Err(ApiError::internal(&error)),
        }
    }
}

impl Fills {
    pub fn new(
        site: Arc<SiteView>,
        chunks: Arc<Chunks>,
        collector: Arc<Collector>,
        sources: Arc<Sources>,
        search: SearchClient,
    ) -> Arc<Self> {
        let (room, at_work) = (Semaphore::new(CHUNKS_MAX), Mutex::default());
        Arc::new(Self { site, chunks, collector, sources, search, room, at_work })
    }

    fn at_work(&self) -> MutexGuard<'_, HashMap<(ContentName, RefTag), Begun>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader of no bytes.
    pub fn nothing(self: &Arc<Self>, possession: &Possession) -> Arc<Reading> {
        Reading::new(self.fill(possession, Wanted::Unkept, [].into()))
    }

    /// A reader of a content; begins to fetch what is missing, or joins a fill that does.
    ///
    /// # Errors
    /// `SourceUnavailable` when nobody sends the list of its chunks.
    pub async fn read(
        self: &Arc<Self>,
        possession: &Possession,
        manifest: &Manifest,
        wanted: Wanted,
    ) -> ApiResult<Arc<Reading>> {
        let Wanted::Fill(tag) = wanted else {
            return Ok(Reading::new(self.with_list(possession, manifest, wanted).await?));
        };
        let key = (possession.name.clone(), tag);
        let begun = self.at_work().entry(key.clone()).or_default().clone();
        let begin = async {
            let fill = self.with_list(possession, manifest, wanted).await?;
            tokio::spawn(self.clone().run(fill.clone(), key.clone(), begun.clone()));
            ApiResult::Ok(fill)
        };
        match begun.get_or_try_init(|| begin).await {
            Ok(fill) => Ok(Reading::new(fill.clone())),
            Err(error) => {
                self.forget(&key, &begun);
                Err(error)
            }
        }
    }

    fn forget(&self, key: &(ContentName, RefTag), begun: &Begun) {
        let mut at_work = self.at_work();
        if at_work.get(key).is_some_and(|known| Arc::ptr_eq(known, begun)) {
            at_work.remove(key);
        }
    }

    fn fill(self: &Arc<Self>, possession: &Possession, wanted: Wanted, list: Arc<[ChunkRef]>) -> Arc<Fill> {
        let claimed = list.chunks(CLAIM_LEN).map(|_| OnceCell::new()).collect();
        Arc::new(Fill {
            fills: self.clone(),
            possession: possession.clone(),
            wanted,
            list,
            claimed,
            parts: Mutex::default(),
            readers: AtomicUsize::new(0),
            ranked: tokio::sync::Mutex::default(),
        })
    }

    async fn with_list(
        self: &Arc<Self>,
        possession: &Possession,
        manifest: &Manifest,
        wanted: Wanted,
    ) -> ApiResult<Arc<Fill>> {
        let list = match &manifest.chunks {
            ChunkList::Inline(chunks) => return Ok(self.fill(possession, wanted, chunks.as_slice().into())),
            ChunkList::Stored { list, .. } => list,
        };
        // The list is a chunk as others are, and kept with them.
        let only = Reading::new(self.fill(possession, wanted, [*list].into()));
        let len = list.len as usize;
        let mut open = only.open(&ChunkSlice { index: 0, chunk: *list, offset: 0, wanted: 0..len }).await?;
        let mut bytes = Vec::with_capacity(len);
        while let Some(piece) = open.next().await {
            bytes.extend_from_slice(&piece?);
        }
        only.fill.stored(list, 0).await?;
        Ok(self.fill(possession, wanted, decode_list(manifest, &bytes)?))
    }

    /// Carries a fill through.
    async fn run(self: Arc<Self>, fill: Arc<Fill>, key: (ContentName, RefTag), begun: Begun) {
        let outcome = match fill.fetch_all().await {
            Ok(true) => self.complete(&key.0, key.1).await,
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(content = %key.0, %error, "a content for visitors is not here whole");
        }
        // New requests ask anew what is there; those that read from this fill go on with it.
        self.forget(&key, &begun);
    }

    async fn complete(&self, name: &ContentName, ref_tag: RefTag) -> ApiResult<()> {
        let request = CompleteRequest { name: name.clone(), ref_tag };
        let (request, slot) = (&request, Slot::of_name(name));
        self.site.ask_owner(slot, |node| async move { node.complete_temporary(request).await }).await?;
        Ok(())
    }

    /// *rank*: who may have a content of that home, nearest first. Home has it, or is collecting it.
    async fn rank(&self, possession: &Possession) -> Ranked {
        let mut info = self.search.lookup(&possession.name).await.unwrap_or_else(|error| {
            tracing::debug!(content = %possession.name, error = chain(&error), "search names no other holders");
            ContentInfo {
                name: possession.name.clone(),
                version: possession.version,
                len: 0,
                media_type: String::new(),
                provider: possession.provider.clone(),
                sites: Vec::new(),
                origins: Vec::new(),
            }
        });
        if !info.sites.contains(&possession.home) {
            info.sites.push(possession.home.clone());
        }
        let candidates = self.sources.rank(&self.site, &info).await;
        Ranked { info, candidates }
    }
}

impl Fill {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> &ContentName {
        &self.possession.name
    }

    /// Whether the site should have a chunk; those that it has carry the tag from then on.
    async fn is_here(&self, index: usize, chunk: &ChunkRef) -> ApiResult<bool> {
        let Wanted::Fill(tag) = self.wanted else { return Ok(true) };
        let part = index / CLAIM_LEN;
        let Some(claimed) = self.claimed.get(part) else { return Ok(false) };
        let claim = async {
            let chunks = self.list.chunks(CLAIM_LEN).nth(part).unwrap_or_default();
            let missing = self.fills.chunks.claim(chunks, self.name(), tag).await?;
            let missing: HashSet<ChunkHash> = missing.into_iter().map(|chunk| chunk.hash).collect();
            let here = chunks.iter().map(|chunk| chunk.hash).filter(|hash| !missing.contains(hash));
            self.parts().here.extend(here);
            ApiResult::Ok(())
        };
        claimed.get_or_try_init(|| claim).await?;
        Ok(self.parts().here.contains(&chunk.hash))
    }

    /// A chunk that is not here: on its way from now on.
    fn coming(self: &Arc<Self>, chunk: &ChunkRef, offset: u64) -> watch::Receiver<Coming> {
        let mut parts = self.parts();
        if let Some(coming) = parts.coming.get(&chunk.hash) {
            return coming.clone();
        }
        let (tell, coming) = watch::channel(Coming::default());
        parts.coming.insert(chunk.hash, coming.clone());
        drop(parts);
        tokio::spawn(self.clone().bring(*chunk, offset, tell));
        coming
    }

    async fn bring(self: Arc<Self>, chunk: ChunkRef, offset: u64, tell: watch::Sender<Coming>) {
        let _room = self.fills.room.acquire().await;
        let outcome = match self.fetch(&chunk, offset).await {
            Ok(bytes) => {
                tell.send_replace(Coming::Fetched(bytes.clone()));
                self.store(&chunk, bytes).await
            }
            Err(error) => Err(error),
        };
        {
            let mut parts = self.parts();
            parts.coming.remove(&chunk.hash);
            if outcome.is_ok() {
                parts.here.insert(chunk.hash);
            }
        }
        tell.send_replace(match outcome {
            Ok(()) => Coming::Stored,
            Err(error) => Coming::Failed(error),
        });
    }

    async fn store(&self, chunk: &ChunkRef, bytes: Bytes) -> ApiResult<()> {
        match self.wanted {
            Wanted::Whole(tag) | Wanted::Fill(tag) => {
                self.fills.chunks.write(&chunk.hash, self.name(), tag, bytes).await.map(drop)
            }
            Wanted::Unkept => Ok(()),
        }
    }

    /// *fetch*: one chunk, verified, from the nearest source that gives it; again for a while, as sources restart, and
    /// home may still be collecting it.
    async fn fetch(&self, chunk: &ChunkRef, offset: u64) -> ApiResult<Bytes> {
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        loop {
            let ranked = self.ranked().await;
            let Ranked { info, candidates } = &*ranked;
            match self.fills.collector.fetch_from(info, candidates, chunk, offset).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(backoff.next_delay()).await,
            }
            *self.ranked.lock().await = None;
        }
    }

    async fn ranked(&self) -> Arc<Ranked> {
        let mut known = self.ranked.lock().await;
        if let Some((_, ranked)) = known.as_ref().filter(|(at, _)| at.elapsed() < RANKED_FOR) {
            return ranked.clone();
        }
        let ranked = Arc::new(self.fills.rank(&self.possession).await);
        *known = Some((Instant::now(), ranked.clone()));
        ranked
    }

    /// Answers whether all of it is here; not when nobody reads it any more.
    async fn fetch_all(self: &Arc<Self>) -> ApiResult<bool> {
        let mut offset = 0u64;
        let places = self.list.iter().enumerate().map(|(index, chunk)| {
            let at = offset;
            offset += u64::from(chunk.len);
            (index, *chunk, at)
        });
        let places: Vec<_> = places.collect();
        let brought = stream::iter(places).map(|(index, chunk, offset)| async move {
            if self.is_here(index, &chunk).await? {
                return Ok(true);
            }
            let is_wanted = self.parts().coming.contains_key(&chunk.hash) || self.has_readers().await;
            if is_wanted {
                self.stored(&chunk, offset).await?;
            }
            ApiResult::Ok(is_wanted)
        });
        let mut brought = brought.buffered(IN_FLIGHT);
        while let Some(is_here) = brought.try_next().await? {
            if !is_here {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether somebody reads it, or does within a moment.
    async fn has_readers(&self) -> bool {
        if self.readers.load(Ordering::Acquire) == 0 {
            tokio::time::sleep(IDLE_MAX).await;
        }
        self.readers.load(Ordering::Acquire) > 0
    }

    /// Waits until a chunk is durable at the site; has it fetched if it is not here.
    async fn stored(self: &Arc<Self>, chunk: &ChunkRef, offset: u64) -> ApiResult<()> {
        if self.parts().here.contains(&chunk.hash) || !matches!(self.wanted, Wanted::Fill(_)) {
            return Ok(());
        }
        let mut coming = self.coming(chunk, offset);
        let end = coming.wait_for(|coming| matches!(coming, Coming::Stored | Coming::Failed(_))).await;
        match end.map(|end| end.clone()) {
            Ok(Coming::Failed(error)) => Err(error),
            Ok(_) => Ok(()),
            Err(error) => Err(ApiError::internal(&error)),
        }
    }
}
