//! Chunks in a real S3 server, and behind a network that fails.

mod proxy;
mod server;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::error::chain;
use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;
use futures_util::future::{BoxFuture, join_all};
use proxy::{Fate, Proxy};
use server::S3Server;
use storage_node::store::conformance::{UsedBytes, conforms, sample, survives_reopening};
use storage_node::store::{self, ChunkStore, OpenError, Opened, StoreError};

const BUCKET: &str = "dozo-test";
const SECRET: &str = "test-secret-that-nobody-may-see";
const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "test-access-key"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
/// Whatever the store does, a request ends within this time.
const PATIENCE: Duration = Duration::from_secs(45);

/// Runs a test in a process of its own with this environment, since what a node is told of S3 comes from there.
fn in_environment<F>(test: &str, environment: &[(&str, &str)], body: impl FnOnce() -> F)
where
    F: Future<Output = ()>,
{
    let test = &format!("s3::{test}");
    if std::env::var("DOZO_TEST_CHILD").is_ok_and(|child| child == *test) {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(body());
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied()).env("DOZO_TEST_CHILD", test);
    let output = command.args([test, "--exact", "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(!text.contains(SECRET), "{test}: the secret key is in its output");
    eprint!("{text}");
    assert!(output.status.success(), "{test} failed in its own process");
}

/// The common case: keys, and a server with an empty bucket.
fn with_server<F>(test: &str, body: impl FnOnce(S3Server) -> F)
where
    F: Future<Output = ()>,
{
    let Some(python) = server::python() else { return };
    in_environment(test, &KEYS, || {
        let server = S3Server::start(&python);
        server.make_bucket(BUCKET);
        body(server)
    });
}

fn url(address: SocketAddr) -> String {
    format!("s3://{BUCKET}/some/prefix?endpoint=http://{address}&region=us-east-1")
}

async fn try_open(url: &str, dir: &Path) -> Result<Opened, OpenError> {
    store::open(&url.parse().unwrap(), dir, &MetricsRegistry::new()).await
}

async fn open(address: SocketAddr, dir: &Path) -> Arc<dyn ChunkStore> {
    match try_open(&url(address), dir).await {
        Ok(opened) => opened.chunks,
        Err(error) => panic!("{}", chain(&error)),
    }
}

async fn conforms_through(address: SocketAddr) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(address, dir.path()).await;
    conforms(&*store, UsedBytes::OfChunks).await;
    drop(store);
    let path = dir.path().to_owned();
    let open = move || -> BoxFuture<'static, Arc<dyn ChunkStore>> {
        let path = path.clone();
        Box::pin(async move { open(address, &path).await })
    };
    survives_reopening(open, UsedBytes::OfChunks).await;
}

#[test]
fn a_store_in_s3_conforms() {
    with_server("a_store_in_s3_conforms", async |server| conforms_through(server.address).await);
}

#[test]
fn a_node_with_its_chunks_in_s3_restarts_and_knows_everything() {
    with_server("a_node_with_its_chunks_in_s3_restarts_and_knows_everything", async |server| {
        crate::restarts_and_knows_everything(&url(server.address)).await;
    });
}

#[test]
fn a_store_behind_a_network_that_often_fails_conforms() {
    with_server("a_store_behind_a_network_that_often_fails_conforms", async |server| {
        let proxy = Proxy::start(server.address).await;
        let count = AtomicUsize::new(0);
        // Seldom enough that no request fails as often as it is tried.
        proxy.rule(move |_| match count.fetch_add(1, Ordering::Relaxed) % 61 {
            5 => Fate::Answer(500),
            15 => Fate::Answer(503),
            25 => Fate::Cut,
            35 => Fate::Unanswered,
            45 => Fate::HalfAnswer,
            55 => Fate::Delay(Duration::from_millis(100)),
            _ => Fate::Pass,
        });
        conforms_through(proxy.address).await;
    });
}

/// Both kinds of chunk: one that is packed, one that is an object of its own.
fn samples(seed: u64) -> [(ChunkHash, Bytes); 2] {
    [sample(seed, 4096), sample(seed, 300_000)]
}

/// The result, which must come in time.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let result = tokio::time::timeout(PATIENCE, future).await;
    let result = result.unwrap_or_else(|_elapsed| panic!("{what} hangs"));
    eprintln!("{what} took {:?}", began.elapsed());
    result
}

/// While it fails everything ends in an error, and afterwards all is as before.
async fn fails_and_recovers(server: &S3Server, fate: Fate) {
    let proxy = Proxy::start(server.address).await;
    let dir = tempfile::tempdir().unwrap();
    let store = open(proxy.address, dir.path()).await;
    for (hash, bytes) in samples(1) {
        store.put(hash, bytes).await.unwrap();
    }
    let before = store.stats();
    proxy.rule(move |_| fate);
    let is_io = |error: &StoreError| matches!(error, StoreError::Io { .. });
    let work = samples(1).into_iter().zip(samples(2)).map(|((old, _), (new, bytes))| {
        let store = &store;
        async move {
            let (put, got, deleted) = futures_util::join!(
                soon("put", store.put(new, bytes)),
                soon("get", store.get(&old)),
                soon("delete", store.delete(&old)),
            );
            let errors = [put.unwrap_err(), got.unwrap_err(), deleted.unwrap_err()];
            assert!(errors.iter().all(is_io), "{errors:?}");
        }
    });
    join_all(work).await;
    assert_eq!((store.stats().chunks, store.stats().used_bytes), (before.chunks, before.used_bytes));

    proxy.rule(|_| Fate::Pass);
    for (hash, bytes) in samples(1).into_iter().chain(samples(2)) {
        // The first may share the fate of a pack that was under way.
        crate::until("put again", async || store.put(hash, bytes.clone()).await.is_ok()).await;
        assert_eq!(store.get(&hash).await.unwrap(), bytes);
    }
    assert_eq!(store.stats().chunks, 4);
    drop(store);
    let store = open(server.address, dir.path()).await;
    assert_eq!((store.stats().chunks, store.stats().used_bytes), (4, 2 * before.used_bytes));
}

#[test]
fn a_server_that_answers_with_errors_is_given_up_in_time() {
    with_server("a_server_that_answers_with_errors_is_given_up_in_time", async |server| {
        fails_and_recovers(&server, Fate::Answer(503)).await;
    });
}

#[test]
fn a_server_that_says_nothing_is_given_up_in_time() {
    with_server("a_server_that_says_nothing_is_given_up_in_time", async |server| {
        fails_and_recovers(&server, Fate::Silence).await;
    });
}

#[test]
fn a_change_that_was_not_acknowledged_is_there_wholly_or_not_at_all() {
    with_server("a_change_that_was_not_acknowledged_is_there_wholly_or_not_at_all", async |server| {
        for fate in [Fate::Unanswered, Fate::Cut] {
            let proxy = Proxy::start(server.address).await;
            let dir = tempfile::tempdir().unwrap();
            let prefix = format!("{fate:?}");
            let url = |address| url(address).replace("some/prefix", &prefix);
            let store = try_open(&url(proxy.address), dir.path()).await.unwrap().chunks;
            for (hash, bytes) in samples(1) {
                store.put(hash, bytes).await.unwrap();
            }
            proxy.rule(move |request| if request.method == "GET" { Fate::Pass } else { fate });
            for ((old, _), (new, bytes)) in samples(1).into_iter().zip(samples(2)) {
                soon("put", store.put(new, bytes)).await.unwrap_err();
                soon("delete", store.delete(&old)).await.unwrap_err();
            }
            // As if the process had died here.
            drop(store);
            let store = try_open(&url(server.address), dir.path()).await.unwrap().chunks;
            let (mut chunks, mut used_bytes) = (0, 0);
            for (hash, bytes) in samples(1).into_iter().chain(samples(2)) {
                match store.get(&hash).await {
                    Ok(read) => {
                        assert!(read == bytes);
                        (chunks, used_bytes) = (chunks + 1, used_bytes + bytes.len() as u64);
                    }
                    Err(StoreError::NotFound) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            assert_eq!((store.stats().chunks, store.stats().used_bytes), (chunks, used_bytes));
            if fate == Fate::Cut {
                assert_eq!(chunks, 2, "nothing was carried out");
            }
        }
    });
}

#[test]
fn small_puts_from_many_writers_share_requests() {
    with_server("small_puts_from_many_writers_share_requests", async |server| {
        let proxy = Proxy::start(server.address).await;
        let dir = tempfile::tempdir().unwrap();
        let store = open(proxy.address, dir.path()).await;
        proxy.rule(|_| Fate::Delay(Duration::from_millis(20)));
        proxy.take_requests();
        let began = Instant::now();
        let next = AtomicUsize::new(0);
        let writers = (0..64).map(|_| async {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= 1000 {
                    return;
                }
                let (hash, bytes) = sample(i as u64, 4096);
                store.put(hash, bytes).await.unwrap();
            }
        });
        join_all(writers).await;
        let requests = proxy.take_requests();
        eprintln!("{} requests for 1000 puts of 4 KiB, in {:?}", requests.len(), began.elapsed());
        assert!(requests.len() <= 60, "{} requests", requests.len());
    });
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_store_that_cannot_be_used_says_what_to_do_and_no_secrets() {
    with_server("a_store_that_cannot_be_used_says_what_to_do_and_no_secrets", async |server| {
        let logged = Logged::default();
        let sink = logged.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || sink.clone())
            .init();
        let proxy = Proxy::start(server.address).await;
        let dir = tempfile::tempdir().unwrap();
        let good = url(proxy.address);
        drop(try_open(&good, dir.path()).await.unwrap());
        let other_dir = tempfile::tempdir().unwrap();
        let closed = closed_port().await;

        let fails = async |url: &str, dir: &Path, advice: &str| {
            let error = soon("open", try_open(url, dir)).await.map(drop).unwrap_err();
            let text = chain(&error);
            let place = url.split_once('?').unwrap().0;
            assert!(text.contains(place) && text.contains(advice), "{text}");
            assert!(!format!("{text} {error:?}").contains(SECRET), "{text}");
        };
        fails(&good.replace(BUCKET, "no-such-bucket"), dir.path(), "make its bucket").await;
        fails(&url(closed), dir.path(), "check that its endpoint is right and answers").await;
        fails(&good, other_dir.path(), "belongs to the node whose log has the id").await;
        for status in [401, 403] {
            proxy.rule(move |_| Fate::Answer(status));
            fails(&good, dir.path(), "check that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are right")
                .await;
        }
        // One that may read and not write.
        proxy.rule(|request| if request.method == "GET" { Fate::Pass } else { Fate::Answer(403) });
        fails(&good, dir.path(), "list, read, write and delete").await;

        let logged = logged.0.lock().unwrap();
        assert!(!logged.is_empty() && !String::from_utf8_lossy(&logged).contains(SECRET));
    });
}

/// Where nobody listens.
async fn closed_port() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[test]
fn without_keys_an_endpoint_is_refused_at_once() {
    in_environment("without_keys_an_endpoint_is_refused_at_once", &[], async || {
        let dir = tempfile::tempdir().unwrap();
        let opened = try_open(&url(closed_port().await), dir.path()).await;
        let text = chain(&opened.map(drop).unwrap_err());
        assert!(text.contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{text}");
    });
}

#[test]
fn the_certificate_of_an_endpoint_is_verified() {
    let Some(python) = server::python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let trusted = dir.path().join("trusted");
    let environment = [KEYS[0], KEYS[1], ("SSL_CERT_FILE", trusted.to_str().unwrap())];
    in_environment("the_certificate_of_an_endpoint_is_verified", &environment, async || {
        let open = async |certificate: &Path| {
            let key = certificate.with_extension("key");
            server::make_certificate(&python, certificate, &key);
            let server = S3Server::start_tls(&python, certificate, &key);
            let url = url(server.address).replace("http://", "https://");
            chain(&try_open(&url, dir.path()).await.map(drop).unwrap_err())
        };
        // It has no bucket, and only who got through can know that.
        let text = open(Path::new(&std::env::var_os("SSL_CERT_FILE").unwrap())).await;
        assert!(text.contains("make its bucket"), "{text}");
        let text = open(&dir.path().join("unknown")).await;
        assert!(text.contains("certificate"), "{text}");
    });
}
