//! A report as Markdown: the tables that one puts into an issue.

use std::fmt::Write as _;

use common::config::show_bytes;

use super::Report;
use super::escape::markdown;
use super::text::show_us;
use crate::measure::Source;

impl Report {
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _infallible = self.write_markdown(&mut out);
        out
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "# Load test: {}\n\n{}\n",
            if self.passed { "passed" } else { "FAILED" },
            markdown(&self.sentence())
        )?;
        writeln!(
            out,
            "| operation | source | up to | requests | per s | MiB/s | time | p50 | p90 | p99 | p99.9 | max |"
        )?;
        writeln!(out, "|---|---|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|")?;
        for row in &self.results {
            let size = row.size_max_bytes.map_or_else(|| "all".to_owned(), show_bytes);
            let source = row.source.map_or("all", Source::as_str);
            for (name, times) in [("response", &row.response), ("service", &row.service)] {
                write!(
                    out,
                    "| {} | {source} | {size} | {} | {:.1} | {:.1} | {name}",
                    row.op.as_str(),
                    row.requests,
                    row.requests_per_s,
                    row.mib_per_s
                )?;
                for us in [times.p50_us, times.p90_us, times.p99_us, times.p999_us, times.max_us] {
                    write!(out, " | {}", show_us(us))?;
                }
                writeln!(out, " |")?;
            }
        }
        if !self.errors.is_empty() {
            writeln!(out, "\n| errors of | code | count |\n|---|---|--:|")?;
            for error in &self.errors {
                writeln!(out, "| {} | {} | {} |", error.op.as_str(), markdown(&error.code), error.count)?;
            }
        }
        if !self.events.is_empty() {
            writeln!(
                out,
                "\n| at | event | before/s | dip | recovered after | errors | missing | p99 before | during | after |"
            )?;
            writeln!(out, "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        }
        for event in &self.events {
            let cells = event.cells();
            writeln!(out, "| {} |", cells.iter().map(|cell| markdown(cell)).collect::<Vec<_>>().join(" | "))?;
        }
        writeln!(out, "\n| servers | CPU | CPU a request | peak memory |\n|---|--:|--:|--:|")?;
        for process in &self.processes {
            let (cpu, memory) = (show_us(process.cpu_us_per_request), show_bytes(process.rss_peak_bytes));
            writeln!(
                out,
                "| {} | {:.2} s | {cpu} | {memory} |",
                markdown(&process.servers.join(" ")),
                process.cpu_s
            )?;
        }
        writeln!(out, "\n| check | result | |\n|---|---|---|")?;
        for check in self.checks() {
            let mark = check.held.map_or("–", |held| if held { "ok" } else { "**FAIL**" });
            writeln!(out, "| {} | {mark} | {} |", markdown(&check.name), markdown(&check.text))?;
        }
        let host = &self.host;
        writeln!(
            out,
            "\n{} cores, {}, {} memory, Linux {}, disk {}; seed {:016x}, revision {}",
            host.cores,
            markdown(&host.cpu),
            show_bytes(host.memory_bytes),
            markdown(&host.kernel),
            markdown(&host.disk),
            self.plan.seed,
            if host.revision.is_empty() { "unknown" } else { &host.revision }
        )
    }
}
