//! The dashboards and alerts against a real Prometheus: the whole system runs, is loaded, changed and broken, and is
//! watched with the committed configuration, rules and dashboards.
//!
//! Needs `prometheus` and `promtool` (Debian: prometheus). Where they are missing the test is skipped with a word about
//! it; with `CI` set it fails.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]
#![expect(clippy::print_stdout, reason = "shown when a test fails, and where it measures")]

#[path = "../e2e/cluster.rs"]
#[expect(dead_code, reason = "made for more tests than these")]
mod cluster;
#[path = "../e2e/http.rs"]
#[expect(dead_code, reason = "made for more tests than these")]
mod http;
#[path = "../e2e/process.rs"]
#[expect(dead_code, reason = "made for more tests than these")]
mod process;

mod dashboards;
mod load;
mod server;
mod story;
