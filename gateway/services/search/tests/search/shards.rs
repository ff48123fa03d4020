//! Who serves a shard: followers, promotion, handing over.

use common::api::search::{FollowersChange, HandOver};
use common::error::ErrorCode;

use crate::harness::{TestSearch, assert_code, id, node, shard_of};

fn change_of(shard: &str, primary: &str, term: u64) -> FollowersChange {
    FollowersChange {
        site: id("tokyo"),
        shard: id(shard),
        primary: id(primary),
        term,
        add: Vec::new(),
        remove: Vec::new(),
    }
}

fn hand_over_of(shard: &str, primary: &str, term: u64, to: &str) -> HandOver {
    HandOver { site: id("tokyo"), shard: id(shard), primary: id(primary), term, to: id(to) }
}

#[tokio::test]
async fn the_primary_says_who_follows_and_nobody_else_does() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2", "n3"]).await;
    assert_eq!(shard_of(&search.tokyo().await, "tokyo.n1"), (1, "n1", vec![]));
    let site = search.follow("tokyo.n1", &["tokyo.n3", "tokyo.n2"]).await;
    assert_eq!(shard_of(&site, "tokyo.n1"), (1, "n1", vec!["n3", "n2"]));
    assert_eq!(shard_of(&site, "tokyo.n2"), (1, "n2", vec![]));

    let epoch = search.epoch().await;
    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    assert_eq!(search.epoch().await, epoch, "what is so already makes no new map");

    for (primary, term) in [("tokyo.n2", 1), ("tokyo.n1", 2), ("tokyo.n1", 0)] {
        let other = FollowersChange { remove: vec![id("tokyo.n2")], ..change_of("tokyo.n1", primary, term) };
        assert_code(search.client.change_followers(&other).await, ErrorCode::Conflict);
    }
    let own = FollowersChange { add: vec![id("tokyo.n1")], ..change_of("tokyo.n1", "tokyo.n1", 1) };
    assert_code(search.client.change_followers(&own).await, ErrorCode::InvalidRequest);
    let elsewhere = FollowersChange { add: vec![id("osaka.n1")], ..change_of("tokyo.n1", "tokyo.n1", 1) };
    assert_code(search.client.change_followers(&elsewhere).await, ErrorCode::InvalidRequest);
    let unknown = FollowersChange { add: vec![id("tokyo.n9")], ..change_of("tokyo.n1", "tokyo.n1", 1) };
    assert_code(search.client.change_followers(&unknown).await, ErrorCode::NotFound);
    assert_code(
        search.client.change_followers(&change_of("tokyo.n9", "tokyo.n9", 1)).await,
        ErrorCode::NotFound,
    );

    let less = FollowersChange { remove: vec![id("tokyo.n3")], ..change_of("tokyo.n1", "tokyo.n1", 1) };
    let map = search.client.change_followers(&less).await.unwrap();
    assert_eq!(shard_of(map.site(&id("tokyo")).unwrap(), "tokyo.n1"), (1, "n1", vec!["n2"]));
    assert_eq!(search.client.change_followers(&less).await.unwrap().epoch, map.epoch);
    search.lose("tokyo.n3").await;
    let down = FollowersChange { add: vec![id("tokyo.n3")], ..change_of("tokyo.n1", "tokyo.n1", 1) };
    assert_code(search.client.change_followers(&down).await, ErrorCode::Conflict);
}

#[tokio::test]
async fn the_first_follower_serves_when_the_primary_is_lost() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2", "n3", "n4"]).await;
    search.follow("tokyo.n1", &["tokyo.n3", "tokyo.n2"]).await;
    search.follow("tokyo.n2", &["tokyo.n1", "tokyo.n4"]).await;
    let before = search.epoch().await;
    search.lose("tokyo.n1").await;
    let site = search.tokyo().await;
    assert_eq!(search.epoch().await.0, before.0 + 1, "the loss and what follows from it are one change");
    assert_eq!(shard_of(&site, "tokyo.n1"), (2, "n3", vec!["n2"]));
    assert_eq!(shard_of(&site, "tokyo.n2"), (1, "n2", vec!["n4"]), "the lost node follows nothing");
    assert_eq!(site.slot_primary(common::placement::Slot(5)).unwrap().id, id("tokyo.n3"));

    search.lose("tokyo.n3").await;
    assert_eq!(shard_of(&search.tokyo().await, "tokyo.n1"), (3, "n2", vec![]));
    search.lose("tokyo.n2").await;
    let site = search.tokyo().await;
    assert_eq!(shard_of(&site, "tokyo.n1"), (3, "n2", vec![]), "nobody else has its rows");
    assert_eq!(shard_of(&site, "tokyo.n2"), (2, "n4", vec![]));

    search.client.register(&node("tokyo", "n1", "n1", 1)).await.unwrap();
    let site = search.tokyo().await;
    assert!(site.node(&id("tokyo.n1")).unwrap().alive);
    assert_eq!(shard_of(&site, "tokyo.n1"), (3, "n2", vec![]), "what it has is older");
    let late = FollowersChange { add: vec![id("tokyo.n4")], ..change_of("tokyo.n1", "tokyo.n1", 1) };
    assert_code(search.client.change_followers(&late).await, ErrorCode::Conflict);
    let down = FollowersChange { add: vec![id("tokyo.n1")], ..change_of("tokyo.n1", "tokyo.n2", 3) };
    assert_code(search.client.change_followers(&down).await, ErrorCode::Conflict);
    search.client.register(&node("tokyo", "n2", "n2", 1)).await.unwrap();
    search.client.change_followers(&down).await.unwrap();
}

#[tokio::test]
async fn a_primary_that_comes_back_with_nothing_serves_another_shard_no_more() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2"]).await;
    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    search.lose("tokyo.n1").await;
    assert_eq!(shard_of(&search.tokyo().await, "tokyo.n1"), (2, "n2", vec![]));
    let own = shard_of(&search.tokyo().await, "tokyo.n2").0;
    search.client.register(&node("tokyo", "n2", "another log", 1)).await.unwrap();
    let site = search.tokyo().await;
    assert_eq!(shard_of(&site, "tokyo.n1"), (3, "n1", vec![]), "n1 has rows, though it is away");
    assert_eq!(shard_of(&site, "tokyo.n2"), (own + 1, "n2", vec![]), "its own begins anew");
}

#[tokio::test]
async fn a_lease_that_runs_out_promotes_as_a_suspicion_does() {
    let search = TestSearch::with_lease(2_000).await.with_nodes(&["n1", "n2"]).await;
    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    let beat = node("tokyo", "n2", "n2", 1);
    let site = loop {
        search.client.register(&beat).await.unwrap();
        let site = search.tokyo().await;
        if !site.node(&id("tokyo.n1")).unwrap().alive {
            break site;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(shard_of(&site, "tokyo.n1"), (2, "n2", vec![]));
}

#[tokio::test]
async fn a_shard_is_handed_over_to_a_follower_once() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2", "n3"]).await;
    search.follow("tokyo.n1", &["tokyo.n2", "tokyo.n3"]).await;
    for wrong in [
        hand_over_of("tokyo.n1", "tokyo.n1", 2, "tokyo.n2"),
        hand_over_of("tokyo.n1", "tokyo.n2", 1, "tokyo.n3"),
        hand_over_of("tokyo.n1", "tokyo.n1", 1, "tokyo.n1"),
        hand_over_of("tokyo.n2", "tokyo.n2", 1, "tokyo.n3"),
    ] {
        assert_code(search.client.hand_over(&wrong).await, ErrorCode::Conflict);
    }
    let request = hand_over_of("tokyo.n1", "tokyo.n1", 1, "tokyo.n2");
    let map = search.client.hand_over(&request).await.unwrap();
    assert_eq!(shard_of(map.site(&id("tokyo")).unwrap(), "tokyo.n1"), (2, "n2", vec!["n3", "n1"]));
    let again = search.client.hand_over(&request).await.unwrap();
    assert_eq!(again.epoch, map.epoch, "a repeated request is answered and changes nothing");
    let back = search.client.hand_over(&hand_over_of("tokyo.n1", "tokyo.n2", 2, "tokyo.n1")).await.unwrap();
    assert_eq!(shard_of(back.site(&id("tokyo")).unwrap(), "tokyo.n1"), (3, "n1", vec!["n3", "n2"]));
    assert_code(search.client.hand_over(&request).await, ErrorCode::Conflict);
}

#[tokio::test]
async fn of_two_changes_of_one_term_that_race_with_a_hand_over_all_that_win_are_of_the_winner() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2", "n3"]).await;
    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    let handing = {
        let client = search.client.clone();
        tokio::spawn(
            async move { client.hand_over(&hand_over_of("tokyo.n1", "tokyo.n1", 1, "tokyo.n2")).await },
        )
    };
    let add = FollowersChange { add: vec![id("tokyo.n3")], ..change_of("tokyo.n1", "tokyo.n1", 1) };
    let added = search.client.change_followers(&add).await;
    handing.await.unwrap().unwrap();
    let expected = if added.is_ok() { vec!["n3", "n1"] } else { vec!["n1"] };
    assert_eq!(shard_of(&search.tokyo().await, "tokyo.n1"), (2, "n2", expected));
}

#[tokio::test]
async fn a_node_that_comes_with_another_log_serves_and_follows_nothing_that_it_lost() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2"]).await;
    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    search.follow("tokyo.n2", &["tokyo.n1"]).await;
    let registered = search.client.register(&node("tokyo", "n1", "new", 1)).await.unwrap();
    assert_eq!(registered.record_epoch, Some(2));
    let site = search.tokyo().await;
    assert!(site.nodes[0].alive);
    assert_eq!(shard_of(&site, "tokyo.n1"), (2, "n2", vec![]));
    assert_eq!(shard_of(&site, "tokyo.n2"), (1, "n2", vec![]));
}

#[tokio::test]
async fn shards_outlive_a_restart() {
    let search = TestSearch::new().await.with_nodes(&["n1", "n2", "n3"]).await;
    search.follow("tokyo.n1", &["tokyo.n2", "tokyo.n3"]).await;
    search.lose("tokyo.n1").await;
    let before = search.tokyo().await;
    let search = search.restart().await;
    assert_eq!(search.tokyo().await, before);
}
