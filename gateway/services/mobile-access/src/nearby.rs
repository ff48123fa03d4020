//! Which gateways are near: measured, each time somebody wants to know and the last measurement is old.

use std::sync::Arc;
use std::time::Duration;

use common::api::mobile_access::NearbyGateway;
use common::api::peer::PeerClient;
use common::client::ServerClient;
use common::cluster::{ClusterMap, SiteEntry};
use common::id::SiteId;
use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::config::Config;

/// A measurement is used for so long.
const FRESH: Duration = Duration::from_secs(2);
/// That nobody answers is believed for so long: those who wait for the same measurement need not make it again each.
const NOBODY_FRESH: Duration = Duration::from_millis(300);
/// Who has not answered by then is not near.
const PING_TIME_MAX: Duration = Duration::from_millis(1000);
/// Gateways that are measured; of more, the first in the map.
const MEASURED_MAX: usize = 64;

/// A gateway that answered.
#[derive(Debug, Clone)]
pub struct Near {
    pub site: SiteId,
    pub gateway: NearbyGateway,
}

/// The sites of this server's neighbourhood.
pub struct Nearby {
    sites: Vec<SiteId>,
    zone: Option<String>,
    server: ServerClient,
    measured: Mutex<Option<(Instant, Arc<Vec<Near>>)>>,
}

impl Nearby {
    pub fn new(config: &Config, server: ServerClient) -> Self {
        let (sites, zone) = (config.sites.clone(), config.zone.clone());
        Self { sites, zone, server, measured: Mutex::default() }
    }

    fn is_near(&self, site: &SiteEntry) -> bool {
        match (&self.sites[..], &self.zone) {
            ([], None) => true,
            ([], zone) => &site.zone == zone,
            (sites, _) => sites.contains(&site.id),
        }
    }

    /// The gateways that answer, the nearest first. Those who ask at the same time share one measurement.
    pub async fn gateways(&self, map: &ClusterMap) -> Arc<Vec<Near>> {
        let mut measured = self.measured.lock().await;
        if let Some((at, near)) = &*measured
            && at.elapsed() < if near.is_empty() { NOBODY_FRESH } else { FRESH }
        {
            return near.clone();
        }
        let near = Arc::new(self.measure(map).await);
        *measured = Some((Instant::now(), near.clone()));
        near
    }

    async fn measure(&self, map: &ClusterMap) -> Vec<Near> {
        let sites = map.sites.iter().filter(|site| self.is_near(site));
        let gateways = sites.flat_map(|site| site.gateways.iter().map(move |gateway| (site, gateway)));
        let pings =
            gateways.filter(|(_, gateway)| gateway.alive).take(MEASURED_MAX).map(|(site, gateway)| {
                let near = Near {
                    site: site.id.clone(),
                    gateway: NearbyGateway {
                        name: format!("{}.{}", site.id, gateway.name),
                        http: gateway.http.clone(),
                    },
                };
                let client = PeerClient::gateway(self.server.clone(), &gateway.http);
                async move {
                    let begun = Instant::now();
                    let answered = tokio::time::timeout(PING_TIME_MAX, client.ping()).await;
                    matches!(answered, Ok(Ok(_))).then(|| (begun.elapsed(), near))
                }
            });
        let mut answered: Vec<(Duration, Near)> = join_all(pings).await.into_iter().flatten().collect();
        answered.sort_by_key(|(took, _)| *took);
        answered.into_iter().map(|(_, near)| near).collect()
    }
}
