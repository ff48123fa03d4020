//! A real storage node over HTTP, with a fake search and fake billing servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod challenges;
mod fake;
mod lost_moves;
mod moves;
mod recount;
mod s3;
mod scrub;
mod shards;
mod slots;
mod tally;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use common::api::billing::CHAIN_ENDED;
use common::api::node::{
    AddRequest, BeginRequest, ChunkRefsRequest, ClaimRequest, EndBatch, EndRequest, ExportRequest,
    HoldRequest, HoldingState, NodeClient, NodeStatus, Precondition, RefTag, ReleaseRequest, ResolveRequest,
};
use common::api::search::{Change, ChangeKind};
use common::auth::{ClusterSecret, Role};
use common::client::{HttpClient, ServerClient};
use common::cluster::NodeState;
use common::error::ErrorCode;
use common::hash::{ChunkHash, ContentHash};
use common::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use common::manifest::{ChunkList, ChunkRef, Manifest};
use common::name::ContentName;
use common::placement::Slot;
use common::record::{DeliveryClass, DeliveryPath, DeliveryStatus};
use common::server::Running;
use common::time::{Clock, UnixMillis};
use common::version::{HybridTime, Version};
use fake::Fake;
use storage_node::Config;

fn secret() -> ClusterSecret {
    ClusterSecret::new("0123456789abcdef0123456789abcdef").unwrap()
}

fn server_client() -> ServerClient {
    ServerClient::new(HttpClient::new(), secret(), "gateway/tokyo.g1", Clock::System)
}

struct TestNode {
    running: Running,
    id: NodeId,
    client: NodeClient,
}

fn config(name: &str, store: &str, dir: &Path, search: &str) -> Config {
    let loopback = "127.0.0.1:0".parse().unwrap();
    Config {
        name: ServerName::new(name).unwrap(),
        site: SiteId::new("tokyo").unwrap(),
        zone: None,
        search: search.to_owned(),
        store: store.to_owned(),
        force: false,
        data_dir: dir.join(name),
        listen: loopback,
        admin: loopback,
        advertise: None,
        index_cache_bytes: 4 << 20,
        delivery_join_window_ms: 60_000,
        delivery_open_max_ms: 600_000,
        chunk_grace_ms: 200,
        surplus_grace_ms: 24 * 3_600_000,
        collecting_grace_ms: 600_000,
        slot_move_ms: 500,
        moves_bytes_per_s: 0.into(),
        scrub_bytes_per_s: 0.into(),
        scrub_interval_ms: 3_600_000.into(),
    }
}

async fn start(config: Config) -> TestNode {
    let id = NodeId::of(&config.site, &config.name);
    let running = storage_node::start(config, secret()).await.unwrap();
    let client = NodeClient::new(server_client(), &running.http);
    TestNode { running, id, client }
}

/// Flips one bit on a disk: of bytes that are found near the start of the log.
fn flip_a_bit(file: &Path, bytes: &[u8]) {
    let disk = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut start_of_log = vec![0u8; 16 << 20];
    disk.read_exact_at(&mut start_of_log, 0).unwrap();
    let at = start_of_log.windows(bytes.len()).position(|window| window == bytes).unwrap();
    disk.write_all_at(&[bytes[100] ^ 1], at as u64 + 100).unwrap();
    disk.sync_all().unwrap();
}

/// Waits for a condition that must come true.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ready(node: &TestNode) {
    until("ready", async || node.running.health.is_ready()).await;
}

fn client_id(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

fn name(text: &str) -> ContentName {
    text.parse().unwrap()
}

fn chunk(bytes: &[u8]) -> ChunkRef {
    ChunkRef { hash: ChunkHash::of(bytes), len: bytes.len() as u32 }
}

fn manifest(bytes: &[u8], chunks: ChunkList) -> Manifest {
    let (media_type, metadata) = ("text/plain".into(), BTreeMap::new());
    Manifest { hash: ContentHash::of(bytes), len: bytes.len() as u64, media_type, metadata, chunks }
}

fn publication(name: &ContentName, manifest: Manifest, ref_tag: RefTag) -> HoldRequest {
    HoldRequest {
        name: name.clone(),
        manifest,
        provider: client_id("alice"),
        state: HoldingState::Complete,
        ref_tag,
        version_time: None,
        client: Some(client_id("alice")),
        add_to_library: false,
        quota: Default::default(),
        precondition: Precondition::None,
        announce_wait_ms: 5_000,
    }
}

/// Puts one chunk and holds the name with it.
async fn publish(node: &NodeClient, name: &ContentName, bytes: &'static [u8]) -> Version {
    let (tag, chunk) = (RefTag::generate(), chunk(bytes));
    node.put_chunk(&chunk.hash, name, tag, Bytes::from_static(bytes)).await.unwrap();
    let manifest = manifest(bytes, ChunkList::Inline(vec![chunk]));
    let held = node.hold(&publication(name, manifest, tag)).await.unwrap();
    assert!(held.announced);
    held.version
}

fn begin_request(client: &str, name: &ContentName, bytes: &[u8]) -> BeginRequest {
    BeginRequest {
        delivery: DeliveryId::generate(Clock::System.now()),
        client: client_id(client),
        name: name.clone(),
        hash: ContentHash::of(bytes),
        provider: client_id("alice"),
        bytes_total: bytes.len() as u64,
        range_start: 0,
        path: DeliveryPath::Hit,
        source: None,
        searched: false,
        surrogate: None,
        mobile_access: None,
        quota: Default::default(),
    }
}

fn ends(shard: &NodeId, delivery: DeliveryId, bytes_sent: u64) -> EndBatch {
    EndBatch { shard: shard.clone(), ends: vec![EndRequest { delivery, request: delivery, bytes_sent }] }
}

async fn refs(node: &NodeClient, hash: ChunkHash) -> Option<u64> {
    node.chunk_refs(&ChunkRefsRequest { chunks: vec![hash] }).await.unwrap().refs[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_is_stored_held_delivered_and_booked() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let node = start(config("n1", "memory:", dir.path(), &search.url)).await;
    ready(&node).await;
    let (song, bytes) = (name("alice/song one.txt"), b"la la la");
    let hash = ChunkHash::of(bytes);

    let claim = ClaimRequest { name: song.clone(), ref_tag: RefTag(5), chunks: vec![hash] };
    assert_eq!(node.client.claim(&claim).await.unwrap().missing, [hash]);
    let version = publish(&node.client, &song, bytes).await;
    assert_eq!(node.client.get_chunk_bytes(&hash).await.unwrap(), &bytes[..]);
    assert_eq!(refs(&node.client, hash).await, Some(1));
    assert!(node.client.claim(&claim).await.unwrap().missing.is_empty());
    assert_eq!(refs(&node.client, hash).await, Some(2));

    let resolve = ResolveRequest { name: song.clone(), client: Some(client_id("bob")) };
    assert_eq!(node.client.resolve(&resolve).await.unwrap().holding.unwrap().version, version);
    let page = node.client.holding_clients(&song, "", 1).await.unwrap();
    assert_eq!((page.clients[0].client.as_str(), page.clients_total), ("alice", 2));
    let page = node.client.holding_clients(&song, page.next.unwrap().as_str(), 1).await.unwrap();
    assert_eq!((page.clients[0].client.as_str(), page.next), ("bob", None));

    let begun = node.client.begin(&begin_request("bob", &song, bytes)).await.unwrap();
    assert_eq!((begun.class, &begun.shard), (DeliveryClass::Purchase, &node.id));
    node.client.end(&ends(&begun.shard, begun.delivery, 8)).await.unwrap();
    until("both billing servers book it", async || search.record_count() == 1).await;
    let marks = || search.books.lock().unwrap().marks.clone();
    until("both are told up to when all is booked", async || marks().len() >= 2).await;
    let minute_ago = Clock::System.now().0 - 60_000;
    assert!(marks().iter().all(|(shard, epoch, passed)| {
        (shard, *epoch) == (&node.id, 1) && (minute_ago - 60_000..=minute_ago).contains(&passed.0)
    }));
    let row = node.client.library_row(&client_id("bob"), &song).await.unwrap().unwrap();
    assert_eq!((row.deliveries, row.len), (1, 8));
    let page = node.client.library(&client_id("bob"), "alice/", "", 10).await.unwrap();
    assert_eq!((page.rows, page.next), (vec![row], None));

    let status: NodeStatus = server_client()
        .get_json(&node.running.admin, Role::StorageNode, "/v1/node", Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!((status.state.as_str(), status.chunks, status.logical_bytes), ("active", 1, 16));
    let stop = node.running.stop();
    tokio::time::timeout(Duration::from_secs(10), stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_tells_billing_that_nothing_more_comes_once_all_is_booked() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let node = start(config("n1", "memory:", dir.path(), &search.url)).await;
    ready(&node).await;
    let song = name("alice/song");
    publish(&node.client, &song, b"la la la").await;
    let open = node.client.begin(&begin_request("bob", &song, b"la la la")).await.unwrap();
    let ended = || {
        let books = search.books.lock().unwrap();
        books.marks.iter().filter(|(shard, _, passed)| shard == &node.id && *passed == CHAIN_ENDED).count()
    };
    let (id, removed) = (node.id.clone(), NodeState::Removed);
    search.change(|site| {
        let index = site.node_index(&id).unwrap();
        site.nodes[index].state = removed;
    });
    let status = async || {
        let admin = &node.running.admin;
        let status: NodeStatus = server_client()
            .get_json(admin, Role::StorageNode, "/v1/node", Duration::from_secs(5))
            .await
            .unwrap();
        status.state
    };
    until("the node knows that it is removed", async || status().await == "removed").await;
    node.client.end(&ends(&open.shard, open.delivery, 8)).await.unwrap();
    until("both billing servers book it", async || search.record_count() == 1).await;
    assert_eq!(ended(), 0, "it still has slots, in which deliveries may begin");
    search.change(|site| site.slot_owners.clear());
    until("both servers are told", async || ended() == 2).await;
    node.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_their_codes() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let node = start(config("n1", "memory:", dir.path(), &search.url)).await;
    ready(&node).await;
    let song = name("alice/song");
    let put = async |hash: &ChunkHash, bytes: Vec<u8>| {
        node.client.put_chunk(hash, &song, RefTag(1), bytes.into()).await.unwrap_err().code()
    };
    assert_eq!(put(&ChunkHash::of(b"x"), b"y".to_vec()).await, Some(ErrorCode::ContentMismatch));
    let long = vec![1u8; common::chunker::CHUNK_LEN_MAX + 1];
    assert_eq!(put(&ChunkHash::of(&long), long).await, Some(ErrorCode::TooLarge));
    let missing = node.client.get_chunk_bytes(&ChunkHash::of(b"nowhere")).await.unwrap_err();
    assert_eq!(missing.code(), Some(ErrorCode::ChunkNotFound));
    let contradiction = Manifest { len: 99, ..manifest(b"x", ChunkList::Inline(vec![chunk(b"x")])) };
    let refused = node.client.hold(&publication(&song, contradiction, RefTag(1))).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::InvalidRequest));
    let stranger = ClusterSecret::new("ffffffffffffffffffffffffffffffff").unwrap();
    let stranger = ServerClient::new(HttpClient::new(), stranger, "gateway/x", Clock::System);
    let refused = NodeClient::new(stranger, &node.running.http).map().await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Unauthenticated));
    node.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_knows_everything_and_is_ready_without_search() {
    let dir = tempfile::tempdir().unwrap();
    for store in ["file:{}/store?size=1GiB", "dir:{}/objects"] {
        restarts_and_knows_everything(&store.replace("{}", dir.path().to_str().unwrap())).await;
    }
}

async fn restarts_and_knows_everything(store: &str) {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let node = start(config("n1", store, dir.path(), &search.url)).await;
    ready(&node).await;
    let song = name("alice/song");
    publish(&node.client, &song, b"la la la").await;
    search.books.lock().unwrap().billing_down = true;
    let whole = node.client.begin(&begin_request("bob", &song, b"la la la")).await.unwrap();
    node.client.end(&ends(&whole.shard, whole.delivery, 8)).await.unwrap();
    let open = node.client.begin(&begin_request("carol", &song, b"la la la")).await.unwrap();
    node.running.stop().await;

    // Search is away; the kept map is enough to serve.
    let node = start(config("n1", store, dir.path(), "http://127.0.0.1:9")).await;
    ready(&node).await;
    let resolve = ResolveRequest { name: song.clone(), client: None };
    assert!(node.client.resolve(&resolve).await.unwrap().holding.is_some());
    assert_eq!(node.client.get_chunk_bytes(&ChunkHash::of(b"la la la")).await.unwrap(), "la la la");
    node.client.end(&ends(&open.shard, open.delivery, 8)).await.unwrap();
    search.books.lock().unwrap().billing_down = false;
    until("the records of before and after the restart are booked", async || search.record_count() == 2)
        .await;
    node.running.stop().await;

    // The index is lost: everything comes back from the log.
    std::fs::remove_file(dir.path().join("n1/index.redb")).unwrap();
    let node = start(config("n1", store, dir.path(), &search.url)).await;
    ready(&node).await;
    assert!(node.client.resolve(&resolve).await.unwrap().holding.is_some());
    let again = node.client.begin(&begin_request("bob", &song, b"la la la")).await.unwrap();
    assert_eq!(again.class, DeliveryClass::Reference);
    node.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joining_node_takes_its_share_of_slots_and_no_row_is_lost() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let first = start(config("n1", "memory:", dir.path(), &search.url)).await;
    ready(&first).await;
    let names: Vec<ContentName> = (0..60).map(|n| name(&format!("alice/song-{n}"))).collect();
    for name in &names {
        publish(&first.client, name, b"la la la").await;
        let add = AddRequest {
            client: client_id(name.key()),
            name: name.clone(),
            hash: ContentHash::of(b"la la la"),
            len: 8,
            provider: client_id("alice"),
            quota: Default::default(),
        };
        first.client.library_add(&add).await.unwrap();
    }
    let open = first.client.begin(&begin_request("bob", &names[0], b"la la la")).await.unwrap();

    let second = start(config("n2", "memory:", dir.path(), &search.url)).await;
    ready(&second).await;
    let preferred = {
        let map = search.map.borrow();
        let site = &map.sites[0];
        let prefers = |slot| common::placement::preferred_owner(site, slot).unwrap().id == second.id;
        (0..common::placement::SLOT_COUNT).map(Slot).filter(|slot| prefers(*slot)).count()
    };
    until("the second node has its share", async || search.owned(&second.id) == preferred).await;
    assert!((400..624).contains(&preferred));

    for (index, name) in names.iter().enumerate() {
        let holding = ask_owner(&first, &second, async |node: &NodeClient| {
            let request = ResolveRequest { name: name.clone(), client: Some(client_id("dave")) };
            node.resolve(&request).await.map(|answer| answer.holding)
        });
        assert!(holding.await.is_some(), "{name}");
        let client = client_id(&format!("song-{index}"));
        let row = ask_owner(&first, &second, async |node: &NodeClient| node.library_row(&client, name).await);
        assert!(row.await.is_some(), "library of {client}");
    }
    // The delivery stays with the node that began it, wherever bob's slot is now.
    assert_eq!(open.shard, first.id);
    first.client.end(&ends(&open.shard, open.delivery, 8)).await.unwrap();
    until("the open delivery is booked", async || search.record_count() == 1).await;
    first.running.stop().await;
    second.running.stop().await;
}

/// Asks until the owner answers: exactly one of two nodes is it, once both have the newest map.
async fn ask_owner<T>(
    first: &TestNode,
    second: &TestNode,
    ask: impl AsyncFn(&NodeClient) -> Result<T, common::client::CallError>,
) -> T {
    for _ in 0..500 {
        for node in [first, second] {
            match ask(&node.client).await {
                Ok(answer) => return answer,
                Err(error) => assert!(
                    matches!(error.code(), Some(ErrorCode::WrongNode | ErrorCode::SlotMoving)),
                    "{error}"
                ),
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no owner answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_were_handed_out_and_never_taken_come_back() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let node = start(config("n1", "memory:", dir.path(), &search.url)).await;
    ready(&node).await;
    let song = name("alice/song");
    publish(&node.client, &song, b"la la la").await;
    let from = node.id.clone();
    let export =
        ExportRequest { from, to: NodeId::new("tokyo.n9").unwrap(), slots: vec![Slot::of_name(&song)] };
    let answer = node.client.export_slots(&export).await.unwrap();
    assert_eq!(answer.slots, export.slots);
    // The holding and its client; what of them is still to be counted is there or not.
    assert_eq!(answer.rows.iter().filter(|(key, _)| matches!(key[0], 0x10 | 0x11)).count(), 2);
    let resolve = ResolveRequest { name: song.clone(), client: Some(client_id("bob")) };
    assert_eq!(node.client.resolve(&resolve).await.unwrap_err().code(), Some(ErrorCode::SlotMoving));
    until("the slot is taken back", async || node.client.resolve(&resolve).await.is_ok()).await;
    // The fence that was handed out is void.
    let stale = common::api::search::SlotMove {
        site: SiteId::new("tokyo").unwrap(),
        from: node.id.clone(),
        to: node.id.clone(),
        slots: export.slots,
        fence: answer.fence,
    };
    let search = common::api::search::SearchClient::new(server_client(), &search.url);
    assert_eq!(search.move_slots(&stale).await.unwrap_err().code(), Some(ErrorCode::Conflict));
    node.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_what_was_replaced_or_withdrawn_are_deleted_on_every_node() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let first = start(config("n1", "memory:", dir.path(), &search.url)).await;
    let second = start(config("n2", "memory:", dir.path(), &search.url)).await;
    ready(&first).await;
    ready(&second).await;
    let (song, other, tag) = (name("alice/song"), name("alice/other"), RefTag::generate());
    // A content of two chunks, one on each node; its list is stored as a chunk on the second.
    let (a, b): (&[u8], &[u8]) = (b"aaaa", b"bbbb");
    let list = Bytes::from(ChunkList::encode(&[chunk(a), chunk(b)]));
    let stored = ChunkList::Stored { list: chunk(&list), count: 2 };
    first.client.put_chunk(&ChunkHash::of(a), &song, tag, Bytes::from_static(b"aaaa")).await.unwrap();
    second.client.put_chunk(&ChunkHash::of(b), &song, tag, Bytes::from_static(b"bbbb")).await.unwrap();
    second.client.put_chunk(&ChunkHash::of(&list), &song, tag, list.clone()).await.unwrap();
    // Another content shares the second chunk.
    second.client.put_chunk(&ChunkHash::of(b), &other, RefTag(9), Bytes::from_static(b"bbbb")).await.unwrap();
    let held = publication(&song, manifest(b"aaaabbbb", stored), tag);
    ask_owner(&first, &second, async |node: &NodeClient| node.hold(&held).await).await;
    let withdraw = ReleaseRequest {
        name: song.clone(),
        client: client_id("alice"),
        precondition: Precondition::None,
        announce_wait_ms: 0,
    };
    let gone = ask_owner(&first, &second, async |node: &NodeClient| node.withdraw(&withdraw).await).await;
    assert!(gone.released);
    until("the chunks are gone", async || {
        refs(&first.client, ChunkHash::of(a)).await.is_none()
            && refs(&second.client, ChunkHash::of(&list)).await.is_none()
    })
    .await;
    until("the shared chunk stays, at the node that it belongs to", async || {
        let copies =
            [refs(&first.client, ChunkHash::of(b)).await, refs(&second.client, ChunkHash::of(b)).await];
        copies.into_iter().flatten().eq([1])
    })
    .await;
    first.running.stop().await;
    second.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_version_elsewhere_supersedes_the_holding() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let node = start(config("n1", "memory:", dir.path(), &search.url)).await;
    ready(&node).await;
    let song = name("alice/song");
    let version = publish(&node.client, &song, b"la la la").await;
    let newer = Version { time: HybridTime(version.time.0 + 1), hash: ContentHash::of(b"lo") };
    search.changes.send_modify(|changes| {
        changes.push(Change { seq: 1, kind: ChangeKind::NewVersion, name: song.clone(), version: newer });
    });
    let resolve = ResolveRequest { name: song, client: None };
    until("superseded", async || {
        let holding = node.client.resolve(&resolve).await.unwrap().holding.unwrap();
        holding.state == HoldingState::Superseded
    })
    .await;
    node.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_that_nobody_completes_are_booked_as_what_they_were() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let node = start(Config {
        delivery_join_window_ms: 300,
        delivery_open_max_ms: 400,
        ..config("n1", "memory:", dir.path(), &search.url)
    })
    .await;
    ready(&node).await;
    let song = name("alice/song");
    let partial = node.client.begin(&begin_request("bob", &song, b"la la la")).await.unwrap();
    node.client.end(&ends(&partial.shard, partial.delivery, 3)).await.unwrap();
    node.client.begin(&begin_request("carol", &song, b"la la la")).await.unwrap();
    let void = node.client.begin(&begin_request("dave", &song, b"la la la")).await.unwrap();
    node.client.end(&ends(&void.shard, void.delivery, 0)).await.unwrap();
    until("all three are booked", async || search.record_count() == 3).await;
    {
        let books = search.books.lock().unwrap();
        let records = || books.records.values().flatten();
        let status: BTreeMap<_, _> =
            records().map(|r| (r.record.client.to_string(), r.record.status)).collect();
        assert_eq!(status["bob"], DeliveryStatus::Partial);
        assert_eq!(status["carol"], DeliveryStatus::Recovered);
        assert_eq!(status["dave"], DeliveryStatus::Void);
        assert!(records().all(|r| r.record.begin > UnixMillis(0)));
    }
    node.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_never_sent_and_a_good_copy_takes_its_place() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let file = dir.path().join("store");
    let node =
        start(config("n1", &format!("file:{}?size=1GiB", file.display()), dir.path(), &search.url)).await;
    ready(&node).await;
    let bytes = Bytes::from(b"not to be found twice ".repeat(500));
    let (hash, song, tag) = (ChunkHash::of(&bytes), name("alice/song"), RefTag(1));
    assert!(node.client.put_chunk(&hash, &song, tag, bytes.clone()).await.unwrap());

    flip_a_bit(&file, &bytes[..200]);
    let read = node.client.get_chunk_bytes(&hash).await.unwrap_err();
    assert_eq!(read.code(), Some(ErrorCode::Damaged));
    let again = node.client.get_chunk_bytes(&hash).await.unwrap_err();
    assert_eq!(again.code(), Some(ErrorCode::ChunkNotFound));
    assert!(node.client.put_chunk(&hash, &song, tag, bytes.clone()).await.unwrap());
    assert_eq!(node.client.get_chunk_bytes(&hash).await.unwrap(), bytes);
    node.running.stop().await;
}
