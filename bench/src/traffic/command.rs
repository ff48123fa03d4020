//! `bench traffic`: its flags, and what it does with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::config::parse_bytes;

use crate::plan::parse_duration;
use crate::traffic::model::Rules;
use crate::traffic::plot;
use crate::traffic::report::TrafficReport;
use crate::traffic::sweep::sweep;
use crate::traffic::topology::Topology;
use crate::traffic::trace::{Sizes, TraceParameters};

#[derive(Debug, clap::Args)]
pub struct TrafficArgs {
    /// A topology (TOML: origin, links with hops, sites); without it a provider's network as a tree
    #[arg(long, value_name = "FILE", conflicts_with_all = ["regions", "sites"])]
    topology: Option<PathBuf>,
    /// Regions of the tree
    #[arg(long, value_name = "N", default_value_t = 4)]
    regions: usize,
    /// Sites of each region
    #[arg(long, value_name = "N", default_value_t = 4)]
    sites: usize,
    /// Repeats a run exactly
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    clients: usize,
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    contents: usize,
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    requests: usize,
    /// Time over which the requests come
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "168h")]
    duration: Duration,
    /// Exponent of Zipf's distribution of popularity
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    alpha: f64,
    /// Share of the time that a client is on
    #[arg(long, value_name = "SHARE", default_value_t = 0.3)]
    availability: f64,
    /// Mean time that a client is on without a break
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
    session: Duration,
    /// Median length of contents
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "4MiB")]
    median: u64,
    /// Contents that share bytes, as versions of one thing do
    #[arg(long, value_name = "N", default_value_t = 1)]
    family: usize,
    /// Share of its bytes that a content has in common with its family
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    alike: f64,
    /// Sites collect only what they do not have of a content's family
    #[arg(long)]
    dedup: bool,
    /// Repeat with other availabilities and other alphas
    #[arg(long)]
    sweep: bool,
    /// Draw the result, with its sweep, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write the trace as JSON, for others to replay
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write the result as one JSON object to a file, or to standard output with -
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

type Failure = Box<dyn std::error::Error>;

impl TrafficArgs {
    fn parameters(&self) -> TraceParameters {
        TraceParameters {
            seed: self.seed,
            clients: self.clients,
            contents: self.contents,
            requests: self.requests,
            duration_s: self.duration.as_secs(),
            zipf_alpha: self.alpha,
            availability: self.availability,
            session_s: self.session.as_secs_f64(),
            sizes: Sizes { median: self.median as f64, ..Sizes::default() },
            family: self.family,
            alike: self.alike,
        }
    }

    fn topology(&self) -> Result<Topology, Failure> {
        match &self.topology {
            Some(file) => {
                let text = std::fs::read_to_string(file).map_err(|e| told("reading", file, e))?;
                Ok(Topology::parse(&text)?)
            }
            None => Ok(Topology::tree(self.regions, self.sites)?),
        }
    }

    /// Simulates; writes the picture and the trace where they are asked for.
    pub fn run(&self) -> Result<TrafficReport, Failure> {
        let (parameters, rules) = (self.parameters(), Rules { dedup: self.dedup });
        let topology = self.topology()?;
        let trace = parameters.generate(&topology)?;
        let is_swept = self.sweep || self.plot.is_some();
        let sweep = if is_swept { Some(sweep(&parameters, rules, &topology)?) } else { None };
        let report = TrafficReport::of(&trace, rules, &topology, sweep);
        if let Some(file) = &self.plot {
            std::fs::write(file, plot::svg(&report)).map_err(|e| told("writing", file, e))?;
        }
        if let Some(file) = &self.trace {
            let text = serde_json::to_string(&trace)?;
            std::fs::write(file, text).map_err(|e| told("writing", file, e))?;
        }
        Ok(report)
    }
}

fn told(doing: &str, file: &Path, error: std::io::Error) -> Failure {
    format!("{doing} {}: {error}", file.display()).into()
}
