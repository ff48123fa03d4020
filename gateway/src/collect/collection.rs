//! One collection, as those see it who wait for its chunks and he who brings them: which are there, the newest of
//! them in memory, which are wanted next.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::api::collect::{CollectionHead, Outcome, PROGRESS_WAIT, Progress};
use common::api::node::Holding;
use common::api::search::ContentInfo;
use common::error::{ApiError, ErrorBody};
use common::manifest::{ChunkList, ChunkRef};
use common::record::{DeliveryPath, Source};
use tokio::sync::{Notify, watch};

use super::sought::Keep;

/// Bytes of chunks kept in memory for waiting readers, shared by the collections at work; slower readers read from the
/// storage nodes.
const WINDOWS_BYTES: usize = 128 << 20;
/// One collection keeps no more than this.
const WINDOW_BYTES_MAX: usize = 16 << 20;
/// How long a collection goes on without readers before it is asked whether it is worth it.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// Chunks that are told of in one answer.
const PROGRESS_LEN: usize = 4096;

pub struct Collection {
    pub holding: Holding,
    pub chunks: Arc<[ChunkRef]>,
    /// The nearest source, which the collection began with.
    pub source: Source,
    pub path: DeliveryPath,
    /// Tells it from other runs of the same content.
    pub run: u64,
    /// What a visitor's home said of who holds it.
    pub confirmed: Option<ContentInfo>,
    /// Where each chunk begins.
    offsets: Vec<u64>,
    state: Mutex<State>,
    /// Counts changes of `state`, to wake those who wait.
    changed: watch::Sender<u64>,
    wanted: Notify,
    at_work: Arc<AtWork>,
}

/// Collections at work in this gateway.
#[derive(Default)]
pub struct AtWork(AtomicUsize);

impl AtWork {
    fn window_bytes(&self) -> usize {
        (WINDOWS_BYTES / self.0.load(Ordering::Relaxed).max(1)).min(WINDOW_BYTES_MAX)
    }
}

struct State {
    /// Durable at the site, by place.
    stored: Vec<bool>,
    /// The same places in the order in which they came.
    order: Vec<u32>,
    stored_bytes: u64,
    window: VecDeque<(usize, Bytes)>,
    window_bytes: usize,
    /// Places that readers wait for, the newest wish last.
    wanted: VecDeque<usize>,
    readers: usize,
    /// When the last reader went.
    idle_since: Option<Instant>,
    /// How it is kept; the tag of the first is that of the holding, which chunks are stored with.
    keeps: Vec<Keep>,
    /// It is kept in all these ways: too late for another.
    is_over: bool,
    /// It is brought to its end whoever waits.
    is_needed: bool,
    /// It was stopped because nobody waited: too late to join.
    is_abandoned: bool,
    outcome: Option<Result<(), ApiError>>,
}

impl State {
    fn is_there(&self, place: usize) -> bool {
        self.stored.get(place).copied().unwrap_or(true)
    }
}

impl Collection {
    pub fn new(
        holding: Holding,
        chunks: Arc<[ChunkRef]>,
        head: CollectionHead,
        confirmed: Option<ContentInfo>,
        at_work: Arc<AtWork>,
    ) -> Self {
        let CollectionHead { run, source, path, is_temporary } = head;
        let tag = holding.ref_tag;
        let keep = if is_temporary { Keep::Temporary(tag) } else { Keep::Holding(tag) };
        let state = State {
            stored: vec![false; chunks.len()],
            order: Vec::new(),
            stored_bytes: 0,
            window: VecDeque::new(),
            window_bytes: 0,
            wanted: VecDeque::new(),
            readers: 0,
            idle_since: Some(Instant::now()),
            keeps: vec![keep],
            is_over: false,
            is_needed: false,
            is_abandoned: false,
            outcome: None,
        };
        let offsets = chunks.iter().scan(0, |end, chunk| {
            let start = *end;
            *end += u64::from(chunk.len);
            Some(start)
        });
        at_work.0.fetch_add(1, Ordering::Relaxed);
        let (offsets, changed, wanted) = (offsets.collect(), watch::Sender::new(0), Notify::new());
        let state = Mutex::new(state);
        Self { holding, chunks, source, path, run, confirmed, offsets, state, changed, wanted, at_work }
    }

    /// Where in the content the chunk at a place begins.
    pub fn offset(&self, place: usize) -> u64 {
        self.offsets[place]
    }

    /// The place of the chunk that begins at `offset`.
    pub fn place_at(&self, offset: u64) -> Option<usize> {
        self.offsets.binary_search(&offset).ok()
    }

    /// The stored chunk list, if the manifest has none.
    pub fn encoded_list(&self) -> Option<Bytes> {
        matches!(self.holding.manifest.chunks, ChunkList::Stored { .. })
            .then(|| ChunkList::encode(&self.chunks).into())
    }

    pub fn head(&self) -> CollectionHead {
        let (source, is_temporary) = (self.source.clone(), self.is_temporary());
        CollectionHead { run: self.run, source, path: self.path, is_temporary }
    }

    /// Whether it began for visitors.
    pub fn is_temporary(&self) -> bool {
        self.with(|state| matches!(state.keeps.first(), Some(Keep::Temporary(_))))
    }

    /// Whether it becomes a holding of the site.
    pub fn is_held(&self) -> bool {
        self.with(|state| state.keeps.iter().any(|keep| matches!(keep, Keep::Holding(_))))
    }

    /// Has it kept in this way, too. False when it is over.
    pub(super) fn keep_as(&self, keep: Keep) -> bool {
        self.with(|state| {
            let is_known = state.keeps.contains(&keep);
            if !is_known && !state.is_over {
                state.keeps.push(keep);
            }
            is_known || !state.is_over
        })
    }

    /// The way to keep it that comes behind the first `done`. Without one it is over.
    pub(super) fn keep_after(&self, done: usize) -> Option<Keep> {
        self.with(|state| {
            let keep = state.keeps.get(done).copied();
            state.is_over |= keep.is_none();
            keep
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.with(change);
        self.changed.send_modify(|count| *count += 1);
    }

    /// A verified chunk, for those who wait; it is being stored at the same time.
    pub(super) fn tee(&self, place: usize, bytes: Bytes) {
        let limit = self.at_work.window_bytes();
        self.change(|state| {
            state.window_bytes += bytes.len();
            state.window.push_back((place, bytes));
            while state.window_bytes > limit && state.window.len() > 1 {
                let gone = state.window.pop_front().map_or(0, |(_, bytes)| bytes.len());
                state.window_bytes -= gone;
            }
        });
    }

    /// The chunk is durable at the site.
    pub(super) fn stored(&self, place: usize) {
        self.change(|state| {
            if !std::mem::replace(&mut state.stored[place], true) {
                state.order.push(place as u32);
                state.stored_bytes += u64::from(self.chunks[place].len);
                state.wanted.retain(|wanted| *wanted != place);
            }
        });
    }

    /// Durable at the site, or not yet.
    pub(super) fn is_stored(&self, place: usize) -> bool {
        self.with(|state| state.stored[place])
    }

    /// Places behind the first `after` that came, in the order in which they did.
    fn news(&self, after: usize) -> Progress {
        self.with(|state| {
            let stored: Vec<u32> = state.order.iter().skip(after).take(PROGRESS_LEN).copied().collect();
            // The end is told when all that came before it is.
            let is_last = after + stored.len() >= state.order.len();
            let outcome = state.outcome.as_ref().filter(|_| is_last).map(|outcome| match outcome {
                Ok(()) => Outcome::Complete,
                Err(_) if state.is_abandoned => Outcome::Stopped,
                Err(ApiError { code, message, .. }) => {
                    let request_id = String::new();
                    Outcome::Failed(ErrorBody { code: *code, message: message.clone(), request_id })
                }
            });
            Progress { stored, outcome }
        })
    }

    pub(super) fn finish(&self, outcome: Result<(), ApiError>) {
        self.change(|state| {
            state.outcome = Some(outcome);
            state.is_over = true;
            state.window.clear();
            state.window_bytes = 0;
        });
    }

    /// Brings it to its end even if nobody waits: somebody has bought the content already.
    pub fn need(&self) {
        self.with(|state| state.is_needed = true);
    }

    /// The place that is wanted most: the newest wish, for who waits for an older one is being served.
    pub(super) fn wanted(&self) -> Option<usize> {
        self.with(|state| state.wanted.back().copied())
    }

    /// Waits for a wish that was not there before.
    pub(super) async fn wish(&self) {
        self.wanted.notified().await;
    }

    /// Somebody waits for the chunk at a place.
    pub fn want(&self, place: usize) {
        let is_new = self.with(|state| {
            let is_new = !state.is_there(place) && state.wanted.back() != Some(&place);
            if is_new {
                state.wanted.retain(|wanted| *wanted != place);
                state.wanted.push_back(place);
            }
            is_new
        });
        if is_new {
            self.wanted.notify_one();
        }
    }

    /// Waits until nobody has waited for it for a while, at a time when no more than half of it has come in. From
    /// then on nobody can join it.
    pub(super) async fn abandoned(&self) {
        loop {
            let left = self.with(|state| {
                let idle = state.idle_since?.elapsed();
                let is_worth_it = state.is_needed || 2 * state.stored_bytes > self.holding.manifest.len;
                let left = (!is_worth_it).then(|| IDLE_MAX.saturating_sub(idle))?;
                state.is_abandoned = left.is_zero();
                Some(left)
            });
            if left == Some(Duration::ZERO) {
                return;
            }
            tokio::time::sleep(left.unwrap_or(IDLE_MAX)).await;
        }
    }

    /// Whether it was stopped because nobody waited for it.
    pub(super) fn is_abandoned(&self) -> bool {
        self.with(|state| state.is_abandoned)
    }

    /// Waits until the chunk at `place` is there: its bytes if they are in memory, `None` if it is to be read from
    /// the site's nodes.
    pub async fn chunk(&self, place: usize) -> Result<Option<Bytes>, ApiError> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let found = self.with(|state| {
                if let Some((_, bytes)) = state.window.iter().find(|(known, _)| *known == place) {
                    return Some(Ok(Some(bytes.clone())));
                }
                if state.is_there(place) {
                    return Some(Ok(None));
                }
                state.outcome.clone().map(|outcome| outcome.map(|()| None))
            });
            if let Some(found) = found {
                return found;
            }
            self.want(place);
            if changed.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Waits for what is new behind the first `after` chunks that came, or for the end.
    pub async fn progress(&self, after: usize) -> Progress {
        let mut changed = self.changed.subscribe();
        let until = tokio::time::Instant::now() + PROGRESS_WAIT;
        loop {
            changed.mark_unchanged();
            let news = self.news(after);
            let is_news = !news.stored.is_empty() || news.outcome.is_some();
            if is_news || tokio::time::timeout_at(until, changed.changed()).await.is_err() {
                return news;
            }
        }
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.at_work.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Somebody who waits for a collection; it goes on at least as long as there is one.
pub struct Reader(Arc<Collection>);

impl Reader {
    /// `None` when it is being stopped already.
    pub fn new(collection: &Arc<Collection>) -> Option<Self> {
        collection.with(|state| {
            if state.is_abandoned {
                return None;
            }
            state.readers += 1;
            state.idle_since = None;
            Some(Self(collection.clone()))
        })
    }
}

impl Clone for Reader {
    fn clone(&self) -> Self {
        self.0.with(|state| state.readers += 1);
        Self(self.0.clone())
    }
}

impl Deref for Reader {
    type Target = Collection;

    fn deref(&self) -> &Collection {
        &self.0
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.readers -= 1;
            if state.readers == 0 {
                state.idle_since = Some(Instant::now());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use common::api::node::{HoldingState, RefTag};
    use common::error::ErrorCode;
    use common::hash::{ChunkHash, ContentHash};
    use common::id::{ClientId, SiteId};
    use common::manifest::{ChunkList, Manifest};
    use common::time::UnixMillis;
    use common::version::{HybridTime, Version};

    use super::*;

    fn collection(count: usize) -> Arc<Collection> {
        let chunks: Vec<ChunkRef> =
            (0..count).map(|i| ChunkRef { hash: ChunkHash::of(&[i as u8]), len: 1 }).collect();
        let hash = ContentHash::of(b"x");
        let manifest = Manifest {
            hash,
            len: count as u64,
            media_type: "text/plain".into(),
            metadata: BTreeMap::new(),
            chunks: ChunkList::Inline(chunks.clone()),
        };
        let holding = Holding {
            name: "alice/x".parse().unwrap(),
            version: Version { time: HybridTime(1), hash },
            manifest,
            provider: ClientId::new("alice").unwrap(),
            state: HoldingState::Collecting,
            ref_tag: RefTag(1),
            since: UnixMillis(0),
        };
        let source = Source::Site(SiteId::new("osaka").unwrap());
        let head = CollectionHead { run: 1, source, path: DeliveryPath::Peer, is_temporary: false };
        Arc::new(Collection::new(holding, chunks.into(), head, None, Arc::default()))
    }

    #[tokio::test]
    async fn a_reader_gets_a_chunk_as_soon_as_it_was_fetched_and_later_from_the_nodes() {
        let collection = collection(20);
        let reader = tokio::spawn({
            let collection = collection.clone();
            async move { collection.chunk(0).await }
        });
        collection.tee(0, Bytes::from_static(b"a"));
        assert_eq!(reader.await.unwrap().unwrap(), Some(Bytes::from_static(b"a")));
        // Each of them fills the window.
        let large = Bytes::from(vec![0; WINDOW_BYTES_MAX]);
        for index in 0..20 {
            collection.tee(index, large.clone());
            collection.stored(index);
        }
        assert_eq!(
            collection.chunk(0).await.unwrap(),
            None,
            "out of the window, so it is read from its node"
        );
        assert!(collection.chunk(19).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn everyone_who_waits_learns_that_a_collection_failed() {
        let collection = collection(2);
        let reader = tokio::spawn({
            let collection = collection.clone();
            async move { collection.chunk(1).await }
        });
        collection.finish(Err(ApiError::new(ErrorCode::SourceUnavailable, "gone")));
        assert_eq!(reader.await.unwrap().unwrap_err().code, ErrorCode::SourceUnavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_collection_that_nobody_waits_for_is_stopped_unless_more_than_half_is_there() {
        let waited_for = collection(4);
        let reader = Reader::new(&waited_for).unwrap();
        let is_abandoned = async |collection: &Arc<Collection>| {
            tokio::time::timeout(IDLE_MAX * 5, collection.abandoned()).await.is_ok()
        };
        // The clock of `Instant` goes on in real time, so the wait is not shortened by the pause.
        assert!(!is_abandoned(&waited_for).await);
        drop((reader.clone(), reader));
        waited_for.with(|state| state.idle_since = Instant::now().checked_sub(IDLE_MAX));
        waited_for.stored(0);
        waited_for.stored(1);
        assert!(is_abandoned(&waited_for).await, "half is not more than half");
        assert!(Reader::new(&waited_for).is_none());
        waited_for.finish(Err(ApiError::new(ErrorCode::SourceUnavailable, "nobody")));
        assert!(matches!(waited_for.progress(2).await.outcome, Some(Outcome::Stopped)));

        for prepare in [|it: &Collection| (0..3).for_each(|place| it.stored(place)), Collection::need] {
            let worth_it = collection(4);
            worth_it.with(|state| state.idle_since = Instant::now().checked_sub(IDLE_MAX));
            prepare(&worth_it);
            assert!(!is_abandoned(&worth_it).await);
        }
    }

    #[tokio::test]
    async fn what_readers_wait_for_is_wanted_until_it_is_there() {
        let collection = collection(4);
        let waiting = tokio::spawn({
            let collection = collection.clone();
            async move { collection.chunk(2).await }
        });
        collection.wish().await;
        assert_eq!(collection.wanted(), Some(2));
        collection.want(1);
        assert_eq!(collection.wanted(), Some(1), "the newest wish first");
        collection.stored(1);
        assert_eq!(collection.wanted(), Some(2));
        collection.stored(2);
        assert_eq!((waiting.await.unwrap().unwrap(), collection.wanted()), (None, None));
    }

    #[test]
    fn it_is_kept_in_every_way_that_was_sought_before_it_is_over() {
        let collection = collection(1);
        let (held, kept) = (Keep::Holding(RefTag(1)), Keep::Temporary(RefTag(2)));
        assert_eq!((collection.is_held(), collection.is_temporary()), (true, false));
        assert!(collection.keep_as(kept) && collection.keep_as(kept) && collection.keep_as(held));
        assert_eq!([0, 1, 2].map(|done| collection.keep_after(done)), [Some(held), Some(kept), None]);
        assert!(collection.keep_as(kept), "it is");
        assert!(!collection.keep_as(Keep::Temporary(RefTag(3))), "too late");
    }

    #[tokio::test]
    async fn others_are_told_what_came_in_its_order_and_the_end_last() {
        let collection = collection(3);
        collection.stored(2);
        collection.stored(0);
        let news = collection.progress(0).await;
        assert_eq!((news.stored, news.outcome.is_none()), (vec![2, 0], true));
        let waiting = tokio::spawn({
            let collection = collection.clone();
            async move { collection.progress(2).await }
        });
        collection.stored(1);
        assert_eq!(waiting.await.unwrap().stored, [1]);
        collection.finish(Ok(()));
        assert!(matches!(collection.progress(3).await.outcome, Some(Outcome::Complete)));
    }
}
