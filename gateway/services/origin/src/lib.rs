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
//!
//! | looking for | module |
//! |---|---|
//! | settings, start | [`config`], [`server`] |
//! | HTTP resources | `routes` |
//! | reading folders and object stores | `source`, `media` |
//! | what an object is made of | `manifest` |
//! | registering what is new, changed or gone | `scan` |
//! | the SQL, by topic | `db`, `registry`, `outbox` |
//! | heartbeat and announcements to search | `announce` |

mod announce;
pub mod config;
mod db;
mod error;
mod manifest;
mod media;
mod metrics;
mod outbox;
mod registry;
mod routes;
mod scan;
pub mod server;
mod source;

pub use config::{Config, Source};
pub use server::start;
