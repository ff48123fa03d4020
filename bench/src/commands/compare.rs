//! `bench compare`: several targets in turns.

use std::path::PathBuf;

use bench::compare::{Comparison, Contender, compare};
use bench::report::Report;
use bench::target::{Endpoints, Target};

use super::diff::MethodArgs;
use super::run::LoadArgs;
use super::{Failure, tell};

#[derive(clap::Args)]
pub struct CompareArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// A target and what it is called, twice or more; the others are compared with the first. NAME=FILE takes the
    /// `endpoints.json` of a system, NAME=s3://KEY:SECRET@HOST:PORT/BUCKET an S3 endpoint, NAME=http://HOST:PORT/PREFIX
    /// any HTTP server, or a gateway if --token is given and no --root of that name.
    #[arg(long = "target", value_name = "NAME=TARGET", required = true)]
    targets: Vec<String>,
    /// The client to act as.
    #[arg(long = "as", value_name = "CLIENT", default_value = "bob")]
    client: String,
    /// The client's bearer token at gateways that are given by address.
    #[arg(long)]
    token: Option<String>,
    /// The folder that a plain HTTP server serves at its prefix: objects are written to it as files.
    #[arg(long = "root", value_name = "NAME=DIR")]
    roots: Vec<String>,
    /// Rounds in which each target runs once. From four on it is known how much runs differ by themselves.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    #[command(flatten)]
    method: MethodArgs,
    /// Exit 2 also if a target is worse than the first.
    #[arg(long)]
    gate: bool,
    /// Folder for the report of each run; `bench-compare-SEED` by default.
    #[arg(long, value_name = "DIR")]
    reports: Option<PathBuf>,
    /// A file for the comparison, more than one if wanted; its ending, .json, .md or .html, says how.
    #[arg(short, long = "output", value_name = "FILE", value_parser = parse_output)]
    outputs: Vec<PathBuf>,
    /// Write the result as one JSON object to a file, or to standard output with -.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn parse_output(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("json" | "md" | "html") => Ok(path),
        _ => Err(format!("{text:?} must end with .json, .md or .html")),
    }
}

impl CompareArgs {
    fn contender(&self, text: &str) -> Result<Contender, Failure> {
        let form = || {
            format!("{text:?} is not a target: write NAME=FILE, NAME=s3://… or NAME=http://HOST:PORT/PREFIX")
        };
        let (name, target) = text.split_once('=').filter(|(name, _)| is_name(name)).ok_or_else(form)?;
        let roots = self.roots.iter().filter_map(|root| root.split_once('='));
        let root = roots.filter(|(of, _)| *of == name).map(|(_, folder)| folder.into()).next();
        let target = match (target.split_once("://"), &self.token) {
            (Some(("http", _)), Some(token)) if root.is_none() => Target::at(target, &self.client, token),
            (Some(_), _) => Target::parse(target, root)?,
            (None, _) => Target::of(&Endpoints::read(target.as_ref())?, &self.client)?,
        };
        Ok(Contender { name: name.to_owned(), target })
    }

    fn write(&self, comparison: &Comparison) -> Result<(), Failure> {
        for path in &self.outputs {
            let text = match path.extension().and_then(|ending| ending.to_str()) {
                Some("json") => serde_json::to_string_pretty(comparison)? + "\n",
                Some("html") => comparison.to_html(),
                _ => comparison.to_markdown(),
            };
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }
}

/// Names become parts of file names.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.chars().all(allowed) && !name.starts_with('.')
}

pub async fn run(args: &CompareArgs) -> Result<bool, Failure> {
    let contenders =
        args.targets.iter().map(|target| args.contender(target)).collect::<Result<Vec<_>, _>>()?;
    let plan = args.load.plan()?;
    let folder = args.reports.clone().unwrap_or_else(|| format!("bench-compare-{:x}", plan.seed).into());
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let keep = |name: &str, round: usize, report: &Report| {
        let json = serde_json::to_vec_pretty(report).map_err(std::io::Error::from)?;
        std::fs::write(folder.join(format!("{name}-{round}.json")), json)
    };
    let say = |what: &str| eprintln!("bench: {what}");
    let (options, method) = (args.load.options(), args.method.method());
    let comparison = compare(&plan, &contenders, args.pairs, &options, method, say, keep).await?;
    say(&format!("the report of each run is in {}", folder.display()));
    args.write(&comparison)?;
    tell(&comparison, &comparison.to_text(), args.json.as_deref())?;
    Ok(comparison.sound() && !(args.gate && comparison.any_worse()))
}
