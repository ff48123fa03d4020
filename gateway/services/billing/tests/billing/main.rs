//! The ledger and its server, from outside.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod a_month;
mod bad_input;
mod books;
mod corrections;
mod fixtures;
mod http;
mod model;
mod months;
mod refusals;

/// Ledgers here are SQLite files.
fn database(_dir: &std::path::Path) -> Option<String> {
    None
}
