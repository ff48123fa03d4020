//! Sends the load: workers with one connection each, and in an open loop a pacer that no answer holds up.
//!
//! An open loop sends late rather than never: arrivals wait in a queue until a connection is free, and their
//! waiting counts as response time. Only beyond [`Plan::in_flight_max`] are arrivals dropped, and counted.
//!
//! The workers of one thread share what they measure, so more connections take no more histograms.

mod hashes;
mod worker;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use common::hash::ContentHash;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::content::Content;
use crate::generator::{Evidence, Generator, ThreadClock, ThreadTime};
use crate::latency::Latency;
use crate::measure::Tally;
use crate::pacer::{Queue, Span, pace};
use crate::plan::{Op, Pace, Plan};
use crate::progress::Progress;
use crate::schedule::Schedule;
use crate::target::{Target, TargetError, resolve};
use crate::wire::WireError;
use crate::workload::Popular;
use hashes::Hashes;
use worker::Worker;

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
    /// Reads that were to ask for an object nobody asked for, when all of these had been asked for.
    pub one_hits_missing: u64,
}

impl Load {
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
}

/// What all workers share.
struct Shared {
    plan: Plan,
    target: Target,
    span: Span,
    queue: Queue,
    popular: Popular,
    one_hit_objects: u64,
    one_hits_used: AtomicU64,
    keys_per_worker: usize,
}

/// What the workers of one thread share.
struct Local {
    tally: Tally,
    hashes: Hashes,
    last_answer: Instant,
}

/// What is left of a thread.
struct Done {
    tally: Tally,
    last_answer: Instant,
    written: Vec<(String, Content)>,
    unsure: Vec<String>,
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
    let start = stage.start.unwrap_or_else(Instant::now);
    let measured_from = start + plan.warmup;
    let span = Span { start, measured_from, end: measured_from + plan.duration };
    let shared = Arc::new(Shared {
        plan: plan.clone(),
        target: target.clone(),
        span,
        queue: Queue::default(),
        popular: plan.popular(),
        one_hit_objects: plan.one_hit_objects(),
        one_hits_used: AtomicU64::new(0),
        keys_per_worker: keys_per_worker(plan),
    });
    let mut answers = Vec::new();
    let threads = plan.threads.clamp(1, plan.connections.max(1));
    for thread in 0..threads {
        let connections = (thread..plan.connections).step_by(threads);
        let places: Vec<_> = connections
            .map(|index| (stage.first_worker + index as u64, gateways[index % gateways.len()].clone()))
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
    let mut load = Load {
        tally: Tally::default(),
        elapsed: plan.duration,
        dropped: 0,
        lag: Latency::default(),
        threads: Vec::new(),
        written: Vec::new(),
        unsure: Vec::new(),
        one_hits_missing: 0,
    };
    for answer in answers {
        let (done, time) = answer.await.map_err(|_| LoadError::Died)?;
        let done = done.map_err(LoadError::Threads)?;
        load.threads.push(time);
        load.elapsed = load.elapsed.max(done.last_answer.saturating_duration_since(measured_from));
        load.tally.merge(done.tally);
        load.written.extend(done.written);
        load.unsure.extend(done.unsure);
    }
    if let Ok(lag) = lag.await {
        load.lag = lag;
    }
    load.dropped = shared.queue.never_sent();
    let used = shared.one_hits_used.load(std::sync::atomic::Ordering::Relaxed);
    load.one_hits_missing = used.saturating_sub(shared.one_hit_objects);
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
    places: Vec<(u64, (std::net::SocketAddr, String))>,
    progress: Option<Arc<Progress>>,
) -> std::io::Result<Done> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut tally = Tally::default();
    tally.timeline.tell(progress);
    let local = Local { tally, hashes: Hashes::default(), last_answer: shared.span.start };
    let local = Rc::new(RefCell::new(local));
    let workers = LocalSet::new();
    let tasks: Vec<_> = places
        .into_iter()
        .map(|(number, (address, host))| {
            let worker = Worker::new(number, address, &host, shared.clone(), local.clone());
            workers.spawn_local(worker.run())
        })
        .collect();
    let (mut written, mut unsure) = (Vec::new(), Vec::new());
    runtime.block_on(workers.run_until(async {
        for task in tasks {
            match task.await {
                Ok(keys) => {
                    written.extend(keys.all_present().map(|(name, version)| (name, version.content)));
                    unsure.extend(keys.given_up().cloned());
                }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }));
    let Some(Local { tally, last_answer, .. }) = Rc::into_inner(local).map(RefCell::into_inner) else {
        return Err(std::io::Error::other("a worker is still at work"));
    };
    Ok(Done { tally, last_answer, written, unsure })
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
