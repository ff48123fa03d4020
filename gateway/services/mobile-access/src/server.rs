//! Starting a mobile access server: its listeners, and its view of the cluster.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use common::api::search::{Registration, SearchClient};
use common::auth::{ClusterSecret, Role};
use common::backoff::Backoff;
use common::client::{HttpClient, ServerClient};
use common::cluster::{ClusterMap, MapEpoch};
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::ServerName;
use common::server::{Health, Listen, Running, Server, StartError};
use common::time::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::Config;
use crate::hear::{self, Hearing};
use crate::home::Homes;
use crate::metrics::Metrics;
use crate::nearby::Nearby;
use crate::rates::{Rate, Rates};
use crate::routes;

/// One address, which may be that of a whole hotel: two questions a connect.
const EACH: Rate = Rate { per_s: 20, burst: 200 };
const ALL: Rate = Rate { per_s: 500, burst: 500 };
/// Questions that are answered at the same time.
const AT_ONCE: usize = 256;
/// Longest wait for a new map.
const MAP_WAIT: Duration = Duration::from_secs(20);

/// What requests share.
pub(crate) struct App {
    pub name: ServerName,
    /// `None` until search has answered for the first time.
    pub map: watch::Receiver<Option<Arc<ClusterMap>>>,
    pub nearby: Nearby,
    pub homes: Homes,
    pub metrics: Metrics,
    rates: Rates,
    permits: Arc<Semaphore>,
}

impl App {
    /// Whether an address may ask once more, and there is room to answer.
    pub fn admit(&self, source: IpAddr) -> ApiResult<OwnedSemaphorePermit> {
        let refused = |message| ApiError::new(ErrorCode::TooManyRequests, message);
        if !self.rates.admit(source) {
            return Err(refused("mobile access was asked too often; try again in a few seconds"));
        }
        let permit = self.permits.clone().try_acquire_owned();
        permit.map_err(|_| refused("mobile access has too much to do; try again in a few seconds"))
    }
}

/// Starts a mobile access server; it is ready when it knows the cluster and search knows it.
pub async fn start(config: Config, secret: ClusterSecret) -> Result<Running, StartError> {
    let listen = Listen { listen: config.listen, admin: config.admin };
    let server = Server::bind(Role::MobileAccess, config.name.as_str(), &listen).await?;
    let listen = server.http_address().unwrap_or(config.listen);
    let mut hear = config.hear;
    if hear.port() == 0 {
        hear.set_port(listen.port());
    }
    let socket =
        hear::bind(hear).map_err(|source| StartError::Listen { address: hear.to_string(), source })?;
    let metrics = Metrics::new(&server.metrics);
    let client = ServerClient::new(HttpClient::new(), secret, &server.name, Clock::System)
        .measured(server.call_metrics());
    let search = SearchClient::new(client.clone(), &config.search);
    let (told, map) = watch::channel(None);
    server.health.set("map", Err("no cluster map yet".into()));
    server.health.set("registered", Err("search has not answered yet".into()));
    server.spawn_worker(follow(search.clone(), told, server.health.clone()));
    server.spawn_worker(register(registration(&config, &server), search, server.health.clone()));
    let hearing = Hearing {
        name: config.name.clone(),
        listen,
        advertise: config.advertise.clone(),
        metrics: metrics.clone(),
    };
    server.spawn_worker(hearing.run(socket));
    let app = App {
        name: config.name.clone(),
        map,
        nearby: Nearby::new(&config, client.clone()),
        homes: Homes::new(client, metrics.clone()),
        metrics,
        rates: Rates::new(EACH, ALL),
        permits: Arc::new(Semaphore::new(AT_ONCE)),
    };
    Ok(server.run(routes::service(Arc::new(app)), Router::new(), async {}))
}

fn registration(config: &Config, server: &Server) -> Registration {
    Registration {
        role: Role::MobileAccess,
        name: config.name.clone(),
        site: None,
        zone: None,
        http: config.advertise.clone().unwrap_or_else(|| server.http_url()),
        s3: None,
        admin: server.admin_url(),
        node: None,
    }
}

/// Keeps the map up to date, for ever; the last one stays while search is away.
async fn follow(search: SearchClient, map: watch::Sender<Option<Arc<ClusterMap>>>, health: Health) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let (mut epoch, mut wait) = (MapEpoch(0), Duration::ZERO);
    loop {
        match search.map(epoch, wait).await {
            Ok(newer) => {
                backoff.reset();
                (epoch, wait) = (newer.epoch, MAP_WAIT);
                map.send_replace(Some(Arc::new(newer)));
                health.set("map", Ok(()));
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "search tells no map");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Tells search that this server is there, for ever.
async fn register(registration: Registration, search: SearchClient, health: Health) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        match search.register(&registration).await {
            Ok(registered) => {
                backoff.reset();
                health.set("registered", Ok(()));
                tokio::time::sleep(Duration::from_millis(registered.heartbeat_ms)).await;
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "search did not take the registration");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}
