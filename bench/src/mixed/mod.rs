//! A load that checks everything, for as long as something else happens to the system: a node added, drained, killed, a
//! gateway restarted.
//!
//! Workers PUT, GET (whole and in ranges), HEAD, LIST and DELETE; each has keys of its own, so what it must read is
//! known exactly ([`model`]); all of them also read contents that were put once. Whatever is not as it must be is a
//! [`Failure`], told in full. At the end everything is read back, and every delivery must be booked once at both
//! billing servers ([`bookings`]).
//!
//! The load runs on threads of its own: start it, do something to the system, mark phases, stop it.

pub mod bookings;
pub mod model;
pub mod recorder;
pub mod report;
pub mod session;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::client::CallError;
use common::hash::ContentHash;
use common::id::{ClientId, InvalidId};
use http::Method;
use serde::Serialize;

use crate::content::Content;
use crate::latency::Latency;
use crate::pacer::{Queue, Span, pace};
use crate::schedule::{Arrivals, Schedule};
use crate::target::{Client, Endpoints, ServerAddress, TargetError};
use crate::wire::{Connection, Outgoing, WireError, read_text};
use bookings::{Bookings, Expected, Ledgers};
use model::Keys;
use recorder::{Failure, Recorder};
use report::Report;
use session::{Ask, Gateways, Session};
use worker::{Done, Worker};

/// Ids of the contents that are put once lie apart from all others.
const STABLE_IDS: u64 = 1 << 39;
/// An open loop has no end of its own.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);
const CLEAN_TIME_MAX: Duration = Duration::from_secs(60);

/// A load that cannot be started or brought to its end.
#[derive(Debug, thiserror::Error)]
pub enum MixedError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Name(#[from] InvalidId),
    #[error("the load needs a client, and the site {site:?} has none")]
    NoClient { site: String },
    #[error("the load generator cannot start its threads")]
    Threads(#[source] std::io::Error),
    #[error("a thread of the load generator died")]
    Died,
    #[error("{what} failed")]
    Request { what: String, source: WireError },
    #[error("the billing servers cannot be asked")]
    Books(#[source] CallError),
}

/// Where the load goes: one site's gateways, as clients at home there.
#[derive(Debug, Clone)]
pub struct MixedTarget {
    pub gateways: Vec<ServerAddress>,
    /// Each has a bucket; workers take turns.
    pub clients: Vec<Client>,
    /// `None`: bookings are not compared.
    pub ledgers: Option<Ledgers>,
}

impl MixedTarget {
    /// All gateways of a site and all its clients, or those of `clients` that are named.
    pub fn of(endpoints: &Endpoints, site: &str, clients: &[String]) -> Result<Self, MixedError> {
        let here = endpoints.sites.iter().find(|s| s.name == site && !s.gateways.is_empty());
        let here = here.ok_or_else(|| TargetError::NoSite { site: site.to_owned() })?;
        let named = |client: &&Client| clients.is_empty() || clients.contains(&client.name);
        let at_home = endpoints.clients.iter().filter(|client| client.site == site);
        let clients: Vec<Client> = at_home.filter(named).cloned().collect();
        if clients.is_empty() {
            return Err(MixedError::NoClient { site: site.to_owned() });
        }
        let ledgers = match (&endpoints.service_billing, &endpoints.content_billing) {
            (Some(service), Some(content)) => Some(Ledgers {
                search: endpoints.search.http.clone(),
                service: service.http.clone(),
                content: content.http.clone(),
                admin_token: endpoints.admin_token.clone(),
            }),
            _ => None,
        };
        Ok(Self { gateways: here.gateways.clone(), clients, ledgers })
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct MixedPlan {
    pub workers: usize,
    /// Contents that are put once, before the load begins.
    pub stable: u64,
    pub keys_per_worker: usize,
    /// Content `i` has the size `sizes[i % sizes.len()]`.
    pub sizes_bytes: Vec<u64>,
    /// Threads of the load generator.
    pub threads: usize,
    /// Longest time for one request, repetitions included.
    #[serde(skip)]
    pub request_time_max: Duration,
    /// How long the books may take to agree after the last delivery.
    #[serde(skip)]
    pub books_time_max: Duration,
    pub seed: u64,
    /// Leave the contents where they are.
    pub keep: bool,
}

impl MixedPlan {
    pub fn size_of(&self, id: u64) -> u64 {
        self.sizes_bytes[(id % self.sizes_bytes.len() as u64) as usize]
    }

    pub fn stable_content(&self, id: u64) -> Content {
        Content::new(self.seed, STABLE_IDS + id, self.size_of(id))
    }
}

/// What all workers share.
struct Run {
    plan: MixedPlan,
    recorder: Recorder,
    gateways: Arc<Gateways>,
    /// Path before the number of a stable content, and their hashes.
    stable_prefix: String,
    stable: Vec<ContentHash>,
    queue: Queue,
    open_loop: AtomicBool,
    stopping: AtomicBool,
    /// Nobody waits for the result any more.
    abandoned: AtomicBool,
}

impl Run {
    fn is_open(&self) -> bool {
        self.open_loop.load(Ordering::Relaxed)
    }

    fn stable_path(&self, id: u64) -> String {
        format!("{}{id}", self.stable_prefix)
    }

    /// When the next request is meant to start; `None` when the load is stopped.
    async fn next_start(&self) -> Option<Instant> {
        let next = match self.is_open() {
            true => self.queue.next().await.map(|arrival| arrival.intended),
            false => Some(Instant::now()),
        };
        next.filter(|_| !self.stopping.load(Ordering::Relaxed))
    }
}

/// A load that runs.
pub struct MixedLoad {
    run: Arc<Run>,
    target: MixedTarget,
    bookings: Option<Bookings>,
    threads: Vec<JoinHandle<std::io::Result<Vec<Done>>>>,
    pacer: Mutex<Option<JoinHandle<Latency>>>,
}

impl MixedLoad {
    /// Puts the stable contents and starts the workers, in a closed loop; that is also the name of the first phase. Blocks:
    /// not to be called from a task.
    pub fn start(target: &MixedTarget, plan: MixedPlan) -> Result<Self, MixedError> {
        let plan =
            MixedPlan { workers: plan.workers.max(1), keys_per_worker: plan.keys_per_worker.max(1), ..plan };
        let runtime = runtime().map_err(MixedError::Threads)?;
        let (gateways, bookings, stable) = runtime.block_on(async {
            let gateways = Arc::new(Gateways::resolve(&target.gateways).await?);
            let clients = target.clients.iter().map(|client| ClientId::new(&client.name));
            let clients: HashSet<ClientId> = clients.collect::<Result<_, _>>()?;
            let stable = prepare(target, &plan, &gateways).await?;
            let bookings = match &target.ledgers {
                Some(ledgers) => Some(Bookings::from_now(ledgers, clients).await.map_err(MixedError::Books)?),
                None => None,
            };
            Ok::<_, MixedError>((gateways, bookings, stable))
        })?;
        let threads = plan.threads.clamp(1, plan.workers);
        let run = Arc::new(Run {
            stable_prefix: stable_prefix(target, &plan),
            recorder: Recorder::new("closed loop"),
            gateways,
            stable,
            queue: Queue::default(),
            open_loop: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            plan,
        });
        let mut load = Self {
            run: run.clone(),
            target: target.clone(),
            bookings,
            threads: Vec::new(),
            pacer: Mutex::default(),
        };
        for thread in 0..threads {
            let workers = (thread..run.plan.workers).step_by(threads);
            let workers = workers.map(|index| load.worker(index)).collect::<Result<Vec<_>, _>>()?;
            let run = run.clone();
            let handle = std::thread::Builder::new()
                .name(format!("mixed-{thread}"))
                .spawn(move || run_thread(run, workers, thread == 0))
                .map_err(MixedError::Threads)?;
            load.threads.push(handle);
        }
        Ok(load)
    }

    fn worker(&self, index: usize) -> Result<Worker, MixedError> {
        let client = &self.target.clients[index % self.target.clients.len()];
        let prefix = format!("{:016x}/w{index}/", self.run.plan.seed);
        let keys = Keys::new(&bucket_of(client), prefix, self.run.plan.keys_per_worker);
        let session = session(&self.run.gateways, index, client)?;
        Ok(Worker::new(index as u64, self.run.clone(), session, keys))
    }

    /// Requests come at this rate from now on, whatever the answers do, no longer each when a worker has its answer.
    pub fn set_rate(&self, rate: f64) -> Result<(), MixedError> {
        let mut pacer = self.pacer.lock().unwrap_or_else(PoisonError::into_inner);
        if pacer.is_some() {
            return Ok(());
        }
        let run = self.run.clone();
        let schedule = Schedule::new(Arrivals::Poisson, rate, run.plan.seed);
        let now = Instant::now();
        let span = Span { start: now, measured_from: now, end: now + FOR_EVER };
        let handle = std::thread::Builder::new()
            .name("mixed-pacer".into())
            // No arrival is dropped: what was to be asked is asked, however late.
            .spawn(move || pace(&run.queue, schedule, u64::MAX, span))
            .map_err(MixedError::Threads)?;
        *pacer = Some(handle);
        self.run.open_loop.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Watches for this long how many requests succeed in a second. Blocks.
    pub fn requests_per_s(&self, watched: Duration) -> f64 {
        let (before, start) = (self.requests(), Instant::now());
        std::thread::sleep(watched);
        (self.requests() - before) as f64 / start.elapsed().as_secs_f64()
    }

    /// A new phase begins.
    pub fn mark(&self, phase: &str) {
        self.run.recorder.mark(phase);
    }

    /// Requests that succeeded so far.
    pub fn requests(&self) -> u64 {
        self.run.recorder.requests()
    }

    pub fn failure_count(&self) -> u64 {
        self.run.recorder.failure_count()
    }

    /// The failures so far, the first thousand of them.
    pub fn failures(&self) -> Vec<Failure> {
        self.run.recorder.failures()
    }

    /// Ends the load, reads everything back and compares the books. Blocks: not to be called from a task.
    pub fn stop(mut self) -> Result<Report, MixedError> {
        self.run.recorder.mark("read back");
        let lag = self.end_loop();
        let mut expected = Expected::default();
        let mut paths = Vec::new();
        for thread in std::mem::take(&mut self.threads) {
            let done = thread.join().map_err(|_| MixedError::Died)?.map_err(MixedError::Threads)?;
            for worker in done {
                expected.begun.extend(worker.deliveries.begun);
                expected.whole.extend(worker.deliveries.whole);
                expected.split += worker.deliveries.split;
                paths.extend(worker.paths);
            }
        }
        expected.unanswered = self.run.gateways.unanswered();
        let (phases, timeline) = self.run.recorder.finish();
        let runtime = runtime().map_err(MixedError::Threads)?;
        let limit = self.run.plan.books_time_max;
        let bookings = match &mut self.bookings {
            Some(bookings) => {
                Some(runtime.block_on(bookings.compare(&expected, limit)).map_err(MixedError::Books)?)
            }
            None => None,
        };
        let left_behind = if self.run.plan.keep { 0 } else { runtime.block_on(self.clean(paths))? };
        Ok(Report::new(report::Outcome {
            plan: self.run.plan.clone(),
            requests: self.run.recorder.requests(),
            failure_count: self.run.recorder.failure_count(),
            failures: self.run.recorder.failures(),
            repeated: self.run.gateways.repeated(),
            pacer_lag: lag.map(|lag| lag.summary()),
            phases,
            timeline,
            bookings,
            left_behind,
        }))
    }

    fn end_loop(&self) -> Option<Latency> {
        self.run.stopping.store(true, Ordering::Relaxed);
        self.run.queue.close();
        let pacer = self.pacer.lock().unwrap_or_else(PoisonError::into_inner).take();
        pacer.and_then(|pacer| pacer.join().ok())
    }

    /// Answers with the number of contents that could not be removed.
    async fn clean(&self, paths: Vec<String>) -> Result<u64, MixedError> {
        let mut left = 0;
        let stable = (0..self.run.plan.stable).map(|id| self.run.stable_path(id));
        let paths: Vec<String> = paths.into_iter().chain(stable).collect();
        for client in &self.target.clients {
            let mut session = session(&self.run.gateways, 0, client)?;
            let buckets = [bucket_of(client), stable_bucket(&self.target)];
            let is_first = client.name == self.target.clients[0].name;
            let own = |path: &&String| {
                let of = |bucket: &String| path.starts_with(&format!("/v1/contents/{bucket}/"));
                of(&buckets[0]) || is_first && of(&buckets[1])
            };
            for path in paths.iter().filter(own) {
                let gone = async {
                    let response = session.send(&Ask::new(Method::DELETE, path)).await?;
                    read_text(response.into_body()).await
                };
                left += u64::from(!matches!(tokio::time::timeout(CLEAN_TIME_MAX, gone).await, Ok(Ok(_))));
            }
        }
        Ok(left)
    }
}

impl Drop for MixedLoad {
    fn drop(&mut self) {
        // A load that was stopped has no threads any more.
        self.run.abandoned.store(true, Ordering::Relaxed);
        self.end_loop();
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// All workers of one thread; one of the threads also watches the gateways.
fn run_thread(run: Arc<Run>, workers: Vec<Worker>, watches: bool) -> std::io::Result<Vec<Done>> {
    Ok(runtime()?.block_on(async {
        let watch = async {
            if watches {
                run.gateways.watch().await;
            }
            std::future::pending().await
        };
        let all = futures_util::future::join_all(workers.into_iter().map(Worker::work));
        tokio::select! {
            done = all => done,
            () = watch => Vec::new(),
        }
    }))
}

fn bucket_of(client: &Client) -> String {
    format!("bench-{}", client.name)
}

/// The first client's; everybody may read it.
fn stable_bucket(target: &MixedTarget) -> String {
    format!("bench-{}-stable", target.clients[0].name)
}

fn stable_prefix(target: &MixedTarget, plan: &MixedPlan) -> String {
    format!("/v1/contents/{}/{:016x}/s", stable_bucket(target), plan.seed)
}

fn session(gateways: &Arc<Gateways>, home: usize, client: &Client) -> Result<Session, MixedError> {
    Session::new(gateways.clone(), home, &client.token).map_err(|error| MixedError::Request {
        what: format!("making a connection for the client {}", client.name),
        source: error.into(),
    })
}

/// Makes the buckets and puts the stable contents; answers with their hashes.
async fn prepare(
    target: &MixedTarget,
    plan: &MixedPlan,
    gateways: &Arc<Gateways>,
) -> Result<Vec<ContentHash>, MixedError> {
    let failed = |what: String| |source| MixedError::Request { what, source };
    for (index, client) in target.clients.iter().enumerate() {
        let mut buckets = vec![(bucket_of(client), "private")];
        if index == 0 {
            buckets.push((stable_bucket(target), "public"));
        }
        let (address, host) = crate::target::resolve(&target.gateways[0].http).await?;
        let connection = Connection::new(address, &host, &client.token).map_err(WireError::from);
        let mut connection = connection.map_err(failed(format!("a connection for {}", client.name)))?;
        for (bucket, visibility) in buckets {
            let body = Outgoing::Text(format!(r#"{{"visibility":"{visibility}"}}"#).into());
            let made = async {
                let response = connection.send(Method::PUT, &format!("/v1/buckets/{bucket}"), body).await?;
                read_text(response.into_body()).await
            };
            made.await.map_err(failed(format!("making the bucket {bucket}")))?;
        }
    }
    let mut session = session(gateways, 0, &target.clients[0])?;
    let prefix = stable_prefix(target, plan);
    let mut hashes = Vec::new();
    for id in 0..plan.stable {
        let content = plan.stable_content(id);
        let path = format!("{prefix}{id}");
        let ask = Ask { body: Some(content), ..Ask::new(Method::PUT, &path) };
        let put = async {
            let response = session.send(&ask).await?;
            read_text(response.into_body()).await
        };
        put.await.map_err(failed(format!("PUT {path}")))?;
        hashes.push(content.hash());
    }
    Ok(hashes)
}
