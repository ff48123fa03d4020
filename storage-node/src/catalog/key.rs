//! The key space of the catalog. Tags are pinned: they are on disk.
//!
//! Texts in keys are content names and client ids; neither contains a NUL, so NUL ends them. Numbers are
//! big-endian, so they sort. Rows that belong to a slot carry it behind the tag: a slot is one range per tag. The
//! shards of other nodes have the same keys, each behind a prefix of its own.

use common::api::node::RefTag;
use common::hash::ChunkHash;
use common::id::{ClientId, DeliveryId, NodeId};
use common::name::ContentName;
use common::placement::Slot;
use common::record::RecordNumber;
use common::visit::Nonce;

/// The two receivers of delivery records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Fee {
    Service = 1,
    Content = 2,
}

impl Fee {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Content => "content",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    Holding = 0x10,
    HoldingClient = 0x11,
    Library = 0x12,
    Account = 0x13,
    TallyHolding = 0x14,
    TallyClient = 0x15,
    TallyBuilt = 0x16,
    Collecting = 0x17,
    ChunkHolder = 0x18,
    ChunkTally = 0x19,
    ClientTally = 0x1a,
    SlotTally = 0x1b,
    Temporary = 0x1d,
    Visitor = 0x1e,
    AnsweredChallenge = 0x1f,
    Chunk = 0x20,
    ChunkRef = 0x21,
    UnreferencedChunk = 0x22,
    Reap = 0x23,
    SuspectRef = 0x24,
    OpenDelivery = 0x30,
    Record = 0x31,
    ChainHead = 0x32,
    BillingCursor = 0x33,
    Announcement = 0x40,
    AnnouncementHead = 0x41,
    ChangeCursor = 0x42,
    HomeEnd = 0x43,
    Snapshot = 0x44,
    NewestTime = 0x50,
    MovingSlot = 0x51,
    ShardPosition = 0x52,
    Syncing = 0x53,
    Scrub = 0x60,
    /// Begins the keys of another node's shard, see [`shard_prefix`].
    Followed = 0x7f,
}

impl Tag {
    const ALL: [Self; 35] = [
        Self::Holding,
        Self::HoldingClient,
        Self::Library,
        Self::Account,
        Self::TallyHolding,
        Self::TallyClient,
        Self::TallyBuilt,
        Self::Collecting,
        Self::ChunkHolder,
        Self::ChunkTally,
        Self::ClientTally,
        Self::SlotTally,
        Self::Temporary,
        Self::Visitor,
        Self::AnsweredChallenge,
        Self::Chunk,
        Self::ChunkRef,
        Self::UnreferencedChunk,
        Self::Reap,
        Self::SuspectRef,
        Self::OpenDelivery,
        Self::Record,
        Self::ChainHead,
        Self::BillingCursor,
        Self::Announcement,
        Self::AnnouncementHead,
        Self::ChangeCursor,
        Self::HomeEnd,
        Self::Snapshot,
        Self::NewestTime,
        Self::MovingSlot,
        Self::ShardPosition,
        Self::Syncing,
        Self::Scrub,
        Self::Followed,
    ];

    /// The kind of row that a key begins with.
    pub fn of(key: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|tag| Some(&(*tag as u8)) == key.first())
    }
}

/// Rows that are this node's own affair, not its shard's: its chunks, and how far a copy of a shard is.
const NODE_TAGS: [Tag; 8] = [
    Tag::Chunk,
    Tag::ChunkRef,
    Tag::UnreferencedChunk,
    Tag::SuspectRef,
    Tag::Scrub,
    Tag::ShardPosition,
    Tag::Syncing,
    Tag::Followed,
];

/// Kinds of rows that a shard is made of.
pub fn shard_tags() -> impl Iterator<Item = Tag> {
    Tag::ALL.into_iter().filter(|tag| !NODE_TAGS.contains(tag))
}

/// What comes before every key of a shard in the catalog of a node that is not its own.
pub fn shard_prefix(shard: &NodeId) -> Vec<u8> {
    let mut prefix = tagged(Tag::Followed, shard.as_str().as_bytes());
    prefix.push(0);
    prefix
}

/// The shard of a key that [`shard_prefix`] begins.
pub fn followed_shard(key: &[u8]) -> Option<NodeId> {
    let rest = key.strip_prefix(&[Tag::Followed as u8])?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    NodeId::new(std::str::from_utf8(&rest[..end]).ok()?).ok()
}

/// Rows that move with their slot.
pub const SLOT_TAGS: [Tag; 15] = [
    Tag::Holding,
    Tag::HoldingClient,
    Tag::Library,
    Tag::Account,
    Tag::TallyHolding,
    Tag::TallyClient,
    Tag::TallyBuilt,
    Tag::Collecting,
    Tag::ChunkHolder,
    Tag::ChunkTally,
    Tag::ClientTally,
    Tag::SlotTally,
    Tag::Temporary,
    Tag::Visitor,
    Tag::AnsweredChallenge,
];

/// Every kind of row.
#[derive(Debug, Clone, Copy)]
pub enum Key<'a> {
    /// [`common::api::node::Holding`]. From the first chunk of a name until it is withdrawn or its last client
    /// lets it go.
    Holding(&'a ContentName),
    /// [`super::rows::Since`]. A client of the site that holds the name: from its first delivery or publication until
    /// it drops the name. Outlives the holding.
    HoldingClient(&'a ContentName, &'a ClientId),
    /// [`super::rows::LibraryValue`]. A content in a client's library, until dropped.
    Library(&'a ClientId, &'a ContentName),
    /// [`common::api::node::Account`]. What the client's library rows come to; from the first change of one on.
    Account(&'a ClientId),
    /// [`super::rows::TallyHolding`]. A holding that was completed, or went, and whose clients are still to be counted so
    /// at its chunks.
    TallyHolding(&'a ContentName, RefTag),
    /// Empty. A client that came to hold the holding, or let it go, which is still to be counted so at its chunks.
    TallyClient(&'a ContentName, RefTag, &'a ClientId),
    /// Empty. Every holding of the slot is, or is queued to be, counted at its chunks.
    TallyBuilt(Slot),
    /// [`super::rows::Since`]. A holding that is being collected, since when.
    Collecting(&'a ContentName),
    /// Empty. A client that holds the chunk through the holding.
    ChunkHolder(&'a ChunkHash, &'a ClientId, RefTag, &'a ContentName),
    /// [`super::rows::ChunkTally`]. A chunk that clients hold; gone with the last of them.
    ChunkTally(&'a ChunkHash),
    /// [`common::api::node::ClientTally`]. What a client holds of the slot's chunks.
    ClientTally(Slot, &'a ClientId),
    /// [`super::rows::SlotTally`]. What all clients hold of the slot's chunks.
    SlotTally(Slot),
    /// [`super::rows::TemporaryValue`]. A content that is kept for visitors; gone with the last of them.
    Temporary(&'a ContentName, RefTag),
    /// [`super::rows::VisitorValue`]. A client of another site that the content is kept for, until that expires.
    Visitor(&'a ContentName, RefTag, &'a ClientId),
    /// [`super::rows::AnsweredChallenge`]. A challenge that a card of the client answered, until nobody would take it any
    /// more; deleted with the client's next one.
    AnsweredChallenge(&'a ClientId, &'a Nonce),
    /// [`super::rows::ChunkValue`]. A chunk that is, or is being, stored on this node.
    Chunk(&'a ChunkHash),
    /// Empty. A holding (or an upload that is to become one) that needs the chunk.
    ChunkRef(&'a ChunkHash, RefTag, &'a ContentName),
    /// [`super::rows::Since`]. A chunk without references; deleted after a grace.
    UnreferencedChunk(&'a ChunkHash),
    /// [`super::rows::ReapValue`]. References of a replaced or withdrawn holding that are still to be released on the
    /// site's nodes.
    Reap(RefTag, &'a ContentName),
    /// [`super::rows::Since`]. A reference that no holding was found to need, since when.
    SuspectRef(&'a ChunkHash, RefTag, &'a ContentName),
    /// [`super::rows::OpenDelivery`]. From begin until the record is numbered.
    OpenDelivery(&'a DeliveryId),
    /// [`common::record::ChainedRecord`]. Kept.
    Record(RecordNumber),
    /// [`super::rows::ChainHead`]. Absent until search gave the node its record epoch.
    ChainHead,
    /// [`RecordNumber`]. Last record that a billing server booked.
    BillingCursor(Fee),
    /// [`common::api::search::Announcement`]. Until search has it.
    Announcement(u64),
    /// [`super::rows::AnnouncementHead`].
    AnnouncementHead,
    /// [`super::rows::ChangeCursor`]. Last change of search's feed that was applied.
    ChangeCursor,
    /// [`super::rows::HomeEnd`]. How a request of a visitor's delivery ended that a shard of another site, its home,
    /// recorded; until that has it.
    HomeEnd(&'a NodeId, &'a DeliveryId),
    /// [`super::rows::Snapshot`]. While all that is held is announced anew.
    Snapshot,
    /// [`common::version::HybridTime`]. Not before any version that this node gave.
    NewestTime,
    /// [`super::rows::MovingSlot`]. A slot that is between this shard and another, until the map says for good who owns
    /// it and the owner has its rows.
    MovingSlot(Slot),
    /// [`super::rows::ShardPosition`]. How far the rows of the shard are in this catalog.
    ShardPosition,
    /// [`super::rows::SyncAttempt`]. While the rows of the shard come in from its primary: some are missing.
    Syncing,
    /// [`super::rows::ScrubValue`]. From the first round on; kept.
    Scrub,
}

impl Key<'_> {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Holding(name) => {
                let mut key = slot_rows(Tag::Holding, Slot::of_name(name));
                key.extend_from_slice(name.as_str().as_bytes());
                key
            }
            Self::HoldingClient(name, client) => {
                let mut key = holding_clients(name);
                key.extend_from_slice(client.as_str().as_bytes());
                key
            }
            Self::Library(client, name) => library(client, name.as_str()),
            Self::Account(client) => {
                let mut key = slot_rows(Tag::Account, Slot::of_client(client));
                key.extend_from_slice(client.as_str().as_bytes());
                key
            }
            Self::TallyHolding(name, tag) => {
                let mut key = tally_holdings(name);
                key.extend_from_slice(&tag.0.to_be_bytes());
                key
            }
            Self::TallyClient(name, tag, client) => {
                let mut key = tally_clients(name, *tag);
                key.extend_from_slice(client.as_str().as_bytes());
                key
            }
            Self::TallyBuilt(slot) => slot_rows(Tag::TallyBuilt, *slot),
            Self::Collecting(name) => {
                let mut key = slot_rows(Tag::Collecting, Slot::of_name(name));
                key.extend_from_slice(name.as_str().as_bytes());
                key
            }
            Self::ChunkHolder(hash, client, tag, name) => {
                let mut key = chunk_holders_of(hash, client);
                key.extend_from_slice(&tag.0.to_be_bytes());
                key.extend_from_slice(name.as_str().as_bytes());
                key
            }
            Self::ChunkTally(hash) => {
                let mut key = slot_rows(Tag::ChunkTally, Slot::of_chunk(hash));
                key.extend_from_slice(hash.as_bytes());
                key
            }
            Self::ClientTally(slot, client) => {
                let mut key = slot_rows(Tag::ClientTally, *slot);
                key.extend_from_slice(client.as_str().as_bytes());
                key
            }
            Self::SlotTally(slot) => slot_rows(Tag::SlotTally, *slot),
            Self::Temporary(name, tag) => {
                let mut key = temporaries(name);
                key.extend_from_slice(&tag.0.to_be_bytes());
                key
            }
            Self::Visitor(name, tag, client) => {
                let mut key = visitors(name, *tag);
                key.extend_from_slice(client.as_str().as_bytes());
                key
            }
            Self::AnsweredChallenge(client, nonce) => {
                let mut key = answered_challenges(client);
                key.extend_from_slice(&nonce.0);
                key
            }
            Self::Chunk(hash) => tagged(Tag::Chunk, hash.as_bytes()),
            Self::ChunkRef(hash, tag, name) => {
                let mut key = chunk_refs(hash);
                key.extend_from_slice(&tag.0.to_be_bytes());
                key.extend_from_slice(name.as_str().as_bytes());
                key
            }
            Self::UnreferencedChunk(hash) => tagged(Tag::UnreferencedChunk, hash.as_bytes()),
            Self::Reap(tag, name) => {
                let mut key = tagged(Tag::Reap, &tag.0.to_be_bytes());
                key.extend_from_slice(name.as_str().as_bytes());
                key
            }
            Self::SuspectRef(hash, tag, name) => {
                let mut key = tagged(Tag::SuspectRef, hash.as_bytes());
                key.extend_from_slice(&tag.0.to_be_bytes());
                key.extend_from_slice(name.as_str().as_bytes());
                key
            }
            Self::OpenDelivery(delivery) => tagged(Tag::OpenDelivery, delivery.as_bytes()),
            Self::Record(number) => {
                let mut key = records(number.epoch);
                key.extend_from_slice(&number.seq.to_be_bytes());
                key
            }
            Self::ChainHead => all(Tag::ChainHead),
            Self::BillingCursor(fee) => tagged(Tag::BillingCursor, &[*fee as u8]),
            Self::Announcement(seq) => tagged(Tag::Announcement, &seq.to_be_bytes()),
            Self::AnnouncementHead => all(Tag::AnnouncementHead),
            Self::ChangeCursor => all(Tag::ChangeCursor),
            Self::HomeEnd(shard, request) => {
                let mut key = home_ends(shard);
                key.extend_from_slice(request.as_bytes());
                key
            }
            Self::Snapshot => all(Tag::Snapshot),
            Self::NewestTime => all(Tag::NewestTime),
            Self::MovingSlot(slot) => tagged(Tag::MovingSlot, &slot.0.to_be_bytes()),
            Self::ShardPosition => all(Tag::ShardPosition),
            Self::Syncing => all(Tag::Syncing),
            Self::Scrub => all(Tag::Scrub),
        }
    }
}

fn tagged(tag: Tag, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(tag as u8);
    key.extend_from_slice(rest);
    key
}

/// Prefix of every row of a kind.
pub fn all(tag: Tag) -> Vec<u8> {
    vec![tag as u8]
}

/// Prefix of a slot's rows of one kind.
pub fn slot_rows(tag: Tag, slot: Slot) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(tag as u8);
    key.extend_from_slice(&slot.0.to_be_bytes());
    key
}

/// Prefix of the clients of a name; the client's id follows.
pub fn holding_clients(name: &ContentName) -> Vec<u8> {
    let mut key = slot_rows(Tag::HoldingClient, Slot::of_name(name));
    key.extend_from_slice(name.as_str().as_bytes());
    key.push(0);
    key
}

/// Prefix of a client's library rows whose names begin with `prefix`; the rest of the name follows.
pub fn library(client: &ClientId, prefix: &str) -> Vec<u8> {
    let mut key = slot_rows(Tag::Library, Slot::of_client(client));
    key.extend_from_slice(client.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(prefix.as_bytes());
    key
}

/// Prefix of a client's [`Key::AnsweredChallenge`]; the nonce follows.
pub fn answered_challenges(client: &ClientId) -> Vec<u8> {
    let mut key = slot_rows(Tag::AnsweredChallenge, Slot::of_client(client));
    key.extend_from_slice(client.as_str().as_bytes());
    key.push(0);
    key
}

/// Prefix of a name's [`Key::TallyHolding`]; the reference tag follows.
pub fn tally_holdings(name: &ContentName) -> Vec<u8> {
    let mut key = slot_rows(Tag::TallyHolding, Slot::of_name(name));
    key.extend_from_slice(name.as_str().as_bytes());
    key.push(0);
    key
}

/// Prefix of a holding's [`Key::TallyClient`]; the client's id follows.
pub fn tally_clients(name: &ContentName, tag: RefTag) -> Vec<u8> {
    let mut key = slot_rows(Tag::TallyClient, Slot::of_name(name));
    key.extend_from_slice(name.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(&tag.0.to_be_bytes());
    key
}

/// Prefix of a name's [`Key::Temporary`]; the reference tag follows.
pub fn temporaries(name: &ContentName) -> Vec<u8> {
    let mut key = slot_rows(Tag::Temporary, Slot::of_name(name));
    key.extend_from_slice(name.as_str().as_bytes());
    key.push(0);
    key
}

/// Prefix of a temporary content's [`Key::Visitor`]; the client's id follows.
pub fn visitors(name: &ContentName, tag: RefTag) -> Vec<u8> {
    let mut key = visitors_of(name);
    key.extend_from_slice(&tag.0.to_be_bytes());
    key
}

/// Prefix of a name's [`Key::Visitor`], of all its temporary contents; the reference tag follows.
pub fn visitors_of(name: &ContentName) -> Vec<u8> {
    let mut key = slot_rows(Tag::Visitor, Slot::of_name(name));
    key.extend_from_slice(name.as_str().as_bytes());
    key.push(0);
    key
}

/// What an encoded key is about that has a name, a tag and perhaps a client: [`Key::TallyHolding`], [`Key::Temporary`],
/// [`Key::TallyClient`], [`Key::Visitor`]. The client's id is empty in the first two.
pub fn tally_of(key: &[u8]) -> Option<(ContentName, RefTag, &str)> {
    let rest = key.get(3..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    let (tag, client) = rest.get(end + 1..)?.split_first_chunk::<8>()?;
    let name = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((name, RefTag(u64::from_be_bytes(*tag)), std::str::from_utf8(client).ok()?))
}

/// The name of an encoded [`Key::Collecting`].
pub fn collecting(key: &[u8]) -> Option<ContentName> {
    std::str::from_utf8(key.get(3..)?).ok()?.parse().ok()
}

/// Prefix of a chunk's holders.
pub fn chunk_holders(hash: &ChunkHash) -> Vec<u8> {
    let mut key = slot_rows(Tag::ChunkHolder, Slot::of_chunk(hash));
    key.extend_from_slice(hash.as_bytes());
    key
}

/// Prefix of the holdings through which a client holds a chunk.
pub fn chunk_holders_of(hash: &ChunkHash, client: &ClientId) -> Vec<u8> {
    let mut key = chunk_holders(hash);
    key.extend_from_slice(client.as_str().as_bytes());
    key.push(0);
    key
}

/// The client of an encoded [`Key::ChunkHolder`].
pub fn chunk_holder(key: &[u8]) -> Option<ClientId> {
    let rest = key.get(3 + 32..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    ClientId::new(std::str::from_utf8(&rest[..end]).ok()?).ok()
}

/// Chunk, tag and name of an encoded [`Key::ChunkRef`] or [`Key::SuspectRef`].
pub fn chunk_ref(key: &[u8]) -> Option<(ChunkHash, RefTag, ContentName)> {
    let (tag, name) = key.get(33..)?.split_first_chunk::<8>()?;
    let name = std::str::from_utf8(name).ok()?.parse().ok()?;
    Some((chunk_hash(key)?, RefTag(u64::from_be_bytes(*tag)), name))
}

/// Prefix of a chunk's references.
pub fn chunk_refs(hash: &ChunkHash) -> Vec<u8> {
    let mut key = Vec::with_capacity(128);
    key.push(Tag::ChunkRef as u8);
    key.extend_from_slice(hash.as_bytes());
    key
}

/// Prefix of the ends for a shard of another site.
pub fn home_ends(shard: &NodeId) -> Vec<u8> {
    let mut key = tagged(Tag::HomeEnd, shard.as_str().as_bytes());
    key.push(0);
    key
}

/// The shard of an encoded [`Key::HomeEnd`].
pub fn home_shard(key: &[u8]) -> Option<NodeId> {
    let rest = key.get(1..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    NodeId::new(std::str::from_utf8(&rest[..end]).ok()?).ok()
}

/// Prefix of an epoch's records.
pub fn records(epoch: u64) -> Vec<u8> {
    tagged(Tag::Record, &epoch.to_be_bytes())
}

/// Whether an encoded key belongs to `slot`: what another node sends is checked before it is taken in.
pub fn is_in_slot(key: &[u8], slot: Slot) -> bool {
    key.len() >= 3 && SLOT_TAGS.iter().any(|tag| *tag as u8 == key[0]) && key[1..3] == slot.0.to_be_bytes()
}

/// The slot of an encoded [`Key::MovingSlot`].
pub fn moving_slot(key: &[u8]) -> Option<Slot> {
    key.get(1..3).and_then(|bytes| bytes.try_into().ok()).map(|bytes| Slot(u16::from_be_bytes(bytes)))
}

/// The chunk of an encoded [`Key::Chunk`], [`Key::UnreferencedChunk`] or [`Key::ChunkRef`].
pub fn chunk_hash(key: &[u8]) -> Option<ChunkHash> {
    key.get(1..33).and_then(|bytes| bytes.try_into().ok()).map(ChunkHash::from_bytes)
}

/// The number of an encoded [`Key::Announcement`].
pub fn announcement_seq(key: &[u8]) -> Option<u64> {
    key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_on_disk_are_pinned() {
        let name: ContentName = "alice/song".parse().unwrap();
        let bob = ClientId::new("bob").unwrap();
        let hex = |key: Key| key.encode().iter().map(|b| format!("{b:02x}")).collect::<String>();
        let slot = format!("{:04x}", Slot::of_name(&name).0);
        assert_eq!(hex(Key::Holding(&name)), format!("10{slot}616c6963652f736f6e67"));
        assert_eq!(hex(Key::HoldingClient(&name, &bob)), format!("11{slot}616c6963652f736f6e6700626f62"));
        let slot = format!("{:04x}", Slot::of_client(&bob).0);
        assert_eq!(hex(Key::Library(&bob, &name)), format!("12{slot}626f6200616c6963652f736f6e67"));
        assert_eq!(hex(Key::Account(&bob)), format!("13{slot}626f62"));
        let nonce = Nonce([3; 16]);
        assert_eq!(hex(Key::AnsweredChallenge(&bob, &nonce)), format!("1f{slot}626f6200{}", "03".repeat(16)));
        assert_eq!(hex(Key::ClientTally(Slot(258), &bob)), "1a0102626f62");
        assert_eq!(hex(Key::SlotTally(Slot(258))), "1b0102");
        assert_eq!(hex(Key::TallyBuilt(Slot(258))), "160102");
        let slot = format!("{:04x}", Slot::of_name(&name).0);
        assert_eq!(hex(Key::Collecting(&name)), format!("17{slot}616c6963652f736f6e67"));
        let due = format!("{slot}616c6963652f736f6e67000000000000000001");
        assert_eq!(hex(Key::TallyHolding(&name, RefTag(1))), format!("14{due}"));
        assert_eq!(hex(Key::TallyClient(&name, RefTag(1), &bob)), format!("15{due}626f62"));
        assert_eq!(hex(Key::Temporary(&name, RefTag(1))), format!("1d{due}"));
        assert_eq!(hex(Key::Visitor(&name, RefTag(1), &bob)), format!("1e{due}626f62"));
        let hash = ChunkHash::from_bytes([2; 32]);
        let (slot, chunk) = ("0202", "02".repeat(32));
        assert_eq!(hex(Key::ChunkTally(&hash)), format!("19{slot}{chunk}"));
        let holder = format!("18{slot}{chunk}626f62000000000000000001616c6963652f736f6e67");
        assert_eq!(hex(Key::ChunkHolder(&hash, &bob, RefTag(1), &name)), holder);
        let suspect = format!("24{chunk}0000000000000001616c6963652f736f6e67");
        assert_eq!(hex(Key::SuspectRef(&hash, RefTag(1), &name)), suspect);
        assert_eq!(hex(Key::Reap(RefTag(1), &name)), "230000000000000001616c6963652f736f6e67");
        assert_eq!(hex(Key::Record(RecordNumber { epoch: 1, seq: 2 })), "3100000000000000010000000000000002");
        assert_eq!(hex(Key::BillingCursor(Fee::Content)), "3302");
        assert_eq!(hex(Key::MovingSlot(Slot(258))), "510102");
        assert_eq!(hex(Key::ShardPosition), "52");
        assert_eq!(hex(Key::Scrub), "60");
        let chunk = ChunkHash::of(b"la");
        let key = Key::ChunkRef(&chunk, RefTag(7), &name).encode();
        assert_eq!(chunk_ref(&key), Some((chunk, RefTag(7), name)));
        let shard = NodeId::new("tokyo.n1").unwrap();
        let end = Key::HomeEnd(&shard, &DeliveryId::from_bytes([3; 16])).encode();
        assert_eq!(end, [&b"\x43tokyo.n1\0"[..], &[3; 16]].concat());
        assert_eq!(home_shard(&end), Some(shard.clone()));
        assert_eq!(shard_prefix(&shard), b"\x7ftokyo.n1\0");
        assert_eq!(followed_shard(b"\x7ftokyo.n1\0rest"), Some(shard));
        assert_eq!(followed_shard(b"\x10tokyo.n1\0"), None);
        assert!(shard_tags().is_sorted_by_key(|tag| tag as u8), "rows are sent in the order of their keys");
    }

    #[test]
    fn what_a_key_is_about_is_read_back() {
        let name: ContentName = "alice/song".parse().unwrap();
        let (bob, hash, tag) = (ClientId::new("bob").unwrap(), ChunkHash::of(b"x"), RefTag(7));
        assert_eq!(tally_of(&Key::TallyHolding(&name, tag).encode()), Some((name.clone(), tag, "")));
        assert_eq!(tally_of(&Key::TallyClient(&name, tag, &bob).encode()), Some((name.clone(), tag, "bob")));
        assert_eq!(collecting(&Key::Collecting(&name).encode()), Some(name.clone()));
        assert_eq!(chunk_holder(&Key::ChunkHolder(&hash, &bob, tag, &name).encode()), Some(bob));
        assert_eq!(chunk_ref(&Key::SuspectRef(&hash, tag, &name).encode()), Some((hash, tag, name)));
        assert!(is_in_slot(&Key::SlotTally(Slot(3)).encode(), Slot(3)));
    }
}
