//! Mobile access (patent: server 700): the first that a client away from home speaks to.
//!
//! ```text
//! client                    mobile access                     home site            nearby site
//!   broadcast (UDP) ───────▶ hear ── "here I am" ──▶ client
//!   challenge? ────────────▶ nearby: which gateway is nearest? ─────────────────────▶ ping
//!                            home: a challenge for this card ──▶ seals it
//!   card signs ────────────▶ home: is this answer right? ──────▶ knows the card, first time
//!   ◀── token, gateways ────
//!   asks for its contents, token in hand ───────────────────────────────────────────▶
//! ```
//! It keeps nothing and decides nothing about clients: the home site does. It knows where it stands (its sites, or its zone)
//! and so which site is near; it sees neither the card's private key nor any other credential of the client, and the token
//! that it passes on is of no use to it.
//!
//! It is asked by strangers, so all that it keeps and does for one of them is bounded: length of what is sent, questions a
//! second for each address and in all, time, and how many are answered at once.
//!
//! | looking for | module |
//! |---|---|
//! | settings, start | [`config`], [`server`] |
//! | the broadcast | `hear` |
//! | what clients ask, by HTTP | `routes` |
//! | which gateways are near | `nearby` |
//! | asking a home site | `home` |
//! | how often one may ask | `rates` |

pub mod config;
mod hear;
mod home;
mod metrics;
mod nearby;
mod rates;
mod routes;
pub mod server;

pub use config::Config;
pub use server::start;
