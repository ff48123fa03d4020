//! Temporary content: what a site stores for clients of other sites while they visit it. The storage node keeps it, as
//! gateways ask; the calls are those of [`crate::api::node::NodeClient`].
//!
//! One content serves all visitors that have it. Each of them has its own confirmation by its home site, with its own
//! expiry; the content goes with the last of them. It is nobody's holding: it is not announced, it is in no library, and
//! no other site or client is told of it.

use serde::{Deserialize, Serialize};

use crate::api::node::{EndRequest, RefTag};
use crate::hash::{ContentHash, PossessionProof};
use crate::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use crate::manifest::Manifest;
use crate::name::ContentName;
use crate::placement::Slot;
use crate::possession::Possession;
use crate::time::UnixMillis;

/// A client's home confirmed that it may have a content here: the content is kept for it until the confirmation ends.
/// A later confirmation of the same version prolongs it; one of another version takes its place.
/// `POST /v1/temporary/keep`, to the owner of the name's slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeepRequest {
    pub possession: Possession,
    pub manifest: Manifest,
    pub proof: PossessionProof,
    /// For the chunks of a content that is not there yet.
    pub ref_tag: RefTag,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeepAnswer {
    /// What the chunks carry: that of the request, or of the content that is there.
    pub ref_tag: RefTag,
    /// Every chunk is at the site.
    pub complete: bool,
}

/// Every chunk of a temporary content is at the site. `POST /v1/temporary/complete`, to the owner of the name's slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CompleteRequest {
    pub name: ContentName,
    pub ref_tag: RefTag,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CompleteAnswer {
    /// False when it expired meanwhile.
    pub kept: bool,
}

/// What is kept for a client under a name, whole or not. `GET /v1/temporary/kept?name=&client=`, from the owner of the
/// name's slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub possession: Possession,
    pub manifest: Manifest,
    pub proof: PossessionProof,
    pub ref_tag: RefTag,
    pub complete: bool,
}

/// Records a delivery of what is kept for a client, durably, while its home is away: as a reference, for home confirmed
/// that the client holds it. `ContentNotFound` when it is not kept whole, or no longer.
/// `POST /v1/temporary/begin`, to the owner of the name's slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BeginAwayRequest {
    /// Made by the gateway: the same id again gets the same answer.
    pub delivery: DeliveryId,
    pub client: ClientId,
    pub name: ContentName,
    pub ref_tag: RefTag,
    /// First byte asked for. Above 0 the request joins the client's newest open delivery of this kind.
    pub range_start: u64,
    #[serde(default)]
    pub mobile_access: Option<ServerName>,
}

/// Ends of visitors' deliveries that their home does not take at the moment: kept, durably, until it does.
/// `POST /v1/temporary/ends`, to who serves the shard that is to keep them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeepEndsRequest {
    pub keeper: NodeId,
    /// The shard, of the home site, that recorded the begins.
    pub shard: NodeId,
    pub ends: Vec<EndRequest>,
}

/// Temporary contents of some slots, ordered by slot, name and client. `POST /v1/temporary/list`, to the owner of the
/// slots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListRequest {
    pub slots: Vec<Slot>,
    /// Those of one client; of all, if absent.
    #[serde(default)]
    pub client: Option<ClientId>,
    #[serde(default)]
    pub after: Option<(ContentName, ClientId)>,
    pub limit: u32,
}

/// A content that is kept for a visitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemporaryContent {
    pub name: ContentName,
    pub client: ClientId,
    /// The client's home site.
    pub home: SiteId,
    pub hash: ContentHash,
    pub len: u64,
    /// Every chunk is here; otherwise only those that were asked for.
    pub complete: bool,
    pub since: UnixMillis,
    /// When it goes, unless the client asks for it again.
    pub expires: UnixMillis,
}

/// `GET /v1/temporary?after=&after_client=&limit=` of a gateway: the client's own at this site.
/// `GET /v1/peer/temporary?client=&…`: all, or a client's, for the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemporaryPage {
    pub contents: Vec<TemporaryContent>,
    /// Give these as `after` and `after_client` for the next page; `None` on the last.
    #[serde(default)]
    pub next: Option<(ContentName, ClientId)>,
}
