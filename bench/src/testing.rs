//! A server for tests, and plans to drive it: what it can do is known, so what is measured can be judged.

use std::sync::Arc;
use std::time::Duration;

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
