//! Search on PostgreSQL: the tests of `tests/search`, and what is peculiar to it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

#[path = "../search/announcements.rs"]
mod announcements;
#[path = "../search/cards.rs"]
mod cards;
#[path = "../search/departure.rs"]
mod departure;
#[path = "../search/harness.rs"]
mod harness;
#[path = "../search/http.rs"]
mod http;
#[path = "../search/listing.rs"]
mod listing;
#[path = "../search/nodes.rs"]
mod nodes;
#[path = "../search/recovery.rs"]
mod recovery;
#[path = "../search/servers.rs"]
mod servers;
#[path = "../search/shards.rs"]
mod shards;
#[path = "../search/suspicion.rs"]
mod suspicion;
mod writer;

/// The database of the search that has this folder: one of the server that all tests here share. SQLite where there is no
/// PostgreSQL.
fn database(dir: &std::path::Path) -> Option<String> {
    static SERVER: std::sync::LazyLock<Option<database::testing::Postgres>> =
        std::sync::LazyLock::new(|| {
            database::testing::Postgres::start("-c fsync=off -c max_connections=500")
        });
    let name: String = dir.file_name()?.to_str()?.bytes().map(|b| format!("{b:02x}")).collect();
    Some(SERVER.as_ref()?.database(&format!("dozo_{name}")))
}
