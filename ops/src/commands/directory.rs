//! `client` and `bucket`: the directory of clients and buckets, which search keeps.

use common::api::search::{ClientLimits, NewBucket, NewClient, Visibility};
use common::config::{parse_bytes, show_bytes};
use common::id::{BucketName, ClientId, SiteId};

use crate::endpoints::{ClientEndpoint, Keyring};
use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::OperatorArgs;

#[derive(Debug, clap::Subcommand)]
pub enum ClientCommand {
    /// Make a client; its keys are printed, and kept beside the endpoints file
    Add {
        name: ClientId,
        /// Home site
        #[arg(long)]
        site: SiteId,
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the clients
    List {
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Bound what a client holds and takes; what is not named stays as it is
    Limit {
        name: ClientId,
        /// Bytes that its library may hold, as in 20GiB; `none` for no bound
        #[arg(long, value_name = "BYTES|none", value_parser = bytes_or_none)]
        quota_bytes: Option<Bound>,
        /// Contents that its library may hold
        #[arg(long, value_name = "N|none", value_parser = number_or_none)]
        quota_contents: Option<Bound>,
        /// Requests a second at each gateway; more are refused
        #[arg(long, value_name = "N|none", value_parser = number_or_none)]
        requests_per_s: Option<Bound>,
        /// Bytes a second at each gateway, as in 10MiB; more are slowed down
        #[arg(long, value_name = "BYTES|none", value_parser = bytes_or_none)]
        bytes_per_s: Option<Bound>,
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Let a client ask for nothing more
    Disable {
        name: ClientId,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

/// A bound that is given, or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound(Option<u64>);

fn number_or_none(text: &str) -> Result<Bound, String> {
    match text {
        "none" => Ok(Bound(None)),
        number => {
            number.parse().map(|number| Bound(Some(number))).map_err(|_| "a number, or none".to_owned())
        }
    }
}

fn bytes_or_none(text: &str) -> Result<Bound, String> {
    match text {
        "none" => Ok(Bound(None)),
        bytes => parse_bytes(bytes).map(|bytes| Bound(Some(bytes))).map_err(|error| error.to_string()),
    }
}

#[derive(Debug, clap::Subcommand)]
pub enum BucketCommand {
    /// Make a bucket, or change who may read it
    Add {
        name: BucketName,
        /// The client that it belongs to, the provider of its contents
        #[arg(long)]
        client: ClientId,
        /// Every client may read it; without this only its provider
        #[arg(long)]
        public: bool,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// List the buckets
    List {
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub async fn client(command: ClientCommand) -> Result<(), Failure> {
    match command {
        ClientCommand::Add { name, site, operator, output } => add_client(name, site, operator, output).await,
        ClientCommand::List { operator, output } => {
            let clients = operator.connect()?.search().clients().await?;
            if output.json {
                return output::json(&clients);
            }
            let mut table = Table::new(&[
                ("client", Align::Left),
                ("site", Align::Left),
                ("state", Align::Left),
                ("created", Align::Left),
                ("quota", Align::Right),
                ("contents", Align::Right),
                ("requests/s", Align::Right),
                ("bytes/s", Align::Right),
            ]);
            for client in clients {
                let ClientLimits { quota_bytes, quota_contents, requests_per_s, bytes_per_s } = client.limits;
                let state = if client.disabled { "disabled" } else { "active" };
                table.row(vec![
                    client.client.to_string(),
                    client.site.to_string(),
                    state.to_owned(),
                    client.created.to_string(),
                    show_bound(quota_bytes, show_bytes),
                    show_bound(quota_contents, |n| n.to_string()),
                    show_bound(requests_per_s, |n| n.to_string()),
                    show_bound(bytes_per_s, show_bytes),
                ]);
            }
            output::text_block(&table.render(0))
        }
        ClientCommand::Limit {
            name,
            quota_bytes,
            quota_contents,
            requests_per_s,
            bytes_per_s,
            operator,
            output,
        } => {
            let search = operator.connect()?.search();
            let known = search.clients().await?.into_iter().find(|client| client.client == name);
            let before = known.map(|client| client.limits).unwrap_or_default();
            let limits = ClientLimits {
                quota_bytes: quota_bytes.map_or(before.quota_bytes, |bound| bound.0),
                quota_contents: quota_contents.map_or(before.quota_contents, |bound| bound.0),
                requests_per_s: requests_per_s.map_or(before.requests_per_s, |bound| bound.0),
                bytes_per_s: bytes_per_s.map_or(before.bytes_per_s, |bound| bound.0),
            };
            let record = search.limit_client(&name, &limits).await?;
            if output.json {
                return output::json(&record);
            }
            output::text_block(&format!(
                "client {name}\n  quota       {}\n  contents    {}\n  requests/s  {}\n  bytes/s     {}\n",
                show_bound(record.limits.quota_bytes, show_bytes),
                show_bound(record.limits.quota_contents, |n| n.to_string()),
                show_bound(record.limits.requests_per_s, |n| n.to_string()),
                show_bound(record.limits.bytes_per_s, show_bytes),
            ))
        }
        ClientCommand::Disable { name, operator } => {
            operator.connect()?.search().disable_client(&name).await?;
            output::line(&format!("client {name} is disabled"))
        }
    }
}

fn show_bound(bound: Option<u64>, show: impl Fn(u64) -> String) -> String {
    bound.map_or_else(|| "none".to_owned(), show)
}

async fn add_client(
    name: ClientId,
    site: SiteId,
    operator: OperatorArgs,
    output: OutputArgs,
) -> Result<(), Failure> {
    let mut session = operator.connect()?;
    let new = NewClient { client: name.clone(), site };
    let client = ClientEndpoint::from(session.search().create_client(&new).await?);
    // Printed first: search does not show the keys again.
    if output.json {
        output::json(&client)?;
    } else {
        output::text_block(&format!(
            "client {} at site {}\n  token       {}\n  access key  {}\n  secret key  {}\n",
            client.name, client.site, client.token, client.access_key, client.secret_key,
        ))?;
    }
    let not_kept = |failure: Failure| {
        failure.with_next_step(format!("keep the keys printed above: `--as {name}` does not know them"))
    };
    Keyring::open(operator.endpoints.folder())
        .and_then(|mut ring| ring.add(client.clone()))
        .map_err(not_kept)?;
    session.endpoints.clients.retain(|c| c.name != client.name);
    session.endpoints.clients.push(client);
    session.endpoints.write(&operator.endpoints.endpoints)
}

pub async fn bucket(command: BucketCommand) -> Result<(), Failure> {
    match command {
        BucketCommand::Add { name, client, public, operator } => {
            let visibility = if public { Visibility::Public } else { Visibility::Private };
            let new = NewBucket { provider: client.clone(), visibility };
            operator.connect()?.search().put_bucket(&name, &new).await?;
            output::line(&format!("bucket {name} of client {client}, {}", show_visibility(visibility)))
        }
        BucketCommand::List { operator, output } => {
            let buckets = operator.connect()?.search().buckets().await?;
            if output.json {
                return output::json(&buckets);
            }
            let mut table = Table::new(&[
                ("bucket", Align::Left),
                ("provider", Align::Left),
                ("visibility", Align::Left),
                ("created", Align::Left),
            ]);
            for bucket in buckets {
                table.row(vec![
                    bucket.bucket.to_string(),
                    bucket.provider.to_string(),
                    show_visibility(bucket.visibility).to_owned(),
                    bucket.created.to_string(),
                ]);
            }
            output::text_block(&table.render(0))
        }
    }
}

fn show_visibility(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Private => "private",
        Visibility::Public => "public",
    }
}
