//! `card`: makes cards for clients, lists them, shuts them out.

use std::path::PathBuf;

use common::api::search::{CardRecord, DisableCards, NewCard};
use common::card::{PrivateKey, PublicKey};
use common::id::{ClientId, SiteId};

use crate::card::{CardFile, TokenPlace, generate_in_token};
use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::OperatorArgs;

#[derive(Debug, clap::Subcommand)]
pub enum CardCommand {
    /// Make a card for a client: with it the client is served by any site near it, as at home
    New(NewArgs),
    /// List cards
    List {
        /// Only this client's
        client: Option<ClientId>,
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Shut out a client's cards for good
    Disable {
        client: ClientId,
        /// Only the card with this public key, as `dozo card list --json` shows it
        #[arg(long, value_name = "KEY")]
        card: Option<PublicKey>,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

#[derive(Debug, clap::Args)]
pub struct NewArgs {
    /// The card's file, which must not be there yet
    pub file: PathBuf,
    /// Whose card it is
    #[arg(long)]
    pub client: ClientId,
    #[command(flatten)]
    pub token: TokenArgs,
    #[command(flatten)]
    pub operator: OperatorArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub struct TokenArgs {
    /// Make the key in a token, through this PKCS#11 library; the file then only says where it is
    #[arg(long, value_name = "LIBRARY", requires_all = ["token", "object", "pin_file"])]
    pkcs11: Option<PathBuf>,
    /// The token's label
    #[arg(long, value_name = "LABEL", requires = "pkcs11")]
    token: Option<String>,
    /// The key's name in the token
    #[arg(long, value_name = "LABEL", requires = "pkcs11")]
    object: Option<String>,
    /// File with the token's PIN
    #[arg(long, value_name = "FILE", requires = "pkcs11")]
    pin_file: Option<PathBuf>,
}

impl TokenArgs {
    fn place(&self) -> Option<TokenPlace> {
        let (module, token, object) = (self.pkcs11.clone()?, self.token.clone()?, self.object.clone()?);
        Some(TokenPlace { module, token, object })
    }
}

pub async fn card(command: CardCommand) -> Result<(), Failure> {
    match command {
        CardCommand::New(args) => new(args).await,
        CardCommand::List { client, operator, output } => {
            let cards = operator.connect()?.search().cards(client.as_ref()).await?;
            if output.json {
                return output::json(&cards);
            }
            let columns = ["client", "card", "state", "created"].map(|name| (name, Align::Left));
            let mut table = Table::new(&columns);
            for CardRecord { card, client, disabled, created } in cards {
                let state = if disabled { "disabled" } else { "active" };
                table.row(vec![client.to_string(), card.short(), state.to_owned(), created.to_string()]);
            }
            output::text_block(&table.render(0))
        }
        CardCommand::Disable { client, card, operator } => {
            let which = DisableCards { client: client.clone(), card };
            for card in operator.connect()?.search().disable_cards(&which).await? {
                output::line(&format!("card {} of client {client} is disabled", card.card.short()))?;
            }
            Ok(())
        }
    }
}

async fn new(args: NewArgs) -> Result<(), Failure> {
    let search = args.operator.connect()?.search();
    let known = search.clients().await?.into_iter().find(|known| known.client == args.client);
    let known = known.ok_or_else(|| {
        Failure::new(format!("there is no client {}", args.client))
            .with_next_step("`dozo client list` shows the clients, `dozo client add` makes one")
    })?;
    let (file, client, place) = (args.file.clone(), known.client, args.token.place());
    let pin_file = args.token.pin_file.clone();
    // A token takes its time.
    let made = tokio::task::spawn_blocking(move || make(file, client, known.site, place, pin_file)).await;
    let card = made.map_err(|e| Failure::new(format!("making the card: {e}")))??;
    let new = NewCard { client: card.client.clone(), card: card.public_key };
    let record = search.add_card(&new).await.map_err(|error| {
        let failure = Failure::from(error);
        // Nobody knows this card, so nothing is lost with it.
        match std::fs::remove_file(&args.file) {
            Ok(()) => failure,
            Err(e) => {
                failure.with_next_step(format!("remove {}, which is no card: {e}", args.file.display()))
            }
        }
    })?;
    if args.output.json {
        return output::json(&record);
    }
    output::text_block(&format!(
        "{}\n  client  {}\n  home    {}\n  card    {}\n",
        args.file.display(),
        card.client,
        card.home,
        card.public_key,
    ))
}

/// Makes the key and the file; the file first if the key is in it, so that no key is made in a token for nothing.
fn make(
    file: PathBuf,
    client: ClientId,
    home: SiteId,
    place: Option<TokenPlace>,
    pin_file: Option<PathBuf>,
) -> Result<CardFile, Failure> {
    let card = match place {
        None => CardFile::with_key(client, home, &PrivateKey::generate()),
        Some(place) => {
            if file.exists() {
                return Err(Failure::new(format!("{} is there already", file.display()))
                    .with_next_step("choose another file name, or move that one away"));
            }
            let public = generate_in_token(&place, pin_file.as_deref())?;
            CardFile::in_token(client, home, public, place)
        }
    };
    card.write_new(&file)?;
    Ok(card)
}
