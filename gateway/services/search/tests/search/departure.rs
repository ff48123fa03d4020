//! Servers that are about to stop: how the map leads past them, and what search says to who wants to stop one.

use common::api::can_stop::Risk;
use common::api::search::Leave;
use common::error::ErrorCode;

use crate::harness::{TestSearch, assert_code, gateway, id, node};

#[tokio::test]
async fn a_gateway_that_leaves_is_not_asked_until_it_registers_again() {
    let search = TestSearch::new().await;
    let registration = gateway("tokyo", "g1");
    search.client.register(&registration).await.unwrap();
    let is_alive = async || search.tokyo().await.gateways[0].alive;
    assert!(is_alive().await);
    assert!(search.client.leave(&Leave::of(&registration)).await.unwrap().left);
    assert!(!is_alive().await);
    let epoch = search.epoch().await;
    search.client.leave(&Leave::of(&registration)).await.unwrap();
    assert_eq!(search.epoch().await, epoch, "it has left already");
    search.client.register(&registration).await.unwrap();
    assert!(is_alive().await);
}

#[tokio::test]
async fn a_node_that_leaves_is_stood_in_for_by_its_follower_and_one_without_goes_on() {
    let search = TestSearch::new().await;
    let (first, second) = (node("tokyo", "n1", "a", 1), node("tokyo", "n2", "b", 1));
    search.client.register(&first).await.unwrap();
    search.client.register(&second).await.unwrap();
    assert!(!search.client.leave(&Leave::of(&first)).await.unwrap().left, "nobody follows its shard");
    assert!(search.tokyo().await.nodes[0].alive);

    search.follow("tokyo.n1", &["tokyo.n2"]).await;
    assert!(search.client.leave(&Leave::of(&first)).await.unwrap().left);
    let site = search.tokyo().await;
    assert!(!site.nodes[0].alive);
    assert_eq!(site.shard_primary(&id("tokyo.n1")).unwrap().id, id("tokyo.n2"));
    assert!(!search.client.leave(&Leave::of(&second)).await.unwrap().left, "it is the last");
}

#[tokio::test]
async fn whether_a_server_may_stop_is_told_with_reasons() {
    let search = TestSearch::new().await;
    search.client.register(&gateway("tokyo", "g1")).await.unwrap();
    search.client.register(&node("tokyo", "n1", "a", 1)).await.unwrap();
    let risks = async |server: &str| {
        let verdict = search.client.can_stop(&id(server)).await.unwrap();
        assert_eq!(verdict.can_stop, verdict.reasons.is_empty());
        verdict.reasons.iter().map(|reason| reason.code).collect::<Vec<_>>()
    };
    assert_eq!(risks("tokyo.g1").await, [Risk::LastGateway]);
    // Nobody listens at the node's address.
    assert_eq!(risks("tokyo.n1").await, [Risk::LastNode, Risk::NoFollower, Risk::NoAnswer]);
    search.client.register(&gateway("tokyo", "g2")).await.unwrap();
    assert_eq!(risks("tokyo.g1").await, []);
    assert_code(search.client.can_stop(&id("tokyo.n9")).await, ErrorCode::NotFound);
}
