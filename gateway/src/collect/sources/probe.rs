//! Probes: one small call to each source now and then, over a connection that is there already. They are spread over
//! time, and there are never more than [`PROBES_PER_SECOND`], however many sites there are: then those that are not
//! in use wait longer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::api::peer::PeerClient;
use common::cluster::{ClusterMap, MapEpoch};
use common::id::SiteId;
use common::record::Source;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::link::Link;
use super::{Candidate, Sources, random};
use crate::site::SiteView;

const PROBES_PER_SECOND: u32 = 50;
/// A failure brings a probe forward; it is seen after this time at most.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A source to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub address: String,
    /// `None`: an origin.
    pub site: Option<SiteId>,
}

impl Target {
    pub fn of(candidate: &Candidate) -> Self {
        let site = match &candidate.source {
            Source::Site(site) => Some(site.clone()),
            Source::Origin(_) => None,
        };
        Self { address: candidate.peer.base().to_owned(), site }
    }
}

/// All sources of a map that are said to be there.
fn targets(map: &ClusterMap, own: &SiteId) -> Vec<Target> {
    let gateways = map.sites.iter().filter(|site| site.id != *own).flat_map(|site| {
        let alive = site.gateways.iter().filter(|g| g.alive);
        alive.map(|g| Target { address: g.http.clone(), site: Some(site.id.clone()) })
    });
    let origins = map.origins.iter().map(|o| Target { address: o.http.clone(), site: None });
    gateways.chain(origins).collect()
}

impl Sources {
    /// Probes every source for ever.
    pub async fn probe(self: Arc<Self>, site: Arc<SiteView>) {
        let (mut epoch, mut known) = (MapEpoch::default(), Vec::new());
        let mut running = FuturesUnordered::new();
        loop {
            let map = site.map();
            if map.epoch != epoch {
                epoch = map.epoch;
                known = targets(&map, &site.id);
                self.follow(&known);
            }
            let (target, pause) = self.next_probe(&known);
            running.extend(target.map(|target| {
                let sources = &self;
                async move { sources.probe_now(&target).await }
            }));
            let until = tokio::time::sleep(pause);
            tokio::pin!(until);
            loop {
                tokio::select! {
                    () = &mut until => break,
                    Some(_) = running.next(), if !running.is_empty() => {}
                }
            }
        }
    }

    /// Takes new sources up and forgets those that are gone.
    fn follow(&self, targets: &[Target]) {
        let (now, mut links) = (Instant::now(), self.links.lock());
        let there: std::collections::HashSet<&str> = targets.iter().map(|t| t.address.as_str()).collect();
        links.retain(|address, _| there.contains(address.as_str()));
        for target in targets {
            let first = now + Duration::from_secs_f64(random());
            links.entry(target.address.clone()).or_insert_with(|| Link::new(first));
        }
    }

    /// The source whose turn it is, if one's is, and the time until the next may have its turn. Sources in use go
    /// before the others.
    fn next_probe(&self, targets: &[Target]) -> (Option<Target>, Duration) {
        let (now, mut links) = (Instant::now(), self.links.lock());
        let turn = |target: &Target| {
            let link = links.get(&target.address)?;
            Some((link.next_probe() > now, !link.is_wanted(now), link.next_probe()))
        };
        let first = targets.iter().filter_map(|target| Some((turn(target)?, target))).min_by_key(|(t, _)| *t);
        let pace = Duration::from_secs(1) / PROBES_PER_SECOND;
        match first {
            Some(((false, ..), target)) => {
                if let Some(link) = links.get_mut(&target.address) {
                    link.probing(now, random());
                }
                (Some(target.clone()), pace)
            }
            Some(((true, _, at), _)) => (None, at.saturating_duration_since(now).clamp(pace, LOOK_EVERY)),
            None => (None, LOOK_EVERY),
        }
    }

    /// Measures one source; `None` if it does not answer.
    pub(super) async fn probe_now(&self, target: &Target) -> Option<Duration> {
        let peer = match target.site {
            Some(_) => PeerClient::gateway(self.prober.clone(), &target.address),
            None => PeerClient::origin(self.prober.clone(), &target.address),
        };
        let is_cold = self.links.lock().get(&target.address).is_none_or(|link| link.is_cold(Instant::now()));
        let call = async {
            if is_cold {
                // Making the connection is not to be measured.
                peer.ping().await?;
            }
            let begun = Instant::now();
            peer.ping().await.map(|load| (load, begun.elapsed()))
        };
        let echo = async { self.icmp.as_ref()?.round_trip(&target.address).await };
        let (echo, answer) = futures_util::future::join(echo, call).await;
        let now = Instant::now();
        let mut links = self.links.lock();
        let link = links.entry(target.address.clone()).or_insert_with(|| Link::new(now));
        match answer {
            Ok((load, elapsed)) => {
                self.metrics.sources.probes_answered.increment(1);
                let round_trip = echo.unwrap_or(elapsed);
                link.answered(now, round_trip, load);
                if let (Some(site), Some(smoothed)) = (&target.site, link.known(now).round_trip) {
                    self.metrics.sources.round_trip(site, smoothed);
                }
                Some(round_trip)
            }
            Err(error) => {
                tracing::debug!(address = target.address, error = %common::error::chain(&error), "no answer to a probe");
                self.metrics.sources.probes_failed.increment(1);
                link.failed(now, random());
                None
            }
        }
    }
}
