//! What a collecting gateway asks of a source. Gateways of other sites and origins answer alike, so a collection
//! goes on with the next source at the next chunk, whatever it is.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};

use crate::api::gateway::SiteUsage;
use crate::api::node::{BeginAnswer, EndRequest, Holding, Quota};
use crate::auth::Role;
use crate::client::{Call, CallError, ServerClient, encode, read_body};
use crate::hash::{ChunkHash, ContentHash};
use crate::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use crate::manifest::ChunkRef;
use crate::name::ContentName;
use crate::time::UnixMillis;

const LIMIT: Duration = Duration::from_secs(10);

/// A visited site asks the home site of a client for a content: may the client have it, is it a purchase, what is
/// it made of? Home collects it first if it must, and records the delivery in the same commit as its client's
/// library. `POST /v1/peer/possession`, to a gateway of the home site.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PossessionRequest {
    pub client: ClientId,
    pub name: ContentName,
    pub delivery: DeliveryId,
    /// The client's `Range` header, if it sent one.
    #[serde(default)]
    pub range: Option<String>,
    /// ETags for which the client wants no bytes (`If-None-Match`), as sent.
    #[serde(default)]
    pub if_none_match: Option<String>,
    /// The site that will deliver.
    pub surrogate: SiteId,
    #[serde(default)]
    pub mobile_access: Option<ServerName>,
    /// A HEAD: nothing is delivered or recorded.
    #[serde(default)]
    pub head_only: bool,
    /// What the client's library may hold.
    #[serde(default)]
    pub quota: Quota,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PossessionAnswer {
    pub holding: Holding,
    /// The recorded delivery; `None` for a HEAD, an unmodified content or a range that cannot be satisfied.
    pub begin: Option<BeginAnswer>,
}

/// Ends of deliveries that home recorded for a visited site. `POST /v1/peer/ends`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerEnds {
    /// [`BeginAnswer::shard`].
    pub shard: NodeId,
    pub ends: Vec<EndRequest>,
}

/// The content list of a site for one content: who holds it, from whom it comes, when it was delivered to whom.
/// `GET /v1/peer/who-holds?name=&after=&limit=`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SiteHolders {
    pub site: SiteId,
    pub hash: Option<ContentHash>,
    /// The original provider; `None` when the site does not hold the content.
    pub provider: Option<ClientId>,
    /// Clients behind `after` in the order of their ids, at most `limit`.
    pub clients: Vec<ClientId>,
    /// The same, with what their libraries say.
    pub holders: Vec<Holder>,
    /// All clients that hold it.
    pub clients_total: u64,
    /// Give this as `after` for the next page; `None` on the last.
    #[serde(default)]
    pub next: Option<ClientId>,
    /// Chunks of the content on each node.
    pub nodes: Vec<NodeShare>,
    pub chunks: u64,
    /// Chunks that other contents of the site use too.
    pub chunks_shared: u64,
}

/// A client that holds a content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub client: ClientId,
    pub since: UnixMillis,
    /// Deliveries of the content to this client, void ones not counted.
    pub deliveries: u64,
    /// Times of the newest deliveries, newest last, at most [`crate::api::node::LibraryRow::RECENT_MAX`].
    pub recent: Vec<UnixMillis>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeShare {
    pub node: NodeId,
    pub chunks: u64,
    pub bytes: u64,
}

/// How a gateway ranks the sources of a content, best first, and why. `GET /v1/peer/ranking?name=`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    pub candidates: Vec<RankedCandidate>,
}

/// One gateway of a site that holds the content, or an origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedCandidate {
    /// `site:osaka` or `origin:NAME`.
    pub source: String,
    /// Short name of the gateway, or the origin's name.
    pub gateway: ServerName,
    /// Base address, `http://host:port`.
    pub address: String,
    /// Smoothed; `None` while it is not measured.
    pub round_trip_us: Option<f64>,
    /// Smoothed, of what was fetched lately; `None` when nothing was.
    pub throughput_bytes_per_s: Option<f64>,
    /// Bytes that it has still to send, to this gateway or to others.
    pub load: f64,
    pub same_zone: bool,
    /// As configured at the ranking gateway.
    pub distance: Option<u32>,
    /// Expected seconds until the whole content is here; less is better.
    pub score: f64,
    /// A collection that began now would begin with it. Between equals another may be drawn the next time.
    pub chosen: bool,
    /// A short reason, for people.
    pub why: String,
}

/// What a source has to do at this moment. `GET /v1/peer/ping`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLoad {
    /// Bytes of chunks that it was asked for and has not sent yet.
    pub outstanding_bytes: u64,
}

/// Typed client of a source: a gateway of another site, or an origin.
#[derive(Clone)]
pub struct PeerClient {
    server: ServerClient,
    base: String,
    audience: Role,
}

impl PeerClient {
    pub fn gateway(server: ServerClient, base: &str) -> Self {
        Self { server, base: base.to_owned(), audience: Role::Gateway }
    }

    pub fn origin(server: ServerClient, base: &str) -> Self {
        Self { server, base: base.to_owned(), audience: Role::Origin }
    }

    pub(super) fn server(&self) -> &ServerClient {
        &self.server
    }

    pub(super) fn get<'a>(&'a self, path: &'a str, limit: Duration) -> Call<'a> {
        Call {
            method: Method::GET,
            base: &self.base,
            audience: self.audience,
            path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            limit,
        }
    }

    /// The newest complete version that the source holds; `ContentNotFound` when none.
    pub async fn holding(&self, name: &ContentName) -> Result<Holding, CallError> {
        let path = format!("/v1/peer/holding?name={}", encode(name.as_str()));
        self.server.get_json(&self.base, self.audience, &path, LIMIT).await
    }

    /// One chunk, or the stored chunk list, of a content; `offset` is the chunk's place in the content. The caller
    /// verifies the bytes.
    pub async fn chunk(&self, name: &ContentName, chunk: &ChunkRef, offset: u64) -> Result<Bytes, CallError> {
        let hash: &ChunkHash = &chunk.hash;
        let name = encode(name.as_str());
        let path = format!("/v1/peer/chunks/{hash}?name={name}&offset={offset}&len={}", chunk.len);
        let response = self.server.call(self.get(&path, LIMIT)).await?;
        let url = format!("{}{path}", self.base);
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, read_body(&url, response.into_body(), crate::chunker::CHUNK_LEN_MAX))
            .await
            .map_err(|_| CallError::Timeout { url: url.clone(), limit })?
    }

    /// Base address of the source.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Answers at once: for measuring the round trip. A source that does not count its load tells none.
    pub async fn ping(&self) -> Result<Option<PeerLoad>, CallError> {
        self.server.get_json(&self.base, self.audience, "/v1/peer/ping", Duration::from_secs(2)).await
    }

    /// Of gateways only: how it would rank the sources of a content now; `ContentNotFound` when there is none.
    pub async fn ranking(&self, name: &ContentName) -> Result<Ranking, CallError> {
        let path = format!("/v1/peer/ranking?name={}", encode(name.as_str()));
        self.server.get_json(&self.base, self.audience, &path, LIMIT).await
    }

    pub async fn possession(&self, request: &PossessionRequest) -> Result<PossessionAnswer, CallError> {
        // Home may have to collect the content's beginning first.
        let limit = Duration::from_secs(30);
        self.server
            .send_json(Method::POST, &self.base, self.audience, "/v1/peer/possession", request, limit)
            .await
    }

    pub async fn usages(&self) -> Result<SiteUsage, CallError> {
        let limit = Duration::from_secs(60);
        self.server.get_json(&self.base, self.audience, "/v1/peer/usages", limit).await
    }

    pub async fn ends(&self, ends: &PeerEnds) -> Result<(), CallError> {
        self.server.send_json(Method::POST, &self.base, self.audience, "/v1/peer/ends", ends, LIMIT).await
    }

    pub async fn who_holds(
        &self,
        name: &ContentName,
        after: &str,
        limit: u32,
    ) -> Result<SiteHolders, CallError> {
        let (name, after) = (encode(name.as_str()), encode(after));
        let path = format!("/v1/peer/who-holds?name={name}&after={after}&limit={limit}");
        self.server.get_json(&self.base, self.audience, &path, LIMIT).await
    }
}
