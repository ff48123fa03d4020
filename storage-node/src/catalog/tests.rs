use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use common::error::{ApiError, ErrorCode};
use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;
use proptest::prelude::*;

use super::Catalog;
use super::txn::{RawRows, Rows, Txn};
use crate::log::LogPosition;
use crate::store::{self, Opened, StoreError, StoreUrl};

const CACHE: usize = 4 << 20;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// One write: a key, and its value or `None` to remove it.
type Write = (u8, Option<u8>);

#[derive(Debug, Clone)]
enum Op {
    /// Changes of one commit; `false` lets it end in an error.
    Commit(Vec<Write>, bool),
    Checkpoint,
    /// Writes everything into the log once more, and raises its floor.
    WriteOut,
    /// Opens the index as a crash would leave it: without a last checkpoint.
    Crash,
    Close,
    /// The index file is lost or overwritten.
    LoseIndex,
    SpoilIndex,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let write = (any::<u8>(), prop::option::weighted(0.7, any::<u8>()));
    let op = prop_oneof![
        8 => (prop::collection::vec(write, 0..12), prop::bool::weighted(0.85)).prop_map(|(w, ok)| Op::Commit(w, ok)),
        1 => Just(Op::Checkpoint),
        2 => Just(Op::WriteOut),
        1 => Just(Op::Crash),
        1 => Just(Op::Close),
        1 => Just(Op::LoseIndex),
        1 => Just(Op::SpoilIndex),
    ];
    prop::collection::vec(op, 1..25)
}

fn row(write: &Write) -> (Vec<u8>, Option<Vec<u8>>) {
    (vec![7, write.0 % 16, write.0 / 16], write.1.map(|value| vec![value; usize::from(value) % 5 + 1]))
}

fn apply(txn: &mut Txn<'_>, writes: &[Write]) {
    for write in writes {
        match row(write) {
            (key, Some(value)) => txn.put_raw(key, value),
            (key, None) => txn.delete_raw(key),
        }
    }
}

fn all(rows: &impl Rows) -> Model {
    let mut model = Model::new();
    rows.scan(&[7], &mut |key, value| {
        model.insert(key.to_vec(), value.to_vec());
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    model
}

async fn open_store() -> Opened {
    let url: StoreUrl = "memory:".parse().unwrap();
    store::open(&url, Path::new("/nowhere"), &MetricsRegistry::new()).await.unwrap()
}

async fn open(dir: &Path, opened: &Opened) -> Catalog {
    Catalog::open(dir, opened.log.clone(), &opened.log_id, CACHE).await.unwrap()
}

fn refused() -> ApiError {
    ApiError::new(ErrorCode::PreconditionFailed, "no")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_catalog_is_the_model_through_any_crash_and_loss_of_its_index(ops in ops()) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join(super::index::FILE_NAME);
            let opened = open_store().await;
            let mut catalog = open(dir.path(), &opened).await;
            let mut model = Model::new();
            for op in ops {
                match op {
                    Op::Commit(writes, ok) => {
                        let sent = writes.clone();
                        let answer = catalog.commit(move |txn| {
                            apply(txn, &sent);
                            if ok { Ok(all(txn)) } else { Err(refused()) }
                        }).await;
                        if ok {
                            for write in &writes {
                                match row(write) {
                                    (key, Some(value)) => drop(model.insert(key, value)),
                                    (key, None) => drop(model.remove(&key)),
                                }
                            }
                            assert_eq!(answer.unwrap(), model, "a change sees what it wrote");
                        } else {
                            assert_eq!(answer.unwrap_err().code, ErrorCode::PreconditionFailed);
                        }
                    }
                    Op::Checkpoint => catalog.checkpoint().await.unwrap(),
                    Op::WriteOut => {
                        let floor = opened.log.floor();
                        catalog.write_out().await;
                        assert!(opened.log.floor() >= floor);
                    }
                    Op::Crash => {
                        // The file as it is on disk now, while the other is still open.
                        let copy = tempfile::tempdir().unwrap();
                        std::fs::copy(&file, copy.path().join(super::index::FILE_NAME)).unwrap();
                        catalog.close().await;
                        drop(catalog);
                        std::fs::copy(copy.path().join(super::index::FILE_NAME), &file).unwrap();
                        catalog = open(dir.path(), &opened).await;
                    }
                    Op::Close | Op::LoseIndex | Op::SpoilIndex => {
                        catalog.close().await;
                        drop(catalog);
                        match op {
                            Op::LoseIndex => std::fs::remove_file(&file).unwrap(),
                            Op::SpoilIndex => std::fs::write(&file, b"this was an index").unwrap(),
                            _ => {}
                        }
                        catalog = open(dir.path(), &opened).await;
                    }
                }
                assert_eq!(catalog.read(|rows| Ok(all(rows))).unwrap(), model);
            }
            catalog.close().await;
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_in_a_change_merges_its_writes_with_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_store().await;
    let catalog = open(dir.path(), &opened).await;
    let put = |keys: &'static [u8]| {
        move |txn: &mut Txn<'_>| {
            keys.iter().for_each(|key| txn.put_raw(vec![7, *key], vec![*key]));
            Ok(())
        }
    };
    catalog.commit(put(&[1, 3, 5, 7])).await.unwrap();
    let (seen, first_two) = catalog
        .commit(|txn| {
            txn.put_raw(vec![7, 2], vec![2]);
            txn.put_raw(vec![7, 3], vec![33]);
            txn.delete_raw(vec![7, 5]);
            txn.put_raw(vec![7, 9], vec![9]);
            txn.put_raw(vec![8], vec![8]);
            let (mut seen, mut first_two) = (Vec::new(), Vec::new());
            txn.scan_raw(&[7], Bound::Excluded(&[7, 1]), &mut |key, value| {
                seen.push((key[1], value[0]));
                Ok(ControlFlow::Continue(()))
            })?;
            txn.scan(&[7], &mut |key, _| {
                first_two.push(key[1]);
                Ok(if first_two.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok((seen, first_two))
        })
        .await
        .unwrap();
    assert_eq!(seen, [(2, 2), (3, 33), (7, 7), (9, 9)]);
    assert_eq!(first_two, [1, 2]);
    catalog.close().await;
    let error = catalog.commit(put(&[1])).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_changes_at_once_share_commits_and_each_sees_those_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_store().await;
    let catalog = open(dir.path(), &opened).await;
    let count = |txn: &mut Txn<'_>| {
        let before = txn.get_raw(b"count")?.map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
        txn.put_raw(b"count".to_vec(), (before + 1).to_le_bytes().to_vec());
        Ok(before)
    };
    let tasks: Vec<_> = (0..500)
        .map(|_| {
            let catalog = catalog.clone();
            tokio::spawn(async move { catalog.commit(count).await.unwrap() })
        })
        .collect();
    let mut seen = Vec::new();
    for task in tasks {
        seen.push(task.await.unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..500).collect::<Vec<_>>());
    catalog.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_another_log_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (open_store().await, open_store().await);
    let catalog = open(dir.path(), &old).await;
    catalog
        .commit(|txn| {
            txn.put_raw(vec![7], vec![1]);
            Ok(())
        })
        .await
        .unwrap();
    catalog.close().await;
    drop(catalog);
    let catalog = open(dir.path(), &new).await;
    assert!(catalog.read(|rows| Ok(all(rows))).unwrap().is_empty());
    assert!(dir.path().join("index.redb.aside").exists());
    catalog.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_takes_many_times_its_size_when_what_it_held_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let url: StoreUrl = format!("file:{}?size=300MiB", dir.path().join("store").display()).parse().unwrap();
    let metrics = MetricsRegistry::new();
    let open_store = || store::open(&url, Path::new("/nowhere"), &metrics);
    let mut opened = open_store().await.unwrap();
    let mut catalog = open(dir.path(), &opened).await;
    let capacity = opened.chunks.stats().capacity_bytes;
    let chunk = |n: u64| {
        let mut bytes = vec![n as u8; 1 << 20];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        (ChunkHash::of(&bytes), Bytes::from(bytes))
    };
    let key = |n: u64| [&[7], &n.to_be_bytes()[..]].concat();
    let (mut n, mut oldest) = (0, 0);
    while n << 20 < 4 * capacity {
        let (hash, bytes) = chunk(n);
        let put = async {
            // What was deleted a moment ago may still have to be freed.
            while let Err(StoreError::Full { .. }) = opened.chunks.put(hash, bytes.clone()).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), put)
            .await
            .expect("freed space is usable within a minute");
        catalog
            .commit(move |txn| {
                txn.put_raw(key(n), vec![n as u8; 20_000]);
                Ok(())
            })
            .await
            .unwrap();
        n += 1;
        // Two thirds of it stay in use.
        while (n - oldest) << 20 > capacity / 3 * 2 {
            let gone = oldest;
            assert!(opened.chunks.delete(&chunk(gone).0).await.unwrap());
            catalog
                .commit(move |txn| {
                    txn.delete_raw(key(gone));
                    Ok(())
                })
                .await
                .unwrap();
            oldest += 1;
        }
        if n.is_multiple_of(300) {
            // A restart in between, now and then without the index.
            catalog.close().await;
            drop((catalog, opened));
            if n.is_multiple_of(600) {
                std::fs::remove_file(dir.path().join(super::index::FILE_NAME)).unwrap();
            }
            opened = open_store().await.unwrap();
            catalog = open(dir.path(), &opened).await;
        }
    }
    assert!(opened.log.floor() > LogPosition(0), "rows were let go");
    assert_eq!(opened.chunks.stats().chunks, n - oldest);
    assert_eq!(catalog.read(|rows| rows.count(&[7])).unwrap(), n - oldest);
    for kept in oldest..n {
        let (hash, bytes) = chunk(kept);
        assert_eq!(opened.chunks.get(&hash).await.unwrap(), bytes);
        assert!(catalog.read(|rows| rows.get_raw(&key(kept))).unwrap().is_some());
    }
    catalog.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_store_rows_can_be_changed_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let url: StoreUrl = format!("file:{}?size=300MiB", dir.path().join("store").display()).parse().unwrap();
    let opened = store::open(&url, Path::new("/nowhere"), &MetricsRegistry::new()).await.unwrap();
    let catalog = open(dir.path(), &opened).await;
    let mut n = 0u64;
    while opened.chunks.put(ChunkHash::of(&n.to_le_bytes()), vec![n as u8; 1 << 20].into()).await.is_ok() {
        n += 1;
    }
    // As much as the device holds, over a few rows: nothing but the log's own forgetting makes room for it.
    for change in 0..600u32 {
        let commit = async {
            let row = move |txn: &mut Txn<'_>| {
                txn.put_raw(vec![7, (change % 4) as u8], vec![change as u8; 500_000]);
                Ok(())
            };
            while let Err(error) = catalog.commit(row).await {
                assert_eq!(error.code, ErrorCode::NodeFull, "{error}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), commit)
            .await
            .expect("a full store takes changes of rows");
    }
    assert_eq!(opened.chunks.stats().chunks, n, "and keeps its chunks");
    catalog.close().await;
}
