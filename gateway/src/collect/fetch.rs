//! *fetch*: brings all chunks of a collection to the site, those first that readers wait for.
//!
//! Chunks are claimed in batches: what the site has is not fetched. Of the rest several are on their way at once, each
//! verified, passed on to who waits, and stored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::api::node::RefTag;
use common::error::ApiError;
use common::hash::ChunkHash;
use common::manifest::{ChunkList, ChunkRef};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use super::Collector;
use super::collection::Collection;
use super::holders::Holders;

/// Chunks that are claimed at once.
const BATCH_LEN: usize = 64;
/// The next batch is claimed when so few chunks of those before are left to be asked for.
const CLAIM_AHEAD: usize = 32;
/// Chunks on their way at once, in one collection: as many as come in during [`FLIGHT_TIME`], so that what a reader
/// jumps to on a slow link does not queue behind what nobody waits for yet.
const IN_FLIGHT_MIN: usize = 2;
const IN_FLIGHT_FIRST: usize = 4;
const IN_FLIGHT_MAX: usize = 12;
const FLIGHT_TIME: Duration = Duration::from_millis(500);
/// So many more may be, if readers wait for them.
const WANTED_IN_FLIGHT: usize = 4;
/// The pace of a collection is measured over this time at least.
const PACE_TIME: Duration = Duration::from_millis(250);
/// Chunks behind the one that a reader waits for that are as urgent.
const WANTED_AHEAD: usize = 3;
/// Memory for the chunks on their way, of all collections, in KiB.
pub const ROOM_KIB: usize = 128 << 10;
/// Before holders are looked for anew, because all failed; it doubles each time.
const RETRY_DELAY: Duration = Duration::from_millis(100);
const ATTEMPTS_MAX: u32 = 7;

/// The first chunk, as the source sent it along.
pub type FirstBytes = tokio_util::task::AbortOnDropHandle<Option<Bytes>>;

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Claim(usize),
    Fetch(usize),
}

enum Done {
    Claimed { batch: usize, missing: HashSet<ChunkHash> },
    Stored { place: usize },
    List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unclaimed,
    Missing,
    /// On its way, perhaps as the same chunk at another place.
    InFlight,
    Stored,
}

/// Which chunks are where.
struct Plan {
    chunks: Arc<[ChunkRef]>,
    states: Vec<State>,
    /// Batches that were asked for.
    claimed: Vec<bool>,
    /// Places of chunks that are in the content more than once.
    repeated: HashMap<ChunkHash, Vec<usize>>,
    in_flight: HashSet<ChunkHash>,
    /// Everything before it is on its way or stored.
    cursor: usize,
    claims_in_flight: usize,
}

impl Plan {
    fn new(chunks: Arc<[ChunkRef]>, is_stored: impl Fn(usize) -> bool) -> Self {
        let mut places: HashMap<ChunkHash, Vec<usize>> = HashMap::new();
        for (place, chunk) in chunks.iter().enumerate() {
            places.entry(chunk.hash).or_default().push(place);
        }
        places.retain(|_, places| places.len() > 1);
        let state = |place| if is_stored(place) { State::Stored } else { State::Unclaimed };
        Self {
            states: (0..chunks.len()).map(state).collect(),
            claimed: vec![false; chunks.len().div_ceil(BATCH_LEN)],
            repeated: places,
            in_flight: HashSet::new(),
            cursor: 0,
            claims_in_flight: 0,
            chunks,
        }
    }

    /// The next step; with `wanted_only` just what readers wait for. `None` when that is all under way.
    fn next(&mut self, wanted: Option<usize>, wanted_only: bool) -> Option<Step> {
        let urgent = wanted.map_or(0..0, |place| place..(place + 1 + WANTED_AHEAD).min(self.states.len()));
        for place in urgent {
            if let Some(step) = self.step_at(place) {
                return Some(step);
            }
        }
        if wanted_only {
            return None;
        }
        while self.states.get(self.cursor).is_some_and(|s| matches!(s, State::InFlight | State::Stored)) {
            self.cursor += 1;
        }
        let ahead = self.cursor + CLAIM_AHEAD;
        if self.claims_in_flight == 0
            && self.states.get(ahead) == Some(&State::Unclaimed)
            && let Some(step) = self.claim(ahead / BATCH_LEN)
        {
            return Some(step);
        }
        for place in self.cursor..self.states.len() {
            let state = self.states[place];
            if state == State::Unclaimed {
                return self.claim(place / BATCH_LEN);
            }
            // Others are under way already, for readers who wanted them, or as the same chunk at another place.
            if state == State::Missing && self.take(place) {
                return Some(Step::Fetch(place));
            }
        }
        None
    }

    fn step_at(&mut self, place: usize) -> Option<Step> {
        match self.states[place] {
            State::Unclaimed => self.claim(place / BATCH_LEN),
            State::Missing => self.take(place).then_some(Step::Fetch(place)),
            State::InFlight | State::Stored => None,
        }
    }

    fn claim(&mut self, batch: usize) -> Option<Step> {
        if std::mem::replace(&mut self.claimed[batch], true) {
            return None;
        }
        self.claims_in_flight += 1;
        Some(Step::Claim(batch))
    }

    /// Marks a chunk as on its way. False when it is already, at another place.
    fn take(&mut self, place: usize) -> bool {
        self.states[place] = State::InFlight;
        self.in_flight.insert(self.chunks[place].hash)
    }

    fn places_of_batch(&self, batch: usize) -> std::ops::Range<usize> {
        batch * BATCH_LEN..((batch + 1) * BATCH_LEN).min(self.chunks.len())
    }

    /// Notes the answer to a claim; answers which places are there.
    fn claimed(&mut self, batch: usize, missing: &HashSet<ChunkHash>) -> Vec<usize> {
        self.claims_in_flight -= 1;
        let mut there = Vec::new();
        for place in self.places_of_batch(batch) {
            if self.states[place] == State::Unclaimed {
                let is_missing = missing.contains(&self.chunks[place].hash);
                self.states[place] = if is_missing { State::Missing } else { State::Stored };
                there.extend((!is_missing).then_some(place));
            }
        }
        there
    }

    /// Notes that a chunk is durable; answers all its places.
    fn stored(&mut self, place: usize) -> Vec<usize> {
        let hash = self.chunks[place].hash;
        self.in_flight.remove(&hash);
        let places = self.repeated.get(&hash).cloned().unwrap_or_else(|| vec![place]);
        places.iter().for_each(|place| self.states[*place] = State::Stored);
        places
    }
}

/// How many chunks may be on their way, by how quickly they came in lately.
struct Flow {
    since: Instant,
    chunks: u32,
    in_flight: usize,
}

impl Flow {
    fn new() -> Self {
        Self { since: Instant::now(), chunks: 0, in_flight: IN_FLIGHT_FIRST }
    }

    fn came(&mut self, now: Instant) {
        self.chunks += 1;
        let time = now.duration_since(self.since);
        if time >= PACE_TIME {
            let during_flight = f64::from(self.chunks) * FLIGHT_TIME.as_secs_f64() / time.as_secs_f64();
            // Half-way, as one measurement says little.
            let in_flight = (self.in_flight as f64 + during_flight) / 2.0;
            self.in_flight = (in_flight.round() as usize).clamp(IN_FLIGHT_MIN, IN_FLIGHT_MAX);
            (self.since, self.chunks) = (now, 0);
        }
    }
}

impl Collector {
    /// Brings all chunks that the site has not got with this tag. Dropping it stops it; what came in stays.
    pub(super) async fn fetch_all(
        &self,
        collection: &Collection,
        holders: &Holders,
        tag: RefTag,
        first: Option<FirstBytes>,
    ) -> Result<(), ApiError> {
        let is_stored = |place| tag == collection.holding.ref_tag && collection.is_stored(place);
        let mut plan = Plan::new(collection.chunks.clone(), is_stored);
        let (mut at_work, mut fetching, mut flow) = (FuturesUnordered::new(), 0, Flow::new());
        if let ChunkList::Stored { .. } = collection.holding.manifest.chunks {
            at_work.push(self.store_list(collection, tag).boxed());
        }
        if first.is_some() && plan.states.first() == Some(&State::Unclaimed) {
            plan.take(0);
            fetching += 1;
            at_work.push(self.bring(collection, holders, tag, 0, first).boxed());
        }
        loop {
            while fetching < flow.in_flight + WANTED_IN_FLIGHT {
                match plan.next(collection.wanted(), fetching >= flow.in_flight) {
                    Some(Step::Claim(batch)) => {
                        let chunks = collection.chunks[plan.places_of_batch(batch)].to_vec();
                        at_work.push(self.claim(collection, tag, batch, chunks).boxed());
                    }
                    Some(Step::Fetch(place)) => {
                        fetching += 1;
                        at_work.push(self.bring(collection, holders, tag, place, None).boxed());
                    }
                    None => break,
                }
            }
            let done = tokio::select! {
                done = at_work.next() => done,
                () = collection.wish() => continue,
            };
            let there = match done {
                None => return Ok(()),
                Some(Err(error)) => return Err(error),
                Some(Ok(Done::List)) => continue,
                Some(Ok(Done::Claimed { batch, missing })) => plan.claimed(batch, &missing),
                Some(Ok(Done::Stored { place })) => {
                    fetching -= 1;
                    flow.came(Instant::now());
                    plan.stored(place)
                }
            };
            there.into_iter().for_each(|place| collection.stored(place));
        }
    }

    async fn store_list(&self, collection: &Collection, tag: RefTag) -> Result<Done, ApiError> {
        if let Some(list) = collection.encoded_list() {
            self.chunks.write(&ChunkHash::of(&list), &collection.holding.name, tag, list).await?;
        }
        Ok(Done::List)
    }

    async fn claim(
        &self,
        collection: &Collection,
        tag: RefTag,
        batch: usize,
        chunks: Vec<ChunkRef>,
    ) -> Result<Done, ApiError> {
        let missing = self.chunks.claim(&chunks, &collection.holding.name, tag).await?;
        if tag == collection.holding.ref_tag {
            let sum = |chunks: &[ChunkRef]| chunks.iter().map(|c| u64::from(c.len)).sum::<u64>();
            let spared = sum(&chunks).saturating_sub(sum(&missing));
            self.metrics.collections_spared_bytes.increment(spared);
        }
        Ok(Done::Claimed { batch, missing: missing.into_iter().map(|chunk| chunk.hash).collect() })
    }

    /// Fetches one chunk, hands it to those who wait, stores it.
    async fn bring(
        &self,
        collection: &Collection,
        holders: &Holders,
        tag: RefTag,
        place: usize,
        first: Option<FirstBytes>,
    ) -> Result<Done, ApiError> {
        let chunk = collection.chunks[place];
        let room = self.room.acquire_many(chunk.len.div_ceil(1024)).await;
        let _room = room.map_err(|closed| ApiError::internal(&closed))?;
        let sent_along = match first {
            Some(first) => first.await.ok().flatten().filter(|bytes| ChunkHash::of(bytes) == chunk.hash),
            None => None,
        };
        let bytes = match sent_along {
            Some(bytes) => {
                self.metrics.collected(collection.path, bytes.len() as u64);
                bytes
            }
            None => self.fetch(holders, &chunk, collection.offset(place)).await?,
        };
        collection.tee(place, bytes.clone());
        self.chunks.write(&chunk.hash, &collection.holding.name, tag, bytes).await?;
        Ok(Done::Stored { place })
    }

    /// One chunk. When all holders fail, others are looked for, for a while.
    pub(super) async fn fetch(
        &self,
        holders: &Holders,
        chunk: &ChunkRef,
        offset: u64,
    ) -> Result<Bytes, ApiError> {
        let mut attempt = 1;
        loop {
            match holders.fetch(chunk, offset).await {
                Err(error) if attempt < ATTEMPTS_MAX => {
                    tracing::debug!(%error, attempt, "looking for holders anew");
                    tokio::time::sleep(RETRY_DELAY * 2u32.pow(attempt - 1)).await;
                    attempt += 1;
                    self.renew(holders).await;
                    if !holders.has_any() {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(hashes: &[usize]) -> Plan {
        let chunk = |n: &usize| ChunkRef { hash: ChunkHash::of(&n.to_le_bytes()), len: 1 };
        Plan::new(hashes.iter().map(chunk).collect(), |_| false)
    }

    fn all_missing(plan: &Plan, batch: usize) -> HashSet<ChunkHash> {
        plan.places_of_batch(batch).map(|place| plan.chunks[place].hash).collect()
    }

    /// Carries a plan out, one step at a time, with the same wish all the time; answers the order of the fetches.
    fn run(plan: &mut Plan, wanted: Option<usize>) -> Vec<usize> {
        let mut fetched = Vec::new();
        while let Some(step) = plan.next(wanted, false) {
            match step {
                Step::Claim(batch) => {
                    let missing = all_missing(plan, batch);
                    plan.claimed(batch, &missing);
                }
                Step::Fetch(place) => {
                    fetched.push(place);
                    plan.stored(place);
                }
            }
        }
        fetched
    }

    #[test]
    fn everything_is_fetched_once_in_order() {
        let places: Vec<usize> = (0..1000).collect();
        let mut plan = plan(&places);
        assert_eq!(run(&mut plan, None), places);
        assert!(plan.states.iter().all(|state| *state == State::Stored));
    }

    #[test]
    fn what_readers_wait_for_comes_first_with_what_follows_it() {
        let places: Vec<usize> = (0..300).collect();
        let mut plan = plan(&places);
        let order = run(&mut plan, Some(200));
        assert_eq!(order[..6], [200, 201, 202, 203, 0, 1]);
        assert_eq!(order.len(), 300);
        assert_eq!(order.iter().copied().collect::<HashSet<_>>().len(), 300);
    }

    #[test]
    fn equal_chunks_are_fetched_once_and_are_then_at_all_their_places() {
        let hashes: Vec<usize> = (0..200).map(|place| place % 10).collect();
        let mut plan = plan(&hashes);
        assert_eq!(plan.next(None, false), Some(Step::Claim(0)));
        let missing = all_missing(&plan, 0);
        assert!(plan.claimed(0, &missing).is_empty());
        let mut fetches = Vec::new();
        loop {
            match plan.next(None, false) {
                Some(Step::Claim(batch)) => {
                    let missing = all_missing(&plan, batch);
                    plan.claimed(batch, &missing);
                }
                Some(Step::Fetch(place)) => fetches.push(place),
                None if fetches.is_empty() => break,
                None => {
                    let place = fetches.remove(0);
                    assert!(plan.stored(place).len() == 20);
                }
            }
        }
        assert!(plan.states.iter().all(|state| *state == State::Stored));
    }

    #[test]
    fn what_the_site_has_is_not_fetched() {
        let places: Vec<usize> = (0..100).collect();
        let mut plan = plan(&places);
        let mut fetched = Vec::new();
        while let Some(step) = plan.next(None, false) {
            match step {
                Step::Claim(batch) => {
                    let mut missing = all_missing(&plan, batch);
                    missing.retain(|hash| *hash == plan.chunks[70].hash);
                    let there = plan.claimed(batch, &missing);
                    assert!(!there.contains(&70));
                }
                Step::Fetch(place) => {
                    fetched.push(place);
                    plan.stored(place);
                }
            }
        }
        assert_eq!(fetched, [70]);
    }

    #[test]
    fn as_many_chunks_are_on_their_way_as_come_in_during_a_flight() {
        let run = |every: Duration| {
            let mut flow = Flow::new();
            let begun = flow.since;
            (1..=400).for_each(|n| flow.came(begun + every * n));
            flow.in_flight
        };
        assert_eq!(run(Duration::from_millis(5)), IN_FLIGHT_MAX);
        assert_eq!(run(Duration::from_millis(100)), 5);
        assert_eq!(run(Duration::from_secs(1)), IN_FLIGHT_MIN);
    }

    #[test]
    fn spare_room_is_for_what_readers_wait_for() {
        let mut plan = plan(&[0, 1, 2, 3, 4, 5]);
        assert_eq!(plan.next(None, true), None);
        assert_eq!(plan.next(Some(5), true), Some(Step::Claim(0)));
        assert_eq!(plan.next(Some(5), true), None, "it is asked already");
        let missing = all_missing(&plan, 0);
        plan.claimed(0, &missing);
        assert_eq!(plan.next(Some(5), true), Some(Step::Fetch(5)));
        assert_eq!(plan.next(Some(5), true), None);
    }
}
