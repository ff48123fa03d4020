//! Logs and metrics.
//!
//! Several servers may run in one process, so none installs a global metrics recorder: each has a
//! [`MetricsRegistry`] of its own, makes its handles in it once at start, and its `/metrics` shows its own
//! figures alone. Handles are cheap and cached; nothing on a request's path looks a metric up by name.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tracing::Dispatch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::trace::log::WithRequest;

/// Seconds. The bounds that promises are made on are exact edges.
const DURATION_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0,
    60.0,
];
/// Bytes, 1 KiB to 1 GiB by fours.
const SIZE_BUCKETS: &[f64] = &[
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
];

/// Things handled at once, 1 to 1024 by twos.
const COUNT_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// One server's metrics.
#[derive(Clone)]
pub struct MetricsRegistry {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

impl MetricsRegistry {
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), DURATION_BUCKETS)
            .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), SIZE_BUCKETS))
            .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_entries".into()), COUNT_BUCKETS))
            .expect("the bucket lists are not empty")
            .build_recorder();
        let handle = recorder.handle();
        Self { recorder: Arc::new(recorder), handle }
    }

    /// Runs `make`, in which the `metrics` macros make handles of this registry.
    pub fn scope<T>(&self, make: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&*self.recorder, make)
    }

    /// The Prometheus text form.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Moves histogram samples into their buckets; call about once a second, memory grows otherwise.
    pub async fn upkeep(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.handle.run_upkeep();
        }
    }
}

impl Default for MetricsRegistry {
    fn default() -> Self {
        Self::new()
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Sends logs to standard error. `filter` is as in `RUST_LOG`, for example `info,storage_node=debug`; `access=debug`
/// adds a line for each request.
/// Later calls in the same process change nothing.
pub fn init_logs(format: LogFormat, filter: &str) {
    let subscriber = subscriber(format, filter, std::io::stderr, std::io::stderr().is_terminal());
    // An error means that a subscriber is set already, which is what this function promises.
    let _already_set = subscriber.try_init();
}

/// What writes log lines; those of a request tell its ids ([`crate::trace::log`]).
pub(crate) fn subscriber<W>(format: LogFormat, filter: &str, writer: W, ansi: bool) -> Dispatch
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(ansi);
    match format {
        LogFormat::Text => {
            builder.map_event_format(|inner| WithRequest { inner: inner.with_ansi(ansi), format }).into()
        }
        LogFormat::Json => {
            builder.json().flatten_event(true).map_event_format(|inner| WithRequest { inner, format }).into()
        }
    }
}
