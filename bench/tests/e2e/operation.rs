//! Operating: health and metrics, orderly stops, second starts, the command line.

use std::process::Command;
use std::time::Duration;

use bench::target::Endpoints;
use common::catalogue::metrics;
use common::hash::ContentHash;

use crate::both_ways;
use crate::cluster::{Cluster, Mode, Options, SOON, eventually};
use crate::fresh_bytes;
use crate::process::dozo;

/// Longest drain of a server with nothing in flight.
const STOP_TIME_MAX: Duration = Duration::from_secs(15);

both_ways! {
    fn every_server_is_live_ready_and_measured(cluster) {
        for (name, at) in cluster.servers() {
            let admin = cluster.operator(&at.admin);
            admin.get("/livez").expect(200);
            let ready = admin.get("/readyz?verbose").expect(200).text();
            assert!(ready.contains("[+]"), "{name}: {ready}");
            let metrics = admin.get("/metrics").expect(200);
            assert!(metrics.header("content-type").unwrap().starts_with("text/plain"), "{name}");
            let text = metrics.text();
            let names: Vec<&str> = text
                .lines()
                .filter(|line| !line.starts_with('#') && !line.is_empty())
                .filter_map(|line| line.split(['{', ' ']).next())
                .collect();
            assert!(!names.is_empty(), "{name} has no metrics");
            for shown in names {
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| shown.strip_suffix(end));
                let is_known = |name: &str| metrics::ALL.iter().any(|metric| metric.name == name);
                assert!(is_known(shown) || base.is_some_and(is_known), "{name}: {shown}");
            }
            assert!(text.lines().count() < 2_000, "{name} shows {} lines", text.lines().count());
            // Health is the admin listener's alone.
            assert_eq!(cluster.operator(&at.http).get("/metrics").status, 404, "{name}");
        }
    }

    fn the_figures_that_outside_checks_read_are_there_and_move(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let requests = cluster.metric("tokyo.g1", "dozo_gateway_requests_total", "");
        let hits = cluster.metric("tokyo.g1", "dozo_gateway_deliveries_total", "hit");
        alice.put_content(&format!("{bucket}/x"), &fresh_bytes(100_000)).expect(201);
        alice.get_content(&format!("{bucket}/x")).expect(200);
        assert!(cluster.metric("tokyo.g1", "dozo_gateway_requests_total", "") >= requests + 2.0);
        assert!(cluster.metric("tokyo.g1", "dozo_gateway_deliveries_total", "hit") >= hits + 1.0);
        assert!(cluster.metric("tokyo.g1", "dozo_gateway_time_to_first_byte_seconds_count", "") >= 1.0);
        cluster.await_billed(&alice, &[("complete", 1)]);
        let mut used = 0.0;
        for node in &cluster.site("tokyo").nodes {
            let server = format!("tokyo.{}", node.name);
            let status = cluster.node_status(&server);
            for field in ["state", "store", "capacity_bytes", "used_bytes", "logical_bytes", "chunks", "moves_pending_bytes", "epoch"] {
                assert!(!status[field].is_null(), "{field} is missing in {status}");
            }
            assert!(cluster.metric(&server, "dozo_node_capacity_bytes", "") > 0.0, "{server}");
            used += cluster.metric(&server, "dozo_node_used_bytes", "");
        }
        assert!(used >= 100_000.0, "{used}");
        for server in ["service-billing", "content-billing"] {
            assert!(cluster.metric(server, "dozo_billing_records_total", "") >= 1.0, "{server}");
            assert_eq!(cluster.metric(server, "dozo_billing_ledger_imbalance_minor_units", ""), 0.0);
        }
    }

    fn the_directory_of_targets_names_every_server(cluster) {
        let search = cluster.operator(&cluster.endpoints.search.admin);
        let text = search.get("/v1/sd/prometheus").expect(200).text();
        for (name, at) in cluster.servers() {
            let address = at.admin.trim_start_matches("http://");
            assert!(text.contains(address), "{name} at {address} is not in {text}");
        }
    }
}

pub fn run_dozo(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = Command::new(dozo())
        .args(arguments)
        .env("DOZO_ENDPOINTS", cluster.path("endpoints.json"))
        .current_dir(cluster.path(""))
        .output()
        .expect("dozo runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "dozo {arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_command_line_puts_gets_lists_and_shows() {
    let cluster = Cluster::shared(Mode::OneProcess);
    let bytes = fresh_bytes(3 << 20);
    std::fs::write(cluster.path("cli-in.bin"), &bytes).unwrap();
    run_dozo(cluster, &["put", "cli-in.bin", "alice/cli/in.bin", "--as", "alice"]);
    run_dozo(cluster, &["get", "alice/cli/in.bin", "cli-out.bin", "--as", "carol"]);
    assert!(std::fs::read(cluster.path("cli-out.bin")).unwrap() == bytes);
    let listing = run_dozo(cluster, &["ls", "alice/cli/", "--as", "carol", "--json"]);
    assert!(listing.contains("in.bin"), "{listing}");
    assert!(listing.contains(&ContentHash::of(&bytes).to_string()), "{listing}");
    let library = run_dozo(cluster, &["library", "--as", "carol", "--json"]);
    assert!(library.contains("alice/cli/in.bin"), "{library}");
    let holders = run_dozo(cluster, &["who-holds", "alice/cli/in.bin", "--json"]);
    for word in ["tokyo", "osaka", "carol"] {
        assert!(holders.contains(word), "{word} is not in {holders}");
    }
    let status = run_dozo(cluster, &["status", "--json"]);
    for word in ["tokyo", "osaka", "n1", "n2"] {
        assert!(status.contains(word), "{word} is not in {status}");
    }
    let usage = run_dozo(cluster, &["usage", "carol", "--json"]);
    serde_json::from_str::<serde_json::Value>(&usage).expect("JSON");
    run_dozo(cluster, &["rm", "alice/cli/in.bin", "--as", "alice"]);
    let listing = run_dozo(cluster, &["ls", "alice/cli/", "--as", "alice", "--json"]);
    assert!(!listing.contains("in.bin"), "{listing}");
    let wrong = Command::new(dozo()).args(["no-such-command"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

/// A download that is on its way when the stop comes is finished, and recorded.
fn sigterm_drains(cluster: &Cluster, process: &str) {
    let (alice, bob) = (cluster.client("alice"), cluster.client("bob"));
    let bytes = fresh_bytes(48 << 20);
    alice.put_content("alice/slow", &bytes).expect(201);
    let mut download = bob.open("GET", "/v1/contents/alice/slow", &[]).unwrap();
    assert_eq!(download.status, 200);
    let mut got = download.read_exact(1 << 20).unwrap();
    cluster.terminate(process);
    eventually("no new connection is taken", SOON, || match bob.try_send("GET", "/v1/usage", &[], &[]) {
        Err(_) => Ok(()),
        Ok(answer) if answer.status == 503 => Ok(()),
        Ok(answer) => Err(answer.status.to_string()),
    });
    assert!(cluster.is_running(process), "it did not wait for the download");
    while got.len() < bytes.len() {
        let len = (bytes.len() - got.len()).min(2 << 20);
        got.extend(download.read_exact(len).unwrap());
    }
    assert!(got == bytes, "the bytes differ");
    let status = cluster.await_end(process, STOP_TIME_MAX);
    assert_eq!(status.code(), Some(0), "{}", cluster.log(process));
}

#[test]
fn sigterm_lets_a_gateway_finish_a_slow_download_and_exit_0() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    sigterm_drains(&cluster, "tokyo.g1");
    cluster.await_billed(&cluster.client("bob"), &[("complete", 1)]);
    cluster.restart("tokyo.g1");
    cluster.await_ready("tokyo.g1");
    for name in ["osaka.g1", "tokyo.n1", "osaka.n2", "origin", "service-billing", "content-billing", "search"]
    {
        cluster.terminate(name);
        let status = cluster.await_end(name, STOP_TIME_MAX);
        assert_eq!(status.code(), Some(0), "{name}: {}", cluster.log(name));
    }
}

#[test]
fn a_second_start_finds_all_data_and_the_same_keys() {
    let cluster = Cluster::start(Mode::OneProcess, &Options::default());
    sigterm_drains(&cluster, "up");
    let (alice, bob, carol) = (cluster.client("alice"), cluster.client("bob"), cluster.client("carol"));
    let restart = || {
        cluster.restart("up");
        let again = cluster.await_endpoints();
        let keys = |endpoints: &Endpoints| -> Vec<(String, String)> {
            endpoints.clients.iter().map(|c| (c.name.clone(), c.token.clone())).collect()
        };
        assert_eq!(keys(&again), keys(&cluster.endpoints));
        assert_eq!(again.admin_token, cluster.endpoints.admin_token);
        assert_eq!(again.sites[0].gateways[0].http, cluster.endpoints.sites[0].gateways[0].http);
    };
    restart();
    cluster.await_billed(&bob, &[("complete", 1)]);
    let slow = bob.get_content("alice/slow").expect(200);
    assert_eq!((slow.body.len(), slow.header("dozo-class")), (48 << 20, Some("reference")));
    // A gateway that is killed takes ends with it that it has not handed over yet: bob's is booked before that.
    cluster.await_billed(&bob, &[("complete", 2)]);
    let small = fresh_bytes(5_000);
    alice.put_content("alice/small", &small).expect(201);
    assert_eq!(carol.get_content("alice/small").expect(200).body, small);
    // The same after the hard way.
    cluster.kill("up");
    restart();
    for client in [&bob, &carol] {
        assert_eq!(client.get_content("alice/small").expect(200).body, small);
    }
    assert_eq!(carol.get_content("alice/small").expect(200).header("dozo-class"), Some("reference"));
    let [service, content] = eventually("all is booked", SOON, || {
        let complete = [&bob, &carol].map(|client| {
            cluster.billed(client).map(|usage| usage.deliveries.get("complete").copied().unwrap_or(0))
        });
        // carol's first delivery may have been cut off from its end by the kill: then it is recovered later.
        if complete[0] == [3, 3] && complete[1].iter().all(|c| (2..=3).contains(c)) {
            Ok(cluster.totals())
        } else {
            Err(format!("{complete:?}"))
        }
    });
    assert_eq!((service.imbalance_micros, content.imbalance_micros), (0, 0));
}
