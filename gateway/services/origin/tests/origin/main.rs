//! An origin beside a real search: what it announces, and what it sends.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod changes;
mod fake;
mod harness;
mod operating;
mod registering;
mod s3;
mod sending;
