//! What every server has alike: two listeners (service and admin), health, request ids, and an orderly stop.
//!
//! Stop, in order: not ready, others are told, answers end their connections → after a delay, in which everyone turns to
//! others, accept no more → finish what is in flight → stop the background workers → the server's own last step (flush,
//! checkpoint) → done.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use http::HeaderValue;
use http::header::{CONNECTION, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Layer;

use crate::admin::{self, ServerMetrics, Told, Turning};
use crate::auth::Role;
use crate::config::LiveSettings;
use crate::error::{ApiError, ErrorBody, ErrorCode};
use crate::measure::{CallMetrics, RequestMetrics};
use crate::telemetry::MetricsRegistry;
use crate::tls;
use crate::trace::slow::SlowRequests;
use crate::trace::{REQUEST_ID, SERVER_TIMING, TRACE_ID, Trace, TracedBody};

/// How long an answer of the admin listener may hold up a stop.
const ADMIN_FINISH_MAX: Duration = Duration::from_secs(5);
/// Connections that the kernel may have taken before a listener was closed, and how long it takes to see one.
const BACKLOG_MAX: usize = 1024;
const BACKLOG_TIME_MAX: Duration = Duration::from_millis(5);
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
const HEADER_COUNT_MAX: usize = 100;
/// The longest head, and what is made of an answer before its reader takes it: as much waits in memory for every one that
/// is slow.
const BUFFER_BYTES_MAX: usize = 128 << 10;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{address} cannot be listened on; is another server running there?")]
    Listen { address: String, source: std::io::Error },
    #[error("{what} failed")]
    Failed { what: String, source: Box<dyn std::error::Error + Send + Sync> },
}

impl StartError {
    pub fn failed(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { what: what.into(), source: source.into() }
    }
}

/// Where a server listens. Port 0 takes a free one.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Service listener.
    pub listen: SocketAddr,
    /// Health and metrics; keep it off public networks.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Named conditions that must hold before a server calls itself ready.
#[derive(Clone, Default)]
pub struct Health {
    conditions: Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>,
    notes: Arc<Mutex<BTreeMap<&'static str, String>>>,
    failure: watch::Sender<Option<String>>,
}

impl Health {
    pub fn set(&self, condition: &'static str, state: Result<(), String>) {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).insert(condition, state);
    }

    /// Says that the server can do its work only once it is started anew. It is not ready from now on.
    pub fn fail(&self, condition: &'static str, reason: String) {
        self.set(condition, Err(reason.clone()));
        self.failure.send_replace(Some(reason));
    }

    /// Waits for [`Health::fail`], perhaps for ever; answers the reason.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // Cannot be: the sender is ours.
            Err(_) => std::future::pending().await,
        }
    }

    /// Tells of something under way that readiness does not wait for; shown by `/readyz?verbose`.
    pub fn note(&self, what: &'static str, state: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(what, state);
    }

    pub fn is_ready(&self) -> bool {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).values().all(Result::is_ok)
    }

    /// Line by line, as `/readyz?verbose` shows it.
    pub fn report(&self) -> String {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let line = |(name, state): (&&str, &Result<(), String>)| match state {
            Ok(()) => format!("[+] {name} ok\n"),
            Err(reason) => format!("[-] {name} failed: {reason}\n"),
        };
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let notes = notes.iter().map(|(what, state)| format!("[i] {what}: {state}\n"));
        conditions.iter().map(line).chain(notes).collect()
    }
}

/// A server that has bound its listeners and not yet answered anything.
pub struct Server {
    pub role: Role,
    /// As in logs: `gateway/tokyo.g1`.
    pub name: String,
    pub health: Health,
    pub metrics: MetricsRegistry,
    /// Settings that may change while it runs; the server adds its own.
    pub live: LiveSettings,
    http: TcpListener,
    admin: TcpListener,
    stopping: Stopping,
    workers_stop: CancellationToken,
    workers: TaskTracker,
}

/// How a server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// How long it goes on as ever once it says that it is not ready: the time in which others learn of it.
    pub delay: Duration,
    /// How long requests in flight may take to finish after that; then they are cut off.
    pub finish: Duration,
}

impl Default for Stop {
    /// At once, with the usual patience for what is in flight.
    fn default() -> Self {
        Self { delay: Duration::ZERO, finish: Duration::from_secs(30) }
    }
}

/// The steps of a stop, each told once.
#[derive(Clone, Default)]
struct Stopping {
    /// Not ready any more; answers say that their connection ends.
    leaving: CancellationToken,
    /// No connection is taken any more; long polls end.
    draining: CancellationToken,
    /// What is still in flight is cut off.
    cut: CancellationToken,
}

impl Server {
    pub async fn bind(role: Role, name: &str, listen: &Listen) -> Result<Self, StartError> {
        let unbound =
            |address: SocketAddr| move |source| StartError::Listen { address: address.to_string(), source };
        let http = TcpListener::bind(listen.listen).await.map_err(unbound(listen.listen))?;
        let admin = admin::bind(listen.admin).await.map_err(unbound(listen.admin))?;
        let health = Health::default();
        health.set("accepting", Err("starting".into()));
        let metrics = MetricsRegistry::new();
        Ok(Self {
            role,
            name: format!("{role}/{name}"),
            health,
            live: LiveSettings::new(&metrics),
            metrics,
            http,
            admin,
            stopping: Stopping::default(),
            workers_stop: CancellationToken::new(),
            workers: TaskTracker::new(),
        })
    }

    /// Address of the service listener, `http://host:port`, or `https:` with TLS.
    pub fn http_url(&self) -> String {
        url_of(&self.http)
    }

    /// Where the service listener is bound.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.local_addr().ok()
    }

    /// Figures of the calls that the server makes.
    pub fn call_metrics(&self) -> CallMetrics {
        CallMetrics::new(&self.metrics)
    }

    pub fn admin_url(&self) -> String {
        url_of(&self.admin)
    }

    /// Cancelled when background workers shall end: after the last request was answered.
    pub fn stop_token(&self) -> CancellationToken {
        self.workers_stop.clone()
    }

    /// Cancelled when a stop was asked for, while the server still goes on as ever: whoever was told that it is there
    /// is to be told that it goes.
    pub fn leaving_token(&self) -> CancellationToken {
        self.stopping.leaving.clone()
    }

    /// Cancelled when no more is accepted, while requests in flight still run: long polls end on it.
    pub fn draining_token(&self) -> CancellationToken {
        self.stopping.draining.clone()
    }

    /// Starts a background worker; it is dropped at its next await once the server stops.
    pub fn spawn_worker(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.workers_stop.clone();
        self.workers.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Starts a worker that watches [`Server::stop_token`] itself and is waited for at the stop.
    pub fn spawn_until_stop(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.workers.spawn(work);
    }

    /// Begins to answer. `admin_routes` are added to health and metrics on the admin listener;
    /// `last_step` runs when everything else has stopped.
    pub fn run(
        self,
        routes: Router,
        admin_routes: Router,
        last_step: impl Future<Output = ()> + Send + 'static,
    ) -> Running {
        let (http_url, admin_url) = (self.http_url(), self.admin_url());
        let metrics = self.metrics.clone();
        self.spawn_worker(async move { metrics.upkeep().await });
        self.health.set("accepting", Ok(()));
        let measured = RequestMetrics::new(&self.metrics);
        let requests = Requests::new(&self.name, measured.clone(), self.stopping.leaving.clone());
        let turning = Turning::new();
        self.spawn_worker(turning.clone().note());
        let told = Told {
            health: self.health.clone(),
            metrics: ServerMetrics::new(
                self.metrics.clone(),
                self.role,
                self.health.clone(),
                self.stopping.leaving.clone(),
            ),
            slow: requests.slow.clone(),
            turning,
        };
        let routes = routes
            .fallback(|| async { ApiError::new(ErrorCode::NotFound, "there is nothing at this path") })
            .method_not_allowed_fallback(|| async {
                ApiError::new(ErrorCode::MethodNotAllowed, "this path does not take this method")
            })
            .layer(axum::middleware::from_fn_with_state(Arc::new(requests), traced));
        let http = tokio::spawn(serve(self.http, routes, self.stopping.clone(), Some(measured)));
        let stopping = Stopping { draining: self.workers_stop.clone(), ..Stopping::default() };
        let serving = serve(self.admin, admin::routes(told, admin_routes), stopping, None);
        let admin = match admin::runtime() {
            Ok(runtime) => runtime.spawn(serving),
            // Cannot be: it is where the listener was bound.
            Err(_) => tokio::spawn(serving),
        };
        tracing::info!(server = %self.name, http = %http_url, admin = %admin_url, "started");
        Running {
            name: self.name,
            http: http_url,
            admin: admin_url,
            health: self.health,
            live: self.live,
            stopping: self.stopping,
            workers_stop: self.workers_stop,
            workers: self.workers,
            service_listener: http,
            admin_listener: admin,
            last_step: Box::pin(last_step),
        }
    }
}

fn url_of(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|_| String::new(), |address| format!("{}://{address}", tls::scheme()))
}

/// A server at work.
pub struct Running {
    pub name: String,
    pub http: String,
    pub admin: String,
    pub health: Health,
    pub live: LiveSettings,
    stopping: Stopping,
    workers_stop: CancellationToken,
    workers: TaskTracker,
    service_listener: JoinHandle<()>,
    admin_listener: JoinHandle<()>,
    last_step: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Running {
    /// [`Running::stop_as`] at once.
    pub async fn stop(self) {
        self.stop_as(Stop::default()).await;
    }

    /// Stops in order; returns when nothing of the server runs any more.
    pub async fn stop_as(mut self, how: Stop) {
        self.health.set("accepting", Err("stopping".into()));
        self.stopping.leaving.cancel();
        if how.delay > Duration::ZERO {
            tracing::info!(server = %self.name, delay = ?how.delay, "stopping: not ready any more");
            tokio::time::sleep(how.delay).await;
        }
        self.stopping.draining.cancel();
        let served = match tokio::time::timeout(how.finish, &mut self.service_listener).await {
            Ok(served) => served,
            Err(_) => {
                tracing::warn!(server = %self.name, limit = ?how.finish, "requests still in flight are cut off");
                self.stopping.cut.cancel();
                self.service_listener.await
            }
        };
        if served.is_err() {
            tracing::error!(server = %self.name, "the listener panicked");
        }
        self.workers_stop.cancel();
        self.workers.close();
        self.workers.wait().await;
        // A panic of the admin listener was logged by the panic hook, and what it still answers may be cut off.
        let _either = tokio::time::timeout(ADMIN_FINISH_MAX, self.admin_listener).await;
        self.last_step.await;
        tracing::info!(server = %self.name, "stopped");
    }
}

/// Accepts HTTP/1.1 connections until `stop`, then lets those in flight finish.
pub async fn accept_loop(listener: TcpListener, routes: Router, stop: CancellationToken) {
    serve(listener, routes, Stopping { draining: stop, ..Stopping::default() }, None).await;
}

async fn serve(listener: TcpListener, routes: Router, stopping: Stopping, metrics: Option<RequestMetrics>) {
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX).max_headers(HEADER_COUNT_MAX);
    http.max_buf_size(BUFFER_BYTES_MAX);
    let connections = TaskTracker::new();
    let tls = tls::acceptor();
    let take = |stream: TcpStream, peer: SocketAddr| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "set_nodelay");
        }
        let connection = Connection {
            http: http.clone(),
            service: TowerToHyperService::new(Extension(PeerAddress(peer)).layer(routes.clone())),
            watcher: graceful.watcher(),
        };
        let (tls, cut) = (tls.clone(), stopping.cut.clone());
        let open = metrics.as_ref().map(RequestMetrics::connection);
        connections.spawn(async move {
            let _open = open;
            let _cut_off = cut.run_until_cancelled(connection.serve(stream, tls)).await;
        });
    };
    loop {
        let accepted = tokio::select! {
            () = stopping.draining.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => take(stream, peer),
            Err(error) => {
                // Out of file descriptors, mostly: those in flight give some back.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // To their clients these are open, and a request may be in them already.
    let backlog = if stopping.leaving.is_cancelled() { BACKLOG_MAX } else { 0 };
    for _ in 0..backlog {
        match tokio::time::timeout(BACKLOG_TIME_MAX, listener.accept()).await {
            Ok(Ok((stream, peer))) => take(stream, peer),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    drop(listener);
    graceful.shutdown().await;
    connections.close();
    connections.wait().await;
}

/// What a connection is served with.
struct Connection {
    http: http1::Builder,
    service: TowerToHyperService<<Extension<PeerAddress> as Layer<Router>>::Service>,
    watcher: Watcher,
}

impl Connection {
    /// Serves until the client has had enough, or a stop was asked for and nothing is in flight.
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let Some(tls) = tls else { return self.serve_stream(stream).await };
        match tokio::time::timeout(HEADER_TIME_MAX, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve_stream(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS connection came about"),
            Err(_) => tracing::debug!("a client was too slow with its side of TLS"),
        }
    }

    async fn serve_stream(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let connection = self.http.serve_connection(TokioIo::new(stream), self.service);
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// Who is at the other end of the connection; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// What all requests of a server share. Request ids are eight random digits per process and server, then a counter.
struct Requests {
    server: Box<str>,
    id_prefix: String,
    next_id: AtomicU64,
    measured: RequestMetrics,
    slow: Arc<SlowRequests>,
    leaving: CancellationToken,
}

impl Requests {
    fn new(server: &str, measured: RequestMetrics, leaving: CancellationToken) -> Self {
        let id_prefix = crate::auth::random_hex(4);
        let (next_id, slow) = (AtomicU64::default(), Arc::default());
        Self { server: server.into(), id_prefix, next_id, measured, slow, leaving }
    }

    fn make_id(&self) -> Arc<str> {
        format!("{}-{}", self.id_prefix, self.next_id.fetch_add(1, Ordering::Relaxed) + 1).into()
    }
}

/// Answers a request within its trace, and tells of it: in the answer's head, the figures, the log, the list of slow
/// requests. To be layered on the finished router, so that it sees the route that matched.
async fn traced(State(requests): State<Arc<Requests>>, request: Request, next: Next) -> Response {
    let trace = Trace::of_request(request.headers(), || requests.make_id());
    trace.clone().run(answer(requests, trace, request, next)).await
}

async fn answer(requests: Arc<Requests>, trace: Trace, request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    let (server, path) = (&*requests.server, uri.path());
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let cause = error.cause.as_deref().unwrap_or("");
        if error.code.status().is_server_error() {
            tracing::warn!(server, %method, path, code = %error.code, message = error.message, cause, "request failed");
        } else {
            tracing::debug!(server, %method, path, code = %error.code, message = error.message, cause, "request refused");
        }
        let request_id = trace.request().to_string();
        let body = ErrorBody { code: error.code, message: error.message, request_id };
        let kept = std::mem::take(response.headers_mut());
        response = (error.code.status(), Json(body)).into_response();
        for (name, value) in &kept {
            if name != CONTENT_TYPE && name != http::header::CONTENT_LENGTH {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    let (total, status) = (trace.elapsed(), response.status());
    let route = route.as_ref().map(MatchedPath::as_str);
    let ms = total.as_secs_f64() * 1e3;
    requests.measured.answered(&method, route, status.as_u16(), total.saturating_sub(trace.waited()));
    tracing::debug!(target: "access", server, %method, route, status = status.as_u16(), ms, "answered");
    requests.slow.note(&trace, total, &method, route, status);
    #[cfg(feature = "otlp")]
    crate::trace::otlp::export(&trace, total, server, &method, route, status);
    let headers = response.headers_mut();
    if requests.leaving.is_cancelled() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(value) = HeaderValue::from_str(trace.request()) {
        headers.insert(REQUEST_ID, value);
    }
    if let Ok(value) = HeaderValue::from_str(&trace.id().to_string()) {
        headers.insert(TRACE_ID, value);
    }
    if let Some(value) = trace.server_timing(total) {
        headers.insert(SERVER_TIMING, value);
    }
    response.map(|body| TracedBody::wrap(body, trace))
}

/// Turns axum's own refusals of a body or query into our errors.
pub fn bad_request(rejection: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, rejection.to_string())
}
