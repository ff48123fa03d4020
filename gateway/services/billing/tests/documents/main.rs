//! Documents, bank files and the API's description, checked by programs that others wrote.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod bank_files;
mod checkers;
mod description;
mod e_invoices;
#[path = "../billing/fixtures.rs"]
#[expect(dead_code, reason = "the tests of the ledger use the rest")]
mod fixtures;

/// Ledgers here are SQLite files.
fn database(_dir: &std::path::Path) -> Option<String> {
    None
}
