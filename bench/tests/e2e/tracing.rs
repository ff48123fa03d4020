//! A request's ids and times, followed through all servers that worked on it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cluster::{Cluster, Mode, Options, SOON, eventually};
use crate::fresh_bytes;
use crate::http::Answer;

const REQUEST: &str = "a-request-of-the-test";

/// The lines of a server's log. All that it says is JSON.
fn log_lines(cluster: &Cluster, server: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(cluster.path(&format!("{server}.log"))).unwrap();
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// Routes that a server answered within a trace, each with the request id that its log line has.
fn answered(cluster: &Cluster, server: &str, trace_id: &str) -> BTreeMap<String, String> {
    let text = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
    let of_trace = |line: &Value| line["message"] == "answered" && line["trace_id"] == trace_id;
    let lines = log_lines(cluster, server).into_iter().filter(of_trace);
    lines.map(|line| (text(&line, "route"), text(&line, "request"))).collect()
}

/// Stages of a `Server-Timing` header, in milliseconds.
fn timing(answer: &Answer) -> BTreeMap<String, f64> {
    let header = answer.header("server-timing").expect("it says how long it took");
    let stage = |part: &str| {
        let (name, took) = part.split_once(";dur=").unwrap_or_else(|| panic!("{header}"));
        (name.to_owned(), took.parse().unwrap_or_else(|_| panic!("{header}")))
    };
    header.split(", ").map(stage).collect()
}

#[test]
fn one_trace_leads_through_all_servers_that_a_collected_get_needed() {
    let arguments = ["--log-format", "json", "--log", "info,access=debug"].map(str::to_owned).to_vec();
    // Who decides for a name or client may be any node of a site: with one it is that one.
    let options = Options { nodes: 1, arguments, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let carol = cluster.new_client("carol", "osaka");
    let name = format!("{}/film", cluster.bucket(&carol, "public"));
    let bytes = fresh_bytes(9 << 20);
    carol.put_content(&name, &bytes).expect(201);
    let alice = cluster.new_client("alice", "tokyo");

    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace_id}-00f067aa0ba902b7-01");
    let headers = [("traceparent", parent.as_str()), ("x-request-id", REQUEST)];
    let answer = alice.send("GET", &format!("/v1/contents/{name}"), &headers, &[]).expect(200);
    assert!(answer.body == bytes);
    assert_eq!(answer.header("dozo-source"), Some("peer"));
    assert_eq!(answer.header("x-request-id"), Some(REQUEST));
    assert_eq!(answer.header("dozo-trace-id"), Some(trace_id));
    let timing = timing(&answer);
    for stage in ["auth", "collect", "search", "rank", "source", "begin", "first-chunk"] {
        assert!(timing.contains_key(stage), "{stage} is not in {timing:?}");
        assert!(timing[stage] <= timing["total"], "{stage} took longer than all: {timing:?}");
    }

    for (server, route) in [
        ("tokyo.g1", "/v1/contents/{bucket}/{*key}"),
        ("search", "/v1/contents/lookup"),
        ("tokyo.n1", "/v1/holdings/hold"),
        ("tokyo.n1", "/v1/deliveries/begin"),
        ("tokyo.n1", "/v1/chunks/{hash}"),
        ("osaka.g1", "/v1/peer/open"),
        ("osaka.n1", "/v1/holdings/resolve"),
        ("osaka.n1", "/v1/chunks/{hash}"),
    ] {
        eventually(&format!("{server} tells of {route} in its log"), SOON, || {
            let answered = answered(&cluster, server, trace_id);
            match answered.get(route) {
                Some(request) if request == REQUEST => Ok(()),
                _ => Err(format!("{answered:?}")),
            }
        });
    }

    // The gateway and the nodes remember it, with its stages.
    for (server, route, stage) in [
        ("tokyo.g1", "/v1/contents/{bucket}/{*key}", "collect"),
        ("tokyo.n1", "/v1/deliveries/begin", "commit"),
        ("osaka.n1", "/v1/chunks/{hash}", "disk"),
    ] {
        let slow: Vec<Value> =
            cluster.operator(&cluster.server(server).admin).get("/v1/debug/slow").expect(200).json();
        let of_trace = |request: &&Value| request["trace_id"] == trace_id && request["route"] == route;
        let found =
            slow.iter().find(of_trace).unwrap_or_else(|| panic!("{server} does not list {route}: {slow:#?}"));
        assert_eq!((&found["request"], &found["status"]), (&REQUEST.into(), &200.into()));
        let stages = found["stages"].as_array().unwrap();
        let took = stages.iter().find(|each| each["stage"] == stage).unwrap_or_else(|| panic!("{found:#}"));
        assert!(took["ms"].as_f64().unwrap() > 0.0);
        let totals: Vec<f64> = slow.iter().map(|each| each["total_ms"].as_f64().unwrap()).collect();
        assert!(totals.is_sorted_by(|a, b| a >= b) && totals.len() <= 100, "{totals:?}");
    }

    // A request without ids is given some; from an origin it is followed as well.
    let answer = alice.get_content("studio/film.bin").expect(200);
    assert_eq!(answer.header("dozo-source"), Some("origin"));
    let (made, request) = (answer.header("dozo-trace-id").unwrap(), answer.header("x-request-id").unwrap());
    eventually("the origin tells of it", SOON, || {
        let answered = answered(&cluster, "origin", made);
        match answered.is_empty() || answered.values().any(|id| id != request) {
            true => Err(format!("{answered:?}")),
            false => Ok(()),
        }
    });

    // What nobody waits for has traces of its own, which both ends tell.
    cluster.await_billed(&alice, &[("complete", 2)]);
    for billing in ["service-billing", "content-billing"] {
        eventually("the books were told in the background", SOON, || {
            let lines = log_lines(&cluster, billing);
            let is_batch = |line: &&Value| line["route"] == "/v1/batches" && line["message"] == "answered";
            match lines.iter().rfind(is_batch).and_then(|line| line["request"].as_str()) {
                Some(request) if request.starts_with("billing-") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}
