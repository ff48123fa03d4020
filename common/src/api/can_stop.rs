//! Whether a server may be stopped now: search's answer to who is about to restart it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `GET /v1/nodes/{node}/can-stop`, of search; `node` may also be a gateway, as in `tokyo.g1`. The status is 200, or 412
/// when something would not be to be had, or could be lost, while the server is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanStop {
    /// As in `tokyo.n1`.
    pub server: String,
    pub can_stop: bool,
    /// What speaks against it.
    pub reasons: Vec<Reason>,
    /// What to know, though it may be stopped.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl CanStop {
    pub fn new(server: impl ToString) -> Self {
        Self { server: server.to_string(), can_stop: true, reasons: Vec::new(), warnings: Vec::new() }
    }

    pub fn object(&mut self, code: Risk, message: String) {
        self.can_stop = false;
        self.reasons.push(Reason { code, message });
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub code: Risk,
    pub message: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why a server should go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// No other node of the site is there.
    LastNode,
    /// No other gateway of the site is there.
    LastGateway,
    /// It alone has some chunks, or would when those that are away do not come back.
    SoleCopy,
    /// It alone has the rows of some slots.
    NoFollower,
    /// Chunks are not yet where they belong.
    Moves,
    /// It is being drained.
    Draining,
    /// It alone has records that are not delivered yet.
    Undelivered,
    /// A node does not say what it has.
    NoAnswer,
}
