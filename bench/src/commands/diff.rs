//! `bench diff`: two reports against each other.

use std::path::PathBuf;

use bench::diff::diff;
use bench::report::output;
use bench::statistics::contrast::{MARGIN, Method};

use super::{Failure, tell};

#[derive(clap::Args)]
pub struct DiffArgs {
    /// A report that was kept with -o FILE.json or --json FILE.
    before: PathBuf,
    after: PathBuf,
    #[command(flatten)]
    method: MethodArgs,
    /// Compare runs of different workloads or machines all the same.
    #[arg(long)]
    force: bool,
    /// Write the result as one JSON object to a file, or to standard output with -.
    #[arg(long, value_name = "FILE", default_missing_value = "-", num_args = 0..=1)]
    json: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct MethodArgs {
    /// Differences up to this share are none.
    #[arg(long, default_value_t = MARGIN, value_parser = parse_share)]
    margin: f64,
    /// Of the draws that intervals come from; the same seed gives the same intervals.
    #[arg(long, default_value_t = 1)]
    draws_seed: u64,
}

impl MethodArgs {
    pub fn method(&self) -> Method {
        Method { margin: self.margin, seed: self.draws_seed, ..Method::default() }
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is not a share from 0 to 1, as in 0.03"))
}

pub fn run(args: &DiffArgs) -> Result<bool, Failure> {
    let (before, after) = (output::read(&args.before)?, output::read(&args.after)?);
    let found = diff(&before, &after, args.method.method(), args.force)?;
    tell(&found, &found.to_text(), args.json.as_deref())?;
    Ok(found.passed())
}
