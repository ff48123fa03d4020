//! Puts a storage node together: store and log, catalog, routes, workers; and takes it apart in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::api::search::{Registration, SearchClient};
use common::auth::{ClusterSecret, Guard, Role};
use common::client::{HttpClient, ServerClient};
use common::config::show_bytes;
use common::error::{ApiResult, chain};
use common::id::NodeId;
use common::server::{Health, Listen, Running, Server, StartError};
use common::time::Clock;
use tokio::sync::{Mutex, watch};

use crate::catalog::Catalog;
use crate::catalog::key::Fee;
use crate::chunks::{self, ChunkLocks};
use crate::config::Config;
use crate::leases::Leases;
use crate::map_watch::{self, Identity};
use crate::metrics::Metrics;
use crate::mover::{self, Moves};
use crate::node::{Node, Signals};
use crate::scrub::{self, Scrub};
use crate::shards::{self, Shards};
use crate::store::{self, StoreUrl};
use crate::view::{Maps, View};
use crate::{reaper, recount, routes, temporary};

/// Delivery records that may wait for a billing server; more are kept as well, but somebody has to look.
const WAITING_RECORDS_MAX: u64 = 1_000_000;
/// How often the store's figures are shown.
const FIGURES_INTERVAL: Duration = Duration::from_secs(1);

/// Starts a storage node. It answers at once, and is ready when it is in the cluster map.
pub async fn start(config: Config, secret: ClusterSecret) -> Result<Running, StartError> {
    let id = NodeId::of(&config.site, &config.name);
    let listen = Listen { listen: config.listen, admin: config.admin };
    let mut server = Server::bind(Role::StorageNode, id.as_str(), &listen).await?;
    server.live.add("moves_bytes_per_s", &config.moves_bytes_per_s);
    server.live.add("scrub_bytes_per_s", &config.scrub_bytes_per_s);
    server.live.add("scrub_interval_ms", &config.scrub_interval_ms);
    let failed = |what: &str| {
        let what = format!("{what} of storage node {id}");
        move |error: Box<dyn std::error::Error + Send + Sync>| StartError::Failed { what, source: error }
    };
    let url: StoreUrl =
        config.store.parse().map_err(|error| failed("the store's address")(Box::new(error)))?;
    std::fs::create_dir_all(&config.data_dir)
        .map_err(|error| StartError::failed(format!("data folder {}", config.data_dir.display()), error))?;
    let begun = Instant::now();
    let options = store::Options { force: config.force, ..Default::default() };
    let opened = store::open_with(&url, &config.data_dir, &server.metrics, options)
        .await
        .map_err(|error| failed("the store")(Box::new(error)))?;
    tracing::info!(node = %id, store = %url, io = opened.io_engine, log = opened.log_id, "store opened");
    let catalog =
        Catalog::open(&config.data_dir, opened.log.clone(), &opened.log_id, config.index_cache_bytes)
            .await
            .map_err(|error| failed("the catalog")(Box::new(error)))?;
    let map_path = config.data_dir.join(map_watch::FILE_NAME);
    let map = map_watch::load(&map_path).map_err(|error| failed("the kept map")(Box::new(error)))?;

    let clock = Clock::System;
    let http = HttpClient::new();
    let client =
        ServerClient::new(http, secret.clone(), &server.name, clock.clone()).measured(server.call_metrics());
    let node = Arc::new(Node {
        maps: Arc::new(Maps::new(id.clone(), config.site.clone(), map)),
        shards: Shards::default(),
        site: config.site.clone(),
        store: url.to_string(),
        clock: clock.clone(),
        limits: config.limits(),
        catalog: catalog.clone(),
        chunks: opened.chunks,
        chunk_locks: ChunkLocks::default(),
        leases: Leases::default(),
        scrub: Scrub::new(config.scrub_bytes_per_s.clone(), config.scrub_interval_ms.clone()),
        moves: Moves::new(config.moves_bytes_per_s.clone()),
        search: SearchClient::new(client.clone(), &config.search),
        client,
        metrics: Metrics::new(&server.metrics),
        signals: Signals::default(),
        health: server.health.clone(),
        record_epoch: watch::Sender::new(0),
        map_path,
        map_writing: Mutex::new(()),
        id,
    });
    node.metrics.recovery_seconds.set(begun.elapsed().as_secs_f64());
    recall(&node).map_err(|error| StartError::failed("reading the catalog", error))?;
    let identity = Identity { registration: registration(&config, &server), log_id: opened.log_id };
    spawn_workers(&server, &node, identity);

    let guard = Guard { secret, audience: Role::StorageNode, clock };
    let closing = node.clone();
    let (service, admin) = (routes::service(node.clone(), guard), routes::admin(node));
    let log = opened.log;
    Ok(server.run(service, admin, async move {
        closing.shards.close();
        catalog.close().await;
        log.close().await;
    }))
}

fn registration(config: &Config, server: &Server) -> Registration {
    Registration {
        role: Role::StorageNode,
        name: config.name.clone(),
        site: Some(config.site.clone()),
        zone: config.zone.clone(),
        http: config.advertise.clone().unwrap_or_else(|| server.http_url()),
        s3: None,
        admin: server.admin_url(),
        node: None,
    }
}

/// Brings back what is kept beside the rows for speed.
fn recall(node: &Node) -> ApiResult<()> {
    node.catalog.read(|rows| {
        node.scrub.restore(rows, &node.metrics.scrub)?;
        node.metrics.add_logical_bytes(chunks::logical_bytes(rows)? as i64);
        Ok(())
    })?;
    node.report_map();
    node.health.set("catalog", Ok(()));
    node.health.set("shards", Err("not served yet".into()));
    Ok(())
}

fn spawn_workers(server: &Server, node: &Arc<Node>, identity: Identity) {
    server.spawn_worker(map_watch::register(node.clone(), identity, server.leaving_token()));
    server.spawn_worker(map_watch::follow(node.clone()));
    server.spawn_worker(shards::serve(node.clone()));
    server.spawn_worker(shards::tidy(node.clone()));
    server.spawn_worker(reaper::delete(node.clone()));
    server.spawn_worker(recount::run(node.clone()));
    server.spawn_worker(scrub::run(node.clone()));
    server.spawn_worker(mover::run(node.clone()));
    server.spawn_worker(show_figures(node.clone()));
    server.spawn_worker(watch_catalog(node.clone()));
}

async fn show_figures(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(FIGURES_INTERVAL);
    loop {
        ticks.tick().await;
        let stats = node.chunks.stats();
        node.metrics.capacity_bytes.set(stats.capacity_bytes as f64);
        node.metrics.used_bytes.set(stats.used_bytes as f64);
        node.metrics.chunks.set(stats.chunks as f64);
        let shards = node.shards.all();
        let waiting = [Fee::Service, Fee::Content].map(|fee| {
            let records: u64 = shards.iter().map(|shard| shard.pending.records(fee)).sum();
            node.metrics.outbox(fee).pending_records.set(records as f64);
            let ages = shards.iter().map(|shard| shard.pending.records_age(fee, node.clock.now()));
            let oldest = ages.max().unwrap_or_default();
            node.metrics.outbox(fee).oldest_age_seconds.set(oldest.as_secs_f64());
            records
        });
        tell_health(&node.health, stats.used_bytes, stats.capacity_bytes, waiting);
        let announcements: u64 = shards.iter().map(|shard| shard.pending.announcements()).sum();
        node.metrics.announcements_pending.set(announcements as f64);
        node.metrics.shards.set(shards.len() as f64);
        node.metrics.followers_missing.set(node.maps.with(View::followers_missing) as f64);
        let (contents, bytes) = temporary::figures(&shards);
        node.metrics.temporary.contents.set(contents as f64);
        node.metrics.temporary.bytes.set(bytes as f64);
    }
}

fn tell_health(health: &Health, used_bytes: u64, capacity_bytes: u64, waiting: [u64; 2]) {
    let (used, capacity) = (show_bytes(used_bytes), show_bytes(capacity_bytes));
    health.note("store", format!("{used} of {capacity} used"));
    let [service, content] = waiting;
    let told = format!("{service} records wait for service billing, {content} for content billing");
    let is_bounded = service.max(content) < WAITING_RECORDS_MAX;
    health.set("billing spool", if is_bounded { Ok(()) } else { Err(told.clone()) });
    health.note("billing", told);
}

/// A node whose log or catalog stopped takes nothing more until it is started anew, and recovers.
async fn watch_catalog(node: Arc<Node>) {
    let mut stopped = node.catalog.stopped();
    let reason = match stopped.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or_default(),
        Err(error) => chain(&error),
    };
    node.health.fail("catalog", reason);
}
