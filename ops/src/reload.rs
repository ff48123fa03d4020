//! SIGHUP: a server reads its configuration anew, takes over what it can while it runs, and says by name what changed and
//! what needs a restart. A configuration that is wrong changes nothing.

use std::convert::Infallible;

use common::config::{LiveSettings, redact_value};
use common::error::chain;
use common::tls;
use tokio::signal::unix::Signal;
use toml::Value;

use crate::log::LogArgs;
use crate::roles::{RoleCommand, Settings, schema};

/// The settings of the process that are taken over. The certificate is read anew also if its files are called as before.
const TAKEN: [&str; 3] = ["log.filter", "tls.cert_file", "tls.key_file"];

pub struct Reloader {
    command: RoleCommand,
    log: LogArgs,
    /// What is in force, apart from what waits for a restart.
    settings: Settings,
    live: LiveSettings,
}

/// One setting that is not what it was.
struct Change {
    key: String,
    old: Option<Value>,
    new: Option<Value>,
}

impl Reloader {
    pub fn new(command: RoleCommand, log: LogArgs, settings: Settings, live: LiveSettings) -> Self {
        Self { command, log, settings, live }
    }

    /// Reloads at each SIGHUP, for ever.
    pub async fn run(mut self, mut hangups: Signal) -> Infallible {
        while hangups.recv().await.is_some() {
            self.reload();
        }
        std::future::pending().await
    }

    fn reload(&mut self) {
        let read = self.command.settings().map_err(|error| chain(&error));
        let taken = read.and_then(|new| {
            tls::reload(&new.process.tls).map_err(|error| chain(&error))?;
            self.log.set_filter(&new.process.log).map(|()| new)
        });
        match taken {
            Ok(new) => {
                self.take(new);
                self.live.reloaded();
            }
            Err(error) => {
                self.live.refused();
                tracing::error!(
                    error,
                    "the configuration cannot be reloaded; the running one stays in force"
                );
            }
        }
    }

    fn take(&mut self, new: Settings) {
        let mut waiting = Vec::new();
        for Change { key, old, new } in changes(&self.settings, &new) {
            let (old, new_shown) = (shown(old.as_ref()), shown(new.as_ref()));
            let number = new.as_ref().and_then(Value::as_integer).and_then(|n| u64::try_from(n).ok());
            let is_taken = TAKEN.contains(&&*key) || number.is_some_and(|number| self.live.set(&key, number));
            if is_taken {
                tracing::info!(key, old, new = new_shown, "a setting was changed");
            } else {
                tracing::warn!(key, old, new = new_shown, "a setting was changed that needs a restart");
                waiting.push(key);
            }
        }
        let restart = if waiting.is_empty() { "nothing".to_owned() } else { waiting.join(", ") };
        tracing::info!(needs_restart = restart, "the configuration was reloaded");
        // What waits for a restart is told again at the next reload, for it is still not in force.
        let mut in_force = new;
        for key in waiting {
            in_force.given.take_from(&self.settings.given, &key);
        }
        self.settings = in_force;
    }
}

/// Settings with their defaults, where the two differ.
fn changes(old: &Settings, new: &Settings) -> Vec<Change> {
    let schema = schema(new.role);
    let leaves = schema.leaves();
    let changes = leaves.iter().map(|(path, key)| {
        let value = |settings: &Settings| {
            let default = || key.default.as_ref().and_then(|default| Value::try_from(default).ok());
            settings.given.get(path).cloned().or_else(default)
        };
        Change { key: path.clone(), old: value(old), new: value(new) }
    });
    changes.filter(|change| change.old != change.new).collect()
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "not set".to_owned(), |value| redact_value(value).to_string())
}
