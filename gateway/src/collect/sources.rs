//! *rank*: which source is nearest, by measurement.
//!
//! Round trips to the gateways of other sites are measured by probes every few seconds and smoothed; a source not
//! measured yet is measured when it is first needed. Sites come before origins; zone breaks ties.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::api::peer::PeerClient;
use common::api::search::ContentInfo;
use common::client::ServerClient;
use common::id::SiteId;
use common::record::{DeliveryPath, Source};

use crate::site::SiteView;

/// Time between two rounds of probes.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Weight of the newest measurement in the smoothed one.
const SMOOTHING: f64 = 0.3;
/// Round trips closer than this count as equal; then the zone decides.
const TIE_MICROS: f64 = 200.0;

/// A source that may be asked, nearest first in a ranking.
#[derive(Clone)]
pub struct Candidate {
    pub source: Source,
    pub peer: PeerClient,
}

impl Candidate {
    pub fn path(&self) -> DeliveryPath {
        match self.source {
            Source::Site(_) => DeliveryPath::Peer,
            Source::Origin(_) => DeliveryPath::Origin,
        }
    }
}

/// Round trips measured so far.
pub struct Sources {
    server: ServerClient,
    zone: Option<String>,
    /// Smoothed round trip in microseconds by gateway address; infinite when the last probe failed.
    round_trips: Mutex<HashMap<String, f64>>,
}

impl Sources {
    pub fn new(server: ServerClient, zone: Option<String>) -> Self {
        Self { server, zone, round_trips: Mutex::default() }
    }

    /// Probes every site's gateways for ever.
    pub async fn probe(self: Arc<Self>, site: Arc<SiteView>) {
        loop {
            let map = site.map();
            let others = map.sites.iter().filter(|s| s.id != site.id);
            for gateway in others.flat_map(|s| &s.gateways).filter(|g| g.alive) {
                self.measure(&gateway.http).await;
            }
            let mut jitter = [0u8; 1];
            common::auth::fill_random(&mut jitter);
            tokio::time::sleep(PROBE_EVERY + Duration::from_millis(u64::from(jitter[0]) * 4)).await;
        }
    }

    async fn measure(&self, address: &str) -> f64 {
        let start = Instant::now();
        let answered = PeerClient::gateway(self.server.clone(), address).ping().await.is_ok();
        let sample = if answered { start.elapsed().as_secs_f64() * 1e6 } else { f64::INFINITY };
        let mut known = self.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
        let smoothed = match known.get(address) {
            Some(old) if old.is_finite() && sample.is_finite() => old + SMOOTHING * (sample - old),
            _ => sample,
        };
        known.insert(address.to_owned(), smoothed);
        smoothed
    }

    fn known(&self, address: &str) -> Option<f64> {
        self.round_trips.lock().unwrap_or_else(PoisonError::into_inner).get(address).copied()
    }

    /// The holders of a content, best first: sites by round trip to their nearest gateway, then origins.
    pub async fn rank(&self, site: &SiteView, info: &ContentInfo) -> Vec<Candidate> {
        let map = site.map();
        let mut ranked: Vec<(f64, bool, SiteId, String)> = Vec::new();
        for holder in info.sites.iter().filter(|s| **s != site.id).filter_map(|s| map.site(s)) {
            let same_zone = self.zone.is_some() && self.zone == holder.zone;
            for gateway in holder.gateways.iter().filter(|g| g.alive) {
                let micros = match self.known(&gateway.http) {
                    Some(micros) => micros,
                    None => self.measure(&gateway.http).await,
                };
                ranked.push((micros, same_zone, holder.id.clone(), gateway.http.clone()));
            }
        }
        ranked.sort_by(|a, b| nearer((a.0, a.1), (b.0, b.1)));
        let sites = ranked.into_iter().map(|(_, _, id, address)| Candidate {
            source: Source::Site(id),
            peer: PeerClient::gateway(self.server.clone(), &address),
        });
        let origins = info.origins.iter().filter_map(|name| map.origin(name)).map(|origin| Candidate {
            source: Source::Origin(origin.name.clone()),
            peer: PeerClient::origin(self.server.clone(), &origin.http),
        });
        sites.chain(origins).collect()
    }
}

/// Orders (round trip in microseconds, same zone) pairs. Round trips are compared in steps of [`TIE_MICROS`], so
/// that the order is total.
fn nearer(a: (f64, bool), b: (f64, bool)) -> std::cmp::Ordering {
    let step = |micros: f64| (micros / TIE_MICROS).floor();
    step(a.0).total_cmp(&step(b.0)).then(b.1.cmp(&a.1)).then(a.0.total_cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_comes_first_the_zone_breaks_ties_and_the_silent_come_last() {
        let mut sources =
            vec![(f64::INFINITY, true), (900.0, false), (150.0, false), (190.0, true), (10_000.0, true)];
        sources.sort_by(|a, b| nearer(*a, *b));
        assert_eq!(
            sources,
            [(190.0, true), (150.0, false), (900.0, false), (10_000.0, true), (f64::INFINITY, true)]
        );
    }
}
