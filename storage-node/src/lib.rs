//! The storage node: it holds everything that a site holds.
//!
//! Chunks (bytes by hash) are in a store: a block device, or an object store. Everything else, the catalog, is rows:
//! holdings of names, libraries of clients, references of chunks, deliveries and what others are still to be
//! told. Both are durable in the node's log before anything is answered.
//!
//! | looking for | module |
//! |---|---|
//! | start, configuration, routes | [`server`], [`config`], `routes` |
//! | rows, group commit, index | [`catalog`] |
//! | what a node decides for, and who serves it | [`shard`], [`shards`] |
//! | what a request does to rows | [`holdings`], [`library`], [`deliveries`], [`open`], [`chunks`] |
//! | slots and how they move | [`slots`], [`slot_moves`]; the cluster map: [`view`], [`map_watch`] |
//! | what others are told | [`outbox`]; what search tells: [`feed`] |
//! | chunks to where they belong, lost ones back | [`mover`] |
//! | which gateway collects a content | [`leases`]; collections that nobody carries on: [`given_up`] |
//! | giving back space | [`reaper`], [`recount`]; closing silent deliveries: [`closing`] |
//! | who holds which bytes | [`tally`] |
//! | verifying what is stored | [`scrub`]; of a stopped node: [`fsck`]; contents that are not whole: [`audit`] |
//! | bytes on disk | [`store`], [`log`], [`io`] |
//!
//! Invariants: a row is changed only by the catalog's committer; a shard is changed only by who serves it, its followers
//! repeat that; what is read is durable here, and what others are told is durable at the followers too. Only the reaper
//! deletes chunks that nothing refers to, the mover those that other nodes have in its place, and the scrub those that no
//! row knows of. A delivery record is never changed once it has its number.

pub mod audit;
pub mod catalog;
pub mod chunks;
pub mod closing;
pub mod config;
pub mod deliveries;
pub mod feed;
pub mod fsck;
pub mod given_up;
pub mod holdings;
pub mod io;
pub mod leases;
pub mod library;
pub mod log;
pub mod map_watch;
pub mod metrics;
pub mod mover;
pub mod node;
pub mod open;
pub mod outbox;
pub mod reaper;
pub mod recount;
mod routes;
pub mod scrub;
pub mod server;
pub mod shard;
pub mod shards;
pub mod slot_moves;
pub mod slots;
pub mod store;
pub mod tally;
pub mod view;

pub use config::Config;
pub use server::start;

// The driver of the fuzz targets, which lie beside the decoders: these are private.
#[cfg(test)]
#[path = "../../common/tests/fuzz/driver.rs"]
mod fuzz;
