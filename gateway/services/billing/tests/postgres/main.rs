//! The ledger on PostgreSQL: the tests of `tests/billing`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "../billing/a_month.rs"]
mod a_month;
#[path = "../billing/bad_input.rs"]
mod bad_input;
#[path = "../billing/books.rs"]
mod books;
#[path = "../billing/corrections.rs"]
mod corrections;
#[path = "../billing/fixtures.rs"]
mod fixtures;
#[path = "../billing/http.rs"]
mod http;
#[path = "../billing/model.rs"]
mod model;
#[path = "../billing/months.rs"]
mod months;
#[path = "../billing/refusals.rs"]
mod refusals;

/// The database of the ledger that has this folder: one of the server that all tests here share. SQLite where there is no
/// PostgreSQL.
fn database(dir: &std::path::Path) -> Option<String> {
    use database::testing::Postgres;
    static SERVER: std::sync::LazyLock<Option<Postgres>> =
        std::sync::LazyLock::new(|| Postgres::start("-c fsync=off -c max_connections=500"));
    let name: String = dir.file_name()?.to_str()?.bytes().map(|b| format!("{b:02x}")).collect();
    Some(SERVER.as_ref()?.database(&format!("dozo_{name}")))
}
