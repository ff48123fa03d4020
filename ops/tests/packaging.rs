//! Units for systemd and files for containers: checked by systemd's own tools, and by what the commands and settings in
//! them mean to `dozo`.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod process;

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use process::{Server, dozo, stderr, stdout};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn ops() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether a program is here; where it must be, as in CI, its lack is a failure.
fn is_installed(program: &str, package: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    let is_ci = std::env::var_os("CI").is_some();
    assert!(found || !is_ci, "{program} is not installed: install the package {package}");
    if !found {
        eprintln!("{program} is not installed, so this is not tested: install the package {package}");
    }
    found
}

/// The units with an instance for each template.
fn units() -> Vec<(PathBuf, String)> {
    let folder = ops().join("systemd");
    let mut units: Vec<(PathBuf, String)> = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
        if !name.ends_with(".service") {
            continue;
        }
        let instances: &[&str] = match name.as_str() {
            "dozo-billing@.service" => &["service", "content"],
            "dozo-storage-node@.service" => &["n1"],
            _ => &[""],
        };
        for instance in instances {
            units.push((path.clone(), name.replace('@', &format!("@{instance}"))));
        }
    }
    assert_eq!(units.len(), 7, "one for each server: {units:?}");
    units
}

#[test]
fn systemd_finds_no_fault_with_the_units_and_little_exposure() {
    if !is_installed("systemd-analyze", "systemd") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The program is not where it will be, and systemd looks.
    for (path, _) in units() {
        let text = read(&path).replace("/usr/bin/dozo", env!("CARGO_BIN_EXE_dozo"));
        std::fs::write(folder.path().join(path.file_name().unwrap()), text).unwrap();
    }
    let device = folder.path().join("dozo-storage-node@raw.service.d");
    std::fs::create_dir(&device).unwrap();
    std::fs::copy(ops().join("systemd/storage-node-device.conf"), device.join("device.conf")).unwrap();
    let raw = (PathBuf::new(), "dozo-storage-node@raw.service".to_owned());
    for (_, name) in units().into_iter().chain([raw]) {
        let unit = folder.path().join(&name);
        let verified = Command::new("systemd-analyze").arg("verify").arg(&unit).output().unwrap();
        let said = stderr(&verified);
        assert!(verified.status.success() && said.trim().is_empty(), "{name}: {said}");
        // Tenths: at most 2.5 of 10.
        let args = ["security", "--offline=true", "--threshold=25", "--no-pager"];
        let security = Command::new("systemd-analyze").args(args).arg(&unit).output().unwrap();
        assert!(security.status.success(), "{name}: {}{}", stdout(&security), stderr(&security));
    }
}

#[test]
fn the_commands_of_the_units_are_understood() {
    for (path, name) in units() {
        let text = read(&path);
        let instance = name.split_once('@').map_or("", |(_, rest)| rest.trim_end_matches(".service"));
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/dozo ")).unwrap();
        let line = line.replace("%i", instance);
        let folder = tempfile::tempdir().unwrap();
        let settings = "listen = \"127.0.0.1:0\"\nname = \"x1\"\nsearch = \"http://127.0.0.1:1\"\n";
        let more = match instance {
            _ if name.contains("gateway") => "site = \"tokyo\"\n",
            _ if name.contains("storage-node") => "site = \"tokyo\"\nstore = \"memory:\"\ndata_dir = \"x\"\n",
            _ if name.contains("mobile-access") => "",
            _ => "data_dir = \"x\"\n",
        };
        let mut settings = format!("{settings}{more}");
        if name.contains("search") {
            settings = "listen = \"127.0.0.1:0\"\ndata_dir = \"x\"\n".into();
        }
        let file = line.rsplit_once('/').unwrap().1;
        std::fs::write(folder.path().join(file), settings).unwrap();
        let line = line.replace("/etc/dozo/", "");
        let mut command = dozo(folder.path());
        let checked = command.args(["config", "check"]).args(line.split(' ')).output().unwrap();
        assert!(checked.status.success(), "{name}: {}", stderr(&checked));
        // Without these a node's disk, and a start after a crash, would not work.
        assert!(text.contains("Type=notify") && text.contains("WatchdogSec="), "{name}");
        if name.contains("storage-node") {
            assert!(text.contains("SystemCallFilter=io_uring_setup io_uring_enter io_uring_register"));
        }
    }
}

/// What a server tells systemd: each datagram's assignments.
struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Systemd {
    fn new(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { socket, path }
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("the server tells something in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// The next one with this line; those before it may only have lines of `before`.
    fn wait_for(&self, line: &str, before: &[&str]) {
        loop {
            let told = self.next();
            if told.lines().any(|told| told == line) {
                return;
            }
            assert!(before.iter().any(|prefix| told.starts_with(prefix)), "{told:?} before {line}");
        }
    }
}

#[test]
fn systemd_hears_that_a_server_is_ready_then_alive_then_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let systemd = Systemd::new(folder.path());
    let mut command = dozo(folder.path());
    command.args(["search", "--listen", "127.0.0.1:0", "--data-dir", "search"]);
    command.env("DOZO__CLUSTER__SECRET", SECRET).env("NOTIFY_SOCKET", &systemd.path);
    let server = Server::start(command.env("WATCHDOG_USEC", "1500000"));
    systemd.wait_for("READY=1", &["EXTEND_TIMEOUT_USEC="]);
    assert!(server.admin("/readyz").contains("ok"));
    for _ in 0..3 {
        systemd.wait_for("WATCHDOG=1", &[]);
    }
    // A process that does not run does not say that it lives.
    server.signal("STOP");
    systemd.socket.set_nonblocking(true).unwrap();
    while systemd.socket.recv(&mut [0; 64]).is_ok() {}
    systemd.socket.set_nonblocking(false).unwrap();
    systemd.socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    assert!(systemd.socket.recv(&mut [0; 64]).is_err(), "a stopped process lives");
    server.signal("CONT");
    systemd.socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    systemd.wait_for("WATCHDOG=1", &[]);
    let (status, log) = server.stop();
    systemd.wait_for("STOPPING=1", &["WATCHDOG=1"]);
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_server_that_is_not_ready_asks_systemd_for_time() {
    let folder = tempfile::tempdir().unwrap();
    let systemd = Systemd::new(folder.path());
    let mut command = dozo(folder.path());
    command.args(["gateway", "--listen", "127.0.0.1:0", "--name", "g1", "--site", "tokyo"]);
    command.args(["--search", "http://127.0.0.1:1"]);
    let server =
        Server::start(command.env("DOZO__CLUSTER__SECRET", SECRET).env("NOTIFY_SOCKET", &systemd.path));
    for _ in 0..2 {
        systemd.wait_for("EXTEND_TIMEOUT_USEC=30000000", &[]);
    }
    server.stop();
    systemd.wait_for("STOPPING=1", &["EXTEND_TIMEOUT_USEC="]);
}

#[test]
fn every_server_of_the_compose_file_has_a_valid_configuration() {
    if !is_installed("docker-compose", "docker-compose") {
        return;
    }
    let compose = ops().join("container/compose.yaml");
    // Parses it, applies its merges, and checks it against the schema of compose files.
    let config = Command::new("docker-compose").arg("-f").arg(&compose).arg("config").output().unwrap();
    assert!(config.status.success(), "{}", stderr(&config));
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.yaml");
    std::fs::write(&whole, &config.stdout).unwrap();
    let to_json = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    // The Python that docker-compose itself runs on has what reads YAML.
    let json = Command::new("/usr/bin/python3").args(["-c", to_json]).arg(&whole).output().unwrap();
    assert!(json.status.success(), "{}", stderr(&json));
    let whole: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();

    let image = read(&ops().join("container/Containerfile"));
    let of_image = image.lines().find_map(|line| line.strip_prefix("ENV ")).unwrap();
    let of_image: Vec<(&str, &str)> = of_image.split(' ').filter_map(|pair| pair.split_once('=')).collect();
    let mut roles = Vec::new();
    for (name, service) in whole["services"].as_object().unwrap() {
        if service["image"] != "dozo" {
            continue;
        }
        let words = service["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let given = service["environment"].as_object().unwrap();
        let given = given.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap()));
        let mut command = dozo(folder.path());
        command.args(["config", "check"]).args(words.clone());
        let checked = command.envs(of_image.iter().copied()).envs(given).output().unwrap();
        assert!(checked.status.success(), "{name}: {}", stderr(&checked));
        roles.extend(words.map(str::to_owned));
        let stop = service["stop_grace_period"].as_str().unwrap();
        assert!(["90s", "1m30s"].contains(&stop), "{name} is cut off after {stop}");
    }
    roles.sort();
    let expected = [
        "content-billing",
        "gateway",
        "gateway",
        "mobile-access",
        "origin",
        "search",
        "service-billing",
        "storage-node",
        "storage-node",
    ];
    assert_eq!(roles, expected);
}

#[test]
fn the_image_runs_the_binary_as_nobody_special() {
    let image = read(&ops().join("container/Containerfile"));
    let last_stage = image.rsplit_once("\nFROM ").unwrap().1;
    assert!(last_stage.contains("\nUSER dozo\n") && last_stage.contains("HEALTHCHECK "), "{last_stage}");
    let toolchain = image.lines().find_map(|line| line.strip_prefix("FROM rust:")).unwrap();
    let manifest = read(&ops().join("../Cargo.toml"));
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    assert!(toolchain.starts_with(version.trim_matches('"')), "{toolchain} builds what needs {version}");
}

#[test]
fn the_upgrade_notes_tell_the_versions_that_the_sources_have() {
    let notes = read(&ops().join("upgrades.md"));
    let row = |what: &str| {
        let row = notes.lines().find(|line| line.starts_with(&format!("| {what}")));
        row.unwrap_or_else(|| panic!("there is no row of {what}"))
            .split('|')
            .nth(3)
            .unwrap()
            .trim()
            .to_owned()
    };
    let root = ops().join("..");
    for (what, file, constant) in [
        ("log of a storage node", "storage-node/src/log/format.rs", "const FORMAT_VERSION: u32 = "),
        ("packs of an object store", "storage-node/src/store/object/pack.rs", "const FORMAT_VERSION: u32 = "),
        ("change of the catalog", "storage-node/src/catalog/redo.rs", "const VERSION: u8 = "),
        ("cards, visits", "common/src/visit.rs", "const FORMAT: u8 = "),
    ] {
        let source = read(&root.join(file));
        let (_, version) = source.split_once(constant).unwrap();
        assert_eq!(version.split_once(';').unwrap().0, row(what), "{what}");
    }
    let rows = read(&root.join("storage-node/src/catalog/rows.rs"));
    let second = rows.matches("const VERSION: u8 = 2;").count();
    assert!(!rows.contains("const VERSION: u8 = 3;") && notes.contains(&format!("{second} of them have 2")));
    let redb = read(&root.join("Cargo.toml"));
    assert!(redb.contains("redb = \"=4.") && row("index of the catalog") == "1, of redb 4");
    assert!(read(&root.join("storage-node/src/catalog/index.rs")).contains("const FORMAT: &str = \"1\";"));
    for (what, crate_name) in [("directory", "search"), ("books", "billing"), ("sources", "origin")] {
        let folder = root.join("gateway/services").join(crate_name).join("migrations");
        let count = std::fs::read_dir(folder).unwrap().count();
        assert_eq!(row(what), format!("{count} migration{}", if count == 1 { "" } else { "s" }), "{what}");
    }
}
