//! Sites that are really apart: real processes, each site in a network namespace of its own, over links whose delay and
//! rate are set and changed while the processes run.
//!
//! Needs root, `ip` (iproute2) and `/dev/net/tun`. Where they are missing the tests are skipped with a word about it; with
//! `CI` set they fail.

#![expect(clippy::print_stdout, reason = "shown when a test fails, and where it measures")]

mod cluster;

#[path = "../e2e/http.rs"]
#[expect(dead_code, reason = "made for more tests than these")]
mod http;
#[path = "../e2e/process.rs"]
#[expect(dead_code, reason = "made for more tests than these")]
mod process;

mod nearness;
mod traffic;
mod viral;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Delays are measured on a machine with few cores: one test at a time. `None`: this machine has no namespaces.
pub fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match bench::netns::net::available() {
        Ok(()) => Some(turn),
        Err(missing) => {
            assert!(std::env::var_os("CI").is_none(), "network namespaces cannot be tested: {missing}");
            println!("skipped, network namespaces cannot be tested: {missing}");
            None
        }
    }
}
