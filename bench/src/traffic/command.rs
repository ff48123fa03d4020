//! `bench traffic`: its flags, and what it does with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::config::parse_bytes;

use crate::plan::parse_duration;
use crate::traffic::model::Rules;
use crate::traffic::plot;
use crate::traffic::real::{self, RealReport};
use crate::traffic::report::TrafficReport;
use crate::traffic::sweep::sweep;
use crate::traffic::topology::Topology;
use crate::traffic::trace::{Sizes, Trace, TraceParameters};

#[derive(Debug, clap::Args)]
pub struct TrafficArgs {
    /// A topology (TOML: origin, links with hops, sites); without it a provider's network as a tree
    #[arg(long, value_name = "FILE", conflicts_with_all = ["regions", "sites"])]
    topology: Option<PathBuf>,
    /// Regions of the tree [default: 4; with --real 2]
    #[arg(long, value_name = "N")]
    regions: Option<usize>,
    /// Sites of each region [default: 4; with --real 2]
    #[arg(long, value_name = "N")]
    sites: Option<usize>,
    /// Repeats a run exactly
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// [default: 2000; with --real 12]
    #[arg(long, value_name = "N")]
    clients: Option<usize>,
    /// [default: 10000; with --real 40]
    #[arg(long, value_name = "N")]
    contents: Option<usize>,
    /// [default: 200000; with --real 120]
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
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
    /// Median length of contents [default: 4MiB; with --real 400KiB, and none above 4MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    median: Option<u64>,
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
    /// Replay the trace on real sites, too, each in a network namespace, and tell how many bytes went between them
    /// beside the simulated ones; needs root and iproute2
    #[arg(long, conflicts_with_all = ["sweep", "plot", "dedup", "family", "alike"])]
    pub real: bool,
    /// The program that real sites run
    #[arg(long, value_name = "FILE", default_value = "target/release/dozo", requires = "real")]
    dozo: PathBuf,
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
        let either =
            |given: Option<usize>, simulated, real| given.unwrap_or(if self.real { real } else { simulated });
        let sizes = if self.real { Sizes::SMALL } else { Sizes::default() };
        TraceParameters {
            seed: self.seed,
            clients: either(self.clients, 2_000, 12),
            contents: either(self.contents, 10_000, 40),
            requests: either(self.requests, 200_000, 120),
            duration_s: self.duration.as_secs(),
            zipf_alpha: self.alpha,
            availability: self.availability,
            session_s: self.session.as_secs_f64(),
            sizes: Sizes { median: self.median.map_or(sizes.median, |median| median as f64), ..sizes },
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
            None => {
                let default = if self.real { 2 } else { 4 };
                Ok(Topology::tree(self.regions.unwrap_or(default), self.sites.unwrap_or(default))?)
            }
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
        self.keep_trace(&trace)?;
        Ok(report)
    }

    /// Simulates, and replays the same on real sites; `say` is told what is going on.
    pub fn run_real(&self, say: impl Fn(&str)) -> Result<RealReport, Failure> {
        let topology = self.topology()?;
        let trace = self.parameters().generate(&topology)?;
        self.keep_trace(&trace)?;
        Ok(real::run(&trace, &topology, &self.dozo, say)?)
    }

    fn keep_trace(&self, trace: &Trace) -> Result<(), Failure> {
        if let Some(file) = &self.trace {
            let text = serde_json::to_string(trace)?;
            std::fs::write(file, text).map_err(|e| told("writing", file, e))?;
        }
        Ok(())
    }
}

fn told(doing: &str, file: &Path, error: std::io::Error) -> Failure {
    format!("{doing} {}: {error}", file.display()).into()
}
