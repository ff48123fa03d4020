//! Which holder a chunk is asked of: the one expected to have sent it first, by what this collection has seen of each,
//! and before that by its ranking.
//!
//! A holder that fails rests for a while, one that lies or has not got the content is not asked again. One that is late
//! gets company: the next is asked as well, and the first good bytes count. Origins are asked only when no site is left.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::api::search::{MissingAt, SearchClient};
use common::chunker::CHUNK_LEN_AVG;
use common::error::{ApiError, ErrorCode, chain};
use common::hash::ChunkHash;
use common::manifest::ChunkRef;
use common::name::ContentName;
use common::record::Source;
use common::version::Version;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::sources::{Candidate, InFlight, Sources};
use crate::metrics::Metrics;

/// Share of the newest chunk in what a holder is expected to take.
const NEWEST_SHARE: f64 = 0.3;
/// A holder is late after so many times of what was expected, within these bounds.
const LATE_TIMES: f64 = 4.0;
const LATE_MIN: Duration = Duration::from_millis(400);
const LATE_MAX: Duration = Duration::from_secs(2);
/// Rest after the first failure; it doubles with each.
const REST: Duration = Duration::from_millis(250);
const REST_MAX: Duration = Duration::from_secs(8);

/// The holders of one content.
pub struct Holders {
    name: ContentName,
    version: Version,
    known: Mutex<Vec<Holder>>,
    sources: Arc<Sources>,
    search: SearchClient,
    metrics: Arc<Metrics>,
}

struct Holder {
    candidate: Candidate,
    /// Bytes asked for and not here yet.
    outstanding: u64,
    /// Seconds a byte, the time in its queue included; as ranked, until it has sent a chunk.
    cost: f64,
    has_sent: bool,
    failures: u32,
    rests_until: Option<Instant>,
    /// It sent wrong bytes, or says that it has not got this version.
    is_out: bool,
}

/// A chunk asked of a holder; what it owes is counted down however that ends.
struct Turn<'a> {
    holders: &'a Holders,
    index: usize,
    candidate: Candidate,
    len: u64,
    /// What the holder owed when it was asked, this chunk included.
    owed: u64,
    begun: Instant,
    /// Until it is told how it went.
    sample: Option<InFlight>,
}

impl Turn<'_> {
    fn cost(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() / self.owed.max(1) as f64
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Not waited for any longer: another was quicker, or nobody wants the content.
        let given_up = self.sample.take().map(|sample| {
            sample.refused();
            self.cost()
        });
        self.holders.with(|known| {
            let holder = &mut known[self.index];
            holder.outstanding -= self.len;
            holder.cost = given_up.map_or(holder.cost, |cost| cost.max(holder.cost));
        });
    }
}

impl Holders {
    /// `candidates` best first.
    pub fn new(
        name: ContentName,
        version: Version,
        candidates: Vec<Candidate>,
        sources: Arc<Sources>,
        search: SearchClient,
        metrics: Arc<Metrics>,
    ) -> Self {
        let holders = Self { name, version, known: Mutex::default(), sources, search, metrics };
        holders.renew(candidates);
        holders
    }

    fn with<T>(&self, look: impl FnOnce(&mut Vec<Holder>) -> T) -> T {
        look(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is one that may still be asked.
    pub fn has_any(&self) -> bool {
        self.with(|known| known.iter().any(|holder| !holder.is_out))
    }

    pub fn name(&self) -> &ContentName {
        &self.name
    }

    /// Takes in holders that were found anew, and gives those that rest another chance.
    pub fn renew(&self, candidates: Vec<Candidate>) {
        self.with(|known| {
            known.iter_mut().for_each(|holder| holder.rests_until = None);
            for candidate in candidates {
                if !known.iter().any(|holder| holder.candidate.peer.base() == candidate.peer.base()) {
                    known.push(Holder::new(candidate));
                }
            }
        });
    }

    /// One chunk, verified.
    ///
    /// # Errors
    /// `SourceUnavailable` when no holder gives it.
    pub async fn fetch(&self, chunk: &ChunkRef, offset: u64) -> Result<Bytes, ApiError> {
        let (mut asked, mut tried) = (FuturesUnordered::new(), Vec::new());
        let (mut another, mut late, mut last) = (true, LATE_MAX, None);
        loop {
            if std::mem::take(&mut another)
                && let Some((turn, after)) = self.turn(chunk, &tried)
            {
                tried.push(turn.index);
                late = after;
                asked.push(self.ask(turn, chunk, offset));
            }
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(Ok(bytes)) => return Ok(bytes),
                    Some(Err(error)) => (another, last) = (true, Some(error)),
                    None => return Err(last.unwrap_or_else(|| {
                        let message = format!("no holder of {} is left", self.name);
                        ApiError::new(ErrorCode::SourceUnavailable, message)
                    })),
                },
                () = tokio::time::sleep(late), if self.has_other(&tried) => {
                    self.metrics.hedged_fetches.increment(1);
                    another = true;
                }
            }
        }
    }

    fn has_other(&self, tried: &[usize]) -> bool {
        let now = Instant::now();
        self.with(|known| {
            known.iter().enumerate().any(|(index, holder)| !tried.contains(&index) && holder.is_usable(now))
        })
    }

    /// Who is asked next, and after what time it is late.
    fn turn(&self, chunk: &ChunkRef, tried: &[usize]) -> Option<(Turn<'_>, Duration)> {
        let (now, len) = (Instant::now(), u64::from(chunk.len));
        self.with(|known| {
            let index = choose(known, tried, len, now)?;
            let holder = &mut known[index];
            holder.outstanding += len;
            let owed = holder.outstanding;
            let late = late(LATE_TIMES * holder.cost * owed as f64);
            let candidate = holder.candidate.clone();
            let sample = Some(self.sources.sample(&candidate, len));
            Some((Turn { holders: self, index, candidate, len, owed, begun: now, sample }, late))
        })
    }

    /// The chunk's bytes if the holder sends them.
    async fn ask(&self, mut turn: Turn<'_>, chunk: &ChunkRef, offset: u64) -> Result<Bytes, ApiError> {
        let unavailable = format!("no holder of {} sends its bytes at the moment", self.name);
        let answer = turn.candidate.peer.chunk(&self.name, chunk, offset).await;
        let (candidate, sample) = (turn.candidate.clone(), turn.sample.take());
        match answer {
            Ok(bytes) if ChunkHash::of(&bytes) == chunk.hash => {
                sample.into_iter().for_each(|sample| sample.done(turn.len));
                self.metrics.collected(candidate.path(), bytes.len() as u64);
                self.with(|known| known[turn.index].sent(turn.cost()));
                Ok(bytes)
            }
            Ok(_) => {
                self.metrics.hash_mismatches.increment(1);
                tracing::error!(content = %self.name, source = ?candidate.source, chunk = ?chunk.hash, "source sent bytes that are not the chunk's; it is not asked again");
                self.with(|known| known[turn.index].is_out = true);
                Err(ApiError::new(ErrorCode::SourceUnavailable, unavailable))
            }
            Err(error) if is_not_there(error.code()) => {
                sample.into_iter().for_each(InFlight::refused);
                self.with(|known| known[turn.index].is_out = true);
                self.report_missing(&candidate).await;
                Err(ApiError::new(ErrorCode::SourceUnavailable, unavailable))
            }
            Err(error) if error.code() == Some(ErrorCode::OriginalChanged) => {
                sample.into_iter().for_each(InFlight::refused);
                self.with(|known| known[turn.index].is_out = true);
                Err(error.to_api(ErrorCode::OriginalChanged, &unavailable))
            }
            Err(error) => {
                tracing::warn!(content = %self.name, source = ?candidate.source, error = chain(&error), "chunk not fetched; asking the next source");
                self.with(|known| known[turn.index].failed());
                if error.code() == Some(ErrorCode::OriginBusy) {
                    sample.into_iter().for_each(InFlight::refused);
                    return Err(error.to_api(ErrorCode::OriginBusy, &unavailable));
                }
                Err(ApiError::new(ErrorCode::SourceUnavailable, unavailable).with_cause(&error))
            }
        }
    }

    /// Tells search that a source does not have what search says it has.
    pub async fn report_missing(&self, candidate: &Candidate) {
        let at = match &candidate.source {
            Source::Site(site) => MissingAt::Site(site.clone()),
            Source::Origin(origin) => MissingAt::Origin(origin.clone()),
        };
        tracing::warn!(content = %self.name, ?at, "source does not have what search says it has");
        if let Err(error) = self.search.report_missing(&self.name, self.version, &at).await {
            tracing::debug!(error = chain(&error), "search did not take the report");
        }
    }
}

/// When a source is late that would take `seconds` if it were slower than expected.
pub fn late(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(LATE_MIN.as_secs_f64(), LATE_MAX.as_secs_f64()))
}

/// Whether a source answered that it has not got the content.
pub fn is_not_there(code: Option<ErrorCode>) -> bool {
    matches!(code, Some(ErrorCode::ContentNotFound | ErrorCode::ChunkNotFound))
}

impl Holder {
    fn new(candidate: Candidate) -> Self {
        let cost = candidate.chunk_seconds / CHUNK_LEN_AVG as f64;
        // What cannot be told is still to be compared and multiplied.
        let cost = if cost.is_finite() { cost } else { 1.0 };
        Self {
            candidate,
            outstanding: 0,
            cost,
            has_sent: false,
            failures: 0,
            rests_until: None,
            is_out: false,
        }
    }

    fn is_usable(&self, now: Instant) -> bool {
        !self.is_out && self.rests_until.is_none_or(|until| until <= now)
    }

    fn sent(&mut self, cost: f64) {
        self.failures = 0;
        let share = if std::mem::replace(&mut self.has_sent, true) { NEWEST_SHARE } else { 1.0 };
        self.cost += share * (cost - self.cost);
    }

    fn failed(&mut self) {
        let rest = (REST * 2u32.pow(self.failures.min(8))).min(REST_MAX);
        self.failures += 1;
        self.rests_until = Some(Instant::now() + rest);
    }

    fn is_origin(&self) -> bool {
        matches!(self.candidate.source, Source::Origin(_))
    }
}

/// The holder that is expected to be done with `len` more bytes first. Those that rest are asked when nobody else is
/// left.
fn choose(known: &[Holder], tried: &[usize], len: u64, now: Instant) -> Option<usize> {
    let untried = known.iter().enumerate().filter(|(index, h)| !h.is_out && !tried.contains(index));
    let best = untried.min_by(|(a, x), (b, y)| {
        let seconds = |holder: &Holder| holder.cost * (holder.outstanding + len) as f64;
        let last = |holder: &Holder| (!holder.is_usable(now), holder.is_origin());
        last(x).cmp(&last(y)).then(seconds(x).total_cmp(&seconds(y))).then(a.cmp(b))
    });
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use common::api::peer::PeerClient;
    use common::auth::ClusterSecret;
    use common::client::{HttpClient, ServerClient};
    use common::id::{ServerName, SiteId};
    use common::time::Clock;

    use super::*;

    fn holder(source: Source, cost: f64, outstanding: u64) -> Holder {
        let secret = ClusterSecret::new("0123456789abcdef0123456789abcdef").unwrap();
        let server = ServerClient::new(HttpClient::new(), secret, "test", Clock::System);
        let peer = PeerClient::gateway(server, "http://127.0.0.1:1");
        let gateway = ServerName::new("g1").unwrap();
        let chunk_seconds = cost * CHUNK_LEN_AVG as f64;
        let holder = Holder::new(Candidate { source, peer, gateway, chunk_seconds });
        Holder { outstanding, ..holder }
    }

    fn site(cost: f64, outstanding: u64) -> Holder {
        holder(Source::Site(SiteId::new("osaka").unwrap()), cost, outstanding)
    }

    #[test]
    fn the_first_to_be_done_is_asked_and_of_equals_the_first_ranked() {
        let now = Instant::now();
        let choose = |known: &[Holder]| choose(known, &[], 100, now);
        assert_eq!(choose(&[site(1.0, 0), site(1.0, 0)]), Some(0));
        assert_eq!(choose(&[site(1.0, 800), site(10.0, 0)]), Some(0), "the far one does not pay yet");
        assert_eq!(choose(&[site(1.0, 1000), site(10.0, 0)]), Some(1));
        assert_eq!(choose(&[site(f64::INFINITY, 0), site(10.0, 0)]), Some(0), "unknown is not hopeless");
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn equal_holders_share_the_chunks() {
        let mut known = vec![site(1.0, 0), site(1.0, 0), site(2.0, 0)];
        for _ in 0..500 {
            let index = choose(&known, &[], 1, Instant::now()).unwrap();
            known[index].outstanding += 1;
        }
        let shares: Vec<u64> = known.iter().map(|holder| holder.outstanding).collect();
        assert_eq!(shares, [200, 200, 100], "in proportion to their speed");
    }

    #[test]
    fn origins_and_those_that_rest_come_last_and_those_that_lie_never() {
        let now = Instant::now();
        let origin = || holder(Source::Origin(ServerName::new("o1").unwrap()), 0.1, 0);
        let mut known = vec![origin(), site(5.0, 900)];
        assert_eq!(choose(&known, &[], 1, now), Some(1));
        assert_eq!(choose(&known, &[1], 1, now), Some(0));
        known[1].failed();
        assert_eq!(choose(&known, &[], 1, now), Some(0));
        assert_eq!(choose(&known, &[0], 1, now), Some(1), "better than nobody");
        known[1].is_out = true;
        assert_eq!(choose(&known, &[0], 1, now), None);
    }
}
