//! `endpoints.json`: where everything is, and the keys of the clients made here. `dozo up` writes it when all is
//! ready; the commands read it. It holds tokens, so only its owner may read it.

use std::path::{Path, PathBuf};

use common::api::search::ClientKeys;
use common::error::chain;
use common::id::{ClientId, ServerName, SiteId};
use common::tls::{self, TlsFiles};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::files;

/// The file's name in a data folder.
pub const ENDPOINTS_FILE: &str = "endpoints.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    pub search: Endpoint,
    pub origin: Endpoint,
    pub service_billing: Endpoint,
    pub content_billing: Endpoint,
    pub mobile_access: MobileAccessEndpoint,
    /// The operator's bearer token.
    pub admin_token: String,
    pub sites: Vec<SiteEndpoints>,
    pub clients: Vec<ClientEndpoint>,
    /// Certificates of the authorities that vouch for the servers, where those speak TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// Addresses of one server, each `http://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub http: String,
    pub admin: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MobileAccessEndpoint {
    pub http: String,
    pub admin: String,
    /// Where it hears broadcasts, `HOST:PORT`.
    pub hear: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteEndpoints {
    pub name: SiteId,
    pub gateways: Vec<GatewayEndpoint>,
    pub nodes: Vec<NodeEndpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayEndpoint {
    pub name: ServerName,
    pub http: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<String>,
    pub admin: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEndpoint {
    pub name: ServerName,
    pub http: String,
    pub admin: String,
}

/// A client with its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientEndpoint {
    pub name: ClientId,
    /// Home site.
    pub site: SiteId,
    pub access_key: String,
    pub secret_key: String,
    pub token: String,
}

impl From<ClientKeys> for ClientEndpoint {
    fn from(keys: ClientKeys) -> Self {
        let ClientKeys { client, site, access_key, secret_key, token } = keys;
        Self { name: client, site, access_key, secret_key, token }
    }
}

impl Endpoints {
    /// Reads the file. From now on the process believes the authorities that it names, unless it was told of others.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = std::fs::read(path).map_err(|e| {
            Failure::file("reading", path, &e).with_next_step(
                "start a system with `dozo up --demo`, or name its file: DOZO_ENDPOINTS=DIR/endpoints.json",
            )
        })?;
        let endpoints: Self = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::new(format!("{} is not an endpoints file: {e}", path.display())))?;
        if let Some(ca_file) = &endpoints.ca_file {
            let files = TlsFiles { ca_file: Some(ca_file.clone()), ..TlsFiles::default() };
            tls::install(&files).map_err(|error| Failure::new(chain(&error)))?;
        }
        Ok(endpoints)
    }

    /// Replaces the file as a whole: readers see the old one or the new one.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        write_json(self, path)
    }

    pub fn site(&self, name: &SiteId) -> Option<&SiteEndpoints> {
        self.sites.iter().find(|s| &s.name == name)
    }

    pub fn client(&self, name: &ClientId) -> Option<&ClientEndpoint> {
        self.clients.iter().find(|c| &c.name == name)
    }
}

/// The keys of the clients that were made with this data folder. Search shows a client's keys once and keeps
/// only what checks them, so they are put down here before anything else happens.
pub struct Keyring {
    path: PathBuf,
    clients: Vec<ClientEndpoint>,
}

impl Keyring {
    pub const FILE: &str = "clients.json";

    /// Opens the key ring of a data folder; an absent one is empty.
    pub fn open(data_dir: &Path) -> Result<Self, Failure> {
        let path = data_dir.join(Self::FILE);
        let clients = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Failure::new(format!("{} is not a list of clients: {e}", path.display())))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Failure::file("reading", &path, &e)),
        };
        Ok(Self { path, clients })
    }

    pub fn get(&self, name: &ClientId) -> Option<&ClientEndpoint> {
        self.clients.iter().find(|c| &c.name == name)
    }

    /// Keeps a client's keys, durably.
    pub fn add(&mut self, client: ClientEndpoint) -> Result<(), Failure> {
        self.clients.retain(|c| c.name != client.name);
        self.clients.push(client);
        write_json(&self.clients, &self.path)
    }

    pub fn clients(&self) -> &[ClientEndpoint] {
        &self.clients
    }
}

fn write_json<T: Serialize>(value: &T, path: &Path) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Failure::new(format!("{} cannot be written as JSON: {e}", path.display())))?;
    text.push(b'\n');
    files::write_private(path, &text).map_err(|e| Failure::file("writing", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> ClientEndpoint {
        ClientEndpoint {
            name: ClientId::new(name).unwrap(),
            site: SiteId::new("tokyo").unwrap(),
            access_key: "A".into(),
            secret_key: "S".into(),
            token: "T".into(),
        }
    }

    #[test]
    fn the_file_has_the_shape_that_scripts_rely_on() {
        let endpoint = |port: u16| Endpoint {
            http: format!("http://127.0.0.1:{port}"),
            admin: format!("http://127.0.0.1:{}", port + 50),
        };
        let endpoints = Endpoints {
            search: endpoint(8000),
            origin: endpoint(8001),
            service_billing: endpoint(8002),
            content_billing: endpoint(8003),
            mobile_access: MobileAccessEndpoint {
                http: "http://127.0.0.1:8004".into(),
                admin: "http://127.0.0.1:8054".into(),
                hear: "127.255.255.255:8004".into(),
            },
            admin_token: "X".into(),
            sites: vec![SiteEndpoints {
                name: SiteId::new("tokyo").unwrap(),
                gateways: vec![GatewayEndpoint {
                    name: ServerName::new("g1").unwrap(),
                    http: "http://127.0.0.1:8010".into(),
                    s3: None,
                    admin: "http://127.0.0.1:8060".into(),
                }],
                nodes: vec![NodeEndpoint {
                    name: ServerName::new("n1").unwrap(),
                    http: "http://127.0.0.1:8012".into(),
                    admin: "http://127.0.0.1:8062".into(),
                }],
            }],
            clients: vec![client("alice")],
            ca_file: None,
        };
        let expected = serde_json::json!({
            "search": {"http": "http://127.0.0.1:8000", "admin": "http://127.0.0.1:8050"},
            "origin": {"http": "http://127.0.0.1:8001", "admin": "http://127.0.0.1:8051"},
            "service_billing": {"http": "http://127.0.0.1:8002", "admin": "http://127.0.0.1:8052"},
            "content_billing": {"http": "http://127.0.0.1:8003", "admin": "http://127.0.0.1:8053"},
            "mobile_access": {"http": "http://127.0.0.1:8004", "admin": "http://127.0.0.1:8054",
                "hear": "127.255.255.255:8004"},
            "admin_token": "X",
            "sites": [{"name": "tokyo",
                "gateways": [{"name": "g1", "http": "http://127.0.0.1:8010", "admin": "http://127.0.0.1:8060"}],
                "nodes": [{"name": "n1", "http": "http://127.0.0.1:8012", "admin": "http://127.0.0.1:8062"}]}],
            "clients": [{"name": "alice", "site": "tokyo", "access_key": "A", "secret_key": "S", "token": "T"}],
        });
        assert_eq!(serde_json::to_value(&endpoints).unwrap(), expected);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ENDPOINTS_FILE);
        endpoints.write(&path).unwrap();
        assert_eq!(Endpoints::read(&path).unwrap(), endpoints);
    }

    #[test]
    fn keys_are_kept_over_a_restart_and_replaced_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Keyring::open(dir.path()).unwrap();
        ring.add(client("alice")).unwrap();
        ring.add(ClientEndpoint { token: "T2".into(), ..client("alice") }).unwrap();
        let ring = Keyring::open(dir.path()).unwrap();
        assert_eq!(ring.clients().len(), 1);
        assert_eq!(ring.get(&ClientId::new("alice").unwrap()).unwrap().token, "T2");
    }
}
