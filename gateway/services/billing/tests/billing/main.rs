//! The ledger and its server, from outside.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod books;
mod fixtures;
mod http;
mod months;
mod refusals;
