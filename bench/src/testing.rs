//! A server for tests, and plans to drive it: what it can do is known, so what is measured can be judged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::api::mobile_access::{CardAnswer, ChallengeAnswer, ChallengeRequest, NearbyGateway, Visit};
use common::auth::ClusterSecret;
use common::id::{ServerName, SiteId};
use common::time::Clock;
use common::visit::{Challenge, Nonce, check_answer};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::load::{Stage, drive};
use crate::plan::{Pace, Plan, Verify};
use crate::report::Report;
use crate::run::{Outcome, ReadBack};
use crate::servers::Samples;
use crate::target::Target;
use crate::workload::Workload;
use crate::workload::size::Size;

const BODY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ndozo-source: hit\r\n\r\nok";

/// What a server does for each answer.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub answer_time: Duration,
    /// Answers that are worked on at the same time; the others wait.
    pub at_once: usize,
}

pub struct Server;

impl Server {
    /// Runs until the test's runtime ends.
    pub async fn start(work: Work) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let places = Arc::new(Semaphore::new(work.at_once.min(Semaphore::MAX_PERMITS)));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let places = places.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0u8; 4096];
                    // A request is short and comes in one piece here.
                    while stream.read(&mut buffer).await.is_ok_and(|len| len > 0) {
                        let place = places.acquire().await.unwrap();
                        tokio::time::sleep(work.answer_time).await;
                        drop(place);
                        if stream.write_all(BODY.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Target::at(&url, "bob", "token")
    }
}

/// A mobile access server that brings clients from `home` to `site`, whose one gateway is itself; visits are as long as
/// told. Runs until the test's runtime ends; answers with its address, and counts the visits that it opens.
pub async fn mobile_access(home: &str, site: &str, life: Duration) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let opened = Arc::new(AtomicUsize::new(0));
    let (home, site) = (SiteId::new(home).unwrap(), SiteId::new(site).unwrap());
    let secret = ClusterSecret::new("a secret of at least 32 characters").unwrap();
    let (counter, gateway) = (opened.clone(), url.clone());
    let answer = move |path: &str, body: &[u8]| {
        let now = Clock::System.now();
        let mobile_access = ServerName::new("m1").unwrap();
        if path == "/v1/challenge" {
            let ChallengeRequest { client, card, .. } = serde_json::from_slice(body).unwrap();
            let (home, site, nonce) = (home.clone(), site.clone(), Nonce::generate());
            let challenge = Challenge { home, client, card, mobile_access, site, issued: now, nonce };
            return serde_json::to_vec(&ChallengeAnswer { challenge: challenge.seal(&secret) }).unwrap();
        }
        let CardAnswer { challenge, session, signature } = serde_json::from_slice(body).unwrap();
        let read = Challenge::read(&challenge).unwrap();
        assert_eq!(check_answer(&read, &challenge, &session, &signature), Ok(()));
        let number = counter.fetch_add(1, Ordering::Relaxed);
        let visit = Visit {
            token: format!("visit-{number}"),
            home: home.clone(),
            site: site.clone(),
            mobile_access,
            gateways: vec![NearbyGateway { name: format!("{site}.g1"), http: gateway.clone() }],
            issued: now,
            expires: now.saturating_add(life),
        };
        serde_json::to_vec(&visit).unwrap()
    };
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(Response::new(Full::<Bytes>::from(answer(&path, &body))))
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, opened)
}

/// What a closed loop measures at a server.
pub async fn report(work: Work, connections: usize, duration: Duration) -> Report {
    let plan = closed_loop(connections, duration);
    let target = Server::start(work).await;
    let load = drive(&plan, &target, &Stage::default()).await.unwrap();
    Report::of(Outcome {
        plan,
        client: target.client,
        load,
        processes: Vec::new(),
        samples: Samples::default(),
        events: Vec::new(),
        agents: Vec::new(),
        warm_up: None,
        read_back: ReadBack::default(),
        reconciliation: None,
        slos: Vec::new(),
        prepared_bytes: 0,
        left_behind: 0,
    })
}

/// Small GETs, of which only the status is checked.
pub fn closed_loop(connections: usize, duration: Duration) -> Plan {
    Plan {
        workload: Workload::gets(Size::list(&[2]), 10),
        trace: None,
        connections,
        threads: 1,
        pace: Pace::Closed,
        in_flight_max: 10_000,
        warmup: Duration::ZERO,
        duration,
        request_time_max: Duration::from_secs(10),
        verify: Verify::Off,
        seed: 1,
    }
}
