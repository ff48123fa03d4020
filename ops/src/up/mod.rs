//! `dozo up`: a whole system in one process. Starts the servers in the order in which they need each other, waits until
//! each is ready and the sites can serve, writes `endpoints.json`, and stops them in the reverse order.

pub mod directory;
pub mod layout;
mod ready;
mod report;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::api::search::{SearchClient, SiteSettings};
use common::auth::{ClusterSecret, OPERATOR, Role};
use common::client::{HttpClient, ServerClient};
use common::cluster::{ClusterMap, MapEpoch, NodeState, REPLICAS_MAX};
use common::config;
use common::error::chain;
use common::id::{NodeId, ServerName, SiteId};
use common::server::Running;
use common::time::Clock;
use common::tls::{self, TlsFiles};
use futures_util::future::join_all;
use toml::{Table, Value};

use crate::commands::ca;
use crate::demo;
use crate::endpoints::{
    ENDPOINTS_FILE, Endpoint, Endpoints, GatewayEndpoint, Keyring, MobileAccessEndpoint, NodeEndpoint,
    SiteEndpoints,
};
use crate::error::Failure;
use crate::output;
use crate::roles::{Settings, path_text, source_table};
use crate::secret;
use crate::signals::Signals;
use layout::{Folders, Listeners, NODES_MAX, PORT_SPAN, Ports, SITES_MAX};

/// Name of each site's gateway.
const GATEWAY: &str = "g1";
/// Name of mobile access.
const MOBILE_ACCESS: &str = "mobile-access";
/// Where this machine's own broadcasts go.
const BROADCASTS: &str = "127.255.255.255";
/// A file put into the samples' folder is found within this time.
const RESCAN_MS: i64 = 5_000;
/// Longest time from start to ready. A debug build hashes the sample contents for seconds.
const START_TIME_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, clap::Args)]
pub struct UpOptions {
    /// Folder for all data; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "dozo-data")]
    pub data_dir: PathBuf,
    /// With clients, buckets, tariffs and sample contents to try
    #[arg(long)]
    pub demo: bool,
    /// How many sites
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=SITES_MAX as i64))]
    pub sites: u8,
    /// How many storage nodes each site has
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=NODES_MAX as i64))]
    pub nodes: u8,
    /// Copies of each chunk and row that each site keeps, 1 to 3; as it was set before, or automatic, without
    /// this
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=REPLICAS_MAX as i64))]
    pub replicas: Option<u8>,
    /// First of the 100 ports used; 0 takes free ones
    #[arg(long, default_value_t = 8000, value_parser = port_base)]
    pub port_base: u16,
    /// Capacity of each storage node; its file grows only as it fills
    #[arg(long, value_name = "BYTES", default_value = "20GiB", value_parser = node_size)]
    pub node_size: u64,
    /// TLS on every listener, vouched for by an authority of its own in the data folder (`ca/ca.pem`)
    #[arg(long)]
    pub tls: bool,
}

fn port_base(text: &str) -> Result<u16, String> {
    let base: u16 = text.parse().map_err(|_| format!("{text:?} is not a port"))?;
    match base {
        0 => Ok(0),
        1..1024 => {
            Err(format!("ports below 1024 are kept by the system: use 1024 to {}", u16::MAX - PORT_SPAN))
        }
        _ if base > u16::MAX - PORT_SPAN => Err(format!("{base}+99 is beyond the last port")),
        _ => Ok(base),
    }
}

fn node_size(text: &str) -> Result<u64, config::ConfigError> {
    config::parse_bytes(text)
}

/// A system at work.
pub struct Up {
    pub endpoints: Endpoints,
    /// Where [`Up::endpoints`] was written.
    pub endpoints_file: PathBuf,
    servers: Servers,
    /// Held until the end: a second process on the same data would destroy it.
    _lock: File,
}

impl Up {
    /// Starts everything; returns when clients can be served. If something does not start, what runs already
    /// is stopped again.
    pub async fn start(options: &UpOptions) -> Result<Self, Failure> {
        let folders = Folders::absolute(&options.data_dir)
            .map_err(|e| Failure::file("finding", &options.data_dir, &e))?;
        std::fs::create_dir_all(&folders.root).map_err(|e| Failure::file("making", &folders.root, &e))?;
        let lock = lock(&folders)?;
        let secret = secret::make_or_read(&folders.root)?;
        let ca_file = if options.tls { Some(own_authority(&folders.root)?) } else { None };
        let endpoints_file = folders.root.join(ENDPOINTS_FILE);
        // One that a killed process left behind is not true any more.
        forget(&endpoints_file)?;
        let mut starter = Starter {
            ports: Ports { base: options.port_base },
            options,
            server: ServerClient::new(HttpClient::new(), secret.clone(), OPERATOR, Clock::System),
            secret,
            folders,
            search_url: String::new(),
            ca_file,
            started_nodes: Vec::new(),
            servers: Servers::default(),
        };
        let started = match tokio::time::timeout(START_TIME_MAX, starter.start_all()).await {
            Ok(started) => started,
            Err(_) => Err(Failure::new(format!(
                "the system is not ready after {START_TIME_MAX:?}: {}",
                ready::pending(starter.servers.all())
            ))),
        };
        let started = started.and_then(|endpoints| endpoints.write(&endpoints_file).map(|()| endpoints));
        match started {
            Ok(endpoints) => Ok(Self { endpoints, endpoints_file, servers: starter.servers, _lock: lock }),
            Err(failure) => {
                starter.servers.stop().await;
                Err(failure)
            }
        }
    }

    /// Stops everything in order. The endpoints file goes first: while it is there, the system serves.
    pub async fn stop(self) -> Result<(), Failure> {
        let forgotten = forget(&self.endpoints_file);
        self.servers.stop().await;
        forgotten
    }
}

/// Removes the endpoints file if it is there.
fn forget(endpoints_file: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(endpoints_file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::file("removing", endpoints_file, &e))
        }
        _ => Ok(()),
    }
}

/// Has this process speak TLS on this machine's own addresses; answers the certificate of the authority for it, which is
/// made if the folder has none. The servers' certificate is a new one each time.
fn own_authority(folder: &Path) -> Result<PathBuf, Failure> {
    let folder = folder.join("ca");
    let ca_file = folder.join(ca::CA_CERT);
    if !ca_file.exists() {
        ca::init(&folder, ca::AUTHORITY_DAYS)?;
    }
    let hosts = ["127.0.0.1", "localhost"].map(str::to_owned);
    let (cert, key) = ca::issue(&folder, "servers", &hosts, ca::SERVER_DAYS)?;
    let files = TlsFiles { cert_file: Some(cert), key_file: Some(key), ca_file: Some(ca_file.clone()) };
    tls::install(&files).map_err(|error| Failure::new(chain(&error)))?;
    Ok(ca_file)
}

fn lock(folders: &Folders) -> Result<File, Failure> {
    let path = folders.lock();
    let file = File::create(&path).map_err(|e| Failure::file("making", &path, &e))?;
    file.try_lock().map_err(|_| {
        Failure::new(format!("{} is in use by another `dozo up`", folders.root.display()))
            .with_next_step("stop that one, or choose another --data-dir")
    })?;
    Ok(file)
}

/// The servers of one process.
#[derive(Default)]
struct Servers {
    search: Option<Running>,
    billing: Vec<Running>,
    nodes: Vec<Running>,
    origin: Option<Running>,
    gateways: Vec<Running>,
    mobile_access: Option<Running>,
}

impl Servers {
    fn all(&self) -> impl Iterator<Item = &Running> {
        let single = self.search.iter().chain(&self.origin).chain(&self.mobile_access);
        single.chain(&self.billing).chain(&self.nodes).chain(&self.gateways)
    }

    /// Those that ask stop before those that are asked, so that nothing in flight fails.
    async fn stop(self) {
        join_all(self.mobile_access.into_iter().map(Running::stop)).await;
        join_all(self.gateways.into_iter().map(Running::stop)).await;
        join_all(self.origin.into_iter().map(Running::stop)).await;
        join_all(self.nodes.into_iter().map(Running::stop)).await;
        join_all(self.billing.into_iter().map(Running::stop)).await;
        join_all(self.search.into_iter().map(Running::stop)).await;
    }
}

struct Starter<'a> {
    options: &'a UpOptions,
    ports: Ports,
    folders: Folders,
    secret: ClusterSecret,
    server: ServerClient,
    search_url: String,
    ca_file: Option<PathBuf>,
    /// Site and name of each of the servers' nodes.
    started_nodes: Vec<(SiteId, ServerName)>,
    servers: Servers,
}

impl Starter<'_> {
    async fn start_all(&mut self) -> Result<Endpoints, Failure> {
        let studio = self.folders.studio();
        let samples = self.options.demo.then(|| {
            let studio = studio.clone();
            tokio::task::spawn_blocking(move || demo::make(&studio))
        });
        let sites: Vec<SiteId> = (0..self.site_count()).map(layout::site_name).collect::<Result<_, _>>()?;

        let table = with_folder(listeners(self.ports.search()), &self.folders.server("search"))?;
        let search = self.launch(Role::Search, table).await?;
        self.search_url.clone_from(&search.http);
        self.servers.search = Some(search);
        let search = SearchClient::new(self.server.clone(), &self.search_url);

        self.start_billing().await?;
        let map = search.map(MapEpoch(0), Duration::ZERO).await?;
        self.start_nodes(&sites, &map).await?;
        ready::wait_for_nodes(&search, &self.node_counts(&sites)).await?;
        if self.options.replicas.is_some() {
            let settings = SiteSettings { replicas: self.options.replicas };
            for site in &sites {
                search.set_site(site, &settings).await?;
            }
        }

        let mut ring = Keyring::open(&self.folders.root)?;
        if self.options.demo {
            directory::enter_clients(&search, &mut ring, &sites).await?;
            directory::enter_card(&search, &ring, &self.folders.cards()).await?;
        }
        if let Some(samples) = samples {
            let made = samples.await.map_err(|e| Failure::new(format!("making the sample contents: {e}")))?;
            made.map_err(|e| Failure::file("making", &studio, &e))?;
        }
        self.start_origin().await?;
        self.start_gateways(&sites).await?;
        self.start_mobile_access(&sites).await?;
        ready::wait_for_all(self.servers.all()).await;
        if self.options.demo {
            ready::wait_for_samples(&search, &studio).await?;
        }
        self.endpoints(&sites, &ring)
    }

    fn site_count(&self) -> usize {
        usize::from(self.options.sites)
    }

    /// Settings of a server that registers with search.
    fn member(&self, name: &str, at: Listeners) -> Table {
        let mut table = listeners(at);
        table.insert("name".into(), Value::String(name.into()));
        table.insert("search".into(), Value::String(self.search_url.clone()));
        table
    }

    async fn launch(&self, role: Role, table: Table) -> Result<Running, Failure> {
        Settings::of(role, table).start(self.secret.clone()).await.map_err(|error| {
            let failure = Failure::from(error);
            Failure { message: format!("{role} does not start: {}", failure.message), ..failure }
        })
    }

    async fn start_billing(&mut self) -> Result<(), Failure> {
        for (role, at) in [
            (Role::ServiceBilling, self.ports.service_billing()),
            (Role::ContentBilling, self.ports.content_billing()),
        ] {
            let member = self.member(role.as_str(), at);
            let mut table = with_folder(member, &self.folders.server(role.as_str()))?;
            if self.options.demo {
                // The server stores them unless it has them.
                let tariffs = Value::try_from(billing::demo_tariffs()).map_err(|e| {
                    Failure::new(format!("the demo's tariffs cannot be written as TOML: {e}"))
                })?;
                table.insert("tariff".into(), tariffs);
            }
            let running = self.launch(role, table).await?;
            self.servers.billing.push(running);
        }
        Ok(())
    }

    /// Starts the sites' nodes, but not those that were removed: they left for ever.
    async fn start_nodes(&mut self, sites: &[SiteId], map: &ClusterMap) -> Result<(), Failure> {
        let mut tables = Vec::new();
        for (s, site) in sites.iter().enumerate() {
            for n in 0..usize::from(self.options.nodes) {
                let name = layout::node_name(n)?;
                let known = map.site(site).and_then(|entry| entry.node(&NodeId::of(site, &name)));
                if known.is_some_and(|node| node.state == NodeState::Removed) {
                    tracing::info!(%site, node = %name, "the node was removed and is not started");
                    continue;
                }
                let folder = self.folders.node(site, &name);
                let mut table = with_folder(self.member(name.as_str(), self.ports.node(s, n)), &folder)?;
                let store = path_text(&folder.join("store"))?;
                table.insert("site".into(), Value::String(site.to_string()));
                let store = format!("file:{store}?size={}", self.options.node_size);
                table.insert("store".into(), Value::String(store));
                tables.push(table);
                self.started_nodes.push((site.clone(), name));
            }
        }
        let launched = join_all(tables.into_iter().map(|t| self.launch(Role::StorageNode, t))).await;
        keep_started(&mut self.servers.nodes, launched)
    }

    /// How many nodes were started at each site.
    fn node_counts(&self, sites: &[SiteId]) -> Vec<(SiteId, usize)> {
        let count = |site: &SiteId| self.started_nodes.iter().filter(|(of, _)| of == site).count();
        sites.iter().map(|site| (site.clone(), count(site))).collect()
    }

    async fn start_gateways(&mut self, sites: &[SiteId]) -> Result<(), Failure> {
        let table = |(s, site): (usize, &SiteId)| {
            let mut table = self.member(GATEWAY, self.ports.gateway(s));
            table.insert("site".into(), Value::String(site.to_string()));
            self.launch(Role::Gateway, table)
        };
        let launched = join_all(sites.iter().enumerate().map(table)).await;
        keep_started(&mut self.servers.gateways, launched)
    }

    /// Mobile access stands near the first site, so that clients of the others have somewhere to go.
    async fn start_mobile_access(&mut self, sites: &[SiteId]) -> Result<(), Failure> {
        let mut table = self.member(MOBILE_ACCESS, self.ports.mobile_access());
        let near = sites.iter().take(1).map(|site| Value::String(site.to_string())).collect();
        table.insert("sites".into(), Value::Array(near));
        table.insert("hear".into(), Value::String(format!("{BROADCASTS}:0")));
        self.servers.mobile_access = Some(self.launch(Role::MobileAccess, table).await?);
        Ok(())
    }

    async fn start_origin(&mut self) -> Result<(), Failure> {
        let member = self.member("origin", self.ports.origin());
        let mut table = with_folder(member, &self.folders.origin_state())?;
        let studio = self.folders.studio();
        if studio.exists() {
            let url = format!("dir:{}", path_text(&studio)?);
            let source = Value::Table(source_table(directory::STUDIO, directory::STUDIO, &url));
            table.insert("sources".into(), Value::Array(vec![source]));
            table.insert("rescan_ms".into(), Value::Integer(RESCAN_MS));
        }
        self.servers.origin = Some(self.launch(Role::Origin, table).await?);
        Ok(())
    }

    fn endpoints(&self, sites: &[SiteId], ring: &Keyring) -> Result<Endpoints, Failure> {
        let (Some(search), Some(origin), [service, content], Some(mobile_access)) = (
            &self.servers.search,
            &self.servers.origin,
            self.servers.billing.as_slice(),
            &self.servers.mobile_access,
        ) else {
            return Err(Failure::new("not every server was started"));
        };
        let site = |(s, name): (usize, &SiteId)| -> Result<SiteEndpoints, Failure> {
            let nodes = self.started_nodes.iter().zip(&self.servers.nodes);
            let nodes = nodes.filter(|((site, _), _)| site == name);
            let node = |((_, name), running): (&(SiteId, ServerName), &Running)| NodeEndpoint {
                name: name.clone(),
                http: running.http.clone(),
                admin: running.admin.clone(),
            };
            let gateways = self.servers.gateways.iter().skip(s).take(1).map(|running| {
                let (http, admin) = (running.http.clone(), running.admin.clone());
                Ok(GatewayEndpoint { name: ServerName::new(GATEWAY)?, http, s3: None, admin })
            });
            Ok(SiteEndpoints {
                name: name.clone(),
                gateways: gateways.collect::<Result<_, Failure>>()?,
                nodes: nodes.map(node).collect(),
            })
        };
        Ok(Endpoints {
            search: endpoint(search),
            origin: endpoint(origin),
            service_billing: endpoint(service),
            content_billing: endpoint(content),
            mobile_access: MobileAccessEndpoint {
                http: mobile_access.http.clone(),
                admin: mobile_access.admin.clone(),
                // The port of its service, see [`mobile_access::Config::hear`].
                hear: mobile_access.http.replace("http://127.0.0.1", BROADCASTS),
            },
            admin_token: self.secret.admin_token().to_owned(),
            sites: sites.iter().enumerate().map(site).collect::<Result<_, _>>()?,
            clients: ring.clients().to_vec(),
            ca_file: self.ca_file.clone(),
        })
    }
}

fn listeners(at: Listeners) -> Table {
    [("listen", at.http), ("admin", at.admin)]
        .into_iter()
        .map(|(key, address)| (key.to_owned(), Value::String(address.to_string())))
        .collect()
}

/// Adds the server's folder, made if it is not there.
fn with_folder(mut table: Table, folder: &Path) -> Result<Table, Failure> {
    std::fs::create_dir_all(folder).map_err(|e| Failure::file("making", folder, &e))?;
    table.insert("data_dir".into(), Value::String(path_text(folder)?));
    Ok(table)
}

/// Keeps what was started, also when something beside it was not.
fn keep_started(servers: &mut Vec<Running>, launched: Vec<Result<Running, Failure>>) -> Result<(), Failure> {
    let mut first_failure = Ok(());
    for result in launched {
        match result {
            Ok(running) => servers.push(running),
            Err(failure) if first_failure.is_ok() => first_failure = Err(failure),
            Err(_) => {}
        }
    }
    first_failure
}

fn endpoint(running: &Running) -> Endpoint {
    Endpoint { http: running.http.clone(), admin: running.admin.clone() }
}

/// Runs `dozo up` until a signal stops it.
pub async fn run(options: UpOptions) -> Result<(), Failure> {
    let mut signals = Signals::install()?;
    let begin = Instant::now();
    let up = tokio::select! {
        up = Up::start(&options) => up?,
        _signal = signals.next() => return Err(Failure::new("stopped before the system was ready")),
    };
    output::text_block(&report::ready(&up, &options, begin.elapsed()))?;
    signals.next().await;
    output::line("stopping; once more stops at once")?;
    signals.stop(up.stop()).await?;
    output::line("stopped")
}
