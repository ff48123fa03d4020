//! Settings that a running server takes over when its configuration is read anew, and how often that was done.

use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::{Counter, Gauge};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch;

use crate::catalogue::metrics::{CONFIG_LAST_RELOAD, CONFIG_RELOADS};
use crate::telemetry::MetricsRegistry;
use crate::time::Clock;

/// Marks the schema of a [`Live`] setting.
pub(super) const MARK: &str = "x-live";

/// A number that may change while the server runs. Clones share it.
#[derive(Debug, Clone)]
pub struct Live(Arc<watch::Sender<u64>>);

impl Live {
    pub fn get(&self) -> u64 {
        *self.0.borrow()
    }

    fn set(&self, value: u64) {
        self.0.send_replace(value);
    }

    /// Waits until the number is such a one.
    pub async fn wait_for(&self, condition: impl FnMut(&u64) -> bool) {
        let mut values = self.0.subscribe();
        // The sender is in `self`, so there is always another value to wait for.
        let _value = values.wait_for(condition).await;
    }
}

impl From<u64> for Live {
    fn from(value: u64) -> Self {
        Self(Arc::new(watch::Sender::new(value)))
    }
}

impl<'de> Deserialize<'de> for Live {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self::from)
    }
}

impl Serialize for Live {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl JsonSchema for Live {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Live".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "integer", "minimum": 0, (MARK): true})
    }
}

/// The live settings of one server, by key, and the figures of its reloads.
#[derive(Clone)]
pub struct LiveSettings {
    settings: BTreeMap<&'static str, Live>,
    ok: Counter,
    failed: Counter,
    last_success: Gauge,
}

impl LiveSettings {
    /// None yet. The start counts as the first success.
    pub fn new(metrics: &MetricsRegistry) -> Self {
        let this = Self {
            settings: BTreeMap::new(),
            ok: metrics.counter(&CONFIG_RELOADS, &["ok"]),
            failed: metrics.counter(&CONFIG_RELOADS, &["error"]),
            last_success: metrics.gauge(&CONFIG_LAST_RELOAD, &[]),
        };
        this.loaded_now();
        this
    }

    pub fn add(&mut self, key: &'static str, setting: &Live) {
        self.settings.insert(key, setting.clone());
    }

    /// Gives a setting a new value; answers whether the server has taken it over.
    pub fn set(&self, key: &str, value: u64) -> bool {
        self.settings.get(key).map(|setting| setting.set(value)).is_some()
    }

    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.settings.keys().copied()
    }

    /// A configuration was read anew.
    pub fn reloaded(&self) {
        self.ok.increment(1);
        self.loaded_now();
    }

    /// A configuration could not be read, or was wrong.
    pub fn refused(&self) {
        self.failed.increment(1);
    }

    fn loaded_now(&self) {
        self.last_success.set(Clock::System.now().0 as f64 / 1000.0);
    }
}
