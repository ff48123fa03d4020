//! Configuration as an operator meets it: what is refused and how, where values come from, what SIGHUP takes over, and
//! that no secret is shown.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod process;

use std::path::Path;
use std::process::Output;

use process::{Server, dozo, stderr, stdout};

const NODE: &str = "name = \"n3\"\nsite = \"tokyo\"\nsearch = \"http://127.0.0.1:1\"\nstore = \"memory:\"\n\
                    data_dir = \"n3\"\nlisten = \"127.0.0.1:0\"\n\n[cluster]\nsecret_file = \"cluster-secret\"\n";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A folder with a node's configuration and a secret.
fn folder(node: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("node.toml"), node).unwrap();
    std::fs::write(folder.path().join("cluster-secret"), SECRET).unwrap();
    folder
}

fn config(folder: &Path, command: &[&str], environment: &[(&str, &str)]) -> Output {
    let args = [&["config"], command].concat();
    dozo(folder).args(args).envs(environment.iter().copied()).output().expect("the binary runs")
}

const CHECK: &[&str] = &["check", "storage-node", "--config", "node.toml"];

#[test]
fn what_is_wrong_names_the_key_and_the_file_variable_or_flag() {
    for (node, environment, flags, message) in [
        (
            NODE.replace("site =", "sight ="),
            vec![],
            vec![],
            "unknown key sight (node.toml:2): did you mean site?",
        ),
        (
            NODE.replace("secret_file", "secret_fil"),
            vec![],
            vec![],
            "cluster.secret_fil (node.toml:9): did you mean secret_file?",
        ),
        (NODE.into(), vec![("DOZO__LISTEM", "x")], vec![], "DOZO__LISTEM: did you mean DOZO__LISTEN?"),
        (
            NODE.into(),
            vec![("DOZO__LISTEN", "nowhere")],
            vec![],
            "listen (DOZO__LISTEN): invalid socket address",
        ),
        (
            NODE.into(),
            vec![("DOZO__SCRUB_INTERVAL_MS", "0")],
            vec![],
            "scrub_interval_ms (DOZO__SCRUB_INTERVAL_MS) is 0, not a number, at least 1",
        ),
        (NODE.replace("\"tokyo\"", "5"), vec![], vec![], "site (node.toml:2) must be text"),
        (NODE.into(), vec![], vec!["--site", "No Site"], "site (--site): site \"No Site\" is not valid"),
        (NODE.into(), vec![], vec!["--store", "ftp://x"], "must be one of file:"),
        (
            NODE.replace("name = \"n3\"\n", ""),
            vec![],
            vec![],
            "name is not set: give it as `name` in the file, as DOZO__NAME",
        ),
    ] {
        let folder = folder(&node);
        let output = config(folder.path(), &[CHECK, &flags].concat(), &environment);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(message), "{message}: {}", stderr(&output));
    }
}

#[test]
fn every_value_is_shown_with_where_it_came_from() {
    let folder = folder(&format!("{NODE}[log]\nfilter = \"debug\"\n"));
    let command = ["show", "--origin", "--json", "storage-node", "--config", "node.toml", "--name", "n4"];
    let environment = [
        ("DOZO__MOVES_BYTES_PER_S", "1MiB"),
        ("DOZO__CLUSTER__SECRET", SECRET),
        ("DOZO__ADVERTISE", "http://u:hush@h:1"),
    ];
    let output = config(folder.path(), &command, &environment);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stdout(&output).contains(SECRET) && !stdout(&output).contains("hush"), "{}", stdout(&output));
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let row = |key: &str| {
        let row = rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("{key} is not shown"));
        (row["value"].clone(), row["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(row("name"), ("n4".into(), "flag --name".into()));
    assert_eq!(row("site"), ("tokyo".into(), "node.toml:2".into()));
    assert_eq!(row("log.filter"), ("debug".into(), "node.toml:11".into()));
    assert_eq!(row("moves_bytes_per_s"), ((1 << 20).into(), "environment DOZO__MOVES_BYTES_PER_S".into()));
    assert_eq!(row("scrub_bytes_per_s"), ((20 << 20).into(), "default".into()));
    assert_eq!(row("zone"), (serde_json::Value::Null, "default".into()));
    assert_eq!(row("cluster.secret").1, "DOZO__CLUSTER__SECRET");
}

#[test]
fn the_reference_of_settings_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/config.md");
    let printed = ops::catalogue::config();
    if std::env::var_os("DOZO_REWRITE_FIXTURES").is_some() {
        std::fs::write(&path, &printed).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == printed, "ops/reference/config.md is stale: run this test with DOZO_REWRITE_FIXTURES=1");
    let output = dozo(Path::new(".")).args(["catalogue", "config"]).output().unwrap();
    assert_eq!(stdout(&output), kept);
    for line in kept.lines().filter(|line| line.starts_with("| `")) {
        assert!(!line.ends_with("|  |"), "a setting says nothing of itself: {line}");
    }
}

#[test]
fn a_secret_comes_from_systemds_credentials_when_nothing_else_names_one() {
    let folder = folder(&NODE.replace("[cluster]\nsecret_file = \"cluster-secret\"\n", ""));
    let credentials = folder.path().to_str().unwrap().to_owned();
    let mut command = dozo(folder.path());
    command.args(["storage-node", "--config", "node.toml"]).env("CREDENTIALS_DIRECTORY", credentials);
    let server = Server::start(&mut command);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn sighup_takes_over_what_it_can_and_names_what_needs_a_restart() {
    let folder = folder(NODE);
    let file = folder.path().join("node.toml");
    let mut server = Server::start(dozo(folder.path()).args(["storage-node", "--config", "node.toml"]));
    assert_eq!(server.metric("dozo_config_reloads_total{result=\"ok\"}"), Some(0.0));
    let started = server.metric("dozo_config_last_reload_success_timestamp_seconds").unwrap();
    assert!(started > 1.7e9, "{started}");

    let live = "moves_bytes_per_s = 1000\nscrub_bytes_per_s = 0\nscrub_interval_ms = 5000\n";
    let changed = format!("{live}slot_move_ms = 20000\n{NODE}[log]\nfilter = \"warn,ops=info\"\n");
    std::fs::write(
        &file,
        changed.replace("secret_file = \"cluster-secret\"", "secret_file = \"./cluster-secret\""),
    )
    .unwrap();
    server.signal("HUP");
    let done = server.wait_for_log("the configuration was reloaded");
    assert_eq!(done["needs_restart"], "cluster.secret_file, slot_move_ms");
    let log = server.log_so_far();
    for key in ["moves_bytes_per_s", "scrub_bytes_per_s", "scrub_interval_ms", "log.filter"] {
        let event =
            log.iter().find(|event| event["key"] == key).unwrap_or_else(|| panic!("{key} is not told"));
        assert_eq!(event["message"], "a setting was changed", "{event}");
    }
    assert_eq!(server.metric("dozo_config_reloads_total{result=\"ok\"}"), Some(1.0));
    assert_eq!(server.admin_json("/v1/node")["moves_limit_bytes_per_s"], 1000);

    // A broken file changes nothing, and is told as an error.
    std::fs::write(&file, "moves_bytes_per_s = \"fast\"\nhush hush").unwrap();
    server.signal("HUP");
    let refused = server.wait_for_log("the configuration cannot be reloaded; the running one stays in force");
    assert_eq!(refused["level"], "ERROR");
    assert!(refused["error"].as_str().unwrap().contains("line 2"), "{refused}");
    assert_eq!(server.metric("dozo_config_reloads_total{result=\"error\"}"), Some(1.0));
    assert_eq!(server.admin_json("/v1/node")["moves_limit_bytes_per_s"], 1000);

    // What needs a restart is told until there was one; what is back as it was is told no more.
    std::fs::write(&file, format!("{live}slot_move_ms = 20000\n{NODE}[log]\nfilter = \"info\"\n")).unwrap();
    server.signal("HUP");
    let done = server.wait_for_log("the configuration was reloaded");
    assert_eq!(done["needs_restart"], "slot_move_ms");
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn settings_that_are_called_live_are_taken_over() {
    let member = "listen = \"127.0.0.1:0\"\nname = \"x1\"\nsearch = \"http://127.0.0.1:1\"\n";
    let gateway = format!("site = \"tokyo\"\n{member}");
    let origin = format!("data_dir = \"x1\"\n{member}");
    for (command, role, file) in
        [("gateway", common::auth::Role::Gateway, gateway), ("origin", common::auth::Role::Origin, origin)]
    {
        let folder = folder("");
        let path = folder.path().join("server.toml");
        std::fs::write(&path, &file).unwrap();
        let secret = ["--cluster-secret-file", "cluster-secret"];
        let mut server =
            Server::start(dozo(folder.path()).args([command, "--config", "server.toml"]).args(secret));
        let schema = ops::roles::own_schema(role);
        let live: Vec<String> =
            schema.leaves().into_iter().filter(|(_, key)| key.is_live).map(|(path, _)| path).collect();
        assert!(live.len() > 1, "{live:?}");
        let lines: String = live.iter().map(|key| format!("{key} = 4321\n")).collect();
        std::fs::write(&path, format!("{lines}{file}")).unwrap();
        server.signal("HUP");
        assert_eq!(server.wait_for_log("the configuration was reloaded")["needs_restart"], "nothing");
        server.stop();
    }
}
