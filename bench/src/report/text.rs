//! A report as tables for a terminal.

use std::fmt::Write as _;

use common::config::show_bytes;

use super::Report;
use crate::measure::Source;
use crate::servers::{CPU, MEMORY, ServerSeries, Unit};

impl Report {
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
        self.write_agents(out)?;
        self.write_servers(out)?;
        self.write_events(out)?;
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

    fn write_agents(&self, out: &mut String) -> std::fmt::Result {
        if self.agents.is_empty() {
            return Ok(());
        }
        writeln!(
            out,
            "\n{:>11} {:>9} {:>9} {:>12} {:>11}  agent",
            "connections", "requests", "cpu", "clock ahead", "round trip"
        )?;
        for agent in &self.agents {
            writeln!(
                out,
                "{:>11} {:>9} {:>7.2} s {:>9.3} ms {:>8.3} ms  {}",
                agent.connections,
                agent.requests,
                agent.cpu_s,
                agent.clock_offset_ms,
                agent.round_trip_ms,
                agent.address
            )?;
        }
        Ok(())
    }

    /// What their processes use is in the table of processes; here is what they say themselves.
    fn write_servers(&self, out: &mut String) -> std::fmt::Result {
        let servers = &self.servers;
        let is_shown =
            |series: &&ServerSeries| series.peak > 0.0 && series.name != CPU && series.name != MEMORY;
        if servers.series.iter().any(|series| is_shown(&series)) {
            writeln!(out, "\n{:>12} {:>12}  servers over time", "mean", "peak")?;
        }
        for series in servers.series.iter().filter(is_shown) {
            let (mean, peak) = (series.unit.show(series.mean), series.unit.show(series.peak));
            let server = shortened(&series.server);
            writeln!(out, "{mean:>12} {peak:>12}  {server}: {}", series.title())?;
        }
        if servers.scrapes > 0 {
            writeln!(
                out,
                "sampling took {:.2} s of CPU time; {} of {} scrapes had no answer in time",
                servers.sampling_cpu_s, servers.scrapes_failed, servers.scrapes
            )?;
        }
        Ok(())
    }

    fn write_events(&self, out: &mut String) -> std::fmt::Result {
        if self.events.is_empty() {
            return Ok(());
        }
        writeln!(
            out,
            "\n{:>7} {:>8} {:>9} {:>6} {:>10} {:>8} {:>8} {:>9} {:>9} {:>9}  event",
            "at", "done in", "before/s", "dip", "recovered", "errors", "missing", "p99", "during", "after"
        )?;
        for event in &self.events {
            let happened = &event.happened;
            let done = happened.done_after_s.map_or_else(|| "-".to_owned(), |s| format!("{s:.2} s"));
            write!(out, "{:>5.1} s {done:>8}", happened.at_s)?;
            match &event.recovery {
                Some(recovery) => {
                    let after = recovery.recovered_after_s;
                    let after = after.map_or_else(|| "not".to_owned(), |seconds| format!("{seconds} s"));
                    let p99_after = recovery.p99_after_us.map_or_else(|| "-".to_owned(), show_us);
                    write!(
                        out,
                        " {:>9.1} {:>4.0} % {after:>10} {:>8} {:>8} {:>9} {:>9} {p99_after:>9}",
                        recovery.before_per_s,
                        recovery.dip * 100.0,
                        recovery.errors,
                        recovery.missing,
                        show_us(recovery.p99_before_us),
                        show_us(recovery.p99_during_us),
                    )?;
                }
                None => write!(out, "{:>76}", "no full seconds to compare")?,
            }
            writeln!(out, "  {}", happened.what)?;
            if let Some(error) = &happened.error {
                writeln!(out, "{:>7} FAIL {error}", "")?;
            }
        }
        Ok(())
    }

    fn write_checks(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out)?;
        for check in self.checks() {
            let mark = check.held.map_or("--  ", |held| if held { "ok  " } else { "FAIL" });
            writeln!(out, "{mark} {}: {}", check.name, check.text)?;
        }
        for example in &self.wrong_examples {
            writeln!(out, "       {example}")?;
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

impl ServerSeries {
    /// What is shown, without the server.
    pub fn title(&self) -> String {
        let name = self.name.strip_prefix("dozo_").unwrap_or(&self.name);
        let name = name.strip_suffix("_total").unwrap_or(name).replace('_', " ");
        if self.label.is_empty() { name } else { format!("{name} ({})", self.label) }
    }
}

impl Unit {
    /// For an axis.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cores => "processors",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes a second",
            Self::PerSecond => "a second",
            Self::Seconds => "time",
            Self::Count => "number",
        }
    }

    /// A figure with its unit, short.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Cores => format!("{value:.2} cores"),
            Self::Bytes => show_bytes_short(value),
            Self::BytesPerSecond => format!("{}/s", show_bytes_short(value)),
            Self::PerSecond => format!("{}/s", show_number(value)),
            Self::Seconds => show_us(value * 1e6),
            Self::Count => show_number(value),
        }
    }
}

/// A process that runs many servers has a long name.
pub fn shortened(server: &str) -> String {
    let names: Vec<&str> = server.split(' ').collect();
    match names[..] {
        [first, _, _, _, ..] => format!("{first} and {} more", names.len() - 1),
        _ => server.to_owned(),
    }
}

/// With as many digits as a reader needs.
pub fn show_number(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.1} M", value / 1e6),
        v if v >= 1e4 => format!("{:.1} k", value / 1e3),
        v if v >= 100.0 || v.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// As [`show_bytes`], also of means.
pub fn show_bytes_short(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value.abs() >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}
