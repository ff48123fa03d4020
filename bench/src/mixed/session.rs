//! A client behind a load balancer: each session has a gateway of its own and goes to another while that one is not
//! ready or refuses connections.
//!
//! A request is repeated once when its connection broke before an answer began and had served others before (the
//! server may have closed it at that moment) or another gateway is there to ask; every repetition is counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::client::HttpClient;
use http::{HeaderValue, Method, Response};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::content::Content;
use crate::target::{ServerAddress, TargetError, resolve};
use crate::wire::{Connection, Outgoing, WireError};

/// A gateway that refused a connection or is not ready is left alone for this long.
const LEFT_ALONE: Duration = Duration::from_millis(500);
const READY_EVERY: Duration = Duration::from_millis(100);
const READY_TIME_MAX: Duration = Duration::from_secs(1);

struct Gateway {
    address: SocketAddr,
    host: String,
    /// Base address of its admin listener; empty: its readiness is not known.
    admin: String,
    /// Milliseconds since `Gateways::start` until which it is left alone.
    away_until_ms: AtomicU64,
}

/// The gateways, and how it went with them.
pub struct Gateways {
    start: Instant,
    all: Vec<Gateway>,
    repeated: Mutex<BTreeMap<&'static str, u64>>,
    /// GETs whose connection broke before an answer began: each may have begun a delivery.
    unanswered: AtomicU64,
}

impl Gateways {
    pub async fn resolve(servers: &[ServerAddress]) -> Result<Self, TargetError> {
        let mut all = Vec::new();
        for server in servers {
            let (address, host) = resolve(&server.http).await?;
            all.push(Gateway {
                address,
                host,
                admin: server.admin.clone(),
                away_until_ms: AtomicU64::new(0),
            });
        }
        Ok(Self { start: Instant::now(), all, repeated: Mutex::default(), unanswered: AtomicU64::new(0) })
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn leave_alone(&self, index: usize) {
        let until = self.now_ms() + LEFT_ALONE.as_millis() as u64;
        self.all[index].away_until_ms.fetch_max(until, Ordering::Relaxed);
    }

    /// The first that is there, from `home` on; `home` if none is.
    fn choose(&self, home: usize) -> usize {
        let now = self.now_ms();
        let mut order = (0..self.all.len()).map(|step| (home + step) % self.all.len());
        order.find(|index| self.all[*index].away_until_ms.load(Ordering::Relaxed) <= now).unwrap_or(home)
    }

    /// Asks every gateway again and again whether it is ready; never ends.
    pub async fn watch(&self) {
        let http = HttpClient::new();
        loop {
            for (index, gateway) in
                self.all.iter().enumerate().filter(|(_, gateway)| !gateway.admin.is_empty())
            {
                let request =
                    http::Request::get(format!("{}/readyz", gateway.admin)).body(Full::new(Bytes::new()));
                let Ok(request) = request else { continue };
                let answer = http.send(request, READY_TIME_MAX).await;
                if !answer.is_ok_and(|answer| answer.status().is_success()) {
                    self.leave_alone(index);
                }
            }
            tokio::time::sleep(READY_EVERY).await;
        }
    }

    fn count(&self, why: &'static str) {
        *self.repeated.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }

    /// Requests that were sent again, by reason.
    pub fn repeated(&self) -> BTreeMap<&'static str, u64> {
        self.repeated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }
}

/// A request that can be sent twice.
pub struct Ask<'a> {
    pub method: Method,
    /// Percent-encoded, with the query.
    pub path: &'a str,
    pub range: Option<HeaderValue>,
    pub body: Option<Content>,
}

impl<'a> Ask<'a> {
    pub fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, range: None, body: None }
    }
}

/// One client's connection to one gateway at a time.
pub struct Session {
    gateways: Arc<Gateways>,
    home: usize,
    at: usize,
    token: String,
    connection: Connection,
    repeated: bool,
}

impl Session {
    /// `home` counts through the gateways, round and round.
    pub fn new(gateways: Arc<Gateways>, home: usize, token: &str) -> Result<Self, http::Error> {
        let home = home % gateways.all.len();
        let at = gateways.choose(home);
        let connection = Connection::new(gateways.all[at].address, &gateways.all[at].host, token)?;
        Ok(Self { gateways, home, at, token: token.to_owned(), connection, repeated: false })
    }

    /// The present gateway's host and port.
    pub fn gateway(&self) -> &str {
        &self.gateways.all[self.at].host
    }

    /// Whether the last request was sent twice: the first may have been carried out.
    pub fn was_repeated(&self) -> bool {
        self.repeated
    }

    pub fn close(&mut self) {
        self.connection.close();
    }

    /// A request was cut off: nobody knows what became of it.
    pub fn cut_off(&mut self, was_get: bool) {
        self.connection.close();
        self.gateways.unanswered.fetch_add(u64::from(was_get), Ordering::Relaxed);
    }

    fn turn_to(&mut self, index: usize) -> Result<(), http::Error> {
        if index != self.at {
            let gateway = &self.gateways.all[index];
            self.connection = Connection::new(gateway.address, &gateway.host, &self.token)?;
            self.at = index;
        }
        Ok(())
    }

    pub async fn send(&mut self, ask: &Ask<'_>) -> Result<Response<Incoming>, WireError> {
        self.repeated = false;
        let mut refused = 0;
        loop {
            self.turn_to(self.gateways.choose(self.home))?;
            let body = ask.body.map_or(Outgoing::EMPTY, Outgoing::content);
            let answer =
                self.connection.send_range(ask.method.clone(), ask.path, ask.range.as_ref(), body).await;
            match answer {
                Err(WireError::Connect(_)) if refused + 1 < self.gateways.all.len() => {
                    refused += 1;
                    self.gateways.count("connection refused");
                    self.gateways.leave_alone(self.at);
                }
                Err(WireError::Transport(error)) => {
                    let is_get = u64::from(ask.method == Method::GET);
                    self.gateways.unanswered.fetch_add(is_get, Ordering::Relaxed);
                    let reused = self.connection.was_reused();
                    self.connection.close();
                    if self.repeated || !(reused || self.gateways.all.len() > 1) {
                        return Err(WireError::Transport(error));
                    }
                    self.repeated = true;
                    self.gateways.count(if reused {
                        "kept connection closed"
                    } else {
                        "new connection closed"
                    });
                    if !reused {
                        self.gateways.leave_alone(self.at);
                    }
                }
                answer => return answer,
            }
        }
    }
}
