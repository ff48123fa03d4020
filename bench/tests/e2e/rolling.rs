//! Restarting a site's servers one after the other while clients go on: nobody has to ask twice, and every delivery is
//! booked once. Clients turn to another gateway when one says that it is not ready.

use std::time::{Duration, Instant};

use common::api::can_stop::{CanStop, Risk};

use crate::cluster::{Cluster, Mode, Options, SOON, eventually};
use crate::fresh_bytes;
use crate::topology::Rig;

/// Longer than it takes the clients to notice that a gateway is not ready.
const STOP_DELAY_MS: u64 = 1_500;
/// What a server has to do for a restart.
const RESTARTED: Duration = Duration::from_secs(30);

fn can_stop(cluster: &Cluster, server: &str) -> CanStop {
    let search = cluster.operator(&cluster.endpoints.search.http);
    let answer = search.get(&format!("/v1/nodes/{server}/can-stop"));
    let verdict: CanStop = answer.json();
    assert_eq!(answer.status, if verdict.can_stop { 200 } else { 412 }, "{verdict:?}");
    verdict
}

/// As an operator's script restarts a server: once it may stop, and until it is ready again.
fn roll(rig: &Rig, server: &str) {
    eventually(&format!("{server} may stop"), RESTARTED, || {
        let verdict = can_stop(&rig.cluster, server);
        if verdict.can_stop { Ok(()) } else { Err(format!("{:?}", verdict.reasons)) }
    });
    rig.load.mark(server);
    rig.cluster.terminate(server);
    let admin = rig.cluster.operator(&rig.cluster.server(server).admin);
    eventually("it says that it is not ready, and goes on", SOON, || {
        let ready = admin.try_send("GET", "/readyz?verbose", &[], &[]).map_err(|e| e.to_string())?;
        let said = ready.status == 503 && ready.text().contains("[-] accepting failed: stopping");
        if said { Ok(()) } else { Err(ready.text()) }
    });
    let status = rig.cluster.await_end(server, RESTARTED);
    assert_eq!(status.code(), Some(0), "{server}: {}", rig.cluster.log(server));
    rig.cluster.restart(server);
    rig.cluster.await_ready(server);
}

fn rig(replicas: Option<u8>) -> Rig {
    Rig::start_as(Options { replicas, stop_delay_ms: STOP_DELAY_MS, ..Options::default() })
}

#[test]
fn each_gateway_in_turn_is_restarted_and_no_client_has_to_ask_twice() {
    let rig = rig(None);
    for gateway in ["tokyo.g1", "tokyo.g2"] {
        roll(&rig, gateway);
        rig.goes_on("between");
    }
    assert_eq!(rig.passes().outcome.repeated.len(), 0);
}

#[test]
fn each_node_in_turn_is_restarted_where_two_have_everything_and_no_client_has_to_ask_twice() {
    let rig = rig(Some(2));
    for node in ["tokyo.n1", "tokyo.n2", "tokyo.n3"] {
        roll(&rig, node);
        rig.await_state(node, "active");
        rig.goes_on("between");
    }
    assert_eq!(rig.passes().outcome.repeated.len(), 0);
}

#[test]
fn a_node_that_alone_has_something_should_not_stop_and_its_clients_wait_until_it_is_back() {
    let rig = rig(Some(1));
    let node = "tokyo.n1";
    let verdict = can_stop(&rig.cluster, node);
    let risks: Vec<Risk> = verdict.reasons.iter().map(|reason| reason.code).collect();
    assert!(risks.contains(&Risk::NoFollower) && risks.contains(&Risk::SoleCopy), "{verdict:?}");
    rig.load.mark(node);
    rig.cluster.terminate(node);
    assert_eq!(rig.cluster.await_end(node, RESTARTED).code(), Some(0));
    rig.cluster.restart(node);
    rig.cluster.await_ready(node);
    rig.await_state(node, "active");
    rig.goes_on("after");
    assert_eq!(rig.passes().outcome.repeated.len(), 0);
}

#[test]
fn the_last_gateway_is_told_and_a_second_signal_ends_a_stop_at_once() {
    let options = Options { stop_delay_ms: 60_000, nodes: 1, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let gateway = "osaka.g1";
    assert_eq!(can_stop(&cluster, gateway).reasons[0].code, Risk::LastGateway);
    cluster.terminate(gateway);
    let carol = cluster.client("carol");
    eventually("answers end their connections", SOON, || {
        let answer = carol.get("/v1/usage").expect(200);
        let search = cluster.operator(&cluster.endpoints.search.http);
        let map: common::cluster::ClusterMap = search.get("/v1/map?after=0&wait_ms=0").json();
        let entry =
            map.sites.iter().find(|site| site.id.as_str() == "osaka").and_then(|s| s.gateways.first());
        match (answer.header("connection"), entry.map(|entry| entry.alive)) {
            (Some("close"), Some(false)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let begun = Instant::now();
    cluster.terminate(gateway);
    assert_eq!(cluster.await_end(gateway, SOON).code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_download_that_takes_too_long_is_cut_off_and_booked_as_that() {
    let options = Options { stop_finish_ms: Some(500), nodes: 1, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let (alice, bob) = (cluster.client("alice"), cluster.new_client("bob", "tokyo"));
    let bytes = fresh_bytes(48 << 20);
    alice.put_content("alice/long", &bytes).expect(201);
    let mut download = bob.open("GET", "/v1/contents/alice/long", &[]).unwrap();
    download.read_exact(1 << 20).unwrap();
    cluster.terminate("tokyo.g1");
    assert_eq!(cluster.await_end("tokyo.g1", SOON).code(), Some(0), "{}", cluster.log("tokyo.g1"));
    cluster.restart("tokyo.g1");
    cluster.await_ready("tokyo.g1");
    cluster.await_billed(&bob, &[("partial", 1)]);
}
