//! `bench run`: one workload against one target.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bench::plan::{Op, Pace, Plan, Verify, parse_duration};
use bench::progress::Progress;
use bench::report::Report;
use bench::run::{Options, run};
use bench::schedule::Arrivals;
use bench::slo::Slo;
use bench::target::{Endpoints, Target};
use bench::visit::Card;
use bench::workload::presets::Preset;
use bench::workload::trace::Trace;
use bench::workload::{Bytes, Mix, Popularity, Size, Workload};
use clap::ValueEnum;
use common::config::parse_bytes;

use super::observe::ObserveArgs;
use super::warmup::Warmup;
use super::{Failure, half_the_cores, random_seed, tell};

const DURATION: Duration = Duration::from_secs(10);

/// What clients do, where it is one operation or two.
#[derive(Clone, Copy, ValueEnum)]
enum OneOp {
    Get,
    Put,
    /// GET and PUT by `--get-share`.
    Mixed,
}

#[derive(clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    observe: ObserveArgs,
    /// Write the result as one JSON object to a file, or to standard output with -.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is asked for, how fast, and what has to hold.
#[derive(clap::Args)]
pub struct LoadArgs {
    preset: Option<Preset>,
    #[command(flatten)]
    workload: WorkloadArgs,
    #[arg(long)]
    connections: Option<usize>,
    /// Open loop: requests a second, whatever the answers do. Without it, each connection sends its next
    /// request when it has its answer.
    #[arg(long, conflicts_with = "trace")]
    rate: Option<f64>,
    #[arg(long, default_value = "poisson")]
    arrivals: Arrivals,
    /// Replays a trace of lines `time id size` (seconds, a number, bytes), in place of the workload: as long as it lasts
    /// unless --duration is shorter.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// At 2 the trace's time passes twice as fast.
    #[arg(long, default_value_t = 1.0, requires = "trace")]
    time_scale: f64,
    /// Open loop: most requests waiting or being served; more are dropped and counted.
    #[arg(long, default_value_t = 10_000)]
    in_flight: u64,
    /// Of the measured part; 10s by default.
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// A time, or auto: until the share of hits and the median have stopped moving, for a minute at most.
    #[arg(long, default_value = "2s")]
    warmup: Warmup,
    /// Longest time for one request.
    #[arg(long, value_parser = parse_duration, default_value = "60s")]
    request_time: Duration,
    #[arg(long, default_value = "full", default_missing_value = "full", num_args = 0..=1)]
    verify: Verify,
    /// Repeats a run exactly. By default each run has its own, so that no content was there before.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads of the load generator; by default half the cores.
    #[arg(long)]
    threads: Option<usize>,
    /// A process to account for; by default those that listen on the system's ports.
    #[arg(long = "pid")]
    pids: Vec<u32>,
    /// A promise, as in get.p99<50ms, put.rate>500 or all.errors<1; exit 2 if it is not kept.
    #[arg(long = "slo")]
    slos: Vec<Slo>,
    /// Leave the contents of the run where they are.
    #[arg(long)]
    keep: bool,
}

/// What is driven.
#[derive(clap::Args)]
pub struct TargetArgs {
    /// `native` (see --endpoints), s3://KEY:SECRET@HOST:PORT/BUCKET (with ?region=NAME if it has one) or
    /// http://HOST:PORT/PREFIX
    #[arg(long, value_name = "TARGET", default_value = "native")]
    target: String,
    /// The folder that a plain HTTP server serves at the target's prefix: objects are written to it as files.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The `endpoints.json` of the system to load.
    #[arg(
        long,
        env = "DOZO_ENDPOINTS",
        default_value = "dozo-data/endpoints.json",
        conflicts_with = "endpoint"
    )]
    endpoints: PathBuf,
    /// A gateway's address instead; billing is then not compared.
    #[arg(long, value_name = "URL", requires = "token")]
    endpoint: Option<String>,
    /// The client's bearer token, with --endpoint.
    #[arg(long)]
    token: Option<String>,
    /// The client to act as, at its home site.
    #[arg(long = "as", value_name = "CLIENT", default_value = "bob")]
    client: String,
    /// Publishes what collect asks for: a client of another site; the first one of endpoints.json by default.
    #[arg(long, value_name = "CLIENT", conflicts_with = "endpoint")]
    provider: Option<String>,
    /// The client's card, with which it roams: a file as `dozo card new FILE --client CLIENT` makes it; by default
    /// cards/CLIENT.card beside endpoints.json, where the demo has one for carol.
    #[arg(long, value_name = "FILE", conflicts_with = "endpoint")]
    card: Option<PathBuf>,
}

impl TargetArgs {
    pub fn target(&self) -> Result<Target, Failure> {
        Ok(match (self.target.as_str(), &self.endpoint, &self.token) {
            ("native", Some(url), Some(token)) => Target::at(url, &self.client, token),
            ("native", ..) => self.at_home()?,
            (other, ..) => Target::parse(other, self.root.clone())?,
        })
    }

    fn at_home(&self) -> Result<Target, Failure> {
        let endpoints = Endpoints::read(&self.endpoints)?;
        let mut target = Target::of(&endpoints, &self.client)?;
        if let Some(provider) = &self.provider {
            target = target.with_provider(&endpoints, provider)?;
        }
        let beside = self.endpoints.with_file_name("cards").join(format!("{}.card", self.client));
        if let Some(card) = self.card.clone().or_else(|| beside.exists().then_some(beside)) {
            target = target.with_card(&endpoints, Card::read(&card)?)?;
        }
        Ok(target)
    }
}

/// What is asked for; each flag wins over the preset and over the file.
#[derive(clap::Args)]
pub struct WorkloadArgs {
    /// A workload in TOML.
    #[arg(long = "workload", value_name = "FILE", conflicts_with = "preset")]
    file: Option<PathBuf>,
    /// One operation, or GET and PUT.
    #[arg(long = "op", conflicts_with = "mix")]
    op: Option<OneOp>,
    /// Share of GETs with --op mixed.
    #[arg(long, default_value_t = 0.8)]
    get_share: f64,
    /// Weights of operations, as in get=70,head=5,range=5,put=15,delete=3,list=2; multipart at S3 endpoints alone. In a
    /// system of several sites also collect, a GET of what another site published a moment ago (see --provider), and
    /// roam, a GET at a site that the client visits (see --card).
    #[arg(long)]
    mix: Option<Mix>,
    /// One size, a list that objects are chosen from, or a law: 4KiB,1MiB; uniform:min=1KiB,max=1MiB;
    /// lognormal:median=26KiB,sigma=1.4,max=16MiB; pareto:min=4KiB,alpha=1.2,max=1GiB
    #[arg(long)]
    size: Option<Size>,
    /// uniform; zipf:alpha=0.9; hotspot:objects=0.01,requests=0.9; latest:alpha=0.99; drifting:alpha=0.9,every_s=10
    #[arg(long)]
    popularity: Option<Popularity>,
    /// Objects that are prepared, and that reads choose from.
    #[arg(long)]
    objects: Option<u64>,
    /// Share of reads of objects that nobody asked for before and nobody will again.
    #[arg(long)]
    one_hit_ratio: Option<f64>,
    /// Objects prepared for these reads; by default as many as an open loop will need.
    #[arg(long)]
    one_hit_objects: Option<u64>,
    /// Share of PUTs whose bytes the site has already.
    #[arg(long)]
    dup_ratio: Option<f64>,
    /// Length of the pieces of downloads in ranges.
    #[arg(long, value_parser = |text: &str| parse_bytes(text))]
    range: Option<u64>,
}

impl WorkloadArgs {
    /// The workload, and over how many connections unless that is told.
    pub fn workload(&self, preset: Option<Preset>) -> Result<(Workload, usize), Failure> {
        /// For a workload of a file, which does not say.
        const CONNECTIONS: usize = 64;
        let (mut workload, connections) = match &self.file {
            Some(file) => (Workload::read(file)?, CONNECTIONS),
            None => preset.unwrap_or(Preset::Get4k).workload(),
        };
        match (&self.mix, self.op) {
            (Some(mix), _) => workload.mix = mix.clone(),
            (None, Some(OneOp::Get)) => workload.mix = Mix::of([(Op::Get, 1.0)]),
            (None, Some(OneOp::Put)) => workload.mix = Mix::of([(Op::Put, 1.0)]),
            (None, Some(OneOp::Mixed)) => workload.mix = Mix::reads_and_writes(self.get_share),
            // As before there were workloads: the preset's mix, in the given shares.
            (None, None) if matches!(preset, Some(Preset::Mixed)) => {
                workload.mix = Mix::reads_and_writes(self.get_share);
            }
            (None, None) => {}
        }
        if let Some(size) = &self.size {
            workload.size = size.clone();
        }
        if let Some(popularity) = &self.popularity {
            workload.popularity = popularity.clone();
        }
        workload.objects = self.objects.unwrap_or(workload.objects);
        workload.one_hit_ratio = self.one_hit_ratio.unwrap_or(workload.one_hit_ratio);
        workload.one_hit_objects = self.one_hit_objects.or(workload.one_hit_objects);
        workload.dup_ratio = self.dup_ratio.unwrap_or(workload.dup_ratio);
        workload.range = self.range.map_or(workload.range, Bytes);
        workload.check()?;
        Ok((workload, connections))
    }
}

impl RunArgs {
    pub async fn run(&self) -> Result<bool, Failure> {
        let target = self.target.target()?;
        let plan = self.load.plan()?;
        let progress = Arc::new(Progress::default());
        let options = Options {
            events: self.observe.events()?,
            progress: Some(progress.clone()),
            agents: self.observe.agents()?,
            ..self.load.options()
        };
        let live = self.observe.show(&plan, &progress)?;
        let outcome = tokio::select! {
            outcome = run(plan, &target, &options, |what| eprintln!("bench: {what}")) => outcome?,
            // What was paused goes on; contents of the run stay.
            _ = tokio::signal::ctrl_c() => return Err("interrupted: there is no result".into()),
        };
        drop(live);
        let report = Report::of(outcome);
        self.observe.write(&report)?;
        tell(&report, &report.to_text(), self.json.as_deref())?;
        Ok(report.passed)
    }
}

impl LoadArgs {
    pub fn arrivals(&self) -> Arrivals {
        self.arrivals
    }

    /// Everything of a run beside its plan, but events.
    pub fn options(&self) -> Options {
        Options {
            slos: self.slos.clone(),
            pids: self.pids.clone(),
            keep: self.keep,
            warm_up_seconds_max: self.warmup.seconds_max().filter(|_| self.trace.is_none()),
            ..Options::default()
        }
    }

    pub fn plan(&self) -> Result<Plan, Failure> {
        let (workload, connections) = self.workload.workload(self.preset)?;
        let positive = |what: &str, good: bool| {
            if good { Ok(()) } else { Err(format!("{what} must be above 0")) }
        };
        positive("--time-scale", self.time_scale > 0.0 && self.time_scale.is_finite())?;
        let trace = match &self.trace {
            Some(path) => Some(Trace::read(path, self.time_scale)?),
            None => None,
        };
        let pace = match (&trace, self.rate) {
            (Some(_), _) => Pace::Trace { time_scale: self.time_scale },
            (None, Some(rate)) => Pace::Open { rate, arrivals: self.arrivals },
            (None, None) => Pace::Closed,
        };
        // The last request of a trace belongs to it.
        let length = trace.as_ref().map_or(DURATION, |trace| trace.length() + Duration::from_millis(1));
        let plan = Plan {
            workload,
            connections: self.connections.unwrap_or(connections),
            threads: self.threads.unwrap_or_else(half_the_cores),
            pace,
            in_flight_max: self.in_flight,
            // All of a trace is measured.
            warmup: if trace.is_some() { Duration::ZERO } else { self.warmup.plan() },
            duration: self
                .duration
                .map_or(length, |asked| if trace.is_some() { asked.min(length) } else { asked }),
            trace: trace.map(Arc::new),
            request_time_max: self.request_time,
            verify: self.verify,
            seed: self.seed.unwrap_or_else(random_seed),
        };
        positive("--connections", plan.connections > 0)?;
        positive("--duration", !plan.duration.is_zero())?;
        positive("--rate", self.rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()))?;
        Ok(plan)
    }
}
