//! Logs and metrics.
//!
//! Several servers may run in one process, so none installs a global metrics recorder: each has a
//! [`MetricsRegistry`] of its own, makes its handles in it once at start, and its `/metrics` shows its own
//! figures alone. What a metric is called and what it tells is in [`crate::catalogue::metrics`]. Handles are cheap and
//! cached; nothing on a request's path looks a metric up by name.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::Dispatch;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::auth::Role;
use crate::catalogue::metrics::{self as catalogue, Kind, Metric, Values};
use crate::trace::log::WithRequest;

/// Seconds. The bounds that promises are made on are exact edges.
const DURATION_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0,
    60.0,
];
/// Seconds, for metrics with a series for each route: fewer edges.
const ROUTE_BUCKETS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 4.0, 15.0, 60.0];
/// Seconds until something arrived elsewhere, 1 s to a week; booked within five minutes is promised.
const LAG_BUCKETS: &[f64] =
    &[1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0, 604_800.0];
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

/// Needed by the recorder, which makes nothing of it.
const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// One server's metrics.
#[derive(Clone)]
pub struct MetricsRegistry {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    computed: Arc<Mutex<Vec<Computed>>>,
}

/// A gauge whose series are asked for at each rendering: those that are gone are not shown any more.
struct Computed {
    metric: &'static Metric,
    read: Box<dyn Fn() -> Vec<(Vec<String>, f64)> + Send>,
}

impl MetricsRegistry {
    pub fn new() -> Self {
        let full = |metric: &Metric| Matcher::Full(metric.name.into());
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), DURATION_BUCKETS)
            .and_then(|b| b.set_buckets_for_metric(full(&catalogue::BILLING_RECORD_LAG), LAG_BUCKETS))
            .and_then(|b| b.set_buckets_for_metric(full(&catalogue::HTTP_DURATION), ROUTE_BUCKETS))
            .and_then(|b| b.set_buckets_for_metric(full(&catalogue::CALL_DURATION), ROUTE_BUCKETS))
            .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), SIZE_BUCKETS))
            .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_entries".into()), COUNT_BUCKETS))
            .expect("the bucket lists are not empty")
            .build_recorder();
        for metric in catalogue::ALL {
            let (name, help) = (metric.name.into(), metric.help.into());
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, None, help),
                Kind::Gauge => recorder.describe_gauge(name, None, help),
                Kind::Histogram => recorder.describe_histogram(name, None, help),
            }
        }
        let handle = recorder.handle();
        Self { recorder: Arc::new(recorder), handle, computed: Arc::default() }
    }

    /// A handle of a counter; `values` are those of its labels, in the catalogue's order.
    pub fn counter(&self, metric: &Metric, values: &[&str]) -> Counter {
        debug_assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
        if cfg!(feature = "uninstrumented") {
            return Counter::noop();
        }
        self.recorder.register_counter(&key(metric, values), &METADATA)
    }

    /// A handle of a gauge, as [`MetricsRegistry::counter`]. It shows 0 until it is set.
    pub fn gauge(&self, metric: &Metric, values: &[&str]) -> Gauge {
        debug_assert_eq!(metric.kind, Kind::Gauge, "{}", metric.name);
        if cfg!(feature = "uninstrumented") {
            return Gauge::noop();
        }
        self.recorder.register_gauge(&key(metric, values), &METADATA)
    }

    /// A handle of a histogram, as [`MetricsRegistry::counter`].
    pub fn histogram(&self, metric: &Metric, values: &[&str]) -> Histogram {
        debug_assert_eq!(metric.kind, Kind::Histogram, "{}", metric.name);
        if cfg!(feature = "uninstrumented") {
            return Histogram::noop();
        }
        self.recorder.register_histogram(&key(metric, values), &METADATA)
    }

    /// Shows a gauge with the series that `read` answers: label values that need no escaping, and the value.
    pub fn computed(
        &self,
        metric: &'static Metric,
        read: impl Fn() -> Vec<(Vec<String>, f64)> + Send + 'static,
    ) {
        debug_assert_eq!(metric.kind, Kind::Gauge, "{}", metric.name);
        let computed = Computed { metric, read: Box::new(read) };
        self.computed.lock().unwrap_or_else(PoisonError::into_inner).push(computed);
    }

    /// The Prometheus text form.
    pub fn render(&self) -> String {
        let mut text = self.handle.render();
        for Computed { metric, read } in &*self.computed.lock().unwrap_or_else(PoisonError::into_inner) {
            text.push_str(&format!("# HELP {0} {1}\n# TYPE {0} gauge\n", metric.name, metric.help));
            for (values, value) in read() {
                let labels = metric.labels.iter().zip(values);
                let labels: Vec<_> =
                    labels.map(|(label, value)| format!("{}=\"{value}\"", label.name)).collect();
                text.push_str(&format!("{}{{{}}} {value}\n", metric.name, labels.join(",")));
            }
            text.push('\n');
        }
        text
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

fn key(metric: &Metric, values: &[&str]) -> Key {
    debug_assert_eq!(metric.labels.len(), values.len(), "labels of {}", metric.name);
    let labels = metric.labels.iter().zip(values).map(|(label, value)| {
        if let Values::Of(known) = label.values {
            debug_assert!(known.contains(value), "{value:?} is not a {} of {}", label.name, metric.name);
        }
        metrics::Label::new(label.name, (*value).to_owned())
    });
    Key::from_parts(metric.name, labels.collect::<Vec<_>>())
}

/// Figures of the process that a server runs in, and of its runtime. Servers of one process show the same.
pub struct ProcessMetrics {
    registry: MetricsRegistry,
    process: metrics_process::Collector,
    log_errors: Counter,
    log_warnings: Counter,
    panics: Counter,
    workers: Gauge,
    busy_seconds: Counter,
    tasks: Gauge,
    queued_tasks: Gauge,
}

impl ProcessMetrics {
    pub fn new(registry: &MetricsRegistry, role: Role) -> Self {
        registry.gauge(&catalogue::BUILD_INFO, &[env!("CARGO_PKG_VERSION"), role.as_str()]).set(1.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        registry.gauge(&catalogue::START_TIME, &[]).set(now.as_secs_f64());
        Self {
            registry: registry.clone(),
            process: metrics_process::Collector::default(),
            log_errors: registry.counter(&catalogue::LOG_MESSAGES, &["error"]),
            log_warnings: registry.counter(&catalogue::LOG_MESSAGES, &["warn"]),
            panics: registry.counter(&catalogue::PANICS, &[]),
            workers: registry.gauge(&catalogue::RUNTIME_WORKERS, &[]),
            busy_seconds: registry.counter(&catalogue::RUNTIME_BUSY, &[]),
            tasks: registry.gauge(&catalogue::RUNTIME_TASKS, &[]),
            queued_tasks: registry.gauge(&catalogue::RUNTIME_QUEUE, &[]),
        }
    }

    /// Reads everything anew; call before each rendering, in the runtime that is told of.
    pub fn read(&self) {
        metrics::with_local_recorder(&*self.registry.recorder, || self.process.collect());
        self.log_errors.absolute(LOGGED_ERRORS.load(Ordering::Relaxed));
        self.log_warnings.absolute(LOGGED_WARNINGS.load(Ordering::Relaxed));
        self.panics.absolute(PANICS.load(Ordering::Relaxed));
        let runtime = tokio::runtime::Handle::current().metrics();
        let busy: Duration = (0..runtime.num_workers()).map(|w| runtime.worker_total_busy_duration(w)).sum();
        self.workers.set(runtime.num_workers() as f64);
        self.busy_seconds.absolute(busy.as_secs());
        self.tasks.set(runtime.num_alive_tasks() as f64);
        self.queued_tasks.set(runtime.global_queue_depth() as f64);
    }
}

static LOGGED_ERRORS: AtomicU64 = AtomicU64::new(0);
static LOGGED_WARNINGS: AtomicU64 = AtomicU64::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Logs panics and counts them, for the whole process.
pub fn watch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tracing::error!("panic: {panic}");
    }));
}

/// Counts log lines, whether or not they are written.
struct CountLines;

impl<S: tracing::Subscriber> Layer<S> for CountLines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        match *event.metadata().level() {
            tracing::Level::ERROR => LOGGED_ERRORS.fetch_add(1, Ordering::Relaxed),
            tracing::Level::WARN => LOGGED_WARNINGS.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Sends logs to standard error. `filter` is as in `RUST_LOG`, for example `info,storage_node=debug`; `access=debug`
/// adds a line for each request.
/// Later calls in the same process change nothing.
pub fn init_logs(format: LogFormat, filter: &str) {
    let (subscriber, filter) = subscriber(format, filter, std::io::stderr, std::io::stderr().is_terminal());
    // An error means that a subscriber is set already, which is what this function promises.
    if subscriber.try_init().is_ok() {
        let _is_first = LOG_FILTER.set(filter);
    }
}

type FilterHandle = reload::Handle<EnvFilter, Registry>;

/// What writes log lines and counts them, and what changes its filter; lines of a request tell its ids
/// ([`crate::trace::log`]).
pub(crate) fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    writer: W,
    ansi: bool,
) -> (Dispatch, FilterHandle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(ansi).with_target(true);
    let lines = match format {
        LogFormat::Text => lines
            .map_event_format(|inner| WithRequest { inner: inner.with_ansi(ansi), format })
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .map_event_format(|inner| WithRequest { inner, format })
            .with_filter(filter)
            .boxed(),
    };
    let count = CountLines.with_filter(LevelFilter::WARN);
    (tracing_subscriber::registry().with(lines).with(count).into(), handle)
}

/// Changes the filter of the process's logs.
static LOG_FILTER: OnceLock<FilterHandle> = OnceLock::new();

/// Changes what the process logs from now on; answers what is wrong with the filter. Without logs it changes nothing.
pub fn set_log_filter(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
    match LOG_FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_the_catalogue_says() {
        let registry = MetricsRegistry::new();
        registry.counter(&catalogue::GATEWAY_DELIVERIES, &["peer"]).increment(2);
        registry.histogram(&catalogue::BILLING_RECORD_LAG, &["content"]).record(299.0);
        let text = registry.render();
        let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        has("# HELP dozo_gateway_deliveries_total Deliveries begun, by where the site had the bytes from.");
        has("# TYPE dozo_gateway_deliveries_total counter");
        has(r#"dozo_gateway_deliveries_total{source="peer"} 2"#);
        has(r#"dozo_billing_record_lag_seconds_bucket{fee="content",le="60"} 0"#);
        has(r#"dozo_billing_record_lag_seconds_bucket{fee="content",le="300"} 1"#);
        assert!(!text.contains("dozo_search"), "{text}");
    }

    #[tokio::test]
    async fn the_process_is_told_of() {
        let registry = MetricsRegistry::new();
        ProcessMetrics::new(&registry, Role::Search).read();
        let text = registry.render();
        for metric in catalogue::ALL.iter().filter(|metric| metric.name.starts_with("process_")) {
            assert!(text.contains(&format!("\n{} ", metric.name)), "{} is not in\n{text}", metric.name);
        }
    }
}
