//! The whole system, end to end: real processes, real HTTP, real files.
//!
//! What a system must do whatever it runs as is one body, run against `dozo up` and against a process per server
//! ([`both_ways`]). Tests that stop, kill or fill something have a cluster of their own.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]
#![expect(clippy::print_stdout, reason = "shown when a test fails")]

mod cluster;
mod http;
mod link;
mod mix;
mod probe;
mod process;

mod accounts;
mod agents;
mod backup;
mod books;
mod cards;
mod collection;
mod crash;
mod cuts;
mod delivery;
mod events;
mod faults;
mod growth;
mod harness;
mod operation;
mod origin;
mod postgresql;
mod publication;
mod roaming;
mod rolling;
mod search;
mod sites;
mod support;
mod topology;
mod tracing;
mod visiting;

/// Makes two tests of one body: `one_process` and `process_per_server`, each on the cluster that its like share.
#[macro_export]
macro_rules! both_ways {
    ($($(#[$doc:meta])* fn $name:ident($cluster:ident) $body:block)*) => {
        $(
            $(#[$doc])*
            mod $name {
                #[allow(unused_imports, reason = "each body uses what it needs")]
                use super::*;
                use $crate::cluster::{Cluster, Mode};

                fn body($cluster: &Cluster) $body

                #[test]
                fn one_process() {
                    body(Cluster::shared(Mode::OneProcess));
                }

                #[test]
                fn process_per_server() {
                    body(Cluster::shared(Mode::ProcessPerServer));
                }
            }
        )*
    };
}

/// Bytes that no other test puts.
pub fn fresh_bytes(len: usize) -> Vec<u8> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let seed = cluster::unix_millis() ^ u64::from(std::process::id()) << 44;
    let content = bench::content::Content::new(seed, NEXT.fetch_add(1, Ordering::Relaxed), len as u64);
    content.bytes(0, len).to_vec()
}

/// The ETag that these bytes must have.
pub fn etag_of(bytes: &[u8]) -> String {
    format!("\"{}\"", common::hash::ContentHash::of(bytes))
}
