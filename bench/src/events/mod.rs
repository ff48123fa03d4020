//! What is done to the system in mid-run (`--at 60s 'node kill n3'`), and how the load recovered from it.
//!
//! | looking for | module |
//! |---|---|
//! | what can be done, and how it is written | this one |
//! | doing it, at its time | [`crew`] |
//! | the processes that it is done to | [`subject`] |
//! | depth of the dip, time to recover | [`recovery`] |

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod crew;
pub mod recovery;
pub mod subject;

pub use crew::Crew;

/// An event that cannot be, told before the load begins.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("the event {event:?} is to come {at:?} after the warm-up, but the load ends after {end:?}")]
    Late { event: String, at: Duration, end: Duration },
    #[error("there is no server {name:?}; the servers are {known}")]
    NoServer { name: String, known: String },
    #[error("{event:?}: nothing listens on port {port} of this machine, so the process is not found")]
    NoProcess { event: String, port: u16 },
    #[error(
        "{event:?}: the process {pid} also runs {others}; start each server as a process of its own to do this to one"
    )]
    Shared { event: String, pid: u32, others: String },
    #[error("{event:?} needs the system's endpoints.json: give --endpoints in place of --endpoint")]
    NoControl { event: String },
    #[error("the events cannot be carried out: no thread can be started")]
    Thread(#[source] std::io::Error),
}

/// What is done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// SIGKILL.
    Kill,
    /// SIGTERM: the server leaves in order.
    Stop,
    /// Starts again what was killed or stopped, with the command line and environment that it had.
    Start,
    /// SIGSTOP: the process does nothing and answers nobody, its connections stay.
    Pause,
    /// SIGCONT.
    Resume,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Process {
        deed: Deed,
        server: String,
    },
    Drain {
        node: String,
    },
    Undrain {
        node: String,
    },
    /// A command for the shell.
    Run(String),
}

/// Something that is to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Since the end of the warm-up.
    pub at: Duration,
    pub action: Action,
    /// As it was written.
    pub text: String,
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let process = |deed: &str, server: &str| {
            let deed = match deed {
                "kill" => Deed::Kill,
                "stop" => Deed::Stop,
                "start" => Deed::Start,
                "pause" => Deed::Pause,
                "resume" => Deed::Resume,
                _ => return None,
            };
            Some(Self::Process { deed, server: server.to_owned() })
        };
        let action = match words[..] {
            ["run", _, ..] => {
                Some(Self::Run(text.trim_start().trim_start_matches("run").trim_start().to_owned()))
            }
            ["node" | "gateway" | "server", deed, server] => process(deed, server),
            ["drain", node] => Some(Self::Drain { node: node.to_owned() }),
            ["undrain", node] => Some(Self::Undrain { node: node.to_owned() }),
            _ => None,
        };
        action.ok_or_else(|| {
            format!(
                "{text:?} is not an event: write node, gateway or server, then kill, stop, start, pause or resume and \
                 a name, as in 'node kill n3'; or 'drain n3', 'undrain n3', 'run COMMAND'"
            )
        })
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Happened {
    /// Seconds since the start of the load, as in the timeline.
    pub at_s: f64,
    pub what: String,
    /// Until it was done: a process gone, a server ready again, a command ended. `None`: not before the load's end.
    pub done_after_s: Option<f64>,
    /// Why it could not be done.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read() {
        let process = |deed, server: &str| Action::Process { deed, server: server.into() };
        for (text, action) in [
            ("node kill n3", process(Deed::Kill, "n3")),
            ("gateway pause osaka.g1", process(Deed::Pause, "osaka.g1")),
            ("server start search", process(Deed::Start, "search")),
            ("drain n3", Action::Drain { node: "n3".into() }),
            (" run  tc qdisc add  dev lo ", Action::Run("tc qdisc add  dev lo ".into())),
        ] {
            assert_eq!(text.parse::<Action>(), Ok(action), "{text}");
        }
        for bad in ["", "kill n3", "node explode n3", "node kill", "run", "drain", "drain n3 now"] {
            assert!(bad.parse::<Action>().unwrap_err().contains("node kill n3"), "{bad}");
        }
    }
}
