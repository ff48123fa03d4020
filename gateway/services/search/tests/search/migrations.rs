//! Databases of earlier versions.

use common::api::search::NodeAction;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use crate::harness::{AT_ONCE, TestSearch};
use crate::harness::{client_of, id, shard_of, start_in};

const FIRST: &str = include_str!("../../migrations/0001_directory.sql");

#[tokio::test]
async fn a_directory_of_the_first_form_is_brought_up_to_date() {
    let (dir, migrations) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(migrations.path().join("0001_directory.sql"), FIRST).unwrap();
    let options = SqliteConnectOptions::new().filename(dir.path().join("search.db")).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    Migrator::new(migrations.path()).await.unwrap().run(&pool).await.unwrap();
    for statement in [
        "INSERT INTO sites (site, zone, position) VALUES ('tokyo', 'east', 1)",
        "INSERT INTO servers VALUES
             ('gateway', 'tokyo', 'g1', 1, 'http://h:1', NULL, 'http://h:2', TRUE, NULL, NULL, NULL),
             ('storage-node', 'tokyo', 'n1', 2, 'http://h:3', NULL, 'http://h:4', TRUE, 20, 'a', 3),
             ('storage-node', 'tokyo', 'n2', 3, 'http://h:5', NULL, 'http://h:6', FALSE, 10, 'b', 1)",
        "INSERT INTO slots VALUES ('tokyo', 0, 'n1', 0), ('tokyo', 1, 'n2', 7)",
        "UPDATE map_state SET epoch = 9, fence = 7",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    pool.close().await;

    let running = start_in(dir.path(), 600_000).await;
    let search = TestSearch { client: client_of(&running), running, dir };
    let map = search.client.map(common::cluster::MapEpoch(0), AT_ONCE).await.unwrap();
    assert_eq!(map.epoch.0, 9);
    let site = map.site(&id("tokyo")).unwrap();
    assert_eq!((site.gateways.len(), site.replicas, &site.slot_owners[..]), (1, 2, &[0, 1][..]));
    let sizes: Vec<_> = site.nodes.iter().map(|n| (n.capacity_bytes >> 30, n.alive)).collect();
    assert_eq!(sizes, [(20, true), (10, false)]);
    assert_eq!(shard_of(site, "tokyo.n1"), (1, "n1", vec![]));
    assert_eq!(shard_of(site, "tokyo.n2"), (1, "n2", vec![]));
    let registered = search.client.register(&crate::harness::node("tokyo", "n1", "a", 20)).await.unwrap();
    assert_eq!(registered.record_epoch, Some(3));
    search.client.change_node(&id("tokyo.n2"), NodeAction::RemoveLost).await.unwrap();
}
