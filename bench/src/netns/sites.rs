//! Sites in namespaces: a place for search, one for an origin, and one for each site with a gateway and a node.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::api::search::{ClientKeys, NewBucket, NewClient, SearchClient, Visibility};
use common::auth::ClusterSecret;
use common::client::{CallError, HttpClient, ServerClient};
use common::error::ErrorCode;
use common::name::ContentName;
use common::time::Clock;
use http::Method;

use super::net::Net;
use super::{NetnsError, io as failed};
use crate::orphans::{Ended, Kind, watch};
use crate::target::resolve;
use crate::wire::{Connection, Outgoing};

const SECRET: &str = "a secret of sites in namespaces, not for other use";
pub const SEARCH: &str = "search";
pub const ORIGIN: &str = "origin";
/// The bucket of what the origin has, and its source folder.
pub const STUDIO: &str = "studio";
/// Longest wait for what the system brings about by itself.
const SOON: Duration = Duration::from_secs(30);
/// Perhaps debug builds, many at once on few cores.
const START_TIME_MAX: Duration = Duration::from_secs(120);
const POLL_EVERY: Duration = Duration::from_millis(25);

/// Gone when it is dropped, with all that is in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is in the system's folder for such things.
        let _removed = fs::remove_dir_all(&self.0);
    }
}

/// Sites that run. The processes are ended before the namespaces go that they run in.
pub struct Sites {
    processes: Vec<Ended>,
    pub net: Net,
    folder: Folder,
    secret: ClusterSecret,
    dozo: PathBuf,
}

impl Sites {
    /// Starts a site for each name, each with a client and a public bucket of the site's name, on links that are set
    /// before. `dozo` is the program.
    pub fn start(dozo: &Path, sites: &[&str], set_links: impl FnOnce(&Net)) -> Result<Self, NetnsError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let places: Vec<&str> = [SEARCH, ORIGIN].into_iter().chain(sites.iter().copied()).collect();
        let net = Net::new(&places)?;
        set_links(&net);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("dozo-netns-{}-{number}", std::process::id()));
        let making = || failed(format!("making the folder {}", folder.display()));
        watch(Kind::Folder, &folder.display().to_string()).map_err(making())?;
        fs::create_dir_all(folder.join(STUDIO)).map_err(making())?;
        fs::write(folder.join("cluster-secret"), SECRET).map_err(making())?;
        let secret = ClusterSecret::new(SECRET).expect("it is long enough");
        let (folder, dozo) = (Folder(folder), dozo.to_owned());
        let mut started = Self { processes: Vec::new(), net, folder, secret, dozo };
        started.spawn(SEARCH, "search", &[])?;
        started.await_ready(SEARCH, "search")?;
        let source = format!("{STUDIO},{STUDIO},dir:{}", started.path(STUDIO).display());
        started.spawn(ORIGIN, "origin", &["--name", "origin", "--rescan-ms", "500", "--source", &source])?;
        for site in sites {
            started.spawn(site, "storage-node", &["--name", "n1", "--site", site, "--store", "memory:"])?;
            started.spawn(site, "gateway", &["--name", "g1", "--site", site])?;
        }
        for site in sites {
            started.await_ready(site, "storage-node")?;
            started.await_ready(site, "gateway")?;
        }
        started.await_ready(ORIGIN, "origin")?;
        Ok(started)
    }

    /// A path in the folder of this run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    pub fn admin_token(&self) -> &str {
        self.secret.admin_token()
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

    pub fn url(&self, place: &str, role: &str) -> String {
        format!("http://{}:{}", self.net.address(place), Self::ports(role).0)
    }

    pub fn admin_url(&self, place: &str, role: &str) -> String {
        format!("http://{}:{}", self.net.address(place), Self::ports(role).1)
    }

    fn spawn(&mut self, place: &str, role: &str, flags: &[&str]) -> Result<(), NetnsError> {
        let starting = || failed(format!("starting {role} of {place} with {}", self.dozo.display()));
        let address = self.net.address(place);
        let (port, admin) = Self::ports(role);
        let data_dir = self.path(&format!("{place}-{role}"));
        fs::create_dir_all(&data_dir).map_err(starting())?;
        let log = fs::File::create(self.log(place, role)).map_err(starting())?;
        let mut command = self.net.command(place, &self.dozo);
        command.arg(role).args(flags);
        command.args(["--listen", &format!("{address}:{port}"), "--admin", &format!("{address}:{admin}")]);
        command.arg("--cluster-secret-file").arg(self.path("cluster-secret"));
        if role != "search" {
            command.args(["--search", &self.url(SEARCH, "search")]);
        }
        if role != "gateway" {
            command.arg("--data-dir").arg(data_dir);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(starting())?).stderr(log);
        command.env_remove("DOZO_ENDPOINTS").env_remove("RUST_LOG").env_remove("DOZO__CLUSTER__SECRET");
        let child = Ended(command.spawn().map_err(starting())?);
        watch(Kind::Process, &child.0.id().to_string()).map_err(starting())?;
        self.processes.push(child);
        Ok(())
    }

    fn log(&self, place: &str, role: &str) -> PathBuf {
        self.path(&format!("{place}-{role}.log"))
    }

    fn await_ready(&self, place: &str, role: &str) -> Result<(), NetnsError> {
        let url = self.admin_url(place, role);
        eventually(&format!("{role} of {place} is ready"), START_TIME_MAX, || {
            let asked = self.run_at(place, || async {
                let mut connection = connect(&url, self.admin_token()).await?;
                Ok(connection.send(Method::GET, "/readyz", Outgoing::EMPTY).await)
            })?;
            Ok(asked.map(drop).map_err(|error| {
                let log = fs::read_to_string(self.log(place, role)).unwrap_or_default();
                format!("{error}: {}", log.lines().last().unwrap_or_default())
            }))
        })
    }

    /// Does `work` with sockets of a place.
    pub fn run_at<T: Send, F: Future<Output = Result<T, NetnsError>>>(
        &self,
        place: &str,
        work: impl FnOnce() -> F + Send,
    ) -> Result<T, NetnsError> {
        self.net.at(place, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(failed("starting a runtime"))?.block_on(work())
        })?
    }

    fn search<T: Send, F: Future<Output = Result<T, CallError>>>(
        &self,
        ask: impl FnOnce(SearchClient) -> F + Send,
    ) -> Result<T, NetnsError> {
        let url = self.url(SEARCH, "search");
        self.run_at(SEARCH, || async {
            let server = ServerClient::new(HttpClient::new(), self.secret.clone(), "bench", Clock::System);
            Ok(ask(SearchClient::new(server, &url)).await?)
        })
    }

    /// A new client of a site.
    pub fn add_client(&self, name: &str, site: &str) -> Result<ClientKeys, NetnsError> {
        let new = NewClient { client: name.parse()?, site: site.parse()? };
        self.search(|search| async move { search.create_client(&new).await })
    }

    /// A client with a public bucket, both of this name.
    pub fn add_provider(&self, name: &str, site: &str) -> Result<ClientKeys, NetnsError> {
        let keys = self.add_client(name, site)?;
        let (bucket, new) =
            (name.parse()?, NewBucket { provider: name.parse()?, visibility: Visibility::Public });
        self.search(|search| async move { search.put_bucket(&bucket, &new).await })?;
        Ok(keys)
    }

    /// Waits until search knows all these holders of a content.
    pub fn await_held(&self, name: &str, sites: &[&str], origins: usize) -> Result<(), NetnsError> {
        let content: ContentName = name.parse()?;
        eventually(&format!("{name} is held by {sites:?}"), SOON, || {
            let looked = self.search(|search| {
                let content = content.clone();
                async move { search.lookup(&content).await }
            });
            let info = match looked {
                Ok(info) => info,
                Err(NetnsError::Search(error)) if error.code() == Some(ErrorCode::ContentNotFound) => {
                    return Ok(Err(error.to_string()));
                }
                Err(error) => return Err(error),
            };
            let holds = |site: &&str| info.sites.iter().any(|holder| holder.as_str() == *site);
            let is_held = sites.iter().all(holds) && info.origins.len() >= origins;
            Ok(if is_held { Ok(()) } else { Err(format!("{info:?}")) })
        })
    }
}

/// A connection to `http://host:port`, made when it is used.
pub async fn connect(url: &str, token: &str) -> Result<Connection, NetnsError> {
    let (address, host) = resolve(url).await?;
    let what = format!("connecting to {url}");
    Connection::new(address, &host, token).map_err(|error| NetnsError::Request { what, source: error.into() })
}

/// Waits until `check` gives a value; the last refusal is told if it never does.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<Result<T, String>, NetnsError>,
) -> Result<T, NetnsError> {
    let give_up = Instant::now() + limit;
    loop {
        match check()? {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= give_up => {
                return Err(NetnsError::Late { what: what.to_owned(), limit, reason });
            }
            Err(_) => std::thread::sleep(POLL_EVERY),
        }
    }
}
