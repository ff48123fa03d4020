//! The load against a server in memory that is right, or wrong in one planted way: the way is found.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use common::api::gateway::{ContentListing, DELIVERY, ListedContent, Published};
use common::error::{ErrorBody, ErrorCode};
use common::id::DeliveryId;
use common::time::UnixMillis;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, RANGE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::recorder::FaultKind;
use super::*;

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// One bit of an answer.
    WrongByte,
    /// An overwrite that is acknowledged and not carried out.
    LostOverwrite,
    /// A deletion that is acknowledged and not carried out.
    LostDelete,
    /// A listing that does not know of the last PUT.
    StaleListing,
    Refusal,
    /// Connections that are closed after ten requests without a word: not a fault of the server.
    ClosedConnections,
}

struct Server {
    planted: Planted,
    contents: Mutex<BTreeMap<String, Bytes>>,
    /// Requests of the kind in which the fault is planted.
    count: AtomicU64,
    deliveries: AtomicU64,
}

impl Server {
    /// Whether now is the time for the fault: now and then, for one alone may be made good before it is looked at.
    fn is_due(&self, planted: Planted) -> bool {
        self.planted == planted && self.count.fetch_add(1, Ordering::Relaxed) % 16 == 7
    }

    fn contents(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.contents.lock().unwrap()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        if path.starts_with("/v1/buckets/") {
            return Response::new(Full::new("{}".into()));
        }
        let key = path.trim_start_matches("/v1/contents/").to_owned();
        if !key.contains('/') {
            return self.list(&key, parts.uri.query().unwrap_or(""));
        }
        match parts.method {
            Method::PUT => {
                let bytes = body.collect().await.unwrap().to_bytes();
                let overwrites = self.contents().contains_key(&key);
                if !(overwrites && self.is_due(Planted::LostOverwrite)) {
                    self.contents().insert(key.clone(), bytes.clone());
                }
                let hash = ContentHash::of(&bytes);
                let len = bytes.len() as u64;
                json(&Published { name: key, hash, len, chunks: 1, new_bytes: len })
            }
            Method::DELETE if self.is_due(Planted::LostDelete) => Response::new(Full::default()),
            Method::DELETE => match self.contents().remove(&key) {
                Some(_) => Response::new(Full::default()),
                None => refusal(404, ErrorCode::ContentNotFound),
            },
            _ if self.is_due(Planted::Refusal) => refusal(503, ErrorCode::NodeUnavailable),
            _ => match self.contents().get(&key).cloned() {
                None => refusal(404, ErrorCode::ContentNotFound),
                Some(bytes) => self.content(bytes, parts.headers.get(RANGE), parts.method == Method::HEAD),
            },
        }
    }

    fn content(
        &self,
        bytes: Bytes,
        range: Option<&http::HeaderValue>,
        is_head: bool,
    ) -> Response<Full<Bytes>> {
        let mut bytes_id = [0; 16];
        bytes_id[..8].copy_from_slice(&self.deliveries.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let mut response = Response::builder()
            .header(ETAG, format!("\"{}\"", ContentHash::of(&bytes)))
            .header(DELIVERY, DeliveryId::from_bytes(bytes_id).to_string());
        if is_head {
            return response.header(CONTENT_LENGTH, bytes.len()).body(Full::default()).unwrap();
        }
        let mut part = bytes.clone();
        if let Some(range) = range {
            let (first, last) = range.to_str().unwrap().trim_start_matches("bytes=").split_once('-').unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            // An overwrite that was lost may have left fewer bytes than the load knows of.
            if first >= bytes.len() {
                return refusal(416, ErrorCode::RangeNotSatisfiable);
            }
            let last = last.min(bytes.len() - 1);
            part = bytes.slice(first..last + 1);
            let told = format!("bytes {first}-{last}/{}", bytes.len());
            response = response.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, told);
        }
        if self.is_due(Planted::WrongByte) {
            let mut wrong = part.to_vec();
            *wrong.last_mut().unwrap() ^= 1;
            part = wrong.into();
        }
        response.body(Full::new(part)).unwrap()
    }

    fn list(&self, bucket: &str, query: &str) -> Response<Full<Bytes>> {
        let prefix = query.split('&').find_map(|part| part.strip_prefix("prefix=")).unwrap();
        let prefix = format!("{bucket}/{}", prefix.replace("%2F", "/"));
        let contents = self.contents();
        let shown = contents.iter().filter(|(key, _)| key.starts_with(&prefix));
        let line = |(key, bytes): (&String, &Bytes)| ListedContent {
            key: key[bucket.len() + 1..].to_owned(),
            hash: ContentHash::of(bytes),
            len: bytes.len() as u64,
            media_type: String::new(),
            provider: ClientId::new("bob").unwrap(),
            modified: UnixMillis(0),
        };
        let mut lines: Vec<ListedContent> = shown.map(line).collect();
        if !lines.is_empty() && self.is_due(Planted::StaleListing) {
            lines.pop();
        }
        json(&ContentListing { contents: lines, prefixes: Vec::new(), next: None })
    }
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    Response::new(Full::new(serde_json::to_vec(value).unwrap().into()))
}

fn refusal(status: u16, code: ErrorCode) -> Response<Full<Bytes>> {
    let body = ErrorBody { code, message: "planted".into(), request_id: "r".into() };
    let mut response = json(&body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// Serves on a thread of its own until the process ends; answers with its address.
fn serve(planted: Planted) -> ServerAddress {
    let (sender, receiver) = std::sync::mpsc::channel();
    let server = Arc::new(Server {
        planted,
        contents: Mutex::default(),
        count: AtomicU64::new(0),
        deliveries: AtomicU64::new(0),
    });
    std::thread::spawn(move || {
        runtime().unwrap().block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = server.clone();
                tokio::spawn(async move {
                    let served = AtomicU64::new(0);
                    let answer = |request| {
                        let number = served.fetch_add(1, Ordering::Relaxed);
                        let server = &server;
                        async move {
                            if server.planted == Planted::ClosedConnections && number == 10 {
                                return Err(std::io::Error::other("closed"));
                            }
                            Ok(server.answer(request).await)
                        }
                    };
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer));
                    drop(connection.await);
                });
            }
        });
    });
    let address = receiver.recv().unwrap();
    ServerAddress { name: "g1".into(), http: format!("http://{address}"), admin: String::new() }
}

fn plan() -> MixedPlan {
    MixedPlan {
        workers: 3,
        stable: 4,
        keys_per_worker: 6,
        sizes_bytes: vec![10, 3_000, 100_000],
        threads: 1,
        request_time_max: Duration::from_secs(10),
        books_time_max: Duration::ZERO,
        seed: 5,
        keep: false,
    }
}

fn target(gateways: Vec<ServerAddress>) -> MixedTarget {
    let client = |name: &str| Client { name: name.into(), site: "tokyo".into(), token: "token".into() };
    MixedTarget { gateways, clients: vec![client("alice"), client("bob")], ledgers: None }
}

fn load(gateways: Vec<ServerAddress>) -> Report {
    let load = MixedLoad::start(&target(gateways), plan()).unwrap();
    while load.requests() < 1_000 && load.failure_count() < 20 {
        std::thread::sleep(Duration::from_millis(5));
    }
    load.stop().unwrap()
}

/// What the load finds in a server that is wrong now and then is this and nothing else.
fn is_found(planted: Planted, as_what: &[FaultKind]) {
    let report = load(vec![serve(planted)]);
    assert!(!report.passed, "{planted:?}");
    let failures = &report.outcome.failures;
    assert!(!failures.is_empty(), "{planted:?}");
    assert!(failures.iter().all(|failure| as_what.contains(&failure.kind)), "{}", report.to_text());
}

#[test]
fn a_server_that_is_right_passes() {
    let report = load(vec![serve(Planted::Nothing)]);
    assert!(report.passed, "{}", report.to_text());
    let outcome = &report.outcome;
    assert!(outcome.requests >= 1_000 && outcome.left_behind == 0, "{}", report.to_text());
    let phases: Vec<&str> = outcome.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(phases, ["closed loop", "read back"]);
    assert_eq!(outcome.phases[0].ops.len(), 7, "every operation was used");
    assert!(!outcome.timeline.is_empty());
}

#[test]
fn a_wrong_byte_is_found() {
    is_found(Planted::WrongByte, &[FaultKind::WrongBytes]);
}

#[test]
fn a_lost_overwrite_is_found() {
    // Refused: a range beyond the end of the older, shorter content.
    is_found(Planted::LostOverwrite, &[FaultKind::StaleRead, FaultKind::WrongList, FaultKind::Refused]);
}

#[test]
fn a_lost_deletion_is_found() {
    is_found(Planted::LostDelete, &[FaultKind::StaleRead, FaultKind::WrongList]);
}

#[test]
fn a_stale_listing_is_found() {
    is_found(Planted::StaleListing, &[FaultKind::WrongList]);
}

#[test]
fn a_refusal_is_found() {
    is_found(Planted::Refusal, &[FaultKind::Refused]);
}

#[test]
fn a_closed_connection_is_made_anew_and_counted() {
    let report = load(vec![serve(Planted::ClosedConnections)]);
    assert!(report.passed, "{}", report.to_text());
    assert!(report.outcome.repeated["kept connection closed"] > 10, "{}", report.to_text());
}

#[test]
fn a_gateway_that_refuses_is_left_for_another() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = ServerAddress { name: "g2".into(), http: format!("http://{closed}"), admin: String::new() };
    let report = load(vec![serve(Planted::Nothing), gone]);
    assert!(report.passed, "{}", report.to_text());
    assert!(report.outcome.repeated["connection refused"] > 0, "{}", report.to_text());
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let load = MixedLoad::start(&target(vec![serve(Planted::Nothing)]), plan()).unwrap();
    load.set_rate(100.0).unwrap();
    load.mark("open");
    std::thread::sleep(Duration::from_secs(3));
    let report = load.stop().unwrap();
    assert!(report.passed, "{}", report.to_text());
    let open = report.outcome.phases.iter().find(|phase| phase.name == "open").unwrap();
    let rate: f64 = open.ops.values().map(|op| op.requests_per_s).sum();
    assert!((70.0..130.0).contains(&rate), "{rate} a second");
}
