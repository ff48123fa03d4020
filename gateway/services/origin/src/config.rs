//! Settings of an origin.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use common::id::{BucketName, ClientId, ServerName};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the service listener. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of health and metrics; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// This origin's name in the cluster.
    pub name: ServerName,
    /// Base address of search, `http://host:port`.
    pub search: String,
    /// Directory of the database `origin.db`; made if it is not there.
    pub data_dir: PathBuf,
    /// Time from the end of one scan of a source to the next.
    #[serde(default = "rescan_ms")]
    pub rescan_ms: u64,
    /// Most parts of contents that are read at the same time; each takes up to 4 MiB of memory.
    #[serde(default = "read_concurrency")]
    pub read_concurrency: usize,
    /// Sources to register, beside those that were added at run time.
    #[serde(default)]
    pub sources: Vec<Source>,
}

/// Where a bucket's original content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Bucket that the contents appear in; made (public) if search does not know it.
    pub bucket: BucketName,
    /// The client that provides, and is paid for, the contents.
    pub provider: ClientId,
    /// `dir:/path`, `s3://bucket/prefix?endpoint=URL&region=R` or `memory:`.
    pub url: String,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn rescan_ms() -> u64 {
    60_000
}

fn read_concurrency() -> usize {
    16
}
