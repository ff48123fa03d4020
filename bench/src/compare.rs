//! Several targets under one workload, in turns: A B B A and so on, so that what drifts meets all alike. Runs of one
//! round have the same seed, thus the same objects in the same order; every round has another, so that nothing is
//! there already.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::html::escape;
use serde::{Deserialize, Serialize};

use crate::generator::Generator;
use crate::plan::Plan;
use crate::report::{Host, Report};
use crate::run::{Options, RunError, run};
use crate::statistics::contrast::{Method, Verdict};
use crate::statistics::table::{Table, TableError};
use crate::target::Target;

/// Name and version of the JSON form.
pub const SCHEMA: &str = "dozo.bench.compare/1";

#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error(
        "two targets at least are needed, each with a name of its own, as in --target a=URL --target b=URL"
    )]
    Targets,
    #[error("the run of {target} in round {round} could not be done")]
    Run { target: String, round: usize, source: RunError },
    #[error("the report of {target} in round {round} cannot be kept")]
    Keep { target: String, round: usize, source: std::io::Error },
    #[error("{target} cannot be compared with {first}")]
    Table { target: String, first: String, source: TableError },
}

const STYLE: &str = "body{font:15px sans-serif;margin:2em;max-width:70em}table{border-collapse:collapse}\
td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:right}.worse td:last-child{color:#b00}\
.better td:last-child{color:#070}.undecided td:last-child{color:#777}";

/// A target and what it is called.
pub struct Contender {
    pub name: String,
    pub target: Target,
}

/// A target against the first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Versus {
    pub target: String,
    pub table: Table,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    pub schema: String,
    pub host: Host,
    pub plan: Plan,
    /// What the others are compared with.
    pub first: String,
    /// Names in the order in which they ran.
    pub order: Vec<String>,
    pub versus: Vec<Versus>,
    /// Runs in which a check of bytes, bookings or promises failed: target and round.
    pub failed: Vec<(String, usize)>,
    /// Why no verdict can be given, for each run that the load generator held back.
    pub refused: Vec<String>,
}

/// Who runs when, by place in the list: forwards in even rounds, backwards in odd ones.
pub fn turns(contenders: usize, rounds: usize) -> Vec<(usize, usize)> {
    let round = |round: usize| {
        let place = move |nth: usize| if round.is_multiple_of(2) { nth } else { contenders - 1 - nth };
        (0..contenders).map(move |nth| (round, place(nth)))
    };
    (0..rounds).flat_map(round).collect()
}

/// Runs `plan` against every contender, `rounds` times. `keep` is given each report.
pub async fn compare(
    plan: &Plan,
    contenders: &[Contender],
    rounds: usize,
    options: &Options,
    method: Method,
    say: impl Fn(&str),
    mut keep: impl FnMut(&str, usize, &Report) -> std::io::Result<()>,
) -> Result<Comparison, CompareError> {
    let mut reports: BTreeMap<usize, Vec<Report>> = BTreeMap::new();
    let different: std::collections::BTreeSet<&str> = contenders.iter().map(|c| c.name.as_str()).collect();
    if contenders.len() < 2 || different.len() < contenders.len() || rounds == 0 {
        return Err(CompareError::Targets);
    }
    let (mut order, mut failed, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (round, place) in turns(contenders.len(), rounds) {
        let Contender { name, target } = &contenders[place];
        say(&format!("round {} of {rounds}: {name}", round + 1));
        let plan = Plan { seed: plan.seed + round as u64, ..plan.clone() };
        let outcome = run(plan, target, options, &say).await;
        let outcome =
            outcome.map_err(|source| CompareError::Run { target: name.clone(), round: round + 1, source })?;
        let report = Report::of(outcome);
        keep(name, round + 1, &report).map_err(|source| CompareError::Keep {
            target: name.clone(),
            round: round + 1,
            source,
        })?;
        if !report.passed {
            failed.push((name.clone(), round + 1));
        }
        if let Some(why) = report.generator.as_ref().and_then(Generator::refusal) {
            refused.push(format!("{name}, round {}: {why}", round + 1));
        }
        order.push(name.clone());
        reports.entry(place).or_default().push(report);
    }
    let mut sides = reports.into_values();
    let first = sides.next().ok_or(CompareError::Targets)?;
    let mut versus = Vec::new();
    for (contender, others) in contenders.iter().skip(1).zip(sides) {
        let pairs: Vec<(&Report, &Report)> = first.iter().zip(&others).collect();
        let table = Table::of(&pairs, method).map_err(|source| CompareError::Table {
            target: contender.name.clone(),
            first: contenders[0].name.clone(),
            source,
        })?;
        versus.push(Versus { target: contender.name.clone(), table });
    }
    Ok(Comparison {
        schema: SCHEMA.into(),
        host: Host::here(),
        plan: plan.clone(),
        first: contenders[0].name.clone(),
        order,
        versus,
        failed,
        refused,
    })
}

impl Comparison {
    /// Whether a verdict can be given, and every check held.
    pub fn sound(&self) -> bool {
        self.refused.is_empty() && self.failed.is_empty()
    }

    pub fn any_worse(&self) -> bool {
        self.versus.iter().any(|versus| versus.table.verdict == Verdict::Worse)
    }

    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for Versus { target, table } in &self.versus {
            // Writing to a String cannot fail.
            let _infallible = writeln!(text, "{}", table.to_text(&self.first, target));
        }
        self.write_verdict(&mut text);
        text
    }

    pub fn to_markdown(&self) -> String {
        let mut text = format!("# {} compared\n\n{}\n", self.names().join(", "), self.setup());
        for Versus { target, table } in &self.versus {
            let _infallible =
                write!(text, "\n## {target} by {}\n\n{}", self.first, table.to_markdown(&self.first, target));
        }
        text.push('\n');
        self.write_verdict(&mut text);
        text
    }

    /// One page that needs nothing else.
    pub fn to_html(&self) -> String {
        let title = escape(&format!("{} compared", self.names().join(", ")));
        let setup = escape(&self.setup());
        let mut verdict = String::new();
        self.write_verdict(&mut verdict);
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>{STYLE}</style></head>\n\
             <body><h1>{title}</h1>\n<pre>{}</pre>\n<p>{setup}</p>\n",
            escape(&verdict)
        );
        for Versus { target, table } in &self.versus {
            let rows = table.to_html(&self.first, target);
            let _infallible = write!(page, "<h2>{} by {}</h2>\n{rows}", escape(target), escape(&self.first));
        }
        page + "</body></html>\n"
    }

    fn setup(&self) -> String {
        let (host, plan) = (&self.host, &self.plan);
        format!(
            "{} cores of {}, Linux {}; {} connections, {:?} measured in each run, seed {:016x}; order: {}.",
            host.cores,
            host.cpu,
            host.kernel,
            plan.connections,
            plan.duration,
            plan.seed,
            self.order.join(" "),
        )
    }

    fn names(&self) -> Vec<&str> {
        std::iter::once(self.first.as_str()).chain(self.versus.iter().map(|v| v.target.as_str())).collect()
    }

    fn write_verdict(&self, text: &mut String) {
        for (target, round) in &self.failed {
            let _infallible =
                writeln!(text, "FAIL {target}, round {round}: a check did not hold, see its report");
        }
        if self.refused.is_empty() {
            for Versus { target, table } in &self.versus {
                let _infallible = writeln!(text, "{target} by {}: {}", self.first, table.sentence());
            }
        } else {
            text.push_str("no verdict: the load generator held the measurement back\n");
            for why in &self.refused {
                let _infallible = writeln!(text, "  {why}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_take_turns_in_both_directions() {
        let order = |contenders, rounds| -> Vec<usize> {
            turns(contenders, rounds).into_iter().map(|(_, place)| place).collect()
        };
        assert_eq!(order(2, 3), [0, 1, 1, 0, 0, 1]);
        assert_eq!(order(3, 2), [0, 1, 2, 2, 1, 0]);
    }
}
