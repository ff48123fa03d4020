//! `client` and `bucket`: the directory of clients and buckets, which search keeps.

use common::api::search::{NewBucket, NewClient, Visibility};
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
    /// Let a client ask for nothing more
    Disable {
        name: ClientId,
        #[command(flatten)]
        operator: OperatorArgs,
    },
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
            ]);
            for client in clients {
                let state = if client.disabled { "disabled" } else { "active" };
                table.row(vec![
                    client.client.to_string(),
                    client.site.to_string(),
                    state.to_owned(),
                    client.created.to_string(),
                ]);
            }
            output::text_block(&table.render(0))
        }
        ClientCommand::Disable { name, operator } => {
            operator.connect()?.search().disable_client(&name).await?;
            output::line(&format!("client {name} is disabled"))
        }
    }
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
