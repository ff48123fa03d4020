//! The process to be killed: puts, deletes, rows and floors at once, each told before it begins and once it is done.

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use storage_node::io::Engine;
use storage_node::log::{Log, LogPosition};
use storage_node::store::{ChunkStore, PutOutcome, StoreError};

use super::{WRITERS, chunk, dice, from_env, next_work, open, row};

/// Rows between two floors.
const FLOOR_EVERY: u64 = 15;

/// What the child is told through its environment.
pub fn environment(dir: &Path, engine: Engine, seed: u64, next_row: u64) -> Vec<(&'static str, OsString)> {
    vec![
        ("DOZO_STRESS_DIR", dir.into()),
        ("DOZO_STRESS_THREADS", u8::from(engine == Engine::Threads).to_string().into()),
        ("DOZO_STRESS_CHILD_SEED", seed.to_string().into()),
        ("DOZO_STRESS_NEXT_ROW", next_row.to_string().into()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the process that the other tests kill"]
async fn hammers_the_store_until_it_is_killed() {
    let Some(dir) = std::env::var_os("DOZO_STRESS_DIR").map(PathBuf::from) else { return };
    let engine = if from_env("DOZO_STRESS_THREADS") == Some(1) { Engine::Threads } else { Engine::Uring };
    let mut dice = dice(from_env("DOZO_STRESS_CHILD_SEED").unwrap());
    // Libtest has left its line open.
    tell(format_args!("\nopening"));
    let opened = open(&dir, engine).await;
    tell(format_args!("opened"));
    let rows = tokio::spawn(append_rows(opened.log.clone(), from_env("DOZO_STRESS_NEXT_ROW").unwrap()));
    let turns = Arc::new(AtomicU64::new(0));
    for writer in 0..WRITERS {
        tokio::spawn(put_and_delete(Arc::clone(&opened.chunks), writer, Arc::clone(&turns), dice()));
    }
    // None of them ends.
    rows.await.unwrap();
}

/// One line, whole. Without a parent that listens there is nothing left to do.
fn tell(line: fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

async fn put_and_delete(store: Arc<dyn ChunkStore>, writer: u64, turns: Arc<AtomicU64>, seed: u64) {
    let mut dice = dice(seed);
    loop {
        let (name, puts) = next_work(writer, turns.fetch_add(1, Ordering::Relaxed), &mut dice);
        let (hash, bytes) = chunk(name);
        let done = if puts {
            tell(format_args!("begin put {name}"));
            let len = bytes.len();
            store.put(hash, bytes.into()).await.map(|outcome| {
                let stored_bytes = if outcome == PutOutcome::Stored { len } else { 0 };
                tell(format_args!("done put {name} {stored_bytes}"));
            })
        } else {
            tell(format_args!("begin delete {name}"));
            store.delete(&hash).await.map(|_| tell(format_args!("done delete {name}")))
        };
        match done {
            Ok(()) => {}
            // The compactor has not caught up.
            Err(StoreError::Full { .. }) => tokio::task::yield_now().await,
            Err(error) => tell(format_args!("failed with chunk {name}: {error:?}")),
        }
    }
}

async fn append_rows(log: Log, first: u64) {
    for number in first.. {
        tell(format_args!("begin row {number}"));
        match log.append_rows(row(number).into()).await {
            Ok(position) => {
                tell(format_args!("done row {number} {}", position.0));
                if number.is_multiple_of(FLOOR_EVERY) {
                    raise_floor(&log, position).await;
                }
            }
            Err(error) => tell(format_args!("failed row {number}: {error:?}")),
        }
    }
}

async fn raise_floor(log: &Log, position: LogPosition) {
    tell(format_args!("begin floor {}", position.0));
    let log = log.clone();
    let raised = tokio::task::spawn_blocking(move || log.raise_floor_blocking(position)).await.unwrap();
    match raised {
        Ok(()) => tell(format_args!("done floor {}", position.0)),
        Err(error) => tell(format_args!("failed floor: {error:?}")),
    }
}
