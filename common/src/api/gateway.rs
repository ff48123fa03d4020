//! The gateway as clients see it: header names and JSON shapes of the plain HTTP API.

use http::header::HeaderName;
use serde::{Deserialize, Serialize};

use crate::api::billing::Quote;
use crate::hash::ContentHash;
use crate::id::{ClientId, SiteId};
use crate::name::ContentName;
use crate::record::DeliveryClass;
use crate::time::UnixMillis;

/// Id of the recorded delivery.
pub const DELIVERY: HeaderName = HeaderName::from_static("dozo-delivery");
/// `purchase` or `reference`.
pub const CLASS: HeaderName = HeaderName::from_static("dozo-class");
/// `hit`, `peer` or `origin`.
pub const SOURCE: HeaderName = HeaderName::from_static("dozo-source");
/// The site or origin that the content was collected from.
pub const SOURCE_SITE: HeaderName = HeaderName::from_static("dozo-source-site");
/// Why it was collected from there and not from another: `osaka/g1 12.3 ms, 80 MiB/s; next nagoya/g2 40 ms`.
pub const RANKING: HeaderName = HeaderName::from_static("dozo-ranking");
/// Expected BLAKE3 of the body of a PUT; a mismatch stores nothing.
pub const CONTENT_HASH: HeaderName = HeaderName::from_static("dozo-content-hash");
/// Prefix of headers that carry a content's own metadata.
pub const METADATA_PREFIX: &str = "dozo-meta-";

/// Answer to `PUT /v1/contents/{bucket}/{key}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub name: String,
    pub hash: ContentHash,
    pub len: u64,
    pub chunks: u64,
    /// Bytes of chunks that the site did not have before.
    pub new_bytes: u64,
}

/// One line of `GET /v1/contents/{bucket}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedContent {
    pub key: String,
    pub hash: ContentHash,
    pub len: u64,
    pub media_type: String,
    pub provider: ClientId,
    pub modified: UnixMillis,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentListing {
    pub contents: Vec<ListedContent>,
    pub prefixes: Vec<String>,
    pub next: Option<String>,
}

/// Answer to `GET /v1/usage`: what the client holds at its home site, and what was delivered to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientUsage {
    pub client: ClientId,
    pub contents: u64,
    /// Bytes of all contents in the library.
    pub logical_bytes: u64,
    /// Bytes of chunks that no other client of the site holds.
    pub unique_bytes: u64,
    /// The client's part of the bytes that several clients hold, in proportion to what each of them holds of such bytes.
    pub shared_bytes: u64,
    /// Bytes of chunks that other clients hold too, in full.
    pub shared_held_bytes: u64,
    /// What the client takes: its unique bytes and its part of the shared ones. Over all clients of the site they are the
    /// bytes of all chunks that any of them holds.
    pub physical_bytes: u64,
    /// Logical bytes that take no space.
    pub savings_bytes: u64,
    /// Deliveries of the contents in the library.
    pub deliveries: u64,
    /// The client is at home at another site: what it takes here is kept for it for a while.
    #[serde(default)]
    pub visiting: bool,
    /// This month's charges as the billing servers have them; `None` while one does not answer, and in lists.
    pub service_usage: Option<crate::api::billing::Usage>,
    pub content_usage: Option<crate::api::billing::Usage>,
}

/// What a delivery of a content would be charged now. `GET /v1/quote/{bucket}/{key}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentQuote {
    pub name: ContentName,
    pub len: u64,
    pub provider: ClientId,
    /// What the next delivery would be: a purchase, or a reference if the client holds the content.
    pub class: DeliveryClass,
    pub service: Quote,
    pub content: Quote,
}

/// What all clients hold at a site. `GET /v1/peer/usages`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteUsage {
    pub site: SiteId,
    /// Bytes of all chunks that clients hold, each once, however many copies the site keeps.
    pub physical_bytes: u64,
    /// Those that one client alone holds.
    pub unique_bytes: u64,
    /// Those that several hold.
    pub shared_bytes: u64,
    /// In the order of their ids, visitors among them. Their physical bytes add up to those of the site.
    pub clients: Vec<ClientUsage>,
}
