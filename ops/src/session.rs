//! Who the command line speaks as: a client with its token, or the operator with the cluster's secret. Both find
//! the servers through `endpoints.json`.

use std::path::{Path, PathBuf};

use common::api::billing::BillingClient;
use common::api::search::SearchClient;
use common::auth::{ClusterSecret, OPERATOR, Role};
use common::client::{HttpClient, ServerClient};
use common::id::{ClientId, SiteId};
use common::time::Clock;

use crate::endpoints::{ClientEndpoint, ENDPOINTS_FILE, Endpoints};
use crate::error::Failure;
use crate::http::GatewayClient;
use crate::secret::{SECRET_FILE, SecretArgs};
use crate::visit::OpenVisit;

/// Where things are.
#[derive(Debug, Clone, clap::Args)]
pub struct EndpointsArgs {
    /// File that tells where the servers are, as written by `dozo up`
    #[arg(long, value_name = "FILE", env = "DOZO_ENDPOINTS", default_value = "dozo-data/endpoints.json")]
    pub endpoints: PathBuf,
}

impl EndpointsArgs {
    pub fn read(&self) -> Result<Endpoints, Failure> {
        Endpoints::read(&self.endpoints)
    }

    /// The folder that the file is in.
    pub fn folder(&self) -> &Path {
        match self.endpoints.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }
}

/// For commands of a client.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientArgs {
    /// The client to act as
    #[arg(long = "as", value_name = "CLIENT")]
    pub client: ClientId,
    /// Ask this site's gateways instead of the home site's
    #[arg(long, value_name = "SITE")]
    pub site: Option<SiteId>,
    #[command(flatten)]
    pub endpoints: EndpointsArgs,
}

impl ClientArgs {
    pub fn connect(&self) -> Result<GatewayClient, Failure> {
        let endpoints = self.endpoints.read()?;
        let client = known_client(&endpoints, &self.client)?;
        gateway_client(&endpoints, client, self.site.as_ref())
    }
}

/// For commands of a client that may be away from home.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "reader", required = true, multiple = false, args = ["client", "visit"])]
pub struct ReaderArgs {
    /// The client to act as
    #[arg(long = "as", id = "client", value_name = "CLIENT")]
    client: Option<ClientId>,
    /// Act as the client of this visit, at the site that it visits: a file written by `dozo connect`
    #[arg(long, value_name = "FILE")]
    visit: Option<PathBuf>,
    /// Ask this site's gateways instead of the home site's
    #[arg(long, value_name = "SITE", conflicts_with = "visit")]
    site: Option<SiteId>,
    #[command(flatten)]
    endpoints: EndpointsArgs,
}

impl ReaderArgs {
    pub fn connect(self) -> Result<GatewayClient, Failure> {
        match (self.client, self.visit) {
            (_, Some(visit)) => Ok(GatewayClient::of_visit(OpenVisit::read(&visit)?)),
            (Some(client), None) => {
                ClientArgs { client, site: self.site, endpoints: self.endpoints }.connect()
            }
            (None, None) => Err(Failure::usage("who asks is not said: give --as CLIENT or --visit FILE")),
        }
    }
}

/// The client's keys, if they were made here.
pub fn known_client<'a>(endpoints: &'a Endpoints, name: &ClientId) -> Result<&'a ClientEndpoint, Failure> {
    endpoints.client(name).ok_or_else(|| {
        let known: Vec<&str> = endpoints.clients.iter().map(|c| c.name.as_str()).collect();
        Failure::new(format!(
            "the keys of client {name} are not in {ENDPOINTS_FILE}; it has: {}",
            known.join(", ")
        ))
        .with_next_step(format!("`dozo client add {name} --site SITE` makes a client"))
    })
}

/// Gateways of `site`, or of the client's home site.
pub fn gateway_client(
    endpoints: &Endpoints,
    client: &ClientEndpoint,
    site: Option<&SiteId>,
) -> Result<GatewayClient, Failure> {
    let wanted = site.unwrap_or(&client.site);
    let site = endpoints.site(wanted).ok_or_else(|| {
        let known: Vec<&str> = endpoints.sites.iter().map(|s| s.name.as_str()).collect();
        Failure::new(format!("site {wanted} is not in {ENDPOINTS_FILE}; it has: {}", known.join(", ")))
    })?;
    let bases = site.gateways.iter().map(|g| g.http.clone()).collect();
    Ok(GatewayClient::new(bases, &client.token))
}

/// For commands of the operator.
#[derive(Debug, Clone, clap::Args)]
pub struct OperatorArgs {
    #[command(flatten)]
    pub endpoints: EndpointsArgs,
    #[command(flatten)]
    pub secret: SecretArgs,
}

impl OperatorArgs {
    /// The cluster's secret, by default the one beside the endpoints file.
    pub fn secret(&self) -> Result<ClusterSecret, Failure> {
        self.secret.read(Some(&self.endpoints.folder().join(SECRET_FILE)))
    }

    /// Reads where the servers are, and the secret.
    pub fn connect(&self) -> Result<Operator, Failure> {
        let endpoints = self.endpoints.read()?;
        let secret = self.secret()?;
        let server = ServerClient::new(HttpClient::new(), secret, OPERATOR, Clock::System);
        Ok(Operator { endpoints, server })
    }
}

/// The operator, with signed calls to every server.
pub struct Operator {
    pub endpoints: Endpoints,
    pub server: ServerClient,
}

impl Operator {
    pub fn search(&self) -> SearchClient {
        SearchClient::new(self.server.clone(), &self.endpoints.search.http)
    }

    pub fn service_billing(&self) -> BillingClient {
        BillingClient::new(self.server.clone(), &self.endpoints.service_billing.http, Role::ServiceBilling)
    }

    pub fn content_billing(&self) -> BillingClient {
        BillingClient::new(self.server.clone(), &self.endpoints.content_billing.http, Role::ContentBilling)
    }
}
