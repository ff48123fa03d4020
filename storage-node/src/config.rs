//! What a storage node is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use common::config::Live;
use common::id::{ServerName, SiteId};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::store::StoreUrl;

/// Configuration of a storage node.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the node, unique in its site and kept for the node's life.
    pub name: ServerName,
    /// Site that the node belongs to.
    pub site: SiteId,
    /// Zone of the site; sites of one zone count as near to each other.
    #[serde(default)]
    pub zone: Option<String>,
    /// Base address of search, `http://host:port`.
    pub search: String,
    /// Where the chunks are kept: `file:/path?size=20GiB`, `device:/dev/…`, `dir:/path`, `s3://…` or `memory:`.
    pub store: String,
    /// Makes a store also on a device or file that holds something else, which is lost.
    #[serde(default)]
    pub force: bool,
    /// Folder for the index, the map and, for stores that are not devices, the log.
    pub data_dir: PathBuf,
    /// Service listener, for gateways and other nodes. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Health, metrics and status; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// Base address under which others reach the service listener; that of `listen` if absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Memory for the catalog's index, in bytes.
    #[serde(default = "index_cache_bytes")]
    #[schemars(range(min = 1))]
    pub index_cache_bytes: usize,
    /// How long after its last bytes a delivery waits for a later range of the same content.
    #[serde(default = "delivery_join_window_ms")]
    pub delivery_join_window_ms: u64,
    /// How long a delivery may go on without a word from its gateway.
    #[serde(default = "delivery_open_max_ms")]
    pub delivery_open_max_ms: u64,
    /// How long a chunk that nothing refers to is kept: deliveries in flight may still read it.
    #[serde(default = "chunk_grace_ms")]
    pub chunk_grace_ms: u64,
    /// How long a reference to a chunk stays that no holding needs: longer than any upload takes.
    #[serde(default = "surplus_grace_ms")]
    pub surplus_grace_ms: u64,
    /// How long what came in of a content is kept when nobody goes on collecting it.
    #[serde(default = "collecting_grace_ms")]
    pub collecting_grace_ms: u64,
    /// How long a new owner of slots may take before the old one takes them back.
    #[serde(default = "slot_move_ms")]
    pub slot_move_ms: u64,
    /// Bytes a second at which chunks are sent to other nodes of the site that are to have them; 0 is without limit.
    #[serde(default = "moves_bytes_per_s")]
    pub moves_bytes_per_s: Live,
    /// Bytes a second at which the scrub reads stored chunks to verify them; 0 turns it off.
    #[serde(default = "scrub_bytes_per_s")]
    pub scrub_bytes_per_s: Live,
    /// Time from the start of one round of the scrub to that of the next.
    #[serde(default = "scrub_interval_ms")]
    #[schemars(range(min = 1))]
    pub scrub_interval_ms: Live,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn index_cache_bytes() -> usize {
    64 << 20
}

fn delivery_join_window_ms() -> u64 {
    30 * 60_000
}

fn delivery_open_max_ms() -> u64 {
    6 * 3_600_000
}

fn chunk_grace_ms() -> u64 {
    10 * 60_000
}

fn surplus_grace_ms() -> u64 {
    24 * 3_600_000
}

fn collecting_grace_ms() -> u64 {
    10 * 60_000
}

fn slot_move_ms() -> u64 {
    10_000
}

fn moves_bytes_per_s() -> Live {
    Live::from(50 << 20)
}

fn scrub_bytes_per_s() -> Live {
    Live::from(20 << 20)
}

fn scrub_interval_ms() -> Live {
    Live::from(7 * 24 * 3_600_000)
}

/// The node's time limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub delivery_join_window: Duration,
    pub delivery_open_max: Duration,
    pub chunk_grace: Duration,
    pub surplus_grace: Duration,
    pub collecting_grace: Duration,
    pub slot_move: Duration,
}

impl Config {
    /// What is wrong with a value by its own rules.
    pub fn check(&self) -> Result<(), String> {
        let store: Result<StoreUrl, _> = self.store.parse();
        store.map(drop).map_err(|error| error.to_string())
    }

    pub fn limits(&self) -> Limits {
        Limits {
            delivery_join_window: Duration::from_millis(self.delivery_join_window_ms),
            delivery_open_max: Duration::from_millis(self.delivery_open_max_ms),
            chunk_grace: Duration::from_millis(self.chunk_grace_ms),
            surplus_grace: Duration::from_millis(self.surplus_grace_ms),
            collecting_grace: Duration::from_millis(self.collecting_grace_ms),
            slot_move: Duration::from_millis(self.slot_move_ms),
        }
    }
}
