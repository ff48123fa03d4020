//! Settings of the search server.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the service listener. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of health, metrics and service discovery; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// Directory of the database `search.db`; made if it is not there.
    pub data_dir: PathBuf,
    /// A server that was not heard of for this long counts as down.
    #[serde(default = "lease_ms")]
    pub lease_ms: u64,
    /// How often servers are told to report; well below `lease_ms`.
    #[serde(default = "heartbeat_ms")]
    pub heartbeat_ms: u64,
}

impl Config {
    /// What contradicts itself, in words for the operator.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.heartbeat_ms == 0 || self.lease_ms < 2 * self.heartbeat_ms {
            return Err(format!(
                "lease_ms = {} must be at least twice heartbeat_ms = {}, and that at least 1",
                self.lease_ms, self.heartbeat_ms
            ));
        }
        Ok(())
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn lease_ms() -> u64 {
    10_000
}

fn heartbeat_ms() -> u64 {
    2_000
}
