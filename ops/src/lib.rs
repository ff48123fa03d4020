//! The operator's tool and the servers' launcher, as a library: what the binary `dozo` does.
//!
//! | looking for | module |
//! |---|---|
//! | the command line | [`cli`] |
//! | a whole system in one process | [`up`], [`demo`] |
//! | one server alone: its settings, its life, what systemd hears of it | [`roles`], `reload`, [`log`], `notify` |
//! | lists of names, settings among them | [`catalogue`] |
//! | what commands do | [`commands`] |
//! | what adding or draining a node moves | `plan` |
//! | dashboards, alerts | [`dashboards`], [`alerts`] |
//! | a client away from home | [`card`], `token`, `broadcast`, `visit` |
//! | where servers and keys are found | [`endpoints`], [`secret`], [`session`] |
//!
//! This crate only starts servers and asks them; what they do is in their own crates.

pub mod alerts;
mod broadcast;
pub mod card;
pub mod catalogue;
pub mod cli;
pub mod commands;
pub mod dashboards;
pub mod demo;
pub mod endpoints;
pub mod error;
mod files;
mod http;
pub mod log;
mod notify;
mod output;
mod plan;
mod progress;
#[cfg(test)]
mod promql;
mod reload;
pub mod roles;
pub mod secret;
pub mod session;
mod signals;
#[cfg(feature = "pkcs11")]
mod token;
pub mod up;
mod visit;
