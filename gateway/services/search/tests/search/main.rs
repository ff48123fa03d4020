//! Search as other servers see it: over HTTP, through the typed client.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod announcements;
mod cards;
mod departure;
mod harness;
mod http;
mod listing;
mod migrations;
mod nodes;
mod recovery;
mod servers;
mod shards;
mod suspicion;

/// SQLite in the folder; these tests run on PostgreSQL as well, see `tests/postgres`.
fn database(_dir: &std::path::Path) -> Option<String> {
    None
}
