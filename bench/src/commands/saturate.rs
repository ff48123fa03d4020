//! `bench saturate`: the highest rate at which promises are kept.

use std::path::PathBuf;

use bench::plan::{Pace, Plan};
use bench::run::{Options, run as run_once};
use bench::saturate::{Search, Step, saturate};

use super::run::{LoadArgs, TargetArgs};
use super::{Failure, tell};

/// The first rate is this share of what a closed loop reaches.
const FIRST_SHARE: f64 = 0.25;

#[derive(clap::Args)]
pub struct SaturateArgs {
    /// `--slo` is what has to be kept; `--duration` is that of one step.
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    target: TargetArgs,
    /// The first rate, in requests a second; by default a quarter of what a closed loop reaches.
    #[arg(long)]
    from: Option<f64>,
    /// A rate that is not passed.
    #[arg(long, default_value_t = 1e6)]
    to: f64,
    /// The search ends when the kept and the broken rate are this close, as a share.
    #[arg(long, default_value_t = 0.05)]
    resolution: f64,
    /// How often what was found is measured again.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Write the result as one JSON object to a file, or to standard output with -.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub async fn run(args: &SaturateArgs) -> Result<bool, Failure> {
    let (target, plan, options) = (args.target.target()?, args.load.plan()?, args.load.options());
    let slos = options.slos.clone();
    if slos.is_empty() {
        return Err("a promise is needed to be kept: give --slo, as in --slo 'get.p99<50ms'".into());
    }
    if !(args.resolution > 0.0 && args.resolution.is_finite() && args.to > 0.0 && args.repeats > 0) {
        return Err("--resolution, --to and --repeats must be above 0".into());
    }
    let quiet = |_: &str| {};
    let say = |what: &str| eprintln!("bench: {what}");
    // Each step has contents of its own, so that nothing is there already.
    let mut seed = plan.seed;
    let mut next_plan = |pace| {
        seed += 1;
        Plan { pace, seed, ..plan.clone() }
    };
    let from = match args.from {
        Some(from) if from > 0.0 && from.is_finite() => from,
        Some(_) => return Err("--from must be above 0".into()),
        None => {
            say("a closed loop, to know where to begin");
            let outcome = run_once(next_plan(Pace::Closed), &target, &options, quiet).await?;
            let requests = outcome.load.tally.total(None).requests;
            (requests as f64 / outcome.load.elapsed.as_secs_f64() * FIRST_SHARE).max(1.0)
        }
    };
    // What a step promised is judged here, not by the run.
    let options = Options { slos: Vec::new(), ..options };
    let search = Search { from, to: args.to, resolution: args.resolution, repeats: args.repeats };
    let found = saturate(search, plan.duration, &slos, async |phase, rate| {
        let plan = next_plan(Pace::Open { rate, arrivals: args.load.arrivals() });
        let outcome = run_once(plan, &target, &options, quiet).await?;
        let mut step = Step::of(phase, rate, &outcome.plan, &outcome.load, &slos);
        if let Some(billing) = outcome.reconciliation.as_ref().filter(|billing| !billing.agrees) {
            step.breaks(billing.verdict.clone());
        }
        let result = if step.kept { "kept".to_owned() } else { format!("broken: {}", step.broke.join("; ")) };
        say(&format!("{rate:.0}/s: {result}"));
        Ok::<Step, bench::run::RunError>(step)
    });
    let found = found.await?;
    tell(&found, &found.to_text(), args.json.as_deref())?;
    Ok(found.passed())
}
