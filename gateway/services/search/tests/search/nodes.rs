//! Sites of many nodes: copies, shares, draining, removing.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get;
use common::api::node::NodeStatus;
use common::api::search::{
    Announcement, Announcer, FenceRequest, NodeAction, Registration, SiteDistance, SiteSettings, SiteZone,
    SlotMove,
};
use common::client::CallError;
use common::cluster::{ClusterMap, MapEpoch, NodeState, SiteEntry};
use common::error::ErrorCode;
use common::placement::{SLOT_COUNT, Slot, preferred_owner};
use common::server::accept_loop;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{TestSearch, assert_code, batch, id, node, shard_of};

impl TestSearch {
    async fn act(&self, node: &str, action: NodeAction) -> Result<ClusterMap, CallError> {
        self.client.change_node(&id(node), action).await
    }

    async fn refused(&self, node: &str, action: NodeAction, reason: &str) {
        let error = self.act(node, action).await.expect_err("the call should be refused");
        assert_eq!(error.code(), Some(ErrorCode::Conflict), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }

    async fn move_all_slots(&self, from: &str, to: &str) {
        let slots: Vec<Slot> = self.tokyo().await.slots_owned_by(&id(from)).collect();
        let request = FenceRequest { site: id("tokyo"), owner: id(from), slots: slots.clone() };
        let fence = self.client.fence_slots(&request).await.unwrap().fence;
        let moving = SlotMove { site: id("tokyo"), from: id(from), to: id(to), slots, fence };
        self.client.move_slots(&moving).await.unwrap();
    }

    async fn set_copies(&self, replicas: Option<u8>) -> Result<SiteEntry, CallError> {
        let map = self.client.set_site(&id("tokyo"), &SiteSettings { replicas }).await?;
        Ok(map.site(&id("tokyo")).unwrap().clone())
    }
}

#[tokio::test]
async fn a_site_keeps_two_copies_or_as_many_as_are_set_and_its_nodes_can() {
    let search = TestSearch::new().await.with_nodes(&["n1"]).await;
    assert_eq!(search.tokyo().await.replicas, 1);
    assert_eq!(search.set_copies(Some(3)).await.unwrap().replicas, 1, "one node, one copy");
    let search = search.with_nodes(&["n2"]).await;
    assert_eq!(search.tokyo().await.replicas, 2);
    let search = search.with_nodes(&["n3", "n4"]).await;
    assert_eq!(search.tokyo().await.replicas, 3);
    assert_eq!(search.set_copies(None).await.unwrap().replicas, 2);
    assert_eq!(search.set_copies(Some(1)).await.unwrap().replicas, 1);
    let epoch = search.epoch().await;
    search.set_copies(Some(1)).await.unwrap();
    assert_eq!(search.epoch().await, epoch);
    assert_code(search.set_copies(Some(0)).await, ErrorCode::InvalidRequest);
    assert_code(search.set_copies(Some(4)).await, ErrorCode::InvalidRequest);
    let elsewhere = search.client.set_site(&id("kobe"), &SiteSettings { replicas: None }).await;
    assert_code(elsewhere, ErrorCode::NotFound);
    let search = search.restart().await;
    assert_eq!(search.tokyo().await.replicas, 1);
}

#[tokio::test]
async fn a_site_is_in_the_zone_and_at_the_distances_that_are_set() {
    let search = TestSearch::new().await.with_nodes(&["n1"]).await;
    let told = Registration { zone: Some("east".into()), ..node("tokyo", "n1", "n1", 10) };
    search.client.register(&told).await.unwrap();
    assert_eq!(
        search.tokyo().await.zone.as_deref(),
        Some("east"),
        "what a node tells is better than nothing"
    );
    let zone = |zone: Option<&str>| SiteZone { zone: zone.map(id) };
    let map = search.client.set_zone(&id("tokyo"), &zone(Some("west"))).await.unwrap();
    assert_eq!(map.site(&id("tokyo")).unwrap().zone.as_deref(), Some("west"));
    search.client.register(&told).await.unwrap();
    assert_eq!(search.tokyo().await.zone.as_deref(), Some("west"), "what is set is better than what is told");
    let distance = async |to: &str, distance: Option<u32>| {
        search.client.set_distance(&id("tokyo"), &SiteDistance { to: id(to), distance }).await
    };
    distance("osaka", Some(3)).await.unwrap();
    distance("north", Some(9)).await.unwrap();
    distance("osaka", Some(4)).await.unwrap();
    let expected = |pairs: &[(&str, u32)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    assert_eq!(search.tokyo().await.distances, expected(&[("north", 9), ("osaka", 4)]));
    let epoch = search.epoch().await;
    distance("osaka", Some(4)).await.unwrap();
    search.client.set_zone(&id("tokyo"), &zone(Some("west"))).await.unwrap();
    assert_eq!(search.epoch().await, epoch, "it is so already");
    distance("north", None).await.unwrap();
    assert_code(distance("tokyo", Some(1)).await, ErrorCode::InvalidRequest);
    assert_code(search.client.set_zone(&id("kobe"), &zone(None)).await, ErrorCode::NotFound);
    let of_kobe = SiteDistance { to: id("tokyo"), distance: Some(1) };
    assert_code(search.client.set_distance(&id("kobe"), &of_kobe).await, ErrorCode::NotFound);
    let search = search.restart().await;
    let tokyo = search.tokyo().await;
    assert_eq!((tokyo.zone.as_deref(), tokyo.distances), (Some("west"), expected(&[("osaka", 4)])));
    let map = search.client.set_zone(&id("tokyo"), &zone(None)).await.unwrap();
    assert_eq!(map.site(&id("tokyo")).unwrap().zone, None);
}

#[tokio::test]
async fn shares_follow_the_sizes_of_the_active_nodes() {
    let search = TestSearch::new().await;
    for (name, gib) in [("n1", 10), ("n2", 20), ("n3", 0)] {
        search.client.register(&node("tokyo", name, name, gib)).await.unwrap();
    }
    search.set_copies(Some(1)).await.unwrap();
    let shares = |site: &SiteEntry| site.nodes.iter().map(|n| n.weight).collect::<Vec<_>>();
    let site = search.tokyo().await;
    assert_eq!(shares(&site), [500_000, 1_000_000, 50_000], "a node that tells no size counts as 1 GiB");
    assert_eq!(site.nodes[2].capacity_bytes, 0);
    search.lose("tokyo.n1").await;
    assert_eq!(
        shares(&search.tokyo().await)[0],
        500_000,
        "what a node has is still there when it comes back"
    );
    search.act("tokyo.n2", NodeAction::Drain).await.unwrap();
    assert_eq!(shares(&search.tokyo().await), [1_000_000, 0, 100_000]);
    search.act("tokyo.n2", NodeAction::Undrain).await.unwrap();
    assert_eq!(shares(&search.tokyo().await), [500_000, 1_000_000, 50_000]);
}

#[tokio::test]
async fn a_size_that_wavers_moves_nothing() {
    let search = TestSearch::new().await.with_nodes(&["n2"]).await;
    let sized = |bytes| {
        let mut registration = node("tokyo", "n1", "a", 0);
        registration.node.as_mut().unwrap().capacity_bytes = bytes;
        registration
    };
    let epoch = search.client.register(&sized(1000)).await.unwrap().map_epoch;
    for bytes in [1001, 900, 1100] {
        assert_eq!(search.client.register(&sized(bytes)).await.unwrap().map_epoch, epoch);
    }
    assert!(search.client.register(&sized(1101)).await.unwrap().map_epoch > epoch);
    assert_eq!(search.tokyo().await.nodes[1].capacity_bytes, 1101);
}

#[tokio::test]
async fn a_node_drains_unless_it_is_the_last_that_is_active() {
    let search = TestSearch::new().await.with_nodes(&["n1"]).await;
    search.refused("tokyo.n1", NodeAction::Drain, "the last active node of site tokyo").await;
    let search = search.with_nodes(&["n2"]).await;
    let map = search.act("tokyo.n1", NodeAction::Drain).await.unwrap();
    let site = map.site(&id("tokyo")).unwrap();
    assert_eq!((site.nodes[0].state, site.nodes[0].weight), (NodeState::Draining, 0));
    assert_eq!(search.act("tokyo.n1", NodeAction::Drain).await.unwrap().epoch, map.epoch);
    search.refused("tokyo.n2", NodeAction::Drain, "the last active node").await;
    search.client.register(&node("tokyo", "n1", "n1", 1)).await.unwrap();
    assert_eq!(search.tokyo().await.nodes[0].state, NodeState::Draining, "its heartbeats do not change that");
    let map = search.act("tokyo.n1", NodeAction::Undrain).await.unwrap();
    assert_eq!(map.site(&id("tokyo")).unwrap().nodes[0].state, NodeState::Active);
    assert_eq!(search.act("tokyo.n1", NodeAction::Undrain).await.unwrap().epoch, map.epoch);
    assert_code(search.act("tokyo.n9", NodeAction::Drain).await, ErrorCode::NotFound);
}

/// A node that tells its status as a test wants.
struct Telling {
    status: Arc<Mutex<NodeStatus>>,
    registration: Registration,
}

impl Telling {
    async fn start(name: &str) -> Self {
        let status = Arc::new(Mutex::new(NodeStatus {
            node: id(&format!("tokyo.{name}")),
            state: "draining".into(),
            store: "memory:".into(),
            capacity_bytes: 1 << 30,
            used_bytes: 0,
            logical_bytes: 0,
            chunks: 0,
            moves_pending_bytes: 0,
            moves_rate_bytes_per_s: 0,
            moves_limit_bytes_per_s: 0,
            unsettled: 0,
            temporary_contents: 0,
            temporary_bytes: 0,
            epoch: MapEpoch(1),
        }));
        let told = status.clone();
        let answer = move || {
            let status = told.lock().unwrap().clone();
            async move { axum::Json(status) }
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let admin = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/node", get(answer));
        tokio::spawn(accept_loop(listener, router, CancellationToken::new()));
        Self { status, registration: Registration { admin, ..node("tokyo", name, name, 1) } }
    }

    fn tell(&self, change: impl FnOnce(&mut NodeStatus)) {
        change(&mut self.status.lock().unwrap());
    }
}

#[tokio::test]
async fn a_node_leaves_when_it_has_nothing_left() {
    let search = TestSearch::new().await;
    let n1 = Telling::start("n1").await;
    search.client.register(&n1.registration).await.unwrap();
    let search = search.with_nodes(&["n2", "n3"]).await;
    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    search.follow("tokyo.n2", &["tokyo.n1"]).await;
    search.refused("tokyo.n1", NodeAction::Remove, "drain it first").await;
    search.act("tokyo.n1", NodeAction::Drain).await.unwrap();
    search.refused("tokyo.n1", NodeAction::Remove, "1024 slots").await;
    search.move_all_slots("tokyo.n1", "tokyo.n2").await;
    n1.tell(|status| (status.chunks, status.unsettled) = (7, 2));
    search.refused("tokyo.n1", NodeAction::Remove, "7 chunks, 2 records and announcements to settle").await;
    n1.tell(|status| (status.chunks, status.unsettled, status.moves_pending_bytes) = (0, 0, 5));
    search.refused("tokyo.n1", NodeAction::Remove, "5 bytes to move").await;
    n1.tell(|status| status.moves_pending_bytes = 0);

    let map = search.act("tokyo.n1", NodeAction::Remove).await.unwrap();
    let site = map.site(&id("tokyo")).unwrap();
    assert_eq!((site.nodes[0].state, site.nodes[0].alive), (NodeState::Removed, false));
    assert_eq!(shard_of(site, "tokyo.n1"), (1, "n1", vec![]), "nothing is left in it to be served");
    assert_eq!(shard_of(site, "tokyo.n2"), (1, "n2", vec![]));
    assert_eq!(search.act("tokyo.n1", NodeAction::Remove).await.unwrap().epoch, map.epoch);
    search.refused("tokyo.n1", NodeAction::Undrain, "was removed").await;
    search.refused("tokyo.n1", NodeAction::Drain, "was removed").await;

    let heartbeat = search.client.register(&n1.registration).await.expect_err("a removed node is refused");
    assert_eq!(heartbeat.code(), Some(ErrorCode::Conflict));
    assert!(heartbeat.to_string().contains("start it under a new name or with a new log"), "{heartbeat}");
    assert!(!search.client.suspect(&id("tokyo.n1")).await.unwrap().alive);
    let anew = search.client.register(&node("tokyo", "n1", "another", 1)).await.unwrap();
    assert_eq!(anew.record_epoch, Some(2));
    let site = search.tokyo().await;
    assert_eq!(site.node_index(&id("tokyo.n1")), Some(0), "it has its place again");
    assert_eq!((site.nodes[0].state, site.nodes[0].alive), (NodeState::Active, true));
}

#[tokio::test]
async fn slots_do_not_move_to_a_node_that_was_removed() {
    let search = TestSearch::new().await;
    let n2 = Telling::start("n2").await;
    let search = search.with_nodes(&["n1"]).await;
    search.client.register(&n2.registration).await.unwrap();
    let slots = vec![Slot(1)];
    let request = FenceRequest { site: id("tokyo"), owner: id("tokyo.n1"), slots: slots.clone() };
    let fence = search.client.fence_slots(&request).await.unwrap().fence;
    search.act("tokyo.n2", NodeAction::Drain).await.unwrap();
    search.act("tokyo.n2", NodeAction::Remove).await.unwrap();
    let moving = SlotMove { site: id("tokyo"), from: id("tokyo.n1"), to: id("tokyo.n2"), slots, fence };
    assert_code(search.client.move_slots(&moving).await, ErrorCode::Conflict);
}

#[tokio::test]
async fn a_node_that_serves_for_another_or_is_served_by_another_does_not_leave() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2", "n3"]).await;
    search.follow("tokyo.n2", &["tokyo.n3"]).await;
    search.lose("tokyo.n2").await;
    search.act("tokyo.n3", NodeAction::Drain).await.unwrap();
    search.refused("tokyo.n3", NodeAction::Remove, "tokyo.n2's shard is served by tokyo.n3").await;
    search.act("tokyo.n2", NodeAction::Drain).await.unwrap();
    search.refused("tokyo.n2", NodeAction::Remove, "tokyo.n2's shard is served by tokyo.n3").await;
}

#[tokio::test]
async fn a_node_that_is_down_is_given_up_and_only_that() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2", "n3"]).await;
    search.refused("tokyo.n1", NodeAction::RemoveLost, "is alive").await;
    let fence = FenceRequest { site: id("tokyo"), owner: id("tokyo.n1"), slots: vec![Slot(3)] };
    let old = search.client.fence_slots(&fence).await.unwrap().fence;
    search.lose("tokyo.n1").await;
    let map = search.act("tokyo.n1", NodeAction::RemoveLost).await.unwrap();
    let site = map.site(&id("tokyo")).unwrap();
    assert_eq!(site.nodes[0].state, NodeState::Removed);
    for slot in (0..SLOT_COUNT).map(Slot) {
        assert_eq!(site.slot_owner(slot), preferred_owner(site, slot), "{slot:?}");
        assert_ne!(site.slot_owner(slot).unwrap().id, id("tokyo.n1"));
    }
    let owner = site.slot_owner(Slot(3)).unwrap().id.clone();
    let to = if owner == id("tokyo.n2") { id("tokyo.n3") } else { id("tokyo.n2") };
    let stale = SlotMove { site: id("tokyo"), from: owner, to, slots: vec![Slot(3)], fence: old };
    assert_code(search.client.move_slots(&stale).await, ErrorCode::Conflict);
    assert_eq!(search.act("tokyo.n1", NodeAction::RemoveLost).await.unwrap().epoch, map.epoch);

    search.lose("tokyo.n2").await;
    search.act("tokyo.n3", NodeAction::Drain).await.unwrap();
    search.refused("tokyo.n2", NodeAction::RemoveLost, "no other node of site tokyo is active").await;
}

#[tokio::test]
async fn a_lost_node_whose_shard_was_followed_loses_no_slot() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2", "n3"]).await;
    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    search.lose("tokyo.n1").await;
    let map = search.act("tokyo.n1", NodeAction::RemoveLost).await.unwrap();
    let site = map.site(&id("tokyo")).unwrap();
    assert_eq!(shard_of(site, "tokyo.n1"), (2, "n2", vec![]));
    assert_eq!(site.slots_owned_by(&id("tokyo.n1")).count(), usize::from(SLOT_COUNT));
    search.move_all_slots("tokyo.n1", "tokyo.n3").await;

    // Whoever served it is lost too, before all of it was settled: the shard has nobody any more.
    search.lose("tokyo.n2").await;
    let map = search.act("tokyo.n2", NodeAction::RemoveLost).await.unwrap();
    assert_eq!(
        map.site(&id("tokyo")).unwrap().slots_owned_by(&id("tokyo.n3")).count(),
        usize::from(SLOT_COUNT)
    );
}

#[tokio::test]
async fn what_a_lost_node_served_for_another_is_that_ones_again() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2", "n3"]).await;
    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    search.lose("tokyo.n1").await;
    search.client.register(&node("tokyo", "n1", "n1", 1)).await.unwrap();
    search.lose("tokyo.n2").await;
    let map = search.act("tokyo.n2", NodeAction::RemoveLost).await.unwrap();
    let site = map.site(&id("tokyo")).unwrap();
    assert_eq!(shard_of(site, "tokyo.n1"), (3, "n1", vec![]));
    assert_eq!(site.slots_owned_by(&id("tokyo.n1")).count(), usize::from(SLOT_COUNT));
}

#[tokio::test]
async fn a_node_that_is_down_cannot_leave_but_be_given_up() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2"]).await;
    search.act("tokyo.n2", NodeAction::Drain).await.unwrap();
    assert_code(search.act("tokyo.n2", NodeAction::Remove).await, ErrorCode::NodeUnavailable);
    for node in ["tokyo.n1", "tokyo.n2"] {
        search.lose(node).await;
        search.refused(node, NodeAction::Remove, &format!("dozo node remove {node} --lost")).await;
    }
}

/// Whether a node that has told `told` announcements is asked for a snapshot.
async fn is_asked(search: &TestSearch, node: &str, told: u64) -> bool {
    let answer = search.client.announce(&batch(node, 1, told + 1, vec![])).await.unwrap();
    assert_eq!(answer.next_seq, told + 1);
    answer.resync
}

#[tokio::test]
async fn slots_that_move_while_everything_is_told_anew_are_in_some_snapshot() {
    let search = TestSearch::new().await.with_alice().await.with_nodes(&["n1", "n2"]).await;
    let snapshot = async |node: &str, first_seq| {
        let slots = search.tokyo().await.slots_owned_by(&id(node)).collect();
        let items = vec![Announcement::SnapshotBegin, Announcement::SnapshotEnd { slots }];
        search.announce(node, first_seq, items).await;
    };
    for node in ["tokyo.n1", "tokyo.n2"] {
        snapshot(node, 1).await;
        assert!(!is_asked(&search, node, 2).await);
    }
    search.move_all_slots("tokyo.n1", "tokyo.n2").await;
    assert!(!is_asked(&search, "tokyo.n2", 2).await, "n1 owed nothing");
    search.client.resync(&id("tokyo")).await.unwrap();
    // A snapshot that lacks a slot of the node is not all that was asked for.
    let slots = (1..SLOT_COUNT).map(Slot).collect();
    let items = vec![Announcement::SnapshotBegin, Announcement::SnapshotEnd { slots }];
    search.announce("tokyo.n2", 3, items).await;
    assert!(is_asked(&search, "tokyo.n2", 4).await);
    search.move_all_slots("tokyo.n2", "tokyo.n1").await;
    assert!(is_asked(&search, "tokyo.n1", 2).await);
    snapshot("tokyo.n1", 3).await;
    assert!(!is_asked(&search, "tokyo.n1", 4).await);
    // n2 still owes one; what it gave away meanwhile is the other's to tell.
    search.announce("tokyo.n2", 5, vec![Announcement::SnapshotBegin]).await;
    search.move_all_slots("tokyo.n1", "tokyo.n2").await;
    search.move_all_slots("tokyo.n2", "tokyo.n1").await;
    assert!(is_asked(&search, "tokyo.n1", 4).await);
    // Announcements that search lost are asked for again from all nodes.
    snapshot("tokyo.n1", 5).await;
    assert!(!is_asked(&search, "tokyo.n1", 6).await);
    let mut origin = batch("osaka.n1", 1, 9, vec![]);
    origin.announcer = Announcer::Origin(id("studio"));
    assert!(!search.client.announce(&origin).await.unwrap().resync, "origins send no snapshots");
    assert!(!is_asked(&search, "tokyo.n1", 6).await);
    let ahead = search.client.announce(&batch("osaka.n1", 1, 9, vec![])).await.unwrap();
    assert_eq!(ahead.next_seq, 1);
    assert!(is_asked(&search, "tokyo.n1", 6).await);
}
