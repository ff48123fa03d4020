//! Sends the load: workers with one connection each, and in an open loop a pacer that no answer holds up.
//!
//! An open loop sends late rather than never: arrivals wait in a queue until a connection is free, and their
//! waiting counts as response time. Only beyond [`Plan::in_flight_max`] are arrivals dropped, and counted.
//!
//! The workers of one thread share what they measure, so more connections take no more histograms.
//!
//! What operations across sites need, a worker makes ready between two operations ([`lines`]): it is in nobody's service
//! time, but in an open loop an arrival that waits for it waits on.

mod hashes;
mod lines;
mod worker;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use common::hash::ContentHash;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::content::Content;
use crate::generator::{Evidence, Generator, ThreadClock, ThreadTime};
use crate::latency::Latency;
use crate::measure::Tally;
use crate::pacer::{Queue, Span, pace};
use crate::plan::{Op, Pace, Plan};
use crate::progress::Progress;
use crate::protocol::EtagRule;
use crate::schedule::Schedule;
use crate::target::{Target, TargetError, resolve};
use crate::visit::VisitError;
use crate::wire::WireError;
use crate::workload::Popular;
use hashes::Hashes;
use worker::{Left, Worker};

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("the load generator cannot start its threads")]
    Threads(#[source] std::io::Error),
    #[error("a thread of the load generator died")]
    Died,
    #[error("{what} failed")]
    Request { what: String, source: WireError },
    #[error("the object {key} is not what was put: its hash is {got}, not {expected}")]
    WrongHash { key: String, got: ContentHash, expected: ContentHash },
    #[error("{protocol} targets have no {op}", op = .op.as_str())]
    NoOperation { protocol: &'static str, op: Op },
    #[error(
        "to collect, {client} needs a content of another site, and no client with a gateway there is known; drive a system of          two sites by its endpoints.json, with --provider CLIENT if its file names no such client"
    )]
    NoProvider { client: String },
    #[error(
        "to roam, {client} needs a card; make one with `dozo card new FILE --client {client}` and give it with --card FILE"
    )]
    NoCard { client: String },
    #[error("roaming cannot begin")]
    Visit(#[source] VisitError),
    #[error("the folder {path} of the server's files cannot be written", path = .path.display())]
    Root { path: std::path::PathBuf, source: std::io::Error },
    #[error("{needed} bytes are to be prepared, and only {free} are free at {place}")]
    Space { needed: u64, free: u64, place: String },
}

/// What a run sent and got.
pub struct Load {
    pub tally: Tally,
    /// Length of the measured part: the plan's duration, or until the last answer if that came later.
    pub elapsed: Duration,
    /// Arrivals that were never sent.
    pub dropped: u64,
    /// How late the pacer itself was: the harness's own error.
    pub lag: Latency,
    /// What the generator's threads did, warm-up included.
    pub threads: Vec<ThreadTime>,
    /// Last acknowledged content of each key that was put and not deleted since.
    pub written: Vec<(String, Content)>,
    /// Keys whose last change had no answer: they may have a content.
    pub unsure: Vec<String>,
    /// What was published at another site.
    pub published: Vec<Publications>,
    /// Reads that were to ask for an object nobody asked for, when all of these had been asked for.
    pub one_hits_missing: u64,
}

/// Contents that were published for one worker to collect: numbers 0 to `count`, unless a PUT failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publications {
    pub worker: u64,
    pub count: u64,
}

impl Load {
    /// What nobody did, in so long a time.
    pub fn none(elapsed: Duration) -> Self {
        Self {
            tally: Tally::default(),
            elapsed,
            dropped: 0,
            lag: Latency::default(),
            threads: Vec::new(),
            written: Vec::new(),
            unsure: Vec::new(),
            published: Vec::new(),
            one_hits_missing: 0,
        }
    }

    /// Whether the load generator itself was the limit.
    pub fn generator(&self) -> Generator {
        let total = self.tally.total(None);
        Generator::judge(Evidence {
            threads: self.threads.clone(),
            requests: total.requests,
            dropped: self.dropped,
            lag_p99_us: self.lag.summary().p99_us,
            response_p99_us: total.response.summary().p99_us,
        })
    }
}

/// Where a load stands among others, and who looks on.
#[derive(Clone, Default)]
pub struct Stage {
    /// The zero of all times; the load begins at once without it.
    pub start: Option<Instant>,
    /// Number of the first worker: what workers put depends on it, and no two of a run may have the same.
    pub first_worker: u64,
    /// Is told each second what was done in it.
    pub progress: Option<Arc<Progress>>,
    /// Numbers of the objects that are asked for once: all of the plan's without it.
    pub one_hits: Option<Range<u64>>,
    /// How ETags follow from the bytes, if that showed when objects were put.
    pub etags: Option<EtagRule>,
}

/// What all workers share.
struct Shared {
    plan: Plan,
    target: Target,
    span: Span,
    queue: Queue,
    popular: Popular,
    /// Without it, ETags of what was prepared tell nothing.
    etags: Option<EtagRule>,
    one_hits: Range<u64>,
    /// Of these so many were asked for, or would have been.
    one_hits_used: AtomicU64,
    keys_per_worker: usize,
}

/// What the workers of one thread share.
struct Local {
    tally: Tally,
    hashes: Option<Hashes>,
    last_answer: Instant,
}

/// A worker's number, and the addresses and hosts that it is at.
struct Place {
    worker: u64,
    gateway: (SocketAddr, String),
    /// A gateway of who publishes what is to be collected.
    provider: Option<(SocketAddr, String)>,
}

/// What is left of a thread.
struct Done {
    tally: Tally,
    last_answer: Instant,
    written: Vec<(String, Content)>,
    unsure: Vec<String>,
    published: Vec<Publications>,
}

/// From the decision to begin to the beginning, where something is to be made ready before: for the slowest agent to have
/// its order, for visits and publications.
const LEAD: Duration = Duration::from_millis(1500);

/// When a load of this plan can begin, if that is decided now.
pub fn start_time(plan: &Plan, by_agents: bool) -> Instant {
    let lead = if by_agents || plan.needs_time_before() { LEAD } else { Duration::ZERO };
    Instant::now() + lead
}

/// Keys that each worker writes, again and again: the number of names stays bounded, whatever the connections.
fn keys_per_worker(plan: &Plan) -> usize {
    const ALL_MAX: usize = 1 << 16;
    const EACH_MAX: usize = 256;
    if !plan.ops().iter().any(|op| op.writes() || *op == Op::List) {
        return 0;
    }
    (ALL_MAX / plan.connections.max(1)).clamp(4, EACH_MAX)
}

/// Drives `target` as planned; what the plan prepares has to be there.
pub async fn drive(plan: &Plan, target: &Target, stage: &Stage) -> Result<Load, LoadError> {
    let mut gateways = Vec::new();
    for url in &target.gateways {
        gateways.push(resolve(url).await?);
    }
    let mut providers = Vec::new();
    for url in target.provider.iter().flat_map(|provider| &provider.gateways) {
        providers.push(resolve(url).await?);
    }
    let start = stage.start.unwrap_or_else(|| start_time(plan, false));
    let measured_from = start + plan.warmup;
    let span = Span { start, measured_from, end: measured_from + plan.duration };
    let shared = Arc::new(Shared {
        plan: plan.clone(),
        target: target.clone(),
        span,
        queue: Queue::default(),
        popular: plan.popular(),
        etags: target.protocol.etags().or(stage.etags),
        one_hits: stage.one_hits.clone().unwrap_or(0..plan.one_hit_objects()),
        one_hits_used: AtomicU64::new(0),
        keys_per_worker: keys_per_worker(plan),
    });
    let mut answers = Vec::new();
    let threads = plan.threads.clamp(1, plan.connections.max(1));
    for thread in 0..threads {
        let connections = (thread..plan.connections).step_by(threads);
        let places: Vec<_> = connections
            .map(|index| Place {
                worker: stage.first_worker + index as u64,
                gateway: gateways[index % gateways.len()].clone(),
                provider: providers.get(index % providers.len().max(1)).cloned(),
            })
            .collect();
        let (sender, receiver) = oneshot::channel();
        let (shared, progress) = (shared.clone(), stage.progress.clone());
        std::thread::Builder::new()
            .name(format!("load-{thread}"))
            .spawn(move || {
                let clock = ThreadClock::start();
                let done = run_thread(&shared, places, progress);
                drop(sender.send((done, clock.read())));
            })
            .map_err(LoadError::Threads)?;
        answers.push(receiver);
    }
    let lag = start_pacer(&shared, stage)?;
    let mut load = Load::none(plan.duration);
    for answer in answers {
        let (done, time) = answer.await.map_err(|_| LoadError::Died)?;
        let done = done.map_err(LoadError::Threads)?;
        load.threads.push(time);
        load.elapsed = load.elapsed.max(done.last_answer.saturating_duration_since(measured_from));
        load.tally.merge(done.tally);
        load.written.extend(done.written);
        load.unsure.extend(done.unsure);
        load.published.extend(done.published);
    }
    if let Ok(lag) = lag.await {
        load.lag = lag;
    }
    load.dropped = shared.queue.never_sent();
    let used = shared.one_hits_used.load(std::sync::atomic::Ordering::Relaxed);
    load.one_hits_missing = used.saturating_sub(shared.one_hits.end - shared.one_hits.start);
    Ok(load)
}

/// Starts the clock of an open loop; answers with how late it was.
fn start_pacer(shared: &Arc<Shared>, stage: &Stage) -> Result<oneshot::Receiver<Latency>, LoadError> {
    let (sender, lag) = oneshot::channel();
    let plan = &shared.plan;
    let schedule: Box<dyn Iterator<Item = Duration> + Send> = match (plan.pace, &plan.trace) {
        (Pace::Open { rate, arrivals }, _) => {
            Box::new(Schedule::new(arrivals, rate, plan.seed ^ stage.first_worker))
        }
        (Pace::Trace { .. }, Some(trace)) => {
            let trace = trace.clone();
            Box::new((0..trace.requests.len()).map(move |nth| trace.requests[nth].at))
        }
        _ => return Ok(lag),
    };
    let shared = shared.clone();
    std::thread::Builder::new()
        .name("pacer".into())
        .spawn(move || {
            let lag = pace(&shared.queue, schedule, shared.plan.in_flight_max, shared.span);
            drop(sender.send(lag));
        })
        .map_err(LoadError::Threads)?;
    Ok(lag)
}

/// All workers of one thread, on a runtime of their own: a worker and its connection never change threads.
fn run_thread(
    shared: &Arc<Shared>,
    places: Vec<Place>,
    progress: Option<Arc<Progress>>,
) -> std::io::Result<Done> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut tally = Tally::default();
    tally.timeline.tell(progress);
    let local = Local { tally, hashes: shared.etags.map(Hashes::new), last_answer: shared.span.start };
    let local = Rc::new(RefCell::new(local));
    let workers = LocalSet::new();
    let tasks: Vec<_> = places
        .into_iter()
        .map(|Place { worker, gateway, provider }| {
            let at = (gateway.0, gateway.1.as_str());
            let provider = provider.as_ref().map(|(address, host)| (*address, host.as_str()));
            let worker = Worker::new(worker, at, provider, shared.clone(), local.clone());
            workers.spawn_local(worker.run())
        })
        .collect();
    let (mut written, mut unsure, mut published) = (Vec::new(), Vec::new(), Vec::new());
    runtime.block_on(workers.run_until(async {
        for task in tasks {
            match task.await {
                Ok(Left { keys, publications }) => {
                    written.extend(keys.all_present().map(|(name, version)| (name, version.content)));
                    unsure.extend(keys.given_up().cloned());
                    published.extend(publications);
                }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }));
    let Some(Local { tally, last_answer, .. }) = Rc::into_inner(local).map(RefCell::into_inner) else {
        return Err(std::io::Error::other("a worker is still at work"));
    };
    Ok(Done { tally, last_answer, written, unsure, published })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Verify;
    use crate::schedule::Arrivals;
    use crate::workload::{Size, Workload};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const BODY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    /// A server that answers at once, except that it stands still from `stall_from` to `stall_to`.
    async fn stalling_server(stall_from: Duration, stall_to: Duration) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let start = tokio::time::Instant::now();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(async move {
                    let mut buffer = vec![0u8; 4096];
                    // A request is short and comes in one piece here.
                    while stream.read(&mut buffer).await.is_ok_and(|len| len > 0) {
                        let now = tokio::time::Instant::now();
                        if now >= start + stall_from && now < start + stall_to {
                            tokio::time::sleep_until(start + stall_to).await;
                        }
                        if stream.write_all(BODY.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Target::at(&url, "bob", "token")
    }

    fn plan(pace: Pace, connections: usize) -> Plan {
        Plan {
            workload: Workload::gets(Size::list(&[2]), 10),
            trace: None,
            connections,
            threads: 1,
            pace,
            in_flight_max: 10_000,
            warmup: Duration::ZERO,
            duration: Duration::from_secs(4),
            request_time_max: Duration::from_secs(10),
            verify: Verify::Off,
            seed: 1,
        }
    }

    async fn measure(plan: &Plan) -> Load {
        let target = stalling_server(Duration::from_millis(500), Duration::from_millis(2500)).await;
        drive(plan, &target, &Stage::default()).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_open_loop_shows_a_stall_that_service_time_hides() {
        let pace = Pace::Open { rate: 200.0, arrivals: Arrivals::Constant };
        let load = measure(&plan(pace, 4)).await;
        let total = load.tally.total(None);
        assert_eq!((total.requests, load.dropped, load.tally.error_count(None)), (800, 0, 0));
        let (response, service) = (total.response.at(0.99), total.service.at(0.99));
        assert!(response >= Duration::from_millis(1700), "p99 of the response time is {response:?}");
        assert!(service < Duration::from_millis(200), "p99 of the service time is {service:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn arrivals_beyond_the_cap_are_dropped_and_counted() {
        let pace = Pace::Open { rate: 200.0, arrivals: Arrivals::Constant };
        let load = measure(&Plan { in_flight_max: 50, ..plan(pace, 4) }).await;
        let answered = load.tally.total(None).requests;
        assert_eq!(answered + load.dropped, 800);
        // About 400 arrive in the 2 s of the stall, and 50 of them may wait.
        assert!((300..400).contains(&load.dropped), "{} dropped", load.dropped);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_closed_loop_keeps_each_connection_busy_and_counts_refusals() {
        let load = measure(&plan(Pace::Closed, 2)).await;
        let total = load.tally.total(None);
        assert!(total.requests > 1000, "{} requests", total.requests);
        assert_eq!(total.response.at(1.0), total.service.at(1.0));
        assert!(
            total.service.at(1.0) > Duration::from_millis(1900),
            "the stall is one answer per connection"
        );
        assert_eq!(load.tally.deliveries.whole.len(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn wrong_bytes_and_missing_deliveries_are_seen() {
        let plan =
            Plan { duration: Duration::from_millis(300), verify: Verify::Full, ..plan(Pace::Closed, 1) };
        let target = stalling_server(Duration::ZERO, Duration::ZERO).await;
        let load = drive(&plan, &target, &Stage::default()).await.unwrap();
        assert!(load.tally.wrong > 0);
        assert!(!load.tally.wrong_examples.is_empty());
    }
}
