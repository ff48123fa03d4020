//! Events in mid-run: what is done to a server's process, and what the report says became of the load.

use std::path::Path;
use std::process::Command;

use bench::orphans::{Kind, watch};
use bench::process::listening;
use bench::report::output;
use bench::report::{Event, Report};

use crate::cluster::{Cluster, Mode, Options, SOON, eventually};

/// Drives the cluster's separate processes; answers with the report.
fn drive(cluster: &Cluster, arguments: &[&str]) -> Report {
    let endpoints = cluster.path("endpoints.json");
    std::fs::write(&endpoints, serde_json::to_vec(&cluster.endpoints).unwrap()).unwrap();
    let kept = cluster.path("kept.json");
    let common = ["run", "get-4k", "--objects", "40", "--connections", "8", "--rate", "20", "--warmup", "1s"];
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(common)
        .args(arguments)
        .args([Path::new("-o"), &kept, Path::new("-o"), &cluster.path("page.html")])
        .env("DOZO_ENDPOINTS", endpoints)
        .output()
        .expect("bench runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stdout));
    assert!(said.contains("p99.9"), "a line a second: {said}");
    assert!(std::fs::read_to_string(cluster.path("page.html")).unwrap().ends_with("</html>\n"));
    output::read(&kept).unwrap()
}

fn event<'a>(report: &'a Report, what: &str, at_s: f64) -> &'a Event {
    let event = report.events.iter().find(|event| event.happened.what == what).expect("it happened");
    assert_eq!(event.happened.error, None);
    assert!((event.happened.at_s - at_s).abs() < 0.9, "{event:?}");
    event
}

#[test]
fn a_node_paused_and_resumed_in_mid_run_is_in_the_report_with_what_became_of_the_load() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let events = ["--duration", "13s", "--at", "4s", "node pause n1", "--at", "7s", "node resume n1"];
    let report = drive(&cluster, &events);
    let pause = event(&report, "node pause n1", 5.0).recovery.expect("there are seconds to compare");
    assert!(pause.before_per_s > 8.0, "{pause:?}");
    assert!(pause.dip > 0.2 && pause.p99_before_us > 0.0, "{pause:?}");
    let resume = event(&report, "node resume n1", 8.0).recovery.expect("there are seconds to compare");
    assert!(resume.recovered_after_s.is_some() && resume.p99_during_us > 500e3, "{resume:?}");
    let cpu = report.servers.series.iter().find(|series| series.server == "tokyo.n1" && series.name == "cpu");
    let cpu = cpu.expect("the node was sampled");
    let while_paused: Vec<f64> =
        cpu.points.iter().filter(|(at, _)| (7.0..7.9).contains(at)).map(|(_, cores)| *cores).collect();
    assert_eq!(while_paused, [0.0], "{cpu:?}");
    assert!(cpu.peak > 0.0);
    assert!(report.billing.expect("it was compared").agrees);
}

#[test]
fn a_node_killed_in_mid_run_is_started_again_as_it_was() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let port: u16 = cluster.server("tokyo.n2").http.rsplit(':').next().unwrap().parse().unwrap();
    let before = listening(&[port])[&port];
    let events = ["--duration", "14s", "--at", "2s", "node kill n2", "--at", "4s", "node start n2"];
    let report = drive(&cluster, &events);
    let again =
        eventually("the node listens", SOON, || listening(&[port]).get(&port).copied().ok_or("no".into()));
    watch(Kind::Process, &again.to_string()).expect("a shell runs");
    event(&report, "node kill n2", 3.0);
    let start = event(&report, "node start n2", 5.0);
    assert!(start.happened.done_after_s.is_some(), "it was ready before the end: {start:?}");
    assert!(
        again != before && report.processes.iter().any(|process| process.pid == again),
        "{again} {before}"
    );
}
