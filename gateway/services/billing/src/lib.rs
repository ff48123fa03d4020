//! Billing: one ledger engine, run by two servers. *Service billing* books the fee for delivery and shares it
//! among the servers that took part; *content billing* books the fee for use, takes commissions off and leaves
//! the rest to the provider. Each keeps its own books in its own database; neither needs the other.
//!
//! Life of a batch: [`chain`] checks it → the writer ([`ledger`]) finds where it continues the node's chain →
//! [`rating`] computes the charge and its shares → events, a journal for each month, balances and the chain's head commit in
//! one transaction → the node gets its answer. Usage is summed from the events, many together, and before it is read. A
//! month is closed with invoices, payout statements and a seal
//! ([`documents`], [`bank`]); charges are taken back by reversal. [`a_month`] is one that a pencil can follow.
//!
//! Invariants: every journal sums to zero; balances are the sums of postings; the records of a chain are
//! contiguous and linked; nothing booked is ever changed (the database refuses, see `migrations/`); what
//! cannot be rated is booked as an exception and never holds up what is behind it; money is never a float.

#[doc = include_str!("a_month.md")]
pub mod a_month {}
pub mod backup;
pub mod bank;
pub mod chain;
pub mod config;
pub mod documents;
mod invoicing;
pub mod ledger;
mod metrics;
pub mod period;
pub mod rating;
mod reconcile;
pub mod replay;
mod routes;
mod server;
mod sql;
pub mod tariff;
pub mod verify;
mod xml;

pub use config::{Config, Fee};
pub use routes::description;
pub use server::start;
pub use tariff::{Terms, demo_tariffs};
