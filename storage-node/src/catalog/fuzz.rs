//! The decoders of what the catalog stores, fed with rotten encodings.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use common::api::node::{BeginAnswer, EndRequest, Holding, HoldingState, RefTag};
use common::api::search::Announcement;
use common::hash::{ChunkHash, ContentHash, PossessionProof, RecordDigest};
use common::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use common::manifest::{ChunkList, ChunkRef, Manifest};
use common::name::ContentName;
use common::placement::Slot;
use common::possession::Possession;
use common::record::{
    ChainedRecord, DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus, RecordNumber, Source,
};
use common::time::UnixMillis;
use common::version::{HybridTime, Version};

use super::key;
use super::redo;
use super::rows::{
    AnnouncementHead, ChainHead, ChangeCursor, ChunkValue, HomeEnd, LibraryValue, MoveStep, MovingSlot,
    OpenDelivery, ReapValue, Row, Since, Snapshot, TallyHolding, TemporaryValue, VisitorValue,
};
use super::txn::Overlay;
use crate::fuzz::{ROUNDS, Target, corpus, fuzz};

/// Fuzzes; answers with what the corpus holds.
fn run(name: &str, rounds: u64, target: Target, examples: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let seeds = corpus(&path, examples);
    fuzz(target, rounds, &seeds);
    seeds
}

fn redo_entry(bytes: &[u8]) {
    let Ok(changes) = redo::decode(bytes) else { return };
    let of_change =
        |(key, value): &redo::Change<'_>| 5 + key.len() + value.map_or(0, |value| 4 + value.len());
    assert_eq!(1 + changes.iter().map(of_change).sum::<usize>(), bytes.len(), "nothing is left over");
    if changes.is_sorted_by(|a, b| a.0 < b.0) {
        let owned = changes.iter().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec)));
        let overlay = Overlay { changes: owned.collect(), bytes: 0 };
        assert_eq!(redo::encode(&overlay), bytes);
    }
}

#[test]
fn a_redo_entry_is_its_bytes() {
    let entry = |changes: &[(&[u8], Option<&[u8]>)]| {
        let owned = changes.iter().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec)));
        redo::encode(&Overlay { changes: BTreeMap::from_iter(owned), bytes: 0 }).to_vec()
    };
    let examples =
        [entry(&[]), entry(&[(b"key", None)]), entry(&[(b"a", Some(b"1")), (b"b", None), (b"c", Some(b""))])];
    for entry in run("redo", ROUNDS, redo_entry, &examples) {
        assert!(redo::decode(&entry).is_ok(), "what an earlier version wrote is read");
    }
}

/// What was read is written and read again as itself.
fn row<T: Row + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(row) = T::decode(bytes) {
        assert_eq!(T::decode(&row.encode()).unwrap(), row);
    }
}

fn run_rows<T: Row + PartialEq + Debug>(name: &str, examples: &[T]) {
    let examples: Vec<Vec<u8>> = examples.iter().map(Row::encode).collect();
    for encoded in run(&format!("row-{name}"), ROUNDS / 5, row::<T>, &examples) {
        assert!(T::decode(&encoded).is_ok(), "what an earlier version wrote is read");
    }
}

const TIME: UnixMillis = UnixMillis(1_790_000_000_000);

fn name() -> ContentName {
    "alice/song.wav".parse().unwrap()
}

fn client() -> ClientId {
    ClientId::new("bob").unwrap()
}

fn delivery(n: u8) -> DeliveryId {
    DeliveryId::from_bytes([n; 16])
}

fn version() -> Version {
    Version { time: HybridTime(TIME.0 << 16), hash: ContentHash::of(b"song") }
}

fn chunk_list() -> ChunkList {
    let chunks = [1u8, 2].map(|n| ChunkRef { hash: ChunkHash::of(&[n]), len: 70_000 * u32::from(n) });
    ChunkList::Inline(chunks.to_vec())
}

fn stored_list() -> ChunkList {
    ChunkList::Stored { list: ChunkRef { hash: ChunkHash::of(b"list"), len: 3600 }, count: 100 }
}

#[test]
fn holdings_and_their_chunks_are_read_as_they_were_written() {
    let holding = |state, chunks| Holding {
        name: name(),
        version: version(),
        manifest: Manifest {
            hash: ContentHash::of(b"song"),
            len: 210_000,
            media_type: "audio/wav".into(),
            metadata: [("artist".to_owned(), "alice".to_owned())].into(),
            chunks,
        },
        provider: client(),
        state,
        ref_tag: RefTag(77),
        since: TIME,
    };
    let holdings =
        [holding(HoldingState::Complete, chunk_list()), holding(HoldingState::Collecting, stored_list())];
    run_rows("holding", &holdings);
    run_rows("chunk", &[ChunkValue { len: 70_000 }]);
    let reap = |chunks| ReapValue { name: name(), ref_tag: RefTag(78), chunks };
    run_rows("reap", &[reap(chunk_list()), reap(stored_list())]);
}

#[test]
fn libraries_are_read_as_they_were_written() {
    let value = |newest, newest_shard, made_by| LibraryValue {
        hash: ContentHash::of(b"song"),
        len: 210_000,
        provider: client(),
        since: TIME,
        deliveries: 3,
        recent: vec![TIME, UnixMillis(TIME.0 + 5)],
        newest,
        made_by,
        purchase_owed: true,
        newest_shard,
    };
    let purchase = Some((delivery(4), DeliveryClass::Purchase));
    let shard = Some(NodeId::new("tokyo.n1").unwrap());
    run_rows("library", &[value(purchase, shard, Some(delivery(3))), value(None, None, None)]);
    run_rows("since", &[Since(TIME), Since(UnixMillis(0))]);
}

#[test]
fn deliveries_and_records_are_read_as_they_were_written() {
    let open = OpenDelivery {
        delivery: delivery(1),
        client: client(),
        name: name(),
        hash: ContentHash::of(b"song"),
        provider: client(),
        class: DeliveryClass::Purchase,
        path: DeliveryPath::Peer,
        source: Some(Source::Site(SiteId::new("osaka").unwrap())),
        searched: true,
        surrogate: Some(SiteId::new("kyoto").unwrap()),
        mobile_access: Some(ServerName::new("m1").unwrap()),
        bytes_total: 210_000,
        bytes_sent: 4096,
        begin: TIME,
        touched: TIME,
        in_flight: vec![delivery(1), delivery(2)],
        ended: vec![delivery(3)],
        outcome: Some(DeliveryStatus::Partial),
        home: Some(SiteId::new("kobe").unwrap()),
    };
    run_rows("open-delivery", std::slice::from_ref(&open));
    let record = DeliveryRecord {
        delivery: open.delivery,
        begin: TIME,
        end: TIME,
        client: client(),
        content: name(),
        hash: open.hash,
        provider: client(),
        class: DeliveryClass::Reference,
        path: DeliveryPath::Origin,
        home: SiteId::new("tokyo").unwrap(),
        source: Some(Source::Origin(ServerName::new("o1").unwrap())),
        searched: false,
        surrogate: None,
        mobile_access: None,
        status: DeliveryStatus::Complete,
        bytes_total: 10,
        bytes_sent: 10,
    };
    let node = NodeId::new("tokyo.n1").unwrap();
    let chained = ChainedRecord::append(&node, 1, 0, RecordDigest::ZERO, record);
    run_rows("chain-head", &[ChainHead { epoch: 1, seq: chained.seq, digest: chained.digest }]);
    run_rows("record", &[chained]);
    run_rows("record-number", &[RecordNumber { epoch: 1, seq: u64::MAX }]);
}

#[test]
fn what_the_site_is_told_is_read_as_it_was_written() {
    let announcements = [
        Announcement::Hold {
            name: name(),
            version: version(),
            len: 210_000,
            media_type: "audio/wav".into(),
            provider: client(),
        },
        Announcement::Release { name: name(), version: version() },
        Announcement::Withdraw { name: name(), version: version() },
        Announcement::SnapshotBegin,
        Announcement::SnapshotEnd { slots: vec![Slot(3), Slot(1023)] },
    ];
    run_rows("announcement", &announcements);
    run_rows("announcement-head", &[AnnouncementHead { next_seq: 9 }]);
    run_rows("change-cursor", &[ChangeCursor(300)]);
    let covered = Some(vec![Slot(3)]);
    run_rows("snapshot", &[Snapshot::default(), Snapshot { slots: covered, after: vec![1, 2] }]);
    run_rows("newest-time", &[HybridTime(TIME.0 << 16)]);
    let moving = |step| MovingSlot { other: NodeId::new("tokyo.n2").unwrap(), fence: 5, since: TIME, step };
    run_rows("moving-slot", &[MoveStep::HandedOut, MoveStep::TakenBack, MoveStep::Promised].map(moving));
}

#[test]
fn what_is_kept_for_visitors_is_read_as_it_was_written() {
    let manifest = Manifest {
        hash: ContentHash::of(b"song"),
        len: 210_000,
        media_type: "audio/wav".into(),
        metadata: BTreeMap::new(),
        chunks: chunk_list(),
    };
    let content = |complete| TemporaryValue {
        version: version(),
        manifest: manifest.clone(),
        provider: client(),
        complete,
        since: TIME,
    };
    run_rows("temporary", &[content(true), content(false)]);
    let shard = NodeId::new("osaka.n1").unwrap();
    let begin = BeginAnswer { delivery: delivery(1), class: DeliveryClass::Purchase, shard: shard.clone() };
    let visitor = |begin, newest| VisitorValue {
        possession: Possession {
            home: SiteId::new("osaka").unwrap(),
            surrogate: SiteId::new("tokyo").unwrap(),
            mobile_access: Some(ServerName::new("m1").unwrap()),
            client: client(),
            name: name(),
            version: version(),
            provider: client(),
            begin,
            issued: TIME,
            expires: UnixMillis(TIME.0 + 86_400_000),
        },
        proof: PossessionProof::of(b"home said so"),
        since: TIME,
        newest,
    };
    run_rows("visitor", &[visitor(Some(begin), Some((delivery(2), shard))), visitor(None, None)]);
    let end = EndRequest { delivery: delivery(1), request: delivery(2), bytes_sent: 300 };
    run_rows("home-end", &[HomeEnd { end, since: TIME }]);
    let gone = |is_temporary| TallyHolding { gone: Some(chunk_list()), after: Some(client()), is_temporary };
    run_rows("tally-holding", &[gone(true), gone(false), TallyHolding::default()]);
}

/// Keys that another node sends, or that are on the disk.
fn any_key(bytes: &[u8]) {
    let hash = key::chunk_hash(bytes);
    assert!(hash.is_none_or(|hash| bytes[1..33] == *hash.as_bytes()));
    assert_eq!(key::announcement_seq(bytes).is_some(), bytes.len() >= 9);
    assert_eq!(key::moving_slot(bytes).is_some(), bytes.len() >= 3);
    if let Some(slot) = key::moving_slot(bytes) {
        let other = Slot(slot.0.wrapping_add(1));
        assert!(!key::is_in_slot(bytes, other), "a key is in one slot");
    }
}

#[test]
fn a_key_is_in_one_slot() {
    let hash = ChunkHash::of(b"chunk");
    let keys = [
        key::Key::Holding(&name()).encode(),
        key::Key::HoldingClient(&name(), &client()).encode(),
        key::Key::Library(&client(), &name()).encode(),
        key::Key::ChunkRef(&hash, RefTag(7), &name()).encode(),
        key::Key::UnreferencedChunk(&hash).encode(),
        key::Key::Announcement(5).encode(),
        key::Key::MovingSlot(Slot(3)).encode(),
        key::Key::Temporary(&name(), RefTag(7)).encode(),
        key::Key::Visitor(&name(), RefTag(7), &client()).encode(),
    ];
    run("key", ROUNDS, any_key, &keys);
}
