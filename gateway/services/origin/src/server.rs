//! Starting an origin, and what its parts share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use common::api::origin::Source;
use common::api::search::SearchClient;
use common::auth::{ClusterSecret, Guard, Role};
use common::client::{HttpClient, ServerClient};
use common::config::Live;
use common::error::chain;
use common::id::{BucketName, ServerName};
use common::server::{Health, Listen, Running, Server, StartError};
use common::time::Clock;

use crate::config::Config;
use crate::db::Db;
use crate::error::Failure;
use crate::limit::Limit;
use crate::metrics::Metrics;
use crate::registry::KeptSource;
use crate::source::{SourceError, Store};
use crate::sources::Sources;
use crate::{announce, outbox, registry, routes, sources};

/// Objects that are read and hashed at the same time, over all sources: each takes up to 10 MiB of memory.
const DIGESTS: usize = 8;

/// What requests and workers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub name: ServerName,
    pub db: Db,
    pub search: SearchClient,
    pub metrics: Metrics,
    pub clock: Clock,
    rescan_ms: Live,
    settle_ms: Live,
    /// Most reads of a source that sets no limit of its own, and most that wait for one.
    pub read_concurrency: usize,
    pub read_queue: usize,
    /// Parts of contents that are read at a time, over all sources.
    pub reads: Limit,
    pub digests: Arc<Semaphore>,
    /// Wakes the sender of announcements.
    pub announce: Arc<Notify>,
    pub sources: Sources,
    /// Buckets whose sources are in the configuration.
    pub configured: Arc<[BucketName]>,
    pub health: Health,
    pub workers: TaskTracker,
    pub stop: CancellationToken,
}

impl App {
    /// Time from the end of one scan of a source to the next.
    pub fn rescan(&self) -> Duration {
        Duration::from_millis(self.rescan_ms.get())
    }

    /// For how long a file must not have changed.
    pub fn settle(&self) -> Duration {
        Duration::from_millis(self.settle_ms.get())
    }
}

/// Opens the database and the sources, begins to answer, and returns. Scanning goes on behind.
pub async fn start(config: Config, secret: ClusterSecret) -> Result<Running, StartError> {
    let listen = Listen { listen: config.listen, admin: config.admin };
    let mut server = Server::bind(Role::Origin, config.name.as_str(), &listen).await?;
    server.live.add("rescan_ms", &config.rescan_ms);
    server.live.add("settle_ms", &config.settle_ms);
    server.health.set("registered", Err("search has not accepted the registration yet".into()));
    let db = Db::open(&config.data_dir).await?;
    let client = ServerClient::new(HttpClient::new(), secret.clone(), &server.name, Clock::System)
        .measured(server.call_metrics());
    let app = App {
        name: config.name.clone(),
        search: SearchClient::new(client, &config.search),
        metrics: Metrics::new(&server.metrics),
        clock: Clock::System,
        rescan_ms: config.rescan_ms,
        settle_ms: config.settle_ms,
        read_concurrency: config.read_concurrency,
        read_queue: config.read_queue,
        // Each source's own limit bounds how many wait here.
        reads: Limit::new(config.read_concurrency, usize::MAX),
        digests: Arc::new(Semaphore::new(DIGESTS)),
        announce: Arc::new(Notify::new()),
        health: server.health.clone(),
        sources: Sources::default(),
        configured: config.sources.iter().map(|source| source.bucket.clone()).collect(),
        workers: TaskTracker::new(),
        stop: server.stop_token(),
        db,
    };
    open_sources(&app, &config.sources).await?;
    let http = config.advertise.unwrap_or_else(|| server.http_url());
    let admin = server.admin_url();
    server.spawn_worker(announce::heartbeat(app.clone(), server.health.clone(), http, admin));
    server.spawn_worker(announce::send_outbox(app.clone()));
    let guard = Guard { secret, audience: Role::Origin, clock: Clock::System };
    let routes = routes::service(app.clone(), guard);
    let last_step = async move {
        app.workers.close();
        app.workers.wait().await;
        app.db.close().await;
    };
    Ok(server.run(routes, axum::Router::new(), last_step))
}

/// Opens the sources of the configuration, which must be there, and those added at run time, which may be away.
async fn open_sources(app: &App, configured: &[Source]) -> Result<(), StartError> {
    for (i, source) in configured.iter().enumerate() {
        if configured[..i].iter().any(|s| s.bucket == source.bucket) {
            let reason = format!("bucket {} has two sources; a bucket has one", source.bucket);
            return Err(StartError::failed("reading the configuration of the origin", reason));
        }
    }
    let failed = |failure: Failure| StartError::failed("reading the registry", failure);
    let mut tx = app.db.write().await.map_err(failed)?;
    outbox::init(&mut tx, app.clock.now()).await.map_err(failed)?;
    for source in configured {
        registry::put_source(&mut tx, source).await.map_err(failed)?;
    }
    let sources = registry::sources(&mut tx).await.map_err(failed)?;
    let contents = registry::count(&mut tx).await.map_err(failed)?;
    tx.commit().await.map_err(|e| failed(e.into()))?;
    app.metrics.contents.set(contents as f64);
    for KeptSource { source, removing } in sources {
        if removing {
            sources::run(app, source, Store::nothing(), true);
            continue;
        }
        match Store::open(&source.url) {
            Ok(store) => sources::run(app, source, store, false),
            Err(error) if configured.contains(&source) => return Err(unusable(&source, error)),
            Err(error) => sources::await_return(app, source, chain(&error)),
        }
    }
    Ok(())
}

fn unusable(source: &Source, error: SourceError) -> StartError {
    StartError::failed(format!("opening the source of bucket {}", source.bucket), error)
}
