//! The admin listener: health, metrics, slow requests, and what a server adds.
//!
//! A thread of its own serves it, one for all servers of the process, so a server whose event loop is stuck is told as
//! not live instead of not answering. What a server adds runs in the server's own event loop, where its parts are.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::extract::{Query, Request};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use metrics::Gauge;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

use crate::auth::Role;
use crate::catalogue::metrics::{DRAINING, READY};
use crate::error::ApiError;
use crate::server::Health;
use crate::telemetry::{MetricsRegistry, ProcessMetrics};
use crate::trace::slow::SlowRequests;

/// An event loop that has not turned for so long is stuck.
const TURN_TIME_MAX: Duration = Duration::from_secs(5);
const TURN_INTERVAL: Duration = Duration::from_millis(500);

static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("dozo-admin").build()
});

/// Where admin listeners live.
pub(crate) fn runtime() -> io::Result<&'static Handle> {
    match &*RUNTIME {
        Ok(runtime) => Ok(runtime.handle()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    runtime()?.spawn(TcpListener::bind(address)).await.map_err(io::Error::other)?
}

/// When a server's event loop turned last.
#[derive(Clone)]
pub(crate) struct Turning {
    since: Instant,
    turned_ms: Arc<AtomicU64>,
}

impl Turning {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), turned_ms: Arc::default() }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes that the event loop turns, for ever; runs in it.
    pub(crate) async fn note(self) {
        loop {
            self.turned_ms.store(self.now_ms(), Ordering::Relaxed);
            tokio::time::sleep(TURN_INTERVAL).await;
        }
    }

    fn still_for(&self) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(self.turned_ms.load(Ordering::Relaxed)))
    }
}

/// What `/metrics` shows, with what is read only when it is asked for.
pub(crate) struct ServerMetrics {
    registry: MetricsRegistry,
    process: ProcessMetrics,
    health: Health,
    leaving: CancellationToken,
    ready_gauge: Gauge,
    draining_gauge: Gauge,
    /// Of the server, whose runtime is told of.
    event_loop: Handle,
}

impl ServerMetrics {
    /// To be called in the server's event loop.
    pub(crate) fn new(
        registry: MetricsRegistry,
        role: Role,
        health: Health,
        leaving: CancellationToken,
    ) -> Self {
        let process = ProcessMetrics::new(&registry, role);
        let (ready_gauge, draining_gauge) = (registry.gauge(&READY, &[]), registry.gauge(&DRAINING, &[]));
        let event_loop = Handle::current();
        Self { registry, process, health, leaving, ready_gauge, draining_gauge, event_loop }
    }

    fn render(&self) -> String {
        let _in_event_loop = self.event_loop.enter();
        self.process.read();
        self.ready_gauge.set(f64::from(u8::from(self.health.is_ready())));
        self.draining_gauge.set(f64::from(u8::from(self.leaving.is_cancelled())));
        self.registry.render()
    }
}

/// What the listener tells of.
pub(crate) struct Told {
    pub health: Health,
    pub metrics: ServerMetrics,
    pub slow: Arc<SlowRequests>,
    pub turning: Turning,
}

/// All routes; to be called in the server's event loop, where `added` will run.
pub(crate) fn routes(told: Told, added: Router) -> Router {
    let Told { health, metrics, slow, turning } = told;
    let live = move || async move {
        let still = turning.still_for();
        if still < TURN_TIME_MAX {
            return (StatusCode::OK, "ok\n".to_owned());
        }
        let message = format!("the event loop has not turned for {:.1} s\n", still.as_secs_f64());
        (StatusCode::SERVICE_UNAVAILABLE, message)
    };
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
    let metrics = Arc::new(metrics);
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(move || async move { ([(CONTENT_TYPE, text.clone())], metrics.render()) }))
        .route("/v1/debug/slow", get(move || async move { Json(slow.list()) }))
        .merge(in_event_loop(added))
}

/// Answers in the event loop that this is called in.
fn in_event_loop(routes: Router) -> Router {
    let event_loop = Handle::current();
    routes.layer(from_fn(move |request: Request, next: Next| {
        let event_loop = event_loop.clone();
        async move {
            let answered = event_loop.spawn(next.run(request)).await;
            answered.unwrap_or_else(|error| ApiError::internal(&error).into_response())
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::server::{Listen, Server};

    fn ask(admin: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(admin.trim_start_matches("http://")).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_stuck_event_loop_is_told_while_it_is_stuck() {
        let event_loop = Builder::new_current_thread().enable_all().build().unwrap();
        event_loop.block_on(async {
            let free = SocketAddr::from(([127, 0, 0, 1], 0));
            let listen = Listen { listen: free, admin: free };
            let server = Server::bind(Role::Gateway, "g1", &listen).await.unwrap();
            let added = Router::new().fallback(|| async { "here" });
            let running = server.run(Router::new(), added, async {});
            let admin = running.admin.clone();
            let asking = {
                let admin = admin.clone();
                move |path: &'static str| {
                    let admin = admin.clone();
                    tokio::task::spawn_blocking(move || ask(&admin, path))
                }
            };
            assert!(asking("/livez").await.unwrap().starts_with("HTTP/1.1 200"));
            assert!(asking("/v1/added").await.unwrap().ends_with("here"));
            let stuck = {
                std::thread::sleep(TURN_TIME_MAX + TURN_INTERVAL);
                ask(&admin, "/livez")
            };
            assert!(stuck.starts_with("HTTP/1.1 503"), "{stuck}");
            assert!(stuck.contains("the event loop has not turned for 5."), "{stuck}");
            tokio::time::sleep(TURN_INTERVAL * 2).await;
            assert!(asking("/livez").await.unwrap().starts_with("HTTP/1.1 200"), "it goes on");
            running.stop().await;
        });
    }
}
