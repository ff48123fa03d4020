//! Registration, leases, epochs, slots.

use std::time::Duration;

use common::api::search::{FenceRequest, HolderName, NodeFacts, SlotMove};
use common::auth::Role;
use common::cluster::MapEpoch;
use common::error::ErrorCode;
use common::placement::{SLOT_COUNT, Slot};

use crate::harness::{AT_ONCE, SOON, TestSearch, assert_code, gateway, hold, id, node, origin};

#[tokio::test]
async fn registering_builds_the_map_and_heartbeats_leave_it_alone() {
    let search = TestSearch::new().await;
    assert_eq!(search.epoch().await, MapEpoch(1), "a new directory serves a map at once");
    let answer = search.client.register(&gateway("tokyo", "g1")).await.unwrap();
    assert_eq!((answer.map_epoch, answer.record_epoch, answer.heartbeat_ms), (MapEpoch(2), None, 50));
    let first = search.client.register(&node("tokyo", "n1", "log-a", 20)).await.unwrap();
    assert_eq!((first.map_epoch, first.record_epoch), (MapEpoch(3), Some(1)));
    search.client.register(&node("tokyo", "n0", "log-b", 0)).await.unwrap();
    search.client.register(&origin("studio")).await.unwrap();
    let billing = |role, name| common::api::search::Registration { role, ..origin(name) };
    search.client.register(&billing(Role::ServiceBilling, "sb")).await.unwrap();

    let map = search.client.map(MapEpoch(0), AT_ONCE).await.unwrap();
    assert_eq!(map.epoch, MapEpoch(6));
    let site = map.site(&id("tokyo")).unwrap();
    assert!(site.gateways[0].alive);
    let nodes: Vec<_> = site.nodes.iter().map(|n| (n.id.as_str(), n.weight, n.alive)).collect();
    // Each chunk is on both, whatever their sizes.
    assert_eq!(nodes, [("tokyo.n1", 1_000_000, true), ("tokyo.n0", 1_000_000, true)]);
    assert_eq!(site.slot_owners, vec![0; usize::from(SLOT_COUNT)], "the first node has every slot");
    assert_eq!(map.origins[0].name, id("studio"));
    assert_eq!(map.service_billing.unwrap().name, id("sb"));
    assert!(map.content_billing.is_none());

    let mut same = node("tokyo", "n1", "log-a", 20);
    same.node = Some(NodeFacts { used_bytes: 99, ..same.node.unwrap() });
    assert_eq!(search.client.register(&same).await.unwrap().map_epoch, MapEpoch(6));
    let mut moved = gateway("tokyo", "g1");
    moved.http = "http://127.0.0.1:8080".into();
    assert_eq!(search.client.register(&moved).await.unwrap().map_epoch, MapEpoch(7));
}

#[tokio::test]
async fn a_node_with_another_log_gets_another_record_epoch_that_outlives_a_restart() {
    let search = TestSearch::new().await;
    let register = async |search: &TestSearch, log| {
        search.client.register(&node("tokyo", "n1", log, 1)).await.unwrap().record_epoch
    };
    assert_eq!(register(&search, "a").await, Some(1));
    assert_eq!(register(&search, "a").await, Some(1));
    assert_eq!(register(&search, "b").await, Some(2));
    let search = search.restart().await;
    assert_eq!(register(&search, "b").await, Some(2));
    assert_eq!(register(&search, "a").await, Some(3));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_down_until_it_reports_again() {
    let search = TestSearch::with_lease(200).await;
    search.client.register(&node("tokyo", "n1", "a", 1)).await.unwrap();
    let up = search.client.register(&gateway("tokyo", "g1")).await.unwrap().map_epoch;
    let is_down = |site: &common::cluster::SiteEntry| !site.gateways[0].alive && !site.nodes[0].alive;
    let (mut epoch, mut waits) = (up, 0);
    loop {
        let map = search.client.map(epoch, SOON).await.unwrap();
        assert!(map.epoch > epoch, "the map should change when leases run out");
        epoch = map.epoch;
        waits += 1;
        if is_down(map.site(&id("tokyo")).unwrap()) {
            break;
        }
    }
    assert!(waits <= 2, "each server goes down once");
    let back = search.client.register(&gateway("tokyo", "g1")).await.unwrap();
    assert!(back.map_epoch > epoch, "coming back changes the map");
    let map = search.client.map(epoch, AT_ONCE).await.unwrap();
    // On a slow machine the short lease may have run out once more.
    let alive = map.site(&id("tokyo")).unwrap().gateways[0].alive;
    assert!(alive || map.epoch > back.map_epoch);
}

#[tokio::test]
async fn a_waiting_map_poll_wakes_at_a_change_and_ends_when_the_server_stops() {
    let search = TestSearch::new().await;
    let epoch = search.epoch().await;
    let waiting = tokio::spawn({
        let client = search.client.clone();
        async move { client.map(epoch, SOON).await.unwrap() }
    });
    search.client.register(&gateway("osaka", "g1")).await.unwrap();
    let map = waiting.await.unwrap();
    assert_eq!(map.sites[0].id, id("osaka"));

    let waiting = tokio::spawn({
        let client = search.client.clone();
        async move { client.map(map.epoch, Duration::from_secs(50)).await }
    });
    // The poll has to be in flight before the stop; a call that was answered later is a proof of nothing.
    search.client.map(MapEpoch(0), AT_ONCE).await.unwrap();
    tokio::time::timeout(SOON, search.running.stop()).await.expect("long polls do not hold up a stop");
    let _either_way = waiting.await.unwrap();
}

async fn two_nodes() -> TestSearch {
    let search = TestSearch::new().await;
    search.client.register(&node("tokyo", "n1", "a", 1)).await.unwrap();
    search.client.register(&node("tokyo", "n2", "b", 1)).await.unwrap();
    search
}

fn fence_of(owner: &str, slots: &[u16]) -> FenceRequest {
    FenceRequest { site: id("tokyo"), owner: id(owner), slots: slots.iter().copied().map(Slot).collect() }
}

fn move_of(from: &str, to: &str, slots: &[u16], fence: u64) -> SlotMove {
    let slots = slots.iter().copied().map(Slot).collect();
    SlotMove { site: id("tokyo"), from: id(from), to: id(to), slots, fence }
}

#[tokio::test]
async fn slots_move_with_their_newest_fence_only() {
    let search = two_nodes().await;
    let before = search.epoch().await;
    let old = search.client.fence_slots(&fence_of("tokyo.n1", &[3, 4])).await.unwrap().fence;
    let new = search.client.fence_slots(&fence_of("tokyo.n1", &[4])).await.unwrap().fence;
    assert!(new > old);
    assert_eq!(search.epoch().await, before, "a fence does not change the map");
    let stale = search.client.move_slots(&move_of("tokyo.n1", "tokyo.n2", &[3, 4], old)).await;
    assert_code(stale, ErrorCode::Conflict);

    let moving = move_of("tokyo.n1", "tokyo.n2", &[4], new);
    let map = search.client.move_slots(&moving).await.unwrap();
    let owners = &map.site(&id("tokyo")).unwrap().slot_owners;
    assert_eq!((owners[3], owners[4], owners[5]), (0, 1, 0));
    let again = search.client.move_slots(&moving).await.unwrap();
    assert_eq!(again.epoch, map.epoch, "a repeated move is answered and changes nothing");
    assert_code(search.client.fence_slots(&fence_of("tokyo.n1", &[4])).await, ErrorCode::Conflict);
    let back = search.client.fence_slots(&fence_of("tokyo.n2", &[4])).await.unwrap().fence;
    let map = search.client.move_slots(&move_of("tokyo.n2", "tokyo.n1", &[4], back)).await.unwrap();
    assert_eq!(map.site(&id("tokyo")).unwrap().slot_owners[4], 0);
}

#[tokio::test]
async fn of_many_that_race_for_a_slot_one_wins() {
    let search = two_nodes().await;
    for name in ["n3", "n4", "n5"] {
        search.client.register(&node("tokyo", name, name, 1)).await.unwrap();
    }
    let fence = search.client.fence_slots(&fence_of("tokyo.n1", &[7])).await.unwrap().fence;
    let mut racers = tokio::task::JoinSet::new();
    for to in ["tokyo.n2", "tokyo.n3", "tokyo.n4", "tokyo.n5"] {
        let client = search.client.clone();
        racers.spawn(async move { client.move_slots(&move_of("tokyo.n1", to, &[7], fence)).await });
    }
    let results = racers.join_all().await;
    let won = results.iter().filter(|r| r.is_ok()).count();
    assert_eq!(won, 1, "{results:?}");
}

#[tokio::test]
async fn slot_requests_that_make_no_sense_are_refused() {
    let search = two_nodes().await;
    assert_code(search.client.fence_slots(&fence_of("tokyo.n1", &[])).await, ErrorCode::InvalidRequest);
    assert_code(search.client.fence_slots(&fence_of("tokyo.n1", &[1024])).await, ErrorCode::InvalidRequest);
    assert_code(search.client.fence_slots(&fence_of("osaka.n1", &[1])).await, ErrorCode::InvalidRequest);
    assert_code(search.client.fence_slots(&fence_of("tokyo.n2", &[1])).await, ErrorCode::Conflict);
    let unknown = search.client.move_slots(&move_of("tokyo.n1", "tokyo.n9", &[1], 0)).await;
    assert_code(unknown, ErrorCode::Conflict);
}

#[tokio::test]
async fn a_site_that_fell_silent_is_not_offered_until_it_reports() {
    let search = TestSearch::with_lease(300).await.with_alice().await;
    search.announce("tokyo.n1", 1, vec![hold("alice/a", 1)]).await;
    let begin = std::time::Instant::now();
    loop {
        let answer = search.client.lookup(&id("alice/a")).await;
        if answer.as_ref().is_err_and(|error| error.code() == Some(ErrorCode::SourceUnavailable)) {
            break;
        }
        assert_eq!(answer.unwrap().sites, [id("tokyo")]);
        assert!(begin.elapsed() < SOON);
    }
    let line = search.client.holders(&id("alice/a")).await.unwrap().holders.remove(0);
    assert_eq!((line.holder, line.is_silent), (HolderName::Site(id("tokyo")), true));
    search.client.register(&gateway("tokyo", "g1")).await.unwrap();
    assert_eq!(search.client.lookup(&id("alice/a")).await.unwrap().sites, [id("tokyo")]);
}
