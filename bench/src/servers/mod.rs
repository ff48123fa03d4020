//! The servers while a load is on: each second what their processes use and what a few of their metrics say.
//!
//! A thread of its own samples, so that neither waits for the other: the generator's threads never sample, and a server
//! that does not answer delays nobody. What sampling costs is told with the rest.
//!
//! | looking for | module |
//! |---|---|
//! | which metrics, and how they are read | [`scrape`] |
//! | one quantity over time, in bounded memory | [`track`] |

use std::collections::{BTreeMap, BTreeSet};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::catalogue::metrics as catalogue;
use common::client::{HttpClient, read_body};
use futures_util::future::join_all;
use http::Request;
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::process::{ProcessCost, Usage, listening, program, thread_cpu_time, usage};
use crate::target::{Target, Watched};

pub mod scrape;
pub mod track;

use scrape::{Figure, Scraped, WANTED};
use track::{Reading, Track};

const EVERY: Duration = Duration::from_secs(1);
/// A server that takes longer is not scraped in this second.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(700);
const ANSWER_LEN_MAX: usize = 8 << 20;
/// The name under which the harness's own process is shown.
pub const HARNESS: &str = "bench";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Cores,
    Bytes,
    BytesPerSecond,
    PerSecond,
    Seconds,
    Count,
}

/// What was seen of the servers in a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Servers {
    pub series: Vec<ServerSeries>,
    /// CPU time of the thread that sampled.
    pub sampling_cpu_s: f64,
    pub scrapes: u64,
    /// Scrapes that gave no answer in time.
    pub scrapes_failed: u64,
}

/// One quantity of one server, or of a process that runs several.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerSeries {
    pub server: String,
    /// `cpu`, `memory`, `disk read`, `disk written` or `threads` of the process, or the name of a metric.
    pub name: String,
    /// The value of the label by which a metric's series are told apart.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    pub unit: Unit,
    /// Over the measured part.
    pub mean: f64,
    /// Over the measured part.
    pub peak: f64,
    /// Seconds since the start of the load, and the figure in the time before.
    pub points: Vec<(f64, f64)>,
}

/// What a process is sampled for.
const OF_PROCESS: [(&str, Figure, Unit); 5] = [
    (CPU, Figure::PerSecond, Unit::Cores),
    (MEMORY, Figure::Level, Unit::Bytes),
    ("disk read", Figure::PerSecond, Unit::BytesPerSecond),
    ("disk written", Figure::PerSecond, Unit::BytesPerSecond),
    ("threads", Figure::Level, Unit::Count),
];
pub const CPU: &str = "cpu";
pub const MEMORY: &str = "memory";

fn values(usage: Usage) -> [f64; 5] {
    [
        usage.cpu.as_secs_f64(),
        usage.rss_bytes as f64,
        usage.read_bytes as f64,
        usage.written_bytes as f64,
        usage.threads as f64,
    ]
}

/// Servers that share a process, and all that was read of it. A process that was started again goes on here.
struct Process {
    pid: u32,
    servers: Vec<String>,
    tracks: [Track; 5],
    /// At the last sample; what is not reaped by its parent yet does not run.
    is_running: bool,
    /// Of its processes that are gone.
    before: Usage,
    last: Usage,
}

/// Everything that was sampled.
#[derive(Default)]
pub struct Samples {
    measured: (f64, f64),
    processes: Vec<Process>,
    /// By server, place in [`WANTED`] and label.
    metrics: BTreeMap<(String, usize, String), Track>,
    sampling_cpu: Duration,
    scrapes: u64,
    scrapes_failed: u64,
}

/// The thread that samples. It ends by itself when dropped.
pub struct Sampler {
    _ends_when_dropped: oneshot::Sender<()>,
    thread: JoinHandle<Samples>,
}

impl Sampler {
    /// `pids` are watched in place of what the target's ports lead to, if there are any. `start` is the zero of all
    /// times; the measured part lasts `duration` after `warmup`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        target: &Target,
        pids: &[u32],
        start: Instant,
        warmup: Duration,
        duration: Duration,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let mut work = Work {
            start,
            times: [warmup, warmup + duration],
            scraped: target.watched.clone(),
            sought: if pids.is_empty() { target.watched.clone() } else { Vec::new() },
            is_first: true,
            http: HttpClient::new(),
            samples: Samples {
                measured: (warmup.as_secs_f64(), (warmup + duration).as_secs_f64()),
                processes: Vec::new(),
                metrics: BTreeMap::new(),
                sampling_cpu: Duration::ZERO,
                scrapes: 0,
                scrapes_failed: 0,
            },
        };
        for pid in pids {
            work.samples.processes.push(Process::new(*pid, vec![program(*pid)]));
        }
        work.samples.processes.push(Process::new(std::process::id(), vec![HARNESS.into()]));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("sampler".into()).spawn(move || {
            runtime.block_on(work.run(stopped));
            work.samples.sampling_cpu = thread_cpu_time();
            work.samples
        })?;
        Ok(Self { _ends_when_dropped: stop, thread })
    }

    pub fn finish(self) -> Samples {
        drop(self._ends_when_dropped);
        match self.thread.join() {
            Ok(samples) => samples,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

struct Work {
    start: Instant,
    /// Beginning and end of the measured part, each of which is sampled besides the full seconds.
    times: [Duration; 2],
    scraped: Vec<Watched>,
    /// Servers whose processes are looked for.
    sought: Vec<Watched>,
    is_first: bool,
    http: HttpClient,
    samples: Samples,
}

impl Work {
    async fn run(&mut self, mut stopped: oneshot::Receiver<()>) {
        let mut second = Duration::ZERO;
        let mut exact = self.times.into_iter().peekable();
        loop {
            let next = match exact.next_if(|time| *time < second) {
                Some(time) => time,
                None => {
                    let full = second;
                    let _is_the_same = exact.next_if_eq(&full);
                    second += EVERY;
                    full
                }
            };
            tokio::select! {
                _ = &mut stopped => return,
                () = tokio::time::sleep_until((self.start + next).into()) => {}
            }
            self.sample_processes(next);
            tokio::select! {
                _ = &mut stopped => return,
                () = self.scrape(next) => {}
            }
            // Seconds that went by meanwhile are left out.
            while self.start + second + EVERY < Instant::now() {
                second += EVERY;
            }
        }
    }

    fn sample_processes(&mut self, at: Duration) {
        if self.is_missing_some() {
            self.find();
        }
        for process in &mut self.samples.processes {
            process.sample(at);
        }
    }

    /// Whether a watched server has no process, as far as we know.
    fn is_missing_some(&self) -> bool {
        let known: BTreeSet<&str> = self
            .samples
            .processes
            .iter()
            .filter(|process| process.is_running)
            .flat_map(|process| process.servers.iter().map(String::as_str))
            .collect();
        self.sought.iter().any(|watched| !known.contains(watched.server.as_str()))
    }

    fn find(&mut self) {
        let ports: Vec<u16> = self.sought.iter().map(|watched| watched.port).collect();
        let found = listening(&ports);
        let mut by_pid: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for watched in &self.sought {
            if let Some(pid) = found.get(&watched.port) {
                by_pid.entry(*pid).or_default().push(watched.server.clone());
            }
        }
        for (pid, servers) in by_pid {
            match self.samples.processes.iter_mut().find(|process| process.servers == servers) {
                Some(process) => process.go_on_as(pid),
                None => self.samples.processes.push(Process::new(pid, servers)),
            }
        }
        // What was not found at the beginning is on another machine: to look for it each second would cost too much.
        if std::mem::take(&mut self.is_first) {
            self.sought.retain(|watched| found.contains_key(&watched.port));
        }
    }

    async fn scrape(&mut self, at: Duration) {
        let http = &self.http;
        let answers = self.scraped.iter().filter_map(|watched| {
            let admin = watched.admin.clone()?;
            Some(async move { (watched.server.clone(), metrics_of(http, &admin).await) })
        });
        let answers = tokio::time::timeout(ANSWER_TIME_MAX * 2, join_all(answers)).await.unwrap_or_default();
        for (server, answer) in answers {
            self.samples.scrapes += 1;
            match answer {
                Some(found) => self.samples.take_in(&server, found, at),
                None => self.samples.scrapes_failed += 1,
            }
        }
    }
}

/// `None` when the server did not answer in time.
async fn metrics_of(http: &HttpClient, admin: &str) -> Option<Vec<Scraped>> {
    let url = format!("{admin}/metrics");
    let request = Request::get(&url).body(Full::new(Bytes::new())).ok()?;
    let answer = tokio::time::timeout(ANSWER_TIME_MAX, async {
        let response = http.send(request, ANSWER_TIME_MAX).await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        read_body(&url, response.into_body(), ANSWER_LEN_MAX).await.ok()
    });
    let text = answer.await.ok()??;
    Some(scrape::read(&String::from_utf8_lossy(&text)))
}

impl Process {
    fn new(pid: u32, servers: Vec<String>) -> Self {
        let tracks = OF_PROCESS.map(|(_, figure, _)| Track::new(figure));
        Self { pid, servers, tracks, is_running: true, before: Usage::default(), last: Usage::default() }
    }

    fn go_on_as(&mut self, pid: u32) {
        if pid != self.pid {
            self.pid = pid;
            self.is_running = true;
            self.before.cpu += self.last.cpu;
            self.before.read_bytes += self.last.read_bytes;
            self.before.written_bytes += self.last.written_bytes;
            self.last = Usage::default();
        }
    }

    fn sample(&mut self, at: Duration) {
        let usage = usage(self.pid);
        self.is_running = usage.is_some();
        let Some(usage) = usage else { return };
        self.last = usage;
        let sum = Usage {
            cpu: self.before.cpu + usage.cpu,
            read_bytes: self.before.read_bytes + usage.read_bytes,
            written_bytes: self.before.written_bytes + usage.written_bytes,
            ..usage
        };
        for (track, value) in self.tracks.iter_mut().zip(values(sum)) {
            track.push(Reading { at_s: at.as_secs_f64(), value, weight: 0.0 });
        }
    }
}

impl Samples {
    fn take_in(&mut self, server: &str, found: Vec<Scraped>, at: Duration) {
        for Scraped { wanted, label, value, weight } in found {
            let track = self.metrics.entry((server.to_owned(), wanted, label));
            let track = track.or_insert_with(|| Track::new(WANTED[wanted].figure));
            track.push(Reading { at_s: at.as_secs_f64(), value, weight });
        }
    }

    /// What each process cost in the measured part, in which `requests` were answered.
    pub fn costs(&self, requests: u64) -> Vec<ProcessCost> {
        let (from, to) = self.measured;
        let cost = |process: &Process| {
            let [cpu, memory, ..] = &process.tracks;
            let cpu_s = cpu.growth(from, to);
            ProcessCost {
                pid: process.pid,
                servers: process.servers.clone(),
                cpu_s,
                cpu_us_per_request: cpu_s * 1e6 / requests.max(1) as f64,
                rss_peak_bytes: memory.peak(from, to) as u64,
            }
        };
        self.processes.iter().map(cost).collect()
    }

    /// Everything as series; what was zero all the time is left out.
    pub fn to_servers(&self) -> Servers {
        let mut series = Vec::new();
        for process in &self.processes {
            for (track, (name, _, unit)) in process.tracks.iter().zip(OF_PROCESS) {
                series.extend(self.series(&process.servers.join(" "), name, "", unit, track));
            }
        }
        for ((server, wanted, label), track) in &self.metrics {
            let Some(wanted) = WANTED.get(*wanted) else { continue };
            // Servers of one process tell the same of its runtime; the first of them is enough.
            let is_told = |process: &Process| process.servers.iter().skip(1).any(|other| other == server);
            if wanted.metric == &catalogue::RUNTIME_QUEUE && self.processes.iter().any(is_told) {
                continue;
            }
            series.extend(self.series(server, wanted.metric.name, label, wanted.unit, track));
        }
        Servers {
            series,
            sampling_cpu_s: self.sampling_cpu.as_secs_f64(),
            scrapes: self.scrapes,
            scrapes_failed: self.scrapes_failed,
        }
    }

    fn series(
        &self,
        server: &str,
        name: &str,
        label: &str,
        unit: Unit,
        track: &Track,
    ) -> Option<ServerSeries> {
        let (from, to) = self.measured;
        let points = track.points(0.0, f64::MAX);
        if points.iter().all(|(_, value)| *value == 0.0) {
            return None;
        }
        let measured: Vec<f64> =
            points.iter().filter(|(at, _)| *at > from && *at <= to).map(|(_, value)| *value).collect();
        Some(ServerSeries {
            server: server.to_owned(),
            name: name.to_owned(),
            label: label.to_owned(),
            unit,
            mean: rounded(measured.iter().sum::<f64>() / measured.len().max(1) as f64),
            peak: rounded(measured.iter().copied().fold(0.0, f64::max)),
            points: points.into_iter().map(|(at, value)| (rounded(at), rounded(value))).collect(),
        })
    }
}

/// To five digits: more is noise, and makes reports long.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 10f64.powi(4 - value.abs().log10().floor() as i32);
    (value * digits).round() / digits
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each connection's one request with a counter that grows by ten.
    async fn serve_metrics(listener: TcpListener) {
        for count in 0u64.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 2048];
            let _len = stream.read(&mut buffer).await.unwrap();
            let text = format!("dozo_gateway_deliveries_total{{source=\"hit\"}} {}\n", count * 10);
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len());
            stream.write_all((head + &text).as_bytes()).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn processes_and_metrics_are_sampled_each_second_and_a_silent_server_delays_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut target = Target::at(&format!("http://{}", listener.local_addr().unwrap()), "bob", "no token");
        target.watched[0].admin = Some(target.watched[0].http.clone());
        let mut other = target.watched[0].clone();
        (other.server, other.admin) =
            ("silent".into(), Some(format!("http://{}", silent.local_addr().unwrap())));
        target.watched.push(other);
        tokio::spawn(serve_metrics(listener));
        let (warmup, duration) = (Duration::from_millis(200), Duration::from_millis(2300));
        let sampler = Sampler::start(&target, &[], Instant::now(), warmup, duration).unwrap();
        tokio::time::sleep(Duration::from_millis(3300)).await;
        let samples = sampler.finish();
        let costs = samples.costs(10);
        let own = costs.iter().find(|cost| cost.servers == [HARNESS]).unwrap();
        assert!(own.rss_peak_bytes > 1 << 20, "{own:?}");
        let servers = samples.to_servers();
        let deliveries = servers.series.iter().find(|series| series.label == "hit").unwrap();
        assert_eq!((deliveries.server.as_str(), deliveries.unit), ("gateway", Unit::PerSecond));
        assert!(deliveries.points.len() >= 3 && deliveries.peak >= 9.0, "{deliveries:?}");
        assert!(servers.scrapes_failed >= 2 && servers.sampling_cpu_s > 0.0, "{servers:?}");
        let memory = servers.series.iter().find(|series| series.name == MEMORY).unwrap();
        assert!(memory.mean > 1e6 && memory.peak >= memory.mean);
    }

    #[test]
    fn figures_have_five_digits() {
        assert_eq!(rounded(123_456.789), 123_460.0);
        assert_eq!(rounded(0.001_234_567), 0.001_234_6);
        assert_eq!(rounded(0.0), 0.0);
    }
}
