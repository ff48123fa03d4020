//! Sends the load: workers with one connection each, and in an open loop a pacer that no answer holds up.
//!
//! An open loop sends late rather than never: arrivals wait in a queue until a connection is free, and their
//! waiting counts as response time. Only beyond [`Plan::in_flight_max`] are arrivals dropped, and counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::api::gateway::Published;
use common::hash::ContentHash;
use tokio::sync::oneshot;

use crate::content::{Choices, Content};
use crate::exchange::{fetch, store};
use crate::generator::{Evidence, Generator, ThreadClock, ThreadTime};
use crate::latency::Latency;
use crate::measure::{Kind, SizeClass, Source, Tally, Times};
use crate::pacer::{Queue, Span, pace};
use crate::plan::{Mix, Op, Pace, Plan, Verify};
use crate::progress::Progress;
use crate::schedule::Schedule;
use crate::target::{Target, TargetError, resolve};
use crate::wire::{Connection, WireError};

/// Keys that each worker writes, again and again: the number of names stays bounded.
const KEYS_PER_WORKER: u64 = 256;
/// A worker without a connection tries again after this.
const RECONNECT_AFTER: Duration = Duration::from_millis(20);

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
    /// Last acknowledged content of each key that was put.
    pub written: Vec<(String, Content)>,
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

/// The path of a prepared object. The seed is part of it, so runs never meet.
pub fn object_path(target: &Target, plan: &Plan, object: u64) -> String {
    format!("/v1/contents/{}/{:016x}/o{object}", target.bucket, plan.seed)
}

fn written_path(target: &Target, plan: &Plan, worker: u64, nth: u64) -> String {
    format!("/v1/contents/{}/{:016x}/w{worker}-{}", target.bucket, plan.seed, nth % KEYS_PER_WORKER)
}

/// Drives `target` as planned. `expected` are the hashes of the prepared objects.
pub async fn drive(
    plan: &Plan,
    target: &Target,
    expected: Arc<Vec<ContentHash>>,
    stage: &Stage,
) -> Result<Load, LoadError> {
    let mut gateways = Vec::new();
    for url in &target.gateways {
        gateways.push(resolve(url).await?);
    }
    let start = stage.start.unwrap_or_else(Instant::now);
    let measured_from = start + plan.warmup;
    let span = Span { start, measured_from, end: measured_from + plan.duration };
    let queue = Arc::new(Queue::default());
    let mut answers = Vec::new();
    let threads = plan.threads.clamp(1, plan.connections.max(1));
    for thread in 0..threads {
        let mut workers = Vec::new();
        for index in (thread..plan.connections).step_by(threads) {
            let (address, host) = &gateways[index % gateways.len()];
            let connection = Connection::new(*address, host, &target.token).map_err(|error| {
                LoadError::Request { what: "making a connection".into(), source: error.into() }
            })?;
            let number = stage.first_worker + index as u64;
            let mut worker = Worker::new(number, connection, plan, target, expected.clone(), span);
            worker.tally.timeline.tell(stage.progress.clone());
            workers.push(worker);
        }
        let (sender, receiver) = oneshot::channel();
        let queue = queue.clone();
        std::thread::Builder::new()
            .name(format!("load-{thread}"))
            .spawn(move || {
                let clock = ThreadClock::start();
                let done = run_thread(workers, queue);
                drop(sender.send((done, clock.read())));
            })
            .map_err(LoadError::Threads)?;
        answers.push(receiver);
    }
    let (lag_sender, lag) = oneshot::channel();
    if let Pace::Open { rate, arrivals } = plan.pace {
        let (queue, in_flight_max) = (queue.clone(), plan.in_flight_max);
        let schedule = Schedule::new(arrivals, rate, plan.seed ^ stage.first_worker);
        std::thread::Builder::new()
            .name("pacer".into())
            .spawn(move || drop(lag_sender.send(pace(&queue, schedule, in_flight_max, span))))
            .map_err(LoadError::Threads)?;
    } else {
        drop(lag_sender);
    }
    let mut load = Load {
        tally: Tally::default(),
        elapsed: plan.duration,
        dropped: 0,
        lag: Latency::default(),
        threads: Vec::new(),
        written: Vec::new(),
    };
    for answer in answers {
        let (done, time) = answer.await.map_err(|_| LoadError::Died)?;
        load.threads.push(time);
        for worker in done.map_err(LoadError::Threads)? {
            load.elapsed = load.elapsed.max(worker.last_answer.saturating_duration_since(measured_from));
            load.tally.merge(worker.tally);
            load.written.extend(worker.written.into_iter().flatten());
        }
    }
    if let Ok(lag) = lag.await {
        load.lag = lag;
    }
    load.dropped = queue.never_sent();
    Ok(load)
}

/// All workers of one thread, on a runtime of their own: a worker and its connection never change threads.
fn run_thread(workers: Vec<Worker>, queue: Arc<Queue>) -> std::io::Result<Vec<Worker>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async {
        let tasks: Vec<_> =
            workers.into_iter().map(|worker| tokio::spawn(worker.run(queue.clone()))).collect();
        let mut done = Vec::new();
        for task in tasks {
            match task.await {
                Ok(worker) => done.push(worker),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        done
    }))
}

/// A request that succeeded.
struct Answered {
    /// Of the content, in bytes.
    len: u64,
    /// That went over the wire.
    bytes: u64,
    source: Source,
}

/// One connection's work and what it measured.
struct Worker {
    index: u64,
    connection: Connection,
    plan: Plan,
    target: Target,
    expected: Arc<Vec<ContentHash>>,
    span: Span,
    choices: Choices,
    puts: u64,
    last_answer: Instant,
    tally: Tally,
    /// By key: path and content that was acknowledged last; `None` after a PUT of unknown outcome.
    written: Vec<Option<(String, Content)>>,
    /// Answer to the last PUT and the key's place in `written`.
    unchecked: Option<(usize, Published)>,
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

impl Worker {
    fn new(
        index: u64,
        connection: Connection,
        plan: &Plan,
        target: &Target,
        expected: Arc<Vec<ContentHash>>,
        span: Span,
    ) -> Self {
        Self {
            index,
            connection,
            plan: plan.clone(),
            target: target.clone(),
            expected,
            span,
            choices: Choices::new(plan.seed, index),
            puts: 0,
            last_answer: span.start,
            tally: Tally::default(),
            written: Vec::new(),
            unchecked: None,
        }
    }

    async fn run(mut self, queue: Arc<Queue>) -> Self {
        let give_up = self.span.end + self.plan.request_time_max;
        tokio::time::sleep_until(self.span.start.into()).await;
        loop {
            let intended = match self.plan.pace {
                Pace::Closed => Some(Instant::now()).filter(|now| *now < self.span.end),
                Pace::Open { .. } if Instant::now() >= give_up => None,
                Pace::Open { .. } => queue.next().await,
            };
            let Some(intended) = intended else { return self };
            self.request(intended).await;
            if self.plan.pace != Pace::Closed {
                queue.served();
            }
        }
    }

    async fn request(&mut self, intended: Instant) {
        let op = match self.plan.mix {
            Mix::Get => Op::Get,
            Mix::Put => Op::Put,
            Mix::Mixed if self.choices.unit() < self.plan.get_share => Op::Get,
            Mix::Mixed => Op::Put,
        };
        let sent = Instant::now();
        let limit = self.plan.request_time_max;
        let answer = tokio::time::timeout(limit, async {
            match op {
                Op::Get => self.get().await,
                Op::Put => self.put().await,
            }
        });
        let answer = answer.await.unwrap_or(Err(WireError::Timeout(limit)));
        let now = Instant::now();
        self.check_put();
        let measured = intended >= self.span.measured_from;
        match answer {
            Ok(answered) => {
                if measured {
                    self.last_answer = now;
                }
                let kind = Kind { op, source: answered.source, size: SizeClass::of(answered.len) };
                let times = Times { response: now - intended, service: now - sent };
                self.tally.record(kind, answered.bytes, times, now - self.span.start, measured);
            }
            Err(error) => {
                if error.is_unanswered() {
                    self.connection.close();
                    self.tally.deliveries.unanswered += u64::from(op == Op::Get);
                }
                self.tally.error(op, error.code(), now - self.span.start);
                if matches!(error, WireError::Connect(_)) {
                    tokio::time::sleep(RECONNECT_AFTER).await;
                }
            }
        }
    }

    async fn get(&mut self) -> Result<Answered, WireError> {
        let object = self.choices.below(self.plan.objects);
        let content = self.plan.object(object);
        let path = object_path(&self.target, &self.plan, object);
        let expected = self.expected.get(object as usize);
        let fetched =
            fetch(&mut self.connection, &path, content, expected, self.plan.verify, &mut self.tally).await?;
        Ok(Answered { len: content.len, bytes: fetched.bytes, source: fetched.source })
    }

    async fn put(&mut self) -> Result<Answered, WireError> {
        let nth = self.puts;
        self.puts += 1;
        let content = self.plan.fresh(self.index, nth);
        let path = written_path(&self.target, &self.plan, self.index, nth);
        let slot = (nth % KEYS_PER_WORKER) as usize;
        if slot == self.written.len() {
            self.written.push(None);
        }
        self.written[slot] = None;
        let published = store(&mut self.connection, &path, content).await?;
        self.written[slot] = Some((path, content));
        self.unchecked = Some((slot, published));
        Ok(Answered { len: content.len, bytes: content.len, source: Source::None })
    }

    /// Checks the answer to the last PUT, when its time has been taken: hashing is the harness's own work.
    fn check_put(&mut self) {
        let Some((slot, published)) = self.unchecked.take() else { return };
        let Some(Some((path, content))) = self.written.get(slot) else { return };
        let right = match self.plan.verify {
            Verify::Off => true,
            Verify::Etag => published.len == content.len,
            Verify::Full => published.len == content.len && published.hash == content.hash(),
        };
        if !right {
            let what = format!("{path}: the answer to the PUT names another length or hash");
            self.tally.wrong(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Arrivals;
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
            mix: Mix::Get,
            get_share: 1.0,
            sizes_bytes: vec![2],
            objects: 10,
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
        drive(plan, &target, Arc::default(), &Stage::default()).await.unwrap()
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
        let expected = (0..10).map(|object| plan.object(object).hash()).collect();
        let load = drive(&plan, &target, Arc::new(expected), &Stage::default()).await.unwrap();
        assert!(load.tally.wrong > 0);
        assert!(!load.tally.wrong_examples.is_empty());
    }
}
