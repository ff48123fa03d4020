//! Starting a gateway: its parts, its workers, its listeners.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use common::api::collect::CollectorAddress;
use common::api::search::{Leave, Registration, SearchClient};
use common::auth::{ClusterSecret, Guard, Role};
use common::backoff::Backoff;
use common::client::{HttpClient, ServerClient};
use common::possession::PossessionKeys;
use common::server::{Health, Listen, Running, Server, StartError};
use common::time::Clock;

use tokio_util::sync::CancellationToken;

use crate::chunks::Chunks;
use crate::collect::sources::Sources;
use crate::collect::{Collector, Parts};
use crate::config::Config;
use crate::directory::Directory;
use crate::ends::{self, Ends};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::opens::Opens;
use crate::routes;
use crate::site::SiteView;
use crate::visitors::Visitors;

/// Everything a request needs; shared in an `Arc`.
pub struct Gateway {
    pub config: Config,
    pub site: Arc<SiteView>,
    pub chunks: Arc<Chunks>,
    pub sources: Arc<Sources>,
    pub collector: Arc<Collector>,
    pub possession_keys: PossessionKeys,
    pub directory: Directory,
    pub limits: Limits,
    pub visitors: Visitors,
    pub opens: Opens,
    pub ends: Ends,
    /// Bytes that peers asked for and that are not sent yet.
    pub owed: AtomicU64,
    pub metrics: Arc<Metrics>,
    pub server: ServerClient,
    pub clock: Clock,
}

/// Starts a gateway; it is ready when it has a map in which its site has a storage node.
pub async fn start(config: Config, secret: ClusterSecret) -> Result<Running, StartError> {
    let name = format!("{}.{}", config.site, config.name);
    let mut server =
        Server::bind(Role::Gateway, &name, &Listen { listen: config.listen, admin: config.admin }).await?;
    server.live.add("content_bytes_max", &config.content_bytes_max);
    server.live.add("temporary_ttl_ms", &config.temporary_ttl_ms);
    server.live.add("visit_ms", &config.visit_ms);
    let clock = Clock::System;
    let metrics = Arc::new(Metrics::new(&server.metrics));
    let client = ServerClient::new(HttpClient::new(), secret.clone(), &server.name, clock.clone())
        .measured(server.call_metrics());
    let search = SearchClient::new(client.clone(), &config.search);
    let patience = Duration::from_millis(config.node_patience_ms);
    let site = SiteView::new(config.site.clone(), client.clone(), search.clone(), patience, metrics.clone());
    let site = Arc::new(site);
    let chunks = Arc::new(Chunks::new(site.clone(), config.cache_bytes, metrics.clone()));
    let sources = Arc::new(Sources::new(client.clone(), &config, metrics.clone()));
    let collector = Arc::new(Collector::new(Parts {
        site: site.clone(),
        chunks: chunks.clone(),
        search: search.clone(),
        server: client.clone(),
        sources: sources.clone(),
        metrics: metrics.clone(),
        address: CollectorAddress { gateway: config.name.clone(), http: address(&config, &server) },
    }));
    let (ends, ends_worker) = ends::start(site.clone(), client.clone(), metrics.clone(), server.stop_token());

    server.health.set("map", Err("no cluster map yet".into()));
    server.health.set("nodes", Err("no cluster map yet".into()));
    server.health.set("registered", Err("search has not answered yet".into()));
    server.spawn_worker(site.clone().follow(server.health.clone()));
    server.spawn_worker(sources.clone().probe(site.clone()));
    server.spawn_worker(register(
        registration(&config, &server),
        search.clone(),
        server.health.clone(),
        server.leaving_token(),
    ));
    server.spawn_until_stop(ends_worker);

    let gateway = Gateway {
        config,
        site: site.clone(),
        chunks,
        sources,
        collector,
        possession_keys: secret.possession_keys(),
        directory: Directory::new(search),
        limits: Limits::default(),
        visitors: Visitors::new(secret.clone(), name),
        opens: Opens::default(),
        ends,
        owed: AtomicU64::new(0),
        metrics,
        server: client,
        clock: clock.clone(),
    };
    let guard = Guard { secret, audience: Role::Gateway, clock };
    let admin = Router::new().route("/v1/map", get(move || async move { Json((*site.map()).clone()) }));
    Ok(server.run(routes::all(Arc::new(gateway), guard), admin, async {}))
}

/// Where others reach this gateway.
fn address(config: &Config, server: &Server) -> String {
    config.advertise.clone().unwrap_or_else(|| server.http_url())
}

fn registration(config: &Config, server: &Server) -> Registration {
    Registration {
        role: Role::Gateway,
        name: config.name.clone(),
        site: Some(config.site.clone()),
        zone: None,
        http: address(config, server),
        s3: None,
        admin: server.admin_url(),
        node: None,
    }
}

/// Tells search that this gateway is there, until it stops; then that it goes.
async fn register(
    registration: Registration,
    search: SearchClient,
    health: Health,
    leaving: CancellationToken,
) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    while !leaving.is_cancelled() {
        let delay = match search.register(&registration).await {
            Ok(registered) => {
                backoff.reset();
                health.set("registered", Ok(()));
                Duration::from_millis(registered.heartbeat_ms)
            }
            Err(error) => {
                tracing::warn!(error = %common::error::chain(&error), "search did not take the registration");
                backoff.next_delay()
            }
        };
        let _either = leaving.run_until_cancelled(tokio::time::sleep(delay)).await;
    }
    if let Err(error) = search.leave(&Leave::of(&registration)).await {
        tracing::debug!(error = %common::error::chain(&error), "search was not told of the stop; it finds out");
    }
}
