//! `bench report`: a kept report in other forms.

use std::path::PathBuf;

use bench::report::output::{self, Output};

#[derive(clap::Args)]
pub struct ReportArgs {
    /// A report that was kept with -o FILE.json.
    file: PathBuf,
    /// A file to write; its ending, .json, .csv, .md or .html, says how. Without one the tables are shown.
    #[arg(short, long = "output", value_name = "FILE")]
    outputs: Vec<Output>,
}

/// Answers whether the run passed, so that what was kept can be judged again.
#[expect(clippy::print_stdout, reason = "the tables are what the command is for")]
pub fn run(args: &ReportArgs) -> Result<bool, Box<dyn std::error::Error>> {
    let report = output::read(&args.file)?;
    for output in &args.outputs {
        output.write(&report)?;
    }
    if args.outputs.is_empty() {
        println!("{}", report.to_text());
    }
    Ok(report.passed)
}
