//! *rank*: which source is nearest, by measurement.
//!
//! Every gateway of another site and every origin is a [`link`]: probed over a connection of its own ([`probe`]), often
//! while contents come from it, seldom otherwise; its pace is measured where real chunks are fetched. [`order`] makes
//! a ranking of what the links know. Nothing here waits for more than [`UNKNOWN_WAIT_MAX`], and nothing is kept when
//! the gateway stops.

pub mod figures;
mod icmp;
mod link;
mod order;
mod probe;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::api::peer::{PeerClient, RankedCandidate, Ranking};
use common::api::search::ContentInfo;
use common::client::{CallError, HttpClient, ServerClient};
use common::cluster::{ClusterMap, ServerEntry};
use common::id::ServerName;
use common::name::ContentName;
use common::record::{DeliveryPath, Source};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quick_cache::sync::Cache;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::site::SiteView;
use icmp::Icmp;
use link::Link;
use order::{Contender, Reason, order};

/// Sources that a ranking names; there may be thousands of holders.
const CANDIDATES_MAX: usize = 32;
/// Sources not measured yet that are measured for a ranking, all at once.
const UNKNOWN_MEASURED_MAX: usize = 32;
/// Longest wait for them.
const UNKNOWN_WAIT_MAX: Duration = Duration::from_millis(250);
/// A source that did not answer after so many round trips of the nearest known one is not nearer: a connection is made,
/// and a first call, before the one that is measured.
const ROUND_TRIPS_TO_MEASURE: f64 = 3.5;
/// Rankings kept for the heads of answers.
const RANKINGS_KEPT: usize = 4096;

/// A source that may be asked, nearest first in a ranking.
#[derive(Clone)]
pub struct Candidate {
    pub source: Source,
    pub peer: PeerClient,
    /// Short name of the gateway, or the origin's name.
    pub gateway: ServerName,
    /// Seconds until a chunk of average length is expected to be here.
    pub chunk_seconds: f64,
}

impl Candidate {
    pub fn path(&self) -> DeliveryPath {
        match self.source {
            Source::Site(_) => DeliveryPath::Peer,
            Source::Origin(_) => DeliveryPath::Origin,
        }
    }

    fn is_origin(&self) -> bool {
        matches!(self.source, Source::Origin(_))
    }
}

/// What is known of every source, by address.
#[derive(Default)]
struct Links(Mutex<HashMap<String, Link>>);

impl Links {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Link>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Measures and ranks sources; shared in an `Arc`.
pub struct Sources {
    server: ServerClient,
    /// Calls over connections on which nothing else goes.
    prober: ServerClient,
    icmp: Option<Icmp>,
    links: Arc<Links>,
    /// The newest ranking of each content, as text.
    rankings: Cache<ContentName, Arc<str>>,
    metrics: Arc<Metrics>,
}

/// One fetch from a source, from just before it is asked to its last byte. Dropped without a word it counts as
/// failed, and the source comes last until it answers a probe.
pub struct InFlight {
    links: Arc<Links>,
    metrics: Arc<Metrics>,
    address: String,
    asked: u64,
    begun: Instant,
    told: bool,
}

impl InFlight {
    /// All came, at this moment: the pace of the source is known better.
    pub fn done(mut self, bytes: u64) {
        self.end(bytes);
    }

    /// It answered that it does not have it, or nobody wants it any more: no fault of the source.
    pub fn refused(mut self) {
        self.end(0);
    }

    fn end(&mut self, bytes: u64) {
        self.told = true;
        if let Some(link) = self.links.lock().get_mut(&self.address) {
            link.fetched(Instant::now(), self.begun, self.asked, bytes);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        self.end(0);
        self.metrics.sources.failures.increment(1);
        if let Some(link) = self.links.lock().get_mut(&self.address) {
            link.failed(Instant::now(), random());
        }
    }
}

/// A candidate, and what the order said of it.
struct Ranked {
    candidate: Candidate,
    contender: Contender,
}

impl Sources {
    pub fn new(server: ServerClient, config: &Config, metrics: Arc<Metrics>) -> Self {
        let mut prober = server.clone();
        prober.http = HttpClient::new();
        let icmp = config.icmp_probes.then(Icmp::open).and_then(|opened| match opened {
            Ok(icmp) => Some(icmp),
            Err(error) => {
                tracing::warn!(
                    error = %common::error::chain(&error),
                    "no ICMP probes: round trips are measured by calls alone; allow ping sockets \
                     (net.ipv4.ping_group_range) or give CAP_NET_RAW"
                );
                None
            }
        });
        Self { server, prober, icmp, links: Arc::default(), rankings: Cache::new(RANKINGS_KEPT), metrics }
    }

    /// Notes that `bytes` are about to be asked of a source.
    pub fn sample(&self, candidate: &Candidate, bytes: u64) -> InFlight {
        let address = candidate.peer.base().to_owned();
        let begun = Instant::now();
        self.links.lock().entry(address.clone()).or_insert_with(|| Link::new(begun)).fetching(bytes);
        let (links, metrics) = (self.links.clone(), self.metrics.clone());
        InFlight { links, metrics, address, asked: bytes, begun, told: false }
    }

    /// Notes that a call to a source failed. One that did not answer comes last until it answers a probe.
    pub fn not_answered(&self, candidate: &Candidate, error: &CallError) {
        let sample = self.sample(candidate, 0);
        if let CallError::Refused { .. } = error {
            sample.refused();
        }
    }

    /// The sources of a content, best first: at most [`CANDIDATES_MAX`].
    pub async fn rank(&self, site: &SiteView, info: &ContentInfo) -> Vec<Candidate> {
        let (ranked, reason) = self.ranked(site, info).await;
        if let (Some(first), Some(reason)) = (ranked.first(), reason) {
            self.metrics.sources.chosen(reason);
            if let Some(link) = self.links.lock().get_mut(first.candidate.peer.base()) {
                link.choose(Instant::now());
            }
            self.rankings.insert(info.name.clone(), in_short(&ranked).into());
        }
        ranked.into_iter().map(|r| r.candidate).collect()
    }

    /// What the newest ranking of a content was, in short, while it is remembered.
    pub fn last_ranking(&self, name: &ContentName) -> Option<Arc<str>> {
        self.rankings.get(name)
    }

    /// How the sources of a content rank at this moment, and why.
    pub async fn explain(&self, site: &SiteView, info: &ContentInfo) -> Ranking {
        let (ranked, reason) = self.ranked(site, info).await;
        let candidates = ranked.iter().enumerate().map(|(place, r)| explained(r, place == 0, reason));
        Ranking { candidates: candidates.collect() }
    }

    async fn ranked(&self, site: &SiteView, info: &ContentInfo) -> (Vec<Ranked>, Option<Reason>) {
        let map = site.map();
        let mut found = self.candidates(&map, site, info);
        self.measure_unknown(&found).await;
        let mut contenders = Vec::with_capacity(found.len());
        {
            let (now, mut links) = (Instant::now(), self.links.lock());
            for (candidate, same_zone, distance) in &found {
                let address = candidate.peer.base().to_owned();
                let link = links.entry(address).or_insert_with(|| Link::new(now));
                link.want(now);
                contenders.push(Contender {
                    known: link.known(now),
                    is_origin: candidate.is_origin(),
                    same_zone: *same_zone,
                    distance: *distance,
                    score: f64::INFINITY,
                    chunk_seconds: f64::INFINITY,
                });
            }
        }
        let (places, reason) = order(&mut contenders, info.len, random);
        let mut all: Vec<Option<Ranked>> = found
            .drain(..)
            .zip(contenders)
            .map(|((candidate, ..), contender)| {
                let chunk_seconds = contender.chunk_seconds;
                Some(Ranked { candidate: Candidate { chunk_seconds, ..candidate }, contender })
            })
            .collect();
        let ranked = places.into_iter().take(CANDIDATES_MAX).filter_map(|place| all[place].take()).collect();
        (ranked, reason)
    }

    /// Every gateway of a site that holds the content, and every origin that has it; with zone and distance.
    fn candidates(
        &self,
        map: &ClusterMap,
        site: &SiteView,
        info: &ContentInfo,
    ) -> Vec<(Candidate, bool, Option<u32>)> {
        let own = map.site(&site.id);
        let mut found = Vec::new();
        for holder in info.sites.iter().filter(|s| **s != site.id).filter_map(|s| map.site(s)) {
            let same_zone = own.is_some_and(|own| own.zone.is_some() && own.zone == holder.zone);
            let distance = own.and_then(|own| own.distance_to(holder));
            for gateway in holder.gateways.iter().filter(|g| g.alive) {
                let candidate = Candidate {
                    source: Source::Site(holder.id.clone()),
                    peer: PeerClient::gateway(self.server.clone(), &gateway.http),
                    gateway: gateway.name.clone(),
                    chunk_seconds: f64::INFINITY,
                };
                found.push((candidate, same_zone, distance));
            }
        }
        for origin in info.origins.iter().filter_map(|name| map.origin(name)) {
            let ServerEntry { name, http, .. } = origin;
            let candidate = Candidate {
                source: Source::Origin(name.clone()),
                peer: PeerClient::origin(self.server.clone(), http),
                gateway: name.clone(),
                chunk_seconds: f64::INFINITY,
            };
            let distance = own.and_then(|own| own.distances.get(name.as_str()).copied());
            found.push((candidate, false, distance));
        }
        found
    }

    /// Measures the sources of which nothing is known, all at once, but does not wait for those that cannot be nearer
    /// than one which is known. Sites are not waited for when only origins are unknown, and the other way round.
    async fn measure_unknown(&self, found: &[(Candidate, bool, Option<u32>)]) {
        let (mut unknown, mut nearest) = (Vec::new(), f64::INFINITY);
        {
            let (now, links) = (Instant::now(), self.links.lock());
            let has_sites = found.iter().any(|(candidate, ..)| !candidate.is_origin());
            for (candidate, ..) in found.iter().filter(|(c, ..)| !(has_sites && c.is_origin())) {
                let known = links.get(candidate.peer.base()).map(|link| link.known(now));
                match known.and_then(|known| known.round_trip) {
                    Some(round_trip) if known.is_some_and(|k| k.failures == 0) => {
                        nearest = nearest.min(round_trip);
                    }
                    // It failed, and the probes look after it.
                    _ if known.is_some_and(|k| k.failures > 0) => {}
                    _ => unknown.push(candidate),
                }
            }
        }
        let skip = unknown.len().saturating_sub(UNKNOWN_MEASURED_MAX);
        let first = (random() * (skip + 1) as f64) as usize;
        let measured = unknown.into_iter().skip(first.min(skip)).take(UNKNOWN_MEASURED_MAX);
        let mut running: FuturesUnordered<_> = measured.map(|candidate| self.measure(candidate)).collect();
        let wait = |nearest: f64| {
            let useful = ROUND_TRIPS_TO_MEASURE * nearest + 0.002;
            Duration::from_secs_f64(useful.min(UNKNOWN_WAIT_MAX.as_secs_f64()))
        };
        let begun = tokio::time::Instant::now();
        while let Ok(Some(round_trip)) = tokio::time::timeout_at(begun + wait(nearest), running.next()).await
        {
            nearest = nearest.min(round_trip.map_or(f64::INFINITY, |r| r.as_secs_f64()));
        }
    }

    async fn measure(&self, candidate: &Candidate) -> Option<Duration> {
        let target = probe::Target::of(candidate);
        self.probe_now(&target).await
    }
}

/// A number from 0 to 1.
fn random() -> f64 {
    let mut bytes = [0u8; 4];
    common::auth::fill_random(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

fn explained(ranked: &Ranked, is_first: bool, reason: Option<Reason>) -> RankedCandidate {
    let Ranked { candidate, contender } = ranked;
    let known = &contender.known;
    let source = match &candidate.source {
        Source::Site(site) => format!("site:{site}"),
        Source::Origin(origin) => format!("origin:{origin}"),
    };
    let why = match (is_first, reason, known.failures, known.round_trip) {
        (true, Some(reason), ..) => reason.text().to_owned(),
        (_, _, 1.., _) => format!("failed {} times in a row", known.failures),
        (_, _, _, None) => "not measured yet".to_owned(),
        _ if contender.is_origin => "an origin is asked when no site answers".to_owned(),
        _ => format!("expected to take {}", duration_text(contender.score)),
    };
    RankedCandidate {
        source,
        gateway: candidate.gateway.clone(),
        address: candidate.peer.base().to_owned(),
        round_trip_us: known.round_trip.map(|seconds| seconds * 1e6),
        throughput_bytes_per_s: known.pace.map(|pace| 1.0 / pace),
        load: known.load_bytes,
        same_zone: contender.same_zone,
        distance: contender.distance,
        score: contender.score,
        chosen: is_first,
        why,
    }
}

/// `osaka/g1 12.3 ms, 80 MiB/s (nearest); next nagoya/g2 40 ms`
fn in_short(ranked: &[Ranked]) -> String {
    let mut text = String::new();
    for (place, Ranked { candidate, contender }) in ranked.iter().take(2).enumerate() {
        if place > 0 {
            text.push_str("; next ");
        }
        match &candidate.source {
            Source::Site(site) => text.push_str(site.as_str()),
            Source::Origin(_) => text.push_str("origin"),
        }
        let round_trip = contender.known.round_trip.map_or_else(|| "not measured".to_owned(), duration_text);
        // Writing to a string cannot fail.
        let _ = write!(text, "/{} {round_trip}", candidate.gateway);
        if let Some(pace) = contender.known.pace {
            let _ = write!(text, ", {:.1} MiB/s", 1.0 / pace / f64::from(1 << 20));
        }
        if contender.known.failures > 0 {
            text.push_str(", failing");
        }
    }
    text
}

fn duration_text(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.1} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s => format!("{:.2} ms", s * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use axum::Json;
    use axum::routing::get;
    use common::api::peer::PeerLoad;
    use common::api::search::SearchClient;
    use common::auth::ClusterSecret;
    use common::cluster::{GatewayEntry, MapEpoch, SiteEntry};
    use common::hash::ContentHash;
    use common::id::{ClientId, SiteId};
    use common::server::accept_loop;
    use common::telemetry::MetricsRegistry;
    use common::time::Clock;
    use common::version::{HybridTime, Version};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    use super::*;

    struct Rig {
        site: SiteView,
        sources: Arc<Sources>,
        _silent: Vec<TcpListener>,
    }

    async fn bind() -> (TcpListener, String) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    fn id(name: &str) -> SiteId {
        SiteId::new(name).unwrap()
    }

    /// Seen from tokyo: sites that answer pings, and others that take connections and say nothing.
    async fn rig(answering: &[&str], silent: &[&str]) -> Rig {
        let mut map = ClusterMap { epoch: MapEpoch(1), ..ClusterMap::default() };
        let mut kept = Vec::new();
        for name in answering.iter().chain(silent) {
            let (listener, http) = bind().await;
            if answering.contains(name) {
                let ping = get(async || Json(PeerLoad { outstanding_bytes: 5 }));
                let routes = axum::Router::new().route("/v1/peer/ping", ping);
                tokio::spawn(accept_loop(listener, routes, CancellationToken::new()));
            } else {
                kept.push(listener);
            }
            let (gateway, admin) = (ServerName::new("g1").unwrap(), String::new());
            let mut site = SiteEntry::new(id(name));
            site.gateways.push(GatewayEntry { name: gateway, http, s3: None, admin, alive: true });
            map.sites.push(site);
        }
        let secret = ClusterSecret::new("a cluster secret for tests, long enough").unwrap();
        let server = ServerClient::new(HttpClient::new(), secret, "test", Clock::System);
        let metrics = Arc::new(Metrics::new(&MetricsRegistry::new()));
        let search = SearchClient::new(server.clone(), "http://127.0.0.1:1");
        let patience = Duration::from_secs(1);
        let site = SiteView::new(id("tokyo"), server.clone(), search, patience, metrics.clone());
        site.adopt(map);
        let config = Config {
            advertise: None,
            temporary_ttl_ms: 60_000.into(),
            visit_ms: 60_000.into(),
            listen: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            name: ServerName::new("g1").unwrap(),
            site: id("tokyo"),
            icmp_probes: false,
            search: String::new(),
            cache_bytes: 0,
            content_bytes_max: 1.into(),
            node_patience_ms: 1,
        };
        Rig { site, sources: Arc::new(Sources::new(server, &config, metrics)), _silent: kept }
    }

    fn held_by(sites: &[&str]) -> ContentInfo {
        ContentInfo {
            name: "alice/x".parse().unwrap(),
            version: Version { time: HybridTime(1), hash: ContentHash::of(b"x") },
            len: 1000,
            media_type: String::new(),
            provider: ClientId::new("alice").unwrap(),
            sites: sites.iter().copied().map(id).collect(),
            origins: Vec::new(),
        }
    }

    fn names(ranked: &[Candidate]) -> Vec<String> {
        let name = |candidate: &Candidate| match &candidate.source {
            Source::Site(site) => site.to_string(),
            Source::Origin(origin) => origin.to_string(),
        };
        ranked.iter().map(name).collect()
    }

    #[tokio::test]
    async fn unknown_sources_are_measured_at_once_and_silent_ones_are_not_waited_for() {
        let silent = ["a", "b", "c", "d", "e", "f"];
        let rig = rig(&["osaka"], &silent).await;
        let all = ["a", "b", "c", "osaka", "d", "e", "f"];
        let begun = Instant::now();
        let ranked = rig.sources.rank(&rig.site, &held_by(&all)).await;
        assert!(begun.elapsed() < UNKNOWN_WAIT_MAX * 2, "{:?} for seven", begun.elapsed());
        assert_eq!((names(&ranked)[0].as_str(), ranked.len()), ("osaka", 7));
        let shown = rig.sources.last_ranking(&"alice/x".parse().unwrap()).unwrap();
        assert!(shown.starts_with("osaka/g1 ") && shown.contains("; next "), "{shown}");
        // Also when nobody answers.
        let begun = Instant::now();
        let ranked = rig.sources.rank(&rig.site, &held_by(&silent)).await;
        assert!(begun.elapsed() < UNKNOWN_WAIT_MAX * 2, "{:?} for six", begun.elapsed());
        assert_eq!(ranked.len(), 6);
    }

    #[tokio::test]
    async fn zones_and_distances_are_those_of_the_map() {
        let rig = rig(&["osaka", "kobe", "kyoto"], &[]).await;
        let mut map = ClusterMap::clone(&rig.site.map());
        let mut tokyo = SiteEntry { zone: Some("east".into()), ..SiteEntry::new(id("tokyo")) };
        tokyo.distances = [("osaka".to_owned(), 3), ("west".to_owned(), 5)].into();
        for site in &mut map.sites {
            site.zone = Some(if site.id.as_str() == "kyoto" { "east" } else { "west" }.to_owned());
        }
        map.sites.push(tokyo);
        map.epoch.0 += 1;
        rig.site.adopt(map);
        let ranking = rig.sources.explain(&rig.site, &held_by(&["osaka", "kobe", "kyoto"])).await;
        let mut seen: Vec<_> =
            ranking.candidates.iter().map(|c| (c.source.as_str(), c.same_zone, c.distance)).collect();
        seen.sort();
        let expected =
            [("site:kobe", false, Some(5)), ("site:kyoto", true, None), ("site:osaka", false, Some(3))];
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn a_source_that_fails_a_fetch_comes_last_until_it_answers_a_probe() {
        let rig = rig(&["osaka", "kobe"], &[]).await;
        let both = held_by(&["osaka", "kobe"]);
        let ranked = rig.sources.rank(&rig.site, &both).await;
        let osaka = ranked.iter().find(|c| c.source == Source::Site(id("osaka"))).unwrap();
        drop(rig.sources.sample(osaka, 1000));
        for _ in 0..20 {
            assert_eq!(names(&rig.sources.rank(&rig.site, &both).await), ["kobe", "osaka"]);
        }
        assert_eq!(names(&rig.sources.rank(&rig.site, &held_by(&["osaka"])).await), ["osaka"]);
        rig.sources.measure(osaka).await.expect("it answers");
        let ranking = rig.sources.explain(&rig.site, &both).await;
        assert!(ranking.candidates.iter().all(|c| c.load == 5.0 && c.round_trip_us.is_some()), "{ranking:?}");
        assert_eq!(ranking.candidates.iter().filter(|c| c.chosen).count(), 1);
        // From now on its place is that of its expected time, whatever that is on a busy machine.
        assert!(ranking.candidates.iter().all(|c| !c.why.contains("failed")), "{ranking:?}");
    }
}
