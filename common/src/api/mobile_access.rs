//! Mobile access: how a client away from home finds it, what it asks there, and what mobile access asks the home site.
//!
//! A client that does not know where it is asks everybody near it, by a UDP datagram of [`REQUEST_LEN`] bytes; whoever
//! hears it answers with its name and address, in no more bytes than it was asked in, so nobody gains by asking in another's
//! name. All else is HTTP. Nothing in a datagram is secret and nothing is decided by it.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::auth::Role;
use crate::card::{PublicKey, Signature};
use crate::client::{CallError, HttpClient, ServerClient, read_body, read_refusal};
use crate::id::{ClientId, ServerName, SiteId};
use crate::time::UnixMillis;
use crate::visit::Nonce;

/// Port on which mobile access hears requests, unless it is told otherwise.
pub const REQUEST_PORT: u16 = 8004;
/// Every request has just this length: the most that the longest names and an address need.
pub const REQUEST_LEN: usize = 512;

const VERSION: u8 = 1;
const CHECK_LEN: usize = 16;
/// Longest address in an answer.
const ADDRESS_LEN_MAX: usize = 255;
const ANSWER_LEN_MAX: usize = 64 << 10;
/// A question to the home site: one round trip, and a signature or a durable row.
const HOME_LIMIT: Duration = Duration::from_secs(3);
/// A question of a client: mobile access may have to try several gateways of the home site.
const CLIENT_LIMIT: Duration = Duration::from_secs(15);

/// The mobile access request (patent: 227): who is there, and where its home is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRequest {
    pub client: ClientId,
    pub home: SiteId,
    pub card: PublicKey,
    /// Comes back in the answer.
    pub nonce: Nonce,
}

/// "Here I am."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessAnswer {
    pub nonce: Nonce,
    pub name: ServerName,
    /// `http://host:port`
    pub http: String,
}

/// A datagram that is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the datagram does not have its form")]
pub struct MalformedDatagram;

const REQUEST_MAGIC: &[u8; 8] = b"dozo-ma?";
const ANSWER_MAGIC: &[u8; 8] = b"dozo-ma!";

/// Magic, version, value (postcard), check; a request is filled up with zeros.
fn datagram<T: Serialize>(magic: &[u8; 8], value: &T) -> Vec<u8> {
    let head = [&magic[..], &[VERSION]].concat();
    let mut bytes = postcard::to_extend(value, head).expect("plain values always encode");
    let check = blake3::hash(&bytes);
    bytes.extend_from_slice(&check.as_bytes()[..CHECK_LEN]);
    bytes
}

fn read_datagram<T: DeserializeOwned>(magic: &[u8; 8], bytes: &[u8]) -> Result<T, MalformedDatagram> {
    let body = bytes.strip_prefix(&magic[..]).and_then(|rest| rest.strip_prefix(&[VERSION]));
    let (value, rest) =
        postcard::take_from_bytes(body.ok_or(MalformedDatagram)?).map_err(|_| MalformedDatagram)?;
    let (check, padding) = rest.split_at_checked(CHECK_LEN).ok_or(MalformedDatagram)?;
    let checked = blake3::hash(&bytes[..bytes.len() - rest.len()]);
    let is_whole = check == &checked.as_bytes()[..CHECK_LEN] && padding.iter().all(|byte| *byte == 0);
    if is_whole { Ok(value) } else { Err(MalformedDatagram) }
}

impl AccessRequest {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = datagram(REQUEST_MAGIC, self);
        bytes.resize(REQUEST_LEN, 0);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedDatagram> {
        if bytes.len() != REQUEST_LEN {
            return Err(MalformedDatagram);
        }
        read_datagram(REQUEST_MAGIC, bytes)
    }
}

impl AccessAnswer {
    /// Never longer than [`REQUEST_LEN`]; an address that would make it so is cut out by [`AccessAnswer::decode`].
    pub fn encode(&self) -> Vec<u8> {
        datagram(ANSWER_MAGIC, self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedDatagram> {
        let answer: Self = read_datagram(ANSWER_MAGIC, bytes)?;
        let is_url = ["http://", "https://"].iter().any(|scheme| answer.http.starts_with(scheme));
        let is_address = is_url && answer.http.len() <= ADDRESS_LEN_MAX;
        if is_address && bytes.len() <= REQUEST_LEN { Ok(answer) } else { Err(MalformedDatagram) }
    }
}

/// A client's first question. `POST /v1/challenge`, to mobile access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeRequest {
    pub client: ClientId,
    pub home: SiteId,
    pub card: PublicKey,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeAnswer {
    /// [`crate::visit::Challenge`], sealed.
    pub challenge: String,
}

/// The card's answer. `POST /v1/answer`, to mobile access, and `POST /v1/peer/answer`, from there to the home site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardAnswer {
    /// As it came.
    pub challenge: String,
    /// The key that the client made for this visit.
    pub session: PublicKey,
    /// The card's, over [`crate::visit::answer_message`].
    pub signature: Signature,
}

/// Success: where the client may go, and what it shows there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// [`crate::visit::Visitor`], sealed.
    pub token: String,
    pub home: SiteId,
    pub site: SiteId,
    pub mobile_access: ServerName,
    /// Gateways of the site that are there, the nearest to mobile access first.
    pub gateways: Vec<NearbyGateway>,
    pub issued: UnixMillis,
    pub expires: UnixMillis,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearbyGateway {
    /// `site.name`
    pub name: String,
    pub http: String,
}

/// Mobile access asks a home site for a challenge. `POST /v1/peer/challenge`, answers [`ChallengeAnswer`]. Home looks
/// nothing up for it: whoever has no card learns nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerChallengeRequest {
    pub client: ClientId,
    pub card: PublicKey,
    pub mobile_access: ServerName,
    /// The site that the client would visit.
    pub site: SiteId,
}

/// A card answered a challenge: noted durably in the slot of its client, so that no gateway of the home site takes a second
/// answer. `POST /v1/challenges/answer`, to a storage node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnsweredChallenge {
    pub client: ClientId,
    /// The challenge's.
    pub nonce: Nonce,
    /// The gateway's, for this one answer: the same question asked again is no second answer.
    pub attempt: Nonce,
    /// Until when it must be remembered.
    pub expires: UnixMillis,
}

/// The home site's word to a card that answered well.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerVisit {
    pub token: String,
    pub issued: UnixMillis,
    pub expires: UnixMillis,
}

/// A home site as mobile access sees it: one of its gateways.
#[derive(Clone)]
pub struct HomeClient {
    server: ServerClient,
    base: String,
}

impl HomeClient {
    pub fn new(server: ServerClient, base: &str) -> Self {
        Self { server, base: base.to_owned() }
    }

    pub async fn challenge(&self, request: &PeerChallengeRequest) -> Result<ChallengeAnswer, CallError> {
        self.post("/v1/peer/challenge", request).await
    }

    pub async fn answer(&self, answer: &CardAnswer) -> Result<PeerVisit, CallError> {
        self.post("/v1/peer/answer", answer).await
    }

    async fn post<Q: Serialize, A: DeserializeOwned>(&self, path: &str, body: &Q) -> Result<A, CallError> {
        self.server.send_json(Method::POST, &self.base, Role::Gateway, path, body, HOME_LIMIT).await
    }
}

/// Mobile access as a client sees it.
#[derive(Clone)]
pub struct AccessClient {
    http: HttpClient,
    base: String,
}

impl AccessClient {
    /// `base` is `http://host:port`.
    pub fn new(http: HttpClient, base: &str) -> Self {
        Self { http, base: base.trim_end_matches('/').to_owned() }
    }

    pub async fn challenge(&self, request: &ChallengeRequest) -> Result<ChallengeAnswer, CallError> {
        self.post("/v1/challenge", request).await
    }

    pub async fn answer(&self, answer: &CardAnswer) -> Result<Visit, CallError> {
        self.post("/v1/answer", answer).await
    }

    async fn post<Q: Serialize, A: DeserializeOwned>(&self, path: &str, body: &Q) -> Result<A, CallError> {
        let url = format!("{}{path}", self.base);
        let unsent = |source: Box<dyn std::error::Error + Send + Sync>| CallError::Unreachable {
            url: url.clone(),
            source,
        };
        let body = serde_json::to_vec(body).map_err(|error| unsent(error.into()))?;
        let request = Request::post(&url)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(body.into()))
            .map_err(|error| unsent(error.into()))?;
        let response = self.http.send(request, CLIENT_LIMIT).await?;
        if !response.status().is_success() {
            return Err(read_refusal(&url, response).await);
        }
        let read = read_body(&url, response.into_body(), ANSWER_LEN_MAX);
        let bytes = tokio::time::timeout(CLIENT_LIMIT, read)
            .await
            .map_err(|_| CallError::Timeout { url: url.clone(), limit: CLIENT_LIMIT })??;
        serde_json::from_slice(&bytes).map_err(|error| CallError::Answer { url, source: error.into() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(name: &str) -> AccessRequest {
        AccessRequest {
            client: ClientId::new(name).unwrap(),
            home: SiteId::new(name).unwrap(),
            card: PublicKey::from_bytes([0xab; 32]),
            nonce: Nonce([0xff; 16]),
        }
    }

    fn answer(host: &str) -> AccessAnswer {
        let (name, http) = (ServerName::new(&"m".repeat(40)).unwrap(), format!("http://{host}"));
        AccessAnswer { nonce: Nonce([0xff; 16]), name, http }
    }

    #[test]
    fn the_longest_names_fit_and_the_longest_answer_is_no_longer_than_the_request() {
        let longest = request(&"c".repeat(40));
        assert!(datagram(REQUEST_MAGIC, &longest).len() <= REQUEST_LEN);
        assert_eq!(AccessRequest::decode(&longest.encode()), Ok(longest));
        let longest = answer(&"h".repeat(ADDRESS_LEN_MAX - "http://".len()));
        assert!(longest.encode().len() <= REQUEST_LEN);
        assert_eq!(AccessAnswer::decode(&longest.encode()), Ok(longest));
        for bad in
            [answer(&"h".repeat(ADDRESS_LEN_MAX)), AccessAnswer { http: "file:///".into(), ..answer("h") }]
        {
            assert_eq!(AccessAnswer::decode(&bad.encode()), Err(MalformedDatagram));
        }
    }

    #[test]
    fn the_form_of_a_request_is_pinned() {
        let bytes = request("carol").encode();
        let head = [b"dozo-ma?", &[1, 5][..], b"carol", &[5], b"carol", &[64], b"abababab"].concat();
        assert!(bytes.starts_with(&head), "{bytes:?}");
    }

    proptest! {
        #[test]
        fn a_datagram_that_was_touched_is_none(at in 0usize..REQUEST_LEN, bit in 0u8..8, cut in 1usize..REQUEST_LEN) {
            let mut bytes = request("carol").encode();
            bytes[at] ^= 1 << bit;
            prop_assert!(AccessRequest::decode(&bytes).is_err());
            prop_assert!(AccessRequest::decode(&request("carol").encode()[..cut]).is_err());
            let mut bytes = answer("127.0.0.1:8004").encode();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(AccessAnswer::decode(&bytes).is_err());
        }

        #[test]
        fn what_anybody_sends_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _either = AccessRequest::decode(&bytes);
            let _either = AccessAnswer::decode(&bytes);
        }
    }
}
