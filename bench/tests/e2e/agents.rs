//! Load from agents that are processes of their own: their results add up, and one that is lost is told of.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bench::orphans::Ended;
use bench::report::{Report, output};

use crate::cluster::{Cluster, Mode, Options};

struct Agent {
    process: Ended,
    address: String,
}

fn token_file(cluster: &Cluster) -> PathBuf {
    let path = cluster.path("agent-token");
    std::fs::write(&path, "a token for the agents of a test").unwrap();
    path
}

fn start_agent(cluster: &Cluster) -> Agent {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(["agent", "--listen", "127.0.0.1:0", "--agent-token-file"]).arg(token_file(cluster));
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("bench runs");
    let said = child.stderr.take().unwrap();
    let process = Ended(child);
    let mut lines = BufReader::new(said).lines();
    let first = lines.next().expect("it says where it waits").unwrap();
    let address = first.rsplit(' ').next().unwrap().to_owned();
    // What it says later is not to fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Agent { process, address }
}

fn drive(cluster: &Cluster, agents: &[&Agent], arguments: &[&str]) -> (i32, Report) {
    let kept = cluster.path("kept.json");
    let addresses: Vec<&str> = agents.iter().map(|agent| agent.address.as_str()).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["run", "mixed", "--size", "4KiB,64KiB", "--objects", "20", "--connections", "5", "--agent"])
        .args([&addresses.join(","), "--agent-token-file"])
        .arg(token_file(cluster))
        .args(["--warmup", "500ms"])
        .args(arguments)
        .arg("-o")
        .arg(&kept)
        .env("DOZO_ENDPOINTS", cluster.path("endpoints.json"))
        .output()
        .expect("bench runs");
    let code = output.status.code().expect("it was not killed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = output::read(&kept).unwrap_or_else(|error| panic!("{error}: {said}"));
    println!("{}\n{said}", report.to_text());
    (code, report)
}

#[test]
fn two_agents_results_add_up_and_every_delivery_of_theirs_is_booked() {
    let cluster = Cluster::start(Mode::OneProcess, &Options::default());
    let (one, two) = (start_agent(&cluster), start_agent(&cluster));
    let (code, report) = drive(&cluster, &[&one, &two], &["--duration", "3s", "--rate", "60"]);
    assert_eq!(code, 0);
    let agents: Vec<(&str, usize)> =
        report.agents.iter().map(|agent| (agent.address.as_str(), agent.connections)).collect();
    assert_eq!(agents, [(one.address.as_str(), 3), (two.address.as_str(), 2)]);
    assert!(report.agents.iter().all(|agent| agent.requests > 0 && agent.round_trip_ms < 1000.0));
    // Both clocks are this machine's.
    assert!(report.agents.iter().all(|agent| agent.clock_offset_ms.abs() < 500.0), "{:?}", report.agents);
    let answered: u64 =
        report.results.iter().filter(|row| row.source.is_some()).map(|row| row.requests).sum();
    assert_eq!(answered, report.agents.iter().map(|agent| agent.requests).sum::<u64>());
    assert!(report.billing.expect("it was compared").agrees);
    assert!(report.read_back.read > 0 && report.wrong_answers == 0 && report.left_behind == 0);
    // Both began at the same time: the first second has something of each.
    assert!(report.timeline.iter().any(|row| row.second == 0 && row.requests > 0));
}

#[test]
fn an_object_that_is_asked_for_once_is_asked_for_by_one_agent() {
    let cluster = Cluster::start(Mode::OneProcess, &Options::default());
    let (one, two) = (start_agent(&cluster), start_agent(&cluster));
    let once = ["--one-hit-ratio", "0.5", "--rate", "60", "--duration", "3s", "--keep"];
    let (code, report) = drive(&cluster, &[&one, &two], &once);
    assert_eq!(code, 0);
    let path = format!("/v1/library?prefix=bench-bob/{}h", report.plan.prefix());
    let library: serde_json::Value = cluster.client("bob").get(&path).expect(200).json();
    let asked: Vec<u64> =
        library["rows"].as_array().unwrap().iter().filter_map(|row| row["deliveries"].as_u64()).collect();
    assert!(asked.iter().sum::<u64>() > 20 && asked.iter().all(|times| *times <= 1), "{asked:?}");
}

#[test]
fn an_agent_that_is_lost_takes_only_its_own_results_with_it() {
    let cluster = Cluster::start(Mode::OneProcess, &Options::default());
    let (one, two) = (start_agent(&cluster), start_agent(&cluster));
    let kill = format!("run kill -9 {}", two.process.0.id());
    let (code, report) = drive(&cluster, &[&one, &two], &["--duration", "3s", "--at", "1s", &kill]);
    assert_eq!(code, 2, "what the lost one received is not known, so nothing is confirmed");
    assert_eq!(report.agents[0].lost, None);
    assert!(report.agents[1].lost.is_some() && report.agents[1].requests == 0);
    assert!(report.agents[0].requests > 0 && !report.timeline.is_empty());
    assert!(report.billing.is_none() && report.wrong_answers == 0);
    // An agent with another token gets no order.
    std::fs::write(cluster.path("other-token"), "another token of sufficient length").unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["run", "--agent", &one.address, "--agent-token-file"])
        .arg(cluster.path("other-token"))
        .env("DOZO_ENDPOINTS", cluster.path("endpoints.json"))
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("does not have the same agent token"), "{said}");
}
