//! The side that gives orders: greets the agents, reads their clocks, has them begin at one time, adds up their results.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::net::TcpStream;

use super::link::{AgentToken, Ask, Link, Order, Side, Tell};
use super::parts::Parts;
use super::{AgentError, AgentResult, Share, shares, unix_ns};
use crate::load::{Load, Stage};
use crate::plan::Plan;
use crate::target::Target;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// An agent that is silent for longer, while the load is on, is lost.
const ALIVE_TIME_MAX: Duration = Duration::from_secs(10);
/// Round trips from which the shortest is taken: it was held up least.
const CLOCK_READINGS: usize = 8;

struct Agent {
    address: String,
    link: Link,
}

/// Agents that have proved themselves.
pub struct Agents(Vec<Agent>);

/// What an agent's clock says, less ours.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Clock {
    offset_ns: i128,
    round_trip_ns: i128,
}

impl Clock {
    /// Of the readings, each when it was asked, what was answered and when: the one with the shortest round trip. Its
    /// clock was read in the middle of it, give or take half.
    fn of(readings: impl Iterator<Item = (i128, i128, i128)>) -> Option<Self> {
        let clock = |(asked, told, heard): (i128, i128, i128)| Self {
            offset_ns: told - (asked + heard) / 2,
            round_trip_ns: heard - asked,
        };
        readings.map(clock).min_by_key(|clock| clock.round_trip_ns)
    }
}

impl Agents {
    /// # Errors
    /// One of them is not reached, has another token, or works for somebody else: told before anything is done.
    pub async fn connect(addresses: &[String], token: &AgentToken) -> Result<Self, AgentError> {
        let greet = async |address: &String| {
            let unreachable = |source| AgentError::Unreachable { address: address.clone(), source };
            let late = |_| unreachable(std::io::ErrorKind::TimedOut.into());
            let stream = tokio::time::timeout(CONNECT_TIME_MAX, TcpStream::connect(address)).await;
            let stream = stream.map_err(late)?.map_err(unreachable)?;
            let link = Link::greet(stream, address.clone(), token, Side::Conductor).await?;
            let mut agent = Agent { address: address.clone(), link };
            // One that works for somebody else says so now.
            agent.clock().await?;
            Ok(agent)
        };
        let agents = join_all(addresses.iter().map(greet)).await;
        agents.into_iter().collect::<Result<Vec<_>, _>>().map(Self)
    }

    /// # Errors
    /// There are fewer connections than agents, or the plan is of what cannot be shared out.
    pub fn check(&self, plan: &Plan) -> Result<(), AgentError> {
        if plan.trace.is_some() {
            return Err(AgentError::Trace);
        }
        let (agents, connections) = (self.0.len(), plan.connections);
        if agents > connections { Err(AgentError::TooMany { agents, connections }) } else { Ok(()) }
    }

    /// Has all of them drive the target from `start` on, with workers numbered from the stage's first one. Its progress is
    /// told what they do, and whom we lose.
    ///
    /// # Errors
    /// None of them brought a result.
    pub async fn drive(
        self,
        plan: &Plan,
        target: &Target,
        start: Instant,
        stage: &Stage,
    ) -> Result<(Load, Vec<AgentResult>), AgentError> {
        let shares = shares(plan, stage.first_worker, self.0.len());
        let progress = stage.progress.as_deref();
        // What belongs to the operator stays here.
        let target = Target { books: None, watched: Vec::new(), control: None, ..target.clone() };
        let work = self.0.into_iter().zip(shares).map(async |(mut agent, share)| {
            let connections = share.plan.connections;
            let mut clock = Clock { offset_ns: 0, round_trip_ns: 0 };
            let parts = agent.work(share, target.clone(), stage, start, &mut clock).await;
            if let (Err(error), Some(progress)) = (&parts, progress) {
                progress.note(format!("agent {} is lost: {}", agent.address, common::error::chain(error)));
            }
            let result = AgentResult {
                address: agent.address,
                connections,
                requests: parts.as_ref().map_or(0, Parts::requests),
                clock_offset_ms: clock.offset_ns as f64 / 1e6,
                round_trip_ms: clock.round_trip_ns as f64 / 1e6,
                cpu_s: parts.as_ref().map_or(0.0, |parts| parts.cpu_s),
                lost: parts.as_ref().err().map(|error| common::error::chain(error)),
            };
            (parts.ok(), result)
        });
        let (mut load, mut results) = (Load::none(plan.duration), Vec::new());
        for (parts, result) in join_all(work).await {
            results.push(result);
            if let Some(parts) = parts {
                parts.add_to(&mut load);
            }
        }
        if results.iter().all(|result| result.lost.is_some()) {
            let reasons: Vec<String> = results.into_iter().filter_map(|result| result.lost).collect();
            return Err(AgentError::NoneLeft { reasons: reasons.join("; ") });
        }
        Ok((load, results))
    }
}

impl Agent {
    async fn clock(&mut self) -> Result<Clock, AgentError> {
        let mut readings = Vec::new();
        for _ in 0..CLOCK_READINGS {
            let asked = unix_ns();
            self.link.send(&Ask::Clock).await?;
            match self.link.receive(ANSWER_TIME_MAX).await? {
                Tell::Clock { unix_ns: told } => readings.push((asked, told, unix_ns())),
                other => return Err(self.unexpected(other)),
            }
        }
        Ok(Clock::of(readings.into_iter()).unwrap_or(Clock { offset_ns: 0, round_trip_ns: 0 }))
    }

    async fn work(
        &mut self,
        share: Share,
        target: Target,
        stage: &Stage,
        start: Instant,
        clock: &mut Clock,
    ) -> Result<Parts, AgentError> {
        *clock = self.clock().await?;
        let until_start = start.saturating_duration_since(Instant::now()).as_nanos() as i128;
        let start_unix_ns = unix_ns() + until_start + clock.offset_ns;
        let Share { plan, first_worker, one_hits } = share;
        let etags = stage.etags;
        let order = Order { plan, target, first_worker, one_hits, etags, start_unix_ns };
        self.link.send(&Ask::Drive(Box::new(order))).await?;
        match self.link.receive(ANSWER_TIME_MAX).await? {
            Tell::Accepted => {}
            other => return Err(self.unexpected(other)),
        }
        loop {
            match self.link.receive(ALIVE_TIME_MAX).await? {
                Tell::Alive { seconds } => {
                    for (second, lane, part) in &seconds {
                        stage.progress.iter().for_each(|progress| progress.add(*second, *lane, part));
                    }
                }
                Tell::Done(parts) => return Ok(*parts),
                other => return Err(self.unexpected(other)),
            }
        }
    }

    fn unexpected(&self, told: Tell) -> AgentError {
        let reason = match told {
            Tell::Refused { reason } => reason,
            _ => "it answers to something that was not asked".to_owned(),
        };
        AgentError::Refused { address: self.address.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_round_trip_tells_the_clock() {
        // An agent whose clock is 1000 ahead: one reading was held up on the way back.
        let readings = [(0, 1005, 10), (100, 1110, 220), (300, 1301, 302)];
        let clock = Clock::of(readings.into_iter()).unwrap();
        assert_eq!(clock, Clock { offset_ns: 1000, round_trip_ns: 2 });
        assert_eq!(Clock::of(std::iter::empty()), None);
    }
}
