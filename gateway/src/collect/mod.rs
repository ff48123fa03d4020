//! Collecting what the site lacks: `search → rank → fetch (verify, store, tee) → hold → announce`.
//!
//! A site has one collection of a content at a time, however many clients ask for it through however many gateways:
//! requests at one gateway share it, and of several gateways that which has the *lease* carries it out while the others
//! follow. Its holding is `Collecting` from the moment the manifest is known until every chunk is durable; a gateway
//! that takes over goes on with what is there. It goes on as long as somebody waits, and to its end when more than half
//! has come in.
//!
//! What is collected for visitors ([`sought`]) goes the same way, under the same lease: home has said what it is, so that
//! no manifest is asked for; home is among its sources; and it is kept as temporary content instead of a holding. A
//! collection that is joined by clients of both kinds brings every chunk once and is kept both ways.
//!
//! | file | owns |
//! |---|---|
//! | `mod.rs` | beginning, joining and ending a collection; the lease |
//! | `sought.rs` | what is collected, and how it is kept |
//! | `collection.rs` | what is there, for those who wait |
//! | `fetch.rs` | which chunk comes next |
//! | `holders.rs` | whom it is asked of |
//! | `follow.rs` | a collection of another gateway |
//! | `elsewhere.rs` | single chunks that the site should have and has not |
//! | `sources/` | which holder is nearest |

pub mod collection;
pub mod elsewhere;
mod fetch;
mod follow;
mod holders;
pub mod sought;
pub mod sources;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::api::collect::{
    CollectionHead, CollectorAddress, LEASE_TIME, LeaseAnswer, LeaseEnd, LeaseRequest, Opened,
};
use common::api::node::{HoldAnswer, HoldRequest, Holding, HoldingState, NodeClient, RefTag};
use common::api::search::{ContentInfo, SearchClient};
use common::api::temporary::CompleteRequest;
use common::client::ServerClient;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::hash::ChunkHash;
use common::id::ClientId;
use common::manifest::{ChunkList, ChunkRef};
use common::name::ContentName;
use common::placement::Slot;
use common::record::{DeliveryPath, Source};
use common::trace::{self, Stage, stage};
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
use sought::{Keep, Sought, Visit};
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
/// Who holds a content, as search is being asked while the lease is taken.
type Found = AbortOnDropHandle<ApiResult<ContentInfo>>;

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
    /// it is durable how it is kept; chunks follow.
    ///
    /// # Errors
    /// `Conflict` when the site holds it meanwhile (resolve it again), or another version than the sought one is being
    /// collected.
    pub async fn collect(self: &Arc<Self>, sought: Sought<'_>) -> ApiResult<Joined> {
        let name = sought.name();
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
                let (collection, work) = self.begin(sought).await?;
                *noted = matches!(work, Work::Here { .. });
                let run = Arc::clone(self).run(collection.clone(), work, cell.clone());
                trace::spawn(run);
                Ok(collection)
            };
            match cell.get_or_try_init(begin).await {
                Ok(collection) => match Reader::new(collection) {
                    Some(collection) if self.keep_as(&collection, sought).await? => {
                        return Ok(Joined { collection, is_noted });
                    }
                    // It is just being stopped, or over.
                    _ => self.forget(name, &cell),
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

    /// Has a collection kept in the way that is sought, too. False when it is too late for that.
    async fn keep_as(&self, collection: &Collection, sought: Sought<'_>) -> ApiResult<bool> {
        let ours = &collection.holding;
        match sought {
            Sought::Visited(visit) if visit.holding.version == ours.version => {
                Ok(collection.keep_as(Keep::Temporary(visit.holding.ref_tag)))
            }
            Sought::Visited(_) => {
                let message = format!("another version of {} is being collected", ours.name);
                Err(ApiError::new(ErrorCode::Conflict, message))
            }
            Sought::Held { .. } if collection.is_held() => Ok(true),
            Sought::Held { client, .. } => {
                let tag = RefTag::generate();
                let held = self.hold(ours, tag, HoldingState::Collecting, Some(client)).await?;
                if held.version != ours.version {
                    return Err(is_newer(&ours.name));
                }
                Ok(collection.keep_as(Keep::Holding(held.ref_tag)))
            }
        }
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

    async fn begin(self: &Arc<Self>, sought: Sought<'_>) -> ApiResult<Beginning> {
        let (name, mut silent) = (sought.name(), None);
        let found = self.clone().look_up_owned(name.clone(), sought.confirmed().cloned());
        let found = AbortOnDropHandle::new(trace::spawn(found));
        for _ in 0..TURNS_MAX {
            let LeaseAnswer { collector: address, holding: known } = self.lease(name, silent.take()).await?;
            if address.http == self.address.http {
                let begun = match sought {
                    Sought::Held { client, .. } => self.begin_held(name, client, known, found).await,
                    Sought::Visited(visit) => self.begin_visited(visit, found).await,
                };
                if begun.is_err() {
                    self.end_lease(name).await;
                }
                return begun;
            }
            match self.opened_by(name, &address).await {
                Ok(Some(opened)) => return self.begin_following(opened, address, sought),
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
    async fn lease(&self, name: &ContentName, instead_of: Option<String>) -> ApiResult<LeaseAnswer> {
        let request = &LeaseRequest { name: name.clone(), collector: self.address.clone(), instead_of };
        let ask = |node: NodeClient| async move { node.lease_collection(request).await };
        self.site.ask_owner(Slot::of_name(name), ask).await
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
        AbortOnDropHandle::new(trace::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_INTERVAL).await;
                if let Err(error) = this.lease(&name, None).await {
                    tracing::debug!(content = %name, %error, "the lease was not renewed");
                }
            }
        }))
    }

    async fn begin_held(
        &self,
        name: &ContentName,
        client: &ClientId,
        known: Option<Holding>,
        found: Found,
    ) -> ApiResult<Beginning> {
        let info = found.await.map_err(|error| ApiError::internal(&error))??;
        if known.as_ref().is_some_and(|known| is_held(known, &info)) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("the site holds {name} meanwhile")));
        }
        let candidates = self.rank(&info).await;
        let holders = self.holders(&info, candidates.clone());
        let opening = self.open(&info, &holders, &candidates);
        let (opened, candidate) = stage(Stage::Source, opening).await?;
        let Opened { holding, list, first, .. } = opened;
        // It comes in while the holding is made durable. Of what the site has another version it may have the beginning.
        let first = known
            .is_none()
            .then(|| AbortOnDropHandle::new(trace::spawn(async move { first.bytes().await.ok().flatten() })));
        let chunks = self.chunk_list(&holders, &holding, list).await?;
        let held = self.hold(&holding, RefTag::generate(), HoldingState::Collecting, Some(client)).await?;
        if held.version != holding.version {
            return Err(is_newer(name));
        }
        let path = candidate.path();
        let holding = Holding { ref_tag: held.ref_tag, state: HoldingState::Collecting, ..holding };
        let (run, source) = (RefTag::generate().0, candidate.source.clone());
        let head = CollectionHead { run, source, path, is_temporary: false };
        self.metrics.collection(path);
        let collection = Collection::new(holding, chunks, head, None, self.windows.clone());
        Ok((Arc::new(collection), Work::Here { holders: Box::new(holders), first }))
    }

    /// Home has said what it is, and it is durable that it is kept.
    async fn begin_visited(&self, visit: &Visit, found: Found) -> ApiResult<Beginning> {
        let Visit { holding, confirmed } = visit;
        // What the site holds, or keeps in part, it has the list of.
        let (found, listed) = tokio::join!(found, self.chunks.list(&holding.manifest));
        let info = found.map_err(|error| ApiError::internal(&error))??;
        let holders = self.holders(&info, self.rank(&info).await);
        let chunks = match listed {
            Ok(chunks) => chunks,
            Err(_) => self.chunk_list(&holders, holding, None).await?,
        };
        let (run, path) = (RefTag::generate().0, DeliveryPath::Peer);
        let home = confirmed.sites.first().unwrap_or(&self.site.id).clone();
        let head = CollectionHead { run, source: Source::Site(home), path, is_temporary: true };
        self.metrics.collection(path);
        let (holding, confirmed) = (holding.clone(), Some(confirmed.clone()));
        let collection = Collection::new(holding, chunks, head, confirmed, self.windows.clone());
        Ok((Arc::new(collection), Work::Here { holders: Box::new(holders), first: None }))
    }

    fn begin_following(
        &self,
        opened: Opened,
        address: CollectorAddress,
        sought: Sought<'_>,
    ) -> ApiResult<Beginning> {
        let Opened { holding, list, collection: head, .. } = opened;
        let (Some(head), Some(chunks)) = (head, listed(&holding, list)) else {
            let message = format!("the gateway that collects {} answers in another form", holding.name);
            return Err(ApiError::new(ErrorCode::Unavailable, message));
        };
        self.metrics.collections_followed.increment(1);
        let run = head.run;
        let confirmed = sought.confirmed().cloned();
        let collection = Collection::new(holding, chunks, head, confirmed, self.windows.clone());
        Ok((Arc::new(collection), Work::There { address, run }))
    }

    /// *search*: who holds the newest version?
    async fn search(&self, name: &ContentName) -> ApiResult<ContentInfo> {
        stage(Stage::Search, self.search.lookup(name)).await.map_err(|error| match error.code() {
            Some(ErrorCode::ContentNotFound) => {
                ApiError::new(ErrorCode::ContentNotFound, format!("there is no content {name}"))
            }
            _ => error.to_api(
                ErrorCode::SearchUnavailable,
                "this site does not hold the content, and search does not answer; try again in a moment",
            ),
        })
    }

    /// *search*, with what home confirmed; without its word what search says of the newest version.
    async fn look_up(&self, name: &ContentName, confirmed: Option<&ContentInfo>) -> ApiResult<ContentInfo> {
        let found = self.search(name).await;
        let Some(confirmed) = confirmed else { return found };
        Ok(match found {
            Ok(mut info) if info.version == confirmed.version => {
                let others = confirmed.sites.iter().filter(|site| !info.sites.contains(site));
                let others: Vec<_> = others.cloned().collect();
                info.sites.extend(others);
                info
            }
            // Search knows who holds another version, or does not answer.
            _ => confirmed.clone(),
        })
    }

    async fn look_up_owned(
        self: Arc<Self>,
        name: ContentName,
        confirmed: Option<ContentInfo>,
    ) -> ApiResult<ContentInfo> {
        self.look_up(&name, confirmed.as_ref()).await
    }

    /// *rank*: sites by measurement, then origins.
    async fn rank(&self, info: &ContentInfo) -> Vec<Candidate> {
        stage(Stage::Rank, self.sources.rank(&self.site, info)).await
    }

    fn holders(&self, info: &ContentInfo, candidates: Vec<Candidate>) -> Holders {
        let (sources, search, metrics) = (self.sources.clone(), self.search.clone(), self.metrics.clone());
        Holders::new(info.name.clone(), info.version, candidates, sources, search, metrics)
    }

    async fn holders_of(&self, name: &ContentName, confirmed: Option<&ContentInfo>) -> ApiResult<Holders> {
        let info = self.look_up(name, confirmed).await?;
        Ok(self.holders(&info, self.rank(&info).await))
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
        let ask = |node: NodeClient| async move { node.hold(request).await };
        self.site.ask_owner(Slot::of_name(&holding.name), ask).await
    }

    /// Carries a collection through; its outcome is in the collection and the log.
    async fn run(self: Arc<Self>, collection: Arc<Collection>, work: Work, cell: Begun) {
        self.metrics.collections_inflight.increment(1.0);
        let begin = Instant::now();
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
        match &outcome {
            Ok(()) => self.metrics.collection_took(collection.path, begin.elapsed()),
            Err(_) if collection.is_abandoned() => {}
            Err(error) => {
                self.metrics.collections_failed.increment(1);
                tracing::warn!(content = %name, %error, "collection failed");
            }
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
                    let outcome = self.complete(collection, &holders, first, 0).await;
                    self.end_lease(name).await;
                    return outcome;
                }
                Work::There { address, run } => {
                    let silent = match self.follow(collection, &address, run).await {
                        Followed::Ended(Ok(())) => return self.keep_as_well(collection).await,
                        Followed::Ended(Err(error)) => return Err(error),
                        Followed::Unknown => None,
                        Followed::Silent => Some(address.http),
                    };
                    match self.succeed(collection, silent).await? {
                        Some(next) => work = next,
                        None => return self.keep_as_well(collection).await,
                    }
                }
            }
        }
    }

    /// Brings all chunks, and says so in each way that the content is kept, behind the first `done` ways.
    async fn complete(
        &self,
        collection: &Collection,
        holders: &Holders,
        mut first: Option<FirstBytes>,
        mut done: usize,
    ) -> ApiResult<()> {
        let holding = &collection.holding;
        while let Some(keep) = collection.keep_after(done) {
            // The second time all is there, and is only claimed.
            self.fetch_all(collection, holders, keep.tag(), first.take()).await?;
            match keep {
                Keep::Holding(tag) => {
                    self.hold(holding, tag, HoldingState::Complete, None).await?;
                }
                Keep::Temporary(ref_tag) => {
                    let request = &CompleteRequest { name: holding.name.clone(), ref_tag };
                    let ask = |node: NodeClient| async move { node.complete_temporary(request).await };
                    self.site.ask_owner(Slot::of_name(&holding.name), ask).await?;
                }
            }
            done += 1;
        }
        Ok(())
    }

    /// Another gateway has brought it in, and kept it in its way.
    async fn keep_as_well(&self, collection: &Collection) -> ApiResult<()> {
        if collection.keep_after(1).is_none() {
            return Ok(());
        }
        let holders = self.holders_of(&collection.holding.name, collection.confirmed.as_ref()).await?;
        self.complete(collection, &holders, None, 1).await
    }

    /// Goes on where another gateway stopped, or follows the one that already does. `None` when all is there.
    async fn succeed(
        &self,
        collection: &Arc<Collection>,
        mut silent: Option<String>,
    ) -> ApiResult<Option<Work>> {
        let (ours, name) = (&collection.holding, &collection.holding.name);
        for _ in 0..TURNS_MAX {
            let LeaseAnswer { collector: address, holding: known } = self.lease(name, silent.take()).await?;
            if let Some(known) = known.filter(|_| !collection.is_temporary())
                && known.version == ours.version
                && known.state != HoldingState::Collecting
            {
                self.end_lease(name).await;
                return Ok(None);
            }
            if address.http == self.address.http {
                self.metrics.collections_taken_over.increment(1);
                let holders = self.holders_of(name, collection.confirmed.as_ref()).await?;
                if !collection.is_temporary() {
                    let held = self.hold(ours, ours.ref_tag, HoldingState::Collecting, None).await?;
                    if (held.version, held.ref_tag) != (ours.version, ours.ref_tag) {
                        return Err(ApiError::new(
                            ErrorCode::SourceUnavailable,
                            "a newer version is being collected",
                        ));
                    }
                }
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

fn is_newer(name: &ContentName) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("the site holds a newer {name} meanwhile"))
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
