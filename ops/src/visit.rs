//! The file that `dozo connect` writes and other commands take with `--visit`: where a roaming client may go, what it shows
//! there, and the session's key, which is worth nothing once the visit is over.

use std::path::Path;
use std::time::Duration;

use common::api::mobile_access::{NearbyGateway, Visit};
use common::card::{PrivateKey, PublicKey, Signer};
use common::id::{ClientId, ServerName, SiteId};
use common::time::{Clock, UnixMillis};
use common::visit::SignedRequest;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::files;

const FORMAT: &str = "dozo visit 1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: String,
    client: ClientId,
    card: PublicKey,
    home: SiteId,
    site: SiteId,
    mobile_access: ServerName,
    gateways: Vec<NearbyGateway>,
    token: String,
    session_key: String,
    issued: UnixMillis,
    expires: UnixMillis,
    /// How much the home site's clock is ahead of this machine's, in milliseconds: a traveller's clock may be wrong.
    clock_ahead_ms: i64,
}

/// A visit that is under way. Has no `Debug`: it has the session's key.
pub struct OpenVisit {
    stored: Stored,
    session: PrivateKey,
}

impl OpenVisit {
    /// What mobile access granted a moment ago to the session of a card.
    pub fn new(client: ClientId, card: PublicKey, visit: Visit, session: PrivateKey) -> Self {
        let Visit { token, home, site, mobile_access, gateways, issued, expires } = visit;
        let here = Clock::System.now();
        let ahead = i128::from(issued.0) - i128::from(here.0);
        let stored = Stored {
            format: FORMAT.to_owned(),
            client,
            card,
            home,
            site,
            mobile_access,
            gateways,
            token,
            session_key: session.seed_hex(),
            issued,
            expires,
            clock_ahead_ms: i64::try_from(ahead).unwrap_or(0),
        };
        Self { stored, session }
    }

    pub fn read(path: &Path) -> Result<Self, Failure> {
        let connect = "`dozo connect --card FILE` begins a visit";
        let bytes = std::fs::read(path)
            .map_err(|e| Failure::file("reading the visit", path, &e).with_next_step(connect))?;
        let malformed = |what: String| Failure::new(format!("{} is not a visit: {what}", path.display()));
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        if stored.format != FORMAT {
            let what = format!("its format is {:?}, this program knows {FORMAT:?}", stored.format);
            return Err(malformed(what));
        }
        let session = PrivateKey::from_seed_hex(&stored.session_key)?;
        let visit = Self { stored, session };
        if visit.now() >= visit.stored.expires {
            let message = format!("the visit ended at {}", visit.stored.expires);
            return Err(Failure::new(message).with_next_step(connect));
        }
        Ok(visit)
    }

    /// Replaces the file as a whole; only its owner may read it.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(&self.stored)
            .map_err(|e| Failure::new(format!("the visit cannot be written as JSON: {e}")))?;
        text.push(b'\n');
        files::write_private(path, &text).map_err(|e| Failure::file("writing the visit", path, &e))
    }

    /// The time by the home site's clock.
    fn now(&self) -> UnixMillis {
        UnixMillis(Clock::System.now().0.saturating_add_signed(self.stored.clock_ahead_ms))
    }

    pub fn bases(&self) -> Vec<String> {
        self.stored.gateways.iter().map(|gateway| gateway.http.clone()).collect()
    }

    /// The `Authorization` header of one request to the gateway at `base`.
    pub fn authorization(&self, base: &str, method: &str, path: &str) -> String {
        let named = self.stored.gateways.iter().find(|gateway| gateway.http == base);
        let gateway = named.map_or("", |gateway| gateway.name.as_str());
        let request = SignedRequest { token: &self.stored.token, gateway, method, path };
        request.authorization(&self.session, self.now())
    }

    pub fn session(&self) -> PublicKey {
        self.session.public_key()
    }

    pub fn client(&self) -> &ClientId {
        &self.stored.client
    }

    pub fn home(&self) -> &SiteId {
        &self.stored.home
    }

    pub fn site(&self) -> &SiteId {
        &self.stored.site
    }

    pub fn mobile_access(&self) -> &ServerName {
        &self.stored.mobile_access
    }

    pub fn gateways(&self) -> &[NearbyGateway] {
        &self.stored.gateways
    }

    pub fn expires(&self) -> UnixMillis {
        self.stored.expires
    }

    pub fn life(&self) -> Duration {
        self.stored.expires.since(self.stored.issued)
    }
}

#[cfg(test)]
mod tests {
    use common::visit::{Authorization, SCHEME};

    use super::*;

    fn visit(issued: UnixMillis) -> OpenVisit {
        let site = |name| SiteId::new(name).unwrap();
        let granted = Visit {
            token: "abcd".into(),
            home: site("osaka"),
            site: site("tokyo"),
            mobile_access: ServerName::new("m1").unwrap(),
            gateways: vec![NearbyGateway { name: "tokyo.g1".into(), http: "http://127.0.0.1:1".into() }],
            issued,
            expires: issued.saturating_add(Duration::from_secs(900)),
        };
        let session = PrivateKey::generate();
        OpenVisit::new(ClientId::new("carol").unwrap(), PublicKey::from_bytes([1; 32]), granted, session)
    }

    #[test]
    fn requests_are_signed_by_the_time_of_the_token_whatever_this_machine_believes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("carol.visit");
        for days in [-1000i64, 0, 1000] {
            let home_time = UnixMillis(Clock::System.now().0.saturating_add_signed(days * 86_400_000));
            visit(home_time).write(&path).unwrap();
            let read = OpenVisit::read(&path).unwrap();
            let header = read.authorization("http://127.0.0.1:1", "GET", "/v1/contents/a/b");
            let given = Authorization::parse(header.strip_prefix(SCHEME).unwrap()).unwrap();
            assert!(given.time.0.abs_diff(home_time.0) < 30_000, "{days}: {given:?}");
        }
    }

    #[test]
    fn a_visit_that_is_over_says_how_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("carol.visit");
        let mut over = visit(Clock::System.now());
        over.stored.expires = UnixMillis(over.now().0 - 1);
        over.write(&path).unwrap();
        let failure = OpenVisit::read(&path).map(drop).unwrap_err();
        assert!(failure.to_string().contains("ended") && failure.next_step.unwrap().contains("dozo connect"));
    }
}
