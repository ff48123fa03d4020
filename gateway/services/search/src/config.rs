//! Settings of the search server.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use common::server::StartError;

use crate::db::{DATABASE_FILE, Location};

const NOWHERE: &str = "set `data_dir`, a folder, or `database`, the address of a PostgreSQL database";

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the service listener. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of health, metrics and service discovery; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// Folder of the database `search.db`, an SQLite file; made if it is not there. Needed unless `database` is set.
    #[serde(default)]
    pub data_dir: Option<PathBuf>,
    /// A PostgreSQL database instead: `postgres://USER[:PASSWORD]@HOST[:PORT]/NAME`, with libpq's options such as
    /// `?sslmode=verify-full`.
    #[serde(default)]
    pub database: Option<String>,
    /// File with the password for `database`, which is then in no setting. (`PGPASSFILE` serves as well.)
    #[serde(default)]
    pub database_password_file: Option<PathBuf>,
    /// A server that was not heard of for this long counts as down.
    #[serde(default = "lease_ms")]
    #[schemars(range(min = 2))]
    pub lease_ms: u64,
    /// How often servers are told to report; well below `lease_ms`.
    #[serde(default = "heartbeat_ms")]
    #[schemars(range(min = 1))]
    pub heartbeat_ms: u64,
}

impl Config {
    /// All defaults, with the database in a folder.
    pub fn in_folder(listen: SocketAddr, admin: SocketAddr, data_dir: PathBuf) -> Self {
        Self {
            listen,
            admin,
            data_dir: Some(data_dir),
            database: None,
            database_password_file: None,
            lease_ms: lease_ms(),
            heartbeat_ms: heartbeat_ms(),
        }
    }

    /// Where the directory is kept.
    pub(crate) fn location(&self) -> Result<Location, StartError> {
        match (&self.database, &self.data_dir) {
            (Some(url), _) => Location::at(url, self.database_password_file.as_ref()),
            (None, Some(folder)) => Location::in_folder(folder, DATABASE_FILE),
            (None, None) => Err(StartError::failed("reading the configuration of search", NOWHERE)),
        }
    }

    /// What contradicts itself, in words for the operator.
    pub fn check(&self) -> Result<(), String> {
        if self.data_dir.is_none() && self.database.is_none() {
            return Err(NOWHERE.to_owned());
        }
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
