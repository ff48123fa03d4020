//! A whole run: prepare, drive, read back, reconcile, judge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::client::{CallError, HttpClient};
use common::hash::ContentHash;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use http::Method;
use serde::{Deserialize, Serialize};

use crate::books::{self, Booked, Reconciliation};
use crate::content::{Choices, Content};
use crate::events::{Crew, EventError, Happened, Planned};
use crate::exchange::{fetch, store};
use crate::load::{Load, LoadError, Stage, drive, object_path};
use crate::measure::{Deliveries, Tally};
use crate::plan::{Plan, Verify};
use crate::process::ProcessCost;
use crate::progress::Progress;
use crate::servers::{Sampler, Samples};
use crate::slo::{Slo, SloResult};
use crate::steady::{self, WarmUp};
use crate::target::{Target, resolve};
use crate::timeline::Timeline;
use crate::wire::{Connection, Outgoing, WireError, read_text};

/// Connections for preparing, reading back and cleaning up.
const SIDE_CONNECTIONS: usize = 8;
/// Length of the loads that warm up: after each it is looked whether it was enough.
const WARM_UP_LOAD: Duration = Duration::from_secs(4);
/// Most contents that are read back after PUTs.
const READ_BACK_MAX: usize = 256;

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
    /// and that there was an answer at all.
    pub fn passed(&self) -> bool {
        self.load.tally.wrong == 0
            && self.read_back.wrong == 0
            && self.load.tally.total(None).requests > 0
            && self.reconciliation.as_ref().is_none_or(|r| r.agrees)
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
    make_bucket(target).await?;
    let objects: Vec<u64> = if plan.gets() { (0..plan.objects).collect() } else { Vec::new() };
    let prepared_bytes = objects.iter().map(|object| plan.size_of(*object)).sum();
    if !objects.is_empty() {
        say(&format!("preparing {} objects, {}", objects.len(), common::config::show_bytes(prepared_bytes)));
    }
    let expected = Arc::new(prepare(&plan, target, &objects).await?);
    let before = match &target.books {
        Some(books) => Some(books::settled(&http, books).await.map_err(RunError::Books)?),
        None => None,
    };
    let mut warmed = Warmed::default();
    if let Some(max) = options.warm_up_seconds_max {
        say(&format!("warming up until it is steady, for {max} s at most"));
        warmed = warm_up(&plan, target, &expected, max).await?;
    }
    if let Some(warm_up) = &warmed.warm_up {
        say(&warm_up.to_text());
    }
    say(&format!("running for {:?} after {:?} of warm-up", plan.duration, plan.warmup));
    let start = Instant::now();
    let first_worker = warmed.first_worker;
    let stage = Stage { start: Some(start), progress: options.progress.clone(), first_worker };
    let sampler = Sampler::start(target, &options.pids, start, plan.warmup, plan.duration);
    let sampler = sampler.map_err(RunError::Sampler)?;
    let crew = crew.start(start + plan.warmup)?;
    let load = drive(&plan, target, expected, &stage).await;
    let events = crew.dismiss(start);
    let samples = sampler.finish();
    let mut load = load?;
    let warm_up = warmed.join(&mut load);
    let read_back = read_back(&plan, target, &mut load).await?;
    let reconciliation = match (&target.books, &before) {
        (Some(books), Some(before)) => {
            say("comparing deliveries with bookings");
            Some(reconcile(&http, books, before, &load.tally.deliveries).await?)
        }
        _ => None,
    };
    let left_behind = if options.keep { 0 } else { clean(&plan, target, &objects, &load.written).await? };
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
        warm_up,
        read_back,
        reconciliation,
        slos,
        prepared_bytes,
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
        }
        self.warm_up
    }
}

async fn warm_up(
    plan: &Plan,
    target: &Target,
    expected: &Arc<Vec<ContentHash>>,
    seconds_max: usize,
) -> Result<Warmed, LoadError> {
    let plan = Plan { warmup: Duration::ZERO, duration: WARM_UP_LOAD, ..plan.clone() };
    let mut warmed = Warmed::default();
    let warm_up = steady::warm_up(seconds_max, async |nth| {
        // Other workers each time, so that they choose and put other things.
        warmed.first_worker = (nth + 1) * plan.connections as u64;
        let stage = Stage { first_worker: nth * plan.connections as u64, ..Stage::default() };
        let load = drive(&plan, target, expected.clone(), &stage).await?;
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

async fn connect(target: &Target, nth: usize) -> Result<Connection, LoadError> {
    let (address, host) = resolve(&target.gateways[nth % target.gateways.len()]).await?;
    Connection::new(address, &host, &target.token)
        .map_err(|error| LoadError::Request { what: "making a connection".into(), source: error.into() })
}

fn failed(what: String) -> impl FnOnce(WireError) -> LoadError {
    move |source| LoadError::Request { what, source }
}

async fn make_bucket(target: &Target) -> Result<(), LoadError> {
    let path = format!("/v1/buckets/{}", target.bucket);
    let body = Outgoing::Text(r#"{"visibility":"private"}"#.into());
    let what = format!("making the bucket {}", target.bucket);
    let response =
        connect(target, 0).await?.send(Method::PUT, &path, body).await.map_err(failed(what.clone()))?;
    read_text(response.into_body()).await.map(drop).map_err(failed(what))
}

/// Puts the objects; answers with the hashes that GETs have to show.
async fn prepare(plan: &Plan, target: &Target, objects: &[u64]) -> Result<Vec<ContentHash>, LoadError> {
    let mut hashes = vec![None; objects.len()];
    let lanes = stream::iter(0..SIDE_CONNECTIONS).map(|lane| async move {
        let mut connection = connect(target, lane).await?;
        let mut stored = Vec::new();
        for object in objects.iter().skip(lane).step_by(SIDE_CONNECTIONS) {
            let content = plan.object(*object);
            let path = object_path(target, plan, *object);
            let published =
                store(&mut connection, &path, content).await.map_err(failed(format!("PUT {path}")))?;
            let expected = content.hash();
            if published.hash != expected {
                return Err(LoadError::WrongHash { key: path, got: published.hash, expected });
            }
            stored.push((*object, expected));
        }
        Ok(stored)
    });
    let stored: Vec<Vec<(u64, ContentHash)>> = lanes.buffer_unordered(SIDE_CONNECTIONS).try_collect().await?;
    for (object, hash) in stored.into_iter().flatten() {
        hashes[object as usize] = Some(hash);
    }
    Ok(hashes.into_iter().flatten().collect())
}

/// Gets a sample of what PUTs were acknowledged and checks every byte.
async fn read_back(plan: &Plan, target: &Target, load: &mut Load) -> Result<ReadBack, LoadError> {
    if plan.verify == Verify::Off || load.written.is_empty() {
        return Ok(ReadBack::default());
    }
    let mut choices = Choices::new(plan.seed, 0x7265_6164);
    let count = load.written.len().min(READ_BACK_MAX);
    for slot in 0..count {
        let other = slot as u64 + choices.below((load.written.len() - slot) as u64);
        load.written.swap(slot, other as usize);
    }
    let mut connection = connect(target, 0).await?;
    let mut tally = Tally::default();
    for (path, content) in &load.written[..count] {
        let hash = content.hash();
        let got = fetch(&mut connection, path, *content, Some(&hash), Verify::Full, &mut tally).await;
        if let Err(error) = got {
            tally.wrong(format!("{path}: {error}"));
        }
    }
    let result = ReadBack { read: count as u64, wrong: tally.wrong };
    load.tally.merge(tally);
    Ok(result)
}

/// Removes what the run put; answers with the number of contents that could not be removed.
async fn clean(
    plan: &Plan,
    target: &Target,
    objects: &[u64],
    written: &[(String, Content)],
) -> Result<u64, LoadError> {
    let prepared = objects.iter().map(|object| object_path(target, plan, *object));
    let paths: Vec<String> = prepared.chain(written.iter().map(|(path, _)| path.clone())).collect();
    let paths = &paths;
    let lanes = stream::iter(0..SIDE_CONNECTIONS).map(|lane| async move {
        let mut connection = connect(target, lane).await?;
        let mut left = 0;
        for path in paths.iter().skip(lane).step_by(SIDE_CONNECTIONS) {
            let gone = async {
                let response = connection.send(Method::DELETE, path, Outgoing::EMPTY).await?;
                read_text(response.into_body()).await
            };
            left += u64::from(gone.await.is_err());
        }
        Ok::<u64, LoadError>(left)
    });
    let left: Vec<u64> = lanes.buffer_unordered(SIDE_CONNECTIONS).try_collect().await?;
    Ok(left.iter().sum())
}
