//! The load harness against a real system: its verdicts are the system's truth.

use std::process::Command;

use crate::cluster::{Cluster, Mode, Options};

struct Run {
    exit: i32,
    report: serde_json::Value,
    text: String,
}

fn bench(cluster: &Cluster, arguments: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["run", "--warmup", "300ms", "--duration", "2s", "--json", "-"])
        .args(arguments)
        .env("DOZO_ENDPOINTS", cluster.path("endpoints.json"))
        .output()
        .expect("bench runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}"));
    Run { exit: output.status.code().expect("it was not killed"), report, text }
}

#[test]
fn bench_verifies_bytes_and_bookings_and_holds_promises() {
    let cluster = Cluster::start(Mode::OneProcess, &Options::default());
    let mixed =
        ["mixed", "--size", "4KiB,300KiB", "--objects", "20", "--connections", "4", "--slo", "all.errors<1"];
    let run = bench(&cluster, &mixed);
    assert_eq!(run.exit, 0, "{}", run.text);
    let report = &run.report;
    assert_eq!(report["schema"], "dozo.bench.run/2");
    assert_eq!((report["wrong_answers"].as_u64(), report["left_behind"].as_u64()), (Some(0), Some(0)));
    assert!(report["read_back"]["read"].as_u64().is_some_and(|read| read > 0), "{}", run.text);
    let delivered = report["billing"]["delivered"].as_u64().expect("it was compared");
    assert!(delivered > 0);
    for fee in ["service", "content"] {
        assert_eq!(report["billing"][fee]["complete"].as_u64(), Some(delivered), "{}", run.text);
    }
    let rows = report["results"].as_array().expect("rows");
    for (op, size) in [("get", 4096), ("get", 1 << 20), ("put", 4096), ("put", 1 << 20)] {
        let row = rows.iter().find(|row| row["op"] == op && row["size_max_bytes"] == size);
        assert!(row.is_some_and(|row| row["requests"].as_u64() > Some(0)), "{op} {size}: {}", run.text);
    }
    let processes = report["processes"].as_array().expect("processes");
    let dozo = processes.iter().find(|process| process["servers"].to_string().contains("tokyo.g1"));
    assert!(dozo.is_some_and(|process| process["cpu_us_per_request"].as_f64() > Some(0.0)), "{}", run.text);
    // An open loop; and a promise that nothing can keep.
    let open = ["get-4k", "--objects", "10", "--connections", "8", "--rate", "50", "--slo", "get.p50<1us"];
    let run = bench(&cluster, &open);
    assert_eq!(run.exit, 2, "{}", run.text);
    assert_eq!(run.report["billing"]["agrees"], true, "{}", run.text);
    assert_eq!(run.report["slos"][0]["kept"], false);
    assert!(run.report["pacer_lag"]["p50_us"].as_f64().is_some(), "{}", run.text);
    let wrong = Command::new(env!("CARGO_BIN_EXE_bench")).args(["run", "--size", "huge"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn bench_traffic_repeats_exactly_and_refuses_what_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let traffic = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        command.current_dir(folder.path()).arg("traffic").args(arguments).output().expect("bench runs")
    };
    let small =
        ["--clients", "40", "--contents", "60", "--requests", "500", "--json", "-", "--plot", "x.svg"];
    let output = traffic(&small);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(traffic(&small).stdout, output.stdout);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["schema"], "dozo.bench.traffic/1");
    let models: Vec<_> = report["models"].as_array().unwrap().iter().map(|m| m["model"].clone()).collect();
    assert_eq!(models, ["client-server", "peer-to-peer", "sites"]);
    assert_eq!(report["sweep"]["availability"].as_array().unwrap().len(), 10);
    assert!(std::fs::read_to_string(folder.path().join("x.svg")).unwrap().ends_with("</svg>\n"));
    std::fs::write(folder.path().join("bad.toml"), "origin = \"x\"\nlinks = []\nsites = []\n").unwrap();
    for (wrong, reason) in [
        (["--topology", "bad.toml"], "there are no sites"),
        (["--topology", "none.toml"], "none.toml"),
        (["--availability", "0"], "availability is 0"),
    ] {
        let output = traffic(&wrong);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(reason), "{text}");
    }
}
