//! Arguments of a run that say what is done to the system meanwhile, and where the result goes.

use bench::events::Planned;
use bench::plan::parse_duration;
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

    pub fn write(&self, report: &Report) -> Result<(), OutputError> {
        self.outputs.iter().try_for_each(|output| output.write(report))
    }
}
