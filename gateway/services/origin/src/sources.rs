//! The sources that are open, what their workers share with requests, and how far they are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use common::api::origin::{HeldWithdrawals, ScanProgress, Source, SourceState};
use common::backoff::Backoff;
use common::error::chain;
use common::id::BucketName;
use common::name::ContentName;
use common::time::UnixMillis;

use crate::limit::{Busy, Limit, Permit};
use crate::metrics::SourceMetrics;
use crate::server::App;
use crate::source::{Facts, Store};
use crate::watch::Change;
use crate::{look, scan, withdraw};

/// Objects that wait to be looked at again; what does not fit is found by the next scan.
const REREADS: usize = 64;
/// Changes that wait to be looked at; when there are more, all is looked at.
const CHANGES: usize = 4096;
/// Longest wait for a read's turn: below the time that a collector waits for an answer.
const TURN_TIME_MAX: Duration = Duration::from_secs(5);

/// A source that is being kept registered.
pub struct OpenSource {
    pub source: Source,
    pub store: Store,
    /// Objects whose bytes were found to differ from what was registered.
    pub reread: mpsc::Sender<String>,
    /// What may have changed, as its folder is watched.
    pub changes: mpsc::Sender<Change>,
    /// Wakes the scanner: at once, or when it has rested a little.
    pub scan_now: Notify,
    pub scan_soon: Notify,
    /// The operator's word for the next scan: what it does not find is gone.
    withdraw_all: AtomicBool,
    /// Held from the reading of objects to their commit, so that nothing is registered by two at a time.
    pub registering: tokio::sync::Mutex<()>,
    /// Contents that were withdrawn one by one since the last scan came to its end.
    pub withdrawn: AtomicU64,
    pub metrics: SourceMetrics,
    reads: Limit,
    progress: Mutex<Progress>,
    /// Ends its worker.
    stop: CancellationToken,
}

/// How far a source is, for people and for the next scan.
#[derive(Debug, Clone)]
pub struct Progress {
    pub state: SourceState,
    pub problem: Option<String>,
    pub watched: bool,
    pub scan: ScanProgress,
    pub held: Option<HeldWithdrawals>,
    /// When a scan first missed too much to be believed.
    pub held_since: Option<Instant>,
}

impl OpenSource {
    pub fn progress(&self) -> Progress {
        self.lock().clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.lock();
        change(&mut progress);
        self.metrics.scan_listed.set(progress.scan.listed as f64);
        self.metrics.scan_read.set(progress.scan.read as f64);
        self.metrics.withdrawals_held.set(progress.held.map_or(0.0, |held| held.contents as f64));
    }

    /// Waits for the right to read a part of a content: a turn among the source's reads, then one among all.
    pub async fn read_turn(&self, app: &App, name: &ContentName) -> Result<[Permit; 2], Busy> {
        let turns = async {
            let of_source = self.reads.acquire(name.key()).await?;
            Ok([of_source, app.reads.acquire(name.bucket()).await?])
        };
        let turn = match tokio::time::timeout(TURN_TIME_MAX, turns).await {
            Ok(turn) => turn,
            Err(_elapsed) => {
                let (inflight, waiting) = self.reads.load();
                Err(Busy { inflight, waiting })
            }
        };
        self.show_reads();
        turn
    }

    /// Brings the figures of reads up to date.
    pub fn show_reads(&self) {
        let (inflight, waiting) = self.reads.load();
        self.metrics.reads_inflight.set(inflight as f64);
        self.metrics.reads_waiting.set(waiting as f64);
    }

    pub fn reads(&self) -> (usize, usize) {
        self.reads.load()
    }

    /// Has an object looked at once it has not changed for a while.
    pub fn look_later(&self, location: &str) {
        // Whoever reads a full queue looks at everything.
        let _full = self.changes.try_send(Change::File(location.to_owned()));
    }

    /// Takes the operator's word that what the next scan does not find is gone.
    pub fn allow_withdrawals(&self) {
        self.withdraw_all.store(true, Ordering::Relaxed);
    }

    pub fn take_allowance(&self) -> bool {
        self.withdraw_all.swap(false, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By bucket: open sources, and those that could not be opened, with the reason.
#[derive(Clone, Default)]
pub struct Sources {
    open: Arc<Mutex<BTreeMap<BucketName, Arc<OpenSource>>>>,
    closed: Arc<Mutex<BTreeMap<BucketName, (Source, String)>>>,
}

impl Sources {
    pub fn get(&self, bucket: &str) -> Option<Arc<OpenSource>> {
        let bucket = BucketName::new(bucket).ok()?;
        lock(&self.open).get(&bucket).cloned()
    }

    pub fn open(&self) -> Vec<Arc<OpenSource>> {
        lock(&self.open).values().cloned().collect()
    }

    pub fn closed(&self) -> Vec<(Source, String)> {
        lock(&self.closed).values().cloned().collect()
    }

    pub fn forget(&self, bucket: &BucketName) {
        lock(&self.closed).remove(bucket);
        if let Some(open) = lock(&self.open).remove(bucket) {
            open.metrics.clear();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a source registered from now on, or goes on removing it. One of the same bucket is replaced: its worker has
/// ended before the new one begins.
pub fn run(app: &App, source: Source, store: Store, removing: bool) {
    let (reread, rereads) = mpsc::channel(REREADS);
    let (changes, changed) = mpsc::channel(CHANGES);
    let inflight_max = source.read_concurrency.map_or(app.read_concurrency, |n| n as usize);
    let state = if removing { SourceState::Removing } else { SourceState::Waiting };
    let opened = Arc::new(OpenSource {
        reads: Limit::new(inflight_max, app.read_queue),
        metrics: app.metrics.source(&source.bucket),
        reread,
        changes,
        scan_now: Notify::new(),
        scan_soon: Notify::new(),
        withdraw_all: AtomicBool::new(false),
        registering: tokio::sync::Mutex::new(()),
        withdrawn: AtomicU64::new(0),
        progress: Mutex::new(Progress {
            state,
            problem: None,
            watched: false,
            scan: ScanProgress::default(),
            held: None,
            held_since: None,
        }),
        stop: app.stop.child_token(),
        source,
        store,
    });
    lock(&app.sources.closed).remove(&opened.source.bucket);
    let replaced = lock(&app.sources.open).insert(opened.source.bucket.clone(), opened.clone());
    let (app, stop) = (app.clone(), opened.stop.clone());
    app.workers.clone().spawn(async move {
        if let Some(replaced) = replaced {
            replaced.stop.cancel();
            // What it is registering comes first.
            drop(replaced.registering.lock().await);
        }
        let work = async {
            if removing {
                withdraw::remove(&app, &opened).await;
            } else {
                tokio::join!(scan::run(&app, &opened), look::run(&app, &opened, rereads, changed));
            }
        };
        stop.run_until_cancelled(work).await;
    });
}

/// Tries to open a source that is away until it is there.
pub fn await_return(app: &App, source: Source, reason: String) {
    tracing::error!(bucket = %source.bucket, reason, "a source is not served until it is back");
    lock(&app.sources.closed).insert(source.bucket.clone(), (source.clone(), reason));
    let (app, stop) = (app.clone(), app.stop.clone());
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
    let opening = async move {
        // Whoever removes it, or adds it again, ends the waiting.
        let is_awaited = || lock(&app.sources.closed).get(&source.bucket).is_some_and(|(s, _)| *s == source);
        while is_awaited() {
            tokio::time::sleep(backoff.next_delay()).await;
            let url = source.url.clone();
            match tokio::task::spawn_blocking(move || Store::open(&url)).await {
                Ok(Ok(store)) if is_awaited() => return run(&app, source.clone(), store, false),
                Ok(Err(error)) => {
                    tracing::debug!(bucket = %source.bucket, reason = chain(&error), "still away")
                }
                Ok(Ok(_)) | Err(_) => {}
            }
        }
    };
    tokio::spawn(async move { stop.run_until_cancelled(opening).await });
}

impl App {
    /// Tells people how a source is.
    pub fn tell(&self, open: &OpenSource, state: SourceState, problem: Option<String>) {
        open.change(|progress| {
            progress.state = state;
            progress.problem = problem;
        });
        let all = self.sources.open();
        let scanned = all.iter().filter(|s| s.lock().state == SourceState::Scanned).count();
        let closed = lock(&self.sources.closed).len();
        self.health.note("sources", format!("{scanned} of {} scanned", all.len() + closed));
    }

    /// Whether an object is not being written to: stores have whole objects only, files may be at work.
    pub fn is_settled(&self, open: &OpenSource, facts: &Facts) -> bool {
        open.store.folder().is_none() || self.now().since(facts.modified) >= self.settle()
    }

    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }
}
