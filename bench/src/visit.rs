//! A client's card, and what it opens with it: a visit at the site near mobile access, which is not its home. Requests of
//! visitors are signed one by one.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::api::mobile_access::{AccessClient, CardAnswer, ChallengeRequest, NearbyGateway, Visit};
use common::card::{PrivateKey, Signer as _};
use common::client::CallError;
use common::id::{ClientId, InvalidId, SiteId};
use common::time::{Clock, UnixMillis};
use common::visit::{Challenge, SignedRequest, answer_message};
use serde::{Deserialize, Serialize};

/// A visit is renewed when this share of its life is over.
const RENEW_AT: f64 = 2.0 / 3.0;

/// A card's file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    #[error("the card {path} cannot be read; `dozo card new FILE --client CLIENT` makes one", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a card; `dozo card new FILE --client CLIENT` makes one", path = .path.display())]
    Form { path: PathBuf, source: serde_json::Error },
    #[error(
        "the key of the card {path} is in a token; a load needs a card that is a file, as `dozo card new FILE --client \
         CLIENT` makes it",
        path = .path.display()
    )]
    InToken { path: PathBuf },
    #[error("the card {path} can be read by others; chmod 600 {path}", path = .path.display())]
    ReadByOthers { path: PathBuf },
}

/// A card that is a file. It travels to agents, and has no `Debug` that shows its key.
#[derive(Clone, Serialize, Deserialize)]
pub struct Card {
    pub client: ClientId,
    home: SiteId,
    private_key: String,
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Card").field("client", &self.client).field("home", &self.home).finish_non_exhaustive()
    }
}

impl Card {
    /// A card that nobody knows.
    #[cfg(test)]
    pub fn of(client: &str, home: &str) -> Self {
        let (client, home) = (ClientId::new(client).unwrap(), SiteId::new(home).unwrap());
        Self { client, home, private_key: PrivateKey::generate().seed_hex() }
    }

    pub fn read(path: &Path) -> Result<Self, CardError> {
        #[derive(Deserialize)]
        struct File {
            client: ClientId,
            home: SiteId,
            private_key: Option<String>,
        }
        let path_of = || path.to_owned();
        let unread = |source| CardError::Read { path: path_of(), source };
        let text = std::fs::read(path).map_err(unread)?;
        let file: File =
            serde_json::from_slice(&text).map_err(|source| CardError::Form { path: path_of(), source })?;
        let private_key = file.private_key.ok_or_else(|| CardError::InToken { path: path_of() })?;
        if std::fs::metadata(path).map_err(unread)?.mode() & 0o077 != 0 {
            return Err(CardError::ReadByOthers { path: path_of() });
        }
        Ok(Self { client: file.client, home: file.home, private_key })
    }
}

/// Why there is no visit.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    #[error("mobile access does not let {client} in")]
    Access { client: ClientId, source: CallError },
    #[error(
        "the card of {client} has no private key; make another with `dozo card new FILE --client {client}`"
    )]
    Key { client: ClientId, source: InvalidId },
    #[error("mobile access wants the card of {client} to sign something that is not for it")]
    NotForCard { client: ClientId },
    #[error(
        "mobile access brings {client} to {site}, which is its home; roam as a client of another site, with --as CLIENT \
         and its --card"
    )]
    AtHome { client: ClientId, site: SiteId },
    #[error("the site {site} that {client} was brought to has no gateway")]
    NoGateway { client: ClientId, site: SiteId },
}

impl VisitError {
    /// As errors are counted.
    pub fn code(&self) -> String {
        match self {
            Self::Access { source, .. } => match source {
                CallError::Refused { body, .. } => body.code.to_string(),
                CallError::Timeout { .. } => "timeout".to_owned(),
                CallError::Unreachable { .. } => "connect".to_owned(),
                CallError::Answer { .. } => "answer".to_owned(),
            },
            _ => "visit".to_owned(),
        }
    }
}

/// A visit as one connection shows it: at one gateway of the visited site.
pub struct Pass {
    pub gateway: NearbyGateway,
    token: String,
    session: PrivateKey,
    /// How much the home site's clock, by which requests are signed, is ahead of this machine's.
    clock_ahead_ms: i64,
    pub renew_at: Instant,
}

impl Pass {
    /// Opens a visit, with a session of its own; of the visited site's gateways it takes one by `number`.
    pub async fn open(access: &AccessClient, card: &Card, number: u64) -> Result<Self, VisitError> {
        let client = || card.client.clone();
        let denied = |source| VisitError::Access { client: client(), source };
        let key = PrivateKey::from_seed_hex(&card.private_key)
            .map_err(|source| VisitError::Key { client: client(), source })?;
        let question = ChallengeRequest { client: client(), home: card.home.clone(), card: key.public_key() };
        let challenge = access.challenge(&question).await.map_err(denied)?.challenge;
        if !Challenge::read(&challenge).is_some_and(|read| read.is_for(&question)) {
            return Err(VisitError::NotForCard { client: client() });
        }
        let session = PrivateKey::generate();
        let signature = key.signature(&answer_message(&challenge, &session.public_key()));
        let answer = CardAnswer { challenge, session: session.public_key(), signature };
        let Visit { token, site, gateways, issued, expires, .. } =
            access.answer(&answer).await.map_err(denied)?;
        if site == card.home {
            return Err(VisitError::AtHome { client: client(), site });
        }
        let nth = (number % gateways.len().max(1) as u64) as usize;
        let Some(gateway) = gateways.into_iter().nth(nth) else {
            return Err(VisitError::NoGateway { client: client(), site });
        };
        let here = Clock::System.now();
        Ok(Self {
            gateway,
            token,
            session,
            clock_ahead_ms: issued.0.wrapping_sub(here.0).cast_signed(),
            renew_at: Instant::now() + expires.since(issued).mul_f64(RENEW_AT),
        })
    }

    /// The value of the `Authorization` header of one request.
    pub fn authorization(&self, method: &str, path: &str) -> String {
        let now = UnixMillis(Clock::System.now().0.saturating_add_signed(self.clock_ahead_ms));
        let request = SignedRequest { token: &self.token, gateway: &self.gateway.name, method, path };
        request.authorization(&self.session, now)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use common::client::HttpClient;
    use common::visit::{Authorization, SCHEME};

    use super::*;
    use crate::testing::mobile_access;

    #[tokio::test]
    async fn a_visit_is_opened_by_the_card_of_its_client_and_leads_away_from_home() {
        let life = Duration::from_secs(60);
        let open = async |home: &str, site: &str| {
            let (url, _) = mobile_access(home, site, life).await;
            Pass::open(&AccessClient::new(HttpClient::new(), &url), &Card::of("carol", "osaka"), 7).await
        };
        let pass = open("osaka", "tokyo").await.unwrap();
        let left = pass.renew_at - Instant::now();
        assert!(left > life / 2 && left < life, "{left:?}");
        let header = pass.authorization("GET", "/v1/contents/a/b");
        let given = Authorization::parse(header.strip_prefix(SCHEME).unwrap()).unwrap();
        assert_eq!((given.token, pass.gateway.name.as_str()), ("visit-0", "tokyo.g1"));
        let failed = async |home, site| open(home, site).await.map(drop).unwrap_err().to_string();
        assert!(failed("osaka", "osaka").await.contains("--as CLIENT"));
        assert!(failed("kyoto", "tokyo").await.contains("is not for it"), "it is another's challenge");
    }

    #[test]
    fn a_card_that_cannot_be_used_is_refused_with_the_next_step() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String, mode| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let card =
            |key: &str| format!(r#"{{"format": "dozo card 1", "client": "carol", "home": "osaka", {key}}}"#);
        let seed = PrivateKey::generate().seed_hex();
        let with_key = card(&format!(r#""private_key": "{seed}""#));
        let read = Card::read(&write("good", with_key.clone(), 0o600)).unwrap();
        assert_eq!((read.client.as_str(), read.private_key.as_str()), ("carol", seed.as_str()));
        assert!(!format!("{read:?}").contains(&seed));
        for (path, why) in [
            (write("others", with_key, 0o640), "chmod 600"),
            (write("token", card(r#""pkcs11": {}"#), 0o600), "is in a token"),
            (write("text", "hello".into(), 0o600), "is not a card"),
            (folder.path().join("none"), "dozo card new"),
        ] {
            let error = Card::read(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
