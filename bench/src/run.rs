//! A whole run: prepare, drive, read back, reconcile, judge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::client::{CallError, HttpClient};
use serde::{Deserialize, Serialize};

use crate::agents::link::AgentToken;
use crate::agents::{AgentError, AgentResult, Agents};
use crate::books::{self, Booked, Reconciliation};
use crate::events::{Crew, EventError, Happened, Planned};
use crate::load::{Load, LoadError, Stage, drive, start_time};
use crate::measure::{Deliveries, Tally};
use crate::plan::Plan;
use crate::prepare::{clean, prepare, read_back};
use crate::process::ProcessCost;
use crate::progress::Progress;
use crate::protocol::EtagRule;
use crate::servers::{Sampler, Samples};
use crate::slo::{Slo, SloResult};
use crate::steady::{self, WarmUp};
use crate::target::Target;
use crate::timeline::Timeline;

/// Length of the loads that warm up: after each it is looked whether it was enough.
const WARM_UP_LOAD: Duration = Duration::from_secs(4);

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
    /// Warm up until nothing moves any more, for so many seconds at most; the plan's warm-up comes after it.
    pub warm_up_seconds_max: Option<usize>,
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
    /// `None` if the warm-up had a fixed length.
    pub warm_up: Option<WarmUp>,
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
            // A promise counts for nothing if it was the generator that kept the system from breaking it.
            && (self.slos.is_empty() || self.load.generator().refusal().is_none())
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
    let prepared = prepare(&plan, target, &say).await?;
    let before = match &target.books {
        Some(books) => Some(books::settled(&http, books).await.map_err(RunError::Books)?),
        None => None,
    };
    let mut warmed = Warmed::default();
    if let Some(max) = options.warm_up_seconds_max {
        say(&format!("warming up until it is steady, for {max} s at most"));
        warmed = warm_up(&plan, target, prepared.etags, max).await?;
    }
    if let Some(warm_up) = &warmed.warm_up {
        say(&warm_up.to_text());
    }
    say(&format!("running for {:?} after {:?} of warm-up", plan.duration, plan.warmup));
    let start = start_time(&plan, agents.is_some());
    let first_worker = warmed.first_worker;
    let stage = Stage {
        start: Some(start),
        progress: options.progress.clone(),
        first_worker,
        etags: prepared.etags,
        ..Stage::default()
    };
    let sampler = Sampler::start(target, &options.pids, start, plan.warmup, plan.duration);
    let sampler = sampler.map_err(RunError::Sampler)?;
    let crew = crew.start(start + plan.warmup, options.progress.clone())?;
    let load = match agents {
        Some(agents) => agents.drive(&plan, target, start, &stage).await.map_err(RunError::Agent),
        None => drive(&plan, target, &stage).await.map(|load| (load, Vec::new())).map_err(RunError::Load),
    };
    let events = crew.dismiss(start);
    let samples = sampler.finish();
    let (mut load, agents) = load?;
    let warm_up = warmed.join(&mut load);
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
        warm_up,
        read_back,
        reconciliation,
        slos,
        prepared_bytes: prepared.bytes,
        left_behind,
    })
}

/// Loads that warmed the system up: what they delivered and wrote belongs to the run, their times do not.
#[derive(Default)]
struct Warmed {
    warm_up: Option<WarmUp>,
    loads: Vec<Load>,
    /// The first number that no worker of theirs had.
    first_worker: u64,
}

impl Warmed {
    fn join(self, load: &mut Load) -> Option<WarmUp> {
        for warm in self.loads {
            load.tally.merge(Tally { series: BTreeMap::new(), timeline: Timeline::default(), ..warm.tally });
            load.written.extend(warm.written);
            load.unsure.extend(warm.unsure);
            load.published.extend(warm.published);
            load.one_hits_missing += warm.one_hits_missing;
        }
        self.warm_up
    }
}

async fn warm_up(
    plan: &Plan,
    target: &Target,
    etags: Option<EtagRule>,
    seconds_max: usize,
) -> Result<Warmed, LoadError> {
    let plan = Plan { warmup: Duration::ZERO, duration: WARM_UP_LOAD, ..plan.clone() };
    let mut warmed = Warmed::default();
    let warm_up = steady::warm_up(seconds_max, async |nth| {
        // Other workers each time, so that they choose and put other things.
        warmed.first_worker = (nth + 1) * plan.connections as u64;
        let stage = Stage { first_worker: nth * plan.connections as u64, etags, ..Stage::default() };
        let load = drive(&plan, target, &stage).await?;
        let beats = steady::beats(&load.tally, plan.duration.as_secs());
        warmed.loads.push(load);
        Ok::<_, LoadError>(beats)
    });
    let warm_up = warm_up.await?;
    warmed.warm_up = Some(warm_up);
    Ok(warmed)
}

async fn reconcile(
    http: &HttpClient,
    books: &crate::target::Books,
    before: &Booked,
    deliveries: &Deliveries,
) -> Result<Reconciliation, RunError> {
    books::reconcile(http, books, before, deliveries).await.map_err(RunError::Books)
}
