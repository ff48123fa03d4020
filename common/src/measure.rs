//! Counts and times what a server answers and what it asks of others.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::Method;
use metrics::{Counter, Gauge, Histogram};

use crate::auth::Role;
use crate::catalogue::metrics::{CALL_DURATION, CALLS, HTTP_CONNECTIONS, HTTP_DURATION, HTTP_REQUESTS};
use crate::client::CallError;
use crate::telemetry::MetricsRegistry;

/// Requests that no route takes.
const UNKNOWN: &str = "unknown";

/// Figures of a service listener. Cheap to clone.
#[derive(Clone)]
pub struct RequestMetrics(Arc<Requests>);

struct Requests {
    registry: MetricsRegistry,
    connections: Gauge,
    routes: RwLock<Routes>,
}

/// By path, and for each of those by method: they are few and fixed.
type Routes = HashMap<Box<str>, Vec<(Method, Arc<Route>)>>;

struct Route {
    name: String,
    duration: Histogram,
    codes: RwLock<HashMap<u16, Counter>>,
}

impl RequestMetrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        let connections = registry.gauge(&HTTP_CONNECTIONS, &[]);
        Self(Arc::new(Requests { registry: registry.clone(), connections, routes: RwLock::default() }))
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connection(&self) -> OpenConnection {
        self.0.connections.increment(1.0);
        OpenConnection(self.0.connections.clone())
    }

    /// Counts a request that was answered; `path` is that of its route, and `took` lacks the time for which it waited for
    /// news.
    pub fn answered(&self, method: &Method, path: Option<&str>, code: u16, took: Duration) {
        if cfg!(feature = "uninstrumented") {
            return;
        }
        let route = match path.filter(|_| METHODS.contains(method)) {
            Some(path) => self.route(method, path),
            None => self.route(&Method::GET, UNKNOWN),
        };
        route.duration.record(took);
        self.count(&route, code);
    }

    fn route(&self, method: &Method, path: &str) -> Arc<Route> {
        let of = |routes: &Routes| {
            let methods = routes.get(path)?;
            methods.iter().find(|(known, _)| known == method).map(|(_, route)| route.clone())
        };
        if let Some(route) = of(&self.0.routes.read().unwrap_or_else(PoisonError::into_inner)) {
            return route;
        }
        let mut routes = self.0.routes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = of(&routes) {
            return route;
        }
        let name = if path == UNKNOWN { path.to_owned() } else { format!("{method} {path}") };
        let duration = self.0.registry.histogram(&HTTP_DURATION, &[&name]);
        let route = Arc::new(Route { name, duration, codes: RwLock::default() });
        routes.entry(path.into()).or_default().push((method.clone(), route.clone()));
        route
    }

    fn count(&self, route: &Route, code: u16) {
        if let Some(counter) = route.codes.read().unwrap_or_else(PoisonError::into_inner).get(&code) {
            counter.increment(1);
            return;
        }
        let mut codes = route.codes.write().unwrap_or_else(PoisonError::into_inner);
        let make = || self.0.registry.counter(&HTTP_REQUESTS, &[&route.name, &code.to_string()]);
        codes.entry(code).or_insert_with(make).increment(1);
    }
}

pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Methods that get series of their own; a caller can invent others, as many as it likes.
const METHODS: [Method; 5] = [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE];

/// Figures of the calls that a server makes, by the role that it calls. Cheap to clone.
#[derive(Clone)]
pub struct CallMetrics(Arc<[RoleCalls]>);

struct RoleCalls {
    ok: Counter,
    refused: Counter,
    failed: Counter,
    timeout: Counter,
    unreachable: Counter,
    duration: Histogram,
}

impl CallMetrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        let of = |role: Role| {
            let calls = |outcome| registry.counter(&CALLS, &[role.as_str(), outcome]);
            RoleCalls {
                ok: calls("ok"),
                refused: calls("refused"),
                failed: calls("failed"),
                timeout: calls("timeout"),
                unreachable: calls("unreachable"),
                duration: registry.histogram(&CALL_DURATION, &[role.as_str()]),
            }
        };
        Self(Role::ALL.map(of).into())
    }

    /// One call, from its begin to the head of its answer.
    pub fn count<T>(&self, audience: Role, begin: Instant, answer: &Result<T, CallError>) {
        let place = Role::ALL.iter().position(|role| *role == audience);
        let Some(calls) = place.and_then(|place| self.0.get(place)) else { return };
        calls.duration.record(begin.elapsed());
        let outcome = match answer {
            Ok(_) => &calls.ok,
            Err(CallError::Refused { body, .. }) if body.code.status().is_client_error() => &calls.refused,
            Err(CallError::Refused { .. } | CallError::Answer { .. }) => &calls.failed,
            Err(CallError::Timeout { .. }) => &calls.timeout,
            Err(CallError::Unreachable { .. }) => &calls.unreachable,
        };
        outcome.increment(1);
    }
}
