//! Exports requests as spans to a collector: OTLP over HTTP, as JSON.
//!
//! A span is what [`super::Trace`] knows when a request was answered, so no span is carried about while it runs, and the
//! form is small enough to be written here: the usual exporters bring a second HTTP stack and protocol buffers along.
//!
//! Nothing waits for the collector. Spans that it does not take in time are dropped and counted in the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::context::TraceContext;
use super::{Stage, Trace};
use crate::backoff::Backoff;
use crate::client::{CallError, HttpClient, read_refusal};

/// Spans that wait to be sent; more are dropped.
const QUEUE_LEN: usize = 8192;
const BATCH_LEN_MAX: usize = 512;
/// How long a span waits for others to be sent with.
const GATHER: Duration = Duration::from_secs(1);
const SEND_TIME_MAX: Duration = Duration::from_secs(10);
const ATTEMPTS_MAX: u32 = 3;

static EXPORTER: OnceLock<Exporter> = OnceLock::new();

/// Where spans go, and how many of the traces that begin here.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// As in `http://127.0.0.1:4318/v1/traces`.
    pub url: String,
    /// Share of the traces, from 0 to 1. Traces that callers began are theirs to decide.
    pub ratio: f64,
}

impl Settings {
    /// The variables that OpenTelemetry names: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_EXPORTER_OTLP_ENDPOINT` to
    /// which `/v1/traces` is added, and `OTEL_TRACES_SAMPLER_ARG`. `None`: nothing is to be exported.
    ///
    /// # Errors
    /// What is wrong with a variable, and what it is to be.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let of_all = |base: String| format!("{}/v1/traces", base.trim_end_matches('/'));
        let url = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT").map(of_all));
        let Some(url) = url.filter(|url| !url.is_empty()) else { return Ok(None) };
        if !url.starts_with("http://") {
            return Err(format!("the collector's address is {url}, it has to begin with http://"));
        }
        let ratio = variable("OTEL_TRACES_SAMPLER_ARG").unwrap_or_else(|| "1".into());
        match ratio.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Some(Self { url, ratio })),
            _ => Err(format!("OTEL_TRACES_SAMPLER_ARG is {ratio}, it has to be a number from 0 to 1")),
        }
    }
}

struct Exporter {
    queue: mpsc::Sender<Job>,
    ratio: f64,
    dropped: Arc<AtomicU64>,
}

enum Job {
    Span(Box<Span>),
    Flush(oneshot::Sender<()>),
}

/// An answered request.
struct Span {
    server: Arc<str>,
    context: TraceContext,
    request: Arc<str>,
    method: Method,
    route: Option<String>,
    status: StatusCode,
    end: Duration,
    took: Duration,
    stages: Vec<(Stage, Duration)>,
}

/// Begins to export, once a process. Must be called within a tokio runtime.
pub fn start(settings: Settings) {
    let (queue, jobs) = mpsc::channel(QUEUE_LEN);
    let dropped = Arc::<AtomicU64>::default();
    let exporter = Exporter { queue, ratio: settings.ratio, dropped: dropped.clone() };
    if EXPORTER.set(exporter).is_ok() {
        tokio::spawn(run(settings.url, jobs, dropped));
    }
}

/// Sends what is queued, or gives up soon.
pub async fn flush() {
    let Some(exporter) = EXPORTER.get() else { return };
    let (done, waited) = oneshot::channel();
    let flushed = async {
        if exporter.queue.send(Job::Flush(done)).await.is_ok() {
            // An error means that the worker ended; nothing is left to send then.
            let _ended = waited.await;
        }
    };
    if tokio::time::timeout(SEND_TIME_MAX, flushed).await.is_err() {
        tracing::warn!("the collector of traces does not answer; the last spans are dropped");
    }
}

pub(super) fn is_sampled(random: u64) -> bool {
    // 53 bits are exact.
    EXPORTER.get().is_some_and(|exporter| ((random >> 11) as f64) < exporter.ratio * (1u64 << 53) as f64)
}

/// Queues an answered request, if its trace is to be exported.
pub fn export(
    trace: &Trace,
    took: Duration,
    server: &str,
    method: &Method,
    route: Option<&str>,
    status: StatusCode,
) {
    let Some(exporter) = EXPORTER.get().filter(|_| trace.context().sampled) else { return };
    let span = Span {
        server: server.into(),
        context: trace.context().clone(),
        request: trace.request().clone(),
        method: method.clone(),
        route: route.map(str::to_owned),
        status,
        end: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        took,
        stages: trace.stages().collect(),
    };
    if exporter.queue.try_send(Job::Span(Box::new(span))).is_err() {
        exporter.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

async fn run(url: String, mut jobs: mpsc::Receiver<Job>, dropped: Arc<AtomicU64>) {
    let (http, mut batch) = (HttpClient::new(), Vec::with_capacity(BATCH_LEN_MAX));
    while let Some(job) = jobs.recv().await {
        let mut flushed = None;
        let mut next = Some(job);
        let gathered = tokio::time::sleep(GATHER);
        tokio::pin!(gathered);
        while let Some(job) = next.take() {
            match job {
                Job::Span(span) => batch.push(*span),
                Job::Flush(done) => flushed = Some(done),
            }
            if batch.len() < BATCH_LEN_MAX && flushed.is_none() {
                next = tokio::select! {
                    job = jobs.recv() => job,
                    () = &mut gathered => None,
                };
            }
        }
        if !batch.is_empty() && !send(&http, &url, &batch).await {
            dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
        batch.clear();
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(spans = lost, url, "spans are dropped: the collector does not take them in time");
        }
        if let Some(done) = flushed {
            // Whoever waited has given up.
            let _gone = done.send(());
        }
    }
}

async fn send(http: &HttpClient, url: &str, batch: &[Span]) -> bool {
    let body = bytes::Bytes::from(document(batch).to_string());
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    for attempt in 1..=ATTEMPTS_MAX {
        match post(http, url, body.clone()).await {
            Ok(()) => return true,
            Err(error) => {
                tracing::debug!(attempt, error = crate::error::chain(&error), "spans are not taken")
            }
        }
        if attempt < ATTEMPTS_MAX {
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
    false
}

async fn post(http: &HttpClient, url: &str, body: bytes::Bytes) -> Result<(), CallError> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url.parse().map_err(|error: http::uri::InvalidUri| CallError::Unreachable {
        url: url.to_owned(),
        source: error.into(),
    })?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let answer = http.send(request, SEND_TIME_MAX).await?;
    if answer.status().is_success() { Ok(()) } else { Err(read_refusal(url, answer).await) }
}

/// `ExportTraceServiceRequest` in JSON: ids in hexadecimal, 64-bit numbers as text.
fn document(batch: &[Span]) -> Value {
    let mut servers: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for span in batch {
        servers.entry(&span.server).or_default().push(span_json(span));
    }
    let resources = servers.into_iter().map(|(server, spans)| {
        let role = server.split('/').next().unwrap_or(server);
        let attributes = [
            attribute("service.namespace", json!({"stringValue": "dozo"})),
            attribute("service.name", json!({"stringValue": role})),
            attribute("service.instance.id", json!({"stringValue": server})),
            attribute("service.version", json!({"stringValue": env!("CARGO_PKG_VERSION")})),
        ];
        let scope = json!({"scope": {"name": "dozo"}, "spans": spans});
        json!({"resource": {"attributes": attributes}, "scopeSpans": [scope]})
    });
    json!({"resourceSpans": resources.collect::<Vec<_>>()})
}

fn attribute(key: &str, value: Value) -> Value {
    json!({"key": key, "value": value})
}

fn span_json(span: &Span) -> Value {
    let route = span.route.as_deref();
    let mut attributes = vec![
        attribute("http.request.method", json!({"stringValue": span.method.as_str()})),
        attribute("http.response.status_code", json!({"intValue": span.status.as_u16().to_string()})),
        attribute("dozo.request_id", json!({"stringValue": &*span.request})),
    ];
    attributes.extend(route.map(|route| attribute("http.route", json!({"stringValue": route}))));
    attributes.extend(span.stages.iter().map(|(stage, took)| {
        let milliseconds = took.as_secs_f64() * 1e3;
        attribute(&format!("dozo.stage.{}_ms", stage.name()), json!({"doubleValue": milliseconds}))
    }));
    let mut json = json!({
        "traceId": span.context.trace.to_string(),
        "spanId": span.context.span.to_string(),
        "name": route.map_or_else(|| span.method.to_string(), |route| format!("{} {route}", span.method)),
        // A server's.
        "kind": 2,
        "startTimeUnixNano": span.end.saturating_sub(span.took).as_nanos().to_string(),
        "endTimeUnixNano": span.end.as_nanos().to_string(),
        "attributes": attributes,
        // An error, or not told.
        "status": {"code": if span.status.is_server_error() { 2 } else { 0 }},
    });
    if let Some(parent) = span.context.parent {
        json["parentSpanId"] = parent.to_string().into();
    }
    if let Some(state) = span.context.state.as_ref().and_then(|state| state.to_str().ok()) {
        json["traceState"] = state.into();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_variables_say_where_spans_go() {
        let read = |set: &[(&str, &str)]| {
            let set: BTreeMap<String, String> =
                set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Settings::from_environment(|name| set.get(name).cloned())
        };
        let settings = |url: &str, ratio| Ok(Some(Settings { url: url.into(), ratio }));
        let (all, traces) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[(all, "http://c:4318/")]), settings("http://c:4318/v1/traces", 1.0));
        let both = [(all, "http://c:4318"), (traces, "http://t/x"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
        assert_eq!(read(&both), settings("http://t/x", 0.25));
        assert!(read(&[(all, "c:4318")]).unwrap_err().contains("http://"));
        for ratio in ["2", "-1", "x", "NaN"] {
            let refused = read(&[(all, "http://c"), ("OTEL_TRACES_SAMPLER_ARG", ratio)]);
            assert!(refused.unwrap_err().contains("from 0 to 1"));
        }
    }
}
