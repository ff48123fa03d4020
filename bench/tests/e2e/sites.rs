//! Load across sites: contents that are collected and visits are operations of a mix, and all of it is booked.

use std::process::Command;

use bench::measure::Source;
use bench::plan::Op;
use bench::report::{Report, Row};

use crate::cards::run;
use crate::cluster::{Cluster, Mode, Options};

/// Drives the system as a client; answers with the exit code, the report if there is one, and what was said.
fn drive(cluster: &Cluster, client: &str, arguments: &[&str]) -> (i32, Option<Report>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["run", "--as", client, "--warmup", "300ms", "--duration", "3s", "--json", "-"])
        .args(arguments)
        .env("DOZO_ENDPOINTS", cluster.path("endpoints.json"))
        .current_dir(cluster.path(""))
        .output()
        .expect("bench runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("it was not killed"), serde_json::from_slice(&output.stdout).ok(), text)
}

fn rows(report: &Report, op: Op) -> impl Iterator<Item = &Row> {
    report.results.iter().filter(move |row| row.op == op && row.source.is_some() && row.requests > 0)
}

#[test]
fn what_is_collected_and_what_a_visitor_gets_is_measured_verified_and_booked() {
    let cluster = Cluster::start(Mode::OneProcess, &Options::default());
    let mix = ["--mix", "get=60,collect=20,roam=20", "--size", "4KiB,300KiB"];
    let small = ["--objects", "20", "--connections", "4"];
    for pace in [&[][..], &["--rate", "40"], &["--rate", "40", "--provider", "bob"]] {
        let (code, report, text) = drive(&cluster, "carol", &[&mix[..], &small, pace].concat());
        let report = report.unwrap_or_else(|| panic!("{text}"));
        assert_eq!(code, 0, "{text}");
        assert_eq!((report.wrong_answers, report.left_behind, report.errors.len()), (0, 0, 0), "{text}");
        for op in [Op::Get, Op::Collect, Op::Roam] {
            let requests: u64 = rows(&report, op).map(|row| row.requests).sum();
            assert!(requests > 0, "{}: {text}", op.as_str());
        }
        assert!(rows(&report, Op::Collect).all(|row| row.source == Some(Source::Peer)), "{text}");
        assert!(rows(&report, Op::Roam).any(|row| row.source == Some(Source::Hit)), "{text}");
        let billing = report.billing.expect("it was compared");
        assert!(billing.agrees && billing.service.complete == billing.delivered, "{}", billing.verdict);
        let carol = cluster.client("carol");
        let library: serde_json::Value = carol.get("/v1/library?prefix=bench-").expect(200).json();
        assert_eq!(library["rows"], serde_json::json!([]), "what was collected was dropped again");
    }
}

#[test]
fn what_an_operation_across_sites_needs_is_asked_for_before_the_load() {
    let cluster = Cluster::start(Mode::OneProcess, &Options::default());
    let made = run(&cluster, &["card", "new", "bob.card", "--client", "bob"], &[]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let disabled = run(&cluster, &["card", "disable", "carol"], &[]);
    assert!(disabled.status.success(), "{}", String::from_utf8_lossy(&disabled.stderr));
    let text = std::fs::read(cluster.path("endpoints.json")).unwrap();
    let mut one_site: serde_json::Value = serde_json::from_slice(&text).unwrap();
    one_site["clients"].as_array_mut().unwrap().retain(|client| client["site"] == "osaka");
    std::fs::write(cluster.path("one-site.json"), one_site.to_string()).unwrap();
    let refused = |client: &str, arguments: &[&str], why: &str| {
        let (code, report, text) = drive(&cluster, client, arguments);
        assert!(code == 1 && report.is_none() && text.contains(why), "{why:?} is not in {code}: {text}");
    };
    refused("bob", &["--mix", "roam=1"], "`dozo card new FILE --client bob`");
    refused("carol", &["--mix", "roam=1", "--card", "none.card"], "none.card cannot be read");
    refused("carol", &["--mix", "roam=1", "--card", "bob.card"], "the card is of bob");
    refused("carol", &["--mix", "roam=1"], "mobile access does not let carol in");
    refused("carol", &["--mix", "collect=1", "--provider", "zoe"], "there is no client \"zoe\"");
    refused("carol", &["--mix", "collect=1", "--provider", "carol"], "at home at osaka");
    refused("carol", &["--mix", "collect=1", "--endpoints", "one-site.json"], "--provider CLIENT");
    let s3 = "s3://KEY:SECRET@127.0.0.1:1/bucket";
    refused("carol", &["--mix", "get=1,collect=1", "--target", s3], "s3 targets have no collect");
    // Mobile access is near bob's home.
    refused("bob", &["--mix", "roam=1", "--card", "bob.card"], "which is its home");
}
