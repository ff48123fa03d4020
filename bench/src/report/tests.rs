//! Forms of a report that holds everything a report can hold, hostile names included.

use std::time::Duration;

use super::output::{self, Output, OutputError};
use super::{Event, Host, Report, SCHEMA};
use crate::agents::AgentResult;
use crate::events::Happened;
use crate::events::recovery::Seconds;
use crate::latency::{Buckets, Latency};
use crate::measure::Source;
use crate::plan::{Op, Pace, Plan, Verify};
use crate::process::ProcessCost;
use crate::report::{Errors, Row, TimelineRow};
use crate::run::ReadBack;
use crate::schedule::Arrivals;
use crate::servers::{CPU, ServerSeries, Servers, Unit};
use crate::workload::Workload;
use crate::workload::size::Size;

const HOSTILE: &str = "</script><script>alert(1)</script>|\"'&";

fn times(count: u64, ms: u64) -> Latency {
    let mut latency = Latency::default();
    (0..count).for_each(|n| latency.record(Duration::from_micros(ms * 1000 + n)));
    latency
}

/// Twenty seconds at 100 answers each, of which two stood still.
fn sample() -> Report {
    let mut timeline = Vec::new();
    for second in (0..20).filter(|second| !(10..12).contains(second)) {
        let ms = if second == 12 { 2500 } else { 3 };
        let (response, service) = (times(100, ms).take_buckets(), times(100, 2).take_buckets());
        let row = TimelineRow {
            second,
            op: Op::Get,
            source: Source::Hit,
            requests: 100,
            bytes: 409_600,
            errors: 0,
            response,
            service,
        };
        let none = Buckets::default();
        timeline.push(TimelineRow {
            op: Op::Put,
            source: Source::None,
            requests: 0,
            errors: 1,
            response: none.clone(),
            service: none,
            ..row.clone()
        });
        timeline.push(row);
    }
    let seconds = Seconds::of(&timeline, 2.0, 20.0);
    let happened = Happened {
        at_s: 10.0,
        what: format!("run {HOSTILE}"),
        done_after_s: None,
        error: Some(HOSTILE.into()),
    };
    let summary = times(100, 3).summary();
    Report {
        schema: SCHEMA.into(),
        version: "0".into(),
        host: Host { cpu: HOSTILE.into(), ..Host::here() },
        client: HOSTILE.into(),
        plan: Plan {
            workload: Workload::gets(Size::list(&[4096]), 10),
            trace: None,
            connections: 4,
            threads: 1,
            pace: Pace::Open { rate: 100.0, arrivals: Arrivals::Poisson },
            in_flight_max: 1000,
            warmup: Duration::from_secs(2),
            duration: Duration::from_secs(18),
            request_time_max: Duration::from_secs(60),
            verify: Verify::Full,
            seed: 7,
        },
        prepared_bytes: 40_960,
        elapsed_s: 18.0,
        results: vec![Row {
            op: Op::Get,
            source: Some(Source::Hit),
            size_max_bytes: Some(4096),
            requests: 1600,
            bytes: 6_553_600,
            requests_per_s: 1600.0 / 18.0,
            mib_per_s: 0.35,
            response: summary,
            service: summary,
        }],
        timeline,
        errors: vec![Errors { op: Op::Put, code: HOSTILE.into(), count: 18 }],
        dropped: 3,
        pacer_lag: Some(summary),
        warm_up: None,
        generator: None,
        sources: [("hit".to_owned(), 1600)].into(),
        classes: [(HOSTILE.to_owned(), 1600)].into(),
        processes: vec![ProcessCost {
            pid: 1,
            servers: vec![HOSTILE.into()],
            cpu_s: 1.0,
            cpu_us_per_request: 100.0,
            rss_peak_bytes: 1 << 20,
        }],
        servers: Servers {
            series: vec![ServerSeries {
                server: HOSTILE.into(),
                name: CPU.into(),
                label: HOSTILE.into(),
                unit: Unit::Cores,
                mean: 0.5,
                peak: 1.0,
                points: (1..20).map(|second| (f64::from(second), 0.5)).collect(),
            }],
            ..Servers::default()
        },
        events: Event::all(vec![happened], &seconds),
        agents: vec![AgentResult {
            address: HOSTILE.into(),
            connections: 4,
            requests: 1600,
            clock_offset_ms: 1.5,
            round_trip_ms: 0.2,
            cpu_s: 1.0,
            lost: Some(HOSTILE.into()),
        }],
        wrong_answers: 1,
        stale_reads: 0,
        wrong_examples: vec![HOSTILE.into()],
        read_back: ReadBack::default(),
        billing: None,
        slos: Vec::new(),
        left_behind: 0,
        passed: false,
    }
}

#[test]
fn the_page_is_whole_needs_no_network_and_nothing_in_it_becomes_markup() {
    let page = sample().to_html();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    for forbidden in ["http://", "https://", "src=", "@import", "url(", "alert(1)</", "NaN", "inf"] {
        let found = page.find(forbidden).map(|at| &page[at.saturating_sub(80)..at + 40]);
        assert_eq!(found, None, "{forbidden}");
    }
    assert_eq!(page.matches("<script").count(), 2);
    assert_eq!(page.matches("</script>").count(), 2);
    let script = page.rsplit("<script>").next().unwrap();
    assert!(script.len() < 20 << 10, "{} bytes of script", script.len());
    for element in ["figure", "svg", "table", "tr", "td", "g", "div", "button", "span", "dl"] {
        let opened =
            page.matches(&format!("<{element}>")).count() + page.matches(&format!("<{element} ")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element}");
    }
    let json = page.split("id=\"report\">").nth(1).unwrap().split("</script>").next().unwrap();
    let back: Report = serde_json::from_str(json).unwrap();
    assert_eq!((back.client.as_str(), back.timeline.len()), (HOSTILE, sample().timeline.len()));
    for told in
        ["Throughput", "Spectrum of percentiles", "Response times by second", "Processors in use", "not made"]
    {
        assert!(page.contains(told), "{told}");
    }
}

#[test]
fn a_kept_report_makes_the_same_outputs_again() {
    let folder = tempfile::tempdir().unwrap();
    let write = |report: &Report, name: &str| {
        let path = folder.path().join(name);
        path.to_str().unwrap().parse::<Output>().unwrap().write(report).unwrap();
        std::fs::read_to_string(path).unwrap()
    };
    let report = sample();
    write(&report, "kept.json");
    let kept = output::read(&folder.path().join("kept.json")).unwrap();
    for name in ["page.html", "table.md", "seconds.csv", "again.json"] {
        assert!(write(&report, name) == write(&kept, name), "{name}");
    }
    assert_eq!(report.to_text(), kept.to_text());
    assert!("page.pdf".parse::<Output>().unwrap_err().contains(".html"));
    std::fs::write(folder.path().join("old.json"), "{\"schema\":\"dozo.bench.run/1\"}").unwrap();
    let error = output::read(&folder.path().join("old.json")).unwrap_err();
    assert!(matches!(&error, OutputError::Version { found, .. } if found == "dozo.bench.run/1"), "{error}");
}

#[test]
fn tables_have_the_numbers() {
    let report = sample();
    let csv = report.to_csv();
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 1 + 36);
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{csv}");
    assert_eq!(lines[2][..7], ["0", "0", "get", "hit", "100", "409600", "0"]);
    assert_eq!((lines.last().unwrap()[0], lines.last().unwrap()[1]), ("19", "1"));
    let markdown = report.to_markdown();
    assert!(markdown.contains("| get | hit | 4.0 KiB | 1600 |"), "{markdown}");
    assert!(
        !markdown.contains("<script>") && markdown.contains("100 %") && markdown.contains("| 2 s |"),
        "{markdown}"
    );
    let text = report.to_text();
    assert!(text.contains("FAIL contents: 1 wrong answers") && text.contains("--   billing"), "{text}");
}
