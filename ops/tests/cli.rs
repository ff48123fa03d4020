//! The command line where no server is needed: exit statuses, and errors that tell the next step.

use std::path::Path;
use std::process::{Command, Output};

fn dozo(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dozo"));
    command.current_dir(folder).args(args).env_remove("DOZO_ENDPOINTS").env_remove("RUST_LOG");
    command.output().expect("cargo builds the binary for this test")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let wrong: &[&[&str]] = &[
        &["no-such-command"],
        &["status", "--no-such-flag"],
        &["get"],
        &["get", "alice/x"],
        &["get", "not a name", "--as", "alice"],
        &["get", "alice/x", "--as", "alice", "--visit", "alice.visit"],
        &["get", "alice/x", "--visit", "alice.visit", "--site", "tokyo"],
        &["connect"],
        &["connect", "--card", "x", "--mobile-access", "h:1", "--address", "h:2"],
        &["connect", "--card", "x.visit"],
        &["card", "new", "x"],
        &["card", "new", "x", "--client", "alice", "--pkcs11", "library.so"],
        &["card", "disable", "alice", "--card", "not a key"],
        &["put", "x", "alice/x", "--as", "Not A Client"],
        &["up", "--sites", "0"],
        &["up", "--sites", "5"],
        &["up", "--nodes", "9"],
        &["up", "--port-base", "80"],
        &["up", "--port-base", "65500"],
        &["up", "--node-size", "much"],
        &["up", "--replicas", "4"],
        &["node", "plan", "tokyo.n9"],
        &["node", "plan", "tokyo.n9", "--drain", "--add", "5GiB"],
        &["node", "plan", "tokyo.n9", "--add", "much"],
        &["node", "drain"],
        &["node", "remove", "a.b.c"],
        &["node", "undrain", "N 1"],
        &["site", "set", "tokyo"],
        &["temporary", "list", "--client", "No Client"],
        &["site", "set", "tokyo", "--replicas", "4"],
        &["site", "set", "tokyo", "--zone", "Far East"],
        &["site", "distance", "tokyo", "osaka"],
        &["site", "distance", "tokyo", "osaka", "near"],
        &["gateway", "--listen", "nowhere"],
        &["gateway"],
        &["--log-format", "xml", "status"],
        &["scrub", "--node", "no dot"],
        &["origin", "add", "dir:/x"],
        &["origin", "add", "dir:/x", "--bucket", "news", "--provider", "studio", "--reads", "0"],
        &["origin", "remove"],
        &["fsck", "--store", "file:x"],
        &["fsck", "--store", "nowhere", "--data-dir", "d"],
        &["fsck", "--store", "memory:", "--data-dir", "d"],
    ];
    for args in wrong {
        let output = dozo(folder.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty(), "{args:?} says nothing");
    }
}

#[test]
fn help_and_version_exit_with_0() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["--version"], &["up", "--help"], &["storage-node", "--help"]] {
        let output = dozo(folder.path(), args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn commands_without_a_system_fail_with_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let commands: &[&[&str]] = &[
        &["status"],
        &["node", "list", "--json"],
        &["node", "plan", "tokyo.n9", "--add", "5GiB", "--json"],
        &["node", "plan", "n1", "--drain"],
        &["node", "drain", "tokyo.n1", "--wait"],
        &["node", "undrain", "n1"],
        &["node", "remove", "n1", "--lost"],
        &["site", "set", "tokyo", "--replicas", "auto"],
        &["site", "list", "--json"],
        &["site", "distance", "tokyo", "osaka", "3"],
        &["scrub"],
        &["client", "list"],
        &["bucket", "list", "--json"],
        &["ls", "alice", "--as", "alice"],
        &["library", "--as", "alice"],
        &["who-holds", "alice/x"],
        &["temporary", "list", "--site", "tokyo"],
        &["usage", "alice"],
        &["billing", "totals"],
        &["origin", "add", "dir:/x", "--bucket", "news", "--provider", "studio"],
        &["origin", "list"],
        &["origin", "remove", "news"],
        &["origin", "rescan", "news", "--withdraw"],
        &["origin", "status", "--json"],
    ];
    for args in commands {
        let output = dozo(folder.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("dozo-data/endpoints.json"), "{}", stderr(&output));
        assert!(stderr(&output).contains("dozo up"), "{}", stderr(&output));
    }
}

#[test]
fn a_configuration_is_checked_without_starting_anything() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.toml");
    let good = "name = \"n3\"\nsite = \"tokyo\"\nsearch = \"http://127.0.0.1:1\"\nstore = \"memory:\"\n\
                data_dir = \"n3\"\nlisten = \"127.0.0.1:0\"\n[cluster]\nsecret_file = \"cluster-secret\"\n";
    std::fs::write(&file, good).unwrap();
    let check = ["config", "check", "storage-node", "--config", "node.toml"];
    let output = dozo(folder.path(), &check);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    let show = ["config", "show", "storage-node", "--config", "node.toml", "--name", "n4"];
    let output = dozo(folder.path(), &show);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("name = \"n4\""), "a flag wins over the file: {}", stdout(&output));
    assert!(stdout(&output).contains("secret_file = \"cluster-secret\""), "a name is no secret");

    std::fs::write(&file, good.replace("site =", "sitte =")).unwrap();
    let output = dozo(folder.path(), &check);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("did you mean site?"), "{}", stderr(&output));
}

#[test]
fn a_server_without_the_clusters_secret_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["search", "--listen", "127.0.0.1:0", "--data-dir", "search"];
    let output = dozo(folder.path(), &args);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("DOZO__CLUSTER__SECRET"), "{}", stderr(&output));
}
