//! Buckets of object stores, also such that are not ours.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::api::origin::{Source, SourceState, SourceStatus};
use common::error::ErrorCode;
use http::Method;

use crate::fake::{BUCKET, Fake};
use crate::harness::{Bed, eventually, id, noise, send, source};

const NO_RESCAN_MS: u64 = 600_000;

/// A fake store behind bucket `archive` of search.
async fn with_fake(rescan_ms: u64, parameters: &str, objects: &[(&str, &[u8])]) -> (Bed, Arc<Fake>) {
    let (fake, address) = Fake::start().await;
    for (key, bytes) in objects {
        fake.put(key, bytes);
    }
    let bed = Bed::new(rescan_ms).await;
    let url = format!("s3://{BUCKET}/originals?endpoint=http://{address}&region=us-east-1&{parameters}");
    bed.origin().add(&source("archive", &url)).await.unwrap();
    (bed, fake)
}

async fn status(bed: &Bed) -> SourceStatus {
    let sources = bed.origin().status().await.unwrap().sources;
    sources.into_iter().find(|s| s.source.bucket.as_str() == "archive").unwrap()
}

/// Waits for the end of a scan that begins after this call.
async fn another_scan(bed: &Bed) -> SourceStatus {
    let ended = status(bed).await.scan.ended;
    let (origin, bucket) = (bed.origin(), id("archive"));
    origin.rescan(&bucket, common::api::origin::Rescan::default()).await.unwrap();
    let next = async || Some(status(bed).await).filter(|s| s.scan.ended.is_some() && s.scan.ended != ended);
    eventually("another scan", next).await
}

#[tokio::test]
async fn only_what_changed_in_a_bucket_is_read_and_a_key_without_a_path_hides_no_other() {
    let odd: [(&str, &[u8]); 6] = [
        ("originals/a.txt", b"one"),
        ("originals/b & <c>.txt", b"two"),
        ("originals/double//slash.txt", b"no path"),
        ("originals/dots/../x", b"no path"),
        ("originals/z/日本語 +%25.txt", b"three"),
        ("other/not-ours.txt", b"x"),
    ];
    let (bed, fake) = with_fake(NO_RESCAN_MS, "anonymous=true", &odd).await;
    bed.found("archive/a.txt", |_| true).await;
    bed.found("archive/b & <c>.txt", |_| true).await;
    bed.found("archive/z/日本語 +%25.txt", |_| true).await;
    assert_eq!(bed.collect("archive/z/日本語 +%25.txt").await, b"three");
    assert_eq!(bed.collect("archive/b & <c>.txt").await, b"two");
    let status = another_scan(&bed).await;
    assert_eq!((status.contents, status.scan.left_out, status.scan.read), (3, 2, 0), "{status:?}");
    assert_eq!(fake.saw_signature.load(Ordering::SeqCst), 0, "an anonymous source signs nothing");

    let before = fake.gets();
    let first = bed.found("archive/a.txt", |_| true).await.version;
    fake.put("originals/a.txt", b"one, changed");
    another_scan(&bed).await;
    assert!(bed.found("archive/a.txt", |i| i.version != first).await.version > first);
    assert_eq!(fake.gets() - before, 1, "only the changed object is read");
    fake.remove("originals/b & <c>.txt");
    another_scan(&bed).await;
    bed.lost("archive/b & <c>.txt").await;
    bed.found("archive/a.txt", |_| true).await;
}

#[tokio::test]
async fn a_listing_that_breaks_off_withdraws_nothing() {
    let objects: Vec<String> = (0..1500).map(|i| format!("originals/{i:05}.txt")).collect();
    let objects: Vec<(&str, &[u8])> = objects.iter().map(|key| (key.as_str(), key.as_bytes())).collect();
    let (bed, fake) = with_fake(NO_RESCAN_MS, "anonymous=true", &objects).await;
    bed.found("archive/01499.txt", |_| true).await;
    let scanned = async || (status(&bed).await.state == SourceState::Scanned).then_some(());
    eventually("scanned", scanned).await;
    fake.breaks_listings.store(1, Ordering::SeqCst);
    fake.remove("originals/00001.txt");
    bed.origin().rescan(&id("archive"), Default::default()).await.unwrap();
    let failing = async || (status(&bed).await.state == SourceState::Failing).then_some(());
    eventually("the scan fails", failing).await;
    assert_eq!(status(&bed).await.contents, 1500);
    fake.breaks_listings.store(0, Ordering::SeqCst);
    bed.lost("archive/00001.txt").await;
    assert_eq!(status(&bed).await.contents, 1499);
}

#[tokio::test]
async fn an_object_that_changes_in_mid_collection_is_refused_and_its_new_version_collected() {
    let old = noise(6 << 20, 1);
    let (bed, fake) = with_fake(NO_RESCAN_MS, "anonymous=true", &[("originals/film.bin", &old)]).await;
    let before = bed.found("archive/film.bin", |_| true).await.version;
    let chunk = bed.first_chunk("archive/film.bin").await;
    bed.peer.chunk(&id("archive/film.bin"), &chunk, 0).await.unwrap();
    // The first chunk stays what it was: the store alone knows that the object is another.
    let new = [old.as_slice(), b"and an end"].concat();
    fake.put("originals/film.bin", &new);
    let error = bed.peer.chunk(&id("archive/film.bin"), &chunk, 0).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::OriginalChanged), "{error}");
    assert!(error.is_retryable());
    bed.found("archive/film.bin", |i| i.version != before).await;
    assert!(bed.collect("archive/film.bin").await == new);
    let metrics = bed.metrics().await;
    let line = r#"dozo_origin_refused_reads_total{reason="changed"} 1"#;
    assert!(metrics.lines().any(|l| l == line), "{metrics}");
}

#[tokio::test]
async fn one_object_that_cannot_be_read_leaves_the_others_registered() {
    let (bed, fake) = with_fake(100, "anonymous=true", &[("originals/a", b"a"), ("originals/b", b"b")]).await;
    bed.found("archive/b", |_| true).await;
    *fake.forbids.lock().unwrap() = Some("originals/a".into());
    fake.put("originals/a", b"new");
    fake.put("originals/c", b"c");
    bed.found("archive/c", |_| true).await;
    let told = async || (status(&bed).await.scan.unreadable == 1).then_some(());
    eventually("it is told", told).await;
    bed.found("archive/a", |_| true).await;
    *fake.forbids.lock().unwrap() = None;
    bed.found("archive/a", |i| i.len == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_never_sees_more_reads_than_the_limit_and_contents_take_turns() {
    let hot = noise(200 << 10, 3);
    let objects: [(&str, &[u8]); 2] = [("originals/hot", &hot), ("originals/cold", b"cold")];
    let (bed, fake) = with_fake(NO_RESCAN_MS, "anonymous=true", &objects).await;
    let limited = Source { read_concurrency: Some(2), ..status(&bed).await.source };
    bed.found("archive/hot", |_| true).await;
    bed.found("archive/cold", |_| true).await;
    bed.origin().add(&limited).await.unwrap();
    let scanned = async || (status(&bed).await.state == SourceState::Scanned).then_some(());
    eventually("scanned again", scanned).await;
    let (hot, cold) = (bed.first_chunk("archive/hot").await, bed.first_chunk("archive/cold").await);
    fake.delay_ms.store(300, Ordering::SeqCst);
    fake.most_inflight.store(0, Ordering::SeqCst);
    let ask = |name: &'static str, chunk| {
        let peer = bed.peer.clone();
        tokio::spawn(async move {
            let answer = peer.chunk(&id(name), &chunk, 0).await;
            (std::time::Instant::now(), answer)
        })
    };
    // Two under way, seven waiting: the eighth place in the queue is left.
    let hots: Vec<_> = (0..9).map(|_| ask("archive/hot", hot)).collect();
    let queued = async || (status(&bed).await.reads_waiting == 7).then_some(());
    eventually("seven wait", queued).await;
    let cold = ask("archive/cold", cold);
    let full = async || (status(&bed).await.reads_waiting == 8).then_some(());
    eventually("the queue is full", full).await;
    // Read by hand, for the header.
    let path = format!("/v1/peer/chunks/{}?name=archive/hot&offset=0&len={}", hot.hash, hot.len);
    let busy = bed.raw(&path).await;
    assert_eq!(busy.status(), 503);
    assert_eq!(busy.headers()["retry-after"], "1");
    let (cold_end, answer) = cold.await.unwrap();
    assert_eq!(answer.unwrap(), "cold");
    let mut hot_ends = Vec::new();
    for hot in hots {
        let (end, answer) = hot.await.unwrap();
        answer.unwrap();
        hot_ends.push(end);
    }
    hot_ends.sort();
    assert!(cold_end < hot_ends[6], "the cold content waited behind all the hot ones");
    assert_eq!(fake.most_inflight.load(Ordering::SeqCst), 2);
}

/// Serves on a free port, says which, and ends when nobody holds its input any more.
const PROGRAM: &str = r#"
import logging, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
"#;

/// Python with the S3 server that others wrote (moto); `None`, with instructions, where there is none. In CI that is
/// a failure.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap();
    let python = match std::env::var_os("DOZO_TEST_S3_PYTHON") {
        Some(path) => path.into(),
        None => root.join("target/s3-server/bin/python"),
    };
    let mut command = Command::new(&python);
    command.args(["-c", "import moto.server"]).stdout(Stdio::null()).stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) {
        return Some(python);
    }
    let how = "no S3 server to test on. To get one, in the folder of the project:\n    python3 -m venv \
               target/s3-server && target/s3-server/bin/pip install 'moto[server]==5.2.5'\n\
               or set DOZO_TEST_S3_PYTHON to a python that has it";
    assert!(std::env::var_os("CI").is_none(), "{how}");
    eprintln!("SKIPPED: {how}");
    None
}

struct Moto {
    process: Child,
    base: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Moto {
    fn start(python: &Path) -> Self {
        let mut command = Command::new(python);
        command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, base: format!("http://127.0.0.1:{}", line.trim()) }
    }

    async fn put(&self, path: &str, body: &str) {
        self.change(Method::PUT, path, body).await;
    }

    /// The server only looks whether there is a signature.
    async fn change(&self, method: Method, path: &str, body: &str) {
        let (status, answer) = send(method, &format!("{}{path}", self.base), Some("any"), body).await;
        assert!(status == 200 || status == 204, "{path}: {status} {answer}");
    }
}

#[tokio::test]
async fn a_bucket_of_a_store_that_others_wrote_is_registered_changed_and_withdrawn() {
    const SECRET: &str = "hush-hush-nobody-may-see-this";
    let Some(python) = python() else { return };
    let moto = Moto::start(&python);
    moto.put("/films", "").await;
    moto.put("/films/new/a%20b%2Bc%26%25.txt", "odd").await;
    moto.put("/films/new/folder/", "").await;
    moto.put("/films/new//empty/segment.txt", "x").await;
    moto.put("/films/new/film.txt", "version one").await;
    moto.put("/films/old/film.txt", "not ours").await;
    let bed = Bed::new(300).await;
    let file = bed.dir.path().join("credentials");
    let text = format!("[films]\naws_access_key_id = AKIATEST\naws_secret_access_key = {SECRET}\n");
    std::fs::write(&file, text).unwrap();
    let url = format!(
        "s3://films/new?endpoint={}&region=us-east-1&credentials={}&profile=films",
        moto.base,
        file.display()
    );
    bed.origin().add(&source("archive", &url)).await.unwrap();
    bed.found("archive/a b+c&%.txt", |_| true).await;
    let first = bed.found("archive/film.txt", |_| true).await.version;
    assert_eq!(bed.collect("archive/a b+c&%.txt").await, b"odd");
    assert_eq!(bed.collect("archive/film.txt").await, b"version one");
    assert_eq!(status(&bed).await.contents, 2);

    moto.put("/films/new/film.txt", "version two").await;
    bed.found("archive/film.txt", |i| i.version != first).await;
    assert_eq!(bed.collect("archive/film.txt").await, b"version two");
    moto.change(Method::DELETE, "/films/new/film.txt", "").await;
    bed.lost("archive/film.txt").await;
    // Two scans later nothing has been read again, and nobody was shown the key.
    let read = |text: &str| {
        text.lines().find(|l| l.starts_with("dozo_origin_scanned_bytes_total")).map(str::to_owned)
    };
    let before = read(&bed.metrics().await);
    another_scan(&bed).await;
    another_scan(&bed).await;
    assert_eq!(read(&bed.metrics().await), before);
    let shown = serde_json::to_string(&bed.origin().status().await.unwrap()).unwrap();
    assert!(shown.contains("credentials=") && !shown.contains(SECRET) && !shown.contains("AKIATEST"));
    tokio::time::timeout(Duration::from_secs(30), bed.origin_server.stop()).await.unwrap();
}
