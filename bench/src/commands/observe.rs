//! Arguments of a run that say what is done to the system meanwhile, and where the result goes.

use std::path::PathBuf;
use std::sync::Arc;

use bench::agents::AgentError;
use bench::agents::link::AgentToken;
use bench::events::Planned;
use bench::exporter;
use bench::live::Live;
use bench::plan::{Plan, parse_duration};
use bench::progress::Progress;
use bench::report::Report;
use bench::report::output::{Output, OutputError};

#[derive(clap::Args)]
pub struct ObserveArgs {
    /// Something to be done to the system at a time after the warm-up: 'node kill n3', 'node start n3', 'gateway pause
    /// g1', 'gateway resume g1', 'server stop search', 'drain n3', 'undrain n3' or 'run COMMAND'.
    #[arg(long = "at", num_args = 2, value_names = ["TIME", "EVENT"], action = clap::ArgAction::Append)]
    events: Vec<String>,
    /// A file for the result, more than one if wanted; its ending, .json, .csv, .md or .html, says how.
    #[arg(short, long = "output", value_name = "FILE")]
    outputs: Vec<Output>,
    /// Tell one line a second, also on a terminal.
    #[arg(long)]
    plain: bool,
    /// Show the load's own metrics to Prometheus while it runs, at http://HOST:PORT/metrics, as the dashboard of load tests
    /// shows them.
    #[arg(long, value_name = "HOST:PORT")]
    metrics_listen: Option<String>,
    /// Where `bench agent` waits: agents send the load in place of this process, each its share of it.
    #[arg(long = "agent", value_name = "HOST:PORT", value_delimiter = ',', requires = "agent_token_file")]
    agents: Vec<String>,
    /// File with the token that the agents have too.
    #[arg(long, value_name = "FILE")]
    agent_token_file: Option<PathBuf>,
}

impl ObserveArgs {
    pub fn events(&self) -> Result<Vec<Planned>, String> {
        let planned = |pair: &[String]| match pair {
            [at, text] => {
                Ok(Planned { at: parse_duration(at)?, action: text.parse()?, text: text.trim().to_owned() })
            }
            _ => Err("--at takes a time and an event, as in --at 60s 'node kill n3'".to_owned()),
        };
        let mut events = self.events.chunks(2).map(planned).collect::<Result<Vec<_>, _>>()?;
        events.sort_by_key(|event| event.at);
        Ok(events)
    }

    /// Agents and the token that they have too; none if we send the load ourselves.
    pub fn agents(&self) -> Result<Option<(Vec<String>, AgentToken)>, AgentError> {
        match &self.agent_token_file {
            Some(file) if !self.agents.is_empty() => Ok(Some((self.agents.clone(), AgentToken::read(file)?))),
            _ => Ok(None),
        }
    }

    /// Begins to show the load to who looks on; what is answered ends it when dropped.
    pub fn show(&self, plan: &Plan, progress: &Arc<Progress>) -> std::io::Result<Live> {
        if let Some(listen) = &self.metrics_listen {
            let address = exporter::serve(listen, plan, progress.clone())?;
            eprintln!("bench: metrics at http://{address}/metrics");
        }
        Live::start(progress.clone(), self.plain)
    }

    pub fn write(&self, report: &Report) -> Result<(), OutputError> {
        self.outputs.iter().try_for_each(|output| output.write(report))
    }
}
