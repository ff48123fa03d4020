//! Settings of a mobile access server.

use std::net::SocketAddr;

use common::api::mobile_access::REQUEST_PORT;
use common::id::{ServerName, SiteId};
use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Clients connect here. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Health and metrics; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// Where broadcasts are heard: 0.0.0.0:PORT for those of every network that the machine is in. By default only those
    /// of this machine itself. Several servers may share it. Port 0 is the port of `listen`.
    #[serde(default = "hear")]
    pub hear: SocketAddr,
    /// Unique in the cluster: who is paid for bringing clients, and what clients see.
    pub name: ServerName,
    /// Address of search, `http://host:port`.
    pub search: String,
    /// Where clients reach this server, `http://host:port`, if that is not where it listens.
    #[serde(default)]
    pub advertise: Option<String>,
    /// The sites near here; empty: those of `zone`.
    #[serde(default)]
    pub sites: Vec<SiteId>,
    /// Where the server is. Without sites and zone every site is taken for near, and measured.
    #[serde(default)]
    pub zone: Option<String>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn hear() -> SocketAddr {
    SocketAddr::from(([127, 255, 255, 255], REQUEST_PORT))
}
