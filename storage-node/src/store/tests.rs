//! One conformance test for every kind of store, and what concerns real files.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use futures_util::future::join_all;

use super::*;
use crate::io::BLOCK;
use crate::log::{BoxError, LogPosition, SEGMENTS_START};

async fn open_at(url: &str, dir: &Path, engine: Engine) -> Opened {
    let options = Options { engine, ..Options::default() };
    open_with(&url.parse().unwrap(), dir, &MetricsRegistry::new(), options).await.unwrap()
}

fn noise(seed: u64, len: usize) -> Bytes {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes.into()
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

/// What every store must do. Returns chunks that must still be there after a restart.
async fn conforms(store: &dyn ChunkStore) -> Vec<(ChunkHash, Bytes)> {
    let empty = store.stats();
    assert_eq!(empty.chunks, 0);
    assert!(empty.capacity_bytes > 100 << 20);
    let lengths = [0, 1, 4095, 4096, 4097, 70_000, 1 << 20, 4 << 20];
    let chunks: Vec<(ChunkHash, Bytes)> = lengths
        .iter()
        .map(|len| noise(*len as u64, *len))
        .map(|bytes| (ChunkHash::of(&bytes), bytes))
        .collect();
    for (hash, bytes) in &chunks {
        assert!(matches!(store.get(hash).await, Err(StoreError::NotFound)));
        assert!(!store.contains(hash).await.unwrap() && !store.delete(hash).await.unwrap());
        assert_eq!(store.put(*hash, bytes.clone()).await.unwrap(), PutOutcome::Stored);
        assert_eq!(store.put(*hash, bytes.clone()).await.unwrap(), PutOutcome::Present);
        assert_eq!(store.get(hash).await.unwrap(), bytes);
        assert!(store.contains(hash).await.unwrap());
    }
    let filled = store.stats();
    assert_eq!(filled.chunks, lengths.len() as u64);
    assert!(filled.used_bytes >= lengths.iter().sum::<usize>() as u64);

    let (gone, bytes) = &chunks[5];
    assert!(store.delete(gone).await.unwrap() && !store.delete(gone).await.unwrap());
    assert!(matches!(store.get(gone).await, Err(StoreError::NotFound)));
    assert!(store.stats().used_bytes < filled.used_bytes);
    assert_eq!(store.put(*gone, bytes.clone()).await.unwrap(), PutOutcome::Stored, "and comes back");

    // Equal and different puts at once, with reads beside them.
    let same = noise(1000, 5000);
    let puts = join_all((0..20).map(|_| store.put(ChunkHash::of(&same), same.clone()))).await;
    let stored = puts.into_iter().filter(|p| *p.as_ref().unwrap() == PutOutcome::Stored).count();
    assert_eq!(stored, 1);
    let many: Vec<Bytes> = (0..300).map(|i| noise(5000 + i, 3000 + i as usize)).collect();
    let work = many.iter().map(|bytes| async move {
        let hash = ChunkHash::of(bytes);
        store.put(hash, bytes.clone()).await.unwrap();
        assert_eq!(store.get(&hash).await.unwrap(), bytes);
    });
    join_all(work).await;
    // A read that nobody waits for does no harm.
    drop(store.get(&chunks[7].0));
    let _given_up = tokio::time::timeout(std::time::Duration::ZERO, store.get(&chunks[7].0)).await;
    assert_eq!(store.get(&chunks[7].0).await.unwrap(), chunks[7].1);
    assert_eq!(store.stats().chunks, lengths.len() as u64 + 301);

    // The list has each of them, and nothing that was deleted.
    assert!(store.delete(&ChunkHash::of(&same)).await.unwrap());
    let (mut listed, mut next) = (Vec::new(), Some(0));
    while let Some(page) = next {
        let page = store.list(page).await.unwrap();
        listed.extend(page.hashes);
        next = page.next;
    }
    let mut stored: Vec<ChunkHash> = chunks.iter().map(|(hash, _)| *hash).collect();
    stored.extend(many.iter().map(|bytes| ChunkHash::of(bytes)));
    listed.sort_unstable_by_key(|hash| *hash.as_bytes());
    stored.sort_unstable_by_key(|hash| *hash.as_bytes());
    assert_eq!(listed, stored);
    chunks
}

async fn conforms_and_survives_a_restart(url: &str, dir: &Path, engine: Engine) {
    let opened = open_at(url, dir, engine).await;
    let chunks = conforms(&*opened.chunks).await;
    let long = noise(9, 12 << 20);
    opened.log.append_rows(Bytes::from_static(b"first")).await.unwrap();
    opened.log.append_rows(long.clone()).await.unwrap();
    assert!(opened.log.append_rows(noise(9, (12 << 20) + 1)).await.is_err());
    let (stats, id) = (opened.chunks.stats(), opened.log_id.clone());
    drop(opened);
    let opened = open_at(url, dir, engine).await;
    assert_eq!((opened.chunks.stats().chunks, &opened.log_id), (stats.chunks, &id));
    assert_eq!(opened.chunks.stats().used_bytes, stats.used_bytes);
    for (hash, bytes) in &chunks {
        assert_eq!(opened.chunks.get(hash).await.unwrap(), bytes);
        assert_eq!(opened.chunks.put(*hash, bytes.clone()).await.unwrap(), PutOutcome::Present);
    }
    assert_eq!(rows(&opened.log).await, [b"first".to_vec(), long.to_vec()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_at("memory:?size=400MiB", dir.path(), Engine::Auto).await;
    conforms(&*opened.chunks).await;
    assert_eq!((opened.io_engine, opened.log_id.len()), ("memory", 32));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_store_conforms_on_both_engines() {
    let dir = tempfile::tempdir().unwrap();
    for (engine, name) in [(Engine::Uring, "io_uring"), (Engine::Threads, "threads")] {
        let url = format!("file:{}?size=400MiB", dir.path().join(name).display());
        conforms_and_survives_a_restart(&url, dir.path(), engine).await;
        assert_eq!(open_at(&url, dir.path(), engine).await.io_engine, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("dir:{}", dir.path().join("objects").display());
    conforms_and_survives_a_restart(&url, dir.path(), Engine::Auto).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_never_answered() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_at(&format!("dir:{}", dir.path().display()), dir.path(), Engine::Auto).await;
    let bytes = noise(1, 9000);
    let hash = ChunkHash::of(&bytes);
    opened.chunks.put(hash, bytes).await.unwrap();
    let hex = hash.to_string();
    let path = dir.path().join("chunks").join(&hex[..2]).join(&hex);
    OpenOptions::new().write(true).open(path).unwrap().write_at(b"?", 4000).unwrap();
    assert!(matches!(opened.chunks.get(&hash).await, Err(StoreError::Damaged { .. })));
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
