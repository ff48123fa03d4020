//! What a way of delivering costs the network: one trace of requests, replayed over three models of a network with
//! hop counts.
//!
//! The claim that is tested: when the content of clients is kept on storage that is always on, at sites that collect
//! from each other, the total traffic (bytes times hops) is lower than when it is kept on the clients' own machines,
//! which are switched off part of the time, and lower than when one server sends everything.
//!
//! | model | who sends to a client that asks |
//! |---|---|
//! | [`Model::ClientServer`] | the server, at the origin's place, every time |
//! | [`Model::PeerToPeer`] | its own machine if it has the content; else the nearest *running* client that has it; else the server. An index server knows who has what and who runs |
//! | [`Model::Sites`] | its home site. What that does not hold it collects first: from the nearest site that holds it, else from the origin; it keeps it for ever |
//!
//! The third is what Dozo does: a purchase is stored at the client's home site, a holder site comes before the origin,
//! the nearest first. With `dedup` a site collects only what it does not have of a content's family.
//!
//! What all three have in common, and where the first two are favoured:
//! - a transfer is instantaneous and never breaks off, so no client is switched off while it sends;
//! - clients have room for all that they ever got, and as much bandwidth upwards as downwards;
//! - questions, announcements and the index cost nothing;
//! - a client of the second model that asks for what it has costs nothing; at a site it crosses the access link.
//!
//! A transfer between clients crosses both access links and the links between their sites' vertices; one from a site
//! to its client, the client's access link. `bytes x hops` counts each link with its hops.
//!
//! Parameters and where they come from are told in [`trace`], networks in [`topology`]. A sweep repeats the whole at
//! other availabilities and other slopes of popularity, everything else unchanged. [`real`] replays a trace on real
//! sites, to tell how far the third model is from them.

pub mod command;
mod model;
mod plot;
pub mod real;
mod report;
mod sweep;
pub mod topology;
pub mod trace;

pub use model::{Model, Outcome, Rules, replay};
pub use report::TrafficReport;
pub use sweep::{Sweep, SweepPoint, sweep};
