//! The vocabulary that every Dozo server speaks.
//!
//! Everything here is either a *value* (ids, hashes, manifests, versions, delivery records), a
//! *rule* that all servers must apply alike (placement, chunk boundaries, ranges, the record
//! chain), or the *plumbing* they share (HTTP server and client, tokens, telemetry, configuration).
//! Servers never import each other: what one says to another is a type in [`api`], sent by the typed
//! client beside it.
//!
//! | looking for | module |
//! |---|---|
//! | names and ids, validated once | [`id`], [`name`], [`hash`] |
//! | what a content is made of | [`manifest`], [`chunker`], [`version`] |
//! | which node holds what | [`cluster`], [`placement`] |
//! | the facts that are billed | [`record`], [`money`] |
//! | what a home site confirms to a visited one | [`possession`] |
//! | what servers say to each other | [`api`] |
//! | errors with a code of a closed list | [`error`] |
//! | clients of S3-compatible stores | [`s3`] |
//! | listeners, graceful stop, health and metrics | [`server`], [`telemetry`], [`measure`], [`tls`] |
//! | what servers tell of themselves, in tables | [`catalogue`] |
//! | a request's ids and times on its way through the servers | [`trace`] |
//! | text within pages | [`html`] |
//! | who may call whom | [`auth`] |
//! | clients away from home: their cards, and what is signed | [`card`], [`visit`] |

mod admin;
pub mod api;
pub mod auth;
pub mod backoff;
pub mod card;
pub mod catalogue;
pub mod chunker;
pub mod client;
pub mod cluster;
pub mod config;
pub mod error;
pub mod hash;
pub mod html;
pub mod id;
pub mod manifest;
pub mod measure;
pub mod money;
pub mod name;
pub mod placement;
pub mod possession;
pub mod range;
pub mod record;
pub mod s3;
pub mod server;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod trace;
pub mod version;
pub mod visit;
