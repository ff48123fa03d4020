//! Configuration of a gateway.

use std::net::SocketAddr;

use common::config::Live;
use common::id::{ServerName, SiteId};
use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Clients and other sites' gateways connect here.
    pub listen: SocketAddr,
    /// Health, metrics and map; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// Base address under which clients and other servers reach it; that of `listen` if absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Short name, unique among the site's gateways.
    pub name: ServerName,
    /// The site that the gateway belongs to.
    pub site: SiteId,
    /// Round trips are measured by ICMP echo as well as by calls.
    #[serde(default)]
    pub icmp_probes: bool,
    /// Address of search, `http://host:port`.
    pub search: String,
    /// Memory for hot chunks, in bytes; 0 keeps none.
    #[serde(default = "cache_bytes")]
    pub cache_bytes: u64,
    /// Longest content a client may put, in bytes.
    #[serde(default = "content_bytes_max")]
    pub content_bytes_max: Live,
    /// How long a request waits for a node that does not answer, or whose slot is on the move: longer than it
    /// takes to find that a node is lost and to let another serve in its place.
    #[serde(default = "node_patience_ms")]
    pub node_patience_ms: u64,
    /// How long a content is kept for a client of another site after it was asked for. The client's home site may allow
    /// less: this is also the most that it allows other sites for clients of its own.
    #[serde(default = "temporary_ttl_ms")]
    pub temporary_ttl_ms: Live,
    /// How long a client of this site may visit another on one answer of its card, in milliseconds.
    #[serde(default = "visit_ms")]
    #[schemars(range(min = 1))]
    pub visit_ms: Live,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn cache_bytes() -> u64 {
    256 << 20
}

fn content_bytes_max() -> Live {
    Live::from(100 << 30)
}

fn visit_ms() -> Live {
    u64::try_from(common::visit::VISIT_LIFE.as_millis()).unwrap_or(u64::MAX).into()
}

fn node_patience_ms() -> u64 {
    15_000
}

fn temporary_ttl_ms() -> Live {
    Live::from(24 * 3_600_000)
}
