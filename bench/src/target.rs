//! What is driven: the gateways, who the client is, the billing servers to compare with, and the ports by which
//! the servers' processes are found.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::protocol::Protocol;
use crate::protocol::signature::Credentials;
use crate::visit::Card;

/// A system that cannot be driven as it was described.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{path} cannot be read; is `dozo up` running there?", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} does not have the form of endpoints.json", path = .path.display())]
    Form { path: PathBuf, source: serde_json::Error },
    #[error("there is no client {client:?}; the clients are {known}")]
    NoClient { client: String, known: String },
    #[error("the site {site:?} of client {client:?} has no gateway")]
    NoGateway { site: String, client: String },
    #[error("there is no site {site:?} with a gateway")]
    NoSite { site: String },
    #[error("the provider {provider} is at home at {site}, as {client} is; name a client of another site")]
    SameHome { provider: String, client: String, site: String },
    #[error(
        "the card is of {holder}, but the load is of {client}; drive it with --as {holder}, or name a card of {client}"
    )]
    OthersCard { holder: String, client: String },
    #[error("the system has no mobile access, so nobody can roam there")]
    NoMobileAccess,
    #[error("{url} is not an address of the form http://HOST:PORT")]
    Address { url: String },
    #[error(
        "this is no target: write native, s3://KEY:SECRET@HOST:PORT/BUCKET (with ?region=NAME if it has one) or \
         http://HOST:PORT/PREFIX"
    )]
    Target,
}

/// The part of `endpoints.json` that matters here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoints {
    pub search: ServerAddress,
    #[serde(default)]
    pub origin: Option<ServerAddress>,
    #[serde(default)]
    pub service_billing: Option<ServerAddress>,
    #[serde(default)]
    pub content_billing: Option<ServerAddress>,
    #[serde(default)]
    pub mobile_access: Option<ServerAddress>,
    pub admin_token: String,
    pub sites: Vec<Site>,
    pub clients: Vec<Client>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerAddress {
    #[serde(default)]
    pub name: String,
    pub http: String,
    pub admin: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Site {
    pub name: String,
    pub gateways: Vec<ServerAddress>,
    pub nodes: Vec<ServerAddress>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Client {
    pub name: String,
    pub site: String,
    pub token: String,
}

impl Endpoints {
    pub fn read(path: &Path) -> Result<Self, TargetError> {
        let text =
            std::fs::read(path).map_err(|source| TargetError::Read { path: path.to_owned(), source })?;
        serde_json::from_slice(&text).map_err(|source| TargetError::Form { path: path.to_owned(), source })
    }

    fn client(&self, name: &str) -> Result<&Client, TargetError> {
        self.clients.iter().find(|client| client.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.clients.iter().map(|client| client.name.as_str()).collect();
            TargetError::NoClient { client: name.to_owned(), known: known.join(", ") }
        })
    }
}

/// The two billing servers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Books {
    pub service: String,
    pub content: String,
    pub admin_token: String,
}

/// A server whose process and metrics are watched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Watched {
    /// As in `tokyo.g1`.
    pub server: String,
    /// Of its service, `http://host:port`.
    pub http: String,
    pub port: u16,
    /// Address of its admin listener.
    pub admin: Option<String>,
}

/// What an operator may do to the system.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Control {
    /// The client's home.
    pub site: String,
    pub search: String,
    pub admin_token: String,
}

/// A client of another site, who publishes what is to be collected.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Provider {
    pub client: String,
    /// Of its home.
    pub gateways: Vec<String>,
    token: String,
    /// Which everybody may read.
    bucket: String,
}

impl Provider {
    fn of(endpoints: &Endpoints, client: &Client) -> Option<Self> {
        let site = endpoints.sites.iter().find(|site| site.name == client.site)?;
        (!site.gateways.is_empty()).then(|| Self {
            client: client.name.clone(),
            gateways: site.gateways.iter().map(|gateway| gateway.http.clone()).collect(),
            token: client.token.clone(),
            bucket: format!("{}-public", bucket_of(&client.name)),
        })
    }

    /// How the provider is heard at home.
    pub fn protocol(&self) -> Protocol {
        Protocol::Native { token: self.token.clone(), bucket: self.bucket.clone() }
    }

    /// How another client reads what was published.
    pub fn protocol_for(&self, reader: &Protocol) -> Protocol {
        match reader {
            Protocol::Native { token, .. } => {
                Protocol::Native { token: token.clone(), bucket: self.bucket.clone() }
            }
            other => other.clone(),
        }
    }
}

/// How the client comes to another site.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Roaming {
    /// Where mobile access is, `http://host:port`.
    pub mobile_access: String,
    pub card: Card,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// Addresses of the gateways, `http://host:port`; connections are spread over them.
    pub gateways: Vec<String>,
    /// As whom it is driven; empty where nobody is told apart.
    pub client: String,
    pub protocol: Protocol,
    pub books: Option<Books>,
    pub watched: Vec<Watched>,
    /// `None`: nothing but its gateways is known of the system.
    pub control: Option<Control>,
    /// `None`: no client of another site is known.
    #[serde(default)]
    pub provider: Option<Provider>,
    /// `None`: the client has no card.
    #[serde(default)]
    pub roaming: Option<Roaming>,
}

impl Target {
    /// The gateways of a client's home site, as `endpoints.json` has them.
    pub fn of(endpoints: &Endpoints, client: &str) -> Result<Self, TargetError> {
        let found = endpoints.client(client)?;
        let site = endpoints.sites.iter().find(|s| s.name == found.site && !s.gateways.is_empty());
        let site = site
            .ok_or_else(|| TargetError::NoGateway { site: found.site.clone(), client: client.to_owned() })?;
        let books = match (&endpoints.service_billing, &endpoints.content_billing) {
            (Some(service), Some(content)) => Some(Books {
                service: service.http.clone(),
                content: content.http.clone(),
                admin_token: endpoints.admin_token.clone(),
            }),
            _ => None,
        };
        Ok(Self {
            gateways: site.gateways.iter().map(|g| g.http.clone()).collect(),
            client: client.to_owned(),
            protocol: native(client, &found.token),
            books,
            watched: watched(endpoints),
            control: Some(Control {
                site: site.name.clone(),
                search: endpoints.search.http.clone(),
                admin_token: endpoints.admin_token.clone(),
            }),
            provider: endpoints
                .clients
                .iter()
                .filter(|other| other.site != site.name)
                .find_map(|other| Provider::of(endpoints, other)),
            roaming: None,
        })
    }

    /// With this client as the provider of what is collected, in place of the first one that is at home elsewhere.
    pub fn with_provider(self, endpoints: &Endpoints, name: &str) -> Result<Self, TargetError> {
        let found = endpoints.client(name)?;
        let provider = Provider::of(endpoints, found);
        let site = found.site.clone();
        if self.control.as_ref().is_some_and(|control| control.site == site) {
            return Err(TargetError::SameHome { provider: name.to_owned(), client: self.client, site });
        }
        let provider = provider.ok_or(TargetError::NoGateway { site, client: name.to_owned() })?;
        Ok(Self { provider: Some(provider), ..self })
    }

    /// With the client's card, which lets it roam.
    pub fn with_card(self, endpoints: &Endpoints, card: Card) -> Result<Self, TargetError> {
        if card.client.as_str() != self.client {
            return Err(TargetError::OthersCard { holder: card.client.to_string(), client: self.client });
        }
        let access = endpoints.mobile_access.as_ref().ok_or(TargetError::NoMobileAccess)?;
        Ok(Self { roaming: Some(Roaming { mobile_access: access.http.clone(), card }), ..self })
    }

    /// Any S3 endpoint, `s3://KEY:SECRET@HOST:PORT/BUCKET?region=NAME`, or any HTTP server, `http://HOST:PORT/PREFIX`, whose
    /// files at the prefix are those of the folder `root`. The error does not repeat the address: it may have a secret.
    pub fn parse(text: &str, root: Option<PathBuf>) -> Result<Self, TargetError> {
        let of = |authority: &str, client: &str, protocol| {
            let (_, port) = authority.rsplit_once(':').ok_or(TargetError::Target)?;
            port.parse::<u16>().map_err(|_| TargetError::Target)?;
            let url = format!("http://{authority}");
            Ok(Self {
                watched: Watched::at("server".into(), &url, None).into_iter().collect(),
                gateways: vec![url],
                client: client.to_owned(),
                protocol,
                books: None,
                control: None,
                provider: None,
                roaming: None,
            })
        };
        if let Some(rest) = text.strip_prefix("http://") {
            let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/').to_owned();
            return of(authority, "", Protocol::Plain { prefix, root });
        }
        let parts = text.strip_prefix("s3://").and_then(|rest| {
            // A secret may have slashes and more in it, but no @.
            let (keys, rest) = rest.rsplit_once('@')?;
            let (access_key, secret_key) = keys.split_once(':')?;
            let (authority, bucket) = rest.split_once('/')?;
            let (bucket, region) = bucket.split_once("?region=").unwrap_or((bucket, "us-east-1"));
            let bucket = bucket.trim_end_matches('/');
            let named = !bucket.is_empty() && !bucket.contains(['/', '?']);
            named.then_some((access_key, secret_key, authority, bucket, region))
        });
        let (access_key, secret_key, authority, bucket, region) = parts.ok_or(TargetError::Target)?;
        let credentials = Credentials {
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            region: region.to_owned(),
        };
        of(authority, access_key, Protocol::S3 { credentials, bucket: bucket.to_owned() })
    }

    /// A gateway alone: nothing is known of billing, and of processes only the gateway's.
    pub fn at(url: &str, client: &str, token: &str) -> Self {
        let url = url.trim_end_matches('/');
        Self {
            gateways: vec![url.to_owned()],
            client: client.to_owned(),
            protocol: native(client, token),
            books: None,
            watched: Watched::at("gateway".into(), url, None).into_iter().collect(),
            control: None,
            provider: None,
            roaming: None,
        }
    }
}

impl Watched {
    fn at(server: String, http: &str, admin: Option<String>) -> Option<Self> {
        let port = authority(http).ok().and_then(|(_, port)| port.parse().ok())?;
        Some(Self { server, http: http.to_owned(), port, admin })
    }
}

/// The name of the bucket that a client's runs go into.
pub fn bucket_of(client: &str) -> String {
    format!("bench-{client}")
}

fn native(client: &str, token: &str) -> Protocol {
    Protocol::Native { token: token.to_owned(), bucket: bucket_of(client) }
}

fn watched(endpoints: &Endpoints) -> Vec<Watched> {
    let mut servers: Vec<(String, &ServerAddress)> = vec![("search".into(), &endpoints.search)];
    let single = [
        ("origin", &endpoints.origin),
        ("service-billing", &endpoints.service_billing),
        ("content-billing", &endpoints.content_billing),
        ("mobile-access", &endpoints.mobile_access),
    ];
    for (name, address) in single {
        servers.extend(address.as_ref().map(|address| (name.to_owned(), address)));
    }
    for site in &endpoints.sites {
        let members = site.gateways.iter().chain(&site.nodes);
        servers.extend(members.map(|server| (format!("{}.{}", site.name, server.name), server)));
    }
    let watched =
        |(server, at): (String, &ServerAddress)| Watched::at(server, &at.http, Some(at.admin.clone()));
    servers.into_iter().filter_map(watched).collect()
}

/// Host and port of `http://host:port`.
fn authority(url: &str) -> Result<(&str, &str), TargetError> {
    url.trim_end_matches('/')
        .strip_prefix("http://")
        .filter(|rest| !rest.contains('/'))
        .and_then(|rest| rest.rsplit_once(':'))
        .ok_or_else(|| TargetError::Address { url: url.to_owned() })
}

/// The address to connect to, and the value of the `Host` header.
pub async fn resolve(url: &str) -> Result<(SocketAddr, String), TargetError> {
    let (host, port) = authority(url)?;
    let name = format!("{host}:{port}");
    let found = tokio::net::lookup_host(&name).await.ok().and_then(|mut found| found.next());
    let address = found.ok_or_else(|| TargetError::Address { url: url.to_owned() })?;
    Ok((address, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_driven_at_the_gateways_of_its_home() {
        let text = r#"{
            "search": {"http": "http://127.0.0.1:8000", "admin": "http://127.0.0.1:8001"},
            "service_billing": {"http": "http://127.0.0.1:8004", "admin": "http://127.0.0.1:8005"},
            "content_billing": {"http": "http://127.0.0.1:8006", "admin": "http://127.0.0.1:8007"},
            "console": null, "admin_token": "t",
            "sites": [{"name": "tokyo", "gateways": [
                {"name": "g1", "http": "http://127.0.0.1:8010", "s3": null, "admin": "http://127.0.0.1:8011"}],
                "nodes": [{"name": "n1", "http": "http://127.0.0.1:8012", "admin": "http://127.0.0.1:8013"}]}],
            "clients": [{"name": "bob", "site": "tokyo", "access_key": "a", "secret_key": "s", "token": "b"},
                {"name": "carol", "site": "osaka", "access_key": "a", "secret_key": "s", "token": "c"}]}"#;
        let endpoints: Endpoints = serde_json::from_str(text).unwrap();
        let target = Target::of(&endpoints, "bob").unwrap();
        assert_eq!(target.gateways, ["http://127.0.0.1:8010"]);
        let Protocol::Native { token, bucket } = &target.protocol else { panic!("{:?}", target.protocol) };
        assert_eq!((token.as_str(), bucket.as_str()), ("b", "bench-bob"));
        let ports: Vec<u16> = target.watched.iter().map(|w| w.port).collect();
        assert_eq!(ports, [8000, 8004, 8006, 8010, 8012]);
        assert!(target.books.is_some());
        let error = Target::of(&endpoints, "zoe").unwrap_err().to_string();
        assert!(error.contains("bob, carol"), "{error}");
        assert!(Target::of(&endpoints, "carol").is_err());
        assert!(target.provider.is_none(), "carol's home has no gateway");
        assert!(authority("https://x").is_err() && authority("http://x:1/p").is_err());
    }
    #[test]
    fn other_servers_are_targets_too() {
        let target = Target::parse("s3://AKIA:a/b+c:d@127.0.0.1:3900/bench?region=garage", None).unwrap();
        assert_eq!((target.gateways[0].as_str(), target.client.as_str()), ("http://127.0.0.1:3900", "AKIA"));
        let Protocol::S3 { credentials, bucket } = target.protocol else { panic!("it is S3") };
        assert_eq!((credentials.secret_key.as_str(), credentials.region.as_str()), ("a/b+c:d", "garage"));
        assert_eq!((bucket.as_str(), target.watched[0].port), ("bench", 3900));
        let target = Target::parse("http://localhost:80/a/b/", Some("/srv".into())).unwrap();
        assert!(matches!(target.protocol, Protocol::Plain { prefix, root: Some(_) } if prefix == "a/b"));
        for bad in [
            "",
            "ftp://x:1/",
            "http://x",
            "s3://x:1/b",
            "s3://k:s@h:1",
            "s3://k:s@h:1/",
            "s3://k:s@h/b",
            "s3://k:s@h:1/b/c",
        ] {
            let error = Target::parse(bad, None).unwrap_err().to_string();
            assert!(error.contains("s3://KEY:SECRET@"), "{bad}: {error}");
        }
    }
}
