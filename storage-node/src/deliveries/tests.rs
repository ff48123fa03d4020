use std::path::Path;
use std::time::Duration;

use common::hash::ContentHash;
use common::id::ClientId;
use common::record::DeliveryPath;
use common::telemetry::MetricsRegistry;

use super::*;
use crate::catalog::Catalog;
use crate::catalog::key;
use crate::store;

const WINDOW: Duration = Duration::from_secs(60);

struct Fixture {
    catalog: Catalog,
    recorder: Recorder,
    _dir: tempfile::TempDir,
}

fn id(n: u8) -> DeliveryId {
    DeliveryId::from_bytes([n; 16])
}

fn request(n: u8, range_start: u64) -> BeginRequest {
    BeginRequest {
        delivery: id(n),
        client: ClientId::new("bob").unwrap(),
        name: "alice/song.wav".parse().unwrap(),
        hash: ContentHash::of(b"song"),
        provider: ClientId::new("alice").unwrap(),
        bytes_total: 100,
        range_start,
        path: DeliveryPath::Hit,
        source: None,
        searched: false,
        surrogate: None,
        mobile_access: None,
        quota: Quota::default(),
    }
}

fn deadlines(started: u64) -> Deadlines {
    Deadlines { join_window: WINDOW, open_max: Duration::from_secs(600), started: UnixMillis(started) }
}

impl Fixture {
    async fn without_epoch() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let opened = store::open(&"memory:".parse().unwrap(), Path::new("/nowhere"), &MetricsRegistry::new())
            .await
            .unwrap();
        let catalog = Catalog::open(dir.path(), opened.log, &opened.log_id, 1 << 20).await.unwrap();
        let home = SiteId::new("tokyo").unwrap();
        let recorder = Recorder { node: NodeId::new("tokyo.n1").unwrap(), home };
        Self { catalog, recorder, _dir: dir }
    }

    async fn new() -> Self {
        let fixture = Self::without_epoch().await;
        fixture.catalog.commit(|txn| set_epoch(txn, 1)).await.unwrap();
        fixture
    }

    async fn begin_joining(&self, request: BeginRequest, elsewhere: bool, now: u64) -> Beginning {
        let joining = Joining { shard: self.recorder.node.clone(), window: WINDOW, elsewhere };
        self.catalog.commit(move |txn| begin(txn, &request, &joining, UnixMillis(now))).await.unwrap()
    }

    /// Begins, or tells which other shard is to be asked.
    async fn begin_or_ask(&self, request: BeginRequest, now: u64) -> Beginning {
        self.begin_joining(request, true, now).await
    }

    /// Begins without another shard.
    async fn begin_request(&self, request: BeginRequest, now: u64) -> Begun {
        match self.begin_joining(request, false, now).await {
            Beginning::Begun(begun) => begun,
            Beginning::Elsewhere(join) => panic!("asks for {join:?}"),
        }
    }

    async fn join(&self, request: JoinRequest, now: u64) -> Option<Begun> {
        self.catalog.commit(move |txn| join(txn, &request, WINDOW, UnixMillis(now))).await.unwrap()
    }

    async fn begin(&self, n: u8, range_start: u64, now: u64) -> Begun {
        self.begin_request(request(n, range_start), now).await
    }

    async fn end(&self, n: u8, bytes_sent: u64, now: u64) -> Ended {
        self.end_joined(n, n, bytes_sent, now).await
    }

    /// The end of request `n`, which joined delivery `delivery`.
    async fn end_joined(&self, delivery: u8, n: u8, bytes_sent: u64, now: u64) -> Ended {
        let recorder = self.recorder.clone();
        let request = EndRequest { delivery: id(delivery), request: id(n), bytes_sent };
        self.catalog.commit(move |txn| end(txn, &recorder, &request, UnixMillis(now))).await.unwrap()
    }

    async fn expire(&self, n: u8, deadlines: Deadlines, now: u64) -> Ended {
        self.expire_with(n, deadlines, true, now).await
    }

    async fn expire_with(&self, n: u8, deadlines: Deadlines, may_be_joined: bool, now: u64) -> Ended {
        let recorder = self.recorder.clone();
        self.catalog
            .commit(move |txn| expire(txn, &recorder, &id(n), &deadlines, |_| may_be_joined, UnixMillis(now)))
            .await
            .unwrap()
    }

    fn library(&self) -> Option<LibraryValue> {
        let request = request(0, 0);
        self.catalog.read(|rows| rows.get(Key::Library(&request.client, &request.name))).unwrap()
    }

    /// Statuses and classes of the records of an epoch, after a check of its chain.
    fn records(&self, epoch: u64) -> Vec<(DeliveryStatus, DeliveryClass, u64)> {
        let (mut records, mut previous) = (Vec::new(), RecordDigest::ZERO);
        self.catalog
            .read(|rows| {
                rows.scan(&key::records(epoch), &mut |_, value| {
                    let link = <ChainedRecord as crate::catalog::rows::Row>::decode(value)?;
                    link.check(&self.recorder.node, epoch, records.len() as u64, &previous).unwrap();
                    previous = link.digest;
                    records.push((link.record.status, link.record.class, link.record.bytes_sent));
                    Ok(std::ops::ControlFlow::Continue(()))
                })
            })
            .unwrap();
        records
    }
}

use DeliveryClass::{Purchase, Reference};
use DeliveryStatus::{Complete, Partial, Recovered, Void};

fn recorded(epoch: u64, seq: u64) -> Ended {
    Ended::Recorded(RecordNumber { epoch, seq })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_delivery_is_a_purchase_and_later_ones_are_references() {
    let node = Fixture::new().await;
    assert_eq!(node.begin(1, 0, 1000).await, Begun { delivery: id(1), class: Purchase, opened: true });
    assert_eq!(node.begin(1, 0, 1001).await, Begun { delivery: id(1), class: Purchase, opened: false });
    assert_eq!(node.end(1, 100, 1100).await, recorded(1, 1));
    assert_eq!(node.end(1, 100, 1101).await, Ended::Unknown);
    assert_eq!(node.begin(2, 0, 1200).await.class, Reference);
    assert_eq!(node.end(2, 100, 1300).await, recorded(1, 2));
    let row = node.library().unwrap();
    assert_eq!((row.deliveries, row.recent), (2, vec![UnixMillis(1000), UnixMillis(1200)]));
    assert_eq!(node.records(1), [(Complete, Purchase, 100), (Complete, Reference, 100)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_range_joins_the_open_delivery_and_completes_it() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    assert_eq!(node.end(1, 40, 1100).await, Ended::Open);
    let joined = Begun { delivery: id(1), class: Purchase, opened: false };
    assert_eq!(node.begin(2, 40, 2000).await, joined);
    assert_eq!(node.begin(2, 40, 2001).await, joined);
    assert_eq!(node.end(1, 60, 2050).await, Ended::Unknown, "request 1 has ended already");
    assert_eq!(node.end_joined(1, 2, 60, 2100).await, recorded(1, 1));
    assert_eq!(node.library().unwrap().deliveries, 1);
    assert_eq!(node.records(1), [(Complete, Purchase, 100)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_another_version_or_after_the_window_begins_a_delivery() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    node.end(1, 40, 1100).await;
    let other = BeginRequest { hash: ContentHash::of(b"another song"), ..request(2, 40) };
    assert_eq!(node.begin_request(other, 1200).await.delivery, id(2));
    node.end(2, 100, 1300).await;
    node.begin(3, 0, 2000).await;
    node.end(3, 40, 2100).await;
    assert_eq!(node.begin(4, 40, 2101 + 60_000).await.delivery, id(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_purchase_is_taken_back_and_the_next_attempt_is_the_purchase() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    assert_eq!(node.end(1, 0, 1100).await, recorded(1, 1));
    assert_eq!(node.library(), None);
    assert_eq!(node.begin(2, 0, 1200).await.class, Purchase);
    node.end(2, 100, 1300).await;
    assert_eq!(node.records(1), [(Void, Purchase, 0), (Complete, Purchase, 100)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_reference_leaves_the_library_as_it_was() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    node.end(1, 100, 1100).await;
    let before = node.library().unwrap();
    node.begin(2, 0, 1200).await;
    node.end(2, 0, 1300).await;
    let after = node.library().unwrap();
    assert_eq!((after.deliveries, &after.recent), (1, &before.recent));
    assert_eq!(node.begin(3, 0, 1400).await.class, Reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_that_turns_out_void_behind_a_reference_is_owed_by_the_next_delivery() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    assert_eq!(node.begin(2, 0, 1001).await.class, Reference);
    node.end(1, 0, 1100).await;
    node.end(2, 100, 1200).await;
    assert_eq!(node.begin(3, 0, 1300).await.class, Purchase);
    node.end(3, 100, 1400).await;
    assert_eq!(node.begin(4, 0, 1500).await.class, Reference);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_not_void_while_another_of_its_ranges_is_in_flight() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    node.begin(2, 1, 1001).await;
    assert_eq!(node.end(1, 0, 1100).await, Ended::Open);
    assert_eq!(node.end_joined(1, 2, 99, 1200).await, Ended::Open);
    assert_eq!(node.expire(1, deadlines(0), 1200 + 60_000).await, recorded(1, 1));
    assert_eq!(node.records(1), [(Partial, Purchase, 99)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_delivery_is_partial_after_the_join_window() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    node.end(1, 40, 2000).await;
    assert_eq!(node.expire(1, deadlines(0), 61_999).await, Ended::Open);
    assert_eq!(node.expire(1, deadlines(0), 62_000).await, recorded(1, 1));
    assert_eq!(node.expire(1, deadlines(0), 62_001).await, Ended::Unknown);
    assert_eq!(node.records(1), [(Partial, Purchase, 40)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_without_a_word_is_recovered_sooner_after_a_restart() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    assert_eq!(node.expire(1, deadlines(0), 600_999).await, Ended::Open);
    // The node started anew at 5,000: the gateway has the join window to end it.
    assert_eq!(node.expire(1, deadlines(5_000), 64_999).await, Ended::Open);
    assert_eq!(node.expire(1, deadlines(5_000), 65_000).await, recorded(1, 1));
    assert_eq!(node.records(1), [(Recovered, Purchase, 0)]);
    assert!(node.library().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_wait_for_the_record_epoch_and_are_numbered_then() {
    let node = Fixture::without_epoch().await;
    node.begin(1, 0, 1000).await;
    assert_eq!(node.end(1, 100, 1100).await, Ended::Waiting);
    assert_eq!(node.end(1, 100, 1101).await, Ended::Unknown);
    assert_eq!(node.expire(1, deadlines(0), 1200).await, Ended::Waiting);
    node.catalog.commit(|txn| set_epoch(txn, 4)).await.unwrap();
    assert_eq!(node.expire(1, deadlines(0), 1300).await, recorded(4, 1));
    assert_eq!(node.records(4), [(Complete, Purchase, 100)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greater_epoch_starts_a_new_chain_and_an_older_one_changes_nothing() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    node.end(1, 100, 1100).await;
    node.catalog.commit(|txn| set_epoch(txn, 3)).await.unwrap();
    let head = node.catalog.commit(|txn| set_epoch(txn, 2)).await.unwrap();
    assert_eq!((head.epoch, head.seq), (3, 0));
    node.begin(2, 0, 1200).await;
    assert_eq!(node.end(2, 100, 1300).await, recorded(3, 1));
    assert_eq!((node.records(1).len(), node.records(3).len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_content_is_complete_without_a_byte() {
    let node = Fixture::new().await;
    node.begin_request(BeginRequest { bytes_total: 0, ..request(1, 0) }, 1000).await;
    assert_eq!(node.end(1, 0, 1100).await, recorded(1, 1));
    assert_eq!(node.records(1), [(Complete, Purchase, 0)]);
}

/// A shard to which the client's slot moved from `old`.
async fn next_owner(old: &Fixture) -> Fixture {
    let mut new = Fixture::new().await;
    new.recorder.node = NodeId::new("tokyo.n2").unwrap();
    let row = old.library().unwrap();
    let add = move |txn: &mut Txn<'_>| {
        txn.put(Key::Library(&request(1, 0).client, &request(1, 0).name), &row);
        Ok(())
    };
    new.catalog.commit(add).await.unwrap();
    new
}

fn join_request(delivery: u8, n: u8) -> JoinRequest {
    let BeginRequest { hash, client, .. } = request(n, 40);
    let shard = NodeId::new("tokyo.n1").unwrap();
    JoinRequest { shard, delivery: id(delivery), request: id(n), hash, client }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_range_at_the_slots_next_owner_joins_the_delivery_where_it_is() {
    let old = Fixture::new().await;
    old.begin(1, 0, 1000).await;
    old.end(1, 40, 1100).await;
    let new = next_owner(&old).await;
    let row = new.library();
    for _ in 0..2 {
        assert_eq!(new.begin_or_ask(request(2, 40), 2000).await, Beginning::Elsewhere(join_request(1, 2)));
        assert_eq!(new.library(), row, "nothing is changed where the slot is");
        let joined = Begun { delivery: id(1), class: Purchase, opened: false };
        assert_eq!(old.join(join_request(1, 2), 2000).await, Some(joined));
    }
    assert_eq!(old.end_joined(1, 2, 60, 2100).await, recorded(1, 1));
    assert_eq!(old.records(1), [(Complete, Purchase, 100)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_range_that_cannot_join_elsewhere_begins_a_delivery_that_the_next_one_joins() {
    let old = Fixture::new().await;
    old.begin(1, 0, 1000).await;
    let new = next_owner(&old).await;
    assert_eq!(new.begin(2, 40, 2000).await, Begun { delivery: id(2), class: Reference, opened: true });
    let joined = Begun { delivery: id(2), class: Reference, opened: false };
    assert_eq!(new.begin_or_ask(request(3, 60), 2100).await, Beginning::Begun(joined));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_or_of_another_version_or_client_is_not_joined() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    node.end(1, 40, 1100).await;
    let other_version = JoinRequest { hash: ContentHash::of(b"another song"), ..join_request(1, 2) };
    let other_client = JoinRequest { client: ClientId::new("carol").unwrap(), ..join_request(1, 2) };
    for request in [other_version, other_client, join_request(9, 2)] {
        assert_eq!(node.join(request, 1200).await, None);
    }
    assert_eq!(node.join(join_request(1, 2), 1101 + 60_000).await, None);
    assert!(node.join(join_request(1, 2), 1100 + 60_000).await.is_some());
    node.end_joined(1, 2, 60, 62_000).await;
    assert_eq!(node.join(join_request(1, 3), 62_001).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_idle_delivery_is_given_up_at_once_when_no_range_may_join() {
    let node = Fixture::new().await;
    node.begin(1, 0, 1000).await;
    assert_eq!(node.expire_with(1, deadlines(0), false, 1001).await, Ended::Open);
    node.end(1, 40, 1100).await;
    assert_eq!(node.expire_with(1, deadlines(0), true, 1101).await, Ended::Open);
    assert_eq!(node.expire_with(1, deadlines(0), false, 1101).await, recorded(1, 1));
    assert_eq!(node.records(1), [(Partial, Purchase, 40)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_begin_repeated_at_the_slots_next_owner_is_still_the_purchase_and_counted_once() {
    let old = Fixture::new().await;
    old.begin(1, 0, 1000).await;
    let new = next_owner(&old).await;
    assert_eq!(new.begin_or_ask(request(1, 0), 1100).await, Beginning::Elsewhere(join_request(1, 1)));
    let begun = Begun { delivery: id(1), class: Purchase, opened: false };
    assert_eq!(old.join(join_request(1, 1), 1100).await, Some(begun));
    // Should the old one not answer:
    assert_eq!(new.begin(1, 0, 1200).await.class, Purchase);
    assert_eq!(new.library().unwrap().deliveries, 1);
    assert_eq!(new.begin(1, 0, 1300).await, begun);
}
