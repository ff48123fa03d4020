//! What holds for every rule, without exceptions.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use clap::CommandFactory;

use super::{Severity, all, expressions, file, objectives, recorded_names};
use crate::cli::Cli;
use crate::dashboards;
use crate::promql::{self, labels, parsed};

const HEADINGS: &[&str] = &["Meaning", "Impact", "How to confirm", "Mitigate", "Root cause hunt", "Clear"];

fn ops() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Names of runbooks and their texts.
fn runbooks() -> Vec<(String, String)> {
    let folder = std::fs::read_dir(ops().join("runbooks")).expect("there are runbooks");
    let read = |path: PathBuf| {
        let name = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).expect("it is text"))
    };
    folder.map(|entry| read(entry.expect("it can be listed").path())).collect()
}

#[test]
fn what_is_committed_is_what_is_generated() {
    let file = file();
    let path = ops().join(&file.path);
    if std::env::var_os("DOZO_REWRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &file.text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == file.text,
        "{} is not what is generated; set DOZO_REWRITE_FIXTURES=1 and run this test again",
        file.path
    );
}

#[test]
fn rules_name_what_exists() {
    let recorded = recorded_names();
    assert_eq!(recorded.iter().collect::<HashSet<_>>().len(), recorded.len());
    for expr in expressions() {
        promql::check(&expr, &recorded);
    }
    for (_, rules) in objectives::recordings() {
        for rule in rules {
            // Who chooses a site or a server on a dashboard chooses what was recorded of it.
            let mut kept = labels(&parsed(&rule.expr));
            kept.sort();
            assert_eq!(kept, ["instance", "job", "site"], "{}", rule.name);
        }
    }
}

#[test]
fn every_alert_says_what_is_so_of_whom_and_where_to_look() {
    let uids: HashSet<_> = dashboards::all().iter().map(|dashboard| dashboard.uid).collect();
    let mut rules = HashSet::new();
    for alert in all() {
        let name = alert.name;
        assert!(name.starts_with("Dozo"), "{name}");
        assert!(rules.insert((name, alert.severity.as_str(), alert.labels)), "{name} is there twice");
        assert!(uids.contains(alert.dashboard), "{name}: there is no dashboard {}", alert.dashboard);
        let of_expr: BTreeSet<String> = labels(&parsed(&alert.expr)).into_iter().collect();
        let fixed: BTreeSet<String> = alert.labels.iter().map(|(label, _)| (*label).to_owned()).collect();
        assert!(of_expr.contains("job") || fixed.contains("job"), "{name} does not say whose it is");
        for text in [alert.summary, alert.description] {
            for told in text.split("$labels.").skip(1) {
                let label = told.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap();
                assert!(of_expr.contains(label), "{name} has no label {label}: {text}");
            }
        }
        assert!(alert.description.ends_with('.') && !alert.summary.ends_with('.'), "{name}");
        let is_silent = alert.severity == Severity::None;
        assert_eq!(is_silent, name == "DozoWatchdog", "{name}");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let alerts: BTreeSet<String> = all().iter().map(|alert| alert.name.to_owned()).collect();
    let books: BTreeSet<String> = runbooks().into_iter().map(|(name, _)| name).collect();
    assert_eq!(alerts, books);
    for (name, text) in runbooks() {
        assert!(text.starts_with(&format!("# {name}\n")), "{name}");
        let headings: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(headings, HEADINGS, "{name}");
        assert!(text.contains("```"), "{name} tells no command");
    }
}

/// Lines of fenced blocks, without the blocks' own.
fn commands(text: &str) -> Vec<&str> {
    let mut is_inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            is_inside = !is_inside;
        } else if is_inside {
            found.push(line.trim());
        }
    }
    found
}

#[test]
fn commands_of_runbooks_are_accepted() {
    for (name, text) in runbooks() {
        for line in commands(&text) {
            let Some(arguments) = line.strip_prefix("dozo ") else { continue };
            let arguments = arguments.split(" | ").next().unwrap_or(arguments).split_whitespace();
            let words = std::iter::once("dozo").chain(arguments);
            if let Err(error) = Cli::command().try_get_matches_from(words) {
                panic!("{name}: {line}: {error}");
            }
        }
    }
}

#[test]
fn runbooks_name_metrics_and_dashboards_that_exist() {
    let recorded = recorded_names();
    let uids: HashSet<_> = dashboards::all().iter().map(|dashboard| dashboard.uid).collect();
    for (name, text) in runbooks() {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        for word in words.filter(|word| word.starts_with("dozo_") || word.starts_with("process_")) {
            let is_known = dashboards::panel::metric_of(word).is_some() || recorded.iter().any(|r| r == word);
            assert!(is_known, "{name}: {word} is not in the catalogue");
        }
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        let units = std::fs::read_dir(ops().join("systemd")).expect("there are units");
        let units: Vec<String> = units
            .map(|unit| unit.expect("it can be listed").file_name().to_string_lossy().into_owned())
            .collect();
        for word in words.filter(|word| word.starts_with("dozo-") && *word != "dozo-") {
            let is_unit = units.iter().any(|unit| unit.split(['.', '@']).next() == Some(word));
            assert!(uids.contains(word) || is_unit, "{name}: there is no dashboard, and no service, {word}");
        }
    }
}
