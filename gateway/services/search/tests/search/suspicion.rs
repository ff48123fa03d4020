//! Nodes that somebody could not reach, as search then finds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use common::api::search::Registration;
use common::error::ErrorCode;
use common::id::NodeId;
use common::server::accept_loop;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{SOON, TestSearch, assert_code, gateway, id, node};

fn n1() -> NodeId {
    id("tokyo.n1")
}

/// A node `tokyo.n1` that answers, and counts how often it was asked.
struct Answering {
    asked: Arc<AtomicU32>,
    registration: Registration,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

impl Answering {
    async fn start() -> Self {
        let asked = Arc::new(AtomicU32::new(0));
        let (listener, registration) = listening().await;
        let count = asked.clone();
        let answer = move || {
            let count = count.clone();
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
                "ok"
            }
        };
        let stop = CancellationToken::new();
        let router = Router::new().route("/livez", get(answer));
        let served = tokio::spawn(accept_loop(listener, router, stop.clone()));
        Self { asked, registration, stop, served }
    }
}

async fn listening() -> (TcpListener, Registration) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let http = format!("http://{}", listener.local_addr().unwrap());
    (listener, Registration { http, ..node("tokyo", "n1", "a", 1) })
}

#[tokio::test]
async fn a_node_that_answers_stays_and_many_suspicions_ask_it_once() {
    let search = TestSearch::new().await;
    let answering = Answering::start().await;
    search.client.register(&answering.registration).await.unwrap();
    let epoch = search.epoch().await;
    let mut suspecting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = search.client.clone();
        suspecting.spawn(async move { client.suspect(&n1()).await.unwrap().alive });
    }
    assert!(suspecting.join_all().await.into_iter().all(|alive| alive));
    // Most came while the first look was under way, or while its outcome was trusted; a slow machine may have
    // taken longer than that.
    let asked = answering.asked.load(Ordering::SeqCst);
    assert!((1..10).contains(&asked), "asked {asked} times");
    assert_eq!(search.epoch().await, epoch);

    answering.stop.cancel();
    answering.served.await.unwrap();
    // The good outcome is trusted for a moment; then the node is looked at again.
    let begun = Instant::now();
    while search.client.suspect(&n1()).await.unwrap().alive {
        assert!(begun.elapsed() < SOON, "the loss should be found");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!search.tokyo().await.nodes[0].alive);
}

#[tokio::test]
async fn a_node_that_hangs_is_down_after_its_time_and_alive_when_it_reports() {
    let search = TestSearch::new().await;
    // Connections are taken by the system, and nobody ever answers: as with a stopped process.
    let (_hung, registration) = listening().await;
    search.client.register(&registration).await.unwrap();
    let before = search.epoch().await;
    let begun = Instant::now();
    let (n1, client) = (n1(), &search.client);
    let (one, other) = tokio::join!(client.suspect(&n1), client.suspect(&n1));
    assert!(!one.unwrap().alive && !other.unwrap().alive);
    assert!(begun.elapsed() >= Duration::from_secs(1), "an answer may take its time, twice");
    assert!(!search.tokyo().await.nodes[0].alive, "the map says so when the suspicion is answered");
    assert_eq!(search.epoch().await.0, before.0 + 1, "one look, one change");

    let again = Instant::now();
    search.lose("tokyo.n1").await;
    assert!(again.elapsed() < Duration::from_millis(500), "a node that is down is not looked at");
    search.client.register(&registration).await.unwrap();
    assert!(search.tokyo().await.nodes[0].alive);
}

#[tokio::test]
async fn a_node_that_reports_while_it_is_looked_at_is_alive() {
    let search = TestSearch::new().await;
    let (hung, registration) = listening().await;
    search.client.register(&registration).await.unwrap();
    let suspecting = tokio::spawn({
        let client = search.client.clone();
        async move { client.suspect(&n1()).await.unwrap().alive }
    });
    let (_connection, _) = hung.accept().await.unwrap();
    search.client.register(&registration).await.unwrap();
    assert!(suspecting.await.unwrap());
    assert!(search.tokyo().await.nodes[0].alive);
}

#[tokio::test]
async fn a_node_that_nobody_listens_for_is_down_at_once() {
    let search = TestSearch::with_lease(600_000).await;
    let (gone, registration) = listening().await;
    drop(gone);
    search.client.register(&registration).await.unwrap();
    let waiting = tokio::spawn({
        let (client, epoch) = (search.client.clone(), search.epoch().await);
        async move { client.map(epoch, SOON).await.unwrap() }
    });
    search.lose("tokyo.n1").await;
    let map = waiting.await.unwrap();
    assert!(!map.site(&id("tokyo")).unwrap().nodes[0].alive, "whoever waits for a map is told");
}

#[tokio::test]
async fn only_nodes_are_suspected() {
    let search = TestSearch::new().await;
    search.client.register(&gateway("tokyo", "g1")).await.unwrap();
    assert_code(search.client.suspect(&id("tokyo.g1")).await, ErrorCode::NotFound);
    assert_code(search.client.suspect(&id("osaka.n1")).await, ErrorCode::NotFound);
}
