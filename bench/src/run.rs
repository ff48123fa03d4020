//! A whole run: prepare, drive, read back, reconcile, judge.

use std::sync::Arc;
use std::time::Instant;

use common::client::{CallError, HttpClient};
use serde::{Deserialize, Serialize};

use crate::agents::link::AgentToken;
use crate::agents::{AgentError, AgentResult, Agents};
use crate::books::{self, Booked, Reconciliation};
use crate::events::{Crew, EventError, Happened, Planned};
use crate::load::{Load, LoadError, Stage, drive};
use crate::measure::Deliveries;
use crate::plan::Plan;
use crate::prepare::{clean, prepare, read_back};
use crate::process::ProcessCost;
use crate::progress::Progress;
use crate::servers::{Sampler, Samples};
use crate::slo::{Slo, SloResult};
use crate::target::Target;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the billing servers cannot be asked")]
    Books(#[source] CallError),
    #[error("the servers cannot be sampled: no thread can be started")]
    Sampler(#[source] std::io::Error),
    #[error(transparent)]
    Event(#[from] EventError),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// What a run is made of beside its plan.
#[derive(Clone, Default)]
pub struct Options {
    pub slos: Vec<Slo>,
    /// Processes to watch in place of those that listen on the target's ports.
    pub pids: Vec<u32>,
    /// Leave the run's contents where they are.
    pub keep: bool,
    /// What is done to the system in mid-run.
    pub events: Vec<Planned>,
    /// Is told each second what was done in it.
    pub progress: Option<Arc<Progress>>,
    /// Addresses of the agents that send the load in our place, and what we prove ourselves to them with.
    pub agents: Option<(Vec<String>, AgentToken)>,
}

/// Contents that were put in the run and read again after it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct ReadBack {
    pub read: u64,
    pub wrong: u64,
}

/// Everything that came out.
pub struct Outcome {
    pub plan: Plan,
    pub client: String,
    pub load: Load,
    pub processes: Vec<ProcessCost>,
    pub samples: Samples,
    pub events: Vec<Happened>,
    pub agents: Vec<AgentResult>,
    pub read_back: ReadBack,
    /// `None` when the target's billing servers are not known.
    pub reconciliation: Option<Reconciliation>,
    pub slos: Vec<SloResult>,
    pub prepared_bytes: u64,
    /// Contents that could not be removed after the run.
    pub left_behind: u64,
}

impl Outcome {
    /// Whether every check held: bytes, bookings, promises, events that could be carried out,
    /// agents that stayed, and that there was an answer at all.
    pub fn passed(&self) -> bool {
        self.load.tally.wrong == 0
            && self.read_back.wrong == 0
            && self.load.tally.total(None).requests > 0
            && self.reconciliation.as_ref().is_none_or(|r| r.agrees)
            && self.agents.iter().all(|agent| agent.lost.is_none())
            && self.events.iter().all(|event| event.error.is_none())
            && self.slos.iter().all(|slo| slo.kept)
    }
}

/// Runs `plan` against `target`; `say` is told what is going on.
pub async fn run(
    plan: Plan,
    target: &Target,
    options: &Options,
    say: impl Fn(&str),
) -> Result<Outcome, RunError> {
    let http = HttpClient::new();
    let crew = Crew::assemble(&options.events, target, plan.duration)?;
    let agents = match &options.agents {
        Some((addresses, token)) => Some(Agents::connect(addresses, token).await?),
        None => None,
    };
    agents.iter().try_for_each(|agents| agents.check(&plan))?;
    let prepared_bytes = prepare(&plan, target, &say).await?;
    let before = match &target.books {
        Some(books) => Some(books::settled(&http, books).await.map_err(RunError::Books)?),
        None => None,
    };
    say(&format!("running for {:?} after {:?} of warm-up", plan.duration, plan.warmup));
    let start = if agents.is_some() { Agents::start_time() } else { Instant::now() };
    let stage = Stage { start: Some(start), progress: options.progress.clone(), ..Stage::default() };
    let sampler = Sampler::start(target, &options.pids, start, plan.warmup, plan.duration);
    let sampler = sampler.map_err(RunError::Sampler)?;
    let crew = crew.start(start + plan.warmup, options.progress.clone())?;
    let load = match agents {
        Some(agents) => {
            let driven = agents.drive(&plan, target, start, options.progress.as_ref()).await;
            driven.map_err(RunError::Agent)
        }
        None => drive(&plan, target, &stage).await.map(|load| (load, Vec::new())).map_err(RunError::Load),
    };
    let events = crew.dismiss(start);
    let samples = sampler.finish();
    let (mut load, agents) = load?;
    if load.one_hits_missing > 0 {
        let missing = load.one_hits_missing;
        say(&format!(
            "{missing} reads were to be of objects that nobody had asked for, and there were none left: they read others \
             (--one-hit-objects prepares more)"
        ));
    }
    let read_back = read_back(&plan, target, &mut load).await?;
    // What a lost agent received is not known.
    let is_known = agents.iter().all(|agent| agent.lost.is_none());
    let reconciliation = match (&target.books, &before) {
        (Some(books), Some(before)) if is_known => {
            say("comparing deliveries with bookings");
            Some(reconcile(&http, books, before, &load.tally.deliveries).await?)
        }
        _ => None,
    };
    let left_behind = if options.keep { 0 } else { clean(&plan, target, &load).await? };
    let slos = options.slos.iter().map(|slo| slo.judge(&load.tally, load.elapsed)).collect();
    let processes = samples.costs(load.tally.total(None).requests);
    let client = target.client.clone();
    Ok(Outcome {
        plan,
        client,
        load,
        processes,
        samples,
        events,
        agents,
        read_back,
        reconciliation,
        slos,
        prepared_bytes,
        left_behind,
    })
}

async fn reconcile(
    http: &HttpClient,
    books: &crate::target::Books,
    before: &Booked,
    deliveries: &Deliveries,
) -> Result<Reconciliation, RunError> {
    books::reconcile(http, books, before, deliveries).await.map_err(RunError::Books)
}
