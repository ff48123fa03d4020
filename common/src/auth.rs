//! Who may call whom: the cluster's secret and the tokens made from it, and the tokens of clients.
//!
//! Every call between servers carries a token of its own: a BLAKE3 keyed hash over method, path with query,
//! audience (the role that is called), caller, time and nonce. It is worth nothing for another call, another
//! role or after [`TOKEN_AGE_MAX`]. Clients' bearer tokens are random; only their hashes are stored. The operator's and
//! the auditor's are derived from the secret.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::AUTHORIZATION;

use crate::error::{ApiError, ErrorCode};
use crate::hash::{parse_hex, write_hex};
use crate::possession::PossessionKeys;
use crate::time::{Clock, UnixMillis};

/// How far the clocks of two servers may differ, and how long a token lives.
pub const TOKEN_AGE_MAX: Duration = Duration::from_secs(15 * 60);

const SCHEME: &str = "Dozo ";

/// The operator's name in signed calls.
pub const OPERATOR: &str = "operator";

/// Fills `bytes` from the operating system's generator.
pub fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system gives random bytes");
}

/// `len` random bytes as hexadecimal text.
pub fn random_hex(len: usize) -> String {
    let mut bytes = vec![0u8; len];
    fill_random(&mut bytes);
    hex(&bytes)
}

fn hex(bytes: &[u8]) -> String {
    struct Hex<'a>(&'a [u8]);
    impl fmt::Display for Hex<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.chunks(32).try_for_each(|part| write_hex(f, part))
        }
    }
    Hex(bytes).to_string()
}

/// The roles a server can be called in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Gateway,
    StorageNode,
    Search,
    Origin,
    ServiceBilling,
    ContentBilling,
    MobileAccess,
}

impl Role {
    pub const ALL: [Self; 7] = [
        Self::Gateway,
        Self::StorageNode,
        Self::Search,
        Self::Origin,
        Self::ServiceBilling,
        Self::ContentBilling,
        Self::MobileAccess,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::StorageNode => "storage-node",
            Self::Search => "search",
            Self::Origin => "origin",
            Self::ServiceBilling => "service-billing",
            Self::ContentBilling => "content-billing",
            Self::MobileAccess => "mobile-access",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a seal of the cluster is good for. Numbers are part of what is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// A question that a home site puts to a card.
    Challenge = 1,
    /// What a home site says of a client to the site that it visits.
    VisitorToken = 2,
}

/// The secret that the servers of one cluster share. Has no `Debug` and no `Display`.
#[derive(Clone)]
pub struct ClusterSecret {
    call_key: [u8; 32],
    seal_key: [u8; 32],
    admin_token: Arc<str>,
    auditor_token: Arc<str>,
    nonces: Arc<Nonces>,
}

/// Makes every token another one: a random start, then a counter.
struct Nonces {
    start: u64,
    count: AtomicU64,
}

impl Nonces {
    fn next(&self) -> String {
        format!("{:016x}-{:x}", self.start, self.count.fetch_add(1, Ordering::Relaxed))
    }
}

/// A secret too short to be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster secret has {len} characters, at least 32 are needed; make one with `openssl rand -hex 32`"
)]
pub struct WeakSecret {
    len: usize,
}

/// A call that does not carry a good token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the call carries no server token")]
    Missing,
    #[error("the server token does not have its form")]
    Malformed,
    #[error("the server token is older than 15 minutes, or the clocks differ by more than that")]
    Expired,
    #[error("the server token is not made with this cluster's secret for this call")]
    Forged,
}

impl ClusterSecret {
    pub fn new(text: &str) -> Result<Self, WeakSecret> {
        let text = text.trim();
        if text.len() < 32 {
            return Err(WeakSecret { len: text.len() });
        }
        let call_key = blake3::derive_key("dozo server call token v1", text.as_bytes());
        let seal_key = blake3::derive_key("dozo seal v1", text.as_bytes());
        let admin_token = hex(&blake3::derive_key("dozo admin token v1", text.as_bytes())).into();
        let auditor_token = hex(&blake3::derive_key("dozo auditor token v1", text.as_bytes())).into();
        let mut start = [0u8; 8];
        fill_random(&mut start);
        let nonces = Arc::new(Nonces { start: u64::from_le_bytes(start), count: AtomicU64::new(0) });
        Ok(Self { call_key, seal_key, admin_token, auditor_token, nonces })
    }

    /// The operator's bearer token: derived from the secret, so that every server knows it.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// The bearer token of who may read the books of the billing servers and do nothing else.
    pub fn auditor_token(&self) -> &str {
        &self.auditor_token
    }

    /// What home sites confirm possession with.
    pub fn possession_keys(&self) -> PossessionKeys {
        PossessionKeys::new(blake3::derive_key("dozo possession keys v1", &self.call_key))
    }

    /// A keyed hash over `bytes` that only servers of the cluster can make, worth nothing for another purpose.
    /// Comparing two of them takes the same time wherever they differ.
    pub fn seal(&self, seal: Seal, bytes: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.seal_key).update(&[seal as u8]).update(bytes).finalize()
    }

    /// The `Authorization` header of one call.
    pub fn sign(&self, caller: &str, audience: Role, method: &str, path: &str, now: UnixMillis) -> String {
        let nonce = self.nonces.next();
        let mac = self.mac(caller, audience, method, path, now.0, &nonce);
        format!("{SCHEME}{caller} {} {nonce} {}", now.0, mac.to_hex())
    }

    /// Checks the header of a call; answers with the caller's name.
    pub fn verify<'a>(
        &self,
        header: Option<&'a str>,
        audience: Role,
        method: &str,
        path: &str,
        now: UnixMillis,
    ) -> Result<&'a str, TokenError> {
        let token = header.and_then(|h| h.strip_prefix(SCHEME)).ok_or(TokenError::Missing)?;
        let mut parts = token.split(' ');
        let (Some(caller), Some(time), Some(nonce), Some(mac), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let time: u64 = time.parse().map_err(|_| TokenError::Malformed)?;
        let mut given = [0u8; 32];
        parse_hex(mac, &mut given).map_err(|()| TokenError::Malformed)?;
        // blake3::Hash compares in constant time.
        if self.mac(caller, audience, method, path, time, nonce) != blake3::Hash::from_bytes(given) {
            return Err(TokenError::Forged);
        }
        if now.0.abs_diff(time) > TOKEN_AGE_MAX.as_millis() as u64 {
            return Err(TokenError::Expired);
        }
        Ok(caller)
    }

    fn mac(
        &self,
        caller: &str,
        audience: Role,
        method: &str,
        path: &str,
        time: u64,
        nonce: &str,
    ) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.call_key);
        for part in [method, path, audience.as_str(), caller, nonce] {
            hasher.update(&(part.len() as u32).to_le_bytes()).update(part.as_bytes());
        }
        hasher.update(&time.to_le_bytes());
        hasher.finalize()
    }
}

/// What a client's bearer token is stored and looked up as.
pub fn token_hash(token: &str) -> String {
    hex(&blake3::derive_key("dozo client token v1", token.as_bytes()))
}

/// The bearer token of a request, if it has one.
pub fn bearer(headers: &http::HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

/// Who makes a call, by its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A server of the cluster, by the name that its token carries: `storage-node/tokyo.n1`.
    Server(String),
    Operator,
    Auditor,
}

impl Caller {
    fn signed(name: &str) -> Self {
        if name == OPERATOR { Self::Operator } else { Self::Server(name.to_owned()) }
    }

    /// The role and the rest of a server's name.
    fn server(&self) -> Option<(Role, &str)> {
        let Self::Server(name) = self else { return None };
        let (role, name) = name.split_once('/')?;
        Some((Role::ALL.into_iter().find(|known| known.as_str() == role)?, name))
    }

    /// The role of a server whose name tells it.
    pub fn role(&self) -> Option<Role> {
        self.server().map(|(role, _)| role)
    }

    /// The site of a server that is of one.
    pub fn site(&self) -> Option<&str> {
        self.server()?.1.split_once('.').map(|(site, _)| site)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => f.write_str(name),
            Self::Operator => f.write_str("the operator"),
            Self::Auditor => f.write_str("the auditor"),
        }
    }
}

/// What a call is checked against.
#[derive(Clone)]
pub struct Guard {
    pub secret: ClusterSecret,
    pub audience: Role,
    pub clock: Clock,
}

impl Guard {
    pub fn is_admin(&self, headers: &http::HeaderMap) -> bool {
        bears(headers, &self.secret.admin_token)
    }

    /// Who makes a call.
    pub fn caller(&self, request: &Request) -> Result<Caller, TokenError> {
        if self.is_admin(request.headers()) {
            return Ok(Caller::Operator);
        }
        if bears(request.headers(), &self.secret.auditor_token) {
            return Ok(Caller::Auditor);
        }
        self.check(request).map(Caller::signed)
    }

    fn check<'a>(&self, request: &'a Request) -> Result<&'a str, TokenError> {
        let header = request.headers().get(AUTHORIZATION).and_then(|h| h.to_str().ok());
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        self.secret.verify(header, self.audience, request.method().as_str(), path, self.clock.now())
    }
}

fn bears(headers: &http::HeaderMap, token: &str) -> bool {
    let Some(given) = bearer(headers) else { return false };
    // Hashing both makes the comparison take the same time wherever they differ.
    blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes())
}

/// Axum middleware: lets only servers of this cluster and its operator pass.
pub async fn require_server(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check(&request) {
        Ok(_) => next.run(request).await,
        Err(_) if guard.is_admin(request.headers()) => next.run(request).await,
        Err(error) => ApiError::new(ErrorCode::Unauthenticated, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> ClusterSecret {
        ClusterSecret::new("0123456789abcdef0123456789abcdef").unwrap()
    }

    #[test]
    fn a_token_is_good_for_one_call_only() {
        let (secret, now) = (secret(), UnixMillis(1_000_000_000));
        let header = secret.sign(
            "gateway tokyo".replace(' ', "-").as_str(),
            Role::StorageNode,
            "PUT",
            "/v1/x?a=1",
            now,
        );
        let verify = |audience, method, path, now| secret.verify(Some(&header), audience, method, path, now);
        assert_eq!(verify(Role::StorageNode, "PUT", "/v1/x?a=1", now), Ok("gateway-tokyo"));
        assert_eq!(verify(Role::Search, "PUT", "/v1/x?a=1", now), Err(TokenError::Forged));
        assert_eq!(verify(Role::StorageNode, "GET", "/v1/x?a=1", now), Err(TokenError::Forged));
        assert_eq!(verify(Role::StorageNode, "PUT", "/v1/x?a=2", now), Err(TokenError::Forged));
        let late = UnixMillis(now.0 + 16 * 60_000);
        assert_eq!(verify(Role::StorageNode, "PUT", "/v1/x?a=1", late), Err(TokenError::Expired));
        let other = ClusterSecret::new("another secret of at least 32 characters").unwrap();
        assert_eq!(
            other.verify(Some(&header), Role::StorageNode, "PUT", "/v1/x?a=1", now),
            Err(TokenError::Forged)
        );
        assert_eq!(secret.verify(None, Role::Search, "GET", "/", now), Err(TokenError::Missing));
        assert_eq!(secret.verify(Some("Dozo x"), Role::Search, "GET", "/", now), Err(TokenError::Malformed));
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert!(ClusterSecret::new("short").is_err());
        assert_ne!(secret().admin_token(), token_hash("x"));
    }

    #[test]
    fn a_caller_is_known_by_its_token() {
        let now = UnixMillis(1_000_000_000);
        let clock = Clock::Manual(Arc::new(AtomicU64::new(now.0)));
        let guard = Guard { secret: secret(), audience: Role::ServiceBilling, clock };
        let caller = |header: &str| {
            let request = Request::get("/v1/x").header(AUTHORIZATION, header);
            guard.caller(&request.body(axum::body::Body::empty()).unwrap())
        };
        let signed = |name| caller(&secret().sign(name, Role::ServiceBilling, "GET", "/v1/x", now)).unwrap();
        let node = signed("storage-node/tokyo.n1");
        assert_eq!((node.role(), node.site()), (Some(Role::StorageNode), Some("tokyo")));
        let origin = signed("origin/o1");
        assert_eq!((origin.role(), origin.site()), (Some(Role::Origin), None));
        for unknown in ["search", "storage-nodes/tokyo.n1", "storage-node"] {
            assert_eq!(signed(unknown).role(), None, "{unknown}");
        }
        assert_eq!(signed(OPERATOR), Caller::Operator);
        let bearer = |token: &str| caller(&format!("Bearer {token}"));
        assert_eq!(bearer(secret().admin_token()), Ok(Caller::Operator));
        assert_eq!(bearer(secret().auditor_token()), Ok(Caller::Auditor));
        assert_eq!(bearer("x"), Err(TokenError::Missing));
    }
}
