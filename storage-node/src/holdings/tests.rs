use std::collections::BTreeMap;
use std::path::Path;

use common::api::node::{Quota, RefTag};
use common::hash::ChunkHash;
use common::manifest::{ChunkList, ChunkRef, Manifest};
use common::telemetry::MetricsRegistry;

use super::*;
use crate::catalog::Catalog;
use crate::catalog::key::Tag;
use crate::catalog::rows::Row;
use crate::store;

struct Fixture {
    catalog: Catalog,
    _dir: tempfile::TempDir,
}

fn name() -> ContentName {
    "alice/song.wav".parse().unwrap()
}

fn client(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

fn publish(bytes: &[u8], tag: u64) -> HoldRequest {
    let chunk = ChunkRef { hash: ChunkHash::of(bytes), len: bytes.len() as u32 };
    HoldRequest {
        name: name(),
        manifest: Manifest {
            hash: ContentHash::of(bytes),
            len: bytes.len() as u64,
            media_type: "audio/wav".into(),
            metadata: BTreeMap::new(),
            chunks: ChunkList::Inline(vec![chunk]),
        },
        provider: client("alice"),
        state: HoldingState::Complete,
        ref_tag: RefTag(tag),
        version_time: None,
        client: Some(client("alice")),
        add_to_library: false,
        quota: Quota::default(),
        precondition: Precondition::None,
        announce_wait_ms: 0,
    }
}

fn collect(bytes: &[u8], tag: u64, time: u64, state: HoldingState) -> HoldRequest {
    HoldRequest { version_time: Some(HybridTime(time)), state, client: None, ..publish(bytes, tag) }
}

fn release_request(who: &str) -> ReleaseRequest {
    ReleaseRequest {
        name: name(),
        client: client(who),
        precondition: Precondition::None,
        announce_wait_ms: 0,
    }
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let opened = store::open(&"memory:".parse().unwrap(), Path::new("/nowhere"), &MetricsRegistry::new())
            .await
            .unwrap();
        let catalog = Catalog::open(dir.path(), opened.log, &opened.log_id, 1 << 20).await.unwrap();
        Self { catalog, _dir: dir }
    }

    async fn hold(&self, request: HoldRequest, now: u64) -> ApiResult<Held> {
        self.catalog.commit(move |txn| hold(txn, &request, UnixMillis(now))).await
    }

    async fn withdraw(&self, who: &str) -> ApiResult<Let> {
        let request = release_request(who);
        self.catalog.commit(move |txn| withdraw(txn, &request)).await
    }

    async fn release(&self, who: &str) -> Let {
        let request = release_request(who);
        self.catalog.commit(move |txn| release(txn, &request)).await.unwrap()
    }

    fn holding(&self) -> Option<Holding> {
        self.catalog.read(|rows| rows.get(Key::Holding(&name()))).unwrap()
    }

    /// Kinds of the announcements that wait.
    fn announced(&self) -> Vec<&'static str> {
        let mut kinds = Vec::new();
        self.scan(Tag::Announcement, |value| {
            kinds.push(match Announcement::decode(value).unwrap() {
                Announcement::Hold { .. } => "hold",
                Announcement::Release { .. } => "release",
                Announcement::Withdraw { .. } => "withdraw",
                Announcement::SnapshotBegin | Announcement::SnapshotEnd { .. } => "snapshot",
            });
        });
        kinds
    }

    /// Tags whose references wait to be released.
    fn reaped(&self) -> Vec<u64> {
        let mut tags = Vec::new();
        self.scan(Tag::Reap, |value| tags.push(ReapValue::decode(value).unwrap().ref_tag.0));
        tags
    }

    fn scan(&self, tag: Tag, mut visit: impl FnMut(&[u8])) {
        let go_on = |value: &[u8]| {
            visit(value);
            Ok(ControlFlow::Continue(()))
        };
        let mut go_on = go_on;
        self.catalog.read(|rows| rows.scan(&key::all(tag), &mut |_, value| go_on(value))).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_is_newer_than_what_it_replaces_even_when_the_clock_went_back() {
    let site = Fixture::new().await;
    let first = site.hold(publish(b"one", 1), 5_000).await.unwrap();
    let second = site.hold(publish(b"two", 2), 1_000).await.unwrap();
    assert!(second.version > first.version);
    assert_eq!((first.replaced, second.replaced), (None, Some(ContentHash::of(b"one"))));
    assert_eq!(site.holding().unwrap().version, second.version);
    assert_eq!((site.announced(), site.reaped()), (vec!["hold", "hold"], vec![1]));
    site.withdraw("alice").await.unwrap();
    let third = site.hold(publish(b"three", 3), 1_000).await.unwrap();
    assert!(third.version.time > second.version.time, "also after a withdrawal");
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_are_checked_in_the_same_step() {
    let site = Fixture::new().await;
    let absent = HoldRequest { precondition: Precondition::Absent, ..publish(b"one", 1) };
    let first = site.hold(absent.clone(), 1).await.unwrap();
    let again = site.hold(absent.clone(), 2).await.unwrap();
    let told = (first.version, first.announcement);
    assert_eq!(
        (again.version, again.announcement),
        told,
        "the same publication, repeated; search does not know it yet"
    );
    let another = HoldRequest { ref_tag: RefTag(9), ..absent };
    assert_eq!(site.hold(another, 2).await.unwrap_err().code, ErrorCode::PreconditionFailed);
    let matches = |hash| HoldRequest { precondition: Precondition::Matches(hash), ..publish(b"two", 2) };
    let error = site.hold(matches(ContentHash::of(b"other")), 3).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PreconditionFailed);
    site.hold(matches(ContentHash::of(b"one")), 4).await.unwrap();
    assert_eq!(site.announced().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_becomes_complete_and_is_announced_once() {
    let site = Fixture::new().await;
    let held = site.hold(collect(b"one", 1, 77, HoldingState::Collecting), 1).await.unwrap();
    assert_eq!((held.announcement, site.holding().unwrap().state), (None, HoldingState::Collecting));
    let held = site.hold(collect(b"one", 1, 77, HoldingState::Complete), 2).await.unwrap();
    assert_eq!((held.announcement, held.replaced), (Some(1), None));
    let again = site.hold(collect(b"one", 1, 77, HoldingState::Complete), 3).await.unwrap();
    assert_eq!((again.version, again.announcement), (held.version, None));
    assert_eq!((site.announced(), site.reaped()), (vec!["hold"], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_collector_goes_on_with_the_references_of_the_first() {
    let site = Fixture::new().await;
    site.hold(collect(b"one", 1, 77, HoldingState::Collecting), 1).await.unwrap();
    let held = site.hold(collect(b"one", 2, 77, HoldingState::Collecting), 2).await.unwrap();
    assert_eq!((held.ref_tag, site.reaped()), (RefTag(1), vec![2]));
    let wrong = site.hold(collect(b"one", 2, 77, HoldingState::Complete), 3).await.unwrap_err();
    assert_eq!(wrong.code, ErrorCode::Conflict);
    site.hold(collect(b"one", 1, 77, HoldingState::Complete), 4).await.unwrap();
    let late = site.hold(collect(b"one", 1, 77, HoldingState::Complete), 5).await.unwrap();
    assert_eq!((late.ref_tag, late.announcement), (RefTag(1), None));
    assert_eq!((site.reaped(), site.announced()), (vec![2], vec!["hold"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_nobody_carries_on_is_given_up_and_cannot_be_completed() {
    let site = Fixture::new().await;
    site.hold(collect(b"one", 1, 77, HoldingState::Collecting), 1_000).await.unwrap();
    let old = |before| site.catalog.read(|rows| collecting(rows, None, UnixMillis(before), 10)).unwrap();
    assert_eq!((old(1_000), old(1_001)), (vec![], vec![name()]));
    let give_up = |before| site.catalog.commit(move |txn| give_up(txn, &name(), UnixMillis(before)));
    assert!(!give_up(1_000).await.unwrap());
    assert!(give_up(1_001).await.unwrap());
    assert!(!give_up(9_999).await.unwrap());
    assert_eq!((site.holding(), site.reaped(), old(9_999)), (None, vec![1], vec![]));
    let error = site.hold(collect(b"one", 1, 77, HoldingState::Complete), 2_000).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    site.hold(collect(b"one", 2, 77, HoldingState::Collecting), 3_000).await.unwrap();
    site.hold(collect(b"one", 2, 77, HoldingState::Complete), 4_000).await.unwrap();
    assert_eq!((site.announced(), old(9_999)), (vec!["hold"], vec![]), "a complete one is not given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_withdrawn_while_it_is_collected_stays_withdrawn() {
    let site = Fixture::new().await;
    site.hold(collect(b"one", 1, 77, HoldingState::Collecting), 1).await.unwrap();
    let version = site.holding().unwrap().version;
    let change = Change { seq: 1, name: name(), version, kind: ChangeKind::Withdrawn };
    assert!(site.catalog.commit(move |txn| supersede(txn, &change)).await.unwrap());
    site.hold(collect(b"one", 1, 77, HoldingState::Complete), 2).await.unwrap();
    assert_eq!(site.holding().unwrap().state, HoldingState::Superseded);
    assert_eq!(site.announced(), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_collection_never_replaces_a_newer_version() {
    let site = Fixture::new().await;
    let newest = site.hold(publish(b"two", 2), 5_000).await.unwrap();
    let held = site.hold(collect(b"one", 1, 77, HoldingState::Complete), 6_000).await.unwrap();
    assert_eq!((held.version, held.announcement), (newest.version, None));
    assert_eq!(site.reaped(), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_provider_withdraws() {
    let site = Fixture::new().await;
    site.hold(publish(b"one", 1), 1).await.unwrap();
    assert_eq!(site.withdraw("bob").await.unwrap_err().code, ErrorCode::Forbidden);
    assert!(site.withdraw("alice").await.unwrap().released);
    assert!(!site.withdraw("alice").await.unwrap().released);
    assert_eq!((site.holding(), site.announced(), site.reaped()), (None, vec!["hold", "withdraw"], vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_a_withdrawn_content_keeps_it_until_letting_it_go() {
    let site = Fixture::new().await;
    site.hold(publish(b"one", 1), 1).await.unwrap();
    site.catalog.commit(|txn| add_client(txn, &name(), &client("bob"), UnixMillis(2))).await.unwrap();
    assert!(site.withdraw("alice").await.unwrap().released);
    assert!(!site.withdraw("alice").await.unwrap().released, "for its provider it is gone");
    assert_eq!(site.holding().unwrap().state, HoldingState::Superseded);
    let page = site.catalog.read(|rows| clients(rows, &name(), "", 10)).unwrap();
    assert_eq!(page.clients, [HoldingClient { client: client("bob"), since: UnixMillis(2) }]);
    assert!(site.reaped().is_empty());
    assert!(site.release("bob").await.released);
    assert_eq!((site.holding(), site.reaped()), (None, vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holding_goes_with_its_last_client() {
    let site = Fixture::new().await;
    site.hold(publish(b"one", 1), 1).await.unwrap();
    site.catalog.commit(|txn| add_client(txn, &name(), &client("bob"), UnixMillis(2))).await.unwrap();
    assert!(site.release("alice").await.released);
    assert!(site.holding().is_some());
    assert!(!site.release("alice").await.released);
    assert!(site.release("bob").await.released);
    assert_eq!((site.holding(), site.announced(), site.reaped()), (None, vec!["hold", "release"], vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_elsewhere_supersede_what_is_older_here_and_nothing_else() {
    let site = Fixture::new().await;
    let held = site.hold(publish(b"one", 1), 1).await.unwrap();
    let mark = async |kind, time| {
        let version = Version { time: HybridTime(time), hash: held.version.hash };
        let change = Change { seq: 1, kind, name: name(), version };
        site.catalog.commit(move |txn| supersede(txn, &change)).await.unwrap()
    };
    let time = held.version.time.0;
    assert!(!mark(ChangeKind::NewVersion, time).await);
    assert!(!mark(ChangeKind::Withdrawn, time - 1).await);
    assert!(mark(ChangeKind::NewVersion, time + 1).await);
    assert_eq!(site.holding().unwrap().state, HoldingState::Superseded);
    // Collected anew in the newer version, then withdrawn.
    for state in [HoldingState::Collecting, HoldingState::Complete] {
        site.hold(collect(b"two", 2, time + 1, state), 2).await.unwrap();
    }
    assert!(mark(ChangeKind::Withdrawn, time + 2).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_that_wait_are_numbered_anew_for_a_new_epoch() {
    let site = Fixture::new().await;
    for n in 0..3u8 {
        site.hold(publish(&[n], u64::from(n)), u64::from(n)).await.unwrap();
    }
    site.catalog
        .commit(|txn| {
            txn.delete(Key::Announcement(1));
            announcements::renumber(txn, 1)
        })
        .await
        .unwrap();
    let held = site.hold(publish(b"next", 9), 9).await.unwrap();
    assert_eq!(held.announcement, Some(3));
    assert_eq!(site.announced().len(), 3);
}
