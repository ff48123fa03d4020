//! The load harness against servers that are not Dozo: any HTTP server, and an S3 server that others wrote.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod plain;
mod s3;
#[path = "../../../storage-node/tests/node/s3/server.rs"]
#[expect(dead_code, reason = "what TLS needs is not used here")]
mod server;
