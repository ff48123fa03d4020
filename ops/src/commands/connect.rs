//! `connect`: a client away from home finds mobile access, has its card prove who it is, and learns which site to ask.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use common::api::mobile_access::{
    AccessClient, AccessRequest, CardAnswer, ChallengeRequest, NearbyGateway, REQUEST_PORT,
};
use common::card::{PrivateKey, Signer};
use common::client::{CallError, HttpClient};
use common::error::ErrorCode;
use common::id::{ClientId, ServerName, SiteId};
use common::name::ContentName;
use common::time::UnixMillis;
use common::visit::{Challenge, Nonce, answer_message};
use serde::Serialize;
use tokio::time::Instant;

use crate::broadcast::{self, Asking};
use crate::card::CardFile;
use crate::commands::content;
use crate::error::Failure;
use crate::http::GatewayClient;
use crate::output::{self, OutputArgs};
use crate::visit::OpenVisit;

/// Once one server has answered, the others of a network do so within this time.
const OTHERS_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct ConnectArgs {
    /// The card: a file made by `dozo card new`
    #[arg(long, value_name = "FILE")]
    card: PathBuf,
    /// File with the PIN, for a card in a token
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
    /// Ask this mobile access server, without a broadcast
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "addresses")]
    mobile_access: Option<String>,
    /// Broadcast to this address; may be repeated. By default to this machine and all networks that it is in
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<String>,
    /// Longest wait for mobile access servers, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 3000)]
    wait_ms: u64,
    /// Where to keep the visit; by default beside the card, ending in .visit
    #[arg(long, value_name = "FILE")]
    visit: Option<PathBuf>,
    /// Get a content at once, and write it to the file: by default the last part of the key, here; to `-`, standard
    /// output, which then has nothing else
    #[arg(long, num_args = 1..=2, value_names = ["BUCKET/KEY", "FILE"])]
    get: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `--json` prints. No secret is in it: those are in the visit's file.
#[derive(Serialize)]
struct Connected<'a> {
    client: &'a ClientId,
    home: &'a SiteId,
    site: &'a SiteId,
    mobile_access: &'a ServerName,
    gateway: Option<&'a str>,
    gateways: &'a [NearbyGateway],
    visit: String,
    expires: UnixMillis,
    took_ms: f64,
}

pub async fn connect(args: ConnectArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    let get = match args.get.as_slice() {
        [] => None,
        [name, file @ ..] => Some((name.parse::<ContentName>()?, file.first().map(PathBuf::from))),
    };
    let file = args.visit.clone().unwrap_or_else(|| args.card.with_extension("visit"));
    if file == args.card {
        return Err(Failure::usage("the visit would be written over the card")
            .with_next_step("name another file for it: --visit FILE"));
    }
    let card = CardFile::read(&args.card)?;
    let visit = find_and_connect(&args, &card).await?;
    visit.write(&file)?;
    let took = begun.elapsed();
    let is_piped = matches!(&get, Some((_, Some(target))) if target.as_os_str() == "-");
    if is_piped {
        // Standard output is the content's.
    } else if args.output.json {
        output::json(&Connected {
            client: visit.client(),
            home: visit.home(),
            site: visit.site(),
            mobile_access: visit.mobile_access(),
            gateway: visit.gateways().first().map(|gateway| gateway.http.as_str()),
            gateways: visit.gateways(),
            visit: file.display().to_string(),
            expires: visit.expires(),
            took_ms: took.as_secs_f64() * 1000.0,
        })?;
    } else {
        output::text_block(&told(&visit, &file, took))?;
    }
    match get {
        None => Ok(()),
        Some((name, target)) => {
            content::fetch(GatewayClient::of_visit(visit), &name, target, !args.output.json).await
        }
    }
}

fn told(visit: &OpenVisit, file: &std::path::Path, took: Duration) -> String {
    let gateways: Vec<&str> = visit.gateways().iter().map(|gateway| gateway.http.as_str()).collect();
    format!(
        "client {} of {} is served at {}\n  mobile access  {}\n  gateways       {}\n  visit          {}\n  \
         expires        {} ({} min)\n  took           {:.1} ms\n",
        visit.client(),
        visit.home(),
        visit.site(),
        visit.mobile_access(),
        gateways.join(" "),
        file.display(),
        visit.expires(),
        visit.life().as_secs() / 60,
        took.as_secs_f64() * 1000.0,
    )
}

/// Tries the mobile access servers that answer, the nearest first, until one brings the client somewhere.
async fn find_and_connect(args: &ConnectArgs, card: &CardFile) -> Result<OpenVisit, Failure> {
    let http = HttpClient::new();
    if let Some(address) = &args.mobile_access {
        let base = if address.contains("://") { address.clone() } else { format!("http://{address}") };
        return match connect_at(&AccessClient::new(http, &base), None, card, args).await {
            Ok(visit) => Ok(visit),
            Err(Refusal::Here(failure) | Refusal::Everywhere(failure)) => Err(failure),
        };
    }
    let addresses = match args.addresses.as_slice() {
        [] => broadcast::addresses(REQUEST_PORT),
        given => given.iter().map(|text| broadcast_address(text)).collect::<Result<_, _>>()?,
    };
    let request = AccessRequest {
        client: card.client.clone(),
        home: card.home.clone(),
        card: card.public_key,
        nonce: Nonce::generate(),
    };
    let mut asking = Asking::begin(request, addresses).await?;
    let mut deadline = Instant::now() + Duration::from_millis(args.wait_ms);
    let mut refused = None;
    while let Some(answer) = asking.next(deadline).await {
        let access = AccessClient::new(http.clone(), &answer.http);
        match connect_at(&access, Some(&answer.name), card, args).await {
            Ok(visit) => return Ok(visit),
            Err(Refusal::Everywhere(failure)) => return Err(failure),
            Err(Refusal::Here(failure)) => {
                refused = Some(failure);
                deadline = deadline.min(Instant::now() + OTHERS_WAIT);
            }
        }
    }
    Err(refused.unwrap_or_else(|| asking.nobody()))
}

fn broadcast_address(text: &str) -> Result<SocketAddr, Failure> {
    let with_port = if text.contains(':') { text.to_owned() } else { format!("{text}:{REQUEST_PORT}") };
    let mut found = with_port
        .to_socket_addrs()
        .map_err(|e| Failure::usage(format!("{text:?} is not an address of the form HOST:PORT: {e}")))?;
    found.find(SocketAddr::is_ipv4).ok_or_else(|| Failure::usage(format!("{text:?} has no IPv4 address")))
}

/// Why one mobile access server did not help.
enum Refusal {
    /// Another one may.
    Here(Failure),
    /// It is about the card.
    Everywhere(Failure),
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        let elsewhere = error.is_retryable() || error.code() == Some(ErrorCode::SiteNotFound);
        let failure = Failure::from(error);
        if elsewhere { Self::Here(failure) } else { Self::Everywhere(failure) }
    }
}

/// The whole way through one mobile access server; `name` is what it calls itself.
async fn connect_at(
    access: &AccessClient,
    name: Option<&ServerName>,
    card: &CardFile,
    args: &ConnectArgs,
) -> Result<OpenVisit, Refusal> {
    let question =
        ChallengeRequest { client: card.client.clone(), home: card.home.clone(), card: card.public_key };
    let text = access.challenge(&question).await?.challenge;
    if !is_for(&text, &question, name) {
        let failure = Failure::new("mobile access wants the card to sign something that is not for it");
        return Err(Refusal::Here(failure.with_next_step("ask another one, with --mobile-access HOST:PORT")));
    }
    let session = PrivateKey::generate();
    let signature =
        sign(card, args, answer_message(&text, &session.public_key())).await.map_err(Refusal::Everywhere)?;
    let answer = CardAnswer { challenge: text, session: session.public_key(), signature };
    let visit = access.answer(&answer).await?;
    Ok(OpenVisit::new(card.client.clone(), card.public_key, visit, session))
}

/// A card signs only what is about itself, its client and its home, and who asks for it is who answered.
fn is_for(challenge: &str, question: &ChallengeRequest, mobile_access: Option<&ServerName>) -> bool {
    let Some(challenge) = Challenge::read(challenge) else { return false };
    challenge.is_for(question) && mobile_access.is_none_or(|name| name == &challenge.mobile_access)
}

/// Has the card sign, wherever its key is.
async fn sign(
    card: &CardFile,
    args: &ConnectArgs,
    message: Vec<u8>,
) -> Result<common::card::Signature, Failure> {
    let (card, pin_file) = (card.clone(), args.pin_file.clone());
    let signed = tokio::task::spawn_blocking(move || {
        let signer = card.open(pin_file.as_deref())?;
        signer.sign(&message).map_err(|error| Failure::new(error.to_string()))
    });
    signed.await.map_err(|e| Failure::new(format!("the card did not sign: {e}")))?
}
