//! Sites in namespaces: a place for search, one for an origin, and one for each site with a gateway and a node.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::api::peer::Ranking;
use common::api::search::ClientKeys;
use common::auth::ClusterSecret;
use serde_json::json;

use crate::http::{Answer, Client};
use crate::net::Net;
use crate::process::{Process, dozo, watch};

const SECRET: &str = "a secret of tests in namespaces, not for other use";
pub const SEARCH: &str = "search";
pub const ORIGIN: &str = "origin";
/// Longest wait for what the system brings about by itself.
pub const SOON: Duration = Duration::from_secs(30);
/// Debug builds, many at once on few cores.
const START_TIME_MAX: Duration = Duration::from_secs(120);

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The processes are dropped before the namespaces that they run in.
pub struct Cluster {
    _processes: Vec<Process>,
    pub net: Net,
    clients: BTreeMap<String, Client>,
    folder: tempfile::TempDir,
    admin_token: String,
}

impl Cluster {
    /// Starts a site for each name, each with a client and a public bucket of the site's name, on links that are set
    /// before.
    pub fn start(sites: &[&str], set_links: impl FnOnce(&Net)) -> Self {
        let places: Vec<&str> = [SEARCH, ORIGIN].into_iter().chain(sites.iter().copied()).collect();
        let net = Net::new(&places);
        set_links(&net);
        let folder = tempfile::Builder::new().prefix("dozo-netns-").tempdir().expect("a temporary folder");
        watch("dir", &folder.path().display().to_string());
        let admin_token = ClusterSecret::new(SECRET).expect("it is long enough").admin_token().to_owned();
        let mut cluster = Self { _processes: Vec::new(), net, clients: BTreeMap::new(), folder, admin_token };
        fs::write(cluster.path("cluster-secret"), SECRET).expect("the folder is ours");
        fs::create_dir_all(cluster.path("studio")).expect("the folder is ours");
        cluster.spawn(SEARCH, "search", &[]);
        cluster.await_ready(SEARCH, "search");
        let source = format!("studio,studio,dir:{}", cluster.path("studio").display());
        cluster.spawn(ORIGIN, "origin", &["--name", "origin", "--rescan-ms", "500", "--source", &source]);
        for site in sites {
            cluster.spawn(site, "storage-node", &["--name", "n1", "--site", site, "--store", "memory:"]);
            cluster.spawn(site, "gateway", &["--name", "g1", "--site", site]);
        }
        for site in sites {
            cluster.await_ready(site, "storage-node");
            cluster.await_ready(site, "gateway");
        }
        cluster.await_ready(ORIGIN, "origin");
        cluster.enter_directory(sites);
        cluster
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Service and admin port of a role.
    fn ports(role: &str) -> (u16, u16) {
        match role {
            "search" => (8000, 8050),
            "origin" => (8001, 8051),
            "gateway" => (8010, 8060),
            _ => (8020, 8070),
        }
    }

    fn url(&self, place: &str, role: &str) -> String {
        format!("http://{}:{}", self.net.address(place), Self::ports(role).0)
    }

    fn spawn(&mut self, place: &str, role: &str, flags: &[&str]) {
        let address = self.net.address(place);
        let (port, admin) = Self::ports(role);
        let data_dir = self.path(&format!("{place}-{role}"));
        fs::create_dir_all(&data_dir).expect("the folder is ours");
        let log = fs::File::create(self.path(&format!("{place}-{role}.log"))).expect("the folder is ours");
        let mut command = self.net.command(place, dozo());
        command.arg(role).args(flags);
        command.args(["--listen", &format!("{address}:{port}"), "--admin", &format!("{address}:{admin}")]);
        command.arg("--cluster-secret-file").arg(self.path("cluster-secret"));
        if role != "search" {
            command.args(["--search", &self.url(SEARCH, "search")]);
        }
        if role != "gateway" {
            command.arg("--data-dir").arg(data_dir);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        command.env_remove("DOZO_ENDPOINTS").env_remove("RUST_LOG").env_remove("DOZO__CLUSTER__SECRET");
        let child = command.spawn().expect("dozo starts");
        watch("pid", &child.id().to_string());
        self._processes.push(Process { child, arguments: Vec::new() });
    }

    #[track_caller]
    fn await_ready(&self, place: &str, role: &str) {
        let base = format!("http://{}:{}", self.net.address(place), Self::ports(role).1);
        let admin = Client::new("operator", &base, &self.admin_token);
        eventually(&format!("{role} of {place} is ready"), START_TIME_MAX, || {
            let asked = self.net.at(place, || admin.try_send("GET", "/readyz?verbose", &[], &[]));
            let answer = asked.map_err(|error| format!("{error}: {}", self.log(place, role)))?;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        });
    }

    fn log(&self, place: &str, role: &str) -> String {
        let text = fs::read(self.path(&format!("{place}-{role}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().rev().take(5).collect::<Vec<_>>().join("\n")
    }

    fn search(&self, method: &str, path: &str, body: &serde_json::Value) -> Answer {
        let search = Client::new("operator", &self.url(SEARCH, "search"), &self.admin_token);
        self.net.at(SEARCH, || search.send_json(method, path, body))
    }

    fn enter_directory(&mut self, sites: &[&str]) {
        let owners = sites.iter().map(|site| (*site, *site)).chain([("studio", sites[0])]);
        for (name, site) in owners {
            let keys: ClientKeys =
                self.search("POST", "/v1/clients", &json!({"client": name, "site": site})).json();
            let bucket = json!({"provider": name, "visibility": "public"});
            self.search("PUT", &format!("/v1/buckets/{name}"), &bucket).expect(200);
            let client = Client::new(name, &self.url(site, "gateway"), &keys.token);
            self.clients.insert(name.to_owned(), client);
        }
    }

    /// A further client of a site.
    pub fn add_client(&self, name: &str, site: &str) -> Client {
        let asked = json!({"client": name, "site": site});
        let keys: ClientKeys = self.search("POST", "/v1/clients", &asked).json();
        Client::new(name, &self.url(site, "gateway"), &keys.token)
    }

    /// The site's own client asks for a content, from within the site.
    #[track_caller]
    pub fn get(&self, site: &str, name: &str) -> Answer {
        let client = &self.clients[site];
        self.net.at(site, || client.get_content(name))
    }

    #[track_caller]
    pub fn put(&self, site: &str, name: &str, bytes: &[u8]) {
        let client = &self.clients[site];
        self.net.at(site, || client.put_content(name, bytes)).expect(201);
    }

    /// Waits until search knows all these holders of a content.
    #[track_caller]
    pub fn await_held(&self, name: &str, sites: &[&str], origins: usize) {
        eventually(&format!("{name} is held by {sites:?}"), SOON, || {
            let answer = self.search("GET", &format!("/v1/contents/lookup?name={name}"), &json!(null));
            let found: serde_json::Value = answer.json();
            let holds = |site: &&str| found["sites"].as_array().is_some_and(|s| s.iter().any(|x| x == *site));
            let of_origins = found["origins"].as_array().map_or(0, Vec::len);
            if sites.iter().all(holds) && of_origins >= origins { Ok(()) } else { Err(found.to_string()) }
        });
    }

    /// How a site's gateway would rank the sources of a content now.
    pub fn ranking(&self, site: &str, name: &str) -> Ranking {
        let operator = Client::new("operator", &self.url(site, "gateway"), &self.admin_token);
        self.net.at(site, || operator.get(&format!("/v1/peer/ranking?name={name}"))).expect(200).json()
    }

    /// A figure of a site's gateway, summed over the series that have all these labels.
    pub fn figure(&self, place: &str, role: &str, name: &str, labels: &[&str]) -> f64 {
        let base = format!("http://{}:{}", self.net.address(place), Self::ports(role).1);
        let admin = Client::new("operator", &base, &self.admin_token);
        let text = self.net.at(place, || admin.get("/metrics")).expect(200).text();
        let of_name = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{'])) && labels.iter().all(|l| line.contains(l))
        });
        of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}
