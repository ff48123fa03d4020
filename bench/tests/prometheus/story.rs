//! One story: a cluster at work, a node that comes and goes, faults that are made and mended; and what Prometheus has of
//! it afterwards.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bench::orphans::{Ended, Kind, watch};
use serde_json::json;

use crate::cluster::{Cluster, Mode, Options, SECRET, eventually};
use crate::dashboards::{committed, fault};
use crate::load::Load;
use crate::process::dozo;
use crate::server::{Prometheus, is_installed, unix_seconds};

/// Longest time from a fault to its alert, or from its end to the alert's, on a busy machine.
const ALERT_TIME_MAX: Duration = Duration::from_secs(60);
/// Lines of one process's `/metrics`.
const LINES_MAX: usize = 2_000;

struct Story {
    cluster: Cluster,
    prometheus: Prometheus,
    fired: BTreeSet<String>,
}

#[test]
fn dashboards_show_and_alerts_tell_what_happens() {
    if !is_installed() {
        return;
    }
    let options = Options { lease_ms: Some(1_500), cache_bytes: 0, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let prometheus = Prometheus::start(&cluster);
    let mut story = Story { cluster, prometheus, fired: BTreeSet::new() };
    let from = unix_seconds();
    let _generator = story.start_load_generator();
    story.await_targets();
    let load = Load::start(&story.cluster);
    story.metrics_are_well_formed();
    story.visit();
    story.books_are_closed_and_stores_read();
    story.a_node_joins_and_leaves();
    story.small_faults();
    story.a_site_without_nodes();
    story.gateways_and_search_are_lost();
    println!("{} alerts fired and ended: {:?}", story.fired.len(), story.fired);
    assert!(story.fired.len() >= 10, "{:?}", story.fired);
    drop(load);
    story.every_panel_shows_something(from);
}

impl Story {
    /// `bench run` for as long as the story lasts; Prometheus asks it as well.
    fn start_load_generator(&self) -> Ended {
        let file = self.cluster.path("endpoints-of-clients.json");
        std::fs::write(&file, serde_json::to_vec(&self.cluster.endpoints).unwrap()).unwrap();
        let log = std::fs::File::create(self.cluster.path("bench.log")).unwrap();
        let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
        bench
            .args(["run", "--mix", "get=6,put=2,collect=2", "--rate", "10", "--connections", "4"])
            .args(["--size", "20KiB", "--objects", "10", "--duration", "1h", "--request-time", "5s"])
            .args(["--metrics-listen", &self.prometheus.load_at, "--plain", "--endpoints"])
            .arg(file);
        let process = bench.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let process = process.expect("bench runs");
        watch(Kind::Process, &process.id().to_string()).expect("a shell runs");
        Ended(process)
    }

    fn await_targets(&self) {
        // The load generator is one more.
        let asked = self.cluster.servers().len() as f64 + 1.0;
        eventually("every server is asked", ALERT_TIME_MAX, || {
            let up = self.prometheus.now("count(up{instance!=\"\", job!=\"\"} == 1)")?;
            if up.first().is_some_and(|(_, count)| *count == asked) { Ok(()) } else { Err(format!("{up:?}")) }
        });
        let names = self.prometheus.now("up").expect("it answers");
        for (name, _) in self.cluster.servers() {
            assert!(names.iter().any(|(labels, _)| labels["instance"] == name.as_str()), "{name}: {names:?}");
        }
    }

    /// `promtool check metrics` finds nothing at any server, and none says too much.
    fn metrics_are_well_formed(&self) {
        for (name, at) in self.cluster.servers() {
            let text = self.cluster.operator(&at.admin).get("/metrics").expect(200).text();
            assert!(text.lines().count() < LINES_MAX, "{name} shows {} lines", text.lines().count());
            let mut promtool = Command::new("promtool");
            promtool
                .args(["check", "metrics"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut child = promtool.spawn().expect("promtool runs");
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && told.is_empty(), "{name}: {told}");
        }
    }

    /// A client away from home finds the site near it, and gets a content there.
    fn visit(&self) {
        if !self.cluster.path("carol.card").exists() {
            succeeds(&self.run(&["card", "new", "carol.card", "--client", "carol"]));
        }
        self.cluster.client("alice").put_content("alice/for-visitors", &[7; 100_000]).expect(201);
        succeeds(&self.connect(&["--get", "alice/for-visitors", "visited.bin"]));
    }

    fn connect(&self, more: &[&str]) -> Output {
        let hears = self.hears();
        let connect = ["connect", "--card", "carol.card", "--address", &hears];
        self.run(&[&connect, more].concat())
    }

    /// Where mobile access hears clients.
    fn hears(&self) -> String {
        let mobile_access = self.cluster.endpoints.mobile_access.as_ref().unwrap();
        mobile_access.http.replace("http://127.0.0.1", "127.255.255.255")
    }

    /// The command line, told where the cluster is.
    fn run(&self, arguments: &[&str]) -> Output {
        let endpoints = &self.cluster.endpoints;
        let server =
            |at: &bench::target::ServerAddress| json!({"name": at.name, "http": at.http, "admin": at.admin});
        let optional = |at: &Option<bench::target::ServerAddress>| server(at.as_ref().unwrap());
        let sites = endpoints.sites.iter().map(|site| {
            let all =
                |servers: &[bench::target::ServerAddress]| servers.iter().map(server).collect::<Vec<_>>();
            json!({"name": site.name, "gateways": all(&site.gateways), "nodes": all(&site.nodes)})
        });
        let mut mobile_access = optional(&endpoints.mobile_access);
        mobile_access["hear"] = self.hears().into();
        let text = json!({
            "search": server(&endpoints.search), "origin": optional(&endpoints.origin),
            "service_billing": optional(&endpoints.service_billing),
            "content_billing": optional(&endpoints.content_billing),
            "mobile_access": mobile_access, "admin_token": endpoints.admin_token,
            "sites": sites.collect::<Vec<_>>(), "clients": [],
        });
        let file = self.cluster.path("endpoints-of-servers.json");
        std::fs::write(&file, text.to_string()).unwrap();
        let mut command = Command::new(dozo());
        command.args(arguments).current_dir(self.cluster.path(""));
        command.env("DOZO_ENDPOINTS", file).env("DOZO__CLUSTER__SECRET", SECRET);
        command.output().expect("dozo runs")
    }

    fn books_are_closed_and_stores_read(&self) {
        for service in [true, false] {
            let billing = self.cluster.billing(service);
            billing.send_json("POST", "/v1/periods/2020-01/close", &json!({})).expect(200);
        }
        succeeds(&self.run(&["scrub", "--start"]));
    }

    /// The time from a node's start to its first point, and what moves to it and away again.
    fn a_node_joins_and_leaves(&self) {
        let begun = Instant::now();
        let node = self.cluster.add_node("tokyo", "n3");
        let first = format!("dozo_node_capacity_bytes{{instance=\"{node}\"}}");
        self.await_value("the node's first point", &first, |value| value > 0.0);
        println!("{:.1} s from the start of a node to its first point", begun.elapsed().as_secs_f64());
        self.cluster.await_ready(&node);
        let state = |state: &str| format!("dozo_node_state{{instance=\"{node}\", state=\"{state}\"}}");
        self.await_value("the node is active", &state("active"), |value| value == 1.0);
        self.await_value("the node has chunks", &format!("dozo_node_chunks{{instance=\"{node}\"}}"), |n| {
            n > 0.0
        });
        succeeds(&self.run(&["node", "drain", &node]));
        self.await_value("the node drains", &state("draining"), |value| value == 1.0);
        self.await_value("the node is empty", &format!("dozo_node_chunks{{instance=\"{node}\"}}"), |n| {
            n == 0.0
        });
        eventually("the node may go", ALERT_TIME_MAX, || {
            let output = self.run(&["node", "remove", &node]);
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() { Ok(()) } else { Err(told) }
        });
        self.cluster.kill(&node);
        eventually("nobody asks the node any more", ALERT_TIME_MAX, || {
            let up = self.prometheus.now(&format!("up{{instance=\"{node}\"}}"))?;
            if up.is_empty() { Ok(()) } else { Err(format!("{up:?}")) }
        });
    }

    /// Several at once that have nothing to do with each other.
    fn small_faults(&mut self) {
        let cluster = &self.cluster;
        cluster.kill("content-billing");
        cluster.kill("osaka.n2");
        let (studio, away) = (cluster.path("studio"), cluster.path("studio-away"));
        std::fs::rename(&studio, &away).unwrap();
        let token = self.run(&["billing", "auditor-token"]);
        let token = String::from_utf8(token.stdout).unwrap().trim().to_owned();
        let auditor = crate::http::Client { token, ..cluster.billing(true) };
        auditor.send_json("POST", "/v1/corrections", &json!({})).expect(403);
        for _ in 0..3 {
            let started = "dozo_start_time_seconds{instance=\"mobile-access\"}";
            let before = self.prometheus.now(started).unwrap().first().map_or(0.0, |(_, value)| *value);
            cluster.kill("mobile-access");
            cluster.restart("mobile-access");
            self.await_value("the start is seen", started, |value| value > before);
        }
        self.await_firing(&[
            "DozoServerMissing",
            "DozoBillingLate",
            "DozoNodeAway",
            "DozoOriginScanFails",
            "DozoBillingForbidden",
            "DozoServerFlapping",
        ]);
        self.cluster.restart("content-billing");
        self.cluster.restart("osaka.n2");
        std::fs::rename(&away, &studio).unwrap();
        self.await_ended(&["DozoServerMissing", "DozoBillingLate", "DozoNodeAway", "DozoOriginScanFails"]);
    }

    /// What clients of a site see that lost both of its nodes.
    fn a_site_without_nodes(&mut self) {
        for node in ["tokyo.n1", "tokyo.n2"] {
            self.cluster.kill(node);
        }
        let expected = ["DozoAvailabilityBurn", "DozoOverload"];
        self.await_firing(&expected);
        for node in ["tokyo.n1", "tokyo.n2"] {
            self.cluster.restart(node);
        }
        self.await_ended(&expected);
    }

    fn gateways_and_search_are_lost(&mut self) {
        self.cluster.kill("osaka.g1");
        // A count that is new says nothing about how fast it grows: the client asks until that is seen.
        eventually("the client's home is found to be unreachable", ALERT_TIME_MAX, || {
            if self.connect(&[]).status.success() {
                return Err("it was reached".to_owned());
            }
            let firing = self.prometheus.firing()?;
            let is_told = firing.iter().any(|alert| alert["labels"]["alertname"] == "DozoHomesUnreachable");
            if is_told { Ok(()) } else { Err("no alert tells it".to_owned()) }
        });
        self.cluster.kill("tokyo.g1");
        self.await_firing(&["DozoNoGateway"]);
        self.cluster.restart("osaka.g1");
        self.cluster.restart("tokyo.g1");
        self.await_ended(&["DozoNoGateway", "DozoHomesUnreachable"]);
        self.cluster.kill("search");
        self.await_firing(&["DozoAnnouncementsWait"]);
        self.cluster.restart("search");
        self.await_ended(&["DozoAnnouncementsWait", "DozoBillingForbidden", "DozoServerFlapping"]);
    }

    #[track_caller]
    fn await_value(&self, what: &str, query: &str, is_right: impl Fn(f64) -> bool) {
        eventually(what, ALERT_TIME_MAX, || {
            let found = self.prometheus.now(query)?;
            if found.iter().any(|(_, value)| is_right(*value)) {
                Ok(())
            } else {
                Err(format!("{query}: {found:?}"))
            }
        });
    }

    /// Waits for each of these alerts; what they say must be whole.
    #[track_caller]
    fn await_firing(&mut self, names: &[&str]) {
        let begun = Instant::now();
        let mut missing: BTreeSet<&str> = names.iter().copied().collect();
        let told = eventually(&format!("{names:?} fire"), ALERT_TIME_MAX, || {
            let firing = self.prometheus.firing()?;
            missing.retain(|name| !firing.iter().any(|alert| alert["labels"]["alertname"] == *name));
            if missing.is_empty() { Ok(firing) } else { Err(format!("{missing:?} do not")) }
        });
        for alert in told {
            for field in ["summary", "description", "runbook_url", "dashboard_url"] {
                let text = alert["annotations"][field].as_str().unwrap_or_default();
                let is_whole =
                    !text.is_empty() && !text.contains("<no value>") && !text.contains("error expanding");
                assert!(is_whole, "{field} of {alert}");
            }
        }
        println!("{names:?} fired within {:?}", begun.elapsed());
    }

    #[track_caller]
    fn await_ended(&mut self, names: &[&str]) {
        eventually(&format!("{names:?} end"), ALERT_TIME_MAX * 2, || {
            let firing = self.prometheus.firing()?;
            let on: Vec<_> = names
                .iter()
                .filter(|name| firing.iter().any(|alert| alert["labels"]["alertname"] == **name))
                .collect();
            if on.is_empty() { Ok(()) } else { Err(format!("{on:?} go on")) }
        });
        self.fired.extend(names.iter().map(|name| (*name).to_owned()));
    }

    fn every_panel_shows_something(&self, from: f64) {
        let mut faults = Vec::new();
        let mut count = 0;
        for panel in committed() {
            for (query, legend) in &panel.queries {
                count += 1;
                if let Some(fault) = fault(&self.prometheus, from, query, legend) {
                    faults.push(format!("{}: {}: {fault}\n    {query}", panel.dashboard, panel.title));
                }
            }
        }
        println!("{count} queries of panels were asked");
        assert!(faults.is_empty(), "{} of {count} queries:\n{}", faults.len(), faults.join("\n"));
    }
}

#[track_caller]
fn succeeds(output: &Output) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
}
