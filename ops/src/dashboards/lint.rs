//! What holds for every dashboard, without exceptions.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use common::catalogue::load;
use common::catalogue::metrics::{self, Watched};
use promql_parser::label::MatchOp;
use serde_json::Value;

use super::{all, files};
use crate::alerts;
use crate::promql::{self, labels, parsed, selectors};

fn ops() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Every committed dashboard as JSON, with its file's name.
fn committed() -> Vec<(String, Value)> {
    let read = |file: &super::GeneratedFile| {
        let text = std::fs::read_to_string(ops().join(&file.path)).expect("it is committed");
        (file.path.clone(), serde_json::from_str(&text).expect("JSON"))
    };
    files().iter().map(read).collect()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().expect("a list").iter().filter(|panel| panel["type"] != "row")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Queries as Prometheus gets them when nothing is chosen.
fn substituted(expr: &str) -> String {
    ["$job", "$site", "$instance"]
        .iter()
        .fold(expr.replace("$__rate_interval", "5m"), |expr, variable| expr.replace(variable, ".*"))
}

#[test]
fn what_is_committed_is_what_is_generated() {
    let rewrites = std::env::var_os("DOZO_REWRITE_FIXTURES").is_some();
    let folder = ops().join("grafana/dashboards");
    for file in files() {
        let path = ops().join(&file.path);
        if rewrites {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &file.text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == file.text,
            "{} is not what is generated; set DOZO_REWRITE_FIXTURES=1 and run this test again",
            file.path
        );
    }
    assert_eq!(
        std::fs::read_dir(folder).unwrap().count(),
        files().len(),
        "a file is there that nothing makes"
    );
}

#[test]
fn ids_are_unique_and_links_lead_somewhere() {
    let all = committed();
    let uids: HashSet<_> = all.iter().map(|(_, dashboard)| text(&dashboard["uid"])).collect();
    assert_eq!(uids.len(), 12);
    let titles: HashSet<_> = all.iter().map(|(_, dashboard)| text(&dashboard["title"])).collect();
    assert_eq!(titles.len(), 12);
    for (path, dashboard) in &all {
        assert_eq!(*path, format!("grafana/dashboards/{}.json", text(&dashboard["uid"])));
        assert!(text(&dashboard["description"]).ends_with('.'), "{path}");
        assert_eq!(dashboard["editable"], false);
        let ids: HashSet<_> =
            dashboard["panels"].as_array().unwrap().iter().map(|p| p["id"].as_u64()).collect();
        assert_eq!(ids.len(), dashboard["panels"].as_array().unwrap().len(), "{path}");
        // The menu of dashboards is made of those with the tag, which all of them have.
        let link = &dashboard["links"][0];
        assert_eq!((text(&link["type"]), link["tags"].clone()), ("dashboards", dashboard["tags"].clone()));
        let panel_titles: Vec<_> = panels(dashboard).map(|panel| text(&panel["title"])).collect();
        assert!(
            !panel_titles.is_empty() && panel_titles.len() <= 40,
            "{path}: {} panels",
            panel_titles.len()
        );
    }
}

#[test]
fn panels_lie_beside_each_other() {
    for (path, dashboard) in committed() {
        let mut taken = HashSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
            let (x, y, w, h) = (side("x"), side("y"), side("w"), side("h"));
            assert!(
                w > 0 && h > 0 && x + w <= u64::from(super::panel::COLUMNS),
                "{path}: {}",
                panel["title"]
            );
            for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(place), "{path}: {} lies on another panel", panel["title"]);
            }
        }
    }
}

#[test]
fn every_panel_says_what_it_shows() {
    const UNITS: &[&str] = &["short", "percentunit", "s", "bytes", "binBps", "cps", "bool_yes_no"];
    for (path, dashboard) in committed() {
        let mut titles = HashSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = text(&panel["title"]);
            if panel["type"] == "row" {
                titles.clear();
                continue;
            }
            assert!(titles.insert(title), "{path}: {title} is twice in its row");
            assert!(!title.is_empty() && text(&panel["description"]).ends_with('.'), "{path}: {title}");
            let unit = text(&panel["fieldConfig"]["defaults"]["unit"]);
            assert!(UNITS.contains(&unit), "{path}: {title} has the unit {unit:?}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{path}: {title}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{path}: {title} asks nothing");
            let refs: HashSet<_> = targets.iter().map(|target| text(&target["refId"])).collect();
            assert_eq!(refs.len(), targets.len(), "{path}: {title}");
            assert!(targets.iter().all(|target| target["datasource"]["uid"] == "${datasource}"), "{path}");
        }
    }
}

#[test]
fn variables_are_there_and_used() {
    for (path, dashboard) in committed() {
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let names: Vec<_> = variables.iter().map(|variable| text(&variable["name"])).collect();
        assert_eq!(names, ["datasource", "job", "site", "instance"], "{path}");
        for variable in &variables[1..] {
            // Read anew when the time range changes: servers come and go.
            assert_eq!(
                (&variable["refresh"], text(&variable["datasource"]["uid"])),
                (&2.into(), "${datasource}")
            );
            assert_eq!(variable["multi"], true);
        }
        let whole = dashboard.to_string();
        for name in names {
            assert!(
                whole.contains(&format!("${name}")) || whole.contains(&format!("${{{name}}}")),
                "{path}: {name}"
            );
        }
    }
}

/// Queries with what they are for: panels' and annotations'.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let of_panels = panels(dashboard).flat_map(|panel| {
        let targets = panel["targets"].as_array().unwrap().iter();
        targets.map(|target| (text(&panel["title"]).to_owned(), text(&target["expr"]).to_owned()))
    });
    let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter().skip(1);
    let of_annotations =
        annotations.map(|each| (text(&each["name"]).to_owned(), text(&each["expr"]).to_owned()));
    of_panels.chain(of_annotations).collect()
}

#[test]
fn every_query_selects_the_chosen_targets_and_names_what_exists() {
    let recorded = alerts::recorded_names();
    for (path, dashboard) in committed() {
        for (title, expr) in queries(&dashboard) {
            let what = format!("{path}: {title}: {expr}");
            let plain = substituted(&expr);
            promql::check(&plain, &recorded);
            let tree = parsed(&plain);
            for selector in selectors(&tree) {
                for variable in ["job", "instance", "site"] {
                    let is_chosen = selector.matchers().iter().any(|matcher| {
                        matcher.name == variable
                            && matches!(matcher.op, MatchOp::Re(_))
                            && matcher.value == ".*"
                    });
                    let must = super::panel::is_of_servers(selector.series())
                        && (variable != "site" || super::panel::has_site(selector.series()));
                    assert_eq!(is_chosen, must, "{variable} of {}: {what}", selector.series());
                }
            }
            // A rate over a window of one's own is wrong at other resolutions.
            for function in ["rate(", "increase("] {
                for (at, _) in expr.match_indices(function) {
                    let range = expr[at..].split_once("}[").and_then(|(_, rest)| rest.split_once(']'));
                    assert_eq!(range.map(|(range, _)| range), Some("$__rate_interval"), "{what}");
                }
            }
        }
    }
}

#[test]
fn legends_tell_series_apart() {
    for dashboard in all() {
        for panel in dashboard.rows.iter().flat_map(|row| &row.panels) {
            for query in &panel.queries {
                let what = format!("{}: {}: {}", dashboard.uid, panel.title, query.expr);
                let shown = labels(&parsed(&substituted(&super::panel::with_targets(&query.expr))));
                if let (super::panel::Kind::Table { by }, Some(_)) = (panel.kind, query.unit) {
                    assert_eq!(
                        shown.iter().collect::<HashSet<_>>(),
                        HashSet::from([&by.to_owned()]),
                        "{what}"
                    );
                    continue;
                }
                assert!(!query.legend.is_empty(), "{what}");
                for label in &shown {
                    assert!(
                        query.legend.contains(&format!("{{{{{label}}}}}")),
                        "{label} is not told: {what}"
                    );
                }
                for told in query.legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                    assert!(shown.iter().any(|label| label == told), "{told} is empty: {what}");
                }
            }
            let legends: HashSet<_> = panel.queries.iter().map(|query| &query.legend).collect();
            let by_job = panel.queries.iter().all(|query| query.legend == "{{instance}}");
            assert!(by_job || legends.len() == panel.queries.len(), "{}: {}", dashboard.uid, panel.title);
        }
    }
}

#[test]
fn every_metric_is_looked_at() {
    let mut seen: HashSet<&str> = HashSet::new();
    for (_, dashboard) in committed() {
        for (_, expr) in queries(&dashboard) {
            seen.extend(promql::metrics(&substituted(&expr)));
        }
    }
    for expr in alerts::expressions() {
        seen.extend(promql::metrics(&expr));
    }
    let shown = metrics::ALL.iter().chain(load::ALL).filter(|metric| metric.watched == Watched::Shown);
    let missed: Vec<_> = shown.map(|metric| metric.name).filter(|name| !seen.contains(name)).collect();
    assert!(missed.is_empty(), "on no panel and in no alert: {missed:?}");
}
