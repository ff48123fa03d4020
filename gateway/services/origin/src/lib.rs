//! The origin: holds the original content of providers and sends it to sites that collect.
//!
//! Content stays where it is: in a folder or any object store. The origin reads it once, to know its hash and
//! chunks, announces it to search, and reads the parts that are asked for. Every part is verified against its
//! hash before it is sent, so an object that changed in between is never sent as what it was.
//!
//! Invariants:
//! - A registered content and its announcement are one transaction; announcements are sent in their order until
//!   search has acknowledged them.
//! - An origin never writes to a source.
//! - A bucket has one source, so a name has one original.
//! - Only a listing that found everything readable withdraws what it did not find, and much at once only when that
//!   is confirmed (see `withdraw`).
//!
//! | looking for | module |
//! |---|---|
//! | settings, start | [`config`], [`server`] |
//! | HTTP resources | `routes` |
//! | the sources that are open, and how far they are | `sources` |
//! | listing and reading folders and object stores | `source`, `media` |
//! | what an object is made of | `manifest` |
//! | registering what is new or changed: all of a source, single objects | `scan`, `look`, `register` |
//! | withdrawing what is gone | `withdraw` |
//! | noticing changes in folders | `watch` |
//! | how many reads go on at a time | `limit` |
//! | the SQL, by topic | `db`, `registry`, `outbox` |
//! | heartbeat and announcements to search | `announce` |

mod announce;
pub mod config;
mod db;
mod error;
mod limit;
mod look;
mod manifest;
mod media;
mod metrics;
mod outbox;
mod register;
mod registry;
mod routes;
mod scan;
pub mod server;
mod source;
mod sources;
mod watch;
mod withdraw;

pub use common::api::origin::Source;
pub use config::Config;
pub use server::start;
