//! SIGINT and SIGTERM: the first asks for an orderly stop, the second ends the process at once. SIGHUP asks a
//! server to read its configuration again.

use std::future::Future;

use tokio::signal::unix::{self, SignalKind, signal};

use crate::error::Failure;

/// Somebody at the keyboard, who wants it to end soon; or whoever looks after the process, and whoever relies on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    Terminate,
}

pub struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

fn watch(kind: SignalKind) -> Result<unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(format!("signals cannot be watched: {error}")))
}

impl Signals {
    /// From now on the two signals no longer end the process by themselves.
    pub fn install() -> Result<Self, Failure> {
        Ok(Self { interrupt: watch(SignalKind::interrupt())?, terminate: watch(SignalKind::terminate())? })
    }

    /// From now on SIGHUP does not end the process; it is for the reader of its configuration.
    pub fn hangups() -> Result<unix::Signal, Failure> {
        watch(SignalKind::hangup())
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }

    /// Runs an orderly stop; another signal meanwhile ends the process.
    pub async fn stop<T>(&mut self, stop: impl Future<Output = T>) -> T {
        tokio::select! {
            stopped = stop => stopped,
            _signal = self.next() => {
                tracing::warn!("second signal: exiting without an orderly stop");
                std::process::exit(1);
            }
        }
    }
}
