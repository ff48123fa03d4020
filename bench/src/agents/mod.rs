//! Load from several machines: `bench agent` waits for orders on each, `bench run --agent HOST:PORT,…` gives them and
//! adds up what came back.
//!
//! The plan goes to every agent with its share of the connections and of the rate, and the number of its first worker:
//! contents are a function of seed and number, so agents share nothing and still never put the same bytes or keys.
//! Distributions are merged as histograms, and seconds of the timeline by their number, so the sum is exact. An agent
//! that is lost takes its results with it; the others go on, and the report says what is missing.
//!
//! Both sides prove that they have the same token, but nothing is encrypted: the client's own token travels to the agents,
//! with the token of who publishes for it and its card if it collects or roams, so this is for networks that one trusts.
//!
//! | looking for | module |
//! |---|---|
//! | messages, and how both sides prove that they have the token | [`link`] |
//! | results as they travel | [`parts`] |
//! | the side that carries orders out | [`agent`] |
//! | the side that gives them | [`conductor`] |

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::plan::{Pace, Plan};

pub mod agent;
pub mod conductor;
pub mod link;
pub mod parts;

pub use conductor::Agents;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the agent token's file {path} cannot be read", path = .path.display())]
    TokenFile { path: PathBuf, source: std::io::Error },
    #[error("the agent token's file {path} has {len} characters; at least {min} are needed", path = .path.display())]
    ShortToken { path: PathBuf, len: usize, min: usize },
    #[error("the agent {address} is not reached")]
    Unreachable { address: String, source: std::io::Error },
    #[error("the connection to {peer} broke")]
    Broken { peer: String, source: std::io::Error },
    #[error("{peer} said what cannot be understood: is it a bench of the same version?")]
    Message { peer: String, source: serde_json::Error },
    #[error("{peer} said nothing for {limit:?}")]
    Silent { peer: String, limit: Duration },
    #[error("{peer} does not have the same agent token")]
    Token { peer: String },
    #[error("the agent {address} refuses: {reason}")]
    Refused { address: String, reason: String },
    #[error("{agents} agents need at least as many connections, and the plan has {connections}")]
    TooMany { agents: usize, connections: usize },
    #[error("a trace is one sequence of requests, which agents cannot share: replay it without --agent")]
    Trace,
    #[error("no agent is left: {reasons}")]
    NoneLeft { reasons: String },
    #[error("{listen} cannot be listened on")]
    Listen { listen: String, source: std::io::Error },
}

/// One agent's part of a plan.
#[derive(Debug, Clone)]
pub struct Share {
    pub plan: Plan,
    pub first_worker: u64,
    /// Of the objects that are asked for once.
    pub one_hits: Range<u64>,
}

/// Connections as evenly as they go; the rate, and the objects that are asked for once, by connections.
pub fn shares(plan: &Plan, first_worker: u64, agents: usize) -> Vec<Share> {
    let all_one_hits = plan.one_hit_objects();
    let one_hits_before = |connections: u64| {
        let part = u128::from(all_one_hits) * u128::from(connections) / plan.connections.max(1) as u128;
        // No more than all of them.
        u64::try_from(part).unwrap_or(all_one_hits)
    };
    let (mut first_worker, mut before) = (first_worker, 0);
    let share = |agent: usize| {
        let connections = plan.connections / agents + usize::from(agent < plan.connections % agents);
        let part = connections as f64 / plan.connections.max(1) as f64;
        let pace = match plan.pace {
            pace @ (Pace::Closed | Pace::Trace { .. }) => pace,
            Pace::Open { rate, arrivals } => Pace::Open { rate: rate * part, arrivals },
        };
        let in_flight_max = ((plan.in_flight_max as f64 * part).ceil() as u64).max(1);
        let (from, next) = (before, before + connections as u64);
        let share = Share {
            plan: Plan { connections, pace, in_flight_max, ..plan.clone() },
            first_worker,
            one_hits: one_hits_before(from)..one_hits_before(next),
        };
        (first_worker, before) = (first_worker + connections as u64, next);
        share
    };
    (0..agents).map(share).collect()
}

/// What one agent was and did, as the report tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentResult {
    pub address: String,
    pub connections: usize,
    pub requests: u64,
    /// Its clock less ours.
    pub clock_offset_ms: f64,
    /// The shortest round trip: the offset is wrong by at most half of it.
    pub round_trip_ms: f64,
    /// CPU time of its process from start to end of the load.
    pub cpu_s: f64,
    /// Why its results are missing.
    pub lost: Option<String>,
}

/// Nanoseconds since 1970 by this machine's clock.
fn unix_ns() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as i128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Verify;
    use crate::schedule::Arrivals;
    use crate::workload::{Size, Workload};

    #[test]
    fn shares_add_up_and_workers_have_numbers_of_their_own() {
        let plan = Plan {
            workload: Workload {
                one_hit_ratio: 0.5,
                one_hit_objects: Some(17),
                ..Workload::gets(Size::list(&[1]), 1)
            },
            trace: None,
            connections: 8,
            threads: 1,
            pace: Pace::Open { rate: 100.0, arrivals: Arrivals::Constant },
            in_flight_max: 10,
            warmup: Duration::ZERO,
            duration: Duration::from_secs(1),
            request_time_max: Duration::from_secs(1),
            verify: Verify::Off,
            seed: 1,
        };
        let shares = shares(&plan, 16, 3);
        let connections: Vec<(usize, u64)> =
            shares.iter().map(|share| (share.plan.connections, share.first_worker)).collect();
        assert_eq!(connections, [(3, 16), (3, 19), (2, 22)]);
        let one_hits: Vec<Range<u64>> = shares.iter().map(|share| share.one_hits.clone()).collect();
        assert_eq!(one_hits, [0..6, 6..12, 12..17], "each of them is one agent's");
        let rate = |share: &Share| match share.plan.pace {
            Pace::Open { rate, .. } => rate,
            Pace::Closed | Pace::Trace { .. } => 0.0,
        };
        assert!((shares.iter().map(rate).sum::<f64>() - 100.0).abs() < 1e-9);
        assert!(shares.iter().map(|share| share.plan.in_flight_max).sum::<u64>() >= 10);
    }
}
