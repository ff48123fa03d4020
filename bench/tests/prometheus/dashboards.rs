//! The committed dashboards' queries, as Grafana would send them.

use serde_json::Value;

use crate::server::{Prometheus, ops};

const SERIES_MAX: usize = 50;

pub struct Panel {
    pub dashboard: String,
    pub title: String,
    pub queries: Vec<(String, String)>,
}

pub fn committed() -> Vec<Panel> {
    let folder = std::fs::read_dir(ops().join("grafana/dashboards")).expect("dashboards are committed");
    let mut all = Vec::new();
    for entry in folder {
        let text = std::fs::read_to_string(entry.expect("it can be listed").path()).expect("it is text");
        let dashboard: Value = serde_json::from_str(&text).expect("JSON");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let panels =
            dashboard["panels"].as_array().expect("a list").iter().filter(|panel| panel["type"] != "row");
        all.extend(panels.map(|panel| {
            Panel {
                dashboard: text(&dashboard["uid"]),
                title: text(&panel["title"]),
                queries: panel["targets"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(|target| (substituted(&text(&target["expr"])), text(&target["legendFormat"])))
                    .collect(),
            }
        }));
    }
    all
}

/// With all servers chosen, at scrapes once a second.
fn substituted(expr: &str) -> String {
    ["$job", "$site", "$instance"]
        .iter()
        .fold(expr.replace("$__rate_interval", "6s"), |expr, variable| expr.replace(variable, ".*"))
}

/// What is wrong with a query's answer over the time since `from`, if anything.
pub fn fault(prometheus: &Prometheus, from: f64, query: &str, legend: &str) -> Option<String> {
    let series = match prometheus.since(from, query) {
        Ok(series) => series,
        Err(error) => return Some(error),
    };
    let numbers = series.iter().flat_map(|(_, points)| points).filter(|point| point.is_finite()).count();
    if numbers == 0 {
        return Some(format!("no points in {} series", series.len()));
    }
    if series.len() > SERIES_MAX {
        return Some(format!("{} series", series.len()));
    }
    let told: Vec<&str> = legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()).collect();
    let missing = told.iter().find(|label| !series.iter().any(|(labels, _)| labels[**label].is_string()));
    missing.map(|label| format!("no series has the label {label}"))
}
