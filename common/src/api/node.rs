//! The storage node: chunks, holdings, libraries and deliveries, as gateways ask for them.
//!
//! Every answer that says a thing is done says that it is durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::form::Compact;
use crate::api::mobile_access::AnsweredChallenge;
use crate::api::temporary::{
    BeginAwayRequest, CompleteAnswer, CompleteRequest, KeepAnswer, KeepEndsRequest, KeepRequest, Kept,
    LeaveRequest, ListRequest, TemporaryContent,
};
use crate::auth::Role;
use crate::client::{Call, CallError, ServerClient, encode, read_body};
use crate::cluster::{ClusterMap, MapEpoch};
use crate::error::ErrorBody;
use crate::hash::{ChunkHash, ContentHash, RecordDigest};
use crate::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use crate::manifest::{ChunkRef, Manifest};
use crate::name::ContentName;
use crate::placement::Slot;
use crate::record::{DeliveryClass, DeliveryPath, Source};
use crate::time::UnixMillis;
use crate::version::{HybridTime, Version};

const LIMIT: Duration = Duration::from_secs(10);
/// For looking at some hundred contents with all their chunks.
const AUDIT_LIMIT: Duration = Duration::from_secs(60);

/// Marks the back-references that the chunks of one holding carry: random, made when the bytes begin to come in,
/// so that an upload's references never mix with those of the version it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RefTag(pub u64);

impl RefTag {
    pub fn generate() -> Self {
        let mut bytes = [0u8; 8];
        crate::auth::fill_random(&mut bytes);
        // JSON numbers are exact up to 53 bits in every reader.
        Self(u64::from_le_bytes(bytes) >> 11)
    }
}

/// What a client may hold in its library at most; `None` is no bound. Kept by search, given along by the gateway, checked
/// in the commit that makes the library row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Quota {
    /// Sum of the lengths of its contents, in bytes.
    #[serde(default)]
    pub bytes: Option<u64>,
    #[serde(default)]
    pub contents: Option<u64>,
}

impl Quota {
    pub fn is_bounded(&self) -> bool {
        self.bytes.is_some() || self.contents.is_some()
    }
}

/// What the rows of a client's library come to. `GET /v1/library/account?client=`, from the owner of the client's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Account {
    pub contents: u64,
    /// Sum of the lengths of its contents.
    pub logical_bytes: u64,
    /// Deliveries of these contents to the client.
    pub deliveries: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldingState {
    /// A gateway is fetching its chunks; some may be missing.
    Collecting,
    /// Every chunk is at the site.
    Complete,
    /// Complete, but a newer version exists elsewhere or the provider withdrew it: not for new deliveries.
    Superseded,
}

/// "This site has this version of this name."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    pub name: ContentName,
    pub version: Version,
    pub manifest: Manifest,
    /// The original provider.
    pub provider: ClientId,
    pub state: HoldingState,
    pub ref_tag: RefTag,
    pub since: UnixMillis,
}

/// `POST /v1/holdings/resolve`, to the owner of the name's slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResolveRequest {
    pub name: ContentName,
    /// Also note (durably) that this client is about to hold the content.
    #[serde(default)]
    pub client: Option<ClientId>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResolveAnswer {
    pub holding: Option<Holding>,
}

/// What must be true of the name before it is held anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Precondition {
    #[default]
    None,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match`
    Matches(ContentHash),
}

/// `POST /v1/holdings/hold`, to the owner of the name's slot. Replaces an older version; what is as new or
/// newer stays and is answered. A collection is held `Collecting` first; completing one that was given up meanwhile is
/// a `Conflict`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HoldRequest {
    pub name: ContentName,
    pub manifest: Manifest,
    pub provider: ClientId,
    pub state: HoldingState,
    pub ref_tag: RefTag,
    /// `None` for a publication: the node takes a time after every version it knows. `Some` for a collection.
    #[serde(default)]
    pub version_time: Option<HybridTime>,
    /// A client that holds it from now on.
    #[serde(default)]
    pub client: Option<ClientId>,
    /// Enter it into that client's library too: what a client publishes it has.
    #[serde(default)]
    pub add_to_library: bool,
    /// What the client's library may hold, where it is entered in the same step.
    #[serde(default)]
    pub quota: Quota,
    #[serde(default)]
    pub precondition: Precondition,
    /// Wait up to this long for search to know, so that a listing shows it at once.
    #[serde(default)]
    pub announce_wait_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HoldAnswer {
    /// The version that the site holds now.
    pub version: Version,
    /// What the chunks of that version are referenced with: a collection goes on with what another began.
    pub ref_tag: RefTag,
    /// Hash of the version that was replaced.
    pub replaced: Option<ContentHash>,
    /// Whether search knows.
    pub announced: bool,
    /// Whether the library row that was wanted is durable; if not, ask the owner of the client's slot for it.
    #[serde(default)]
    pub in_library: bool,
}

/// The provider takes a content back, or a client drops its reference.
/// `POST /v1/holdings/withdraw` and `POST /v1/holdings/release`, to the owner of the name's slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseRequest {
    pub name: ContentName,
    pub client: ClientId,
    #[serde(default)]
    pub precondition: Precondition,
    #[serde(default)]
    pub announce_wait_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseAnswer {
    /// False when there was nothing to release.
    pub released: bool,
}

/// Asks which chunks a node has, and adds the back-reference to those in the same step, so they cannot go away.
/// `POST /v1/chunks/claim`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimRequest {
    pub name: ContentName,
    pub ref_tag: RefTag,
    pub chunks: Vec<ChunkHash>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimAnswer {
    /// Chunks of the request that the node does not have, in the request's order.
    pub missing: Vec<ChunkHash>,
}

/// Records a delivery, durably, before its first byte.
/// `POST /v1/deliveries/begin`, to the owner of the client's slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BeginRequest {
    /// Made by the gateway: the same id again gets the same answer.
    pub delivery: DeliveryId,
    pub client: ClientId,
    pub name: ContentName,
    pub hash: ContentHash,
    pub provider: ClientId,
    pub bytes_total: u64,
    /// First byte asked for. Above 0 the request joins the client's newest open delivery of this version.
    pub range_start: u64,
    pub path: DeliveryPath,
    #[serde(default)]
    pub source: Option<Source>,
    pub searched: bool,
    #[serde(default)]
    pub surrogate: Option<SiteId>,
    #[serde(default)]
    pub mobile_access: Option<ServerName>,
    /// A purchase beyond it is refused with `QuotaExceeded`; what the client holds it gets.
    #[serde(default)]
    pub quota: Quota,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginAnswer {
    /// The delivery that the bytes belong to: the request's, or the one that it joined.
    pub delivery: DeliveryId,
    pub class: DeliveryClass,
    /// The node whose shard has the record; who serves that shard takes its end.
    pub shard: NodeId,
}

/// *resolve* and *begin* in one commit, for a plain GET: what the site holds complete is delivered at once, to a
/// client that is thereby noted as a holder. Anything else is answered as it is and nothing changes.
/// Part of an [`OpenBatch`], for the node that owns both the name's slot and the client's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenRequest {
    /// Made by the gateway: the same id again gets the same answer.
    pub delivery: DeliveryId,
    pub client: ClientId,
    pub name: ContentName,
    /// The client's `Range` header.
    #[serde(default)]
    pub range: Option<String>,
    #[serde(default)]
    pub surrogate: Option<SiteId>,
    #[serde(default)]
    pub mobile_access: Option<ServerName>,
    /// As in [`BeginRequest::quota`].
    #[serde(default)]
    pub quota: Quota,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenAnswer {
    pub holding: Option<Holding>,
    /// `None` when the holding is not complete, has nothing in the range, or when the request may belong to a delivery in
    /// another shard: a begin finds out.
    #[serde(default)]
    pub begin: Option<BeginAnswer>,
}

/// Deliveries that are opened together, each for itself. `POST /v1/deliveries/open`; answered in the same order, each
/// with its own refusal: `WrongNode` unless the node owns both slots, `QuotaExceeded`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenBatch {
    pub opens: Vec<OpenRequest>,
}

impl Compact for OpenBatch {
    const VERSION: u8 = 1;
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenAnswers {
    pub answers: Vec<Result<OpenAnswer, ErrorBody>>,
}

/// A later range joins a delivery that is open in a shard which has the client's slot no more, durably; `None` when it
/// is over, or of another version. The same request again gets the same answer.
/// `POST /v1/deliveries/join`, to who serves the shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    pub shard: NodeId,
    pub delivery: DeliveryId,
    /// Id that the request began with.
    pub request: DeliveryId,
    pub hash: ContentHash,
    pub client: ClientId,
}

/// How a delivery, or one range of it, went. `POST /v1/deliveries/end`, to who serves [`BeginAnswer::shard`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRequest {
    pub delivery: DeliveryId,
    /// Id that the request began with: the delivery's own, or another one if it joined. The same id again changes
    /// nothing.
    pub request: DeliveryId,
    pub bytes_sent: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndBatch {
    pub shard: NodeId,
    pub ends: Vec<EndRequest>,
}

impl Compact for EndBatch {
    const VERSION: u8 = 1;
}

/// A content in a client's library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryRow {
    pub name: ContentName,
    pub hash: ContentHash,
    pub len: u64,
    pub provider: ClientId,
    pub since: UnixMillis,
    /// Deliveries of this content to this client, void ones not counted.
    pub deliveries: u64,
    /// Times of the newest deliveries, newest last, at most [`LibraryRow::RECENT_MAX`].
    pub recent: Vec<UnixMillis>,
}

impl LibraryRow {
    pub const RECENT_MAX: usize = 16;
}

/// A client adds what it publishes to its own library. `POST /v1/library/add`, to the owner of the client's slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddRequest {
    pub client: ClientId,
    pub name: ContentName,
    pub hash: ContentHash,
    pub len: u64,
    pub provider: ClientId,
    /// A new row beyond it is refused with `QuotaExceeded`. A new version of what the client has is not: it is held
    /// already when this is asked.
    #[serde(default)]
    pub quota: Quota,
}

/// `POST /v1/library/drop`, to the owner of the client's slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DropRequest {
    pub client: ClientId,
    pub name: ContentName,
}

/// `GET /v1/library?client=&prefix=&after=&limit=`; `prefix` and `after` are beginnings of content names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LibraryPage {
    pub rows: Vec<LibraryRow>,
    #[serde(default)]
    pub next: Option<String>,
}

/// Who holds a content at this site, in the order of the clients' ids, from the owner of the name's slot.
/// `GET /v1/holdings/clients?name=&after=&limit=`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HoldingClients {
    pub holding: Option<Holding>,
    /// Clients behind `after`, at most `limit`.
    pub clients: Vec<HoldingClient>,
    /// All of them.
    pub clients_total: u64,
    /// Give this as `after` for the next page; `None` on the last.
    #[serde(default)]
    pub next: Option<ClientId>,
}

/// A client that holds a content, since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingClient {
    pub client: ClientId,
    pub since: UnixMillis,
}

/// Which references are those of a present holding, in the request's order. `POST /v1/holdings/check-refs`, to the owner of
/// the slots of all the names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckRefsRequest {
    pub refs: Vec<(ContentName, RefTag)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckRefsAnswer {
    pub current: Vec<bool>,
}

/// Clients hold chunks through a holding, or no longer do. Saying it again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyChange {
    pub name: ContentName,
    pub ref_tag: RefTag,
    pub held: bool,
    pub clients: Vec<ClientId>,
    pub chunks: Vec<ChunkRef>,
}

/// `POST /v1/tally`, to the owner of the slots of all the chunks ([`Slot::of_chunk`]).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TallyRequest {
    /// The shard that has the names, and its term: what one says that is not its primary any more does not count.
    pub from: NodeId,
    pub term: u64,
    pub changes: Vec<TallyChange>,
}

/// What clients hold of the chunks of some slots. `POST /v1/tally/sums`, to the owner of the slots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TallySumsRequest {
    pub slots: Vec<Slot>,
    /// Clients that are wanted; `None`: all that hold anything.
    #[serde(default)]
    pub clients: Option<Vec<ClientId>>,
}

/// Sums over slots; those of all slots are the site's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallySums {
    /// Bytes of chunks that one client alone holds.
    pub unique_bytes: u64,
    /// Bytes of chunks that more than one client holds, each chunk once.
    pub shared_bytes: u64,
    /// The same, each chunk as often as there are clients that hold it.
    pub shared_held_bytes: u64,
    pub clients: BTreeMap<ClientId, ClientTally>,
}

/// What one client holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTally {
    /// Bytes of chunks that no other client holds.
    pub unique_bytes: u64,
    /// Bytes of chunks that others hold too, in full.
    pub shared_held_bytes: u64,
}

impl TallySums {
    /// Bytes of all chunks that clients hold, each once.
    pub fn physical_bytes(&self) -> u64 {
        self.unique_bytes + self.shared_bytes
    }

    pub fn add(&mut self, other: &Self) {
        self.unique_bytes += other.unique_bytes;
        self.shared_bytes += other.shared_bytes;
        self.shared_held_bytes += other.shared_held_bytes;
        for (client, tally) in &other.clients {
            let sum = self.clients.entry(client.clone()).or_default();
            sum.unique_bytes += tally.unique_bytes;
            sum.shared_held_bytes += tally.shared_held_bytes;
        }
    }

    /// A client's part of the shared bytes, in proportion to what it holds of them, rounded down.
    pub fn fair_share(&self, tally: &ClientTally) -> u64 {
        let parts = u128::from(self.shared_bytes) * u128::from(tally.shared_held_bytes);
        // A quotient of a part by the whole is not above `shared_bytes`.
        parts.checked_div(u128::from(self.shared_held_bytes)).map_or(0, |share| share as u64)
    }

    /// The fair shares of all clients: what rounding down leaves goes, a byte each, to those who lost most by it, so that
    /// they add up to the shared bytes. Needs the sums of all clients.
    pub fn fair_shares(&self) -> BTreeMap<ClientId, u64> {
        let mut shares: BTreeMap<_, _> =
            self.clients.iter().map(|(client, tally)| (client.clone(), self.fair_share(tally))).collect();
        let left = self.shared_bytes.saturating_sub(shares.values().sum());
        let mut losses: Vec<(u128, &ClientId)> = self
            .clients
            .iter()
            .map(|(client, tally)| {
                (u128::from(self.shared_bytes) * u128::from(tally.shared_held_bytes), client)
            })
            .map(|(parts, client)| (parts % u128::from(self.shared_held_bytes.max(1)), client))
            .collect();
        losses.sort_by(|a, b| b.cmp(a));
        for (_, client) in losses.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            if let Some(share) = shares.get_mut(client) {
                *share += 1;
            }
        }
        shares
    }
}

/// Which of these chunks this node has, and how many holdings refer to each. `POST /v1/chunks/refs`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChunkRefsRequest {
    pub chunks: Vec<ChunkHash>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChunkRefsAnswer {
    /// `None` for a chunk that is not here.
    pub refs: Vec<Option<u64>>,
}

/// Removes a holding's back-references from these chunks. A chunk that nothing refers to is deleted after a grace.
/// `POST /v1/chunks/release`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChunkReleaseRequest {
    pub name: ContentName,
    pub ref_tag: RefTag,
    pub chunks: Vec<ChunkHash>,
}

/// A node gives chunks' references on to another that is to have the chunks too. What that one has gets them, in the
/// same step; the rest it lacks. At most [`AdoptRequest::REFS_MAX`] references, so those of one chunk may come in
/// several requests. `WrongNode` if the answerer, under the map that it knows, is not to have one of the chunks.
/// `POST /v1/chunks/adopt`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdoptRequest {
    pub chunks: Vec<ChunkRefs>,
}

impl AdoptRequest {
    pub const REFS_MAX: usize = 4096;
}

/// A chunk and references to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRefs {
    pub hash: ChunkHash,
    pub refs: Vec<(RefTag, ContentName)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdoptAnswer {
    /// Chunks of the request that the node does not have, in the request's order.
    pub missing: Vec<ChunkHash>,
}

/// A new owner asks for the rows of slots. The answerer takes no more changes to them until the move is done
/// or has been given up. `POST /v1/slots/export`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExportRequest {
    /// The shard that has the slots.
    pub from: NodeId,
    /// The shard that is to have them.
    pub to: NodeId,
    pub slots: Vec<Slot>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExportAnswer {
    pub fence: u64,
    /// The slots whose rows these are: as many of those asked for as fit one answer.
    pub slots: Vec<Slot>,
    /// Last change of search's feed that is in the rows; the new owner reads on from there.
    pub changes_after: u64,
    /// Rows as the catalog keeps them: key and value.
    pub rows: Vec<(Bytes, Bytes)>,
}

/// The old owner of slots that were handed out, while search does not answer, asks the new one to promise that it will
/// not serve them with the rows it got: only with those that it fetches anew should the map name it as their owner.
/// Then the old owner may take changes again. `POST /v1/slots/release`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseSlotsRequest {
    /// The shard that asks, and had the slots.
    pub from: NodeId,
    /// The shard that was to have them.
    pub to: NodeId,
    pub slots: Vec<Slot>,
    /// What they were handed out with.
    pub fence: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseSlotsAnswer {
    /// Those for which the promise is given, durably, and still stands. The map that the answerer has gives the others
    /// to another shard than the one that asks, and nothing of that one is needed any more.
    pub promised: Vec<Slot>,
}

/// The owner of slots that it promised not to serve asks for their rows anew. `POST /v1/slots/export-anew`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExportAnewRequest {
    /// The shard that had the slots.
    pub from: NodeId,
    /// The shard that has them.
    pub to: NodeId,
    pub slots: Vec<Slot>,
    /// What they were handed out with.
    pub fence: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExportAnewAnswer {
    /// Slots whose rows are as they were handed out.
    pub unchanged: Vec<Slot>,
    /// Slots whose rows these are: as many of the others as fit one answer.
    pub slots: Vec<Slot>,
    /// As in [`ExportAnswer`].
    pub changes_after: u64,
    pub rows: Vec<(Bytes, Bytes)>,
}

/// How far a shard's rows are: number of the last batch, in the term of the primary that committed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct ShardPosition {
    pub term: u64,
    pub seq: u64,
}

/// One committed batch of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Where the shard was before: a follower that is elsewhere has another history.
    pub previous: ShardPosition,
    pub position: ShardPosition,
    /// Row changes, as in the log of a node.
    pub changes: Bytes,
}

/// What the primary of a shard sends to a node that follows it. `POST /v1/shards/{shard}/ship`, as postcard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipment {
    pub primary: NodeId,
    pub term: u64,
    pub cargo: Cargo,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cargo {
    /// Nothing: the question how far the follower is.
    Question,
    /// The next batches, in order.
    Entries(Vec<ShardEntry>),
    /// All rows come anew; those that are there go. What was committed up to `at` is in the rows that follow, what is
    /// committed later comes as entries between them.
    /// Rows of another attempt than the last one begun are refused.
    Begin { at: ShardPosition, attempt: u64 },
    /// Rows as the catalog keeps them: key and value.
    Rows { attempt: u64, rows: Vec<(Bytes, Bytes)> },
    /// All rows have come, and all entries up to `at`.
    Whole { at: ShardPosition, attempt: u64 },
}

/// Where a follower is once what it was sent is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// `None` while it lacks rows.
    pub at: Option<ShardPosition>,
}

/// Contents of a shard that the site no longer has whole. `GET /v1/audit?shard=&after=&limit=`, to who serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// Contents that were looked at.
    pub checked: u64,
    pub incomplete: Vec<Incomplete>,
    /// Give this as `after` for the next page; `None` on the last.
    #[serde(default)]
    pub next: Option<ContentName>,
}

/// A content of which chunks are at no node of the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    pub name: ContentName,
    pub version: Version,
    pub len: u64,
    pub missing_bytes: u64,
    /// Clients of the site that hold it.
    pub clients: u64,
}

/// `GET /v1/node` on the admin listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: NodeId,
    pub state: String,
    /// Where the chunks are, as in `file:/path`.
    pub store: String,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Bytes of contents that refer to this node's chunks: what would be stored without deduplication.
    pub logical_bytes: u64,
    pub chunks: u64,
    /// Bytes that this node still has to send to other nodes of the site.
    pub moves_pending_bytes: u64,
    /// Bytes a second that it sent to them lately.
    #[serde(default)]
    pub moves_rate_bytes_per_s: u64,
    /// Bytes a second that it may send to them; 0 is without limit.
    #[serde(default)]
    pub moves_limit_bytes_per_s: u64,
    /// Records, announcements and releases of the node's shard that are not yet settled with others.
    #[serde(default)]
    pub unsettled: u64,
    /// Contents that the shards which the node serves keep for visitors, and their bytes.
    #[serde(default)]
    pub temporary_contents: u64,
    #[serde(default)]
    pub temporary_bytes: u64,
    pub epoch: MapEpoch,
}

/// What a round of the scrub has seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubCounts {
    /// Chunks that were read and verified, and their bytes.
    pub chunks: u64,
    pub bytes: u64,
    /// Chunks with other bytes than their own. They were taken out and wait for a good copy.
    pub damaged: u64,
    /// Chunks that the node should have and does not.
    pub missing: u64,
    /// Chunks that could not be read, tried again and again.
    pub unreadable: u64,
    /// Chunks that nothing knew of; deleted.
    pub surplus: u64,
}

/// A round of the scrub that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubRound {
    pub started: UnixMillis,
    pub completed: UnixMillis,
    pub counts: ScrubCounts,
}

/// `GET /v1/scrub` and `POST /v1/scrub` on the admin listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Whether a round is under way.
    pub running: bool,
    /// Bytes read a second at most; 0 means that the scrub is off.
    pub bytes_per_s: u64,
    /// From 0 to 1, of the round under way.
    pub progress: f64,
    pub started: Option<UnixMillis>,
    /// Of the round under way.
    pub counts: ScrubCounts,
    pub last_completed: Option<ScrubRound>,
}

/// The newest delivery record of a shard. `GET /v1/records/heads`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordHead {
    pub shard: NodeId,
    pub epoch: u64,
    /// 0 before the first record of the epoch.
    pub seq: u64,
    pub digest: RecordDigest,
}

/// Typed client of one storage node.
#[derive(Clone)]
pub struct NodeClient {
    server: ServerClient,
    base: Arc<str>,
}

macro_rules! posts {
    ($($(#[$doc:meta])* $method:ident, $path:literal, $question:ty => $answer:ty;)*) => {
        $($(#[$doc])*
        pub async fn $method(&self, question: &$question) -> Result<$answer, CallError> {
            self.post($path, question).await
        })*
    };
}

impl NodeClient {
    pub fn new(server: ServerClient, base: &str) -> Self {
        Self { server, base: base.into() }
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub(super) async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<A, CallError> {
        self.server.send_json(Method::POST, &self.base, Role::StorageNode, path, question, LIMIT).await
    }

    posts! {
        resolve, "/v1/holdings/resolve", ResolveRequest => ResolveAnswer;
        /// `PreconditionFailed`, `NodeFull`, `QuotaExceeded`.
        hold, "/v1/holdings/hold", HoldRequest => HoldAnswer;
        withdraw, "/v1/holdings/withdraw", ReleaseRequest => ReleaseAnswer;
        release, "/v1/holdings/release", ReleaseRequest => ReleaseAnswer;
        claim, "/v1/chunks/claim", ClaimRequest => ClaimAnswer;
        chunk_refs, "/v1/chunks/refs", ChunkRefsRequest => ChunkRefsAnswer;
        adopt_chunks, "/v1/chunks/adopt", AdoptRequest => AdoptAnswer;
        release_chunks, "/v1/chunks/release", ChunkReleaseRequest => ();
        /// `QuotaExceeded`.
        begin, "/v1/deliveries/begin", BeginRequest => BeginAnswer;
        join, "/v1/deliveries/join", JoinRequest => Option<BeginAnswer>;
        /// `QuotaExceeded`.
        library_add, "/v1/library/add", AddRequest => ();
        library_drop, "/v1/library/drop", DropRequest => ReleaseAnswer;
        /// `ChallengeReplayed`.
        answer_challenge, "/v1/challenges/answer", AnsweredChallenge => ();
        export_slots, "/v1/slots/export", ExportRequest => ExportAnswer;
        release_slots, "/v1/slots/release", ReleaseSlotsRequest => ReleaseSlotsAnswer;
        /// `WrongNode` while the answerer has the slots under the newest map that it can get.
        export_slots_anew, "/v1/slots/export-anew", ExportAnewRequest => ExportAnewAnswer;
        check_refs, "/v1/holdings/check-refs", CheckRefsRequest => CheckRefsAnswer;
        keep_temporary, "/v1/temporary/keep", KeepRequest => KeepAnswer;
        leave_temporary, "/v1/temporary/leave", LeaveRequest => ();
        complete_temporary, "/v1/temporary/complete", CompleteRequest => CompleteAnswer;
        begin_away, "/v1/temporary/begin", BeginAwayRequest => BeginAnswer;
        keep_ends, "/v1/temporary/ends", KeepEndsRequest => ();
        list_temporary, "/v1/temporary/list", ListRequest => Vec<TemporaryContent>;
        tally, "/v1/tally", TallyRequest => ();
        tally_sums, "/v1/tally/sums", TallySumsRequest => TallySums;
    }

    pub async fn open(&self, batch: &OpenBatch) -> Result<OpenAnswers, CallError> {
        self.ask("/v1/deliveries/open", batch).await
    }

    pub async fn end(&self, batch: &EndBatch) -> Result<(), CallError> {
        self.ask("/v1/deliveries/end", batch).await
    }

    async fn ask<Q, A>(&self, path: &str, question: &Q) -> Result<A, CallError>
    where
        Q: Compact + Serialize,
        A: DeserializeOwned,
    {
        self.server.ask(&self.base, Role::StorageNode, path, question, LIMIT).await
    }

    /// `Conflict` when the follower knows another primary, or a greater term.
    pub async fn ship(&self, shard: &NodeId, shipment: &Shipment) -> Result<ShardState, CallError> {
        let path = format!("/v1/shards/{shard}/ship");
        let body = postcard::to_allocvec(shipment).expect("shipments are plain values, which always encode");
        let call = Call {
            method: Method::POST,
            base: &self.base,
            audience: Role::StorageNode,
            path: &path,
            headers: HeaderMap::new(),
            body: body.into(),
            limit: LIMIT,
        };
        self.server.json(call).await
    }

    /// Stores a chunk with its back-reference. The node checks the hash; a chunk that it has is not written again
    /// and gets `false` (status 200 instead of 201).
    pub async fn put_chunk(
        &self,
        hash: &ChunkHash,
        name: &ContentName,
        tag: RefTag,
        bytes: Bytes,
    ) -> Result<bool, CallError> {
        let path = format!("/v1/chunks/{hash}?tag={}&name={}", tag.0, encode(name.as_str()));
        let call = Call {
            method: Method::PUT,
            base: &self.base,
            audience: Role::StorageNode,
            path: &path,
            headers: HeaderMap::new(),
            body: bytes,
            limit: Duration::from_secs(30),
        };
        let response = self.server.call(call).await?;
        Ok(response.status() == http::StatusCode::CREATED)
    }

    /// A chunk's bytes as a stream. The node has verified them. `ChunkNotFound` when it has it not.
    pub async fn get_chunk(&self, hash: &ChunkHash) -> Result<Response<Incoming>, CallError> {
        let path = format!("/v1/chunks/{hash}");
        let call = Call {
            method: Method::GET,
            base: &self.base,
            audience: Role::StorageNode,
            path: &path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            limit: LIMIT,
        };
        self.server.call(call).await
    }

    /// A chunk's bytes, whole.
    pub async fn get_chunk_bytes(&self, hash: &ChunkHash) -> Result<Bytes, CallError> {
        let response = self.get_chunk(hash).await?;
        read_body(&self.base, response.into_body(), crate::chunker::CHUNK_LEN_MAX).await
    }

    pub async fn library(
        &self,
        client: &ClientId,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> Result<LibraryPage, CallError> {
        let (prefix, after) = (encode(prefix), encode(after));
        let path = format!("/v1/library?client={client}&prefix={prefix}&after={after}&limit={limit}");
        self.server.get_json(&self.base, Role::StorageNode, &path, LIMIT).await
    }

    /// `None` when the client does not hold the name.
    pub async fn library_row(
        &self,
        client: &ClientId,
        name: &ContentName,
    ) -> Result<Option<LibraryRow>, CallError> {
        let path = format!("/v1/library/row?client={client}&name={}", encode(name.as_str()));
        self.server.get_json(&self.base, Role::StorageNode, &path, LIMIT).await
    }

    /// What is kept for a visiting client under a name.
    pub async fn kept(&self, client: &ClientId, name: &ContentName) -> Result<Option<Kept>, CallError> {
        let path = format!("/v1/temporary/kept?client={client}&name={}", encode(name.as_str()));
        self.server.get_json(&self.base, Role::StorageNode, &path, LIMIT).await
    }

    pub async fn audit(&self, shard: &NodeId, after: Option<&ContentName>) -> Result<AuditPage, CallError> {
        let after = after.map_or_else(String::new, |name| format!("&after={}", encode(name.as_str())));
        let path = format!("/v1/audit?shard={shard}{after}");
        self.server.get_json(&self.base, Role::StorageNode, &path, AUDIT_LIMIT).await
    }

    pub async fn account(&self, client: &ClientId) -> Result<Account, CallError> {
        let path = format!("/v1/library/account?client={client}");
        self.server.get_json(&self.base, Role::StorageNode, &path, LIMIT).await
    }

    pub async fn holding_clients(
        &self,
        name: &ContentName,
        after: &str,
        limit: u32,
    ) -> Result<HoldingClients, CallError> {
        let name = encode(name.as_str());
        let path = format!("/v1/holdings/clients?name={name}&after={}&limit={limit}", encode(after));
        self.server.get_json(&self.base, Role::StorageNode, &path, LIMIT).await
    }

    /// How far the delivery records of the node's shards go.
    pub async fn record_heads(&self) -> Result<Vec<RecordHead>, CallError> {
        self.server.get_json(&self.base, Role::StorageNode, "/v1/records/heads", LIMIT).await
    }

    /// The digest of one delivery record; `NotFound` if the shard has none of this number.
    pub async fn record_digest(
        &self,
        shard: &NodeId,
        epoch: u64,
        seq: u64,
    ) -> Result<RecordDigest, CallError> {
        let path = format!("/v1/records/digest?shard={shard}&epoch={epoch}&seq={seq}");
        self.server.get_json(&self.base, Role::StorageNode, &path, LIMIT).await
    }

    /// The last cluster map that the node saw; it has one also while search is down.
    pub async fn map(&self) -> Result<ClusterMap, CallError> {
        self.server.get_json(&self.base, Role::StorageNode, "/v1/map", LIMIT).await
    }

    /// Hands a map on, which the node takes if it is newer than its own: search may have died before it had told all.
    pub async fn hand_on_map(&self, map: &ClusterMap) -> Result<(), CallError> {
        self.server.send_json(Method::PUT, &self.base, Role::StorageNode, "/v1/map", map, LIMIT).await
    }
}
