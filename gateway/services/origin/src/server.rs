//! Starting an origin, and what its parts share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use common::api::search::SearchClient;
use common::auth::{ClusterSecret, Guard, Role};
use common::client::{HttpClient, ServerClient};
use common::id::{BucketName, ServerName};
use common::server::{Health, Listen, Running, Server, StartError};
use common::time::Clock;

use crate::config::{Config, Source};
use crate::db::Db;
use crate::error::Failure;
use crate::metrics::Metrics;
use crate::source::{SourceError, Store};
use crate::{announce, outbox, registry, routes, scan};

/// Objects that are read and hashed at the same time, over all sources: each takes a core.
const DIGESTS: usize = 2;
/// Objects that wait to be looked at again; what does not fit is found by the next scan.
const REREADS: usize = 64;

/// A source that is being kept registered.
#[derive(Clone)]
pub(crate) struct OpenSource {
    pub source: Source,
    pub store: Store,
    pub reread: mpsc::Sender<String>,
    /// How its scan goes, for people.
    pub state: String,
    /// Ends its worker.
    stop: CancellationToken,
}

type OpenSources = BTreeMap<BucketName, OpenSource>;

/// What requests and workers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub name: ServerName,
    pub db: Db,
    pub search: SearchClient,
    pub metrics: Metrics,
    pub clock: Clock,
    pub rescan: Duration,
    /// One permit for each part of a content that may be read at a time.
    pub reads: Arc<Semaphore>,
    pub digests: Arc<Semaphore>,
    /// Wakes the sender of announcements.
    pub announce: Arc<Notify>,
    health: Health,
    sources: Arc<Mutex<OpenSources>>,
    workers: TaskTracker,
    stop: CancellationToken,
}

impl App {
    pub fn open_source(&self, bucket: &str) -> Option<OpenSource> {
        let bucket = BucketName::new(bucket).ok()?;
        self.sources().get(&bucket).cloned()
    }

    pub fn open_sources(&self) -> Vec<OpenSource> {
        self.sources().values().cloned().collect()
    }

    /// Keeps a source registered from now on; a source of the same bucket is replaced.
    pub fn run_source(&self, source: Source, store: Store) {
        let (reread, rereads) = mpsc::channel(REREADS);
        let stop = self.stop.child_token();
        let state = "waits for its scan".to_owned();
        let opened =
            OpenSource { source: source.clone(), store: store.clone(), reread, state, stop: stop.clone() };
        let replaced = self.sources().insert(source.bucket.clone(), opened);
        let app = self.clone();
        self.workers.spawn(async move {
            if let Some(replaced) = replaced {
                replaced.stop.cancel();
            }
            stop.run_until_cancelled(scan::run(app, source, store, rereads)).await;
        });
    }

    /// Tells people how the scan of a source goes.
    pub fn tell_scan(&self, bucket: &BucketName, state: &str) {
        let mut sources = self.sources();
        if let Some(open) = sources.get_mut(bucket) {
            open.state = state.to_owned();
        }
        let scanned = sources.values().filter(|s| s.state == "scanned").count();
        self.health.note("sources", format!("{scanned} of {} scanned", sources.len()));
    }

    /// Brings the figure of contents up to date.
    pub async fn count_contents(&self) -> Result<(), Failure> {
        let mut conn = self.db.read().await?;
        self.metrics.contents.set(registry::count(&mut conn).await? as f64);
        Ok(())
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, OpenSources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the database and the sources, begins to answer, and returns. Scanning goes on behind.
pub async fn start(config: Config, secret: ClusterSecret) -> Result<Running, StartError> {
    let listen = Listen { listen: config.listen, admin: config.admin };
    let server = Server::bind(Role::Origin, config.name.as_str(), &listen).await?;
    server.health.set("registered", Err("search has not accepted the registration yet".into()));
    let db = Db::open(&config.data_dir).await?;
    let client = ServerClient::new(HttpClient::new(), secret.clone(), &server.name, Clock::System);
    let app = App {
        name: config.name.clone(),
        search: SearchClient::new(client, &config.search),
        metrics: Metrics::new(&server.metrics),
        clock: Clock::System,
        rescan: Duration::from_millis(config.rescan_ms),
        reads: Arc::new(Semaphore::new(config.read_concurrency.max(1))),
        digests: Arc::new(Semaphore::new(DIGESTS)),
        announce: Arc::new(Notify::new()),
        health: server.health.clone(),
        sources: Arc::default(),
        workers: TaskTracker::new(),
        stop: server.stop_token(),
        db,
    };
    open_sources(&app, &config.sources).await?;
    let (http, admin) = (server.http_url(), server.admin_url());
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
    tx.commit().await.map_err(|e| failed(e.into()))?;
    app.count_contents().await.map_err(failed)?;
    for source in sources {
        match Store::open(&source.url) {
            Ok(store) => app.run_source(source, store),
            Err(error) if configured.contains(&source) => return Err(unusable(&source, error)),
            Err(error) => {
                let reason = common::error::chain(&error);
                tracing::error!(bucket = %source.bucket, reason, "a source is not served; add it again when it is back");
            }
        }
    }
    Ok(())
}

fn unusable(source: &Source, error: SourceError) -> StartError {
    StartError::failed(format!("opening the source of bucket {}", source.bucket), error)
}
