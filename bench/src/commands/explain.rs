//! `bench explain`: what the limit of a run was.

use std::path::PathBuf;

use bench::explain::explain;
use bench::report::output;

use super::{Failure, tell};

#[derive(clap::Args)]
pub struct ExplainArgs {
    /// A report that was kept with -o FILE.json or --json FILE.
    report: PathBuf,
    /// Write the result as one JSON object to a file, or to standard output with -.
    #[arg(long, value_name = "FILE", default_missing_value = "-", num_args = 0..=1)]
    json: Option<PathBuf>,
}

pub fn run(args: &ExplainArgs) -> Result<bool, Failure> {
    let found = explain(&output::read(&args.report)?);
    tell(&found, &found.to_text(), args.json.as_deref())?;
    Ok(true)
}
