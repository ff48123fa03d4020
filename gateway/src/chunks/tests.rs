use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use common::api::extract::ApiJson;
use common::api::node::{ClaimAnswer, ClaimRequest, RefTag};
use common::api::search::{SearchClient, Suspicion, SuspicionAnswer};
use common::auth::ClusterSecret;
use common::client::{HttpClient, ServerClient};
use common::cluster::{ClusterMap, MapEpoch, NodeEntry, NodeState, ShardEntry, SiteEntry};
use common::error::ApiResult;
use common::id::{NodeId, SiteId};
use common::name::ContentName;
use common::placement::rank_for_chunk;
use common::server::accept_loop;
use common::telemetry::MetricsRegistry;
use common::time::Clock;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;

/// What a fake node does with a request for a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    Full,
    Hangs,
    Damaged,
    /// Sends half a chunk and ends the connection.
    BreaksOff,
    /// Sends half a chunk and no more.
    Stalls,
}

struct FakeNode {
    url: String,
    mood: Mutex<Mood>,
    chunks: Mutex<HashMap<String, (Bytes, u64)>>,
    map: Mutex<ClusterMap>,
    asked: Mutex<usize>,
}

type Shared = State<Arc<FakeNode>>;

impl FakeNode {
    async fn start() -> Arc<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (chunks, map, mood) = (Mutex::default(), Mutex::default(), Mutex::new(Mood::Good));
        let node = Arc::new(Self { url, mood, chunks, map, asked: Mutex::new(0) });
        let routes = Router::new()
            .route("/v1/chunks/{hash}", get(read).put(store))
            .route("/v1/chunks/claim", post(claim))
            .route("/v1/map", get(async |State(node): Shared| ApiJson(node.map.lock().unwrap().clone())))
            .with_state(node.clone());
        tokio::spawn(accept_loop(listener, routes, CancellationToken::new()));
        node
    }

    async fn mood(&self) -> Mood {
        *self.asked.lock().unwrap() += 1;
        let mood = *self.mood.lock().unwrap();
        if mood == Mood::Hangs {
            std::future::pending::<()>().await;
        }
        mood
    }

    fn has(&self, hash: &ChunkHash) -> bool {
        self.chunks.lock().unwrap().contains_key(&hash.to_string())
    }

    fn give(&self, hash: &ChunkHash, bytes: &Bytes) {
        self.chunks.lock().unwrap().insert(hash.to_string(), (bytes.clone(), 1));
    }
}

async fn store(
    State(node): Shared,
    Path(hash): Path<String>,
    Query(_): Query<HashMap<String, String>>,
    bytes: Bytes,
) -> ApiResult<StatusCode> {
    if node.mood().await == Mood::Full {
        return Err(ApiError::new(ErrorCode::NodeFull, "full"));
    }
    let is_new = node.chunks.lock().unwrap().insert(hash, (bytes, 1)).is_none();
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::OK })
}

async fn read(State(node): Shared, Path(hash): Path<String>) -> ApiResult<Response> {
    let mood = node.mood().await;
    let Some((bytes, _)) = node.chunks.lock().unwrap().get(&hash).cloned() else {
        return Err(ApiError::new(ErrorCode::ChunkNotFound, "not here"));
    };
    let half = bytes.slice(..bytes.len() / 2);
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>(half)]);
    use futures_util::StreamExt;
    Ok(match mood {
        Mood::Damaged => return Err(ApiError::new(ErrorCode::Damaged, "damaged")),
        Mood::BreaksOff => {
            let end = futures_util::stream::iter([Err(std::io::Error::other("killed"))]);
            Body::from_stream(first.chain(end)).into_response()
        }
        Mood::Stalls => Body::from_stream(first.chain(futures_util::stream::pending())).into_response(),
        _ => bytes.into_response(),
    })
}

async fn claim(State(node): Shared, ApiJson(request): ApiJson<ClaimRequest>) -> ApiJson<ClaimAnswer> {
    node.mood().await;
    let mut chunks = node.chunks.lock().unwrap();
    let mut missing = request.chunks;
    missing.retain(|hash| match chunks.get_mut(&hash.to_string()) {
        Some((_, refs)) => {
            *refs += 1;
            false
        }
        None => true,
    });
    ApiJson(ClaimAnswer { missing })
}

/// A site of fake nodes, and a gateway's view of it.
struct Site {
    nodes: Vec<Arc<FakeNode>>,
    map: ClusterMap,
    chunks: Chunks,
    view: Arc<SiteView>,
    suspected: mpsc::UnboundedReceiver<NodeId>,
    registry: MetricsRegistry,
}

impl Site {
    async fn start(count: usize, replicas: u8) -> Self {
        let mut entry = SiteEntry::new(SiteId::new("tokyo").unwrap());
        entry.replicas = replicas;
        let mut nodes = Vec::new();
        for index in 0..count {
            let node = FakeNode::start().await;
            entry.nodes.push(NodeEntry {
                id: NodeId::new(&format!("tokyo.n{index}")).unwrap(),
                http: node.url.clone(),
                admin: String::new(),
                state: NodeState::Active,
                alive: true,
                weight: 100,
                capacity_bytes: 1 << 30,
                shard: ShardEntry::default(),
            });
            nodes.push(node);
        }
        let map = ClusterMap { epoch: MapEpoch(1), sites: vec![entry], ..ClusterMap::default() };
        let (search, suspected) = search().await;
        let registry = MetricsRegistry::new();
        let metrics = Arc::new(Metrics::new(&registry));
        let secret = ClusterSecret::new("a cluster secret for tests, long enough").unwrap();
        let server = ServerClient::new(HttpClient::new(), secret, "test", Clock::System);
        let search = SearchClient::new(server.clone(), &search);
        let id = SiteId::new("tokyo").unwrap();
        let view = Arc::new(SiteView::new(id, server, search, Duration::from_secs(3), metrics.clone()));
        view.adopt(map.clone());
        let chunks = Chunks::new(view.clone(), 0, metrics);
        Self { nodes, map, chunks, view, suspected, registry }
    }

    fn change_map(&mut self, change: impl FnOnce(&mut SiteEntry)) {
        change(&mut self.map.sites[0]);
        self.map.epoch.0 += 1;
        self.view.adopt(self.map.clone());
    }

    /// The nodes in the chunk's ranking.
    fn ranked(&self, hash: &ChunkHash) -> Vec<&FakeNode> {
        rank_for_chunk(&self.map.sites[0], hash).into_iter().map(|index| &*self.nodes[index]).collect()
    }

    /// Places in the ranking of those that have the chunk.
    fn holders(&self, hash: &ChunkHash) -> Vec<usize> {
        let ranked = self.ranked(hash);
        (0..ranked.len()).filter(|place| ranked[*place].has(hash)).collect()
    }

    fn set(&self, hash: &ChunkHash, place: usize, mood: Mood) {
        *self.ranked(hash)[place].mood.lock().unwrap() = mood;
    }

    async fn write(&self, bytes: &Bytes) -> Result<bool, ApiError> {
        let name: ContentName = "alice/song".parse().unwrap();
        self.chunks.write(&ChunkHash::of(bytes), &name, RefTag(1), bytes.clone()).await
    }

    fn figure(&self, name: &str) -> u64 {
        let text = self.registry.render();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0) as u64
    }
}

async fn search() -> (String, mpsc::UnboundedReceiver<NodeId>) {
    let (tell, told) = mpsc::unbounded_channel();
    type Suspicions = State<mpsc::UnboundedSender<NodeId>>;
    let take = async |State(tell): Suspicions, ApiJson(Suspicion { node }): ApiJson<Suspicion>| {
        tell.send(node).unwrap();
        ApiJson(SuspicionAnswer { alive: true })
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = Router::new().route("/v1/nodes/suspect", post(take)).with_state(tell);
    tokio::spawn(accept_loop(listener, routes, CancellationToken::new()));
    (url, told)
}

fn some_chunk(text: &str) -> (ChunkRef, Bytes) {
    let bytes = Bytes::from(text.as_bytes().repeat(8_000));
    (ChunkRef { hash: ChunkHash::of(&bytes), len: bytes.len() as u32 }, bytes)
}

#[tokio::test]
async fn a_chunk_is_written_to_as_many_nodes_as_the_site_keeps_copies() {
    for replicas in 1..=3u8 {
        let site = Site::start(4, replicas).await;
        // Long ones are asked for first, short ones are not.
        for text in ["short", "not so short"] {
            let (chunk, bytes) = some_chunk(text);
            assert!(site.write(&bytes).await.unwrap());
            assert_eq!(site.holders(&chunk.hash), (0..usize::from(replicas)).collect::<Vec<_>>());
            assert!(!site.write(&bytes).await.unwrap(), "known everywhere");
        }
        assert_eq!(site.figure("dozo_gateway_chunk_copies_short_total"), 0);
    }
}

#[tokio::test]
async fn the_next_in_the_ranking_stands_in_for_a_node_that_is_full_or_down() {
    let mut site = Site::start(4, 2).await;
    let (chunk, bytes) = some_chunk("wide");
    site.set(&chunk.hash, 0, Mood::Full);
    let down = rank_for_chunk(&site.map.sites[0], &chunk.hash)[1];
    site.change_map(|site| site.nodes[down].alive = false);
    assert!(site.write(&bytes).await.unwrap());
    assert_eq!(site.holders(&chunk.hash), [2, 3]);
    assert_eq!(*site.nodes[down].asked.lock().unwrap(), 0, "a node that is down is not asked");
}

#[tokio::test]
async fn a_node_that_hangs_is_stood_in_for_and_suspected() {
    let mut site = Site::start(3, 2).await;
    let (chunk, bytes) = some_chunk("patient");
    site.set(&chunk.hash, 1, Mood::Hangs);
    let begun = Instant::now();
    assert!(site.write(&bytes).await.unwrap());
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    assert_eq!(site.holders(&chunk.hash), [0, 2]);
    let hung = rank_for_chunk(&site.map.sites[0], &chunk.hash)[1];
    assert_eq!(site.suspected.recv().await.unwrap(), site.map.sites[0].nodes[hung].id);
}

#[tokio::test]
async fn one_copy_is_enough_when_no_other_node_takes_one() {
    let site = Site::start(3, 2).await;
    let (chunk, bytes) = some_chunk("lonely");
    site.set(&chunk.hash, 0, Mood::Full);
    site.set(&chunk.hash, 2, Mood::Full);
    assert!(site.write(&bytes).await.unwrap());
    assert_eq!(site.holders(&chunk.hash), [1]);
    assert_eq!(site.figure("dozo_gateway_chunk_copies_short_total"), 1);
    site.set(&chunk.hash, 1, Mood::Full);
    let (_, other) = some_chunk("nowhere to go");
    let refused = site.write(&other).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NodeFull);
}

#[tokio::test]
async fn a_second_copy_is_asked_for_when_the_first_is_slow() {
    let mut site = Site::start(3, 2).await;
    let (chunk, bytes) = some_chunk("hedge");
    site.write(&bytes).await.unwrap();
    site.set(&chunk.hash, 0, Mood::Hangs);
    let begun = Instant::now();
    assert_eq!(site.chunks.read(&chunk).await.unwrap(), bytes);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(site.figure("dozo_gateway_hedged_reads_total"), 1);
    let hung = rank_for_chunk(&site.map.sites[0], &chunk.hash)[0];
    assert_eq!(site.suspected.recv().await.unwrap(), site.map.sites[0].nodes[hung].id);
    // It is known to be slow by now.
    let asked = *site.nodes[hung].asked.lock().unwrap();
    assert_eq!(site.chunks.read(&chunk).await.unwrap(), bytes);
    assert_eq!(*site.nodes[hung].asked.lock().unwrap(), asked);
}

#[tokio::test]
async fn a_chunk_that_breaks_off_goes_on_from_another_copy() {
    for mood in [Mood::BreaksOff, Mood::Stalls] {
        let site = Site::start(3, 2).await;
        let (chunk, bytes) = some_chunk("broken off");
        site.write(&bytes).await.unwrap();
        site.set(&chunk.hash, 0, mood);
        let mut open = site.chunks.open(&chunk).await.unwrap();
        let mut got = Vec::new();
        while let Some(piece) = open.next().await {
            got.extend_from_slice(&piece.unwrap());
        }
        assert!(got == bytes, "{mood:?}");
    }
}

#[tokio::test]
async fn a_reader_hears_of_it_when_no_copy_can_be_gone_on_from() {
    let site = Site::start(2, 2).await;
    let (chunk, bytes) = some_chunk("broken off twice");
    site.write(&bytes).await.unwrap();
    (0..2).for_each(|place| site.set(&chunk.hash, place, Mood::BreaksOff));
    assert_eq!(site.chunks.read(&chunk).await.unwrap_err().code, ErrorCode::NodeUnavailable);
}

#[tokio::test]
async fn a_damaged_copy_is_passed_over_and_what_nobody_has_is_told() {
    let site = Site::start(3, 2).await;
    let (chunk, bytes) = some_chunk("damaged");
    assert_eq!(site.chunks.read(&chunk).await.unwrap_err().code, ErrorCode::ChunkNotFound);
    site.write(&bytes).await.unwrap();
    site.set(&chunk.hash, 0, Mood::Damaged);
    assert_eq!(site.chunks.read(&chunk).await.unwrap(), bytes);
    site.set(&chunk.hash, 1, Mood::Damaged);
    assert_eq!(site.chunks.read(&chunk).await.unwrap_err().code, ErrorCode::Damaged);
}

#[tokio::test]
async fn a_chunk_is_found_where_an_earlier_map_or_one_not_yet_known_has_it() {
    let mut site = Site::start(3, 1).await;
    let (chunk, bytes) = some_chunk("on the move");
    site.ranked(&chunk.hash)[2].give(&chunk.hash, &bytes);
    assert_eq!(site.chunks.read(&chunk).await.unwrap(), bytes, "from before the map changed");

    // A node that this gateway has not heard of has it; the others have.
    let newcomer = FakeNode::start().await;
    let (chunk, bytes) = some_chunk("moved away");
    newcomer.give(&chunk.hash, &bytes);
    let mut newer = site.map.clone();
    newer.epoch.0 += 1;
    let entry = &mut newer.sites[0];
    let mut added = entry.nodes[0].clone();
    (added.id, added.http) = (NodeId::new("tokyo.new").unwrap(), newcomer.url.clone());
    entry.nodes.iter_mut().for_each(|node| node.weight = 0);
    entry.nodes.push(added);
    for node in &site.nodes {
        *node.map.lock().unwrap() = newer.clone();
    }
    assert_eq!(site.chunks.read(&chunk).await.unwrap(), bytes);
    assert_eq!(site.view.map().epoch, newer.epoch);
    site.map = newer;
}

#[tokio::test]
async fn a_claim_refers_to_every_copy_and_asks_everywhere_before_a_chunk_is_missing() {
    let site = Site::start(4, 2).await;
    let name: ContentName = "alice/song".parse().unwrap();
    let chunks: Vec<(ChunkRef, Bytes)> = ["both", "one", "elsewhere", "none"].map(some_chunk).into();
    for (index, places) in [&[0, 1][..], &[1], &[3]].into_iter().enumerate() {
        let (chunk, bytes) = &chunks[index];
        places.iter().for_each(|place| site.ranked(&chunk.hash)[*place].give(&chunk.hash, bytes));
    }
    let asked: Vec<ChunkRef> = chunks.iter().map(|(chunk, _)| *chunk).collect();
    assert_eq!(site.chunks.claim(&asked, &name, RefTag(2)).await.unwrap(), [asked[3]]);
    for chunk in &asked[..3] {
        for node in site.ranked(&chunk.hash) {
            let known = node.chunks.lock().unwrap().get(&chunk.hash.to_string()).map(|(_, refs)| *refs);
            assert!(known.is_none_or(|refs| refs == 2), "every copy got its reference");
        }
    }
}
