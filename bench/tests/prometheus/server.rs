//! A Prometheus of the test's own, with the committed configuration and rules at the pace of a test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bench::orphans::{Ended, Kind, watch};
use common::client::encode;
use serde_json::Value;

use crate::cluster::{Cluster, eventually};
use crate::http::Client;

const START_TIME_MAX: Duration = Duration::from_secs(30);
/// Every window of the rules, in seconds: several scrapes fit in.
const WINDOW_SECONDS: u32 = 12;
/// That in which a server is seen to start several times.
const LONG_WINDOW_SECONDS: u32 = 60;

pub fn ops() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("ops")
}

/// Whether the tools are here; a failure where they must be.
pub fn is_installed() -> bool {
    let missing = ["prometheus", "promtool"].into_iter().find(|tool| {
        Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    });
    let Some(tool) = missing else { return true };
    assert!(std::env::var_os("CI").is_none(), "{tool} is missing: apt-get install prometheus");
    println!("skipped, {tool} is missing: apt-get install prometheus");
    false
}

pub struct Prometheus {
    client: Client,
    /// Where the load generator is asked, `HOST:PORT`.
    pub load_at: String,
    _process: Ended,
}

impl Prometheus {
    pub fn start(cluster: &Cluster) -> Self {
        let folder = cluster.path("prometheus");
        let (port, load_at) = (free_port(), format!("127.0.0.1:{}", free_port()));
        std::fs::create_dir_all(folder.join("rules")).expect("the folder is ours");
        let read = |file: &str| std::fs::read_to_string(ops().join(file)).expect("it is committed");
        let search = format!("{}/v1/sd/prometheus", cluster.endpoints.search.http);
        std::fs::write(
            folder.join("prometheus.yml"),
            configuration(&read("prometheus/prometheus.yml"), &search, &load_at),
        )
        .expect("the folder is ours");
        std::fs::write(folder.join("rules/dozo.yml"), faster(&read("prometheus/rules/dozo.yml")))
            .expect("the folder is ours");
        let log = std::fs::File::create(cluster.path("prometheus.log")).expect("the folder is ours");
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus starts");
        watch(Kind::Process, &process.id().to_string()).expect("a shell runs");
        let client = Client::new("prometheus", &format!("http://127.0.0.1:{port}"), "");
        let server = Self { client, load_at, _process: Ended(process) };
        eventually("Prometheus is ready", START_TIME_MAX, || {
            let answer = server.client.try_send("GET", "/-/ready", &[], &[]).map_err(|e| e.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        });
        server
    }

    fn ask(&self, path: &str) -> Result<Value, String> {
        let answer = self.client.try_send("GET", path, &[], &[]).map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(answer.text());
        }
        Ok(answer.json::<Value>()["data"].clone())
    }

    /// The series of a query now: labels and value.
    pub fn now(&self, query: &str) -> Result<Vec<(Value, f64)>, String> {
        let data = self.ask(&format!("/api/v1/query?query={}", encode(query)))?;
        let series = data["result"].as_array().ok_or("no result")?;
        let value =
            |one: &Value| one["value"][1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN);
        Ok(series.iter().map(|one| (one["metric"].clone(), value(one))).collect())
    }

    /// The series of a query since `from`: labels and points.
    pub fn since(&self, from: f64, query: &str) -> Result<Vec<(Value, Vec<f64>)>, String> {
        let path =
            format!("/api/v1/query_range?query={}&start={from}&end={}&step=2", encode(query), unix_seconds());
        let data = self.ask(&path)?;
        let series = data["result"].as_array().ok_or("no result")?;
        let points = |one: &Value| {
            let values = one["values"].as_array().into_iter().flatten();
            values.filter_map(|point| point[1].as_str()?.parse().ok()).collect()
        };
        Ok(series.iter().map(|one| (one["metric"].clone(), points(one))).collect())
    }

    /// Alerts that fire, as `/api/v1/alerts` tells them.
    pub fn firing(&self) -> Result<Vec<Value>, String> {
        let data = self.ask("/api/v1/alerts")?;
        let alerts = data["alerts"].as_array().ok_or("no alerts")?.iter();
        Ok(alerts.filter(|alert| alert["state"] == "firing").cloned().collect())
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port()
}

pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs_f64()
}

/// The committed configuration with this cluster's search and its load generator, without Alertmanager, and everything once a
/// second.
fn configuration(committed: &str, search: &str, load_at: &str) -> String {
    let alerting =
        committed.split("\nalerting:").nth(1).and_then(|rest| rest.split("\nscrape_configs:").next());
    let without = committed.replace(&format!("\nalerting:{}", alerting.expect("it is there")), "");
    let lines = without.lines().map(|line| {
        let indent = &line[..line.len() - line.trim_start().len()];
        let key = line.trim_start().split(':').next().unwrap_or_default();
        match key {
            "scrape_interval" | "evaluation_interval" | "refresh_interval" => format!("{indent}{key}: 1s"),
            "- url" => format!("{indent}- url: {search}"),
            _ => line.to_owned(),
        }
    });
    let load = format!("\n  - job_name: bench\n    static_configs: [{{ targets: ['{load_at}'] }}]\n");
    lines.collect::<Vec<_>>().join("\n") + &load
}

/// The committed rules with windows of seconds and nothing to wait for; names of what is recorded stay.
fn faster(committed: &str) -> String {
    let lines = committed.lines().map(|line| {
        let key = line.trim_start().split(':').next().unwrap_or_default();
        let indent = &line[..line.len() - line.trim_start().len()];
        match key {
            "for" => format!("{indent}for: 0s"),
            "interval" => format!("{indent}interval: 1s"),
            "expr" => with_windows(line)
                .replace("offset 2m", "offset 5s")
                .replace("offset 1w", "offset 30s")
                .replace("oldest_age_seconds > 300", "oldest_age_seconds > 4"),
            _ => line.to_owned(),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn with_windows(line: &str) -> String {
    let seconds = if line.contains("changes(") { LONG_WINDOW_SECONDS } else { WINDOW_SECONDS };
    let mut parts = line.split('[');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.split_once(']').map_or("", |(_, rest)| rest);
        out.push_str(&format!("[{seconds}s]{rest}"));
    }
    out
}
