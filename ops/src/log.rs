//! What is logged, and how: said by flags, the environment and, for servers, their configuration.

use common::telemetry::{self, LogFormat};

use crate::error::Failure;
use crate::roles::LogSection;

/// What servers log unless something else is said.
const SERVER_FILTER: &str = "info";

/// Flags of every command.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct LogArgs {
    /// What is logged to standard error, as in `info` or `warn,gateway=debug`; RUST_LOG says it too
    #[arg(long = "log", global = true, value_name = "FILTER")]
    filter: Option<String>,
    /// Log lines as text or as JSON; text if nothing is said
    #[arg(long = "log-format", global = true, value_name = "FORMAT", value_parser = log_format)]
    format: Option<LogFormat>,
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("{other:?} is not text or json")),
    }
}

impl LogArgs {
    /// Logs of a command that is no server.
    pub fn init_for_command(&self, default_filter: &str) {
        let variable = std::env::var("RUST_LOG").ok();
        let filter = self.filter.as_deref().or(variable.as_deref()).unwrap_or(default_filter);
        telemetry::init_logs(self.format.unwrap_or_default(), filter);
    }

    /// Logs of a server.
    pub fn init(&self, section: &LogSection) -> Result<(), Failure> {
        telemetry::init_logs(self.format.or(section.format).unwrap_or_default(), SERVER_FILTER);
        self.set_filter(section).map_err(Failure::usage)
    }

    /// Has the process log by a changed configuration; answers what is wrong with it.
    pub fn set_filter(&self, section: &LogSection) -> Result<(), String> {
        let filter = self.filter(section);
        telemetry::set_log_filter(&filter).map_err(|problem| format!("log filter {filter:?}: {problem}"))
    }

    /// The flag, then `DOZO__LOG__FILTER` and the file, then `RUST_LOG`.
    fn filter(&self, section: &LogSection) -> String {
        let given = self.filter.clone().or_else(|| section.filter.clone());
        given.or_else(|| std::env::var("RUST_LOG").ok()).unwrap_or_else(|| SERVER_FILTER.to_owned())
    }
}
