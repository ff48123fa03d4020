//! What came out of a run, as one JSON object that can be read back, and what is written from it.
//!
//! | looking for | module |
//! |---|---|
//! | files, by the ending of their names | [`output`] |
//! | what each check says, in a sentence | `checks` |
//! | the tables for a terminal, for an issue, for a spreadsheet | [`text`], `markdown`, `csv` |
//! | the page, its pictures, and that nothing in it becomes markup | `html`, `chart`, `overview`, `escape` |
//! | the machine | `host` |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agents::AgentResult;
use crate::books::Reconciliation;
use crate::events::Happened;
use crate::events::recovery::{Recovery, Seconds};
use crate::generator::Generator;
use crate::latency::{Buckets, LatencySummary};
use crate::measure::{Kind, Series, Source};
use crate::plan::{Op, Pace, Plan};
use crate::process::ProcessCost;
use crate::run::{Outcome, ReadBack};
use crate::servers::Servers;
use crate::slo::SloResult;
use crate::steady::WarmUp;
use crate::timeline::Second;

mod chart;
mod checks;
mod csv;
mod escape;
mod host;
mod html;
mod markdown;
pub mod output;
mod overview;
#[cfg(test)]
mod tests;
pub mod text;

pub use host::Host;
pub use text::show_us;

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
    /// `None` if the warm-up had a fixed length.
    #[serde(default)]
    pub warm_up: Option<WarmUp>,
    /// Whether the load generator itself was the limit.
    #[serde(default)]
    pub generator: Option<Generator>,
    pub sources: BTreeMap<String, u64>,
    pub classes: BTreeMap<String, u64>,
    pub processes: Vec<ProcessCost>,
    /// The servers over time, as far as they could be seen.
    #[serde(default)]
    pub servers: Servers,
    /// What was done to the system meanwhile.
    #[serde(default)]
    pub events: Vec<Event>,
    /// Who sent the load in place of the harness; empty if it did so itself.
    #[serde(default)]
    pub agents: Vec<AgentResult>,
    pub wrong_answers: u64,
    /// Those of them that showed another version than the last acknowledged one.
    #[serde(default)]
    pub stale_reads: u64,
    pub wrong_examples: Vec<String>,
    pub read_back: ReadBack,
    pub billing: Option<Reconciliation>,
    pub slos: Vec<SloResult>,
    pub left_behind: u64,
    pub passed: bool,
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

/// Something that was done to the system, and what became of the load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    #[serde(flatten)]
    pub happened: Happened,
    /// `None`: the run has no seconds to compare.
    pub recovery: Option<Recovery>,
}

impl Event {
    /// Each event with its recovery; those that came at the same time share it.
    fn all(happened: Vec<Happened>, seconds: &Seconds) -> Vec<Self> {
        let times: Vec<f64> = happened.iter().map(|event| event.at_s).collect();
        let with_recovery = |happened: Happened| {
            let at = happened.at_s;
            let previous = times.iter().copied().filter(|time| time.floor() < at.floor()).fold(None, max);
            let next = times.iter().copied().find(|time| time.floor() > at.floor());
            Self { recovery: seconds.recovery(at, previous, next), happened }
        };
        fn max(best: Option<f64>, time: f64) -> Option<f64> {
            Some(best.map_or(time, |best| best.max(time)))
        }
        happened.into_iter().map(with_recovery).collect()
    }
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

impl Report {
    pub fn of(outcome: Outcome) -> Self {
        let passed = outcome.passed();
        let Outcome {
            plan,
            client,
            load,
            processes,
            samples,
            events,
            agents,
            read_back,
            reconciliation,
            slos,
            ..
        } = outcome;
        let generator = load.generator();
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
        let timeline: Vec<TimelineRow> = timeline.collect();
        let warmup_s = plan.warmup.as_secs_f64();
        let seconds = Seconds::of(&timeline, warmup_s, warmup_s + plan.duration.as_secs_f64());
        let errors = |((op, code), count)| Errors { op, code, count };
        Self {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            host: Host::here(),
            client,
            prepared_bytes: outcome.prepared_bytes,
            elapsed_s: load.elapsed.as_secs_f64(),
            results,
            timeline,
            errors: tally.errors.into_iter().map(errors).collect(),
            dropped: load.dropped,
            pacer_lag: (plan.pace != Pace::Closed).then(|| load.lag.summary()),
            plan,
            warm_up: outcome.warm_up,
            generator: Some(generator),
            sources: tally.deliveries.sources,
            classes: tally.deliveries.classes,
            processes,
            servers: samples.to_servers(),
            events: Event::all(events, &seconds),
            agents,
            wrong_answers: tally.wrong,
            stale_reads: tally.stale,
            wrong_examples: tally.wrong_examples,
            read_back,
            billing: reconciliation,
            slos,
            left_behind: outcome.left_behind,
            passed,
        }
    }
}
