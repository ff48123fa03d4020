//! What every server has alike: two listeners (service and admin), health, request ids, and an orderly stop.
//!
//! Stop, in order: not ready → accept no more → finish what is in flight → stop the background workers → the
//! server's own last step (flush, checkpoint) → done.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use metrics::Gauge;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Layer;

use crate::auth::Role;
use crate::catalogue::metrics::{DRAINING, READY};
use crate::config::LiveSettings;
use crate::error::{ApiError, ErrorBody, ErrorCode};
use crate::measure::{CallMetrics, RequestMetrics, measure};
use crate::telemetry::{MetricsRegistry, ProcessMetrics};

/// How long requests in flight may take to finish after a stop was asked for.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(30);
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
const HEADER_COUNT_MAX: usize = 100;
/// Answer header that leads from an answer to the server's log.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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

    fn report(&self) -> String {
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
    draining: CancellationToken,
    workers_stop: CancellationToken,
    workers: TaskTracker,
}

impl Server {
    pub async fn bind(role: Role, name: &str, listen: &Listen) -> Result<Self, StartError> {
        let http = bind(listen.listen).await?;
        let admin = bind(listen.admin).await?;
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
            draining: CancellationToken::new(),
            workers_stop: CancellationToken::new(),
            workers: TaskTracker::new(),
        })
    }

    /// Address of the service listener, `http://host:port`.
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

    /// Cancelled when a stop was asked for, while requests in flight still run: long polls end on it.
    pub fn draining_token(&self) -> CancellationToken {
        self.draining.clone()
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
        let ids = RequestIds::new(&self.name);
        let requests = RequestMetrics::new(&self.metrics);
        let routes = routes
            .fallback(|| async { ApiError::new(ErrorCode::NotFound, "there is nothing at this path") })
            .method_not_allowed_fallback(|| async {
                ApiError::new(ErrorCode::MethodNotAllowed, "this path does not take this method")
            })
            .layer(axum::middleware::from_fn_with_state(ids, with_request_id))
            .layer(axum::middleware::from_fn_with_state(requests.clone(), measure));
        let metrics = ServerMetrics::new(self.metrics, self.role, self.health.clone(), self.draining.clone());
        let admin = admin_router(self.health.clone(), metrics).merge(admin_routes);
        let http = tokio::spawn(accept(self.http, routes, self.draining.clone(), Some(requests)));
        let admin = tokio::spawn(accept_loop(self.admin, admin, self.workers_stop.clone()));
        tracing::info!(server = %self.name, http = %http_url, admin = %admin_url, "started");
        Running {
            name: self.name,
            http: http_url,
            admin: admin_url,
            health: self.health,
            live: self.live,
            draining: self.draining,
            workers_stop: self.workers_stop,
            workers: self.workers,
            listeners: vec![http, admin],
            last_step: Box::pin(last_step),
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen { address: address.to_string(), source })
}

fn url_of(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|_| String::new(), |address| format!("http://{address}"))
}

/// A server at work.
pub struct Running {
    pub name: String,
    pub http: String,
    pub admin: String,
    pub health: Health,
    pub live: LiveSettings,
    draining: CancellationToken,
    workers_stop: CancellationToken,
    workers: TaskTracker,
    listeners: Vec<tokio::task::JoinHandle<()>>,
    last_step: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Running {
    /// Stops in order; returns when nothing of the server runs any more.
    pub async fn stop(mut self) {
        self.health.set("accepting", Err("draining".into()));
        self.draining.cancel();
        let service = self.listeners.remove(0);
        if service.await.is_err() {
            tracing::error!(server = %self.name, "the listener panicked");
        }
        self.workers_stop.cancel();
        self.workers.close();
        self.workers.wait().await;
        for listener in self.listeners {
            // A panic of the admin listener was logged by the panic hook; nothing is left to do about it.
            let _panicked = listener.await;
        }
        self.last_step.await;
        tracing::info!(server = %self.name, "stopped");
    }
}

/// Accepts HTTP/1.1 connections until `stop`, then lets those in flight finish.
pub async fn accept_loop(listener: TcpListener, routes: Router, stop: CancellationToken) {
    accept(listener, routes, stop, None).await;
}

async fn accept(
    listener: TcpListener,
    routes: Router,
    stop: CancellationToken,
    metrics: Option<RequestMetrics>,
) {
    let graceful = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX).max_headers(HEADER_COUNT_MAX);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: those in flight give some back.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "set_nodelay");
        }
        let service = TowerToHyperService::new(Extension(PeerAddress(peer)).layer(routes.clone()));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let open = metrics.as_ref().map(RequestMetrics::connection);
        tokio::spawn(async move {
            let _open = open;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIME_MAX, graceful.shutdown()).await.is_err() {
        tracing::warn!(limit = ?DRAIN_TIME_MAX, "requests still in flight are cut off");
    }
}

/// What `/metrics` shows, with what is read only when it is asked for.
struct ServerMetrics {
    registry: MetricsRegistry,
    process: ProcessMetrics,
    health: Health,
    draining: CancellationToken,
    ready_gauge: Gauge,
    draining_gauge: Gauge,
}

impl ServerMetrics {
    fn new(registry: MetricsRegistry, role: Role, health: Health, draining: CancellationToken) -> Arc<Self> {
        let process = ProcessMetrics::new(&registry, role);
        let (ready_gauge, draining_gauge) = (registry.gauge(&READY, &[]), registry.gauge(&DRAINING, &[]));
        Arc::new(Self { registry, process, health, draining, ready_gauge, draining_gauge })
    }

    fn render(&self) -> String {
        self.process.read();
        self.ready_gauge.set(f64::from(u8::from(self.health.is_ready())));
        self.draining_gauge.set(f64::from(u8::from(self.draining.is_cancelled())));
        self.registry.render()
    }
}

fn admin_router(health: Health, metrics: Arc<ServerMetrics>) -> Router {
    let ready = move |Query(query): Query<BTreeMap<String, String>>| async move {
        let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = if query.contains_key("verbose") {
            health.report()
        } else if status == StatusCode::OK {
            "ok\n".to_owned()
        } else {
            "not ready\n".to_owned()
        };
        (status, body)
    };
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(move || async move { ([(CONTENT_TYPE, text.clone())], metrics.render()) }))
}

/// Makes request ids: eight random digits per process and server, then a counter.
#[derive(Clone)]
struct RequestIds {
    server: Arc<str>,
    prefix: Arc<str>,
    next: Arc<AtomicU64>,
}

/// Who is at the other end of the connection; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// Id of the request being answered; an extension of every request.
#[derive(Clone, Debug)]
pub struct RequestId(pub Arc<str>);

impl RequestIds {
    fn new(server: &str) -> Self {
        let prefix = crate::auth::random_hex(4).into();
        Self { server: server.into(), prefix, next: Arc::new(AtomicU64::new(1)) }
    }
}

async fn with_request_id(State(ids): State<RequestIds>, mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|v| v.to_str().ok());
    let usable = |id: &&str| !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_graphic());
    let id: Arc<str> = match given.filter(usable) {
        Some(id) => id.into(),
        None => format!("{}-{}", ids.prefix, ids.next.fetch_add(1, Ordering::Relaxed)).into(),
    };
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let cause = error.cause.as_deref().unwrap_or("");
        if error.code.status().is_server_error() {
            tracing::warn!(server = %ids.server, request = %id, %method, path, code = %error.code, message = error.message, cause, "request failed");
        } else {
            tracing::debug!(server = %ids.server, request = %id, %method, path, code = %error.code, message = error.message, cause, "request refused");
        }
        let body = ErrorBody { code: error.code, message: error.message, request_id: id.to_string() };
        let kept = std::mem::take(response.headers_mut());
        response = (error.code.status(), Json(body)).into_response();
        for (name, value) in &kept {
            if name != CONTENT_TYPE && name != http::header::CONTENT_LENGTH {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Turns axum's own refusals of a body or query into our errors.
pub fn bad_request(rejection: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, rejection.to_string())
}
