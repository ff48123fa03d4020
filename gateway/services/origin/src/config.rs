//! Settings of an origin.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use common::api::origin::Source;
use common::config::Live;
use common::id::ServerName;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the service listener. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of health and metrics; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// Base address under which gateways and nodes reach it; that of `listen` if absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// This origin's name in the cluster.
    pub name: ServerName,
    /// Base address of search, `http://host:port`.
    pub search: String,
    /// Directory of the database `origin.db`; made if it is not there.
    pub data_dir: PathBuf,
    /// Time from the end of one scan of a source to the next.
    #[serde(default = "rescan_ms")]
    #[schemars(range(min = 1))]
    pub rescan_ms: Live,
    /// A file is registered once it has not changed for this long, so that none is registered half written.
    #[serde(default = "settle_ms")]
    pub settle_ms: Live,
    /// Most parts of contents that are read at the same time, over all sources; each takes up to 4 MiB of memory.
    #[serde(default = "read_concurrency")]
    #[schemars(range(min = 1, max = 1024))]
    pub read_concurrency: usize,
    /// Most reads of one source that wait for their turn; more are answered `origin_busy`.
    #[serde(default = "read_queue")]
    pub read_queue: usize,
    /// Sources to register, beside those that were added at run time.
    #[serde(default)]
    pub sources: Vec<Source>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn rescan_ms() -> Live {
    Live::from(60_000)
}

fn settle_ms() -> Live {
    Live::from(1_000)
}

fn read_concurrency() -> usize {
    16
}

fn read_queue() -> usize {
    256
}
