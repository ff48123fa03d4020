//! Clients that come with a visitor token: who they are, without asking anybody.
//!
//! The token says all that is needed and carries the cluster's seal; the request carries the signature of the session that
//! the token names, over method and path, for this gateway, at this minute (which part of the content is asked for is not
//! signed: proxies may change that, and nobody gains by it). A request that comes twice is refused: what came is
//! remembered, by this gateway alone, for as long as it would be taken, and a request for another gateway is none here. (A
//! gateway that was started anew within that minute does not remember; who replays a request then gets what it heard pass by
//! already.) A card that was disabled is noticed within seconds as long as search answers; while it does not, the token is
//! good until it runs out.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use common::api::search::ClientRecord;
use common::auth::ClusterSecret;
use common::card::PublicKey;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::ServerName;
use common::time::UnixMillis;
use common::visit::{Authorization, Nonce, REQUEST_AGE_MAX, SCHEME, SignedRequest, VisitError, Visitor};
use http::header::AUTHORIZATION;
use http::request::Parts;

use crate::authentication::admitted;
use crate::server::Gateway;

/// Requests that are remembered at most; of about 60 bytes each.
const SEEN_MAX: usize = 1 << 19;

/// Who asks for a content.
#[derive(Debug)]
pub struct Asker {
    pub client: ClientRecord,
    /// The server that brought a visitor here.
    pub mobile_access: Option<ServerName>,
}

/// What is needed to recognise visitors.
pub struct Visitors {
    pub secret: ClusterSecret,
    /// This gateway, as a visitor names it: `site.name`.
    name: String,
    seen: Mutex<Seen>,
}

impl Visitors {
    pub fn new(secret: ClusterSecret, name: String) -> Self {
        Self { secret, name, seen: Mutex::default() }
    }

    /// The visitor that signed this request.
    fn recognise(&self, parts: &Parts, header: &str, gateway: &Gateway) -> ApiResult<Visitor> {
        let now = gateway.clock.now();
        let given = Authorization::parse(header).ok_or_else(|| {
            let form = "a visitor sends Authorization: Visit TOKEN TIME NONCE SIGNATURE";
            ApiError::new(ErrorCode::Unauthenticated, form)
        })?;
        let visitor = Visitor::open(given.token, &self.secret, &gateway.site.id, now)?;
        let request = SignedRequest {
            token: given.token,
            gateway: &self.name,
            method: parts.method.as_str(),
            path: parts.uri.path_and_query().map_or("/", |path| path.as_str()),
        };
        request.check(&visitor, &given, now)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.note(given.time, visitor.session, given.nonce, now)?;
        Ok(visitor)
    }
}

/// Requests that came, by the time at which they were signed.
#[derive(Default)]
struct Seen(BTreeSet<(UnixMillis, PublicKey, Nonce)>);

impl Seen {
    fn note(&mut self, time: UnixMillis, session: PublicKey, nonce: Nonce, now: UnixMillis) -> ApiResult<()> {
        while self.0.first().is_some_and(|(time, ..)| now.since(*time) > REQUEST_AGE_MAX) {
            self.0.pop_first();
        }
        if self.0.contains(&(time, session, nonce)) {
            return Err(VisitError::RequestReplayed.into());
        }
        if self.0.len() >= SEEN_MAX {
            let message =
                "this gateway has too many visitors at the moment; try another, or again in a minute";
            return Err(ApiError::new(ErrorCode::TooManyRequests, message));
        }
        self.0.insert((time, session, nonce));
        Ok(())
    }
}

impl Gateway {
    /// *authenticate*, for requests that visitors may make too: those for contents, which change nothing.
    pub async fn identify(&self, parts: &Parts) -> ApiResult<Asker> {
        let header = parts.headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
        let Some(header) = header.and_then(|header| header.strip_prefix(SCHEME)) else {
            let client = self.authenticate(&parts.headers).await?;
            return Ok(Asker { client, mobile_access: None });
        };
        let visitor = self.visitors.recognise(parts, header, self)?;
        if let Some(holder) = self.directory.card_of_visitor(&visitor.card) {
            admitted(holder)?;
        }
        let client = ClientRecord {
            client: visitor.client,
            site: visitor.home,
            disabled: false,
            created: UnixMillis(0),
            limits: visitor.limits,
        };
        self.limits.admit(&client)?;
        // At home nobody stands in for anybody.
        let mobile_access = (client.site != self.site.id).then_some(visitor.mobile_access);
        Ok(Asker { client, mobile_access })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_remembered_for_as_long_as_it_would_be_taken() {
        let (mut seen, key) = (Seen::default(), PublicKey::from_bytes([1; 32]));
        let at = UnixMillis;
        let mut note = |time, nonce, now| seen.note(at(time), key, Nonce([nonce; 16]), at(now));
        note(1000, 1, 1000).unwrap();
        note(1000, 2, 1000).unwrap();
        assert_eq!(note(1000, 1, 61_000).unwrap_err().code, ErrorCode::RequestReplayed);
        note(61_001, 1, 61_001).unwrap();
        assert_eq!(note(61_001, 1, 61_001).unwrap_err().code, ErrorCode::RequestReplayed);
        assert_eq!(seen.0.len(), 1);
        let other = PublicKey::from_bytes([2; 32]);
        seen.note(at(61_001), other, Nonce([1; 16]), at(61_001)).unwrap();
    }
}
