//! SIGINT and SIGTERM: the first asks for an orderly stop, the second ends the process at once. SIGHUP asks a
//! server to read its configuration again.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Failure;

pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

fn watch(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(format!("signals cannot be watched: {error}")))
}

impl Signals {
    /// From now on the two signals no longer end the process by themselves.
    pub fn install() -> Result<Self, Failure> {
        Ok(Self { interrupt: watch(SignalKind::interrupt())?, terminate: watch(SignalKind::terminate())? })
    }

    /// From now on SIGHUP does not end the process; it is for the reader of its configuration.
    pub fn hangups() -> Result<Signal, Failure> {
        watch(SignalKind::hangup())
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Runs an orderly stop; another signal meanwhile ends the process.
    pub async fn stop<T>(&mut self, stop: impl Future<Output = T>) -> T {
        tokio::select! {
            stopped = stop => stopped,
            () = self.next() => {
                tracing::warn!("second signal: exiting without an orderly stop");
                std::process::exit(1);
            }
        }
    }
}
