//! A real file store under all its threads at once: killed again and again, and read while it compacts.
//!
//! A test binary of its own: it runs itself once more as the process to be killed. Each run takes another seed and
//! says which. For long ones, or the same once more:
//! ```text
//! DOZO_STRESS_ROUNDS=500 DOZO_STRESS_SEED=7 cargo test -p storage-node --test stress -- --nocapture
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail, and tell their seed, as tests do"
)]

mod child;
mod compaction;
mod kill;
mod model;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;
use storage_node::io::Engine;
use storage_node::store::{Opened, Options, open_with};

const STORE_BYTES: u64 = 300 << 20;
/// After this the kernel must have let go of a killed process's file.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(20);

/// Numbers for a seed (splitmix64).
fn dice(seed: u64) -> impl FnMut() -> u64 + Send {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// The chunk of a name: its bytes and even their number follow from it.
fn chunk(name: u64) -> (ChunkHash, Vec<u8>) {
    let len = match name % 4 {
        0 => name * 37 % 5000,
        1 => 4096,
        2 => 20_000 + name * 977 % 100_000,
        _ => 100_000 + name * 9973 % 500_000,
    };
    let bytes = noise(name, len as usize);
    (ChunkHash::of(&bytes), bytes)
}

/// Writers put and delete at once; each has names of its own.
const WRITERS: u64 = 6;
const HOT_NAMES: u64 = 8;
const COLD_NAMES: u64 = 100;
const NAMES_PER_WRITER: u64 = HOT_NAMES + COLD_NAMES;
/// Turns of all writers: at first only cold chunks are put, which fills segments that stay; then hot ones come and go
/// so that segments are freed, and now and then a cold one is deleted, whose tombstone must outlive those.
const TURNS: u64 = 1200;
const COLD_TURNS: u64 = 300;

/// The name that a writer takes up in a turn, and whether to put it.
fn next_work(writer: u64, turn: u64, dice: &mut impl FnMut() -> u64) -> (u64, bool) {
    let (number, puts) = if turn % TURNS < COLD_TURNS {
        (HOT_NAMES + dice() % COLD_NAMES, true)
    } else if dice().is_multiple_of(16) {
        (HOT_NAMES + dice() % COLD_NAMES, false)
    } else {
        (dice() % HOT_NAMES, !dice().is_multiple_of(3))
    };
    (writer * NAMES_PER_WRITER + number, puts)
}

/// The rows entry with a number.
fn row(number: u64) -> Vec<u8> {
    [number.to_le_bytes().to_vec(), noise(number, (number * 37 % 3000) as usize)].concat()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

async fn open(dir: &Path, engine: Engine) -> Opened {
    open_with_metrics(dir, engine, &MetricsRegistry::new()).await
}

async fn open_with_metrics(dir: &Path, engine: Engine, metrics: &MetricsRegistry) -> Opened {
    let url = format!("file:{}?size={STORE_BYTES}", dir.join("store").display()).parse().unwrap();
    let options = Options { engine, ..Options::default() };
    let begun = Instant::now();
    loop {
        match open_with(&url, dir, metrics, options).await {
            Ok(opened) => return opened,
            // Requests of a killed process may still be under way in the kernel, and hold its lock.
            Err(error)
                if begun.elapsed() < RELEASE_TIMEOUT && format!("{error:?}").contains("ResourceBusy") =>
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("the store does not open again: {error:?}"),
        }
    }
}

/// Seed of this run.
fn seed(of: &str) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = from_env("DOZO_STRESS_SEED").unwrap_or(now.as_nanos() as u64 % 1_000_000);
    println!("{of}: DOZO_STRESS_SEED={seed}");
    seed
}

fn from_env(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}
