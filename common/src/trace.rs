//! What belongs to one request on its way through the servers: its request id, its trace, and how long its stages took.
//!
//! A server takes both ids from the request's headers, or makes them, and gives them on with every call that it makes
//! for it ([`crate::client::HttpClient`] does that). They are bound to the task, not passed as arguments: [`current`] is
//! the trace of the request at hand. A task of its own is started with [`spawn`] if it works for the request; what no
//! request waits for begins a trace of its own with [`background`].
//!
//! Cost: one allocation a request; a stage is two looks at the clock and one atomic addition.

pub mod context;
pub mod log;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod slow;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as _, Frame, SizeHint};
use tokio::task::JoinHandle;

use context::{SpanId, TRACEPARENT, TRACESTATE, TraceContext, TraceId};

/// Header, of requests and answers, that leads to the servers' logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Answer header: how long the stages took, as browsers and proxies show it.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// Answer header: the trace's id, to look for where traces are kept.
pub const TRACE_ID: HeaderName = HeaderName::from_static("dozo-trace-id");

/// A part of the work on a request. Those of one request may overlap, or be passed through more than once: the time of a
/// stage is the sum of all its passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Gateway: whose token it is.
    Auth,
    /// Gateway: what the owner of the name knows of it.
    Resolve,
    /// Gateway: the delivery's record becomes durable.
    Begin,
    /// Gateway: *resolve* and *begin* in one call.
    Open,
    /// Gateway: until the beginning of a content from elsewhere is known and kept.
    Collect,
    /// Gateway: which site or origin has it.
    Search,
    /// Gateway: in which order sources are asked.
    Rank,
    /// Gateway: a source gives the content's beginning.
    Source,
    /// Gateway: until the first chunk is at hand.
    FirstChunk,
    /// Gateway: a published content comes in and its chunks are stored.
    Receive,
    /// Gateway: a published content becomes a holding.
    Hold,
    /// Node: waiting for a chunk that another request works on, or for a place in the queue.
    Queue,
    /// Node: from a change of rows to its being durable, followers included.
    Commit,
    /// Node, search: reading rows.
    Index,
    /// Node: a chunk from or to the store, its verification included.
    Disk,
    /// Node: hashing what came in.
    Hash,
    /// Waiting for news on the caller's wish: a long poll. Not counted as slow.
    Wait,
}

impl Stage {
    const ALL: [Self; 17] = [
        Self::Auth,
        Self::Resolve,
        Self::Begin,
        Self::Open,
        Self::Collect,
        Self::Search,
        Self::Rank,
        Self::Source,
        Self::FirstChunk,
        Self::Receive,
        Self::Hold,
        Self::Queue,
        Self::Commit,
        Self::Index,
        Self::Disk,
        Self::Hash,
        Self::Wait,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Resolve => "resolve",
            Self::Begin => "begin",
            Self::Open => "open",
            Self::Collect => "collect",
            Self::Search => "search",
            Self::Rank => "rank",
            Self::Source => "source",
            Self::FirstChunk => "first-chunk",
            Self::Receive => "receive",
            Self::Hold => "hold",
            Self::Queue => "queue",
            Self::Commit => "commit",
            Self::Index => "index",
            Self::Disk => "disk",
            Self::Hash => "hash",
            Self::Wait => "wait",
        }
    }
}

/// One request, or one piece of background work. Cheap to clone.
#[derive(Clone)]
pub struct Trace(Arc<Inner>);

struct Inner {
    request: Arc<str>,
    context: TraceContext,
    started: Instant,
    /// Nanoseconds, by stage; 0: not passed through.
    stages: [AtomicU64; Stage::ALL.len()],
}

tokio::task_local! {
    static CURRENT: Trace;
}

impl Trace {
    fn new(request: Arc<str>, context: TraceContext) -> Self {
        let stages = [const { AtomicU64::new(0) }; Stage::ALL.len()];
        Self(Arc::new(Inner { request, context, started: Instant::now(), stages }))
    }

    /// That of a request that came in. `make_id` makes a request id where the caller gave none that is usable.
    pub fn of_request(headers: &HeaderMap, make_id: impl FnOnce() -> Arc<str>) -> Self {
        let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
        let usable = |id: &&str| !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_graphic());
        let request = given.filter(usable).map_or_else(make_id, Arc::from);
        Self::new(request, TraceContext::of_headers(headers))
    }

    pub fn request(&self) -> &Arc<str> {
        &self.0.request
    }

    pub fn id(&self) -> TraceId {
        self.0.context.trace
    }

    pub fn span(&self) -> SpanId {
        self.0.context.span
    }

    pub fn context(&self) -> &TraceContext {
        &self.0.context
    }

    pub fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// The stages that were passed through, in the order of a request's life.
    pub fn stages(&self) -> impl Iterator<Item = (Stage, Duration)> + '_ {
        Stage::ALL.into_iter().zip(&self.0.stages).filter_map(|(stage, nanos)| {
            let nanos = nanos.load(Ordering::Relaxed);
            (nanos > 0).then(|| (stage, Duration::from_nanos(nanos)))
        })
    }

    fn stage(&self, stage: Stage) -> Duration {
        Duration::from_nanos(self.0.stages[stage as usize].load(Ordering::Relaxed))
    }

    /// How long it waited for news on the caller's wish.
    pub fn waited(&self) -> Duration {
        self.stage(Stage::Wait)
    }

    fn note(&self, stage: Stage, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.0.stages[stage as usize].fetch_add(nanos, Ordering::Relaxed);
    }

    /// As a header's value, in milliseconds: `open;dur=1.204, first-chunk;dur=0.391, total;dur=1.702`.
    pub fn server_timing(&self, total: Duration) -> Option<HeaderValue> {
        use std::fmt::Write;
        let mut text = String::with_capacity(128);
        let stages = self.stages().map(|(stage, took)| (stage.name(), took));
        for (name, took) in stages.chain([("total", total)]) {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _written =
                write!(text, "{separator}{name};dur={}.{:03}", took.as_millis(), took.subsec_micros() % 1000);
        }
        HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
    }

    /// Runs `work` with this trace as the current one.
    pub async fn run<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// Adds what the receiver of a call needs to carry the trace on.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_str(&self.0.request) {
            headers.entry(REQUEST_ID).or_insert(value);
        }
        if let Ok(value) = HeaderValue::from_str(&self.0.context.traceparent()) {
            headers.entry(TRACEPARENT).or_insert(value);
        }
        if let Some(state) = &self.0.context.state {
            headers.entry(TRACESTATE).or_insert_with(|| state.clone());
        }
    }
}

/// The trace of the work at hand.
pub fn current() -> Option<Trace> {
    CURRENT.try_with(Clone::clone).ok()
}

fn with_current<T>(look: impl FnOnce(&Trace) -> T) -> Option<T> {
    CURRENT.try_with(look).ok()
}

/// Does a part of the work and notes how long it took.
pub async fn stage<F: Future>(stage: Stage, work: F) -> F::Output {
    let begun = Instant::now();
    let done = work.await;
    note(stage, begun.elapsed());
    done
}

/// The same for work that does not wait.
pub fn timed<T>(stage: Stage, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    note(stage, begun.elapsed());
    done
}

/// Adds to a stage of the work at hand.
pub fn note(stage: Stage, took: Duration) {
    with_current(|trace| trace.note(stage, took));
}

/// Starts a task that works for the request at hand.
pub fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    match current() {
        Some(trace) => tokio::spawn(trace.run(work)),
        None => tokio::spawn(work),
    }
}

/// Does work that no request waits for, with a trace of its own; `what` begins its request id.
pub async fn background<F: Future>(what: &str, work: F) -> F::Output {
    let context = TraceContext::root();
    Trace::new(format!("{what}-{}", context.span).into(), context).run(work).await
}

/// A body whose making goes on with the trace of its request.
pub struct TracedBody {
    body: Body,
    trace: Trace,
}

impl TracedBody {
    /// Leaves alone what is all there.
    pub fn wrap(body: Body, trace: Trace) -> Body {
        if body.size_hint().exact().is_some() { body } else { Body::new(Self { body, trace }) }
    }
}

impl http_body::Body for TracedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, trace } = &mut *self;
        CURRENT.sync_scope(trace.clone(), || Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(headers: &[(&'static str, &str)]) -> Trace {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Trace::of_request(&map, || "made-1".into())
    }

    #[test]
    fn a_call_carries_the_ids_on_with_the_callers_span_as_parent() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let given = trace(&[("x-request-id", "abc"), ("traceparent", parent), ("tracestate", "a=1")]);
        let mut headers = HeaderMap::new();
        given.inject(&mut headers);
        assert_eq!(headers["x-request-id"], "abc");
        assert_eq!(headers["tracestate"], "a=1");
        let sent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", given.span());
        assert_eq!(headers["traceparent"], sent.as_str());
        assert_ne!(given.span().to_string(), "00f067aa0ba902b7");
        assert_eq!(given.context().parent.map(|span| span.to_string()).as_deref(), Some("00f067aa0ba902b7"));
    }

    #[test]
    fn a_request_id_that_cannot_be_shown_is_replaced() {
        for bad in ["", "a b", &"x".repeat(65)] {
            assert_eq!(&**trace(&[("x-request-id", bad)]).request(), "made-1");
        }
    }

    #[tokio::test]
    async fn stages_add_up_in_tasks_of_the_request_and_are_told_in_order() {
        let request = trace(&[]);
        let work = async {
            note(Stage::FirstChunk, Duration::from_micros(500));
            spawn(async { note(Stage::Open, Duration::from_micros(1500)) }).await.unwrap();
            stage(Stage::Open, async { note(Stage::FirstChunk, Duration::from_micros(500)) }).await;
            tokio::spawn(async { note(Stage::Disk, Duration::from_secs(1)) }).await.unwrap();
        };
        request.clone().run(work).await;
        let names: Vec<_> = request.stages().map(|(stage, _)| stage.name()).collect();
        assert_eq!(names, ["open", "first-chunk"]);
        assert_eq!(request.stage(Stage::FirstChunk), Duration::from_millis(1));
        assert!(request.stage(Stage::Open) > Duration::from_micros(1500));
        let told = request.server_timing(Duration::from_millis(3)).unwrap();
        let told = told.to_str().unwrap();
        assert!(told.starts_with("open;dur=1.5"), "{told}");
        assert!(told.ends_with(", first-chunk;dur=1.000, total;dur=3.000"), "{told}");
    }

    #[tokio::test]
    async fn background_work_has_a_trace_of_its_own() {
        let (outer, inner) = trace(&[])
            .run(async { (current().unwrap(), background("ends", async { current().unwrap() }).await) })
            .await;
        assert_ne!(outer.id(), inner.id());
        assert!(inner.request().starts_with("ends-"));
        assert!(current().is_none());
    }

    #[tokio::test]
    async fn a_body_is_made_with_the_trace_of_its_request() {
        use http_body_util::BodyExt;
        let seen = futures_util::stream::once(async {
            let id = current().map(|trace| trace.request().to_string()).unwrap_or_default();
            Ok::<_, std::io::Error>(Bytes::from(id))
        });
        let body = TracedBody::wrap(Body::from_stream(seen), trace(&[("x-request-id", "abc")]));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
    }

    #[test]
    fn every_stage_is_listed_at_its_place() {
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, index);
        }
    }
}
