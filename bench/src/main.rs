//! The command line of the load harness. Exit 0: all checks held; 1: the run could not be done; 2: wrong bytes,
//! wrong bookings or a broken promise (or wrong usage).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bench::billing::BillingPlan;
use bench::collect::{self, CollectArgs};
use bench::dedup;
use bench::device::{self, DeviceOp, DevicePlan};
use bench::growth::{self, GrowthPlan, Step};
use bench::mixed::{MixedLoad, MixedPlan, MixedTarget};
use bench::placement::{self, PlacementPlan};
use bench::plan::parse_duration;
use bench::search::{self, SearchPlan};
use bench::target::Endpoints;
use bench::traffic::command::TrafficArgs;
use clap::{Parser, Subcommand};
use common::auth::ClusterSecret;
use common::config::parse_bytes;

use commands::agent::AgentArgs;
use commands::report::ReportArgs;
use commands::run::RunArgs;
use commands::{Failure, half_the_cores, parse_sizes, random_seed, tell};

mod commands;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long a closed loop runs to find out what its rate is.
const CALIBRATION: Duration = Duration::from_secs(10);

/// Loads a running Dozo, checks every byte and every booking, and says how fast it was. Without a sub-command: the
/// canonical run of a minute.
#[derive(Parser)]
#[command(name = "bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Drives a workload over HTTP/1.1: a preset, a file or flags; at Dozo, at any S3 endpoint or at any HTTP server.
    Run(Box<RunArgs>),
    /// Tells of two reports of `run` what became better or worse, with intervals; exit 2 if anything is worse.
    Diff(commands::diff::DiffArgs),
    /// Runs one workload against several targets in turns and tells how they differ, with intervals.
    Compare(Box<commands::compare::CompareArgs>),
    /// Finds the highest rate at which promises are kept, and how sure that is.
    Saturate(Box<commands::saturate::SaturateArgs>),
    /// Tells in words what the limit of a run was, from its report.
    Explain(commands::explain::ExplainArgs),
    /// Drives PUT, GET, ranges, HEAD, LIST and DELETE and checks every answer, while something else happens to the
    /// system: exit 2 if one request fails, one byte or listing is wrong, or one delivery is not booked once.
    Mixed(MixedArgs),
    /// Adds a storage node under load, kills it, drains it: times, bytes moved, and what users feel.
    Growth(GrowthArgs),
    /// Cuts and hashes files as a gateway does and tells what of them would be stored; nothing is.
    Dedup(DedupArgs),
    /// Computes how evenly placement fills nodes, what a change moves, and what ranking costs.
    Placement(PlacementArgs),
    /// Drives a node's chunk store directly, without the network.
    Device(DeviceArgs),
    /// Simulates what delivering costs a network with hop counts: from one server, between clients, and from sites
    /// that collect from each other.
    Traffic(Box<TrafficArgs>),
    /// Publishes contents at one site and reads them at another: first bytes and totals of what is held, of what is
    /// collected, and while it comes in; exit 2 if the first byte of what is collected comes too late.
    Collect(CollectArgs),
    /// Announces many contents to search and looks them up: rates, times, and what they cost.
    Search(SearchArgs),
    /// Sends load for a `bench run` that names this machine with --agent.
    Agent(AgentArgs),
    /// Writes a kept report in other forms: a page with pictures, Markdown, CSV.
    Report(ReportArgs),
    /// The ledger alone: deliveries booked a second, what comes twice, the close of a month
    Billing(BillingArgs),
}

/// An alias, so that clap takes the whole list as one value.
type Sizes = Vec<u64>;

#[derive(clap::Args)]
struct MixedArgs {
    /// The `endpoints.json` of the system to load.
    #[arg(long, env = "DOZO_ENDPOINTS", default_value = "dozo-data/endpoints.json")]
    endpoints: PathBuf,
    #[arg(long, default_value = "tokyo")]
    site: String,
    /// Clients to act as, at home at the site; all of them if none is named.
    #[arg(long = "as", value_name = "CLIENT", value_delimiter = ',')]
    clients: Vec<String>,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Contents that are put once and read by all.
    #[arg(long, default_value_t = 200)]
    objects: u64,
    /// Keys that each connection writes, overwrites and deletes.
    #[arg(long, default_value_t = 32)]
    keys: usize,
    /// One size, or a list that contents take in turn: 4KiB,1MiB.
    #[arg(long = "size", value_parser = parse_sizes, default_value = "4KiB,64KiB,300KiB,3MiB")]
    sizes: Sizes,
    /// Open loop: requests a second, whatever the answers do.
    #[arg(long)]
    rate: Option<f64>,
    /// Open loop at this share of what a closed loop reaches in its first ten seconds, as in 0.7.
    #[arg(long, conflicts_with = "rate")]
    share: Option<f64>,
    #[arg(long, value_parser = parse_duration, default_value = "60s")]
    duration: Duration,
    /// Every line of standard input begins a phase of that name; the load ends with the input, not by its duration.
    #[arg(long)]
    phases: bool,
    /// Longest time for one request.
    #[arg(long, value_parser = parse_duration, default_value = "60s")]
    request_time: Duration,
    /// How long the books may take to agree after the last delivery.
    #[arg(long, value_parser = parse_duration, default_value = "30s")]
    books_time: Duration,
    /// Repeats the choices of a run.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads of the load generator; by default half the cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Leave the contents of the load in their buckets.
    #[arg(long)]
    keep: bool,
    /// Write the result as one JSON object to a file, or to standard output with -.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(clap::Args)]
struct GrowthArgs {
    /// The `endpoints.json` of the system, which runs on this machine.
    #[arg(long, env = "DOZO_ENDPOINTS", default_value = "dozo-data/endpoints.json")]
    endpoints: PathBuf,
    #[arg(long, default_value = "tokyo")]
    site: String,
    /// In this order; `kill` and `drain` are done to the node that `add` added.
    #[arg(long, value_delimiter = ',', default_value = "add,kill,drain")]
    steps: Vec<Step>,
    /// The binary to start nodes with.
    #[arg(long, default_value = "dozo")]
    dozo: PathBuf,
    /// The cluster's secret; by default the file beside `endpoints.json`.
    #[arg(long, value_name = "FILE")]
    cluster_secret_file: Option<PathBuf>,
    /// Where the new node keeps its data; a temporary folder by default.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    #[arg(long, default_value = "5GiB")]
    node_size: String,
    /// Share of the closed loop's rate that users ask for meanwhile.
    #[arg(long, default_value_t = 0.7)]
    share: f64,
    /// Length of the phases before and after each step, and of the time that a killed node is away.
    #[arg(long, value_parser = parse_duration, default_value = "20s")]
    phase: Duration,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Contents that are put once before: what there is to move.
    #[arg(long, default_value_t = 1000)]
    objects: u64,
    #[arg(long = "size", value_parser = parse_sizes, default_value = "4KiB,64KiB,300KiB,3MiB")]
    sizes: Sizes,
    /// Write the result as one JSON object to a file, or to standard output with -.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(clap::Args)]
struct DedupArgs {
    /// Files and folders, in the order in which they would be stored: versions of the same, say.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Write the result as one JSON object to a file, or to standard output with -.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(clap::Args)]
struct PlacementArgs {
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Chunks that are ranked.
    #[arg(long, default_value_t = 1_000_000)]
    sample: u32,
    /// Chunks that they stand for.
    #[arg(long, default_value_t = 100_000_000)]
    chunks: u64,
    /// Write the result as one JSON object to a file, or to standard output with -.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(clap::Args)]
struct DeviceArgs {
    /// file:/path?size=20GiB, device:/dev/nvme1n1, dir:/path, memory: or s3://bucket/prefix?endpoint=URL
    #[arg(long)]
    store: String,
    #[arg(long, value_parser = |text: &str| parse_bytes(text), default_value = "64KiB")]
    block: u64,
    /// Operations in flight.
    #[arg(long, default_value_t = 32)]
    depth: usize,
    #[arg(long, default_value = "randread")]
    op: DeviceOp,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Bytes written before random reads begin.
    #[arg(long, value_parser = |text: &str| parse_bytes(text), default_value = "1GiB")]
    span: u64,
    /// Chunks that the store has, with --op open.
    #[arg(long, default_value_t = 1_000_000)]
    chunks: u64,
    /// Where the store keeps what is not in it; a temporary folder by default.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// One JSON object instead of a line of text.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct BillingArgs {
    /// service or content
    #[arg(long, default_value = "service", value_parser = ["service", "content"])]
    fee: String,
    /// An empty PostgreSQL database instead of an SQLite file: postgres://USER@HOST/NAME
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Folder for the SQLite file; a temporary one otherwise.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..))]
    deliveries: u64,
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    clients: u64,
    /// Records in a batch.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=4096))]
    batch: u64,
    /// Nodes that send at the same time, each one batch after the other.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    nodes: u16,
}

#[derive(clap::Args)]
struct SearchArgs {
    /// A search that runs, empty; one is started and ended otherwise.
    #[arg(long, value_name = "URL", requires = "cluster_secret_file", conflicts_with = "database")]
    search: Option<String>,
    /// File with the cluster's secret, with --search.
    #[arg(long, value_name = "FILE")]
    cluster_secret_file: Option<PathBuf>,
    /// An empty PostgreSQL database for the search that is started: postgres://USER@HOST/NAME
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// The program that is started.
    #[arg(long, value_name = "FILE", default_value = "target/release/dozo")]
    dozo: PathBuf,
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    contents: u64,
    /// Announcements in a batch.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=4096))]
    batch: u64,
    /// Nodes that announce, and clients that look up, at the same time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1024))]
    connections: u64,
    /// How long each question is asked.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// One JSON object instead of lines of text.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let Some(command) = cli.command else {
        return done(runtime.block_on(commands::canonical::run()));
    };
    let result = match command {
        Command::Run(args) => runtime.block_on(args.run()),
        Command::Diff(args) => commands::diff::run(&args),
        Command::Compare(args) => runtime.block_on(commands::compare::run(&args)),
        Command::Saturate(args) => runtime.block_on(commands::saturate::run(&args)),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Mixed(args) => run_mixed(args),
        Command::Growth(args) => run_growth(args),
        Command::Dedup(args) => run_dedup(&args),
        Command::Placement(args) => run_placement(args),
        Command::Device(args) => runtime.block_on(run_device(args)),
        Command::Traffic(args) => run_traffic(&args),
        Command::Collect(args) => runtime.block_on(run_collect(args)),
        Command::Search(args) => runtime.block_on(run_search(args)),
        Command::Agent(args) => runtime.block_on(commands::agent::run(args)),
        Command::Report(args) => commands::report::run(&args),
        Command::Billing(args) => runtime.block_on(run_billing(args)),
    };
    done(result)
}

fn done(result: Result<bool, Failure>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => fail(&*error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("bench: {}", common::error::chain(error));
    ExitCode::FAILURE
}

fn run_mixed(args: MixedArgs) -> Result<bool, Failure> {
    let target = MixedTarget::of(&Endpoints::read(&args.endpoints)?, &args.site, &args.clients)?;
    let plan = MixedPlan {
        workers: args.connections,
        stable: args.objects,
        keys_per_worker: args.keys,
        sizes_bytes: args.sizes,
        threads: args.threads.unwrap_or_else(half_the_cores),
        request_time_max: args.request_time,
        books_time_max: args.books_time,
        seed: args.seed.unwrap_or_else(random_seed),
        keep: args.keep,
    };
    eprintln!("bench: preparing {} objects", plan.stable);
    let load = MixedLoad::start(&target, plan)?;
    let rate = match args.share {
        Some(share) => Some(load.requests_per_s(CALIBRATION) * share),
        None => args.rate,
    };
    if let Some(rate) = rate.filter(|rate| *rate > 0.0) {
        eprintln!("bench: {rate:.0} requests a second from now on");
        load.set_rate(rate)?;
        load.mark("before");
    }
    if args.phases {
        for phase in std::io::stdin().lines() {
            load.mark(phase?.trim());
        }
    } else {
        std::thread::sleep(args.duration);
    }
    eprintln!("bench: reading everything back, comparing deliveries with bookings");
    let report = load.stop()?;
    tell(&report, &report.to_text(), args.json.as_deref())?;
    Ok(report.passed)
}

fn run_growth(args: GrowthArgs) -> Result<bool, Failure> {
    let beside = args.endpoints.with_file_name("cluster-secret");
    let temporary = std::env::temp_dir().join(format!("bench-growth-{}", std::process::id()));
    let data_dir = args.data_dir.clone().unwrap_or_else(|| temporary.clone());
    let plan = GrowthPlan {
        site: args.site,
        steps: args.steps,
        dozo: args.dozo,
        secret_file: args.cluster_secret_file.unwrap_or(beside),
        data_dir,
        node_size: args.node_size,
        share: args.share,
        calibration: CALIBRATION,
        phase: args.phase,
        load: MixedPlan {
            workers: args.connections,
            stable: args.objects,
            keys_per_worker: 32,
            sizes_bytes: args.sizes,
            threads: half_the_cores(),
            request_time_max: Duration::from_secs(60),
            books_time_max: Duration::from_secs(60),
            seed: random_seed(),
            // The last node may be gone when it would be cleaned.
            keep: true,
        },
    };
    let done = growth::run(plan, Endpoints::read(&args.endpoints)?, |what| eprintln!("bench: {what}"));
    if args.data_dir.is_none() && done.is_ok() {
        std::fs::remove_dir_all(&temporary)?;
    }
    let report = done?;
    tell(&report, &report.to_text(), args.json.as_deref())?;
    Ok(report.load.passed)
}

fn run_dedup(args: &DedupArgs) -> Result<bool, Failure> {
    let report = dedup::run(&args.paths)?;
    tell(&report, &report.to_text(), args.json.as_deref())?;
    Ok(true)
}

fn run_placement(args: PlacementArgs) -> Result<bool, Failure> {
    if args.nodes < 2 || args.sample == 0 {
        return Err("--nodes must be above 1, --sample above 0".into());
    }
    let plan = PlacementPlan { nodes: args.nodes, sample: args.sample, chunks: args.chunks };
    let report = placement::run(plan, |what| eprintln!("bench: {what}"))?;
    tell(&report, &report.to_text(), args.json.as_deref())?;
    Ok(true)
}

fn run_traffic(args: &TrafficArgs) -> Result<bool, Failure> {
    if args.real {
        let report = args.run_real(|what| eprintln!("bench: {what}"))?;
        tell(&report, &report.text(), args.json.as_deref())?;
        return Ok(true);
    }
    let report = args.run()?;
    tell(&report, &report.text(), args.json.as_deref())?;
    Ok(true)
}

async fn run_collect(args: CollectArgs) -> Result<bool, Failure> {
    let report = collect::run(&args, random_seed(), |what| eprintln!("bench: {what}")).await?;
    tell(&report, &report.to_text(), args.json.as_deref())?;
    Ok(report.passed)
}

#[expect(clippy::print_stdout, reason = "the result is what the command is for")]
async fn run_device(args: DeviceArgs) -> Result<bool, Failure> {
    let plan = DevicePlan {
        store: args.store,
        block: args.block,
        depth: args.depth,
        op: args.op,
        duration: Duration::try_from_secs_f64(args.seconds)?,
        span: args.span,
        chunks: args.chunks,
        data_dir: args.data_dir,
    };
    let result = device::run(&plan).await?;
    if args.json {
        println!("{}", serde_json::to_string(&result)?);
    } else {
        println!(
            "{:.0} operations/s, {:.1} MiB/s, p50 {:.0} us, p99 {:.0} us",
            result.ops_per_s, result.mib_per_s, result.p50_us, result.p99_us
        );
    }
    Ok(true)
}

#[expect(clippy::print_stdout, reason = "the result is what the command is for")]
async fn run_billing(args: BillingArgs) -> Result<bool, Failure> {
    let BillingArgs { fee, database, data_dir, deliveries, clients, batch, nodes } = args;
    let fee = if fee == "content" { billing::Fee::Content } else { billing::Fee::Service };
    let plan = BillingPlan { fee, database, data_dir, deliveries, clients, batch, nodes };
    println!("{}", serde_json::to_string(&bench::billing::run(plan).await?)?);
    Ok(true)
}

#[expect(clippy::print_stdout, reason = "the result is what the command is for")]
async fn run_search(args: SearchArgs) -> Result<bool, Failure> {
    let running = match (args.search, args.cluster_secret_file) {
        (Some(url), Some(file)) => Some((url, ClusterSecret::new(&std::fs::read_to_string(file)?)?)),
        _ => None,
    };
    let plan = SearchPlan {
        running,
        dozo: args.dozo,
        database: args.database,
        contents: args.contents,
        batch: args.batch,
        connections: args.connections,
        duration: Duration::try_from_secs_f64(args.seconds)?,
    };
    let result = search::run(plan).await?;
    if args.json {
        println!("{}", serde_json::to_string(&result)?);
    } else {
        print!("{}", search::show(&result));
    }
    Ok(true)
}
