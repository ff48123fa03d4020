//! What held a run back, in words: for each resource that was seen, how much of it was used, and the first that was
//! nearly all used. What was not seen is told too, and nothing is guessed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::latency::Latency;
use crate::plan::Pace;
use crate::report::{Report, show_us};

/// Name and version of the JSON form.
pub const SCHEMA: &str = "dozo.bench.explain/1";
/// All cores together, busy for more than this share of the time, are the limit: the rest is lost between them.
const CORES_SATURATED: f64 = 0.85;
/// A process that uses about one core on a machine of more may be one thread that never rests.
const ONE_CORE: std::ops::Range<f64> = 0.95..1.05;
/// Requests that wait longer than this share of their response time wait for the system, not in it.
const QUEUEING_SHARE: f64 = 0.5;

/// One resource, or one thing that is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    pub resource: String,
    /// Whether it was nearly all used.
    pub saturated: bool,
    pub text: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation {
    pub schema: String,
    pub findings: Vec<Finding>,
    /// The result in one sentence.
    pub verdict: String,
}

/// Explains a report.
pub fn explain(report: &Report) -> Explanation {
    let measured_s = report.plan.duration.as_secs_f64();
    let findings: Vec<Finding> = [generator(report), cores(report, measured_s), one_core(report, measured_s)]
        .into_iter()
        .chain([queueing(report), errors(report), concurrency(report)])
        .flatten()
        .collect();
    let verdict = match findings.iter().find(|finding| finding.saturated) {
        Some(first) => format!("the limit was {}: {}", first.resource, first.text),
        None => "no resource that was seen was used up: what takes time is waiting inside the system (durable writes, \
                 disks, the network, locks) or on machines that were not watched; more --connections or a higher --rate \
                 would show which"
            .to_owned(),
    };
    Explanation { schema: SCHEMA.into(), findings, verdict }
}

fn generator(report: &Report) -> Option<Finding> {
    let generator = report.generator.as_ref()?;
    let resource = "the load generator".to_owned();
    Some(Finding { resource, saturated: !generator.faults.is_empty(), text: generator.to_text() })
}

/// All processes that were watched against the cores of this machine.
fn cores(report: &Report, measured_s: f64) -> Option<Finding> {
    let cores = report.host.cores as f64;
    let servers = report.processes.iter().any(|process| !is_bench(&process.servers));
    if !servers {
        let text = "no server's process was seen, so its CPU time is not known (another machine, or --pid)"
            .to_owned();
        return Some(Finding { resource: "the servers".into(), saturated: false, text });
    }
    let mut parts: Vec<(f64, String)> = report
        .processes
        .iter()
        .map(|process| (process.cpu_s / measured_s / cores, process.servers.join(" and ")))
        .collect();
    parts.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let busy: f64 = parts.iter().map(|(share, _)| share).sum();
    let parts: Vec<String> = parts
        .iter()
        .filter(|(share, _)| *share >= 0.01)
        .map(|(share, servers)| format!("{servers} {:.0} %", share * 100.0))
        .collect();
    let text = format!("{:.0} % of {cores:.0} cores: {}", busy * 100.0, parts.join(", "));
    Some(Finding { resource: "the CPU".into(), saturated: busy > CORES_SATURATED, text })
}

fn one_core(report: &Report, measured_s: f64) -> Option<Finding> {
    let like_one = |process: &&crate::process::ProcessCost| {
        !is_bench(&process.servers) && ONE_CORE.contains(&(process.cpu_s / measured_s))
    };
    let process = report.processes.iter().filter(|_| report.host.cores > 1).find(like_one)?;
    let servers = process.servers.join(" and ");
    let text = format!(
        "{servers} used {:.2} cores, as one thread that never rests would",
        process.cpu_s / measured_s
    );
    Some(Finding { resource: "one thread of a server".into(), saturated: true, text })
}

/// In an open loop, the part of the response time before sending.
fn queueing(report: &Report) -> Option<Finding> {
    if report.plan.pace == Pace::Closed {
        return None;
    }
    let (mut response, mut service) = (Latency::default(), Latency::default());
    let from = report.plan.warmup.as_secs_f64().ceil() as u64;
    for row in report.timeline.iter().filter(|row| row.second >= from) {
        response.add(&row.response);
        service.add(&row.service);
    }
    let (response, service) = (response.summary(), service.summary());
    if response.mean_us <= 0.0 {
        return None;
    }
    let waited = (response.mean_us - service.mean_us).max(0.0);
    let share = waited / response.mean_us;
    let text = format!(
        "of {} that an answer took on average, {} ({:.0} %) went by before it was sent, because all {} connections were \
         taken; p99 of the response time {}, of the service time {}",
        show_us(response.mean_us),
        show_us(waited),
        share * 100.0,
        report.plan.connections,
        show_us(response.p99_us),
        show_us(service.p99_us)
    );
    Some(Finding { resource: "connections".into(), saturated: share > QUEUEING_SHARE, text })
}

fn errors(report: &Report) -> Option<Finding> {
    let count = report.error_count();
    let worst = report.errors.iter().max_by_key(|error| error.count).filter(|_| count > 0)?;
    let text =
        format!("{count} requests failed, most as {} {} ({})", worst.op.as_str(), worst.code, worst.count);
    Some(Finding { resource: "errors".into(), saturated: false, text })
}

/// Little's law: how many requests were under way on average.
fn concurrency(report: &Report) -> Option<Finding> {
    let from = report.plan.warmup.as_secs_f64().ceil() as u64;
    let mut service = Latency::default();
    for row in report.timeline.iter().filter(|row| row.second >= from) {
        service.add(&row.service);
    }
    let mean = Duration::from_secs_f64(service.summary().mean_us.max(0.0) / 1e6);
    let under_way = report.requests_per_s() * mean.as_secs_f64();
    if !under_way.is_finite() || service.count() == 0 {
        return None;
    }
    let text = format!(
        "{under_way:.1} of {} connections were waiting for an answer on average ({:.0}/s of {} each)",
        report.plan.connections,
        report.requests_per_s(),
        show_us(mean.as_secs_f64() * 1e6)
    );
    Some(Finding { resource: "concurrency".into(), saturated: false, text })
}

fn is_bench(servers: &[String]) -> bool {
    servers.iter().all(|server| server == "bench")
}

impl Explanation {
    pub fn to_text(&self) -> String {
        let line = |finding: &Finding| {
            let mark = if finding.saturated { "FULL" } else { "    " };
            format!("{mark} {}: {}\n", finding.resource, finding.text)
        };
        let lines: String = self.findings.iter().map(line).collect();
        lines + &self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ProcessCost;
    use crate::testing::{Work, report};

    fn process(server: &str, cpu_s: f64) -> ProcessCost {
        ProcessCost {
            pid: 1,
            servers: vec![server.into()],
            cpu_s,
            cpu_us_per_request: 1.0,
            rss_peak_bytes: 1,
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_first_resource_that_is_used_up_is_named() {
        let work = Work { answer_time: Duration::from_millis(10), at_once: 1 };
        let mut report = report(work, 1, Duration::from_secs(2)).await;
        report.host.cores = 4;
        assert!(explain(&report).to_text().contains("no server's process was seen"));

        report.processes = vec![process("bench", 0.5), process("tokyo.g1", 0.4)];
        let idle = explain(&report);
        assert!(idle.verdict.starts_with("no resource that was seen"), "{}", idle.to_text());
        assert!(idle.to_text().contains("of 1 connections were waiting"), "{}", idle.to_text());

        report.processes[1].cpu_s = 2.0;
        assert!(explain(&report).verdict.contains("one thread of a server: tokyo.g1 used 1.00 cores"));

        report.processes[1].cpu_s = 7.0;
        let busy = explain(&report);
        assert!(
            busy.verdict.starts_with("the limit was the CPU: 94 % of 4 cores: tokyo.g1 88 %"),
            "{}",
            busy.verdict
        );

        report.generator.as_mut().unwrap().faults.push("a thread worked all the time".into());
        assert!(explain(&report).verdict.starts_with("the limit was the load generator"));
    }
}
