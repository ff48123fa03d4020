//! The conformance suite on every kind of store that needs no server, and what concerns real files.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use super::conformance::{UsedBytes, conforms, sample, survives_reopening};
use super::*;
use crate::io::BLOCK;
use crate::io::sim::SimIo;
use crate::log::{BoxError, LogPosition, ROWS_BYTES_MAX, SEGMENTS_START};

/// A frame for each deletion, and what is left of a segment.
const BLOCK_STORE: UsedBytes = UsedBytes::WithOverhead { change_bytes_max: 2 * BLOCK as u64 };

async fn open_at(url: &str, dir: &Path, engine: Engine) -> Opened {
    let options = Options { engine, ..Options::default() };
    open_with(&url.parse().unwrap(), dir, &MetricsRegistry::new(), options).await.unwrap()
}

fn noise(seed: u64, len: usize) -> Bytes {
    sample(seed, len).1
}

async fn rows(log: &Log) -> Vec<Vec<u8>> {
    let log = log.clone();
    let replay = tokio::task::spawn_blocking(move || {
        let mut rows = Vec::new();
        let mut visit = |_: LogPosition, bytes: &[u8]| -> Result<(), BoxError> {
            rows.push(bytes.to_vec());
            Ok(())
        };
        log.replay_rows(LogPosition(0), &mut visit).unwrap();
        rows
    });
    replay.await.unwrap()
}

async fn conforms_and_survives(url: &str, dir: &Path, engine: Engine, used_bytes: UsedBytes) {
    conforms(&*open_at(url, dir, engine).await.chunks, used_bytes).await;
    let (url, dir) = (url.to_owned(), dir.to_owned());
    let open = || -> BoxFuture<'static, Arc<dyn ChunkStore>> {
        let (url, dir) = (url.clone(), dir.clone());
        Box::pin(async move { open_at(&url, &dir, engine).await.chunks })
    };
    survives_reopening(open, used_bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_at("memory:?size=400MiB", dir.path(), Engine::Auto).await;
    conforms(&*opened.chunks, BLOCK_STORE).await;
    assert_eq!((opened.io_engine, opened.log_id.len()), ("memory", 32));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_store_conforms_on_both_engines() {
    let dir = tempfile::tempdir().unwrap();
    for (engine, name) in [(Engine::Uring, "io_uring"), (Engine::Threads, "threads")] {
        let url = format!("file:{}?size=400MiB", dir.path().join(name).display());
        conforms_and_survives(&url, dir.path(), engine, BLOCK_STORE).await;
        assert_eq!(open_at(&url, dir.path(), engine).await.io_engine, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_on_the_simulated_device_conforms() {
    let sim = SimIo::new(vec![0; 400 << 20], None);
    let open = move || -> BoxFuture<'static, Arc<dyn ChunkStore>> {
        let (sim, metrics) = (sim.clone(), StoreMetrics::new(&MetricsRegistry::new()));
        let segment_bytes = segment_bytes_for(sim.size_bytes());
        let options = crate::log::OpenOptions { segment_bytes, force: false, prefill: false };
        let open = move || Log::open(Arc::new(sim), options, metrics).unwrap();
        Box::pin(async move {
            let log = tokio::task::spawn_blocking(open).await.unwrap();
            Arc::new(BlockStore::new(log)) as Arc<dyn ChunkStore>
        })
    };
    conforms(&*open().await, BLOCK_STORE).await;
    survives_reopening(open, BLOCK_STORE).await;
}

/// A block device on a file, while it lives.
struct LoopDevice(String);

impl LoopDevice {
    /// Or why there is none.
    fn attach(file: &Path) -> Result<Self, String> {
        // SAFETY: a call without arguments that cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return Err("only root attaches loop devices".into());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Err("this system has no /dev/loop-control".into());
        }
        let losetup = std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match losetup {
            Ok(output) if output.status.success() => {
                Ok(Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
            }
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(format!("losetup: {error}")),
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.unwrap().success(), "{} stays attached", self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_on_a_block_device_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("device");
    std::fs::File::create(&file).unwrap().set_len(400 << 20).unwrap();
    let device = match LoopDevice::attach(&file) {
        Ok(device) => device,
        Err(reason) => {
            eprintln!("SKIPPED: no block device to test on: {}", reason.trim());
            return;
        }
    };
    let url = format!("device:{}", device.0);
    conforms_and_survives(&url, dir.path(), Engine::Auto, BLOCK_STORE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("dir:{}", dir.path().join("objects").display());
    conforms_and_survives(&url, dir.path(), Engine::Auto, UsedBytes::OfChunks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_beside_any_store_keeps_its_id_and_rows_of_the_greatest_length() {
    let dir = tempfile::tempdir().unwrap();
    for url in ["file:{}/store?size=400MiB", "dir:{}/objects"] {
        let url = url.replace("{}", dir.path().to_str().unwrap());
        let opened = open_at(&url, dir.path(), Engine::Auto).await;
        let long = noise(9, ROWS_BYTES_MAX);
        opened.log.append_rows(Bytes::from_static(b"first")).await.unwrap();
        opened.log.append_rows(long.clone()).await.unwrap();
        assert!(opened.log.append_rows(noise(9, ROWS_BYTES_MAX + 1)).await.is_err());
        let id = opened.log_id.clone();
        drop(opened);
        let opened = open_at(&url, dir.path(), Engine::Auto).await;
        assert_eq!(opened.log_id, id);
        assert_eq!(rows(&opened.log).await, [b"first".to_vec(), long.to_vec()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_another_server_has_open_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file:{}?size=300MiB", dir.path().join("s").display());
    let _first = open_at(&url, dir.path(), Engine::Auto).await;
    let second = open(&url.parse().unwrap(), dir.path(), &MetricsRegistry::new()).await;
    assert!(matches!(second, Err(OpenError::Open { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_torn_tail_keeps_all_that_came_before() {
    let dir = tempfile::tempdir().unwrap();
    let last = noise(2, 50_000);
    for damage in ["cut", "zero", "flip header", "flip payload"] {
        let path = dir.path().join(damage);
        let url = format!("file:{}?size=300MiB", path.display());
        let opened = open_at(&url, dir.path(), Engine::Auto).await;
        let kept = noise(1, 50_000);
        opened.chunks.put(ChunkHash::of(&kept), kept.clone()).await.unwrap();
        opened.log.append_rows(Bytes::from_static(b"kept")).await.unwrap();
        opened.chunks.put(ChunkHash::of(&last), last.clone()).await.unwrap();
        let end = SEGMENTS_START + opened.chunks.stats().used_bytes;
        drop(opened);
        // Header block and payload of the last frame.
        let frame = end - BLOCK as u64 - (50_000u64).next_multiple_of(BLOCK as u64);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        match damage {
            "cut" => {
                let whole = file.metadata().unwrap().len();
                file.set_len(end - 9000).unwrap();
                file.set_len(whole).unwrap();
            }
            "zero" => file.write_at(&[0; 4096], frame).map(drop).unwrap(),
            "flip header" => file.write_at(b"?", frame + 100).map(drop).unwrap(),
            _ => file.write_at(b"?", end - 4000).map(drop).unwrap(),
        }
        drop(file);
        let opened = open_at(&url, dir.path(), Engine::Auto).await;
        assert_eq!(opened.chunks.get(&ChunkHash::of(&kept)).await.unwrap(), kept, "{damage}");
        assert!(
            matches!(opened.chunks.get(&ChunkHash::of(&last)).await, Err(StoreError::NotFound)),
            "{damage}"
        );
        assert_eq!(rows(&opened.log).await, [b"kept"], "{damage}");
        assert_eq!(opened.chunks.put(ChunkHash::of(&last), last.clone()).await.unwrap(), PutOutcome::Stored);
        assert_eq!(opened.chunks.get(&ChunkHash::of(&last)).await.unwrap(), last, "{damage}");
    }
}
