use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use common::api::node::{AddRequest, EndRequest, HoldRequest, Precondition, Quota, RefTag};
use common::api::search::{Change, ChangeKind};
use common::hash::{ChunkHash, ContentHash};
use common::id::{ClientId, DeliveryId, NodeId, SiteId};
use common::manifest::{ChunkList, ChunkRef, Manifest};
use common::name::ContentName;
use common::record::DeliveryClass;
use common::telemetry::MetricsRegistry;
use common::version::{HybridTime, Version};

use super::*;
use crate::catalog::Catalog;
use crate::catalog::rows::{LibraryValue, Row};
use crate::deliveries::{Begun, Ended, Recorder};
use crate::{library, store};

const WINDOW: Duration = Duration::from_secs(60);
const BYTES: &[u8] = b"la la la la";

type AllRows = Vec<(Vec<u8>, Vec<u8>)>;

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

fn id(n: u8) -> DeliveryId {
    DeliveryId::from_bytes([n; 16])
}

fn hold_request(bytes: &[u8], state: HoldingState, tag: u64) -> HoldRequest {
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
        state,
        ref_tag: RefTag(tag),
        version_time: Some(HybridTime(tag)),
        client: None,
        add_to_library: false,
        precondition: Precondition::None,
        quota: Quota::default(),
        announce_wait_ms: 0,
    }
}

fn request(n: u8, who: &str, range: Option<&str>) -> OpenRequest {
    OpenRequest {
        delivery: id(n),
        client: client(who),
        name: name(),
        range: range.map(str::to_owned),
        surrogate: None,
        mobile_access: None,
        quota: Quota::default(),
    }
}

fn joining() -> Joining {
    Joining { shard: NodeId::new("tokyo.n1").unwrap(), window: WINDOW, elsewhere: true }
}

/// What a gateway does with two calls: resolve notes the client at a current holding, and what can be sent begins.
fn resolve_and_begin(
    txn: &mut Txn<'_>,
    request: &OpenRequest,
    now: UnixMillis,
) -> ApiResult<Option<Beginning>> {
    let Some(holding) = txn.get::<Holding>(Key::Holding(&request.name))? else { return Ok(None) };
    holdings::add_client(txn, &request.name, &request.client, now)?;
    let range_start = match range::parse(request.range.as_deref(), holding.manifest.len).unwrap() {
        Wanted::Whole => 0,
        Wanted::Part(range) => range.start,
    };
    let begin = BeginRequest {
        delivery: request.delivery,
        client: request.client.clone(),
        name: request.name.clone(),
        hash: holding.manifest.hash,
        provider: holding.provider,
        bytes_total: holding.manifest.len,
        range_start,
        path: DeliveryPath::Hit,
        source: None,
        searched: false,
        surrogate: None,
        mobile_access: None,
        quota: Quota::default(),
    };
    deliveries::begin(txn, &begin, &joining(), now).map(Some)
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let opened = store::open(&"memory:".parse().unwrap(), Path::new("/nowhere"), &MetricsRegistry::new())
            .await
            .unwrap();
        let catalog = Catalog::open(dir.path(), opened.log, &opened.log_id, 1 << 20).await.unwrap();
        catalog.commit(|txn| deliveries::set_epoch(txn, 1)).await.unwrap();
        Self { catalog, _dir: dir }
    }

    /// A site that holds the song, published by alice, who has it in her library.
    async fn with_song() -> Self {
        let fixture = Self::new().await;
        fixture.hold(BYTES, HoldingState::Complete, 1).await;
        let add = AddRequest {
            client: client("alice"),
            name: name(),
            hash: ContentHash::of(BYTES),
            len: BYTES.len() as u64,
            provider: client("alice"),
            quota: Quota::default(),
        };
        fixture.catalog.commit(move |txn| library::add(txn, &add, UnixMillis(1), true)).await.unwrap();
        fixture
    }

    /// Collects a version, as far as `state`.
    async fn hold(&self, bytes: &[u8], state: HoldingState, tag: u64) {
        let begun = hold_request(bytes, HoldingState::Collecting, tag);
        let request = hold_request(bytes, state, tag);
        let hold = move |txn: &mut Txn<'_>| {
            holdings::hold(txn, &begun, UnixMillis(tag))?;
            holdings::hold(txn, &request, UnixMillis(tag))
        };
        self.catalog.commit(hold).await.unwrap();
    }

    async fn open(&self, request: &OpenRequest, now: u64) -> Opened {
        let request = request.clone();
        self.catalog.commit(move |txn| open(txn, &request, &joining(), UnixMillis(now))).await.unwrap()
    }

    async fn resolve_and_begin(&self, request: &OpenRequest, now: u64) -> Option<Beginning> {
        let request = request.clone();
        self.catalog.commit(move |txn| resolve_and_begin(txn, &request, UnixMillis(now))).await.unwrap()
    }

    async fn end(&self, delivery: u8, request: u8, bytes_sent: u64, now: u64) -> Ended {
        let recorder =
            Recorder { node: NodeId::new("tokyo.n1").unwrap(), home: SiteId::new("tokyo").unwrap() };
        let request = EndRequest { delivery: id(delivery), request: id(request), bytes_sent };
        self.catalog
            .commit(move |txn| deliveries::end(txn, &recorder, &request, UnixMillis(now)))
            .await
            .unwrap()
    }

    fn rows(&self) -> AllRows {
        let mut all = Vec::new();
        self.catalog
            .read(|rows| {
                rows.scan(&[], &mut |key, value| {
                    all.push((key.to_vec(), value.to_vec()));
                    Ok(ControlFlow::Continue(()))
                })
            })
            .unwrap();
        all
    }

    /// Opens what cannot be delivered at once, and checks that it left no trace.
    async fn opens_nothing(&self, request: &OpenRequest) -> Option<Holding> {
        let before = self.rows();
        let opened = self.open(request, 5_000).await;
        assert_eq!(opened.begun, None);
        assert_eq!(self.rows(), before);
        opened.holding
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_leaves_the_rows_that_resolve_and_begin_leave() {
    let (one, two) = (Fixture::with_song().await, Fixture::with_song().await);
    // A purchase, references, the provider's own, ranges that join, and ranges that are ignored.
    let requests = [
        request(1, "bob", None),
        request(2, "bob", None),
        request(3, "alice", None),
        request(4, "carol", Some("bytes=0-3")),
        request(5, "carol", Some("bytes=4-")),
        request(6, "carol", Some("bytes=-2")),
        request(7, "dave", Some("items=1-2")),
        request(5, "carol", Some("bytes=4-")),
    ];
    for (request, now) in requests.iter().zip(1_000..) {
        let opened = one.open(request, now).await;
        assert_eq!(opened.begun, two.resolve_and_begin(request, now).await);
        assert!(opened.begun.is_some());
        assert_eq!(opened.holding.unwrap().manifest.hash, ContentHash::of(BYTES));
        assert_eq!(one.rows(), two.rows(), "after {request:?}");
    }
    for (delivery, request, bytes) in [(1, 1, 11), (2, 2, 0), (4, 4, 4), (4, 5, 7), (7, 7, 11)] {
        let ended = one.end(delivery, request, bytes, 2_000).await;
        assert_eq!(ended, two.end(delivery, request, bytes, 2_000).await);
    }
    assert_eq!(one.rows(), two.rows());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_open_is_the_purchase_and_the_same_id_again_gets_the_same_answer() {
    let node = Fixture::with_song().await;
    let first = node.open(&request(1, "bob", None), 1_000).await;
    let begun = Begun { delivery: id(1), class: DeliveryClass::Purchase, opened: true };
    assert_eq!(first.begun, Some(Beginning::Begun(begun)));
    let rows = node.rows();
    let again = node.open(&request(1, "bob", None), 1_001).await;
    assert_eq!(again, Opened { begun: Some(Beginning::Begun(Begun { opened: false, ..begun })), ..first });
    assert_eq!(node.rows(), rows);
    let next = node.open(&request(2, "bob", None), 1_002).await;
    let begun = Begun { delivery: id(2), class: DeliveryClass::Reference, opened: true };
    assert_eq!(next.begun, Some(Beginning::Begun(begun)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_site_does_not_hold_is_not_begun() {
    assert_eq!(Fixture::new().await.opens_nothing(&request(1, "bob", None)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_collected_is_answered_and_not_begun() {
    let node = Fixture::new().await;
    node.hold(BYTES, HoldingState::Collecting, 1).await;
    let holding = node.opens_nothing(&request(1, "bob", None)).await.unwrap();
    assert_eq!(holding.state, HoldingState::Collecting);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_superseded_is_answered_and_not_begun() {
    let node = Fixture::with_song().await;
    let version = Version { time: HybridTime(9), hash: ContentHash::of(b"newer") };
    let change = Change { seq: 1, name: name(), version, kind: ChangeKind::NewVersion };
    assert!(node.catalog.commit(move |txn| holdings::supersede(txn, &change)).await.unwrap());
    let holding = node.opens_nothing(&request(1, "alice", None)).await.unwrap();
    assert_eq!(holding.state, HoldingState::Superseded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_with_nothing_in_it_is_answered_and_not_begun() {
    let node = Fixture::with_song().await;
    for range in ["bytes=11-", "bytes=-0", "bytes=5-2", "bytes"] {
        let holding = node.opens_nothing(&request(1, "bob", Some(range))).await.unwrap();
        assert_eq!(holding.state, HoldingState::Complete);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_repeated_after_a_new_version_came_delivers_and_records_the_new_one() {
    let node = Fixture::with_song().await;
    node.open(&request(1, "bob", None), 1_000).await;
    node.hold(b"another song", HoldingState::Complete, 2).await;
    let again = node.open(&request(1, "bob", None), 1_001).await;
    let begun = Begun { delivery: id(1), class: DeliveryClass::Purchase, opened: false };
    assert_eq!(again.begun, Some(Beginning::Begun(begun)));
    assert_eq!(again.holding.unwrap().manifest.hash, ContentHash::of(b"another song"));
    let library = Key::Library(&client("bob"), &name()).encode();
    let (_, row) = node.rows().into_iter().find(|(key, _)| *key == library).unwrap();
    let row = LibraryValue::decode(&row).unwrap();
    assert_eq!((row.hash, row.len, row.deliveries), (ContentHash::of(b"another song"), 12, 1));
    assert!(matches!(node.end(1, 1, 12, 1_100).await, Ended::Recorded(_)), "12 bytes are all of the new one");
}
