//! What a billing server is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;

use common::auth::Role;
use common::id::ServerName;
use common::server::StartError;
use database::Location;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backup::file_name;
use crate::ledger::CLOSE_GRACE;
use crate::tariff::Terms;

/// Which of the two fees a server bills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fee {
    /// For delivery: shared among the servers that took part.
    Service,
    /// For use of the content: commissions off, the rest to the provider.
    Content,
}

impl Fee {
    /// As in metric labels, file names and party names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Content => "content",
        }
    }

    /// The role that the server registers and is called in.
    pub fn server_role(self) -> Role {
        match self {
            Self::Service => Role::ServiceBilling,
            Self::Content => Role::ContentBilling,
        }
    }

    /// Prefix of this fee's invoice numbers.
    pub(crate) fn invoice_prefix(self) -> &'static str {
        match self {
            Self::Service => "S-",
            Self::Content => "C-",
        }
    }
}

impl std::fmt::Display for Fee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Configuration of one billing server.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `service` or `content`; follows from the command, and is no setting.
    #[schemars(skip)]
    pub role: Fee,
    /// Service listener; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Health and metrics; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// Name of the server, unique in the cluster.
    pub name: ServerName,
    /// Base address under which others reach the service listener; that of `listen` if absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Base address of search, which the server registers with. It serves also while search is away.
    pub search: String,
    /// Folder of the database `service.db` or `content.db`, an SQLite file; made if absent. Needed unless `database` is
    /// set.
    #[serde(default)]
    pub data_dir: Option<PathBuf>,
    /// A PostgreSQL database instead: `postgres://USER[:PASSWORD]@HOST[:PORT]/NAME`, with libpq's options. One database for
    /// each of the two servers.
    #[serde(default)]
    pub database: Option<String>,
    /// File with the password for `database`, which is then in no setting. (`PGPASSFILE` serves as well.)
    #[serde(default)]
    pub database_password_file: Option<PathBuf>,
    /// How long after its end a month waits for nodes whose log is not known to have passed it; after that it may be
    /// closed without them.
    #[serde(default = "close_grace_hours")]
    #[schemars(range(max = 8784))]
    pub close_grace_hours: u64,
    /// Tariffs, splits and parties to store at the start, if they are not stored yet; as in `tariff_file`.
    #[serde(default)]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub tariff: Option<Terms>,
    /// The same from a TOML file.
    #[serde(default)]
    pub tariff_file: Option<PathBuf>,
}

const NOWHERE: &str = "set `data_dir`, a folder, or `database`, the address of a PostgreSQL database";

impl Config {
    /// What contradicts itself or is missing, in words for the operator.
    pub fn check(&self) -> Result<(), String> {
        if self.data_dir.is_none() && self.database.is_none() {
            return Err(NOWHERE.to_owned());
        }
        Ok(())
    }

    /// Where the books are kept.
    pub(crate) fn location(&self) -> Result<Location, StartError> {
        match (&self.database, &self.data_dir) {
            (Some(url), _) => Location::at(url, self.database_password_file.as_ref()),
            (None, Some(folder)) => Location::in_folder(folder, &file_name(self.role)),
            (None, None) => Err(StartError::failed(
                format!("reading the configuration of {} billing", self.role),
                NOWHERE,
            )),
        }
    }
}

fn close_grace_hours() -> u64 {
    CLOSE_GRACE.as_secs() / 3600
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
