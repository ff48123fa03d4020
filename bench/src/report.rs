//! How a run is told: a table for people, one JSON object for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use common::config::show_bytes;
use serde::{Deserialize, Serialize};

use crate::books::Reconciliation;
use crate::latency::{Buckets, LatencySummary};
use crate::measure::{Kind, Series, Source};
use crate::plan::{Op, Pace, Plan};
use crate::process::ProcessCost;
use crate::run::{Outcome, ReadBack};
use crate::slo::SloResult;
use crate::timeline::Second;

/// Name and version of the JSON form. A change that a reader can notice raises the version.
pub const SCHEMA: &str = "dozo.bench.run/2";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub schema: String,
    pub version: String,
    pub host: Host,
    pub client: String,
    pub plan: Plan,
    pub prepared_bytes: u64,
    pub elapsed_s: f64,
    /// One row for each operation, source and size class, then one for each operation over all if there are several.
    pub results: Vec<Row>,
    /// By second of the load, warm-up included; seconds without answers and errors are left out.
    pub timeline: Vec<TimelineRow>,
    pub errors: Vec<Errors>,
    /// Open loop: arrivals never sent.
    pub dropped: u64,
    /// Open loop: how late the pacer itself let requests go; what is not small here is the harness's fault.
    pub pacer_lag: Option<LatencySummary>,
    pub sources: BTreeMap<String, u64>,
    pub classes: BTreeMap<String, u64>,
    pub processes: Vec<ProcessCost>,
    pub wrong_answers: u64,
    pub wrong_examples: Vec<String>,
    pub read_back: ReadBack,
    pub billing: Option<Reconciliation>,
    pub slos: Vec<SloResult>,
    pub left_behind: u64,
    pub passed: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    pub cores: usize,
    pub cpu: String,
    pub kernel: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub op: Op,
    /// `None`: of all kinds. Two rows of one operation tell all sizes, or all sources, only together.
    pub source: Option<Source>,
    /// Longest length of the size class; `None`: all sizes.
    pub size_max_bytes: Option<u64>,
    pub requests: u64,
    pub bytes: u64,
    pub requests_per_s: f64,
    pub mib_per_s: f64,
    /// From the intended start.
    pub response: LatencySummary,
    /// From sending.
    pub service: LatencySummary,
}

/// One operation and source in one second.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TimelineRow {
    /// Since the start of the load.
    pub second: u64,
    pub op: Op,
    pub source: Source,
    pub requests: u64,
    pub bytes: u64,
    pub errors: u64,
    /// From the intended start.
    pub response: Buckets,
    /// From sending.
    pub service: Buckets,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Errors {
    pub op: Op,
    pub code: String,
    pub count: u64,
}

impl Row {
    fn of(op: Op, kind: Option<Kind>, series: &Series, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        Self {
            op,
            source: kind.map(|kind| kind.source),
            size_max_bytes: kind.map(|kind| kind.size.max_bytes()),
            requests: series.requests,
            bytes: series.bytes,
            requests_per_s: series.requests as f64 / seconds,
            mib_per_s: series.bytes as f64 / f64::from(1 << 20) / seconds,
            response: series.response.summary(),
            service: series.service.summary(),
        }
    }
}

impl Host {
    pub fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: model.map_or_else(String::new, |(_, name)| name.trim().to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Report {
    pub fn of(outcome: Outcome) -> Self {
        let passed = outcome.passed();
        let Outcome { plan, client, load, processes, read_back, reconciliation, slos, .. } = outcome;
        let tally = load.tally;
        let mut results: Vec<Row> = Vec::new();
        for (kind, series) in &tally.series {
            results.push(Row::of(kind.op, Some(*kind), series, load.elapsed));
        }
        let ops: BTreeSet<Op> = tally.series.keys().map(|kind| kind.op).collect();
        for op in ops {
            if tally.series.keys().filter(|kind| kind.op == op).count() > 1 {
                results.push(Row::of(op, None, &tally.total(Some(op)), load.elapsed));
            }
        }
        let timeline = tally.timeline.finish().into_iter().map(|((second, (op, source)), row)| {
            let Second { requests, bytes, errors, response, service } = row;
            TimelineRow { second, op, source, requests, bytes, errors, response, service }
        });
        let errors = |((op, code), count)| Errors { op, code, count };
        Self {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            host: Host::here(),
            client,
            prepared_bytes: outcome.prepared_bytes,
            elapsed_s: load.elapsed.as_secs_f64(),
            results,
            timeline: timeline.collect(),
            errors: tally.errors.into_iter().map(errors).collect(),
            dropped: load.dropped,
            pacer_lag: (plan.pace != Pace::Closed).then(|| load.lag.summary()),
            plan,
            sources: tally.deliveries.sources,
            classes: tally.deliveries.classes,
            processes,
            wrong_answers: tally.wrong,
            wrong_examples: tally.wrong_examples,
            read_back,
            billing: reconciliation,
            slos,
            left_behind: outcome.left_behind,
            passed,
        }
    }

    /// The table for a terminal.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let host = &self.host;
        writeln!(
            out,
            "{} cores, {}, Linux {}, seed {:016x}",
            host.cores, host.cpu, host.kernel, self.plan.seed
        )?;
        self.write_rows(out)?;
        if let Some(lag) = &self.pacer_lag {
            let (p99, max) = (show_us(lag.p99_us), show_us(lag.max_us));
            writeln!(out, "pacer late by p99 {p99}, at most {max}; {} arrivals dropped", self.dropped)?;
        }
        for error in &self.errors {
            writeln!(out, "errors: {} {} {}", error.op.as_str(), error.code, error.count)?;
        }
        writeln!(out, "\n{:>8} {:>9} {:>12} {:>12}  servers", "pid", "cpu", "cpu/request", "peak memory")?;
        for process in &self.processes {
            writeln!(
                out,
                "{:>8} {:>8.2}s {:>12} {:>12}  {}",
                process.pid,
                process.cpu_s,
                show_us(process.cpu_us_per_request),
                show_bytes(process.rss_peak_bytes),
                process.servers.join(" ")
            )?;
        }
        self.write_checks(out)
    }

    fn write_rows(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "\n{:<9} {:<6} {:>9} {:>9} {:>10} {:>9}  {:<8} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "op",
            "source",
            "up to",
            "requests",
            "per s",
            "MiB/s",
            "time",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max"
        )?;
        for row in &self.results {
            let size = row.size_max_bytes.map_or_else(|| "all".to_owned(), show_bytes);
            let source = row.source.map_or("all", Source::as_str);
            let op = row.op.as_str();
            let head = format!(
                "{op:<9} {source:<6} {size:>9} {:>9} {:>10.1} {:>9.1}",
                row.requests, row.requests_per_s, row.mib_per_s
            );
            for (head, kind, times) in
                [(head.as_str(), "response", &row.response), ("", "service", &row.service)]
            {
                let shown =
                    [times.p50_us, times.p90_us, times.p99_us, times.p999_us, times.max_us].map(show_us);
                let shown: String = shown.iter().map(|time| format!(" {time:>9}")).collect();
                writeln!(out, "{head:<57}  {kind:<8}{shown}")?;
            }
        }
        Ok(())
    }

    fn write_checks(&self, out: &mut String) -> std::fmt::Result {
        let mark = |good| if good { "ok  " } else { "FAIL" };
        writeln!(out)?;
        let verify = serde_json::to_value(self.plan.verify).unwrap_or_default();
        writeln!(
            out,
            "{} contents: {} wrong answers (verify {}), {} put and read back",
            mark(self.wrong_answers == 0),
            self.wrong_answers,
            verify.as_str().unwrap_or(""),
            self.read_back.read
        )?;
        for example in &self.wrong_examples {
            writeln!(out, "       {example}")?;
        }
        match &self.billing {
            Some(billing) => writeln!(out, "{} billing: {}", mark(billing.agrees), billing.verdict)?,
            None => writeln!(out, "--   billing: not compared, the billing servers are not known")?,
        }
        for slo in &self.slos {
            writeln!(out, "{} {}: measured {:.6}", mark(slo.kept), slo.slo, slo.measured)?;
        }
        if self.left_behind > 0 {
            writeln!(out, "note: {} contents of this run could not be removed", self.left_behind)?;
        }
        Ok(())
    }
}

pub fn show_us(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} us"),
        us if us < 1e5 => format!("{:.2} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}
