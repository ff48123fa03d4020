//! The values of the catalog: one version byte, then postcard.
//!
//! A type that is stored may change only with its version, and the older version must still be read.

pub use common::api::node::ShardPosition;
use common::api::node::{
    Account, ClientTally, EndRequest, Holding, LibraryRow, RefTag, ScrubCounts, ScrubRound,
};
use common::api::search::Announcement;
use common::error::ApiError;
use common::hash::{ChunkHash, ContentHash, PossessionProof, RecordDigest};
use common::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use common::manifest::{ChunkList, Manifest};
use common::name::ContentName;
use common::placement::Slot;
use common::possession::Possession;
use common::record::{ChainedRecord, DeliveryClass, DeliveryPath, DeliveryStatus, RecordNumber, Source};
use common::time::UnixMillis;
use common::version::{HybridTime, Version};
use common::visit::Nonce;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A value as it is stored.
pub trait Row: Serialize + DeserializeOwned {
    const VERSION: u8;

    fn encode(&self) -> Vec<u8> {
        let start = vec![Self::VERSION];
        postcard::to_extend(self, start).expect("rows are plain values, which always encode")
    }

    fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        match bytes.split_first() {
            Some((version, rest)) if *version == Self::VERSION => {
                postcard::from_bytes(rest).map_err(RowError::Malformed)
            }
            Some((version, rest)) => {
                let unknown = RowError::Version { found: *version, known: Self::VERSION };
                let upgraded = Self::upgrade(*version, rest).ok_or(unknown)?;
                postcard::from_bytes(&upgraded).map_err(RowError::Malformed)
            }
            None => Err(RowError::Empty),
        }
    }

    /// What an older version encoded, as this one encodes it; `None` when there was no such version.
    fn upgrade(_version: u8, _encoded: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// A stored value that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("a row of the catalog is empty")]
    Empty,
    #[error("a row of the catalog has version {found}, this program knows {known}; use a newer one")]
    Version { found: u8, known: u8 },
    #[error("a row of the catalog is malformed")]
    Malformed(#[source] postcard::Error),
}

impl From<RowError> for ApiError {
    fn from(error: RowError) -> Self {
        ApiError::internal(&error)
    }
}

macro_rules! rows {
    ($($name:ty => $version:literal),* $(,)?) => {
        $(impl Row for $name { const VERSION: u8 = $version; })*
    };
}

rows! {
    HomeEnd => 1, Holding => 1, Since => 1, ChunkValue => 1, ReapValue => 1, TemporaryValue => 1, VisitorValue => 1,
    ChainedRecord => 1, ChainHead => 1, RecordNumber => 1, Announcement => 1, AnnouncementHead => 1,
    ChangeCursor => 1, Snapshot => 1, HybridTime => 1, ScrubValue => 1, Account => 1,
    ChunkTally => 1, ClientTally => 1, SlotTally => 1, ShardPosition => 1, SyncAttempt => 1,
    AnsweredChallenge => 1,
}

impl Row for LibraryValue {
    const VERSION: u8 = 2;

    /// Version 1 ended before [`LibraryValue::newest_shard`]; `None` is encoded as 0.
    fn upgrade(version: u8, encoded: &[u8]) -> Option<Vec<u8>> {
        (version == 1).then(|| [encoded, &[0]].concat())
    }
}

impl Row for OpenDelivery {
    const VERSION: u8 = 2;

    /// Version 1 ended before [`OpenDelivery::home`].
    fn upgrade(version: u8, encoded: &[u8]) -> Option<Vec<u8>> {
        (version == 1).then(|| [encoded, &[0]].concat())
    }
}

impl Row for MovingSlot {
    const VERSION: u8 = 2;

    /// Version 1 ended before [`MovingSlot::step`] and had [`MoveStep::HandedOut`] alone.
    fn upgrade(version: u8, encoded: &[u8]) -> Option<Vec<u8>> {
        (version == 1).then(|| [encoded, &[0]].concat())
    }
}

impl Row for TallyHolding {
    const VERSION: u8 = 2;

    /// Version 1 ended before [`TallyHolding::is_temporary`].
    fn upgrade(version: u8, encoded: &[u8]) -> Option<Vec<u8>> {
        (version == 1).then(|| [encoded, &[0]].concat())
    }
}

/// When a set member was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since(pub UnixMillis);

/// A content in a client's library; client and name are in the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryValue {
    pub hash: ContentHash,
    pub len: u64,
    pub provider: ClientId,
    pub since: UnixMillis,
    pub deliveries: u64,
    /// Newest last, at most [`LibraryRow::RECENT_MAX`].
    pub recent: Vec<UnixMillis>,
    /// The newest delivery: where later ranges join, and how a begin that is repeated at the slot's next owner is
    /// recognised.
    pub newest: Option<(DeliveryId, DeliveryClass)>,
    /// The delivery that made this row; `None` when the client published the content.
    pub made_by: Option<DeliveryId>,
    /// The purchase turned out void while later deliveries kept the row: the next delivery is the purchase.
    pub purchase_owed: bool,
    /// The shard in which the newest delivery began, and where its end is recorded, wherever this row has moved since.
    /// `None` when there is no delivery, or from before this was kept: then it is taken for the shard that has the row.
    pub newest_shard: Option<NodeId>,
}

impl LibraryValue {
    pub fn to_api(&self, name: ContentName) -> LibraryRow {
        LibraryRow {
            name,
            hash: self.hash,
            len: self.len,
            provider: self.provider.clone(),
            since: self.since,
            deliveries: self.deliveries,
            recent: self.recent.clone(),
        }
    }
}

/// A holding, or a temporary content, whose clients are to be counted at its chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyHolding {
    /// What it was made of, if it went.
    pub gone: Option<ChunkList>,
    /// The clients up to this one are counted; they come in the order of their ids.
    pub after: Option<ClientId>,
    /// It was a temporary content, and its clients were visitors.
    pub is_temporary: bool,
}

/// A chunk that clients hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkTally {
    pub len: u32,
    /// Distinct clients, through however many holdings each.
    pub clients: u32,
}

/// What all clients hold of a slot's chunks, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotTally {
    /// Of chunks that one client alone holds.
    pub unique_bytes: u64,
    /// Of the others, each chunk once.
    pub shared_bytes: u64,
    /// Of the others, each chunk as often as there are clients that hold it.
    pub shared_held_bytes: u64,
}

/// A content that is kept for visitors; name and reference tag are in the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemporaryValue {
    pub version: Version,
    pub manifest: Manifest,
    pub provider: ClientId,
    /// Every chunk is at the site.
    pub complete: bool,
    pub since: UnixMillis,
}

/// A client that a temporary content is kept for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisitorValue {
    /// What its home confirmed last; the row goes when that expires.
    pub possession: Possession,
    pub proof: PossessionProof,
    pub since: UnixMillis,
    /// The newest delivery that was recorded here, for want of home, and the shard that has it: where later ranges join.
    pub newest: Option<(DeliveryId, NodeId)>,
}

/// How a request of a visitor's delivery ended; the shard that is to know is in the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeEnd {
    pub end: EndRequest,
    pub since: UnixMillis,
}

/// A chunk of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkValue {
    pub len: u32,
}

/// References that are to be released on every node of the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReapValue {
    pub name: ContentName,
    pub ref_tag: RefTag,
    pub chunks: ChunkList,
}

/// A delivery that began and has no record number yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDelivery {
    pub delivery: DeliveryId,
    pub client: ClientId,
    pub name: ContentName,
    pub hash: ContentHash,
    pub provider: ClientId,
    pub class: DeliveryClass,
    pub path: DeliveryPath,
    pub source: Option<Source>,
    pub searched: bool,
    pub surrogate: Option<SiteId>,
    pub mobile_access: Option<ServerName>,
    pub bytes_total: u64,
    pub bytes_sent: u64,
    pub begin: UnixMillis,
    /// Time of the newest begin or end that belongs to it.
    pub touched: UnixMillis,
    /// Requests that began and have not ended, newest last.
    pub in_flight: Vec<DeliveryId>,
    /// The newest requests that ended, so that a repeated end is not counted twice.
    pub ended: Vec<DeliveryId>,
    /// Set when the outcome is decided but the node has no record epoch yet.
    pub outcome: Option<DeliveryStatus>,
    /// The client's home, if that is another site which was away at the begin.
    pub home: Option<SiteId>,
}

impl OpenDelivery {
    /// Requests that are remembered of each kind; older ones are forgotten.
    pub const REQUESTS_MAX: usize = 32;

    /// No request of it is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Notes that a request began; false when it is known already.
    pub fn add_request(&mut self, request: DeliveryId) -> bool {
        let is_new = !self.in_flight.contains(&request) && !self.ended.contains(&request);
        if is_new {
            push_bounded(&mut self.in_flight, request);
        }
        is_new
    }

    /// Notes that a request ended; false when it had ended before.
    pub fn end_request(&mut self, request: DeliveryId) -> bool {
        let is_new = !self.ended.contains(&request);
        if is_new {
            self.in_flight.retain(|known| *known != request);
            push_bounded(&mut self.ended, request);
        }
        is_new
    }
}

fn push_bounded(requests: &mut Vec<DeliveryId>, request: DeliveryId) {
    if requests.len() == OpenDelivery::REQUESTS_MAX {
        requests.remove(0);
    }
    requests.push(request);
}

/// Last record of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    pub epoch: u64,
    pub seq: u64,
    pub digest: RecordDigest,
}

/// Number of the next announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncementHead {
    pub next_seq: u64,
}

/// Last change that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeCursor(pub u64);

/// How far a snapshot for search is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// The slots that it covers; `None` until it begins.
    pub slots: Option<Vec<Slot>>,
    /// Key of the last holding that was announced.
    pub after: Vec<u8>,
}

/// A slot between this shard and another, handed out with `fence`, which no other handing out has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingSlot {
    /// Who is to have it; for [`MoveStep::Promised`] who had it.
    pub other: NodeId,
    pub fence: u64,
    pub since: UnixMillis,
    pub step: MoveStep,
}

/// How far a move is that did not go through at once; see [`crate::slot_moves`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveStep {
    /// At the old owner: no changes are taken.
    HandedOut,
    /// At the old owner: the new one promised not to serve the slot, so changes are taken again. What is here goes only
    /// when the new owner has it.
    TakenBack,
    /// At the new owner: not served here, whatever the map says, until the old one's rows have come anew.
    Promised,
}

impl MoveStep {
    /// No changes are taken to the slot.
    pub fn freezes(self) -> bool {
        self != Self::TakenBack
    }
}

/// Who took the answer to a challenge, and until when that must be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnsweredChallenge {
    pub attempt: Nonce,
    pub expires: UnixMillis,
}

/// The attempt in which the rows of a shard come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncAttempt(pub u64);

/// How far the scrub is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubValue {
    pub round: Option<OpenScrubRound>,
    pub last_completed: Option<ScrubRound>,
}

/// A round of the scrub that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenScrubRound {
    pub started: UnixMillis,
    /// Last chunk that was looked at; the round goes in the order of the hashes.
    pub after: Option<ChunkHash>,
    pub counts: ScrubCounts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_another_version_is_refused_by_name() {
        let mut bytes = Since(UnixMillis(5)).encode();
        assert_eq!(Since::decode(&bytes).unwrap(), Since(UnixMillis(5)));
        bytes[0] = 9;
        let error = Since::decode(&bytes).unwrap_err();
        assert!(error.to_string().contains("version 9"), "{error}");
        assert!(matches!(Since::decode(&[]), Err(RowError::Empty)));
    }

    #[test]
    fn a_moving_slot_of_version_1_is_one_that_was_handed_out() {
        let version_1 = [&[1, 8][..], b"tokyo.n2", &[5, 7]].concat();
        let other = NodeId::new("tokyo.n2").unwrap();
        let row = MovingSlot { other, fence: 5, since: UnixMillis(7), step: MoveStep::HandedOut };
        assert_eq!(MovingSlot::decode(&version_1).unwrap(), row);
        let row = MovingSlot { step: MoveStep::Promised, ..row };
        assert_eq!(MovingSlot::decode(&row.encode()).unwrap(), row);
    }

    #[test]
    fn a_library_row_of_version_1_is_read() {
        let row = LibraryValue {
            hash: ContentHash::from_bytes([7; 32]),
            len: 300,
            provider: ClientId::new("alice").unwrap(),
            since: UnixMillis(5),
            deliveries: 1,
            recent: vec![UnixMillis(5)],
            newest: Some((DeliveryId::from_bytes([9; 16]), DeliveryClass::Purchase)),
            made_by: Some(DeliveryId::from_bytes([9; 16])),
            purchase_owed: false,
            newest_shard: None,
        };
        let (hash, delivery) = ([7; 32], b"09090909090909090909090909090909");
        let before: [&[u8]; 6] = [&[1], &hash, &[0xac, 2, 5], b"alice", &[5, 1, 1, 5], &[1, 32]];
        let version_1 = [&before.concat(), &delivery[..], &[0, 1, 32], delivery, &[0]].concat();
        assert_eq!(LibraryValue::decode(&version_1).unwrap(), row);
        let row = LibraryValue { newest_shard: Some(NodeId::new("tokyo.n1").unwrap()), ..row };
        assert_eq!(LibraryValue::decode(&row.encode()).unwrap(), row);
    }
}
