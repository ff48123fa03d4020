//! What a billing server is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;

use common::auth::Role;
use common::id::ServerName;
use serde::{Deserialize, Serialize};

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
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `service` or `content`.
    pub role: Fee,
    /// Service listener; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Health and metrics; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// Name of the server, unique in the cluster.
    pub name: ServerName,
    /// Base address of search, which the server registers with. It serves also while search is away.
    pub search: String,
    /// Folder of the database, `service.db` or `content.db`; made if absent.
    pub data_dir: PathBuf,
    /// Tariffs, splits and parties to store at the start, if they are not stored yet; see [`crate::tariff`].
    #[serde(default)]
    pub tariff: Option<Terms>,
    /// The same from a TOML file.
    #[serde(default)]
    pub tariff_file: Option<PathBuf>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
