//! `dozo up` as its user meets it: the real binary, from the first start over the commands to a second start.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A debug build on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(90);

struct System {
    process: Child,
    folder: PathBuf,
}

impl System {
    fn start(folder: &Path) -> Self {
        let args = ["up", "--demo", "--data-dir", "data", "--port-base", "0", "--node-size", "1GiB"];
        let process = Command::new(env!("CARGO_BIN_EXE_dozo"))
            .args(args)
            .current_dir(folder)
            .stdout(Stdio::null())
            .spawn()
            .expect("cargo builds the binary for this test");
        let mut system = Self { process, folder: folder.to_owned() };
        let begin = Instant::now();
        while !folder.join("data/endpoints.json").exists() {
            let ended = system.process.try_wait().expect("the process can be waited for");
            assert!(ended.is_none(), "up ended before it was ready: {ended:?}");
            assert!(begin.elapsed() < PATIENCE, "up is not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        system
    }

    fn dozo(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dozo"));
        command.args(args).current_dir(&self.folder).env("DOZO_ENDPOINTS", "data/endpoints.json");
        command.output().expect("the binary runs")
    }

    /// Runs a command that must succeed.
    fn done(&self, args: &[&str]) -> String {
        let output = self.dozo(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "dozo {args:?}: {error}");
        String::from_utf8(output.stdout).expect("commands print UTF-8")
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.done(args)).expect("--json prints JSON")
    }

    /// Sends SIGTERM; the process must end in order.
    fn stop(mut self) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill is installed");
        assert!(sent.success());
        let status = self.process.wait().expect("the process can be waited for");
        assert_eq!(status.code(), Some(0), "SIGTERM is an orderly stop");
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // After `stop` there is nothing to kill; after a failed assertion nothing must be left running.
        let _ended_already = self.process.kill();
        let _waited_already = self.process.wait();
    }
}

fn bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"test file").finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn a_demo_system_serves_its_clients_and_finds_everything_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |name: &str| std::fs::read(folder.path().join(name)).expect("the file was made");
    let sent = bytes(5_000_000);
    std::fs::write(folder.path().join("film.bin"), &sent).expect("the folder is writable");

    let system = System::start(folder.path());
    let published = system.json(&["put", "film.bin", "alice/films/", "--as", "alice", "--json"]);
    assert_eq!(published["name"], "alice/films/film.bin");
    assert_eq!(published["hash"], blake3::hash(&sent).to_hex().as_str());

    let told = system.done(&["get", "alice/films/film.bin", "at-osaka.bin", "--as", "carol"]);
    assert_eq!(read("at-osaka.bin"), sent);
    assert!(told.contains("purchase") && told.contains("peer"), "{told}");
    system.done(&["get", "studio/sounds/sakura.wav", "--as", "bob"]);
    assert_eq!(read("sakura.wav"), read("data/origin/studio/sounds/sakura.wav"));

    let listing = system.json(&["ls", "alice/films/", "--as", "bob", "--json"]);
    assert_eq!(listing[0]["key"], "films/film.bin");
    let library = system.json(&["library", "--as", "carol", "--json"]);
    assert_eq!(library[0]["name"], "alice/films/film.bin");
    let holders = system.json(&["who-holds", "alice/films/film.bin", "--json"]);
    assert_eq!(holders["sites"].as_array().map(Vec::len), Some(2), "{holders}");
    let usage = system.json(&["usage", "carol", "--json"]);
    assert_eq!((usage["contents"].as_u64(), usage["deliveries"].as_u64()), (Some(1), Some(1)), "{usage}");
    let sites = system.json(&["usage", "--json"]);
    let osaka = sites.as_array().and_then(|sites| sites.iter().find(|site| site["site"] == "osaka"));
    let listed = osaka.map(|site| site["clients"].to_string()).unwrap_or_default();
    assert!(listed.contains("carol") && !listed.contains("alice"), "{sites}");
    let limited = system.json(&["client", "limit", "bob", "--quota-bytes", "1GiB", "--json"]);
    assert_eq!(limited["quota_bytes"].as_u64(), Some(1 << 30), "{limited}");
    let limited = system.json(&["client", "limit", "bob", "--requests-per-s", "1000", "--json"]);
    assert_eq!(limited["quota_bytes"].as_u64(), Some(1 << 30), "what is not named stays: {limited}");
    let limited = system.json(&["client", "limit", "bob", "--quota-bytes", "none", "--json"]);
    assert!(limited["quota_bytes"].is_null() && limited["requests_per_s"] == 1000, "{limited}");
    let nodes = system.json(&["node", "list", "--json"]);
    assert_eq!(nodes.as_array().map(Vec::len), Some(4), "{nodes}");

    assert!(system.done(&["site", "set", "tokyo", "--replicas", "auto"]).contains("2 copies (automatic)"));
    let status = system.json(&["status", "--json"]);
    assert_eq!((&status["sites"][1]["name"], &status["sites"][1]["replicas"]), (&"tokyo".into(), &2.into()));
    let plan = system.json(&["node", "plan", "tokyo.n3", "--add", "1GiB", "--json"]);
    assert_eq!(plan["nodes"].as_array().map(Vec::len), Some(3), "{plan}");
    assert!(plan["slots_to_move"].as_u64() > Some(200), "{plan}");
    assert!(system.done(&["node", "plan", "osaka.n2", "--drain"]).contains("slots to move"));

    let scrubs = system.json(&["scrub", "--start", "--json"]);
    assert_eq!(scrubs.as_array().map(Vec::len), Some(4), "{scrubs}");
    let scrubs = system.json(&["scrub", "--node", "tokyo.n1", "--json"]);
    assert_eq!(
        (scrubs[0]["node"].as_str(), scrubs[0]["counts"]["damaged"].as_u64()),
        (Some("tokyo.n1"), Some(0))
    );

    system.done(&["client", "add", "dave", "--site", "osaka"]);
    system.done(&["get", "alice/films/film.bin", "for-dave.bin", "--as", "dave"]);
    assert_eq!(read("for-dave.bin"), sent);
    system.stop();

    let system = System::start(folder.path());
    system.done(&["get", "alice/films/film.bin", "again.bin", "--as", "dave"]);
    assert_eq!(read("again.bin"), sent);
    assert_eq!(system.json(&["library", "--as", "dave", "--json"])[0]["deliveries"], 2);
    let clients = system.json(&["client", "list", "--json"]);
    assert_eq!(clients.as_array().map(Vec::len), Some(5), "a second start makes no client twice: {clients}");

    let missing = system.dozo(&["get", "alice/nothing", "--as", "bob"]);
    assert_eq!(missing.status.code(), Some(1));
    let error = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(error.contains("content_not_found") && error.contains("next:"), "{error}");
    system.stop();
}

#[test]
fn a_port_in_use_is_told_with_the_next_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = loop {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        if (1024..65_400).contains(&port) {
            break listener;
        }
    };
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_dozo"))
        .args(["up", "--data-dir", "data", "--port-base", &port])
        .current_dir(folder.path())
        .output()
        .expect("the binary runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&port) && error.contains("--port-base"), "{error}");
}
