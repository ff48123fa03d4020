//! TLS as an operator meets it: a whole system whose every call is encrypted, its own authority, and a certificate that is
//! replaced while a server runs. What listens is looked at with curl, which shares nothing with us.

mod process;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use process::{Server, dozo, stderr, stdout};
use serde_json::Value;

/// A debug build on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(90);

fn run(folder: &Path, args: &[&str]) -> Output {
    dozo(folder).args(args).env("DOZO_ENDPOINTS", "data/endpoints.json").output().expect("the binary runs")
}

/// Runs a command that must succeed.
fn done(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert_eq!(output.status.code(), Some(0), "dozo {args:?}: {}", stderr(&output));
    stdout(&output)
}

/// curl's exit code and what it printed.
fn curl(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("curl").args(["--silent", "--max-time", "30"]).args(args).output();
    let output = output.expect("curl is installed (Debian: curl)");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// curl's exit code for a server that nobody vouches for.
const NOT_BELIEVED: Option<i32> = Some(60);

struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        // After an orderly stop there is nothing to kill; after a failed assertion nothing must be left running.
        let _ended_already = self.0.kill();
        let _waited_already = self.0.wait();
    }
}

#[test]
fn a_whole_system_speaks_tls_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let args = ["up", "--demo", "--tls", "--data-dir", "data", "--port-base", "0", "--node-size", "1GiB"];
    let mut up = Up(dozo(folder).args(args).stdout(Stdio::null()).spawn().unwrap());
    let begin = Instant::now();
    while !folder.join("data/endpoints.json").exists() {
        assert_eq!(up.0.try_wait().unwrap(), None, "up ended before it was ready");
        assert!(begin.elapsed() < PATIENCE, "up is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    let endpoints = std::fs::read_to_string(folder.join("data/endpoints.json")).unwrap();
    assert!(!endpoints.contains("http://"), "{endpoints}");
    let endpoints: Value = serde_json::from_str(&endpoints).unwrap();
    let ca_file = endpoints["ca_file"].as_str().unwrap();

    // From client to gateway, to nodes, to search, to another site, to billing.
    let sent: Vec<u8> =
        (0..3_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(folder.join("film.bin"), &sent).unwrap();
    done(folder, &["put", "film.bin", "alice/film.bin", "--as", "alice"]);
    let told = done(folder, &["get", "alice/film.bin", "got.bin", "--as", "carol"]);
    assert!(told.contains("purchase") && told.contains("peer"), "{told}");
    assert!(std::fs::read(folder.join("got.bin")).unwrap() == sent, "the bytes differ");
    let status = done(folder, &["status", "--json"]);
    assert!(status.contains("tokyo") && !status.contains("http://"), "{status}");
    let begin = Instant::now();
    while !done(folder, &["billing", "usage", "carol"]).contains("purchase") {
        assert!(begin.elapsed() < PATIENCE, "the delivery is not booked");
        std::thread::sleep(Duration::from_millis(50));
    }

    let gateway = endpoints["sites"][0]["gateways"][0]["http"].as_str().unwrap();
    let token = endpoints["clients"][0]["token"].as_str().unwrap();
    let (url, authorization) =
        (format!("{gateway}/v1/contents/alice/film.bin"), format!("authorization: Bearer {token}"));
    let got = folder.join("curl.bin");
    let (code, _) = curl(&["--cacert", ca_file, "-H", &authorization, "-o", got.to_str().unwrap(), &url]);
    assert_eq!(code, Some(0));
    assert!(std::fs::read(&got).unwrap() == sent, "the bytes differ");
    assert_eq!(curl(&["-H", &authorization, &url]).0, NOT_BELIEVED);
    let plain = url.replace("https://", "http://");
    assert_ne!(curl(&["--fail", "-H", &authorization, &plain]).0, Some(0), "plain HTTP is not answered");

    // The admin listeners too; Prometheus is told so.
    let search = endpoints["search"]["admin"].as_str().unwrap();
    let (code, targets) = curl(&["--cacert", ca_file, &format!("{search}/v1/sd/prometheus")]);
    assert_eq!(code, Some(0));
    let targets: Value = serde_json::from_str(&targets).unwrap();
    for target in targets.as_array().unwrap() {
        assert_eq!(target["labels"]["__scheme__"], "https", "{target}");
    }

    // Who does not believe the authority is told why.
    let other = tempfile::tempdir().unwrap();
    done(other.path(), &["ca", "init", "ca"]);
    let other_ca = other.path().join("ca/ca.pem");
    let refused = run(folder, &["--ca-file", other_ca.to_str().unwrap(), "status"]);
    assert_ne!(refused.status.code(), Some(0));
    assert!(stderr(&refused).contains("certificate"), "{}", stderr(&refused));

    let pid = up.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(up.0.wait().unwrap().code(), Some(0), "SIGTERM is an orderly stop");
}

const NODE: &str = "name = \"n3\"\nsite = \"tokyo\"\nsearch = \"http://127.0.0.1:1\"\nstore = \"memory:\"\n\
                    data_dir = \"n3\"\nlisten = \"127.0.0.1:0\"\n\n[cluster]\nsecret_file = \"cluster-secret\"\n\n\
                    [tls]\ncert_file = \"ca/n3.pem\"\nkey_file = \"ca/n3-key.pem\"\n";

fn issue(folder: &Path) {
    done(folder, &["ca", "issue", "ca", "n3", "--host", "127.0.0.1"]);
}

#[test]
fn a_new_certificate_is_taken_while_the_server_runs_and_a_wrong_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    done(folder, &["ca", "init", "ca"]);
    issue(folder);
    std::fs::write(folder.join("node.toml"), NODE).unwrap();
    std::fs::write(folder.join("cluster-secret"), "0123456789abcdef0123456789abcdef").unwrap();
    let mut server = Server::start(dozo(folder).args(["storage-node", "--config", "node.toml"]));
    let live = format!("{}/livez", server.admin);
    assert!(live.starts_with("https://"), "{live}");
    let ca_file = folder.join("ca/ca.pem");
    let shown = || {
        let (code, text) = curl(&["--cacert", ca_file.to_str().unwrap(), "--write-out", "%{certs}", &live]);
        assert_eq!(code, Some(0));
        text
    };
    let pem = || std::fs::read_to_string(folder.join("ca/n3.pem")).unwrap();
    let is_shown = |text: &str, pem: &str| {
        let body = |text: &str| text.lines().filter(|line| line.len() == 64).collect::<Vec<_>>().join("");
        body(text).contains(&body(pem))
    };
    let first = pem();
    assert!(is_shown(&shown(), &first), "{}", shown());

    issue(folder);
    assert!(is_shown(&shown(), &first), "nobody has said that there is another");
    server.signal("HUP");
    server.wait_for_log("the configuration was reloaded");
    assert!(is_shown(&shown(), &pem()) && !is_shown(&shown(), &first));

    // A key of another certificate: the server goes on with what it has.
    let second = pem();
    done(folder, &["ca", "issue", "ca", "other", "--host", "127.0.0.1"]);
    std::fs::copy(folder.join("ca/other-key.pem"), folder.join("ca/n3-key.pem")).unwrap();
    server.signal("HUP");
    let refused = server.wait_for_log("the configuration cannot be reloaded; the running one stays in force");
    assert!(refused["error"].as_str().unwrap().contains("do not belong together"), "{refused}");
    assert!(is_shown(&shown(), &second));
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");

    // At a start it is told before anything listens.
    let output = run(folder, &["storage-node", "--config", "node.toml"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("do not belong together"), "{}", stderr(&output));
}

#[test]
fn an_authority_is_made_once_and_vouches_for_what_can_be_reached() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let none = run(folder, &["ca", "issue", "ca", "g1", "--host", "example.net"]);
    assert!(stderr(&none).contains("dozo ca init"), "{}", stderr(&none));
    done(folder, &["ca", "init", "ca"]);
    assert_ne!(
        run(folder, &["ca", "init", "ca"]).status.code(),
        Some(0),
        "it would make all certificates worthless"
    );
    for (name, host) in [("../g1", "example.net"), ("g1", "no host")] {
        let refused = run(folder, &["ca", "issue", "ca", name, "--host", host]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    }
    let told = done(folder, &["ca", "issue", "ca", "g1", "--host", "example.net"]);
    assert!(told.contains("cert_file = \"ca/g1.pem\""), "{told}");
    use std::os::unix::fs::PermissionsExt;
    for key in ["ca/ca-key.pem", "ca/g1-key.pem"] {
        let mode = std::fs::metadata(folder.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{key} is for its owner alone");
    }
}
