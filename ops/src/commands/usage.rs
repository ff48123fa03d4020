//! `usage`: what a client, or every client, holds at its home site, what was delivered to it, and what that costs so far.

use std::time::Duration;

use common::api::billing::Usage;
use common::api::gateway::{ClientUsage, SiteUsage};
use common::api::peer::PeerClient;
use common::cluster::{MapEpoch, SiteEntry};
use common::config::show_bytes;
use common::id::{ClientId, SiteId};

use crate::error::Failure;
use crate::http::GatewayClient;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::{Operator, OperatorArgs, gateway_client};

#[derive(Debug, clap::Args)]
pub struct UsageArgs {
    /// All clients of all sites if absent
    pub client: Option<ClientId>,
    #[command(flatten)]
    pub operator: OperatorArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn usage(args: UsageArgs) -> Result<(), Failure> {
    let Some(client) = &args.client else { return all(&args).await };
    let usage = ask(&args, client).await?;
    if args.output.json {
        return output::json(&usage);
    }
    let size = |bytes: u64| format!("{} ({bytes} bytes)", show_bytes(bytes));
    output::text_block(&format!(
        "client {}\n  contents    {}\n  logical     {}\n  unique      {}\n  shared      {}, its part of {}\n\
        \x20 physical    {}\n  savings     {}\n  deliveries  {}\n\
         service fee of this month\n{}content fee of this month\n{}",
        usage.client,
        usage.contents,
        size(usage.logical_bytes),
        size(usage.unique_bytes),
        size(usage.shared_bytes),
        size(usage.shared_held_bytes),
        size(usage.physical_bytes),
        size(usage.savings_bytes),
        usage.deliveries,
        fee(usage.service_usage.as_ref()),
        fee(usage.content_usage.as_ref()),
    ))
}

/// A table of all clients, site by site.
async fn all(args: &UsageArgs) -> Result<(), Failure> {
    let session = args.operator.connect()?;
    let map = session.search().map(MapEpoch(0), Duration::ZERO).await?;
    let mut sites = Vec::new();
    for site in &map.sites {
        sites.push(ask_site(&session, site).await?);
    }
    if args.output.json {
        return output::json(&sites);
    }
    let mut table = Table::new(&[
        ("site", Align::Left),
        ("client", Align::Left),
        ("contents", Align::Right),
        ("logical", Align::Right),
        ("unique", Align::Right),
        ("shared", Align::Right),
        ("physical", Align::Right),
        ("savings", Align::Right),
        ("deliveries", Align::Right),
    ]);
    for site in &sites {
        for client in &site.clients {
            let visiting = if client.visiting { " (visiting)" } else { "" };
            let name = format!("{}{visiting}", client.client);
            table.row(Figures::of(client).row(&site.site, &name));
        }
        table.row(Figures::of_site(site).row(&site.site, "(all)"));
    }
    output::text_block(&table.render(0))
}

/// Asks the site's gateways in turn until one answers.
async fn ask_site(session: &Operator, site: &SiteEntry) -> Result<SiteUsage, Failure> {
    let mut failure = Failure::new(format!("site {} has no gateway", site.id));
    for gateway in &site.gateways {
        match PeerClient::gateway(session.server.clone(), &gateway.http).usages().await {
            Ok(usage) => return Ok(usage),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

/// Figures of one client or of a site, as a row shows them.
struct Figures {
    contents: u64,
    logical_bytes: u64,
    unique_bytes: u64,
    shared_bytes: u64,
    physical_bytes: u64,
    deliveries: u64,
}

impl Figures {
    fn of(client: &ClientUsage) -> Self {
        Self {
            contents: client.contents,
            logical_bytes: client.logical_bytes,
            unique_bytes: client.unique_bytes,
            shared_bytes: client.shared_bytes,
            physical_bytes: client.physical_bytes,
            deliveries: client.deliveries,
        }
    }

    /// What the clients take comes to what the site's chunks take.
    fn of_site(site: &SiteUsage) -> Self {
        let sum = |of: fn(&ClientUsage) -> u64| site.clients.iter().map(of).sum();
        Self {
            contents: sum(|client| client.contents),
            logical_bytes: sum(|client| client.logical_bytes),
            unique_bytes: site.unique_bytes,
            shared_bytes: site.shared_bytes,
            physical_bytes: site.physical_bytes,
            deliveries: sum(|client| client.deliveries),
        }
    }

    fn row(&self, site: &SiteId, client: &str) -> Vec<String> {
        vec![
            site.to_string(),
            client.to_owned(),
            self.contents.to_string(),
            show_bytes(self.logical_bytes),
            show_bytes(self.unique_bytes),
            show_bytes(self.shared_bytes),
            show_bytes(self.physical_bytes),
            show_bytes(self.logical_bytes.saturating_sub(self.physical_bytes)),
            self.deliveries.to_string(),
        ]
    }
}

/// Asks the client's home site with the client's own token if it is known here, else as the operator.
async fn ask(args: &UsageArgs, wanted: &ClientId) -> Result<ClientUsage, Failure> {
    let endpoints = args.operator.endpoints.read()?;
    if let Some(client) = endpoints.client(wanted) {
        return gateway_client(&endpoints, client, None)?.get_json("/v1/usage").await;
    }
    let clients = args.operator.connect()?.search().clients().await?;
    let Some(client) = clients.iter().find(|c| &c.client == wanted) else {
        return Err(Failure::new(format!("there is no client {wanted}"))
            .with_next_step("`dozo client list` shows the clients"));
    };
    let site = endpoints.site(&client.site);
    let bases = site.iter().flat_map(|s| &s.gateways).map(|g| g.http.clone()).collect();
    let path = format!("/v1/peer/usage?client={}", client.client);
    GatewayClient::new(bases, &endpoints.admin_token).get_json(&path).await
}

fn fee(usage: Option<&Usage>) -> String {
    match usage {
        Some(usage) => show_usage(usage),
        None => "  the billing server does not answer\n".to_owned(),
    }
}

/// A billing server's view of one client and month, a line each.
pub fn show_usage(usage: &Usage) -> String {
    let counts = |map: &std::collections::BTreeMap<String, u64>| {
        let each: Vec<String> = map.iter().map(|(name, count)| format!("{count} {name}")).collect();
        if each.is_empty() { "none".to_owned() } else { each.join(", ") }
    };
    let charges: Vec<String> = usage.charges.iter().map(ToString::to_string).collect();
    format!(
        "  period      {}\n  booked      {}\n  charged as  {}\n  sent        {} bytes\n  charges     {}\n",
        usage.period,
        counts(&usage.deliveries),
        counts(&usage.classes),
        usage.bytes_sent,
        if charges.is_empty() { "none".to_owned() } else { charges.join(", ") },
    )
}
