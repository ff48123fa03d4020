//! A comparison of reports: a line for each operation and metric, what failed, and one verdict over all.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use common::html::escape;
use serde::{Deserialize, Serialize};

use super::StatisticsError;
use super::contrast::{Contrast, Method, Verdict, contrast};
use super::sample::Sample;
use crate::plan::Op;
use crate::report::Report;

/// Requests that fail more often by this share of all are worse.
const FAILED_MARGIN: f64 = 0.001;

#[derive(Debug, thiserror::Error)]
#[error("{} cannot be compared", .op.as_str())]
pub struct TableError {
    op: Op,
    source: StatisticsError,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    pub op: Op,
    #[serde(flatten)]
    pub contrast: Contrast,
}

/// Shares of requests that failed. Failures come in bursts, so they have a bound and no interval.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    pub op: Op,
    pub before: f64,
    pub after: f64,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    pub pairs: usize,
    /// See [`super::contrast::MARGIN`].
    pub margin: f64,
    pub lines: Vec<Line>,
    pub failed: Vec<Failed>,
    /// Worse if anything is worse; otherwise better if anything is better; the same if everything is.
    pub verdict: Verdict,
}

impl Table {
    /// Of pairs of (before, after), by operation.
    pub fn of(pairs: &[(&Report, &Report)], method: Method) -> Result<Self, TableError> {
        let reports = || pairs.iter().flat_map(|(before, after)| [before, after]);
        let ops: BTreeSet<Op> = reports().flat_map(|r| r.timeline.iter().map(|row| row.op)).collect();
        let (mut lines, mut failed) = (Vec::new(), Vec::new());
        for op in ops {
            let sample = |report| Sample::of(report, Some(op));
            let samples = pairs.iter().map(|(before, after)| Ok((sample(before)?, sample(after)?)));
            let samples = samples.collect::<Result<Vec<_>, _>>();
            let found = samples.and_then(|samples| contrast(&samples, method));
            let found = found.map_err(|source| TableError { op, source })?;
            lines.extend(found.into_iter().map(|contrast| Line { op, contrast }));
            let (before, after) =
                (failed_share(pairs.iter().map(|p| p.0), op), failed_share(pairs.iter().map(|p| p.1), op));
            if before + after > 0.0 {
                let verdict = match after - before {
                    more if more > FAILED_MARGIN => Verdict::Worse,
                    less if less < -FAILED_MARGIN => Verdict::Better,
                    _ => Verdict::Same,
                };
                failed.push(Failed { op, before, after, verdict });
            }
        }
        let verdicts: BTreeSet<Verdict> =
            lines.iter().map(|line| line.contrast.verdict).chain(failed.iter().map(|f| f.verdict)).collect();
        let verdict = [Verdict::Worse, Verdict::Better, Verdict::Undecided]
            .into_iter()
            .find(|verdict| verdicts.contains(verdict))
            .unwrap_or(Verdict::Same);
        Ok(Self { pairs: pairs.len(), margin: method.margin, lines, failed, verdict })
    }

    /// For a terminal. `before` and `after` name the two sides.
    pub fn to_text(&self, before: &str, after: &str) -> String {
        let mut text = format!(
            "{:<6} {:<10} {:>11} {:>11} {:>7}  {:<15} {:>8} {:>7}  verdict\n",
            "op", "metric", before, after, "ratio", "95 % interval", "finds", "U test"
        );
        for row in self.rows() {
            let [op, metric, before, after, ratio, interval, finds, p, verdict] = row;
            // Writing to a String cannot fail.
            let _infallible = writeln!(
                text,
                "{op:<6} {metric:<10} {before:>11} {after:>11} {ratio:>7}  {interval:<15} {finds:>8} {p:>7}  {verdict}"
            );
        }
        text
    }

    /// A table in Markdown.
    pub fn to_markdown(&self, before: &str, after: &str) -> String {
        let mut text = format!(
            "| op | metric | {before} | {after} | ratio | 95 % interval | finds | U test | verdict |\n\
             |---|---|---:|---:|---:|---|---:|---:|---|\n"
        );
        for row in self.rows() {
            let _infallible = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }

    /// A table in HTML.
    pub fn to_html(&self, before: &str, after: &str) -> String {
        let head = ["op", "metric", before, after, "ratio", "95 % interval", "finds", "U test", "verdict"];
        let cells = |tag: &str, cells: &[&str]| -> String {
            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
        };
        let mut text = format!("<table><thead><tr>{}</tr></thead>\n", cells("th", &head));
        for row in self.rows() {
            let verdict = row[8].clone();
            let row: Vec<&str> = row.iter().map(String::as_str).collect();
            let _infallible = writeln!(text, "<tr class=\"{}\">{}</tr>", escape(&verdict), cells("td", &row));
        }
        text + "</table>\n"
    }

    fn rows(&self) -> impl Iterator<Item = [String; 9]> + '_ {
        let lines = self.lines.iter().map(|Line { op, contrast }| {
            let ratio =
                |ratio: Option<f64>| ratio.map_or_else(|| "?".to_owned(), |ratio| format!("{ratio:.3}"));
            [
                op.as_str().to_owned(),
                contrast.metric.as_str().to_owned(),
                contrast.metric.show(contrast.before),
                contrast.metric.show(contrast.after),
                format!("{:.3}", contrast.ratio),
                format!("{} to {}", ratio(contrast.low), ratio(contrast.high)),
                contrast.detectable.map_or_else(|| "?".to_owned(), |share| format!("{:.1} %", share * 100.0)),
                format!("{:.3}", contrast.mann_whitney_p),
                contrast.verdict.as_str().to_owned(),
            ]
        });
        let failed = self.failed.iter().map(|failed| {
            let percent = |share: f64| format!("{:.2} %", share * 100.0);
            let (op, metric) = (failed.op.as_str().to_owned(), "failed".to_owned());
            let (before, after) = (percent(failed.before), percent(failed.after));
            let none = String::new;
            [op, metric, before, after, none(), none(), none(), none(), failed.verdict.as_str().to_owned()]
        });
        lines.chain(failed)
    }

    /// The verdict in words, about the second side.
    pub fn sentence(&self) -> String {
        let of = |verdict| {
            let lines = self.lines.iter().filter(move |line| line.contrast.verdict == verdict).map(change);
            let failed = self.failed.iter().filter(move |failed| failed.verdict == verdict);
            lines.chain(failed.map(|failed| format!("failed {}", failed.op.as_str()))).collect::<Vec<_>>()
        };
        let (worse, better) = (of(Verdict::Worse), of(Verdict::Better));
        match self.verdict {
            Verdict::Worse if better.is_empty() => format!("worse: {}", worse.join(", ")),
            Verdict::Worse => format!("worse: {}; better: {}", worse.join(", "), better.join(", ")),
            Verdict::Better => format!("better: {}; nothing is worse", better.join(", ")),
            Verdict::Same => format!("the same within {:.0} %", self.margin * 100.0),
            Verdict::Undecided => {
                let least = self.lines.iter().filter_map(|line| line.contrast.detectable).fold(0.0, f64::max);
                let found = format!("a change of {:.0} % would have been found", least * 100.0);
                format!(
                    "undecided: neither better nor worse was shown, nor that it is the same; {found}; more pairs or longer runs tell more"
                )
            }
        }
    }
}

fn change(Line { op, contrast }: &Line) -> String {
    let percent = |ratio: f64| format!("{:+.1} %", (ratio - 1.0) * 100.0);
    let interval = match (contrast.low, contrast.high) {
        (Some(low), Some(high)) => format!(" ({} to {})", percent(low), percent(high)),
        _ => String::new(),
    };
    format!("{} {} {}{interval}", op.as_str(), contrast.metric.as_str(), percent(contrast.ratio))
}

fn failed_share<'a>(reports: impl Iterator<Item = &'a Report>, op: Op) -> f64 {
    let (mut failed, mut all) = (0u64, 0u64);
    for row in reports.flat_map(|report| &report.timeline).filter(|row| row.op == op) {
        failed += row.errors;
        all += row.errors + row.requests;
    }
    failed as f64 / all.max(1) as f64
}
