//! A whole system on free ports in a temporary folder, as one process (`dozo up --demo`) or as one process per server;
//! and what tests ask it beside the client's API.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bench::orphans::{Kind, watch};
use bench::target::{Endpoints, ServerAddress, Site};
use common::api::search::ClientKeys;
use common::auth::ClusterSecret;
use serde_json::json;

use crate::http::Client;
use crate::process::{Process, dozo, free_ports};

/// Longest wait for a condition that the system brings about by itself.
pub const SOON: Duration = Duration::from_secs(20);
/// A debug build makes and hashes the sample contents in this time, also on a busy machine.
const START_TIME_MAX: Duration = Duration::from_secs(90);
pub const SECRET: &str = "an end-to-end test's secret, not for other use";
pub const SITES: [&str; 2] = ["tokyo", "osaka"];

/// How the system runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `dozo up --demo`
    OneProcess,
    /// `dozo search`, `dozo gateway`, …
    ProcessPerServer,
}

/// Waits until `check` gives a value; the last refusal is told if it never does.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let give_up = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= give_up => panic!("{what}: not within {limit:?}: {reason}"),
            Err(_) => std::thread::sleep(Duration::from_millis(25)),
        }
    }
}

pub struct Cluster {
    pub mode: Mode,
    root: PathBuf,
    _folder: tempfile::TempDir,
    pub port_base: u16,
    options: Options,
    processes: Mutex<BTreeMap<String, Process>>,
    pub endpoints: Endpoints,
    /// Servers that joined later, with their sites.
    added: Mutex<Vec<(String, ServerAddress)>>,
    clients: Mutex<BTreeMap<String, Client>>,
}

/// What a cluster may have other than usual.
#[derive(Debug, Clone)]
pub struct Options {
    pub node_size: String,
    /// How long a delivery stays open for later ranges, where nodes are processes of their own.
    pub join_window_ms: u64,
    pub nodes: usize,
    /// Gateways of each site, where they are processes of their own.
    pub gateways: usize,
    /// Copies that each site keeps; `None`: as search decides.
    pub replicas: Option<u8>,
    /// Other servers reach osaka's gateways through this address, where they are processes of their own.
    pub osaka_through: Option<String>,
    /// Other servers reach service billing and content billing through these addresses, where they are processes of
    /// their own.
    pub billing_through: Option<[String; 2]>,
    /// Memory of the gateways for hot chunks, where they are processes of their own; 0: every chunk is read from
    /// its node.
    pub cache_bytes: u64,
    /// How long a content is kept for a visitor, and a chunk that nothing refers to, where servers are processes of their
    /// own; `None`: as usual.
    pub temporary_ttl_ms: Option<u64>,
    pub chunk_grace_ms: Option<u64>,
    /// Search's database, where it is a process of its own; `None`: an SQLite file.
    pub database: Option<String>,
    /// How long search lets a server be silent before it counts as down; `None`: as by default.
    pub lease_ms: Option<u64>,
    /// How long a server that gets SIGTERM goes on as ever once it is not ready.
    pub stop_delay_ms: u64,
    /// How long what is in flight may take then; `None`: as by default.
    pub stop_finish_ms: Option<u64>,
    /// Further arguments of every server, where they are processes of their own.
    pub arguments: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_size: "2GiB".into(),
            join_window_ms: 2_000,
            nodes: 2,
            gateways: 1,
            replicas: None,
            osaka_through: None,
            billing_through: None,
            cache_bytes: 256 << 20,
            temporary_ttl_ms: None,
            chunk_grace_ms: None,
            database: None,
            lease_ms: None,
            stop_delay_ms: 50,
            stop_finish_ms: None,
            arguments: Vec::new(),
        }
    }
}

impl Cluster {
    /// The cluster that all tests of one mode share, unless they break things.
    pub fn shared(mode: Mode) -> &'static Self {
        static ONE: OnceLock<Option<Cluster>> = OnceLock::new();
        static MANY: OnceLock<Option<Cluster>> = OnceLock::new();
        let shared = if mode == Mode::OneProcess { &ONE } else { &MANY };
        // One failure to start is told once; trying again for each test would only take time.
        let start = || std::panic::catch_unwind(|| Self::start(mode, &Options::default())).ok();
        shared.get_or_init(start).as_ref().expect("the shared cluster did not start, see the first failure")
    }

    pub fn start(mode: Mode, options: &Options) -> Self {
        let folder = tempfile::Builder::new().prefix("dozo-e2e-").tempdir().expect("a temporary folder");
        watch(Kind::Folder, &folder.path().display().to_string()).expect("a shell runs");
        let port_base = free_ports();
        let root = folder.path().to_owned();
        let mut cluster = Self {
            mode,
            root,
            _folder: folder,
            port_base,
            options: options.clone(),
            processes: Mutex::default(),
            endpoints: planned_endpoints(port_base, options),
            added: Mutex::default(),
            clients: Mutex::default(),
        };
        fs::write(cluster.path("cluster-secret"), SECRET).expect("the folder is ours");
        match mode {
            Mode::OneProcess => cluster.start_up(),
            Mode::ProcessPerServer => cluster.start_servers(),
        }
        for client in &cluster.endpoints.clients {
            let base = &site_of(&cluster.endpoints, &client.site).gateways[0].http;
            let client = Client::new(&client.name, base, &client.token);
            lock(&cluster.clients).insert(client.name.clone(), client);
        }
        cluster
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn start_up(&mut self) {
        self.spawn("up", &self.up_arguments());
        self.endpoints = self.await_endpoints();
    }

    fn up_arguments(&self) -> Vec<String> {
        let arguments = [
            "up",
            "--demo",
            "--data-dir",
            &self.root.display().to_string(),
            "--port-base",
            &self.port_base.to_string(),
            "--node-size",
            &self.options.node_size,
            "--nodes",
            &self.options.nodes.to_string(),
        ];
        arguments.map(str::to_owned).to_vec()
    }

    /// Waits for `dozo up` to say that all is ready.
    pub fn await_endpoints(&self) -> Endpoints {
        eventually("endpoints.json is written", START_TIME_MAX, || {
            self.assert_running("up");
            Endpoints::read(&self.path("endpoints.json")).map_err(|error| error.to_string())
        })
    }

    fn start_servers(&mut self) {
        self.write_studio();
        let open_max_ms = self.options.join_window_ms * 2;
        let window = self.options.join_window_ms;
        let mut node = format!("delivery_join_window_ms = {window}\ndelivery_open_max_ms = {open_max_ms}\n");
        if let Some(grace) = self.options.chunk_grace_ms {
            node.push_str(&format!("chunk_grace_ms = {grace}\n"));
        }
        let ttl = self.options.temporary_ttl_ms;
        let gateway = ttl.map_or_else(String::new, |ttl| format!("temporary_ttl_ms = {ttl}\n"));
        for (file, text) in [("node.toml", node), ("gateway.toml", gateway)] {
            fs::write(self.path(file), text).expect("the folder is ours");
        }
        let servers = self.servers();
        // Search first: the others register with it.
        for (name, _) in &servers {
            let arguments = self.server_arguments(name);
            self.spawn(name, &arguments);
            if name == "search" {
                self.await_ready(name);
            }
        }
        for (name, _) in &servers {
            self.await_ready(name);
        }
        self.enter_directory();
        if let Some(replicas) = self.options.replicas {
            let search = self.operator(&self.endpoints.search.http);
            for site in SITES {
                search
                    .send_json("PUT", &format!("/v1/sites/{site}"), &json!({"replicas": replicas}))
                    .expect(200);
            }
        }
        self.await_working();
    }

    /// Starts a further storage node of a site and answers with its name, as in `tokyo.n4`; it may not be ready yet.
    pub fn add_node(&self, site: &str, short: &str) -> String {
        let number: u16 = short.trim_start_matches('n').parse().expect("nodes are n1, n2, ...");
        let place = SITES.iter().position(|s| *s == site).expect("a site of the cluster") as u16;
        let port = self.port_base + 10 * (place + 1) + self.options.gateways as u16 + number;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let at = ServerAddress { name: short.into(), http: url(port), admin: url(port + 50) };
        lock(&self.added).push((site.to_owned(), at));
        let name = format!("{site}.{short}");
        self.spawn(&name, &self.server_arguments(&name));
        name
    }

    /// Names and addresses of all servers, search first and gateways last.
    pub fn servers(&self) -> Vec<(String, ServerAddress)> {
        let endpoints = &self.endpoints;
        let mut servers = vec![("search".to_owned(), endpoints.search.clone())];
        let single = [
            ("service-billing", &endpoints.service_billing),
            ("content-billing", &endpoints.content_billing),
            ("origin", &endpoints.origin),
            ("mobile-access", &endpoints.mobile_access),
        ];
        servers.extend(single.into_iter().filter_map(|(name, at)| Some((name.to_owned(), at.clone()?))));
        let added = lock(&self.added);
        servers.extend(added.iter().map(|(site, at)| (format!("{site}.{}", at.name), at.clone())));
        for pick in [|site: &Site| site.nodes.clone(), |site: &Site| site.gateways.clone()] {
            for site in &endpoints.sites {
                servers.extend(pick(site).into_iter().map(|at| (format!("{}.{}", site.name, at.name), at)));
            }
        }
        servers
    }

    pub fn server(&self, name: &str) -> ServerAddress {
        let found = self.servers().into_iter().find(|(each, _)| each == name);
        found.unwrap_or_else(|| panic!("there is no server {name}")).1
    }

    fn server_arguments(&self, name: &str) -> Vec<String> {
        let options = &self.options;
        let at = self.server(name);
        let strip = |url: &str| url.trim_start_matches("http://").to_owned();
        let data_dir = self.path(name);
        let mut flags = vec![
            ("--listen", strip(&at.http)),
            ("--admin", strip(&at.admin)),
            ("--cluster-secret-file", self.path("cluster-secret").display().to_string()),
        ];
        if name != "search" {
            flags.push(("--search", self.endpoints.search.http.clone()));
        }
        let role = match name.split_once('.') {
            Some((site, short)) => {
                flags.extend([("--name", short.to_owned()), ("--site", site.to_owned())]);
                if short.starts_with('g') { "gateway" } else { "storage-node" }
            }
            None => name,
        };
        match role {
            "gateway" => {
                flags.push(("--cache-bytes", options.cache_bytes.to_string()));
                if let Some(address) = options.osaka_through.clone().filter(|_| name.starts_with("osaka.")) {
                    flags.push(("--advertise", address));
                }
                flags.push(("--config", self.path("gateway.toml").display().to_string()));
            }
            "storage-node" => {
                fs::create_dir_all(&data_dir).expect("the folder is ours");
                let store = data_dir.join("store");
                flags.push(("--store", format!("file:{}?size={}", store.display(), options.node_size)));
                flags.push(("--config", self.path("node.toml").display().to_string()));
            }
            "origin" => {
                let studio = self.path("studio");
                flags.extend([("--name", "origin".into()), ("--rescan-ms", "1000".into())]);
                flags.push(("--source", format!("studio,studio,dir:{}", studio.display())));
            }
            "mobile-access" => {
                flags.extend([("--name", role.to_owned()), ("--near", SITES[0].to_owned())]);
                flags.push(("--hear", "127.255.255.255:0".to_owned()));
            }
            "search" => {
                flags.extend(options.database.clone().map(|url| ("--database", url)));
                if let Some(lease_ms) = options.lease_ms {
                    let config = self.path("search.toml");
                    let settings = format!("lease_ms = {lease_ms}\nheartbeat_ms = {}\n", lease_ms / 5);
                    fs::write(&config, settings).expect("the folder is ours");
                    flags.push(("--config", config.display().to_string()));
                }
            }
            _ => {
                flags.push(("--name", role.to_owned()));
                let [service, content] =
                    options.billing_through.clone().map_or([None, None], |two| two.map(Some));
                let address = if role == "service-billing" { service } else { content };
                flags.extend(address.map(|address| ("--advertise", address)));
            }
        }
        if !matches!(role, "gateway" | "mobile-access") {
            flags.push(("--data-dir", data_dir.display().to_string()));
        }
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        [role.to_owned()].into_iter().chain(flags).chain(options.arguments.clone()).collect()
    }

    /// A few original contents, one of several chunks.
    fn write_studio(&self) {
        let studio = self.path("studio");
        fs::create_dir_all(studio.join("notes")).expect("the folder is ours");
        fs::write(studio.join("notes/hello.txt"), "hello from the studio\n").expect("the folder is ours");
        let film = bench::content::Content::new(1, 1, 9 << 20).bytes(0, 9 << 20);
        fs::write(studio.join("film.bin"), film).expect("the folder is ours");
    }

    /// Clients, buckets and tariffs, as `up --demo` makes them.
    fn enter_directory(&mut self) {
        let search = self.operator(&self.endpoints.search.http);
        for (name, site) in [("alice", "tokyo"), ("bob", "tokyo"), ("carol", "osaka"), ("studio", "tokyo")] {
            let keys = self.add_client(name, site);
            let client = json!({"name": name, "site": site, "token": keys.token});
            self.endpoints.clients.push(serde_json::from_value(client).expect("the fields of a client"));
        }
        for name in ["alice", "carol", "studio"] {
            let bucket = json!({"provider": name, "visibility": "public"});
            search.send_json("PUT", &format!("/v1/buckets/{name}"), &bucket).expect(200);
        }
        self.enter_tariffs();
    }

    fn enter_tariffs(&self) {
        let from = "2020-01-01";
        let service = json!({"valid_from": from, "currency": "JPY", "per_delivery": "0.10",
            "per_megabyte": "0.02", "surrogate_surcharge": "0.05"});
        let service_split = json!({"valid_from": from,
            "hit": {"home": 8000, "billing": 2000},
            "peer": {"home": 5000, "source": 3000, "search": 1000, "billing": 1000},
            "origin": {"home": 5000, "origin": 3000, "search": 1000, "billing": 1000},
            "surcharge": {"surrogate": 6000, "mobile_access": 3000, "billing": 1000}});
        let content = json!({"valid_from": from, "currency": "JPY", "purchase": "10", "reference": "1"});
        let content_split = json!({"valid_from": from,
            "hit": {"home": 1000, "billing": 500},
            "peer": {"home": 800, "source": 400, "search": 200, "billing": 500},
            "origin": {"home": 800, "origin": 400, "search": 200, "billing": 500},
            "surrogate": 300});
        for (fee, tariff, split) in [(true, service, service_split), (false, content, content_split)] {
            self.billing(fee).send_json("PUT", "/v1/tariffs", &tariff).expect(200);
            self.billing(fee).send_json("PUT", "/v1/splits", &split).expect(200);
        }
    }

    /// Waits until both sites take contents, the origin's are known, and deliveries are booked.
    fn await_working(&self) {
        eventually("search knows the origin's contents", SOON, || self.lookup("studio/film.bin").map(drop));
    }

    /// Makes a client in search.
    pub fn add_client(&self, name: &str, site: &str) -> ClientKeys {
        let search = self.operator(&self.endpoints.search.http);
        search.send_json("POST", "/v1/clients", &json!({"client": name, "site": site})).json()
    }

    /// The operator at any server.
    pub fn operator(&self, base: &str) -> Client {
        Client::new("operator", base, &self.endpoints.admin_token)
    }

    /// One of the demo's clients, at its home gateway.
    pub fn client(&self, name: &str) -> Client {
        lock(&self.clients).get(name).unwrap_or_else(|| panic!("there is no client {name}")).clone()
    }

    /// A client of its own for a test, so that what others do does not count.
    pub fn new_client(&self, prefix: &str, site: &str) -> Client {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let keys = self.add_client(&name, site);
        Client::new(&name, self.gateway(site), &keys.token)
    }

    /// A new bucket of a client, named after it.
    pub fn bucket(&self, client: &Client, visibility: &str) -> String {
        let name = format!("{}-{visibility}", client.name);
        let answer =
            client.send_json("PUT", &format!("/v1/buckets/{name}"), &json!({"visibility": visibility}));
        assert!(answer.status == 200 || answer.status == 201, "{}", answer.text());
        name
    }

    /// Address of a site's gateway.
    pub fn gateway(&self, site: &str) -> &str {
        &site_of(&self.endpoints, site).gateways[0].http
    }

    pub fn site(&self, name: &str) -> &Site {
        site_of(&self.endpoints, name)
    }

    fn spawn(&self, name: &str, arguments: &[String]) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(&format!("{name}.log")))
            .expect("the folder is ours");
        let mut command = Command::new(dozo());
        command.args(arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        command.env("DOZO__STOP__DELAY_MS", self.options.stop_delay_ms.to_string());
        command.envs(self.options.stop_finish_ms.map(|ms| ("DOZO__STOP__FINISH_MS", ms.to_string())));
        command.env_remove("DOZO_ENDPOINTS").env_remove("RUST_LOG").env_remove("DOZO__CLUSTER__SECRET");
        let child = command.spawn().expect("dozo starts");
        watch(Kind::Process, &child.id().to_string()).expect("a shell runs");
        lock(&self.processes).insert(name.to_owned(), Process { child, arguments: arguments.to_vec() });
    }

    /// Starts a server that is not part of the usual cluster.
    pub fn spawn_server(&self, name: &str, arguments: &[&str]) {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        self.spawn(name, &arguments);
    }

    #[track_caller]
    fn assert_running(&self, name: &str) {
        let ended = lock(&self.processes).get_mut(name).map(|process| process.child.try_wait());
        if let Some(Ok(Some(status))) = ended {
            panic!("{name} ended with {status}:\n{}", self.log(name));
        }
    }

    /// The end of a process's log.
    pub fn log(&self, name: &str) -> String {
        let text = fs::read(self.path(&format!("{name}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    #[track_caller]
    pub fn await_ready(&self, name: &str) {
        let admin = self.operator(&self.server(name).admin);
        eventually(&format!("{name} is ready"), START_TIME_MAX, || {
            self.assert_running(self.process_of(name));
            let answer = admin.try_send("GET", "/readyz?verbose", &[], &[]).map_err(|e| e.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        });
    }

    fn process_of<'a>(&self, name: &'a str) -> &'a str {
        if self.mode == Mode::OneProcess { "up" } else { name }
    }

    /// `kill -9`, waited for.
    pub fn kill(&self, name: &str) {
        let mut processes = lock(&self.processes);
        let process = processes.get_mut(name).unwrap_or_else(|| panic!("there is no process {name}"));
        process.child.kill().expect("it is our child");
        process.child.wait().expect("it is our child");
    }

    /// Starts a process again with its former arguments.
    pub fn restart(&self, name: &str) {
        let process = lock(&self.processes).remove(name);
        let arguments = process.unwrap_or_else(|| panic!("there was no process {name}")).arguments.clone();
        if name == "up" {
            // Else the file of the run before could be taken for that of the new one.
            let _was_not_written = fs::remove_file(self.path("endpoints.json"));
        }
        self.spawn(name, &arguments);
    }

    /// Sends SIGTERM.
    pub fn terminate(&self, name: &str) {
        self.signal(name, "-TERM");
    }

    /// Stops a process where it is (SIGSTOP): it takes no more notice of anything.
    pub fn freeze(&self, name: &str) {
        self.signal(name, "-STOP");
    }

    fn signal(&self, name: &str, signal: &str) {
        let pid = lock(&self.processes).get(name).expect("it runs").child.id();
        let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill {signal} {pid}");
    }

    /// Waits for the end of a process.
    #[track_caller]
    pub fn await_end(&self, name: &str, limit: Duration) -> ExitStatus {
        eventually(&format!("{name} ends"), limit, || {
            let ended = lock(&self.processes).get_mut(name).expect("it was started").child.try_wait();
            ended.expect("it is our child").ok_or_else(|| "it runs".to_owned())
        })
    }

    /// Most memory that a process has had in use, as the kernel counts it.
    pub fn peak_memory_kib(&self, name: &str) -> u64 {
        let pid = lock(&self.processes).get(name).expect("it runs").child.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub fn is_running(&self, name: &str) -> bool {
        let ended = lock(&self.processes).get_mut(name).map(|process| process.child.try_wait());
        matches!(ended, Some(Ok(None)))
    }
}

impl Drop for Cluster {
    /// A test that fails tells what the processes said last; their logs go with the folder.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in lock(&self.processes).keys() {
                eprintln!("---- {name}, its last lines\n{}", self.log(name));
            }
        }
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn site_of<'a>(endpoints: &'a Endpoints, name: &str) -> &'a Site {
    endpoints.sites.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("there is no site {name}"))
}

pub fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_millis() as u64
}

/// Where the servers of a cluster of separate processes listen.
fn planned_endpoints(base: u16, options: &Options) -> Endpoints {
    let at = |name: &str, offset: u16| {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        json!({"name": name, "http": url(base + offset), "admin": url(base + offset + 50)})
    };
    let sites: Vec<_> = SITES
        .iter()
        .zip([10, 20])
        .map(|(site, offset)| {
            let gateways = options.gateways as u16;
            let several = |kind: &str, first: u16, count: u16| -> Vec<_> {
                (0..count).map(|i| at(&format!("{kind}{}", i + 1), first + i)).collect()
            };
            let nodes = several("n", offset + gateways + 1, options.nodes as u16);
            json!({"name": site, "gateways": several("g", offset, gateways), "nodes": nodes})
        })
        .collect();
    let secret = ClusterSecret::new(SECRET).expect("it is long enough");
    let endpoints = json!({
        "search": at("search", 0), "origin": at("origin", 1),
        "service_billing": at("service-billing", 2), "content_billing": at("content-billing", 3),
        "mobile_access": at("mobile-access", 4),
        "admin_token": secret.admin_token(), "sites": sites, "clients": [],
    });
    serde_json::from_value(endpoints).expect("the fields of endpoints.json")
}
