//! A directory that was lost, or put back as it once was: the map is taken over from the storage nodes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use common::api::search::{FenceRequest, NodeFacts, Registration, SlotMove};
use common::cluster::ClusterMap;
use common::error::ErrorCode;
use common::placement::Slot;
use common::server::accept_loop;
use search::backup::{BackupError, backup};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{AT_ONCE, TestSearch, assert_code, gateway, id, node, shard_of, start_in};

/// A node of tokyo that tells the map that it keeps.
struct Node {
    registration: Registration,
    map: Arc<Mutex<ClusterMap>>,
    answering: CancellationToken,
}

impl Node {
    async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = format!("http://{}", listener.local_addr().unwrap());
        let (map, answering) = (Arc::new(Mutex::new(ClusterMap::default())), CancellationToken::new());
        let told = map.clone();
        let routes = Router::new().route("/v1/map", get(async move || Json(told.lock().unwrap().clone())));
        tokio::spawn(accept_loop(listener, routes, answering.clone()));
        let registration = Registration { http, ..node("tokyo", name, name, 1) };
        Self { registration, map, answering }
    }

    fn id(&self) -> common::id::NodeId {
        id(&format!("tokyo.{}", self.registration.name))
    }

    /// Takes search's map as a node does; false if it does not follow from the one it keeps.
    async fn adopt(&self, search: &TestSearch) -> bool {
        let map = search.client.map(common::cluster::MapEpoch(0), AT_ONCE).await.unwrap();
        let mut kept = self.map.lock().unwrap();
        let follows = map.follows(&kept.id());
        if follows {
            *kept = map;
        }
        follows
    }

    async fn register(
        &self,
        search: &TestSearch,
    ) -> Result<common::api::search::Registered, common::client::CallError> {
        let map = self.map.lock().unwrap().id();
        let facts = NodeFacts { map, record_epoch: 5, ..self.registration.node.clone().unwrap() };
        search.client.register(&Registration { node: Some(facts), ..self.registration.clone() }).await
    }
}

/// Nodes n1 and n2, which keep the map.
async fn two_nodes(search: &TestSearch) -> [Node; 2] {
    let nodes = [Node::start("n1").await, Node::start("n2").await];
    search.client.register(&gateway("tokyo", "g1")).await.unwrap();
    for node in &nodes {
        node.register(search).await.unwrap();
    }
    for node in &nodes {
        assert!(node.adopt(search).await);
    }
    nodes
}

/// Moves slots to n2, and lets n1's shard be followed; answers the fence.
async fn decide(search: &TestSearch, slots: &[u16]) -> u64 {
    let slots: Vec<Slot> = slots.iter().copied().map(Slot).collect();
    let request = FenceRequest { site: id("tokyo"), owner: id("tokyo.n1"), slots: slots.clone() };
    let fence = search.client.fence_slots(&request).await.unwrap().fence;
    let step = SlotMove { site: id("tokyo"), from: id("tokyo.n1"), to: id("tokyo.n2"), slots, fence };
    search.client.move_slots(&step).await.unwrap();
    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    fence
}

#[tokio::test]
async fn an_empty_directory_takes_the_map_over_from_the_newest_of_the_nodes() {
    let search = TestSearch::new().await;
    let [n1, n2] = two_nodes(&search).await;
    search
        .client
        .set_site(&id("tokyo"), &common::api::search::SiteSettings { replicas: Some(2) })
        .await
        .unwrap();
    decide(&search, &[3, 4]).await;
    // The other one had no time to take it.
    assert!(n2.adopt(&search).await);
    let kept = n2.map.lock().unwrap().clone();

    let emptied = TestSearch::new().await;
    emptied.client.register(&gateway("tokyo", "g2")).await.unwrap();
    let early = emptied.client.map(common::cluster::MapEpoch(0), AT_ONCE).await.unwrap();
    assert_eq!(
        n1.register(&emptied).await.unwrap().record_epoch,
        Some(5),
        "the node's, it may not begin again"
    );
    let map = emptied.client.map(common::cluster::MapEpoch(0), AT_ONCE).await.unwrap();
    assert!(map.follows(&kept.id()) && map.follows(&early.id()) && map.epoch > kept.epoch);
    let (site, before) = (map.site(&id("tokyo")).unwrap(), kept.site(&id("tokyo")).unwrap());
    assert_eq!(site.slot_owners, before.slot_owners);
    assert_eq!((site.slot_owners[3], site.slot_owners[5], site.replicas_wanted), (1, 0, Some(2)));
    assert_eq!(shard_of(site, "tokyo.n1"), shard_of(before, "tokyo.n1"));
    assert_eq!(shard_of(site, "tokyo.n1").2, ["n2"]);
    assert_eq!(site.gateways[0].name, id("g1"));

    // It goes on as ever.
    assert!(n1.adopt(&emptied).await && n2.adopt(&emptied).await);
    let epoch = n2.register(&emptied).await.unwrap().map_epoch;
    emptied.client.register(&gateway("tokyo", "g2")).await.unwrap();
    assert!(emptied.epoch().await > epoch);
    decide(&emptied, &[5]).await;
    assert!(n1.adopt(&emptied).await);
    let emptied = emptied.restart().await;
    let owners = emptied.tokyo().await.slot_owners;
    assert_eq!((owners[3], owners[5], owners[6]), (1, 1, 0));
    let n9 = Node::start("n9").await;
    n9.register(&emptied).await.unwrap();
    assert!(n1.adopt(&emptied).await, "also after a restart");
}

#[tokio::test]
async fn a_backup_that_was_put_back_learns_what_was_decided_since() {
    let search = TestSearch::new().await;
    if crate::database(search.dir.path()).is_some() {
        return;
    }
    let [n1, n2] = two_nodes(&search).await;
    let copy = search.dir.path().join("copy");
    assert!(backup(search.dir.path(), &copy).await.unwrap() > 10_000);
    assert!(matches!(backup(search.dir.path(), &copy).await, Err(BackupError::Exists(_))));
    let fence = decide(&search, &[3, 4]).await;
    assert!(n1.adopt(&search).await && n2.adopt(&search).await);
    let kept = n1.map.lock().unwrap().clone();

    let TestSearch { dir, running, .. } = search;
    running.stop().await;
    std::fs::rename(&copy, dir.path().join("search.db")).unwrap();
    let running = start_in(dir.path(), 600_000).await;
    let search = TestSearch { client: crate::harness::client_of(&running), running, dir };
    // However much happens there, its maps do not follow from what the nodes have.
    for port in 1..9 {
        let moved = Registration { http: format!("http://127.0.0.1:1/{port}"), ..gateway("tokyo", "g1") };
        search.client.register(&moved).await.unwrap();
    }
    assert!(search.epoch().await > kept.epoch);
    assert!(!n1.adopt(&search).await);

    n1.register(&search).await.unwrap();
    assert!(n1.adopt(&search).await && n2.adopt(&search).await);
    let site = search.tokyo().await;
    assert_eq!(site.slot_owners, kept.site(&id("tokyo")).unwrap().slot_owners);
    assert_eq!(shard_of(&site, "tokyo.n1"), (1, "n1", vec!["n2"]));
    let request = FenceRequest { site: id("tokyo"), owner: id("tokyo.n1"), slots: vec![Slot(7)] };
    assert!(search.client.fence_slots(&request).await.unwrap().fence > fence, "none is given twice");
}

#[tokio::test]
async fn a_node_that_may_know_better_still_is_waited_for() {
    let search = TestSearch::new().await;
    let [n1, n2] = two_nodes(&search).await;
    let emptied = TestSearch::with_lease(600).await;
    n2.answering.cancel();
    let begin = std::time::Instant::now();
    assert_code(n1.register(&emptied).await, ErrorCode::NodeUnavailable);
    let message = n1.register(&emptied).await.unwrap_err().to_string();
    assert!(message.contains("tokyo.n2"), "{message}");
    assert!(emptied.client.map(common::cluster::MapEpoch(0), AT_ONCE).await.unwrap().sites.is_empty());
    while n1.register(&emptied).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begin.elapsed() >= Duration::from_millis(600), "a node that is away for good is not waited for");
    assert!(n1.adopt(&emptied).await);
}

#[tokio::test]
async fn maps_of_different_clusters_are_not_mixed() {
    let (search, other) = (TestSearch::new().await, TestSearch::new().await);
    let [n1, _n2] = two_nodes(&search).await;
    let foreign = Node::start("n7").await;
    foreign.register(&other).await.unwrap();
    assert!(foreign.adopt(&other).await);
    let before = search.epoch().await;
    assert_code(foreign.register(&search).await, ErrorCode::Conflict);
    assert_eq!(search.epoch().await, before);
    assert!(!foreign.adopt(&search).await, "nor does it take the other's map");
    assert!(n1.adopt(&search).await);
    assert!(search.tokyo().await.node(&foreign.id()).is_none());
}
