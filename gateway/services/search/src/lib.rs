//! Search: the directory of a Dozo cluster.
//!
//! It knows the servers and hands out the cluster map, knows clients and buckets, and knows which sites and
//! origins hold which content. Everything it is sure of is in one SQL database; what is in memory (the map as
//! served, the servers' leases) is rebuilt from there at start.
//!
//! Invariants:
//! - A change of the map is one SQL transaction that raises its epoch; it is served only once it is committed.
//! - A map names the runs of search that led to it. Nodes and gateways take none that does not follow from theirs, and
//!   search takes theirs over if it finds itself behind.
//! - An announcement is applied exactly once per announcer, epoch and number, in order.
//! - A name's newest version wins, in whatever order its announcements come.
//!
//! | looking for | module |
//! |---|---|
//! | settings, start, background work | [`config`], [`server`] |
//! | HTTP resources | `routes` |
//! | servers, leases, the map, slots | `servers`, `map`, `slots` |
//! | who serves a node's shard, nodes that do not answer, servers that stop | `shards`, `suspicion`, `departure` |
//! | sites and what is set of them | `sites` |
//! | draining and removing nodes, whether one may be stopped | `nodes`, `can_stop` |
//! | copies of the database | [`backup`] |
//! | a database that was lost, or is older than the nodes | `recovery` |
//! | clients, their cards, buckets | `clients`, `cards`, `buckets` |
//! | announcements, snapshots of a site, the change feed | `announcements`, `contents`, `sweep`, `changes` |
//! | lookups and listings | `listing` |
//!
//! SQL is written in those topic modules alone, in the dialect that SQLite and PostgreSQL share; `db` says how the two are
//! reached, `statements` how many rows are written at once.

mod announcements;
pub mod backup;
mod buckets;
mod can_stop;
mod cards;
mod changes;
mod clients;
pub mod config;
mod contents;
mod db;
mod departure;
mod error;
mod listing;
mod map;
mod metrics;
mod nodes;
mod recovery;
mod routes;
pub mod server;
mod servers;
mod shards;
mod sites;
mod slots;
mod statements;
mod suspicion;
mod sweep;

pub use config::Config;
pub use server::start;
