//! The harness's own metrics for Prometheus while it runs: what it sends and how long answers take, from the intended
//! start and from sending, to be shown beside the servers' metrics.
//!
//! The metrics are those of [`common::catalogue::load`], which the dashboard of load tests shows. Prometheus asks for them as a
//! job of its own, beside those of the servers:
//!
//! ```yaml
//! scrape_configs:
//!   - job_name: bench
//!     scrape_interval: 1s
//!     static_configs: [{ targets: ['HOST:PORT'] }]
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use common::catalogue::load;
use common::catalogue::metrics::Metric;

use crate::latency::Latency;
use crate::plan::{Op, Pace, Plan};
use crate::process::cpu_time;
use crate::progress::{Done, Progress, Snapshot};

/// Upper bounds of the histograms: three for each power of ten from 0.1 ms to 100 s.
const BOUNDS_US: [u64; 19] = [
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];
/// One caller at a time, and none may hold up the others.
const CALL_TIME_MAX: Duration = Duration::from_secs(2);
const HEAD_LEN_MAX: u64 = 16 << 10;

/// Answers `GET /metrics` on `listen` as long as the process lives; answers with the address.
///
/// # Errors
/// The address is in use, or the thread cannot be started.
pub fn serve(listen: &str, plan: &Plan, progress: Arc<Progress>) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen)?;
    let address = listener.local_addr()?;
    let planned = match plan.pace {
        Pace::Closed | Pace::Trace { .. } => 0.0,
        Pace::Open { rate, .. } => rate,
    };
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who hangs up gets no answer.
            let _hung_up = answer(stream, || progress.look(|snapshot| render(snapshot, planned)));
        }
    })?;
    Ok(address)
}

/// Picks one of the distributions.
type Times = fn(&Done) -> &Latency;

fn answer(stream: TcpStream, text: impl FnOnce() -> String) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CALL_TIME_MAX))?;
    stream.set_write_timeout(Some(CALL_TIME_MAX))?;
    let mut lines = BufReader::new((&stream).take(HEAD_LEN_MAX));
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let mut rest = String::new();
    while lines.read_line(&mut rest)? > 2 {
        rest.clear();
    }
    let (status, text) = match first.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["GET", "/metrics"] => ("200 OK", text()),
        _ => ("404 Not Found", "ask for /metrics\n".to_owned()),
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        text.len()
    );
    (&stream).write_all((head + &text).as_bytes())
}

fn render(snapshot: &Snapshot, planned: f64) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _infallible = write(&mut out, snapshot, planned);
    out
}

fn write(out: &mut String, snapshot: &Snapshot, planned: f64) -> std::fmt::Result {
    head(out, load::ANSWERS)?;
    for ((op, source), done) in &snapshot.total {
        let (name, op, source) = (load::ANSWERS.name, op.as_str(), source.as_str());
        writeln!(out, "{name}{{op=\"{op}\",source=\"{source}\"}} {}", done.requests)?;
    }
    head(out, load::BYTES)?;
    for ((op, source), done) in &snapshot.total {
        let (name, op, source) = (load::BYTES.name, op.as_str(), source.as_str());
        writeln!(out, "{name}{{op=\"{op}\",source=\"{source}\"}} {}", done.bytes)?;
    }
    let mut by_op: BTreeMap<Op, Vec<&Done>> = BTreeMap::new();
    for ((op, _), done) in &snapshot.total {
        by_op.entry(*op).or_default().push(done);
    }
    head(out, load::ERRORS)?;
    for (op, parts) in &by_op {
        let errors: u64 = parts.iter().map(|done| done.errors).sum();
        writeln!(out, "{}{{op=\"{}\"}} {errors}", load::ERRORS.name, op.as_str())?;
    }
    let times: [(_, Times); 2] =
        [(load::RESPONSE_TIME, |done| &done.response), (load::SERVICE_TIME, |done| &done.service)];
    for (metric, of) in times {
        head(out, metric)?;
        let name = metric.name;
        for (op, parts) in &by_op {
            let op = op.as_str();
            for us in BOUNDS_US {
                let bound = Duration::from_micros(us);
                let count: u64 = parts.iter().map(|done| of(done).count_up_to(bound)).sum();
                writeln!(out, "{name}_bucket{{op=\"{op}\",le=\"{}\"}} {count}", us as f64 / 1e6)?;
            }
            let count: u64 = parts.iter().map(|done| of(done).count()).sum();
            let sum: f64 = parts.iter().map(|done| of(done).mean_s() * of(done).count() as f64).sum();
            writeln!(out, "{name}_bucket{{op=\"{op}\",le=\"+Inf\"}} {count}")?;
            writeln!(out, "{name}_sum{{op=\"{op}\"}} {sum}\n{name}_count{{op=\"{op}\"}} {count}")?;
        }
    }
    head(out, load::PLANNED)?;
    writeln!(out, "{} {planned}", load::PLANNED.name)?;
    head(out, load::CPU)?;
    let cpu = cpu_time(std::process::id()).unwrap_or_default();
    writeln!(out, "{} {}", load::CPU.name, cpu.as_secs_f64())
}

fn head(out: &mut String, metric: Metric) -> std::fmt::Result {
    let Metric { name, kind, help, .. } = metric;
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Source;
    use crate::timeline::Second;

    #[test]
    fn what_was_done_is_shown_and_histograms_add_up() {
        let (mut response, mut service) = (Latency::default(), Latency::default());
        for ms in [1, 3, 3, 700] {
            response.record(Duration::from_millis(ms));
            service.record(Duration::from_micros(900));
        }
        let second = Second {
            requests: 4,
            bytes: 40,
            errors: 1,
            response: response.take_buckets(),
            service: service.take_buckets(),
        };
        let progress = Progress::default();
        progress.add(0, (Op::Get, Source::Hit), &second);
        progress.add(1, (Op::Get, Source::Peer), &second);
        let text = progress.look(|snapshot| render(snapshot, 250.0));
        for line in [
            "bench_answers_total{op=\"get\",source=\"peer\"} 4",
            "bench_errors_total{op=\"get\"} 2",
            "bench_response_time_seconds_bucket{op=\"get\",le=\"0.005\"} 6",
            "bench_response_time_seconds_bucket{op=\"get\",le=\"+Inf\"} 8",
            "bench_service_time_seconds_bucket{op=\"get\",le=\"0.001\"} 8",
            "bench_response_time_seconds_count{op=\"get\"} 8",
            "bench_planned_requests_per_second 250",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        let sum =
            text.lines().find_map(|line| line.strip_prefix("bench_response_time_seconds_sum{op=\"get\"} "));
        let sum: f64 = sum.unwrap().parse().unwrap();
        assert!((sum - 1.414).abs() < 0.01, "{sum}");
        let mut told =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|line| line.split(' '));
        assert!(told.all(|mut words| {
            let (name, kind) = (words.next().unwrap(), words.next().unwrap());
            load::ALL.iter().any(|metric| (metric.name, metric.kind.as_str()) == (name, kind))
        }));
        let shown = |metric: &&Metric| text.contains(&format!("# TYPE {} ", metric.name));
        assert_eq!(load::ALL.iter().filter(shown).count(), load::ALL.len());
    }

    #[test]
    fn metrics_are_answered_and_other_paths_refused() {
        let progress = Arc::new(Progress::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ask = |path: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            let (served, _) = listener.accept().unwrap();
            answer(served, || progress.look(|snapshot| render(snapshot, 0.0))).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        assert!(ask("/metrics").starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(ask("/metrics").contains("bench_cpu_seconds_total"));
        assert!(ask("/").starts_with("HTTP/1.1 404 "));
    }
}
