//! What is sealed and signed when a client visits a site that is not its home.
//!
//! ```text
//! home site ──challenge, sealed──▶ mobile access ──▶ card
//! card ──signs (challenge, session key)──▶ mobile access ──▶ home site: registered? not disabled? first time?
//! home site ──visitor token, sealed, names the session key──▶ mobile access ──▶ client
//! client ──token, request signed by the session key──▶ gateway of the visited site
//! ```
//! Two parties prove two things. A *server* proves that it is of this cluster: what a home site made, any of its gateways
//! and any gateway of the visited site can check without asking anybody ([`ClusterSecret::seal`]). A *client* proves that
//! it has the card: once, by signing the challenge, which also vouches for a session key made for this visit alone. Each
//! request is signed by that one, because a card's token may take a tenth of a second for a signature and a PIN, and
//! because what lies on a disk while the client travels is then worth nothing after [`VISIT_LIFE`].
//!
//! Everything that is signed begins with a text of its own, so no signature stands for anything else. The visited site
//! sees the token, the public keys and signatures: none of them opens anything at home or at another site.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::mobile_access::ChallengeRequest;
use crate::api::search::ClientLimits;
use crate::auth::{ClusterSecret, Seal, TOKEN_AGE_MAX, fill_random};
use crate::card::{PrivateKey, PublicKey, Signature};
use crate::error::{ApiError, ErrorCode};
use crate::id::{ClientId, ServerName, SiteId};
use crate::time::UnixMillis;

/// So long a card may take for its answer: time to type a PIN.
pub const CHALLENGE_LIFE: Duration = Duration::from_secs(60);
/// So long a visitor token is good, unless the home site's gateway is told otherwise.
pub const VISIT_LIFE: Duration = Duration::from_secs(15 * 60);
/// A signed request is taken for so long; a client that goes by the time of its token is that exact.
pub const REQUEST_AGE_MAX: Duration = Duration::from_secs(60);
/// Scheme of the `Authorization` header of a visitor's request.
pub const SCHEME: &str = "Visit ";

const FORMAT: u8 = 1;
const SEAL_LEN: usize = 32;
/// Names have at most 40 bytes each, so nothing sealed here is longer.
const SEALED_LEN_MAX: usize = 1024;

/// Random bytes that make a message another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    pub fn generate() -> Self {
        let mut bytes = [0u8; 16];
        fill_random(&mut bytes);
        Self(bytes)
    }
}

/// Why a visitor is refused, as far as that shows in what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VisitError {
    #[error(
        "the challenge is not one that this home site made for this card; begin anew with `dozo connect`"
    )]
    ChallengeInvalid,
    #[error("the card took longer than {} s to answer; begin anew with `dozo connect`", CHALLENGE_LIFE.as_secs())]
    ChallengeExpired,
    #[error("the signature is not the card's; look whether the card's file or token is the right one")]
    AnswerForged,
    #[error("the visitor token is not one of this cluster for this site; get one with `dozo connect`")]
    TokenInvalid,
    #[error("the visitor token has run out; get a new one with `dozo connect`")]
    TokenExpired,
    #[error("the request is not signed by the session that its visitor token names")]
    RequestForged,
    #[error("the request was signed more than {} s ago, or ahead of time; see that the clock is right and \
             `dozo connect` anew", REQUEST_AGE_MAX.as_secs())]
    RequestLate,
    #[error("the signed request came before; each is good once")]
    RequestReplayed,
}

impl VisitError {
    pub fn code(self) -> ErrorCode {
        match self {
            Self::ChallengeInvalid => ErrorCode::ChallengeInvalid,
            Self::ChallengeExpired => ErrorCode::ChallengeExpired,
            Self::AnswerForged | Self::RequestForged => ErrorCode::SignatureInvalid,
            Self::TokenInvalid => ErrorCode::VisitInvalid,
            Self::TokenExpired => ErrorCode::VisitExpired,
            Self::RequestLate | Self::RequestReplayed => ErrorCode::RequestReplayed,
        }
    }
}

impl From<VisitError> for ApiError {
    fn from(error: VisitError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Format, value (postcard), seal over both; all in hexadecimal.
fn sealed<T: Serialize>(secret: &ClusterSecret, seal: Seal, value: &T) -> String {
    let mut bytes = postcard::to_extend(value, vec![FORMAT]).expect("plain values always encode");
    let mac = secret.seal(seal, &bytes);
    bytes.extend_from_slice(mac.as_bytes());
    to_hex(&bytes)
}

/// The value and what its seal must be compared with; `None` when it does not have its form.
fn read<T: DeserializeOwned>(text: &str) -> Option<(T, Vec<u8>, [u8; SEAL_LEN])> {
    if text.len() > 2 * SEALED_LEN_MAX {
        return None;
    }
    let mut bytes = from_hex(text)?;
    let (body, mac) = bytes.split_last_chunk::<SEAL_LEN>()?;
    let (mac, len) = (*mac, body.len());
    let body = body.strip_prefix(&[FORMAT])?;
    let (value, rest) = postcard::take_from_bytes(body).ok()?;
    if !rest.is_empty() {
        return None;
    }
    bytes.truncate(len);
    Some((value, bytes, mac))
}

fn unsealed<T: DeserializeOwned>(secret: &ClusterSecret, seal: Seal, text: &str) -> Option<T> {
    let (value, body, mac) = read(text)?;
    // blake3::Hash compares in constant time.
    (secret.seal(seal, &body) == blake3::Hash::from_bytes(mac)).then_some(value)
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let mut bytes = vec![0u8; text.len() / 2];
    crate::hash::parse_hex(text, &mut bytes).ok()?;
    Some(bytes)
}

/// A message to be signed: what it is, then its parts, none of which can pass into the next.
fn message(what: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = what.as_bytes().to_vec();
    bytes.push(0);
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// What a home site asks a card to sign. Everybody may read it; only a server of the cluster can make it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    pub home: SiteId,
    pub client: ClientId,
    pub card: PublicKey,
    /// Who asks for the client.
    pub mobile_access: ServerName,
    /// The site that it will visit.
    pub site: SiteId,
    pub issued: UnixMillis,
    pub nonce: Nonce,
}

impl Challenge {
    pub fn seal(&self, secret: &ClusterSecret) -> String {
        sealed(secret, Seal::Challenge, self)
    }

    /// Reads a challenge without asking whether it is genuine: for who passes it on or signs it.
    pub fn read(text: &str) -> Option<Self> {
        read(text).map(|(challenge, ..)| challenge)
    }

    /// Whether it is an answer to this question: a card signs nothing that is not about itself.
    pub fn is_for(&self, question: &ChallengeRequest) -> bool {
        (&self.client, &self.home, &self.card) == (&question.client, &question.home, &question.card)
    }

    /// The challenge, if a server of this cluster made it for `home`, not too long ago.
    pub fn open(
        text: &str,
        secret: &ClusterSecret,
        home: &SiteId,
        now: UnixMillis,
    ) -> Result<Self, VisitError> {
        let challenge: Self = unsealed(secret, Seal::Challenge, text).ok_or(VisitError::ChallengeInvalid)?;
        if &challenge.home != home {
            return Err(VisitError::ChallengeInvalid);
        }
        // Gateways' clocks differ a little: one may see a challenge of another before it was made.
        if now.since(challenge.issued) > CHALLENGE_LIFE || challenge.issued.since(now) > CHALLENGE_LIFE {
            return Err(VisitError::ChallengeExpired);
        }
        Ok(challenge)
    }

    /// Until when a second answer to this challenge must be recognised, by the clock of whichever server.
    pub fn remembered_until(&self) -> UnixMillis {
        self.issued.saturating_add(CHALLENGE_LIFE + TOKEN_AGE_MAX)
    }
}

/// What the card signs: the challenge as it was sent, and the session that it vouches for.
pub fn answer_message(challenge: &str, session: &PublicKey) -> Vec<u8> {
    message("dozo card answer v1", &[challenge.as_bytes(), session.as_bytes()])
}

/// Whether a card signed that answer.
pub fn check_answer(
    challenge: &Challenge,
    text: &str,
    session: &PublicKey,
    signature: &Signature,
) -> Result<(), VisitError> {
    let signed = challenge.card.verifies(&answer_message(text, session), signature);
    if signed { Ok(()) } else { Err(VisitError::AnswerForged) }
}

/// What a home site says of its client to the site that the client visits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visitor {
    pub home: SiteId,
    pub client: ClientId,
    pub card: PublicKey,
    /// Whose requests these are: the token alone opens nothing.
    pub session: PublicKey,
    /// The one site where the token is good.
    pub site: SiteId,
    pub mobile_access: ServerName,
    pub issued: UnixMillis,
    pub expires: UnixMillis,
    /// So that the visited site need ask nobody.
    pub limits: ClientLimits,
}

impl Visitor {
    pub fn seal(&self, secret: &ClusterSecret) -> String {
        sealed(secret, Seal::VisitorToken, self)
    }

    /// The visitor, if a server of this cluster says so to `site`, and still does.
    pub fn open(
        token: &str,
        secret: &ClusterSecret,
        site: &SiteId,
        now: UnixMillis,
    ) -> Result<Self, VisitError> {
        let visitor: Self = unsealed(secret, Seal::VisitorToken, token).ok_or(VisitError::TokenInvalid)?;
        if &visitor.site != site {
            return Err(VisitError::TokenInvalid);
        }
        if now >= visitor.expires {
            return Err(VisitError::TokenExpired);
        }
        Ok(visitor)
    }
}

/// The part of a visitor's request that its session signs: what is asked, of which gateway, when.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    pub token: &'a str,
    /// As the map names it: `site.name`.
    pub gateway: &'a str,
    pub method: &'a str,
    /// With query, as it is sent.
    pub path: &'a str,
}

/// What a request's `Authorization` header says beside [`SCHEME`]: token, time, nonce and signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization<'a> {
    pub token: &'a str,
    pub time: UnixMillis,
    pub nonce: Nonce,
    pub signature: Signature,
}

impl<'a> SignedRequest<'a> {
    fn message(&self, time: UnixMillis, nonce: &Nonce) -> Vec<u8> {
        let token = blake3::hash(self.token.as_bytes());
        let parts: [&[u8]; 6] = [
            token.as_bytes(),
            self.gateway.as_bytes(),
            self.method.as_bytes(),
            self.path.as_bytes(),
            &time.0.to_le_bytes(),
            &nonce.0,
        ];
        message("dozo visitor request v1", &parts)
    }

    /// The `Authorization` header. `now` is the time by the clock of whoever made the token.
    pub fn authorization(&self, session: &PrivateKey, now: UnixMillis) -> String {
        let nonce = Nonce::generate();
        let signature = session.signature(&self.message(now, &nonce));
        format!("{SCHEME}{} {} {} {signature}", self.token, now.0, to_hex(&nonce.0))
    }

    /// Whether the session of `visitor` signed this request, just now.
    pub fn check(
        &self,
        visitor: &Visitor,
        given: &Authorization<'a>,
        now: UnixMillis,
    ) -> Result<(), VisitError> {
        if !visitor.session.verifies(&self.message(given.time, &given.nonce), &given.signature) {
            return Err(VisitError::RequestForged);
        }
        if now.0.abs_diff(given.time.0) > REQUEST_AGE_MAX.as_millis() as u64 {
            return Err(VisitError::RequestLate);
        }
        Ok(())
    }
}

impl<'a> Authorization<'a> {
    /// Reads what follows [`SCHEME`]; `None` when it does not have its form.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(' ');
        let (token, time, nonce, signature) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let mut bytes = [0u8; 16];
        crate::hash::parse_hex(nonce, &mut bytes).ok()?;
        let (time, signature) = (UnixMillis(time.parse().ok()?), signature.parse().ok()?);
        parts.next().is_none().then_some(Self { token, time, nonce: Nonce(bytes), signature })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::card::Signer;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn secret() -> ClusterSecret {
        ClusterSecret::new("0123456789abcdef0123456789abcdef").unwrap()
    }

    fn site(name: &str) -> SiteId {
        SiteId::new(name).unwrap()
    }

    fn challenge(card: &PrivateKey) -> Challenge {
        Challenge {
            home: site("osaka"),
            client: ClientId::new("carol").unwrap(),
            card: card.public_key(),
            mobile_access: ServerName::new("m1").unwrap(),
            site: site("tokyo"),
            issued: NOW,
            nonce: Nonce([7; 16]),
        }
    }

    fn visitor(session: &PrivateKey) -> Visitor {
        Visitor {
            home: site("osaka"),
            client: ClientId::new("carol").unwrap(),
            card: PublicKey::from_bytes([1; 32]),
            session: session.public_key(),
            site: site("tokyo"),
            mobile_access: ServerName::new("m1").unwrap(),
            issued: NOW,
            expires: NOW.saturating_add(VISIT_LIFE),
            limits: ClientLimits { quota_bytes: Some(1 << 30), ..ClientLimits::default() },
        }
    }

    #[test]
    fn a_challenge_is_good_at_its_home_for_a_minute() {
        let challenge = challenge(&PrivateKey::generate());
        let text = challenge.seal(&secret());
        let at = |home, ms| Challenge::open(&text, &secret(), &site(home), UnixMillis(NOW.0 + ms));
        assert_eq!(at("osaka", 0), Ok(challenge.clone()));
        assert_eq!(at("osaka", 60_000), Ok(challenge.clone()));
        assert_eq!(at("osaka", 60_001), Err(VisitError::ChallengeExpired));
        let early = UnixMillis(NOW.0 - 60_001);
        assert_eq!(
            Challenge::open(&text, &secret(), &site("osaka"), early),
            Err(VisitError::ChallengeExpired)
        );
        assert_eq!(at("tokyo", 0), Err(VisitError::ChallengeInvalid));
        let other = ClusterSecret::new("another secret of at least 32 characters").unwrap();
        assert_eq!(Challenge::open(&text, &other, &site("osaka"), NOW), Err(VisitError::ChallengeInvalid));
        assert_eq!(Challenge::read(&text), Some(challenge));
        assert!(Challenge::read("").is_none() && Challenge::read("00").is_none());
    }

    #[test]
    fn a_visitor_token_is_good_at_one_site_until_it_runs_out() {
        let visitor = visitor(&PrivateKey::generate());
        let token = visitor.seal(&secret());
        let at = |name, ms| Visitor::open(&token, &secret(), &site(name), UnixMillis(NOW.0 + ms));
        let life = VISIT_LIFE.as_millis() as u64;
        assert_eq!(at("tokyo", 0), Ok(visitor.clone()));
        assert_eq!(at("tokyo", life - 1), Ok(visitor.clone()));
        assert_eq!(at("tokyo", life), Err(VisitError::TokenExpired));
        assert_eq!(at("nagoya", 0), Err(VisitError::TokenInvalid));
        // A challenge is no token, and the other way round, though the same servers seal both.
        let challenge = challenge(&PrivateKey::generate()).seal(&secret());
        assert_eq!(Visitor::open(&challenge, &secret(), &site("tokyo"), NOW), Err(VisitError::TokenInvalid));
        let as_challenge = sealed(&secret(), Seal::Challenge, &visitor);
        assert_eq!(
            Visitor::open(&as_challenge, &secret(), &site("tokyo"), NOW),
            Err(VisitError::TokenInvalid)
        );
    }

    #[test]
    fn a_card_vouches_for_one_session_and_one_challenge() {
        let (card, thief) = (PrivateKey::generate(), PrivateKey::generate());
        let challenge = challenge(&card);
        let text = challenge.seal(&secret());
        let session = PrivateKey::generate().public_key();
        let signature = card.signature(&answer_message(&text, &session));
        assert_eq!(check_answer(&challenge, &text, &session, &signature), Ok(()));
        let forged = Err(VisitError::AnswerForged);
        assert_eq!(check_answer(&challenge, &text, &thief.public_key(), &signature), forged);
        assert_eq!(check_answer(&challenge, &format!("{text}00"), &session, &signature), forged);
        let stolen = thief.signature(&answer_message(&text, &session));
        assert_eq!(check_answer(&challenge, &text, &session, &stolen), forged);
    }

    #[test]
    fn a_request_is_signed_for_one_gateway_and_one_content() {
        let session = PrivateKey::generate();
        let visitor = visitor(&session);
        let token = visitor.seal(&secret());
        let request =
            SignedRequest { token: &token, gateway: "tokyo.g1", method: "GET", path: "/v1/contents/a/b?c" };
        let header = request.authorization(&session, NOW);
        let given = Authorization::parse(header.strip_prefix(SCHEME).unwrap()).unwrap();
        assert_eq!(given.token, token);
        let late = |ms: i64| request.check(&visitor, &given, UnixMillis(NOW.0.saturating_add_signed(ms)));
        assert_eq!((late(0), late(60_000), late(-60_000)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(late(60_001), Err(VisitError::RequestLate));
        assert_eq!(late(-60_001), Err(VisitError::RequestLate));
        for other in [
            SignedRequest { gateway: "tokyo.g2", ..request },
            SignedRequest { method: "HEAD", ..request },
            SignedRequest { path: "/v1/contents/a/c?c", ..request },
            SignedRequest { token: "other", ..request },
        ] {
            assert_eq!(other.check(&visitor, &given, NOW), Err(VisitError::RequestForged), "{other:?}");
        }
        let other = self::visitor(&PrivateKey::generate());
        assert_eq!(request.check(&other, &given, NOW), Err(VisitError::RequestForged));
        for bad in ["", "a b c", "a 1 00 00", &format!("{} x", &header[SCHEME.len()..])] {
            assert_eq!(Authorization::parse(bad), None, "{bad}");
        }
    }

    fn mutated(text: &str, at: usize, bit: u8) -> String {
        let mut bytes = from_hex(text).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << (bit % 8);
        to_hex(&bytes)
    }

    proptest! {
        #[test]
        fn nothing_that_was_touched_is_taken(at in 0usize..4096, bit in 0u8..8, cut in 1usize..200) {
            let (card, session) = (PrivateKey::from_seed([1; 32]), PrivateKey::from_seed([2; 32]));
            let (challenge, visitor) = (challenge(&card), visitor(&session));
            let (text, token) = (challenge.seal(&secret()), visitor.seal(&secret()));
            let open = |text: &str| Challenge::open(text, &secret(), &site("osaka"), NOW);
            prop_assert_eq!(open(&mutated(&text, at, bit)), Err(VisitError::ChallengeInvalid));
            prop_assert_eq!(open(&text[..text.len().saturating_sub(cut)]), Err(VisitError::ChallengeInvalid));
            let enter = |token: &str| Visitor::open(token, &secret(), &site("tokyo"), NOW);
            prop_assert_eq!(enter(&mutated(&token, at, bit)), Err(VisitError::TokenInvalid));
            prop_assert_eq!(enter(&format!("{token}00")), Err(VisitError::TokenInvalid));
            let public = session.public_key();
            let signature = card.signature(&answer_message(&text, &public)).to_string();
            let touched = mutated(&signature, at, bit).parse().unwrap();
            prop_assert!(check_answer(&challenge, &text, &public, &touched).is_err());
        }
    }
}
