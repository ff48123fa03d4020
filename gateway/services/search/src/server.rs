//! Starting and stopping the search server, and its one background worker: the sweep that marks servers as down.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Any, Transaction};
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use common::auth::{ClusterSecret, Guard, Role, random_hex};
use common::client::{HttpClient, ServerClient};
use common::server::{Health, Listen, Running, Server, StartError};
use common::time::Clock;

use crate::announcements::{self, Queue};
use crate::config::Config;
use crate::contents::Effect;
use crate::db::Db;
use crate::error::{Failure, natural};
use crate::map::{Target, View};
use crate::metrics::Metrics;
use crate::recovery::Recovery;
use crate::servers::{Leases, ServerKey};
use crate::suspicion::Suspicions;
use crate::{changes, contents, map, metrics, routes, servers, shards, sweep};

/// What requests share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub db: Db,
    pub view: watch::Sender<View>,
    /// Last number of the change feed.
    pub last_change: watch::Sender<u64>,
    pub leases: Arc<Leases>,
    pub suspicions: Arc<Suspicions>,
    pub announcements: Queue,
    /// Told when a snapshot has ended.
    pub sweep_due: Arc<Notify>,
    /// For asking nodes.
    pub server: ServerClient,
    pub metrics: Metrics,
    pub clock: Clock,
    pub heartbeat_ms: u64,
    pub lease: Duration,
    pub run: Arc<Mutex<String>>,
    pub recovery: Arc<Recovery>,
    pub health: Health,
    /// Long polls end when this is cancelled.
    pub draining: CancellationToken,
    pub own_target: Arc<Target>,
}

impl App {
    /// The run in which maps are made: [`common::cluster::MapRun`].
    pub fn run(&self) -> String {
        self.run.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes further maps in a run of their own.
    pub fn begin_run(&self) {
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = new_run();
    }

    /// Commits a change of the map under a new epoch, and serves it.
    pub async fn commit_map(&self, mut tx: Transaction<'static, Any>) -> Result<View, Failure> {
        map::raise_epoch(&mut tx, &self.run()).await?;
        let view = map::load(&mut tx).await?;
        tx.commit().await?;
        self.publish(view.clone());
        Ok(view)
    }

    /// Makes a committed view the one that is served. Commits may be published out of their order; the newest wins.
    fn publish(&self, view: View) {
        self.view.send_if_modified(|current| {
            let is_newer = view.epoch() > current.epoch();
            if is_newer {
                *current = view;
            }
            is_newer
        });
        self.metrics.map_epoch.set(self.view.borrow().epoch().0 as f64);
    }

    /// Counts what announcements did, and wakes who waits for changes.
    pub fn publish_effect(&self, effect: Effect) {
        self.metrics.contents.increment(effect.contents as f64);
        self.metrics.holders.increment(effect.holders as f64);
        let Some(last) = effect.last_change.map(natural) else { return };
        self.last_change.send_if_modified(|current| {
            let is_newer = last > *current;
            *current = last.max(*current);
            is_newer
        });
    }
}

fn new_run() -> String {
    random_hex(8)
}

/// Opens the database, begins to answer, and returns once it does.
pub async fn start(config: Config, secret: ClusterSecret) -> Result<Running, StartError> {
    config.check().map_err(|reason| StartError::failed("reading the configuration of search", reason))?;
    let listen = Listen { listen: config.listen, admin: config.admin };
    let server = Server::bind(Role::Search, "search", &listen).await?;
    server.health.set("database", Err("opening".into()));
    let db = Db::open(&config.location()?).await?;
    let failed = |failure: Failure| StartError::failed("reading the directory", failure);
    let (queue, waiting) = Queue::new();
    let app = load(&config, &server, db.clone(), queue, secret.clone()).await.map_err(failed)?;
    server.health.set("database", Ok(()));
    let guard = Guard { secret, audience: Role::Search, clock: Clock::System };
    server.spawn_worker(sweep(app.clone()));
    server.spawn_worker(announcements::work(app.clone(), waiting));
    server.spawn_worker(sweep::work(app.clone()));
    let service = routes::service(app.clone(), guard);
    let admin = routes::discovery(app);
    Ok(server.run(service, admin, async move { db.close().await }))
}

/// Reads from the database what is kept in memory.
async fn load(
    config: &Config,
    server: &Server,
    db: Db,
    announcements: Queue,
    secret: ClusterSecret,
) -> Result<App, Failure> {
    let mut conn = db.read().await?;
    let view = map::load(&mut conn).await?;
    let last_change = natural(changes::last_seq(&mut conn).await?);
    let totals = contents::totals(&mut conn).await?;
    let leases = Leases::default();
    for row in servers::all(&mut conn).await?.into_iter().filter(|r| r.alive) {
        leases.renew(row.key);
    }
    drop(conn);
    let (view, leases) = (watch::Sender::new(view), Arc::new(leases));
    metrics::show_servers(&server.metrics, view.subscribe(), leases.clone());
    let metrics = Metrics::new(&server.metrics);
    metrics.map_epoch.set(view.borrow().epoch().0 as f64);
    metrics.contents.set(totals.0 as f64);
    metrics.holders.set(totals.1 as f64);
    let own_key = ServerKey { role: Role::Search, site: String::new(), name: "search".to_owned() };
    let caller = ServerClient::new(HttpClient::new(), secret, "search", Clock::System);
    Ok(App {
        db,
        view,
        last_change: watch::Sender::new(last_change),
        leases,
        suspicions: Arc::new(Suspicions::default()),
        announcements,
        sweep_due: Arc::new(Notify::new()),
        server: caller.measured(server.call_metrics()),
        metrics,
        clock: Clock::System,
        heartbeat_ms: config.heartbeat_ms,
        lease: Duration::from_millis(config.lease_ms),
        run: Arc::new(Mutex::new(new_run())),
        recovery: Arc::new(Recovery::new()),
        health: server.health.clone(),
        draining: server.draining_token(),
        own_target: Arc::new(Target::new(own_key, &server.admin_url(), &server.http_url())),
    })
}

/// Marks servers whose lease ran out as down, and tells health whether the database answers.
async fn sweep(app: App) {
    let lease = app.lease;
    let mut ticks =
        tokio::time::interval((lease / 8).clamp(Duration::from_millis(10), Duration::from_secs(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let state = app.db.ping().await.map_err(|failure| common::error::chain(&failure));
        app.health.set("database", state);
        let expired = app.leases.take_expired(lease);
        if expired.is_empty() {
            continue;
        }
        for key in &expired {
            tracing::warn!(role = %key.role, site = key.site, name = key.name, "has fallen silent");
        }
        if let Err(failure) = mark_down(&app, &expired).await {
            tracing::warn!(error = common::error::chain(&failure), "servers could not be marked as down");
            expired.into_iter().for_each(|key| app.leases.put_back(key, lease));
        }
    }
}

/// Marks servers as down whose leases were taken out, and lets followers serve what they served.
pub(crate) async fn mark_down(app: &App, silent: &[ServerKey]) -> Result<(), Failure> {
    let mut tx = app.db.write().await?;
    let mut lost = Vec::new();
    // One that reported since is alive after all.
    for key in silent.iter().filter(|key| !app.leases.has(key)) {
        if servers::mark_down(&mut tx, key).await? {
            tracing::info!(role = %key.role, site = key.site, name = key.name, "marked as down");
            lost.push(key);
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    let sites: BTreeSet<&str> = lost.iter().map(|key| key.site.as_str()).collect();
    for site in sites {
        shards::settle(&mut tx, site).await?;
    }
    app.commit_map(tx).await?;
    Ok(())
}
