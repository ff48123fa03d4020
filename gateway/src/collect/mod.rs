//! Collecting what the site lacks: `search → rank → fetch (verify, store, tee) → hold → announce`.
//!
//! A site has one collection of a content at a time, however many clients ask for it through however many gateways:
//! requests at one gateway share it, and of several gateways that which has the *lease* carries it out while the others
//! follow. Its holding is `Collecting` from the moment the manifest is known until every chunk is durable; a gateway
//! that takes over goes on with what is there. It goes on as long as somebody waits, and to its end when more than half
//! has come in.
//!
//! | file | owns |
//! |---|---|
//! | `mod.rs` | beginning, joining and ending a collection; the lease |
//! | `collection.rs` | what is there, for those who wait |
//! | `fetch.rs` | which chunk comes next |
//! | `holders.rs` | whom it is asked of |
//! | `follow.rs` | a collection of another gateway |
//! | `sources/` | which holder is nearest |

pub mod collection;
mod fetch;
mod follow;
mod holders;
pub mod sources;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use common::api::collect::{CollectionHead, CollectorAddress, LEASE_TIME, LeaseEnd, LeaseRequest, Opened};
use common::api::node::{HoldAnswer, HoldRequest, Holding, HoldingState, RefTag, ResolveRequest};
use common::api::search::{ContentInfo, SearchClient};
use common::client::ServerClient;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::hash::ChunkHash;
use common::id::ClientId;
use common::manifest::{ChunkList, ChunkRef, ChunkSlice};
use common::name::ContentName;
use common::placement::Slot;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use crate::chunks::Chunks;
use crate::metrics::Metrics;
use crate::site::SiteView;
use collection::{AtWork, Collection, Reader};
use fetch::{FirstBytes, ROOM_KIB};
use follow::Followed;
use holders::{Holders, is_not_there};
use sources::{Candidate, Sources};

/// How often a lease is renewed.
const RENEW_INTERVAL: Duration = Duration::from_millis(LEASE_TIME.as_millis() as u64 / 4);
/// How often one that asks is sent from one gateway to the next before it is told to come again.
const TURNS_MAX: u32 = 8;
/// A source is late with its beginning after so many times of what a chunk of it is expected to take.
const OPEN_LATE_TIMES: f64 = 4.0;
/// Between two turns.
const TURN_DELAY: Duration = Duration::from_millis(50);

/// A collection that has begun, or is about to; whoever comes first begins it.
type Begun = Arc<OnceCell<Arc<Collection>>>;

/// What a collector needs of the rest of the gateway.
pub struct Parts {
    pub site: Arc<SiteView>,
    pub chunks: Arc<Chunks>,
    pub search: SearchClient,
    pub server: ServerClient,
    pub sources: Arc<Sources>,
    pub metrics: Arc<Metrics>,
    /// This gateway, as the site's others reach it.
    pub address: CollectorAddress,
}

/// Finds, starts, joins and carries out collections.
pub struct Collector {
    site: Arc<SiteView>,
    chunks: Arc<Chunks>,
    search: SearchClient,
    server: ServerClient,
    sources: Arc<Sources>,
    metrics: Arc<Metrics>,
    address: CollectorAddress,
    /// Memory for the chunks on their way, in KiB.
    room: Semaphore,
    windows: Arc<AtWork>,
    at_work: Mutex<HashMap<ContentName, Begun>>,
}

/// A collection that was joined.
pub struct Joined {
    pub collection: Reader,
    /// Whether the client was noted as a holder with its beginning.
    pub is_noted: bool,
}

/// What carries a collection out.
enum Work {
    Here { holders: Box<Holders>, first: Option<FirstBytes> },
    There { address: CollectorAddress, run: u64 },
}

/// A beginning, of which the holding is durable.
type Beginning = (Arc<Collection>, Work);

impl Collector {
    pub fn new(parts: Parts) -> Self {
        let Parts { site, chunks, search, server, sources, metrics, address } = parts;
        Self {
            site,
            chunks,
            search,
            server,
            sources,
            metrics,
            address,
            room: Semaphore::new(ROOM_KIB),
            windows: Arc::default(),
            at_work: Mutex::default(),
        }
    }

    fn cells<T>(&self, look: impl FnOnce(&mut HashMap<ContentName, Begun>) -> T) -> T {
        look(&mut self.at_work.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The collection of a content that is at work here, if there is one.
    pub fn at_work(&self, name: &ContentName) -> Option<Reader> {
        self.cells(|cells| cells.get(name).and_then(|cell| Reader::new(cell.get()?)))
    }

    /// The same, or the one that is just beginning.
    pub async fn at_work_or_beginning(&self, name: &ContentName) -> Option<Reader> {
        let cell = self.cells(|cells| cells.get(name).cloned())?;
        // Whoever began it goes on; only one that failed leaves it to be begun here, and that is an end.
        let none = || async { Err(()) };
        let collection = cell.get_or_try_init(none).await.ok()?;
        Reader::new(collection)
    }

    /// Starts collecting a content, or joins the collection at work. Answers as soon as the manifest is known and
    /// the holding is durable, with `client` among those who hold the name; chunks follow.
    ///
    /// # Errors
    /// `Conflict` when the site holds it meanwhile; resolve it again.
    pub async fn collect(self: &Arc<Self>, name: &ContentName, client: &ClientId) -> ApiResult<Joined> {
        for _ in 0..TURNS_MAX {
            let (cell, is_joined) = self.cells(|cells| match cells.get(name) {
                Some(cell) => (cell.clone(), true),
                None => (cells.entry(name.clone()).or_default().clone(), false),
            });
            if is_joined {
                self.metrics.coalesced.increment(1);
            }
            let mut is_noted = false;
            let noted = &mut is_noted;
            let begin = async || {
                let (collection, work) = self.begin(name, client).await?;
                *noted = matches!(work, Work::Here { .. });
                let run = Arc::clone(self).run(collection.clone(), work, cell.clone());
                tokio::spawn(run);
                Ok(collection)
            };
            match cell.get_or_try_init(begin).await {
                Ok(collection) => match Reader::new(collection) {
                    Some(collection) => return Ok(Joined { collection, is_noted }),
                    // It is just being stopped.
                    None => self.forget(name, &cell),
                },
                Err(error) => {
                    self.forget(name, &cell);
                    return Err(error);
                }
            }
        }
        Err(busy(name))
    }

    fn forget(&self, name: &ContentName, cell: &Begun) {
        self.cells(|cells| {
            if cells.get(name).is_some_and(|known| Arc::ptr_eq(known, cell)) {
                cells.remove(name);
            }
        });
    }

    /// What a content is, without collecting it.
    pub async fn look(&self, name: &ContentName) -> ApiResult<(Holding, Candidate)> {
        let info = self.search(name).await?;
        let candidates = self.rank(&info).await;
        let holders = self.holders(&info, candidates.clone());
        for candidate in candidates {
            match candidate.peer.holding(name).await {
                Ok(holding) if holding.version >= info.version => return Ok((holding, candidate)),
                Ok(_) => holders.report_missing(&candidate).await,
                Err(error) if is_not_there(error.code()) => holders.report_missing(&candidate).await,
                Err(error) => {
                    self.sources.not_answered(&candidate, &error);
                    tracing::warn!(content = %name, source = ?candidate.source, error = chain(&error), "source does not answer");
                }
            }
        }
        Err(no_source(name))
    }

    async fn begin(&self, name: &ContentName, client: &ClientId) -> ApiResult<Beginning> {
        let mut silent = None;
        for _ in 0..TURNS_MAX {
            let address = self.lease(name, silent.take()).await?;
            if address.http == self.address.http {
                let begun = self.begin_here(name, client).await;
                if begun.is_err() {
                    self.end_lease(name).await;
                }
                return begun;
            }
            match self.opened_by(name, &address).await {
                Ok(Some(opened)) => return self.begin_following(opened, address),
                // It is about to begin, or just over.
                Ok(None) => tokio::time::sleep(TURN_DELAY).await,
                Err(error) => {
                    tracing::warn!(content = %name, gateway = %address.gateway, error = chain(&error), "the gateway that collects does not answer; taking its place");
                    silent = Some(address.http);
                }
            }
        }
        Err(busy(name))
    }

    /// Takes the lease, or learns who has it.
    async fn lease(&self, name: &ContentName, instead_of: Option<String>) -> ApiResult<CollectorAddress> {
        let request = &LeaseRequest { name: name.clone(), collector: self.address.clone(), instead_of };
        let ask = |node: common::api::node::NodeClient| async move { node.lease_collection(request).await };
        Ok(self.site.ask_owner(Slot::of_name(name), ask).await?.collector)
    }

    async fn end_lease(&self, name: &ContentName) {
        let end = LeaseEnd { name: name.clone(), http: self.address.http.clone() };
        let Some(owner) = self.site.slot_primary(Slot::of_name(name)) else { return };
        if let Err(error) = owner.client.release_collection(&end).await {
            tracing::debug!(content = %name, error = chain(&error), "the lease ends by itself");
        }
    }

    /// Keeps the lease until dropped.
    fn keep_lease(self: &Arc<Self>, name: &ContentName) -> AbortOnDropHandle<()> {
        let (this, name) = (self.clone(), name.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_INTERVAL).await;
                if let Err(error) = this.lease(&name, None).await {
                    tracing::debug!(content = %name, %error, "the lease was not renewed");
                }
            }
        }))
    }

    async fn begin_here(&self, name: &ContentName, client: &ClientId) -> ApiResult<Beginning> {
        let (info, known) = tokio::try_join!(self.search(name), self.held(name))?;
        if known.as_ref().is_some_and(|known| is_held(known, &info)) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("the site holds {name} meanwhile")));
        }
        let candidates = self.rank(&info).await;
        let holders = self.holders(&info, candidates.clone());
        let (opened, candidate) = self.open(&info, &holders, &candidates).await?;
        let Opened { holding, list, first, .. } = opened;
        // It comes in while the holding is made durable. Of what the site has another version it may have the beginning.
        let first = known
            .is_none()
            .then(|| AbortOnDropHandle::new(tokio::spawn(async move { first.bytes().await.ok().flatten() })));
        let chunks = self.chunk_list(&holders, &holding, list).await?;
        let held = self.hold(&holding, RefTag::generate(), HoldingState::Collecting, Some(client)).await?;
        if held.version != holding.version {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("the site holds a newer {name} meanwhile"),
            ));
        }
        let path = candidate.path();
        self.metrics.collection(path);
        let holding = Holding { ref_tag: held.ref_tag, state: HoldingState::Collecting, ..holding };
        let head = CollectionHead { run: RefTag::generate().0, source: candidate.source.clone(), path };
        let collection = Collection::new(holding, chunks, head, self.windows.clone());
        Ok((Arc::new(collection), Work::Here { holders: Box::new(holders), first }))
    }

    fn begin_following(&self, opened: Opened, address: CollectorAddress) -> ApiResult<Beginning> {
        let Opened { holding, list, collection: head, .. } = opened;
        let (Some(head), Some(chunks)) = (head, listed(&holding, list)) else {
            let message = format!("the gateway that collects {} answers in another form", holding.name);
            return Err(ApiError::new(ErrorCode::Unavailable, message));
        };
        self.metrics.collections_followed.increment(1);
        let run = head.run;
        let collection = Collection::new(holding, chunks, head, self.windows.clone());
        Ok((Arc::new(collection), Work::There { address, run }))
    }

    /// *search*: who holds the newest version?
    async fn search(&self, name: &ContentName) -> ApiResult<ContentInfo> {
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

    /// *rank*: sites by measurement, then origins.
    async fn rank(&self, info: &ContentInfo) -> Vec<Candidate> {
        self.sources.rank(&self.site, info).await
    }

    fn holders(&self, info: &ContentInfo, candidates: Vec<Candidate>) -> Holders {
        let (sources, search, metrics) = (self.sources.clone(), self.search.clone(), self.metrics.clone());
        Holders::new(info.name.clone(), info.version, candidates, sources, search, metrics)
    }

    /// One chunk, verified, from whichever of the candidates is expected to give it first.
    pub async fn fetch_from(
        &self,
        info: &ContentInfo,
        candidates: &[Candidate],
        chunk: &ChunkRef,
        offset: u64,
    ) -> ApiResult<Bytes> {
        self.holders(info, candidates.to_vec()).fetch(chunk, offset).await
    }

    /// Looks for holders anew. What cannot be learnt now leaves those that are known.
    async fn renew(&self, holders: &Holders) {
        match self.search(holders.name()).await {
            Ok(info) => holders.renew(self.rank(&info).await),
            Err(error) => tracing::debug!(content = %holders.name(), %error, "no other holders are found"),
        }
    }

    /// The beginning of the content from the nearest source that gives it; of one that is late the next is asked as
    /// well.
    async fn open(
        &self,
        info: &ContentInfo,
        holders: &Holders,
        candidates: &[Candidate],
    ) -> ApiResult<(Opened, Candidate)> {
        let ask = |candidate: Candidate| async move {
            let answer = candidate.peer.open(&info.name).await;
            (candidate, answer)
        };
        let (mut asked, mut others, mut another) = (FuturesUnordered::new(), candidates.iter(), true);
        let mut late = Duration::ZERO;
        loop {
            if std::mem::take(&mut another)
                && let Some(candidate) = others.next()
            {
                late = holders::late(OPEN_LATE_TIMES * candidate.chunk_seconds);
                asked.push(ask(candidate.clone()));
            }
            let (candidate, answer) = tokio::select! {
                answer = asked.next() => match answer {
                    Some(answer) => answer,
                    None => return Err(no_source(&info.name)),
                },
                () = tokio::time::sleep(late), if !others.as_slice().is_empty() => {
                    self.metrics.hedged_fetches.increment(1);
                    another = true;
                    continue;
                }
            };
            another = true;
            match answer {
                Ok(opened) if is_good(&opened.holding, info) => return Ok((opened, candidate)),
                Ok(_) => holders.report_missing(&candidate).await,
                Err(error) if is_not_there(error.code()) => holders.report_missing(&candidate).await,
                Err(error) => {
                    self.sources.not_answered(&candidate, &error);
                    tracing::warn!(content = %info.name, source = ?candidate.source, error = chain(&error), "source does not answer");
                }
            }
        }
    }

    /// The chunks of a content; the list that came along is used if it is right.
    async fn chunk_list(
        &self,
        holders: &Holders,
        holding: &Holding,
        came: Option<Bytes>,
    ) -> ApiResult<Arc<[ChunkRef]>> {
        if let Some(chunks) = listed(holding, came) {
            return Ok(chunks);
        }
        match &holding.manifest.chunks {
            ChunkList::Inline(chunks) => Ok(chunks.as_slice().into()),
            ChunkList::Stored { list, .. } => {
                let bytes = self.fetch(holders, list, 0).await?;
                crate::chunks::decode_list(&holding.manifest, &bytes)
            }
        }
    }

    /// What the site has of a name.
    async fn held(&self, name: &ContentName) -> ApiResult<Option<Holding>> {
        let request = &ResolveRequest { name: name.clone(), client: None };
        let ask = |node: common::api::node::NodeClient| async move { node.resolve(request).await };
        Ok(self.site.ask_owner(Slot::of_name(name), ask).await?.holding)
    }

    async fn hold(
        &self,
        holding: &Holding,
        ref_tag: RefTag,
        state: HoldingState,
        client: Option<&ClientId>,
    ) -> ApiResult<HoldAnswer> {
        let request = &HoldRequest {
            name: holding.name.clone(),
            manifest: holding.manifest.clone(),
            provider: holding.provider.clone(),
            state,
            ref_tag,
            version_time: Some(holding.version.time),
            client: client.cloned(),
            add_to_library: false,
            quota: Default::default(),
            precondition: Default::default(),
            announce_wait_ms: 0,
        };
        let ask = |node: common::api::node::NodeClient| async move { node.hold(request).await };
        self.site.ask_owner(Slot::of_name(&holding.name), ask).await
    }

    /// Carries a collection through; its outcome is in the collection and the log.
    async fn run(self: Arc<Self>, collection: Arc<Collection>, work: Work, cell: Begun) {
        self.metrics.collections_inflight.increment(1.0);
        let name = collection.holding.name.clone();
        let outcome = tokio::select! {
            outcome = self.carry_out(&collection, work) => outcome,
            () = collection.abandoned() => {
                self.metrics.collections_stopped.increment(1);
                tracing::info!(content = %name, "collection stopped: nobody waits for it");
                self.end_lease(&name).await;
                Err(ApiError::new(ErrorCode::SourceUnavailable, "the collection was stopped"))
            }
        };
        self.metrics.collections_inflight.decrement(1.0);
        if let Err(error) = &outcome {
            self.metrics.collections_failed.increment(1);
            tracing::warn!(content = %name, %error, "collection failed");
        }
        // New requests resolve the holding again; those that wait for this collection go on reading from it.
        self.forget(&name, &cell);
        collection.finish(outcome);
    }

    async fn carry_out(self: &Arc<Self>, collection: &Arc<Collection>, mut work: Work) -> ApiResult<()> {
        let name = &collection.holding.name;
        loop {
            match work {
                Work::Here { holders, first } => {
                    let _lease = self.keep_lease(name);
                    let outcome = self.complete(collection, &holders, first).await;
                    self.end_lease(name).await;
                    return outcome;
                }
                Work::There { address, run } => {
                    let silent = match self.follow(collection, &address, run).await {
                        Followed::Ended(outcome) => return outcome,
                        Followed::Unknown => None,
                        Followed::Silent => Some(address.http),
                    };
                    match self.succeed(collection, silent).await? {
                        Some(next) => work = next,
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    async fn complete(
        &self,
        collection: &Collection,
        holders: &Holders,
        first: Option<FirstBytes>,
    ) -> ApiResult<()> {
        self.fetch_all(collection, holders, first).await?;
        let holding = &collection.holding;
        self.hold(holding, holding.ref_tag, HoldingState::Complete, None).await?;
        Ok(())
    }

    /// Goes on where another gateway stopped, or follows the one that already does. `None` when all is there.
    async fn succeed(
        &self,
        collection: &Arc<Collection>,
        mut silent: Option<String>,
    ) -> ApiResult<Option<Work>> {
        let (ours, name) = (&collection.holding, &collection.holding.name);
        for _ in 0..TURNS_MAX {
            let address = self.lease(name, silent.take()).await?;
            if let Some(known) = self.held(name).await?
                && known.version == ours.version
                && known.state != HoldingState::Collecting
            {
                self.end_lease(name).await;
                return Ok(None);
            }
            if address.http == self.address.http {
                self.metrics.collections_taken_over.increment(1);
                let info = self.search(name).await?;
                let held = self.hold(ours, ours.ref_tag, HoldingState::Collecting, None).await?;
                if (held.version, held.ref_tag) != (ours.version, ours.ref_tag) {
                    return Err(ApiError::new(
                        ErrorCode::SourceUnavailable,
                        "a newer version is being collected",
                    ));
                }
                let holders = self.holders(&info, self.rank(&info).await);
                return Ok(Some(Work::Here { holders: Box::new(holders), first: None }));
            }
            match self.opened_by(name, &address).await {
                Ok(Some(Opened { holding, collection: Some(head), .. }))
                    if holding.version == ours.version =>
                {
                    return Ok(Some(Work::There { address, run: head.run }));
                }
                Ok(_) => tokio::time::sleep(TURN_DELAY).await,
                Err(error) => {
                    tracing::debug!(content = %name, gateway = %address.gateway, error = chain(&error), "this one does not answer either");
                    silent = Some(address.http);
                }
            }
        }
        Err(busy(name))
    }

    /// Fetches a chunk that the site should have and has not (or has damaged), stores it for the holding with this tag,
    /// gives its bytes.
    pub async fn repair(&self, name: &ContentName, tag: RefTag, slice: &ChunkSlice) -> ApiResult<Bytes> {
        let info = self.search(name).await?;
        let holders = self.holders(&info, self.rank(&info).await);
        let bytes = holders.fetch(&slice.chunk, slice.offset).await?;
        self.chunks.write(&slice.chunk.hash, name, tag, bytes.clone()).await?;
        self.metrics.chunks_repaired.increment(1);
        Ok(bytes)
    }
}

/// The chunks of a holding, from the list that came with it; `None` when that is missing or wrong.
fn listed(holding: &Holding, came: Option<Bytes>) -> Option<Arc<[ChunkRef]>> {
    match &holding.manifest.chunks {
        ChunkList::Inline(chunks) => Some(chunks.as_slice().into()),
        ChunkList::Stored { list, .. } => {
            let bytes = came.filter(|bytes| ChunkHash::of(bytes) == list.hash)?;
            crate::chunks::decode_list(&holding.manifest, &bytes).ok()
        }
    }
}

fn is_good(holding: &Holding, info: &ContentInfo) -> bool {
    holding.name == info.name && holding.version >= info.version && holding.manifest.check().is_ok()
}

fn is_held(known: &Holding, info: &ContentInfo) -> bool {
    known.state == HoldingState::Complete && known.version >= info.version
}

fn no_source(name: &ContentName) -> ApiError {
    let message = format!("no site or origin that holds {name} answers at the moment; try again later");
    ApiError::new(ErrorCode::SourceUnavailable, message)
}

fn busy(name: &ContentName) -> ApiError {
    let message =
        format!("{name} is being collected through another gateway that changes; try again in a moment");
    ApiError::new(ErrorCode::SourceUnavailable, message)
}
