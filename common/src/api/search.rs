//! Search: the directory of servers, clients, buckets and contents, and the cluster map.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::api::can_stop::CanStop;
use crate::api::node::Quota;
use crate::auth::Role;
use crate::card::PublicKey;
use crate::client::{Call, CallError, ServerClient, encode, read_body, read_refusal};
use crate::cluster::{ClusterMap, MapEpoch, MapId};
use crate::hash::ContentHash;
use crate::id::{BucketName, ClientId, NodeId, ServerName, SiteId};
use crate::name::ContentName;
use crate::placement::Slot;
use crate::time::UnixMillis;
use crate::version::Version;

const LIMIT: Duration = Duration::from_secs(5);
/// For some lines for each node of a site.
const VERDICT_LEN_MAX: usize = 1 << 20;

/// A server tells that it is there; repeated every [`Registered::heartbeat_ms`].
/// `POST /v1/servers`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registration {
    pub role: Role,
    pub name: ServerName,
    /// For gateways and storage nodes.
    #[serde(default)]
    pub site: Option<SiteId>,
    #[serde(default)]
    pub zone: Option<String>,
    pub http: String,
    #[serde(default)]
    pub s3: Option<String>,
    pub admin: String,
    /// For storage nodes.
    #[serde(default)]
    pub node: Option<NodeFacts>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Identity of the node's log, made when the log is made. A known node name with another log gets a new
    /// record epoch.
    pub log_id: String,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// The map that the node keeps. If it knows of changes that search does not, search takes it over.
    #[serde(default)]
    pub map: MapId,
    /// The record epoch that the node is in; 0 for none yet.
    #[serde(default)]
    pub record_epoch: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registered {
    pub map_epoch: MapEpoch,
    /// For storage nodes: epoch in which the node numbers its delivery records, from 1.
    pub record_epoch: Option<u64>,
    pub heartbeat_ms: u64,
}

/// First step of a slot move, asked by the present owner: proves ownership and makes a fence, which
/// invalidates every earlier fence of these slots.
/// `POST /v1/map/slots/fence`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FenceRequest {
    pub site: SiteId,
    pub owner: NodeId,
    pub slots: Vec<Slot>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fence {
    pub fence: u64,
}

/// Last step of a slot move, asked by the new owner once it has every row: takes effect only if `from` owns
/// all the slots and `fence` is their newest. `POST /v1/map/slots/move`, answers [`ClusterMap`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlotMove {
    pub site: SiteId,
    pub from: NodeId,
    pub to: NodeId,
    pub slots: Vec<Slot>,
    pub fence: u64,
}

/// The primary of a shard says who follows it from now on: who has every change that it will have acknowledged.
/// Takes effect only if it is the primary of that term. `POST /v1/map/shards/followers`, answers [`ClusterMap`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FollowersChange {
    pub site: SiteId,
    pub shard: NodeId,
    pub primary: NodeId,
    pub term: u64,
    #[serde(default)]
    pub add: Vec<NodeId>,
    #[serde(default)]
    pub remove: Vec<NodeId>,
}

/// The primary of a shard hands it to one of its followers and follows in its place, with a greater term.
/// `POST /v1/map/shards/hand-over`, answers [`ClusterMap`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandOver {
    pub site: SiteId,
    pub shard: NodeId,
    pub primary: NodeId,
    pub term: u64,
    pub to: NodeId,
}

/// Somebody could not reach a node. Search looks itself, and marks the node as down if it does not answer either.
/// A server that is about to stop says so, that nobody asks it any more. `POST /v1/servers/leave`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Leave {
    pub role: Role,
    #[serde(default)]
    pub site: Option<SiteId>,
    pub name: ServerName,
}

impl Leave {
    pub fn of(registration: &Registration) -> Self {
        let Registration { role, site, name, .. } = registration;
        Self { role: *role, site: site.clone(), name: name.clone() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaveAnswer {
    /// False for a node that nobody can stand in for: the map leads to it until it does not answer any more.
    pub left: bool,
}

/// `POST /v1/nodes/suspect`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Suspicion {
    pub node: NodeId,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SuspicionAnswer {
    pub alive: bool,
}

/// What becomes of a node. `POST /v1/nodes/{node}/{action}`, answers [`ClusterMap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeAction {
    /// Everything moves to the other nodes.
    Drain,
    /// A draining node takes its share again.
    Undrain,
    /// A drained node, which has nothing left, leaves. `Conflict` while it has something.
    Remove,
    /// A node that is down is given up with all that it alone had.
    RemoveLost,
}

impl NodeAction {
    pub const ALL: [Self; 4] = [Self::Drain, Self::Undrain, Self::Remove, Self::RemoveLost];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Remove => "remove",
            Self::RemoveLost => "remove-lost",
        }
    }
}

/// Settings of a site. `PUT /v1/sites/{site}`, answers [`ClusterMap`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SiteSettings {
    /// Copies of each chunk and each shard, 1 to 3; `None`: two, or one while the site has one node.
    pub replicas: Option<u8>,
}

/// The zone that a site is in; `None` for none. `PUT /v1/sites/{site}/zone`, answers [`ClusterMap`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SiteZone {
    pub zone: Option<ServerName>,
}

/// How far a site, a zone or an origin is from a site; `None` forgets it. `PUT /v1/sites/{site}/distance`, answers
/// [`ClusterMap`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SiteDistance {
    pub to: ServerName,
    pub distance: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewClient {
    pub client: ClientId,
    pub site: SiteId,
}

/// The keys of a new client; shown once, search keeps only what it needs to check them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientKeys {
    pub client: ClientId,
    pub site: SiteId,
    pub access_key: String,
    pub secret_key: String,
    pub token: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRecord {
    pub client: ClientId,
    /// Home site.
    pub site: SiteId,
    pub disabled: bool,
    pub created: UnixMillis,
    #[serde(flatten)]
    pub limits: ClientLimits,
}

/// What a client may take; `None` is no bound. `POST /v1/clients/{client}/limits` sets all four, answers [`ClientRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClientLimits {
    /// Sum of the lengths of the contents in its library, in bytes.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    #[serde(default)]
    pub quota_contents: Option<u64>,
    /// Requests a second at each gateway; more are refused.
    #[serde(default)]
    pub requests_per_s: Option<u64>,
    /// Bytes of contents a second, sent or received, at each gateway; more are slowed down.
    #[serde(default)]
    pub bytes_per_s: Option<u64>,
}

impl ClientLimits {
    pub fn quota(&self) -> Quota {
        Quota { bytes: self.quota_bytes, contents: self.quota_contents }
    }
}

/// A client gets a card. `POST /v1/cards`, answers [`CardRecord`]; the same again changes nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewCard {
    pub client: ClientId,
    pub card: PublicKey,
}

/// `GET /v1/cards?client=`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardRecord {
    pub card: PublicKey,
    pub client: ClientId,
    pub disabled: bool,
    pub created: UnixMillis,
}

/// A card and whose it is. `GET /v1/cards/{card}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardHolder {
    pub card: CardRecord,
    pub client: ClientRecord,
}

/// Shuts out one card of a client, or all of them. `POST /v1/cards/disable`, answers the [`CardRecord`]s.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DisableCards {
    pub client: ClientId,
    #[serde(default)]
    pub card: Option<PublicKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Only the provider reads it.
    Private,
    /// Every client may read it.
    Public,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewBucket {
    pub provider: ClientId,
    pub visibility: Visibility,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRecord {
    pub bucket: BucketName,
    pub provider: ClientId,
    pub visibility: Visibility,
    pub created: UnixMillis,
}

/// Who announces: a storage node for its site, or an origin.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Announcer {
    Node(NodeId),
    Origin(ServerName),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Announcement {
    /// The announcer's site (or the origin) holds this version now.
    Hold { name: ContentName, version: Version, len: u64, media_type: String, provider: ClientId },
    /// It no longer holds this version; others may.
    Release { name: ContentName, version: Version },
    /// The provider withdrew the content: versions up to this one are not to be found or bought any more.
    Withdraw { name: ContentName, version: Version },
    /// Between this and [`Announcement::SnapshotEnd`] the node announces all that it holds, among what else happens. Nothing
    /// is withdrawn yet.
    SnapshotBegin,
    /// What the site held in these slots by an earlier announcement, and was not announced since the begin, is withdrawn.
    SnapshotEnd { slots: Vec<Slot> },
}

/// Announcements `first_seq, first_seq + 1, …` of one announcer.
/// `POST /v1/announcements`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnnounceBatch {
    pub announcer: Announcer,
    pub epoch: u64,
    pub first_seq: u64,
    pub items: Vec<Announcement>,
}

/// What was known is skipped; a gap is not applied: send from `next_seq`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnnounceAnswer {
    pub next_seq: u64,
    /// The operator wants a snapshot.
    #[serde(default)]
    pub resync: bool,
}

/// A content as search knows it: its newest version and who holds it.
/// `GET /v1/contents/lookup?name=`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentInfo {
    pub name: ContentName,
    pub version: Version,
    pub len: u64,
    pub media_type: String,
    pub provider: ClientId,
    pub sites: Vec<SiteId>,
    pub origins: Vec<ServerName>,
}

/// Every holder of a content, for the operator. `GET /v1/contents/holders?name=`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderList {
    pub holders: Vec<HolderLine>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderLine {
    pub holder: HolderName,
    pub version: Version,
    /// No server of the site was heard of for the time of a lease: it is not offered as a holder.
    pub is_silent: bool,
    /// When a server of the site was heard of last.
    pub heard_ms_ago: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HolderName {
    Site(SiteId),
    Origin(ServerName),
}

/// How many announcers of a site were asked for a snapshot. `POST /v1/sites/{site}/resync`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resync {
    pub nodes: u64,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentSummary {
    pub name: ContentName,
    pub version: Version,
    pub len: u64,
    pub media_type: String,
    pub provider: ClientId,
}

/// `GET /v1/contents/list?bucket=&prefix=&after=&limit=&delimiter=`, `GET /v1/contents/search?q=&after=&limit=`,
/// `GET /v1/contents/by-hash/{hash}?after=&limit=`, `GET /v1/contents/by-provider/{client}?after=&limit=`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContentPage {
    pub contents: Vec<ContentSummary>,
    /// With a delimiter: the common beginnings of keys, each once.
    #[serde(default)]
    pub prefixes: Vec<String>,
    /// Give this as `after` for the next page; `None` on the last.
    #[serde(default)]
    pub next: Option<String>,
}

/// What a listing asks for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ListQuery {
    #[serde(default)]
    pub prefix: String,
    /// Keys greater than this (or, from [`ContentPage::next`], beyond this common prefix).
    #[serde(default)]
    pub after: String,
    /// 1 to 1000; 1000 if absent.
    #[serde(default)]
    pub limit: Option<u32>,
    #[serde(default)]
    pub delimiter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// A newer version of the name exists.
    NewVersion,
    /// The provider withdrew versions up to this one.
    Withdrawn,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub seq: u64,
    pub kind: ChangeKind,
    pub name: ContentName,
    pub version: Version,
}

/// `GET /v1/changes?after=&wait_ms=`: changes after a number, waiting for one if there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangePage {
    pub changes: Vec<Change>,
    /// Number to ask after next time; also when `changes` is empty.
    pub last: u64,
}

/// Typed client of search.
#[derive(Clone)]
pub struct SearchClient {
    server: ServerClient,
    base: String,
}

impl SearchClient {
    pub fn new(server: ServerClient, base: &str) -> Self {
        Self { server, base: base.trim_end_matches('/').to_owned() }
    }

    async fn get<A: serde::de::DeserializeOwned>(&self, path: &str) -> Result<A, CallError> {
        self.server.get_json(&self.base, Role::Search, path, LIMIT).await
    }

    async fn send<Q: Serialize, A: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        question: &Q,
    ) -> Result<A, CallError> {
        self.server.send_json(method, &self.base, Role::Search, path, question, LIMIT).await
    }

    pub async fn register(&self, registration: &Registration) -> Result<Registered, CallError> {
        self.send(Method::POST, "/v1/servers", registration).await
    }

    pub async fn leave(&self, leave: &Leave) -> Result<LeaveAnswer, CallError> {
        self.send(Method::POST, "/v1/servers/leave", leave).await
    }

    /// The map, at once if its epoch is greater than `after`, else when it changes or `wait` is over.
    pub async fn map(&self, after: MapEpoch, wait: Duration) -> Result<ClusterMap, CallError> {
        let path = format!("/v1/map?after={}&wait_ms={}", after.0, wait.as_millis());
        self.server.get_json(&self.base, Role::Search, &path, LIMIT + wait).await
    }

    pub async fn fence_slots(&self, request: &FenceRequest) -> Result<Fence, CallError> {
        self.send(Method::POST, "/v1/map/slots/fence", request).await
    }

    /// `Conflict` when the owner or the fence is another by now.
    pub async fn move_slots(&self, request: &SlotMove) -> Result<ClusterMap, CallError> {
        self.send(Method::POST, "/v1/map/slots/move", request).await
    }

    /// `Conflict` when the primary or the term is another by now.
    pub async fn change_followers(&self, change: &FollowersChange) -> Result<ClusterMap, CallError> {
        self.send(Method::POST, "/v1/map/shards/followers", change).await
    }

    /// `Conflict` when the primary or the term is another by now, or `to` does not follow.
    pub async fn hand_over(&self, request: &HandOver) -> Result<ClusterMap, CallError> {
        self.send(Method::POST, "/v1/map/shards/hand-over", request).await
    }

    pub async fn suspect(&self, node: &NodeId) -> Result<SuspicionAnswer, CallError> {
        self.send(Method::POST, "/v1/nodes/suspect", &Suspicion { node: node.clone() }).await
    }

    pub async fn change_node(&self, node: &NodeId, action: NodeAction) -> Result<ClusterMap, CallError> {
        self.send(Method::POST, &format!("/v1/nodes/{node}/{}", action.as_str()), &()).await
    }

    /// Whether a node or gateway may be stopped now.
    pub async fn can_stop(&self, server: &NodeId) -> Result<CanStop, CallError> {
        let path = format!("/v1/nodes/{server}/can-stop");
        let url = format!("{}{path}", self.base);
        let call = Call {
            method: Method::GET,
            base: &self.base,
            audience: Role::Search,
            path: &path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            limit: LIMIT,
        };
        let answer = self.server.send(call).await?;
        if !matches!(answer.status(), StatusCode::OK | StatusCode::PRECONDITION_FAILED) {
            return Err(read_refusal(&url, answer).await);
        }
        let text = read_body(&url, answer.into_body(), VERDICT_LEN_MAX).await?;
        serde_json::from_slice(&text).map_err(|error| CallError::Answer { url, source: error.into() })
    }

    pub async fn set_site(&self, site: &SiteId, settings: &SiteSettings) -> Result<ClusterMap, CallError> {
        self.send(Method::PUT, &format!("/v1/sites/{site}"), settings).await
    }

    pub async fn set_zone(&self, site: &SiteId, zone: &SiteZone) -> Result<ClusterMap, CallError> {
        self.send(Method::PUT, &format!("/v1/sites/{site}/zone"), zone).await
    }

    pub async fn set_distance(
        &self,
        site: &SiteId,
        distance: &SiteDistance,
    ) -> Result<ClusterMap, CallError> {
        self.send(Method::PUT, &format!("/v1/sites/{site}/distance"), distance).await
    }

    pub async fn create_client(&self, client: &NewClient) -> Result<ClientKeys, CallError> {
        self.send(Method::POST, "/v1/clients", client).await
    }

    pub async fn clients(&self) -> Result<Vec<ClientRecord>, CallError> {
        self.get("/v1/clients").await
    }

    pub async fn disable_client(&self, client: &ClientId) -> Result<ClientRecord, CallError> {
        self.send(Method::POST, &format!("/v1/clients/{client}/disable"), &()).await
    }

    pub async fn limit_client(
        &self,
        client: &ClientId,
        limits: &ClientLimits,
    ) -> Result<ClientRecord, CallError> {
        self.send(Method::POST, &format!("/v1/clients/{client}/limits"), limits).await
    }

    /// `hash` is [`crate::auth::token_hash`] of the bearer token.
    pub async fn client_by_token(&self, hash: &str) -> Result<ClientRecord, CallError> {
        self.get(&format!("/v1/clients/by-token/{hash}")).await
    }

    /// `Conflict` when it is another client's card.
    pub async fn add_card(&self, new: &NewCard) -> Result<CardRecord, CallError> {
        self.send(Method::POST, "/v1/cards", new).await
    }

    /// The cards of one client, or all.
    pub async fn cards(&self, client: Option<&ClientId>) -> Result<Vec<CardRecord>, CallError> {
        let query = client.map_or_else(String::new, |client| format!("?client={client}"));
        self.get(&format!("/v1/cards{query}")).await
    }

    /// `CardUnknown` when nobody has it.
    pub async fn card(&self, card: &PublicKey) -> Result<CardHolder, CallError> {
        self.get(&format!("/v1/cards/{card}")).await
    }

    pub async fn disable_cards(&self, which: &DisableCards) -> Result<Vec<CardRecord>, CallError> {
        self.send(Method::POST, "/v1/cards/disable", which).await
    }

    /// Makes the bucket, or changes its visibility. `Conflict` when it belongs to another client.
    pub async fn put_bucket(&self, bucket: &BucketName, new: &NewBucket) -> Result<BucketRecord, CallError> {
        self.send(Method::PUT, &format!("/v1/buckets/{bucket}"), new).await
    }

    pub async fn bucket(&self, bucket: &BucketName) -> Result<BucketRecord, CallError> {
        self.get(&format!("/v1/buckets/{bucket}")).await
    }

    pub async fn buckets(&self) -> Result<Vec<BucketRecord>, CallError> {
        self.get("/v1/buckets").await
    }

    pub async fn announce(&self, batch: &AnnounceBatch) -> Result<AnnounceAnswer, CallError> {
        self.send(Method::POST, "/v1/announcements", batch).await
    }

    /// `ContentNotFound` when nobody holds it; `SourceUnavailable` when those that hold it are silent.
    pub async fn lookup(&self, name: &ContentName) -> Result<ContentInfo, CallError> {
        self.get(&format!("/v1/contents/lookup?name={}", encode(name.as_str()))).await
    }

    pub async fn list(&self, bucket: &BucketName, query: &ListQuery) -> Result<ContentPage, CallError> {
        self.get(&format!("/v1/contents/list?bucket={bucket}&{}", query.encode())).await
    }

    pub async fn holders(&self, name: &ContentName) -> Result<HolderList, CallError> {
        self.get(&format!("/v1/contents/holders?name={}", encode(name.as_str()))).await
    }

    /// Contents with this hash, under whatever names.
    pub async fn by_hash(
        &self,
        hash: ContentHash,
        after: &str,
        limit: u32,
    ) -> Result<ContentPage, CallError> {
        self.get(&format!("/v1/contents/by-hash/{hash}?after={}&limit={limit}", encode(after))).await
    }

    /// Contents of a provider's buckets.
    pub async fn by_provider(
        &self,
        provider: &ClientId,
        after: &str,
        limit: u32,
    ) -> Result<ContentPage, CallError> {
        self.get(&format!("/v1/contents/by-provider/{provider}?after={}&limit={limit}", encode(after))).await
    }

    /// Asks a site's nodes for snapshots of what they hold.
    pub async fn resync(&self, site: &SiteId) -> Result<Resync, CallError> {
        self.send(Method::POST, &format!("/v1/sites/{site}/resync"), &()).await
    }

    /// Contents whose name contains `text`, in the order in which they became known.
    pub async fn find(&self, text: &str, after: &str, limit: u32) -> Result<ContentPage, CallError> {
        let path = format!("/v1/contents/search?q={}&after={}&limit={limit}", encode(text), encode(after));
        self.get(&path).await
    }

    pub async fn changes(&self, after: u64, wait: Duration) -> Result<ChangePage, CallError> {
        let path = format!("/v1/changes?after={after}&wait_ms={}", wait.as_millis());
        self.server.get_json(&self.base, Role::Search, &path, LIMIT + wait).await
    }

    /// Tells that `site` or `origin` did not have what search said it has.
    pub async fn report_missing(
        &self,
        name: &ContentName,
        version: Version,
        who: &MissingAt,
    ) -> Result<(), CallError> {
        let report = MissingReport { name: name.clone(), version, at: who.clone() };
        self.send(Method::POST, "/v1/contents/missing", &report).await
    }
}

/// Negative feedback of a collector. `POST /v1/contents/missing`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MissingReport {
    pub name: ContentName,
    pub version: Version,
    pub at: MissingAt,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingAt {
    Site(SiteId),
    Origin(ServerName),
}

impl ListQuery {
    pub const LIMIT_MAX: u32 = 1000;

    pub fn encode(&self) -> String {
        let mut text = format!("prefix={}&after={}", encode(&self.prefix), encode(&self.after));
        if let Some(limit) = self.limit {
            text.push_str(&format!("&limit={limit}"));
        }
        if let Some(delimiter) = &self.delimiter {
            text.push_str(&format!("&delimiter={}", encode(delimiter)));
        }
        text
    }
}
