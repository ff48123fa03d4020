//! A report as one page that needs nothing else: pictures, tables, and the report itself to be read by programs.

use std::fmt::Write as _;

use common::config::show_bytes;
use common::html::escape;

use super::Report;
use super::chart::{Axis, Band, Chart, Line, Scale, Ticks, linear_bounds, log_bounds};
use super::escape::json_in_script;
use super::overview::{Overview, Piece, Quantiles, spectrum, totals};
use super::text::{shortened, show_bytes_short, show_number, show_us};
use crate::measure::Source;
use crate::plan::Pace;
use crate::servers::{CPU, HARNESS, MEMORY, ServerSeries, Unit};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Rows of the heat map for each power of ten.
const HEAT_ROWS_PER_DECADE: f64 = 10.0;
/// Lines of one picture of the servers: more cannot be told apart.
const LINES_MAX: usize = 16;

impl Report {
    pub fn to_html(&self) -> String {
        let overview = Overview::of(self);
        let unmeasured = [
            (0.0, overview.warmup_s, "warm-up"),
            // The rest of a second is nothing to look at.
            (overview.arrivals_end_s, overview.end_s, "only answers to what had waited"),
        ];
        let page = Page { report: self, overview, bands: bands(self), unmeasured };
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _infallible = page.write(&mut out);
        out
    }
}

struct Page<'a> {
    report: &'a Report,
    overview: Overview,
    bands: Vec<Band>,
    unmeasured: [(f64, f64, &'static str); 2],
}

/// Events, shaded until the load had recovered.
fn bands(report: &Report) -> Vec<Band> {
    let events = report.events.iter().enumerate().map(|(index, event)| {
        let at = event.happened.at_s;
        let recovered = event.recovery.as_ref().and_then(|recovery| recovery.recovered_after_s);
        Band {
            letter: letter(index),
            what: format!("{at:.1} s: {}", event.happened.what),
            from: at,
            to: recovered.map_or(at, |seconds| at.floor() + seconds as f64).max(at),
        }
    });
    events.collect()
}

/// A, B, … Z, then A1, B1, …
fn letter(index: usize) -> String {
    let letter = char::from(b'A' + (index % 26) as u8);
    if index < 26 { letter.to_string() } else { format!("{letter}{}", index / 26) }
}

fn line(name: impl Into<String>, colour: usize, points: impl Iterator<Item = (f64, Option<f64>)>) -> Line {
    Line { name: name.into(), colour, is_dashed: false, points: points.collect() }
}

fn dashed(line: Line) -> Line {
    Line { is_dashed: true, ..line }
}

/// Without the zeros that line up in a table.
fn show_seconds(value: f64) -> String {
    let shown = show_us(value * 1e6);
    match shown.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => shown,
    }
}

/// A time on the axis of seconds.
fn show_time(value: f64) -> String {
    if value.fract().abs() < 1e-6 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn axis<'a>(
    label: &'a str,
    scale: Scale,
    (from, to): (f64, f64),
    show: &'a dyn Fn(f64) -> String,
) -> Axis<'a> {
    Axis { label, scale, from, to, show, ticks: Ticks::Of(1.0) }
}

impl Page<'_> {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let report = self.report;
        let title =
            format!("Load test of {}, {}", report.client, if report.passed { "passed" } else { "failed" });
        write!(
            out,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
             <style>\n{STYLE}</style></head><body><main>\n",
            escape(&title)
        )?;
        self.write_verdict(out)?;
        self.write_time(out)?;
        self.write_distribution(out)?;
        self.write_results(out)?;
        self.write_events(out)?;
        self.write_servers(out)?;
        self.write_checks(out)?;
        self.write_setup(out)?;
        let json = serde_json::to_string(report).unwrap_or_default();
        write!(
            out,
            "<h2>The report itself</h2><p>All of this was drawn from one JSON object, which is in this page: \
             <code>bench report report.json -o page.html</code> draws it again.</p>\
             <button type=\"button\" class=\"keep\">Save report.json</button></main>\n\
             <script type=\"application/json\" id=\"report\">{}</script>\n<script>\n{SCRIPT}</script></body></html>\n",
            json_in_script(&json)
        )
    }

    fn write_verdict(&self, out: &mut String) -> std::fmt::Result {
        let report = self.report;
        let (class, mark) = if report.passed { ("ok", "passed") } else { ("fail", "failed") };
        write!(
            out,
            "<h1>Load test as {}: {}</h1><div class=\"verdict\"><span class=\"mark {class}\">{mark}</span><span>{}</span></div>",
            escape(&report.client),
            escape(&self.pace()),
            escape(&report.sentence())
        )?;
        let (response, _) = totals(report, None);
        let summary = response.summary();
        let mut tiles = vec![
            (show_number(report.requests_per_s()), "requests a second"),
            (format!("{}/s", show_bytes_short(report.bytes_per_s())), "content bytes"),
            (show_us(summary.p50_us), "p50 response"),
            (show_us(summary.p99_us), "p99 response"),
            (show_us(summary.p999_us), "p99.9 response"),
            (report.error_count().to_string(), "errors"),
        ];
        if let Some(billing) = &report.billing {
            let booked = format!("{}/{}", billing.service.complete, billing.delivered);
            tiles.push((booked, "booked/delivered"));
        }
        if report.plan.pace != Pace::Closed {
            tiles.push((report.dropped.to_string(), "arrivals never sent"));
        }
        out.push_str("<div class=\"tiles\">");
        for (value, name) in tiles {
            write!(out, "<div><b>{}</b><span>{name}</span></div>", escape(&value))?;
        }
        out.push_str("</div>");
        Ok(())
    }

    fn pace(&self) -> String {
        let plan = &self.report.plan;
        match plan.pace {
            Pace::Closed => format!("closed loop over {} connections", plan.connections),
            Pace::Open { rate, arrivals } => {
                let arrivals = format!("{arrivals:?}").to_lowercase();
                format!("open loop, {rate} requests a second ({arrivals}), {} connections", plan.connections)
            }
            Pace::Trace { time_scale } => {
                format!("a trace, replayed {time_scale} times as fast, {} connections", plan.connections)
            }
        }
    }

    fn over_time<'a>(&'a self, title: &'a str, note: &'a str, y: Axis<'a>, lines: Vec<Line>) -> Chart<'a> {
        Chart {
            title,
            note,
            x: axis(
                "seconds since the start of the load",
                Scale::Linear,
                (0.0, self.overview.end_s),
                &show_time,
            ),
            y,
            lines,
            bands: &self.bands,
            unmeasured: &self.unmeasured,
            unit_of_x: "s",
        }
    }

    /// A value of each piece, at its middle.
    fn points<'a>(
        &'a self,
        value: impl Fn(&Piece) -> Option<f64> + 'a,
    ) -> impl Iterator<Item = (f64, Option<f64>)> + 'a {
        let middle = self.overview.piece_s as f64 / 2.0;
        self.overview.pieces.iter().map(move |piece| (piece.at_s + middle, value(piece)))
    }

    fn write_time(&self, out: &mut String) -> std::fmt::Result {
        let mut note = String::from("What was answered in each second");
        if self.overview.piece_s > 1 {
            note = format!("Means of {} s", self.overview.piece_s);
        }
        write!(
            out,
            "<h2>Over time</h2><p class=\"faint\">{note}. Grey: warm-up, and answers to what had waited when the last request was due.",
        )?;
        if !self.bands.is_empty() {
            out.push_str(" Letters are the events below; what is shaded is the time until recovery.");
        }
        out.push_str("</p><div class=\"charts\">");
        let ops = self.overview.ops();
        let mut lines: Vec<Line> = Vec::new();
        let all = |piece: &Piece| piece.requests_per_s.values().sum::<f64>();
        if ops.len() != 1 {
            lines.push(line("all", 0, self.points(|piece| Some(all(piece)))));
        }
        for (index, op) in ops.iter().enumerate() {
            let rate = |piece: &Piece| Some(piece.requests_per_s.get(op).copied().unwrap_or(0.0));
            lines.push(line(op.as_str(), index + usize::from(ops.len() != 1), self.points(rate)));
        }
        if self.overview.pieces.iter().any(|piece| piece.errors_per_s > 0.0) {
            lines.push(dashed(line("errors", 1, self.points(|piece| Some(piece.errors_per_s)))));
        }
        let highest = self.overview.pieces.iter().map(all).fold(0.0, f64::max);
        let y = axis("answers a second", Scale::Linear, linear_bounds(highest), &show_number);
        out.push_str(
            &self.over_time("Throughput", "Answers by operation, and failures.", y, lines).to_html(),
        );

        let quantile = |of: fn(&Piece) -> Option<Quantiles>, pick: fn(&Quantiles) -> f64| {
            self.points(move |piece| of(piece).map(|quantiles| pick(&quantiles)))
        };
        let response = |piece: &Piece| piece.response;
        let service = |piece: &Piece| piece.service;
        let lines = vec![
            line("response p50", 0, quantile(response, |q| q.p50)),
            line("response p99", 1, quantile(response, |q| q.p99)),
            line("response p99.9", 3, quantile(response, |q| q.p999)),
            dashed(line("service p50", 0, quantile(service, |q| q.p50))),
            dashed(line("service p99", 1, quantile(service, |q| q.p99))),
        ];
        let y = axis("time, logarithmic", Scale::Log, bounds_of(&lines), &show_seconds);
        let note = "Response time from the intended start, service time from sending.";
        out.push_str(&self.over_time("Latency", note, y, lines).to_html());
        self.write_waiting(out);
        let bytes = self.overview.pieces.iter().map(|piece| piece.bytes_per_s).fold(0.0, f64::max);
        let lines = vec![line("content bytes", 2, self.points(|piece| Some(piece.bytes_per_s)))];
        let show = show_bytes_short;
        let mib = f64::from(1 << 20);
        let (from, to) = linear_bounds(bytes / mib);
        let y = axis("bytes a second", Scale::Linear, (from * mib, to * mib), &show);
        let y = Axis { ticks: Ticks::Of(mib), ..y };
        out.push_str(&self.over_time("Bytes", "Of contents, both ways.", y, lines).to_html());
        out.push_str("</div>");
        Ok(())
    }

    fn write_heat_map(&self, out: &mut String) {
        let pieces = &self.overview.pieces;
        let times = pieces.iter().flat_map(|piece| piece.times.iter().map(|(ns, _)| *ns as f64 / 1e9));
        let (low, high) = log_bounds(times);
        let row_of = |seconds: f64| ((seconds / low).log10() * HEAT_ROWS_PER_DECADE).floor().max(0.0) as u32;
        let mut cells: Vec<(f64, u32, u64)> = Vec::new();
        for piece in pieces {
            let first = cells.len();
            for (ns, count) in &piece.times {
                let row = row_of(*ns as f64 / 1e9);
                match cells.last_mut() {
                    // Times ascend, so rows do.
                    Some(cell) if cell.1 == row && cell.0 == piece.at_s => cell.2 += count,
                    _ => cells.push((piece.at_s, row, *count)),
                }
            }
            debug_assert!(cells[first..].is_sorted_by_key(|cell| cell.1));
        }
        let most = cells.iter().map(|cell| cell.2).max().unwrap_or(1).max(2) as f64;
        let edge = |row: u32| (low * 10f64.powf(f64::from(row) / HEAT_ROWS_PER_DECADE)).min(high);
        let end = self.overview.end_s;
        let cells: Vec<(f64, f64, f64, f64, f64)> = cells
            .into_iter()
            .map(|(at, row, count)| {
                let width = (self.overview.piece_s as f64).min(end - at).max(0.0);
                (at, edge(row), width, edge(row + 1), (count as f64).ln() / most.ln())
            })
            .collect();
        let y = axis("response time, logarithmic", Scale::Log, (low, high), &show_seconds);
        let note = format!("How many answers took how long; the darkest cell has {}.", show_number(most));
        out.push_str(&self.over_time("Response times by second", &note, y, Vec::new()).to_heat_map(&cells));
    }

    /// How much of the response time was waiting for the request to be sent.
    fn write_waiting(&self, out: &mut String) {
        let mean = |of: fn(&Piece) -> Option<Quantiles>| self.points(move |piece| of(piece).map(|q| q.mean));
        let lines = vec![
            line("response", 1, mean(|piece| piece.response)),
            dashed(line("service", 0, mean(|piece| piece.service))),
        ];
        let y = axis("mean time, logarithmic", Scale::Log, bounds_of(&lines), &show_seconds);
        let note = match self.report.plan.pace {
            Pace::Closed => {
                "In a closed loop they are the same: nothing waits to be sent, so stalls hide load."
            }
            Pace::Open { .. } | Pace::Trace { .. } => {
                "What lies between them is waiting for the system: requests that were due and not sent."
            }
        };
        out.push_str(&self.over_time("Response time against service time", note, y, lines).to_html());
    }

    fn write_distribution(&self, out: &mut String) -> std::fmt::Result {
        let mut lines = Vec::new();
        let ops = self.overview.ops();
        for (index, op) in ops.iter().enumerate() {
            let (response, service) = totals(self.report, Some(*op));
            let colour = if index == 1 { 2 } else { index };
            for (name, latency, is_dashed) in [("response", response, false), ("service", service, true)] {
                let points = spectrum(&latency).into_iter().map(|(x, seconds)| (x, Some(seconds)));
                let points = line(format!("{} {name}", op.as_str()), colour, points);
                lines.push(Line { is_dashed, ..points });
            }
        }
        let highest = lines.iter().flat_map(|line| &line.points).map(|(x, _)| *x).fold(10.0, f64::max);
        let y = axis("time, logarithmic", Scale::Log, bounds_of(&lines), &show_seconds);
        let chart = Chart {
            title: "Spectrum of percentiles",
            note: "After the warm-up. Each step to the right is ten times rarer.",
            x: Axis {
                ticks: Ticks::Nines,
                ..axis("percentile, by 1/(1-p)", Scale::Log, (1.0, highest), &show_percentile)
            },
            y,
            lines,
            bands: &[],
            unmeasured: &[],
            unit_of_x: "th percentile",
        };
        write!(out, "<h2>Distribution</h2><div class=\"charts\">{}", chart.to_html())?;
        self.write_heat_map(out);
        out.push_str("</div>");
        Ok(())
    }

    fn write_results(&self, out: &mut String) -> std::fmt::Result {
        out.push_str("<h2>By operation, source and size</h2><div class=\"wide\"><table><tr><th>operation</th><th>source</th>");
        for head in ["up to", "requests", "per s", "MiB/s"] {
            write!(out, "<th class=\"n\">{head}</th>")?;
        }
        out.push_str("<th>time</th>");
        for head in ["mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"] {
            write!(out, "<th class=\"n\">{head}</th>")?;
        }
        out.push_str("</tr>");
        for row in &self.report.results {
            let size = row.size_max_bytes.map_or_else(|| "all".to_owned(), show_bytes);
            write!(
                out,
                "<tr><td>{}</td><td>{}</td>",
                row.op.as_str(),
                row.source.map_or("all", Source::as_str)
            )?;
            let figures = [
                size,
                row.requests.to_string(),
                format!("{:.1}", row.requests_per_s),
                format!("{:.1}", row.mib_per_s),
            ];
            for figure in figures {
                write!(out, "<td class=\"n\">{}</td>", escape(&figure))?;
            }
            out.push_str("<td>response<br>service</td>");
            let (a, b) = (&row.response, &row.service);
            for (response, service) in [
                (a.mean_us, b.mean_us),
                (a.p50_us, b.p50_us),
                (a.p90_us, b.p90_us),
                (a.p99_us, b.p99_us),
                (a.p999_us, b.p999_us),
                (a.p9999_us, b.p9999_us),
                (a.max_us, b.max_us),
            ] {
                write!(out, "<td class=\"n\">{}<br>{}</td>", show_us(response), show_us(service))?;
            }
            out.push_str("</tr>");
        }
        out.push_str("</table></div>");
        if !self.report.errors.is_empty() {
            let rows = self.report.errors.iter();
            let rows = rows.map(|e| vec![e.op.as_str().to_owned(), e.code.clone(), e.count.to_string()]);
            out.push_str("<h3>Errors</h3>");
            table(out, &["operation", "code", "count"], 2, rows)?;
        }
        Ok(())
    }

    fn write_events(&self, out: &mut String) -> std::fmt::Result {
        if self.report.events.is_empty() {
            return Ok(());
        }
        out.push_str(
            "<h2>Events</h2><p class=\"faint\">Dip: how far the worst second was below the mean before. Recovered: \
             throughput was back at nine tenths of it, for three seconds in a row. Missing: answers that the mean before \
             would have brought until then. p99 is of the response time.</p>\
             <div class=\"wide\"><table><tr><th></th><th class=\"n\">at</th><th>event</th>",
        );
        for head in [
            "before/s",
            "dip",
            "recovered after",
            "errors",
            "missing",
            "p99 before",
            "p99 during",
            "p99 after",
        ] {
            write!(out, "<th class=\"n\">{head}</th>")?;
        }
        out.push_str("</tr>");
        for (index, event) in self.report.events.iter().enumerate() {
            write!(out, "<tr><td><span class=\"letter\">{}</span></td>", letter(index))?;
            for (place, cell) in event.cells().iter().enumerate() {
                let class = if place == 1 { "" } else { " class=\"n\"" };
                write!(out, "<td{class}>{}</td>", escape(cell))?;
            }
            out.push_str("</tr>");
        }
        out.push_str("</table></div>");
        Ok(())
    }

    fn write_servers(&self, out: &mut String) -> std::fmt::Result {
        let servers = &self.report.servers;
        if servers.series.is_empty() {
            return Ok(());
        }
        write!(
            out,
            "<h2>Servers</h2><p class=\"faint\">Sampled once a second on a thread of its own, which used {:.2} s of CPU \
             time; {} of {} scrapes had no answer in time. What was zero all the time is left out. <b>{HARNESS}</b> is the \
             load generator.</p><div class=\"charts\">",
            servers.sampling_cpu_s, servers.scrapes_failed, servers.scrapes
        )?;
        let mut names: Vec<(String, Unit)> = Vec::new();
        for series in &servers.series {
            let name = (series.name.clone(), series.unit);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        for (name, unit) in names {
            let of_name: Vec<&ServerSeries> =
                servers.series.iter().filter(|series| series.name == name).collect();
            self.write_server_chart(out, &name, unit, &of_name);
        }
        out.push_str("</div><h3 style=\"margin-top:20px\">Processes, in the measured part</h3>");
        let rows = self.report.processes.iter().map(|process| {
            vec![
                process.servers.join(" "),
                process.pid.to_string(),
                format!("{:.2} s", process.cpu_s),
                show_us(process.cpu_us_per_request),
                show_bytes(process.rss_peak_bytes),
            ]
        });
        table(out, &["servers", "process", "CPU", "CPU a request", "peak memory"], 1, rows)
    }

    fn write_server_chart(&self, out: &mut String, name: &str, unit: Unit, series: &[&ServerSeries]) {
        let lines = series.iter().take(LINES_MAX).enumerate().map(|(index, series)| {
            let mut name = shortened(&series.server);
            if !series.label.is_empty() {
                name = format!("{name} {}", series.label);
            }
            let points = with_gaps(&series.points).into_iter();
            let line = line(name, index, points.filter(|(at, _)| *at <= self.overview.end_s));
            Line { is_dashed: index >= super::chart::COLOURS, ..line }
        });
        let lines: Vec<Line> = lines.collect();
        let values = || lines.iter().flat_map(|line| &line.points).filter_map(|(_, value)| *value);
        let highest = values().fold(0.0, f64::max);
        let steps = match unit {
            Unit::Bytes | Unit::BytesPerSecond => {
                1024f64.powf((highest.max(1.0).ln() / 1024f64.ln()).floor())
            }
            _ => 1.0,
        };
        let (from, to) = linear_bounds(highest / steps);
        // The unit is the axis' name.
        let show = |value: f64| match unit {
            Unit::Bytes | Unit::BytesPerSecond => show_bytes_short(value),
            Unit::Seconds if value > 0.0 => show_seconds(value),
            _ => show_number(value),
        };
        let title = title_of(name);
        let y = axis(unit.name(), Scale::Linear, (from * steps, to * steps), &show);
        let y = Axis { ticks: Ticks::Of(steps), ..y };
        let note = if series.len() > LINES_MAX { "The first sixteen of them." } else { "" };
        out.push_str(&self.over_time(&title, note, y, lines).to_html());
    }

    fn write_checks(&self, out: &mut String) -> std::fmt::Result {
        let report = self.report;
        out.push_str("<h2>Verification and billing</h2><div class=\"two\"><div><h3>Checks</h3><table>");
        for check in report.checks() {
            let (class, mark) = match check.held {
                Some(true) => ("ok", "ok"),
                Some(false) => ("fail", "failed"),
                None => ("open", "not made"),
            };
            write!(
                out,
                "<tr><td><span class=\"mark {class}\">{mark}</span></td><td>{}</td><td>{}</td></tr>",
                escape(&check.name),
                escape(&check.text)
            )?;
        }
        out.push_str("</table>");
        for example in &report.wrong_examples {
            write!(out, "<p>{}</p>", escape(example))?;
        }
        out.push_str("</div>");
        if let Some(billing) = &report.billing {
            out.push_str("<div><h3>Deliveries against bookings</h3>");
            let row = |name: &str, value: String| vec![name.to_owned(), value];
            let mut rows = vec![
                row("received whole", billing.delivered.to_string()),
                row("broken off", billing.broken.to_string()),
                row("without an answer", billing.unanswered.to_string()),
            ];
            for (name, booked) in
                [("service billing", &billing.service), ("content billing", &billing.content)]
            {
                for (status, count) in &booked.by_status {
                    rows.push(row(&format!("{name}: {status}"), count.to_string()));
                }
                rows.push(row(&format!("{name}: out of balance by"), booked.imbalance_micros.to_string()));
            }
            for (name, counts) in [("source", &report.sources), ("class", &report.classes)] {
                for (value, count) in counts {
                    rows.push(row(&format!("deliveries of {name} {value}"), count.to_string()));
                }
            }
            table(out, &["", "deliveries"], 1, rows.into_iter())?;
            out.push_str("</div>");
        }
        out.push_str("</div>");
        Ok(())
    }

    fn write_setup(&self, out: &mut String) -> std::fmt::Result {
        let (report, host) = (self.report, &self.report.host);
        let mut machine = vec![
            ("processor", format!("{}, {} cores", host.cpu, host.cores)),
            ("memory", show_bytes(host.memory_bytes)),
            ("kernel", format!("Linux {}", host.kernel)),
            ("disk", host.disk.clone()),
            ("frequency governor", host.governor.clone()),
            ("control group", group_limits(host.cgroup_cores, host.cgroup_memory_bytes)),
            ("git revision", host.revision.clone()),
            ("harness", format!("bench {}, {}", report.version, report.schema)),
        ];
        if let Some(lag) = &report.pacer_lag {
            let lag = format!("p99 {}, at most {}", show_us(lag.p99_us), show_us(lag.max_us));
            machine.push(("pacer late by", lag));
        }
        let plan = serde_json::to_value(&report.plan).unwrap_or_default();
        let mut planned = vec![("pace".to_owned(), self.pace())];
        for (name, value) in plan.as_object().into_iter().flatten().filter(|(name, _)| *name != "pace") {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            planned.push((name.replace('_', " "), shown));
        }
        if !report.agents.is_empty() {
            out.push_str("<h2>Agents</h2>");
            let rows = report.agents.iter().map(|agent| {
                vec![
                    agent.address.clone(),
                    agent.lost.clone().unwrap_or_else(|| "stayed".to_owned()),
                    agent.connections.to_string(),
                    agent.requests.to_string(),
                    format!("{:.2} s", agent.cpu_s),
                    format!("{:.3} ms", agent.clock_offset_ms),
                    format!("{:.3} ms", agent.round_trip_ms),
                ]
            });
            let heads = ["agent", "", "connections", "requests", "CPU", "clock ahead by", "round trip"];
            table(out, &heads, 2, rows)?;
        }
        out.push_str("<h2>Setup</h2><div class=\"two\"><div><h3>Machine</h3><dl class=\"setup\">");
        for (name, value) in machine {
            let value = if value.is_empty() { "not known" } else { &value };
            write!(out, "<dt>{name}</dt><dd>{}</dd>", escape(value))?;
        }
        out.push_str("</dl></div><div><h3>Plan</h3><dl class=\"setup\">");
        for (name, value) in planned {
            write!(out, "<dt>{}</dt><dd>{}</dd>", escape(&name), escape(&value))?;
        }
        out.push_str("</dl></div></div>");
        Ok(())
    }
}

fn group_limits(cores: Option<f64>, memory_bytes: Option<u64>) -> String {
    match (cores, memory_bytes) {
        (None, None) => "no limits".to_owned(),
        (cores, memory) => {
            let cores = cores.map(|cores| format!("{cores} cores"));
            let memory = memory.map(|bytes| format!("{} memory", show_bytes(bytes)));
            cores.into_iter().chain(memory).collect::<Vec<_>>().join(", ")
        }
    }
}

/// A table whose columns from `first_number` on are numbers.
fn table(
    out: &mut String,
    heads: &[&str],
    first_number: usize,
    rows: impl Iterator<Item = Vec<String>>,
) -> std::fmt::Result {
    let class = |column: usize| if column >= first_number { " class=\"n\"" } else { "" };
    out.push_str("<div class=\"wide\"><table><tr>");
    for (column, head) in heads.iter().enumerate() {
        write!(out, "<th{}>{}</th>", class(column), escape(head))?;
    }
    out.push_str("</tr>");
    for row in rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            write!(out, "<td{}>{}</td>", class(column), escape(cell))?;
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div>");
    Ok(())
}

/// With a break where nothing could be read for longer than usual.
fn with_gaps(points: &[(f64, f64)]) -> Vec<(f64, Option<f64>)> {
    const USUAL: f64 = 1.8;
    let mut spacings: Vec<f64> = points.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    spacings.sort_by(f64::total_cmp);
    let median = spacings.get(spacings.len() / 2).copied().unwrap_or(0.0);
    let mut out: Vec<(f64, Option<f64>)> = Vec::new();
    for (at, value) in points {
        if let Some((before, _)) = out.last().filter(|(before, _)| at - before > USUAL * median) {
            out.push(((at + before) / 2.0, None));
        }
        out.push((*at, Some(*value)));
    }
    out
}

fn bounds_of(lines: &[Line]) -> (f64, f64) {
    log_bounds(lines.iter().flat_map(|line| &line.points).filter_map(|(_, value)| *value))
}

/// 1/(1-p) as a percentile: 1 is the least, 100 is 99.
fn show_percentile(x: f64) -> String {
    let percent = 100.0 * (1.0 - 1.0 / x);
    let nines = x.log10();
    let is_mark = nines.fract().abs() < 1e-6 || (x - 2.0).abs() < 1e-6;
    let digits = (nines.ceil() as usize).saturating_sub(2) + usize::from(!is_mark);
    format!("{percent:.digits$}")
}

fn title_of(name: &str) -> String {
    match name {
        CPU => "Processors in use".to_owned(),
        MEMORY => "Memory (resident)".to_owned(),
        other => {
            let words = other.strip_prefix("dozo_").unwrap_or(other);
            let words =
                words.trim_end_matches("_total").trim_end_matches("_seconds").trim_end_matches("_bytes");
            let words = words.replace('_', " ");
            let mut letters = words.chars();
            letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_breaks_where_nothing_could_be_read() {
        let points = [(0.0, 1.0), (1.0, 2.0), (1.3, 2.5), (2.0, 3.0), (5.0, 4.0), (6.0, 5.0)];
        let gaps: Vec<f64> =
            with_gaps(&points).iter().filter(|(_, value)| value.is_none()).map(|(at, _)| *at).collect();
        assert_eq!(gaps, [3.5]);
        assert_eq!((with_gaps(&[]).len(), with_gaps(&points[..1]).len()), (0, 1));
    }

    #[test]
    fn percentiles_and_letters_are_short() {
        let shown: Vec<String> = [1.0, 2.0, 10.0, 100.0, 1000.0, 1e5].map(show_percentile).to_vec();
        assert_eq!(shown, ["0", "50", "90", "99", "99.9", "99.999"]);
        assert_eq!((letter(0), letter(25), letter(27)), ("A".into(), "Z".into(), "B1".into()));
        assert_eq!((show_seconds(0.3), show_seconds(1.0)), ("300 ms".into(), "1 s".into()));
    }
}
