//! `usage`: what a client holds at its home site, what was delivered to it, and what that costs so far.

use common::api::billing::Usage;
use common::api::gateway::ClientUsage;
use common::config::show_bytes;
use common::id::ClientId;

use crate::error::Failure;
use crate::http::GatewayClient;
use crate::output::{self, OutputArgs};
use crate::session::{OperatorArgs, gateway_client};

#[derive(Debug, clap::Args)]
pub struct UsageArgs {
    pub client: ClientId,
    #[command(flatten)]
    pub operator: OperatorArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn usage(args: UsageArgs) -> Result<(), Failure> {
    let usage = ask(&args).await?;
    if args.output.json {
        return output::json(&usage);
    }
    let size = |bytes: u64| format!("{} ({bytes} bytes)", show_bytes(bytes));
    output::text_block(&format!(
        "client {}\n  contents    {}\n  logical     {}\n  unique      {}\n  shared      {}\n  deliveries  {}\n\
         service fee of this month\n{}content fee of this month\n{}",
        usage.client,
        usage.contents,
        size(usage.logical_bytes),
        size(usage.unique_bytes),
        size(usage.shared_bytes),
        usage.deliveries,
        fee(usage.service_usage.as_ref()),
        fee(usage.content_usage.as_ref()),
    ))
}

/// Asks the client's home site with the client's own token if it is known here, else as the operator.
async fn ask(args: &UsageArgs) -> Result<ClientUsage, Failure> {
    let endpoints = args.operator.endpoints.read()?;
    if let Some(client) = endpoints.client(&args.client) {
        return gateway_client(&endpoints, client, None)?.get_json("/v1/usage").await;
    }
    let clients = args.operator.connect()?.search().clients().await?;
    let Some(client) = clients.iter().find(|c| c.client == args.client) else {
        return Err(Failure::new(format!("there is no client {}", args.client))
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
