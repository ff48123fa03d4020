//! Sites that are really apart: real processes, each site in a network namespace of its own, over links whose delay and
//! rate are set and changed while the processes run.
//!
//! Needs root, `ip` (iproute2) and `/dev/net/tun`; [`net::available`] says what is missing.
//!
//! | file | owns |
//! |---|---|
//! | `net.rs` | the namespaces |
//! | `wire.rs` | the network between them |
//! | `sites.rs` | the processes in them |

pub mod net;
pub mod sites;
pub mod wire;

use std::time::Duration;

use common::client::CallError;
use common::id::InvalidId;

use crate::target::TargetError;
use crate::wire::WireError;

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("sites in network namespaces cannot be had: {0}")]
    Unavailable(String),
    #[error("ip {words}: {answer}")]
    Ip { words: String, answer: String },
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
    #[error("{what}: not within {limit:?}: {reason}")]
    Late { what: String, limit: Duration, reason: String },
    #[error("search does not do what it is asked")]
    Search(#[from] CallError),
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("{what}")]
    Request { what: String, source: WireError },
}

/// Says what failed.
fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> NetnsError {
    move |source| NetnsError::Io { what: what.into(), source }
}
