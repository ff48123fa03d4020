//! A small HTTP server that keeps what is put, and can be told to misbehave.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bench::plan::{Pace, Plan, Verify};
use bench::run::{Options, Outcome, run};
use bench::target::Target;
use bench::workload::trace::Trace;
use bench::workload::{Bytes as Len, Size, Workload};
use bytes::Bytes;
use common::range::{Wanted, parse};
use http::header::{CONTENT_RANGE, ETAG, RANGE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use tokio::net::TcpListener;

/// In what the server is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The first version of a key stays.
    LosesUpdates,
    /// What was deleted is still read.
    Resurrects,
    /// One bit of long contents.
    FlipsBits,
    /// ETags are MD5 hashes, as S3 servers have them; of long contents GETs show another.
    WrongEtags,
}

fn etag_of(fault: Fault, bytes: &[u8]) -> String {
    match fault {
        Fault::WrongEtags => {
            let md5: String = Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            format!("\"{md5}\"")
        }
        _ => format!("\"{}\"", blake3::hash(bytes)),
    }
}

type Files = Mutex<HashMap<String, Bytes>>;

fn answer(files: &Files, fault: Fault, request: &Request<()>, body: Bytes) -> Response<Full<Bytes>> {
    let mut files = files.lock().unwrap();
    let path = request.uri().path().to_owned();
    let of = |status: StatusCode| Response::builder().status(status);
    let bare = |status| of(status).body(Full::default()).unwrap();
    match *request.method() {
        Method::PUT => {
            if fault != Fault::LosesUpdates || !files.contains_key(&path) {
                files.insert(path, body.clone());
            }
            let etag = etag_of(fault, &body);
            of(StatusCode::CREATED).header(ETAG, etag).body(Full::default()).unwrap()
        }
        Method::DELETE => {
            if fault != Fault::Resurrects {
                files.remove(&path);
            }
            bare(StatusCode::NO_CONTENT)
        }
        _ => {
            let Some(bytes) = files.get(&path) else { return bare(StatusCode::NOT_FOUND) };
            let is_wrong = fault == Fault::WrongEtags && bytes.len() > 20_000;
            let etag = etag_of(fault, if is_wrong { b"another" } else { bytes });
            let range = request.headers().get(RANGE).map(|range| range.to_str().unwrap());
            let len = bytes.len();
            let (response, mut bytes) = match parse(range, len as u64).unwrap() {
                Wanted::Whole => (of(StatusCode::OK), bytes.to_vec()),
                Wanted::Part(part) => {
                    let told = format!("bytes {}-{}/{len}", part.start, part.end - 1);
                    let part = part.start as usize..part.end as usize;
                    (of(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, told), bytes[part].to_vec())
                }
            };
            if fault == Fault::FlipsBits && bytes.len() > 20_000 {
                bytes[19_999] ^= 4;
            }
            response.header(ETAG, etag).body(Full::new(bytes.into())).unwrap()
        }
    }
}

async fn serve(fault: Fault) -> (String, Arc<Files>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/files", listener.local_addr().unwrap());
    let files = Arc::new(Files::default());
    let kept = files.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let files = files.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let files = files.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    let request = Request::from_parts(head, ());
                    Ok::<_, Infallible>(answer(&files, fault, &request, body))
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, kept)
}

fn plan(mix: &str, millis: u64) -> Plan {
    let workload = Workload {
        mix: mix.parse().unwrap(),
        range: Len(9_000),
        ..Workload::gets(Size::list(&[0, 1, 4096, 30_000]), 12)
    };
    Plan {
        workload,
        trace: None,
        connections: 4,
        threads: 2,
        pace: Pace::Closed,
        in_flight_max: 1000,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(millis),
        request_time_max: Duration::from_secs(20),
        verify: Verify::Full,
        seed: 77,
    }
}

async fn drive(plan: Plan, url: &str, root: Option<&Path>) -> Outcome {
    let target = Target::parse(url, root.map(Path::to_owned)).unwrap();
    run(plan, &target, &Options::default(), |_| {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_a_plain_server_has_is_driven_checked_and_removed() {
    let (url, files) = serve(Fault::None).await;
    let outcome = drive(plan("get=40,head=10,range=20,put=20,delete=10", 1500), &url, None).await;
    let tally = &outcome.load.tally;
    assert_eq!((tally.wrong, tally.error_count(None)), (0, 0), "{:?}", tally.wrong_examples);
    for op in outcome.plan.ops() {
        assert!(tally.total(Some(op)).requests > 0, "{op:?}");
    }
    assert!(outcome.passed() && outcome.read_back.read > 0 && outcome.reconciliation.is_none());
    assert!(outcome.prepared_bytes > 0);
    assert_eq!((outcome.left_behind, files.lock().unwrap().len()), (0, 0), "nothing stays behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stale_or_wrong_is_found_out() {
    for (fault, mix, is_stale) in [
        (Fault::LosesUpdates, "get=50,put=50", true),
        (Fault::Resurrects, "get=50,put=30,delete=20", true),
        (Fault::FlipsBits, "get=100", false),
        (Fault::WrongEtags, "get=80,head=20", false),
    ] {
        let (url, _) = serve(fault).await;
        // Keys are written in turn: the first is overwritten when all have been written once.
        let outcome = drive(Plan { connections: 1, ..plan(mix, 2500) }, &url, None).await;
        let tally = &outcome.load.tally;
        assert!(tally.wrong > 0 && !outcome.passed(), "{fault:?}: {} requests", tally.total(None).requests);
        assert_eq!(tally.stale > 0, is_stale, "{fault:?}: {:?}", tally.wrong_examples);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_can_be_written_into_the_servers_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (url, files) = serve(Fault::None).await;
    // This server does not look into folders: what is read must have been put there, and is not.
    let outcome = drive(plan("get=1", 200), &url, Some(folder.path())).await;
    assert!(outcome.load.tally.error_count(None) > 0 && files.lock().unwrap().is_empty());
    assert!(outcome.prepared_bytes > 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "its files are removed after the run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_replayed_at_its_times_and_with_its_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let lines = (0..100u64).map(|n| format!("{} {} {}\n", n as f64 / 25.0, n % 7, 100 * (n % 7)));
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    let trace = Trace::read(&path, 4.0).unwrap();
    let (url, _) = serve(Fault::None).await;
    let length = trace.length();
    let plan = Plan {
        trace: Some(Arc::new(trace)),
        pace: Pace::Trace { time_scale: 4.0 },
        duration: length + Duration::from_millis(1),
        ..plan("put=1", 0)
    };
    let outcome = drive(plan, &url, None).await;
    let total = outcome.load.tally.total(None);
    assert!(outcome.passed(), "{:?}", outcome.load.tally.wrong_examples);
    assert_eq!((total.requests, outcome.load.dropped), (100, 0));
    assert_eq!(total.bytes, (0..100).map(|n| 100 * (n % 7)).sum::<u64>());
    assert_eq!(outcome.prepared_bytes, (0..7).map(|id| 100 * id).sum::<u64>());
    assert!(outcome.load.elapsed >= length, "{:?}", outcome.load.elapsed);
}
