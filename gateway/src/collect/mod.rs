//! Collecting what the site lacks: `search → rank → fetch (verify, store, tee) → hold → announce`.
//!
//! One collection per content at this gateway, however many clients wait for it. Its holding is `Collecting` from
//! the moment the manifest is known until every chunk is durable, so another gateway can take it over.

pub mod collection;
pub mod sources;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use common::api::node::{HoldRequest, Holding, HoldingState, RefTag};
use common::api::search::{ContentInfo, MissingAt, SearchClient};
use common::error::{ApiError, ErrorCode};
use common::hash::ChunkHash;
use common::manifest::{ChunkList, ChunkRef, ChunkSlice};
use common::name::ContentName;
use common::placement::Slot;
use common::record::{DeliveryPath, Source};
use tokio::sync::OnceCell;

use crate::chunks::Chunks;
use crate::metrics::Metrics;
use crate::site::SiteView;
use collection::Collection;
use sources::{Candidate, Sources};

/// A collection that has begun, or is about to; whoever comes first begins it.
type Begun = Arc<OnceCell<Arc<Collection>>>;

/// Finds, starts and joins collections.
pub struct Collector {
    site: Arc<SiteView>,
    chunks: Arc<Chunks>,
    search: SearchClient,
    sources: Arc<Sources>,
    metrics: Arc<Metrics>,
    at_work: Mutex<HashMap<ContentName, Begun>>,
}

impl Collector {
    pub fn new(
        site: Arc<SiteView>,
        chunks: Arc<Chunks>,
        search: SearchClient,
        sources: Arc<Sources>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { site, chunks, search, sources, metrics, at_work: Mutex::default() }
    }

    /// The collection of a content that is at work here, if there is one.
    pub fn at_work(&self, name: &ContentName) -> Option<Arc<Collection>> {
        let at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        at_work.get(name).and_then(|cell| cell.get().cloned())
    }

    /// Starts collecting a content, or joins the collection at work. Answers as soon as the manifest is known and
    /// the holding is durable; chunks follow. `unfinished` is a `Collecting` holding that some gateway left behind.
    pub async fn collect(
        self: &Arc<Self>,
        name: &ContentName,
        unfinished: Option<Holding>,
    ) -> Result<Arc<Collection>, ApiError> {
        let cell = {
            let mut at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
            match at_work.get(name) {
                Some(cell) => {
                    self.metrics.coalesced.increment(1);
                    cell.clone()
                }
                None => at_work.entry(name.clone()).or_default().clone(),
            }
        };
        let begun = cell.get_or_try_init(|| self.begin(name, unfinished)).await;
        match begun {
            Ok(collection) => Ok(collection.clone()),
            Err(error) => {
                self.forget(name, &cell);
                Err(error)
            }
        }
    }

    fn forget(&self, name: &ContentName, cell: &Begun) {
        let mut at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        if at_work.get(name).is_some_and(|known| Arc::ptr_eq(known, cell)) {
            at_work.remove(name);
        }
    }

    async fn begin(
        self: &Arc<Self>,
        name: &ContentName,
        unfinished: Option<Holding>,
    ) -> Result<Arc<Collection>, ApiError> {
        let info = self.search(name).await?;
        let candidates = self.rank(&info).await;
        let (holding, candidate) = self.first_holding(&info, &candidates).await?;
        // Bytes that an unfinished collection of the same version has stored keep their back-references.
        let ref_tag = match unfinished {
            Some(old) if old.version == holding.version => old.ref_tag,
            _ => RefTag::generate(),
        };
        let list = self.chunk_list(&holding, ref_tag, &candidates).await?;
        self.hold(&holding, ref_tag, HoldingState::Collecting).await?;
        let path = candidate.path();
        self.metrics.collection(path);
        let held = Holding { ref_tag, state: HoldingState::Collecting, ..holding };
        let collection = Arc::new(Collection::new(held, list, candidate.source.clone(), path));
        let run = Arc::clone(self).run(collection.clone(), candidates);
        tokio::spawn(run);
        Ok(collection)
    }

    /// *search*: who holds the newest version?
    async fn search(&self, name: &ContentName) -> Result<ContentInfo, ApiError> {
        self.search.lookup(name).await.map_err(|error| match error.code() {
            Some(ErrorCode::ContentNotFound) => {
                ApiError::new(ErrorCode::ContentNotFound, format!("there is no content {name}"))
            }
            _ => error.to_api(
                ErrorCode::SearchUnavailable,
                "this site does not hold the content, and search does not answer; try again in a moment",
            ),
        })
    }

    /// *rank*: sites by measured round trip, then origins.
    async fn rank(&self, info: &ContentInfo) -> Vec<Candidate> {
        self.sources.rank(&self.site, info).await
    }

    async fn first_holding(
        &self,
        info: &ContentInfo,
        candidates: &[Candidate],
    ) -> Result<(Holding, Candidate), ApiError> {
        for candidate in candidates {
            match candidate.peer.holding(&info.name).await {
                Ok(holding) if holding.version >= info.version && holding.manifest.check().is_ok() => {
                    return Ok((holding, candidate.clone()));
                }
                Ok(_) => self.report_missing(info, candidate).await,
                Err(error) if error.code() == Some(ErrorCode::ContentNotFound) => {
                    self.report_missing(info, candidate).await;
                }
                Err(error) => {
                    tracing::warn!(content = %info.name, source = ?candidate.source, error = %common::error::chain(&error), "source does not answer");
                }
            }
        }
        Err(ApiError::new(
            ErrorCode::SourceUnavailable,
            format!("no site or origin that holds {} answers at the moment; try again later", info.name),
        ))
    }

    async fn report_missing(&self, info: &ContentInfo, candidate: &Candidate) {
        let at = match &candidate.source {
            Source::Site(site) => MissingAt::Site(site.clone()),
            Source::Origin(origin) => MissingAt::Origin(origin.clone()),
        };
        tracing::warn!(content = %info.name, ?at, "source does not have what search says it has");
        if let Err(error) = self.search.report_missing(&info.name, info.version, &at).await {
            tracing::debug!(error = %common::error::chain(&error), "search did not take the report");
        }
    }

    async fn chunk_list(
        &self,
        holding: &Holding,
        tag: RefTag,
        candidates: &[Candidate],
    ) -> Result<Arc<[ChunkRef]>, ApiError> {
        match &holding.manifest.chunks {
            ChunkList::Inline(chunks) => Ok(chunks.as_slice().into()),
            ChunkList::Stored { list, .. } => {
                // The list is needed now and kept with the holding.
                let bytes = self.fetch(&holding.name, list, 0, candidates).await?.0;
                let decoded = crate::chunks::decode_list(&holding.manifest, &bytes)?;
                self.chunks.write(&list.hash, &holding.name, tag, bytes).await?;
                Ok(decoded)
            }
        }
    }

    async fn hold(&self, holding: &Holding, ref_tag: RefTag, state: HoldingState) -> Result<(), ApiError> {
        let request = HoldRequest {
            name: holding.name.clone(),
            manifest: holding.manifest.clone(),
            provider: holding.provider.clone(),
            state,
            ref_tag,
            version_time: Some(holding.version.time),
            client: None,
            add_to_library: false,
            quota: Default::default(),
            precondition: Default::default(),
            announce_wait_ms: 0,
        };
        let slot = Slot::of_name(&holding.name);
        self.site
            .ask_owner(slot, |node| {
                let request = request.clone();
                async move { node.hold(&request).await }
            })
            .await?;
        Ok(())
    }

    /// *fetch*: one chunk, verified, from the first candidate that gives it.
    pub async fn fetch(
        &self,
        name: &ContentName,
        chunk: &ChunkRef,
        offset: u64,
        candidates: &[Candidate],
    ) -> Result<(Bytes, DeliveryPath), ApiError> {
        for candidate in candidates {
            match candidate.peer.chunk(name, chunk, offset).await {
                Ok(bytes) if ChunkHash::of(&bytes) == chunk.hash => {
                    let path = candidate.path();
                    self.metrics.collected(path, bytes.len() as u64);
                    return Ok((bytes, path));
                }
                Ok(_) => {
                    self.metrics.hash_mismatches.increment(1);
                    tracing::error!(content = %name, source = ?candidate.source, chunk = ?chunk.hash, "source sent bytes that are not the chunk's");
                }
                Err(error) => {
                    tracing::warn!(content = %name, source = ?candidate.source, error = %common::error::chain(&error), "chunk not fetched; asking the next source");
                }
            }
        }
        Err(ApiError::new(
            ErrorCode::SourceUnavailable,
            format!("no holder of {name} sends its bytes at the moment"),
        ))
    }

    /// Carries a collection through; its outcome is in the collection's progress and the log.
    async fn run(self: Arc<Self>, collection: Arc<Collection>, candidates: Vec<Candidate>) {
        self.metrics.collections_inflight.increment(1.0);
        let outcome = self.fetch_all(&collection, &candidates).await;
        let outcome = match outcome {
            Ok(()) => {
                self.hold(&collection.holding, collection.holding.ref_tag, HoldingState::Complete).await
            }
            Err(error) => Err(error),
        };
        self.metrics.collections_inflight.decrement(1.0);
        let name = &collection.holding.name;
        if let Err(error) = &outcome {
            self.metrics.collections_failed.increment(1);
            tracing::warn!(content = %name, %error, "collection failed");
        }
        // New requests resolve the holding again; those that hold this collection go on reading from it.
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        collection.finish(outcome);
    }

    async fn fetch_all(&self, collection: &Collection, candidates: &[Candidate]) -> Result<(), ApiError> {
        use futures_util::{StreamExt, TryStreamExt};
        /// Chunks asked for at once.
        const CLAIM_BATCH: usize = 64;
        /// Chunks on their way at once.
        const IN_FLIGHT: usize = 4;
        let (name, tag) = (&collection.holding.name, collection.holding.ref_tag);
        let mut offset = 0u64;
        for (batch_index, batch) in collection.chunks.chunks(CLAIM_BATCH).enumerate() {
            let missing: std::collections::HashSet<ChunkHash> =
                self.chunks.claim(batch, name, tag).await?.into_iter().map(|c| c.hash).collect();
            // Equal chunks of one content are fetched once; all their places are then there.
            let mut fetches: Vec<(Vec<usize>, ChunkRef, u64)> = Vec::new();
            let mut first: HashMap<ChunkHash, usize> = HashMap::new();
            for (index, chunk) in batch.iter().enumerate() {
                let index = batch_index * CLAIM_BATCH + index;
                if !missing.contains(&chunk.hash) {
                    collection.stored(index);
                } else if let Some(known) = first.get(&chunk.hash) {
                    fetches[*known].0.push(index);
                } else {
                    first.insert(chunk.hash, fetches.len());
                    fetches.push((vec![index], *chunk, offset));
                }
                offset += u64::from(chunk.len);
            }
            let fetched = fetches.into_iter().map(|(places, chunk, offset)| async move {
                let (bytes, _) = self.fetch(name, &chunk, offset, candidates).await?;
                collection.tee(places[0], bytes.clone());
                self.chunks.write(&chunk.hash, name, tag, bytes).await?;
                places.into_iter().for_each(|place| collection.stored(place));
                Ok::<(), ApiError>(())
            });
            futures_util::stream::iter(fetched).buffered(IN_FLIGHT).try_collect::<()>().await?;
        }
        Ok(())
    }

    /// Fetches a chunk that the site should have and has not (or has damaged), stores it for the holding with this tag,
    /// gives its bytes.
    pub async fn repair(
        &self,
        name: &ContentName,
        tag: RefTag,
        slice: &ChunkSlice,
    ) -> Result<Bytes, ApiError> {
        let info = self.search(name).await?;
        let candidates = self.rank(&info).await;
        let (bytes, _) = self.fetch(name, &slice.chunk, slice.offset, &candidates).await?;
        self.chunks.write(&slice.chunk.hash, name, tag, bytes.clone()).await?;
        self.metrics.chunks_repaired.increment(1);
        Ok(bytes)
    }
}
