//! The one writer, and what it acknowledged.

use crate::harness::{SOON, TestSearch, assert_code, client_of, config, hold, id, secret, start};
use common::error::ErrorCode;
use database::testing::Postgres;

#[tokio::test]
async fn a_second_search_on_the_same_database_does_not_start() {
    let search = TestSearch::new().await.with_alice().await;
    let config = config(search.dir.path(), 600_000);
    if config.database.is_none() {
        return;
    }
    let Err(error) = search::start(config, secret()).await else { panic!("two searches write") };
    let text = common::error::chain(&error).to_string();
    assert!(text.contains("another search server writes to it"), "{text}");
    // The first goes on, and once it has stopped another takes its place.
    search.announce("tokyo.n1", 1, vec![hold("alice/a", 1)]).await;
    search.restart().await.client.lookup(&id("alice/a")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_a_crash_of_the_database_and_search_goes_on_by_itself() {
    // As an operator may have set it; search does not rely on it.
    let Some(mut server) = Postgres::start("-c fsync=on -c synchronous_commit=off") else { return };
    let config = search::Config { database: Some(server.database("dozo")), ..config("".as_ref(), 600_000) };
    let running = start(config).await;
    let search = TestSearch { client: client_of(&running), running, dir: tempfile::tempdir().unwrap() };
    let search = search.with_alice().await;
    for round in 0..3 {
        let held = format!("alice/{round}");
        search.announce("tokyo.n1", round + 1, vec![hold(&held, 1)]).await;
        server.crash();
        // The first that use broken connections may be told so.
        let begin = std::time::Instant::now();
        while let Err(error) = search.client.lookup(&id(&held)).await {
            assert_ne!(error.code(), Some(ErrorCode::ContentNotFound), "lost {held}");
            assert!(begin.elapsed() < SOON, "{error}");
        }
    }
    assert_code(search.client.lookup(&id("alice/9")).await, ErrorCode::ContentNotFound);
}
