//! The files for Prometheus and Alertmanager, as their own tools judge them.
//!
//! Needs `promtool` and `amtool` (Debian: prometheus, prometheus-alertmanager). Where they are missing the tests are
//! skipped with a word about it; with `CI` set they fail.

#![expect(clippy::print_stdout, reason = "says what is skipped")]

use std::collections::BTreeSet;
use std::process::Command;

/// Runs a tool in the folder of the files; `None`: it is not installed.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/prometheus");
    match Command::new(tool).args(arguments).current_dir(folder).output() {
        Ok(output) => {
            let told = [output.stdout, output.stderr].concat();
            let told = String::from_utf8_lossy(&told).into_owned();
            assert!(output.status.success(), "{tool} {arguments:?}: {told}");
            Some(told)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let how = "apt-get install prometheus prometheus-alertmanager";
            assert!(std::env::var_os("CI").is_none(), "{tool} is missing: {how}");
            println!("skipped, {tool} is missing: {how}");
            None
        }
        Err(error) => panic!("{tool}: {error}"),
    }
}

#[test]
fn prometheus_loads_its_configuration_and_rules() {
    run("promtool", &["check", "config", "prometheus.yml"]);
    if let Some(told) = run("promtool", &["check", "rules", "rules/dozo.yml"]) {
        assert!(told.contains("SUCCESS"), "{told}");
    }
}

#[test]
fn every_alert_fires_when_it_should_and_is_quiet_otherwise() {
    let files = ["tests/alerts.yml", "tests/alerts-over-a-week.yml", "tests/alerts-over-a-month.yml"];
    let read =
        |file: &&str| std::fs::read_to_string(format!("{}/prometheus/{file}", env!("CARGO_MANIFEST_DIR")));
    let cases: String = files.iter().map(|file| read(file).unwrap()).collect();
    let names: BTreeSet<_> = ops::alerts::all().iter().map(|alert| alert.name).collect();
    for name in names {
        assert!(cases.contains(&format!("name: {name} fires\n")), "{name} has no case in which it fires");
        let has_quiet_case = cases.contains(&format!("name: {name} is quiet\n"));
        assert_eq!(has_quiet_case, name != "DozoWatchdog", "{name}");
    }
    run("promtool", &[&["test", "rules"], &files[..]].concat());
}

#[test]
fn alertmanager_loads_its_configuration_and_tells_the_right_ones() {
    if run("amtool", &["check-config", "alertmanager.yml"]).is_none() {
        return;
    }
    for (severity, name, receiver) in [
        ("page", "DozoNoGateway", "pages"),
        ("ticket", "DozoDiskErrors", "tickets"),
        ("none", "DozoWatchdog", "watchdog"),
    ] {
        let labels = [format!("severity={severity}"), format!("alertname={name}")];
        let arguments = ["config", "routes", "test", "--config.file=alertmanager.yml"];
        let arguments: Vec<&str> = arguments.into_iter().chain(labels.iter().map(String::as_str)).collect();
        // A warning about amtool's own configuration may follow.
        assert_eq!(run("amtool", &arguments).unwrap().lines().next(), Some(receiver));
    }
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/prometheus/alertmanager.yml")).unwrap();
    let known: Vec<_> = ops::alerts::all().iter().map(|alert| alert.name).collect();
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.starts_with("Dozo"));
    // `DozoDisk.+` stands for several.
    for word in words.filter(|word| *word != "Dozo") {
        assert!(known.iter().any(|name| name.starts_with(word)), "there is no alert {word}");
    }
}
