//! How a mixed load is told: a table for people, one JSON object for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::MixedPlan;
use super::bookings::Comparison;
use super::recorder::{Failure, Phase, Second};
use crate::latency::LatencySummary;
use crate::report::{Host, show_us};

/// Name and version of the JSON form. A change that a reader can notice raises the version.
pub const SCHEMA: &str = "dozo.bench.mixed/1";
/// Failures that are told in the text; all that were kept are in the JSON.
const FAILURES_SHOWN: usize = 20;

/// Everything that came out.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub plan: MixedPlan,
    /// Requests that succeeded.
    pub requests: u64,
    pub failure_count: u64,
    /// The first thousand.
    pub failures: Vec<Failure>,
    /// Requests that were sent again, by reason: none of them failed for it.
    pub repeated: BTreeMap<&'static str, u64>,
    /// Open loop: how late the pacer itself was.
    pub pacer_lag: Option<LatencySummary>,
    pub phases: Vec<Phase>,
    pub timeline: Vec<Second>,
    /// `None` when the billing servers are not known.
    pub bookings: Option<Comparison>,
    /// Contents that could not be removed afterwards.
    pub left_behind: u64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub version: &'static str,
    pub host: Host,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// No request failed, every byte and listing was right, and every delivery is booked once.
    pub passed: bool,
}

impl Report {
    pub fn new(outcome: Outcome) -> Self {
        let booked = outcome.bookings.as_ref().is_none_or(|bookings| bookings.agrees);
        let passed = outcome.requests > 0 && outcome.failure_count == 0 && booked;
        Self { schema: SCHEMA, version: env!("CARGO_PKG_VERSION"), host: Host::here(), outcome, passed }
    }

    /// The table for a terminal.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let outcome = &self.outcome;
        writeln!(
            out,
            "{} cores, {}, Linux {}, seed {:016x}\n",
            self.host.cores, self.host.cpu, self.host.kernel, outcome.plan.seed
        )?;
        writeln!(
            out,
            "{:<12} {:>8} {:<7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "phase", "seconds", "op", "requests", "per s", "MiB/s", "p50", "p99", "max"
        )?;
        for phase in &outcome.phases {
            let mut head = format!("{:<12} {:>8.1}", phase.name, phase.to_s - phase.from_s);
            for (op, row) in &phase.ops {
                let times = [row.response.p50_us, row.response.p99_us, row.response.max_us].map(show_us);
                let times: String = times.iter().map(|time| format!(" {time:>9}")).collect();
                let op = format!("{op:?}").to_lowercase();
                writeln!(
                    out,
                    "{head:<21} {op:<7} {:>9} {:>9.1} {:>9.1}{times}",
                    row.requests, row.requests_per_s, row.mib_per_s
                )?;
                head = String::new();
            }
            if phase.failures > 0 {
                writeln!(out, "{:<21} {} failed", "", phase.failures)?;
            }
        }
        for (why, count) in &outcome.repeated {
            writeln!(out, "sent again: {count} ({why})")?;
        }
        self.write_checks(out)
    }

    fn write_checks(&self, out: &mut String) -> std::fmt::Result {
        let outcome = &self.outcome;
        let mark = |good| if good { "ok  " } else { "FAIL" };
        writeln!(
            out,
            "\n{} {} requests succeeded and were right, {} failed",
            mark(outcome.failure_count == 0),
            outcome.requests,
            outcome.failure_count
        )?;
        for failure in outcome.failures.iter().take(FAILURES_SHOWN) {
            let Failure { at_s, phase, kind, request, gateway, answer, .. } = failure;
            writeln!(out, "       {at_s:.3} s, {phase}: {kind:?}: {request} at {gateway}: {answer}")?;
        }
        match &outcome.bookings {
            Some(bookings) => {
                let Comparison { begun, whole, split, still_open, service, .. } = bookings;
                writeln!(
                    out,
                    "{} {begun} deliveries, {whole} of them whole; booked: {service:?}",
                    mark(bookings.agrees)
                )?;
                if split + still_open > 0 {
                    writeln!(
                        out,
                        "note: {split} downloads in two ranges became two deliveries; {still_open} deliveries \
                         that did not arrive whole are still open"
                    )?;
                }
                for fault in &bookings.faults {
                    writeln!(out, "       {fault}")?;
                }
            }
            None => writeln!(out, "--   billing: not compared, the billing servers are not known")?,
        }
        if outcome.left_behind > 0 {
            writeln!(out, "note: {} contents of this load could not be removed", outcome.left_behind)?;
        }
        Ok(())
    }
}
