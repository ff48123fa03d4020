//! A process that hammers a real file store is killed with SIGKILL, again and again; what it told to be done must be
//! found by the next one.
//!
//! A test binary of its own: it runs itself once more as the process to be killed. Each run takes another seed and
//! says which. For a long one, or the same once more:
//! ```text
//! DOZO_KILL_ROUNDS=2000 DOZO_KILL_SEED=7 cargo test -p storage-node --test kill -- --nocapture
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail, and tell their seed, as tests do"
)]

mod child;
mod model;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;
use storage_node::io::Engine;
use storage_node::store::{Opened, Options, open_with};

use model::Model;

const STORE_BYTES: u64 = 300 << 20;
/// Lives of a run, at least, unless the environment says more.
const ROUNDS: u64 = 12;
/// Lines that a process tells before it is killed, at most.
const LINES_MAX: u64 = 8000;
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
    let url = format!("file:{}?size={STORE_BYTES}", dir.join("store").display()).parse().unwrap();
    let options = Options { engine, ..Options::default() };
    let begun = Instant::now();
    loop {
        match open_with(&url, dir, &MetricsRegistry::new(), options).await {
            Ok(opened) => return opened,
            // Requests of a killed process may still be under way in the kernel, and hold its lock.
            Err(error)
                if begun.elapsed() < RELEASE_TIMEOUT && format!("{error:?}").contains("ResourceBusy") =>
            {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("the store does not open again: {error:?}"),
        }
    }
}

fn from_env(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Runs the child on the store and kills it after so many lines; tells the model what it said.
fn live_and_die(dir: &Path, engine: Engine, seed: u64, lines: u64, model: &mut Model) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child::hammers_the_store_until_it_is_killed", "--exact", "--ignored", "--nocapture"])
        .envs(child::environment(dir, engine, seed, model.next_row()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut dice = dice(seed);
    let mut told = 0;
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    // What it told before it was killed counts, also what is read only afterwards. A line without an end does not.
    while reader.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
        if model.note(line.trim_end()) {
            told += 1;
            if told == lines {
                // Not to wait for anything: only to strike anywhere between two lines.
                std::thread::sleep(Duration::from_micros(dice() % 2000));
                child.kill().unwrap();
            }
        }
        line.clear();
    }
    let status = child.wait().unwrap();
    assert!(told >= lines, "the child ended by itself after {told} of {lines} lines: {status}");
}

async fn survives_kills(engine: Engine) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = from_env("DOZO_KILL_SEED").unwrap_or(now.as_nanos() as u64 % 1_000_000);
    let rounds = from_env("DOZO_KILL_ROUNDS").unwrap_or(ROUNDS);
    println!("{engine:?}: DOZO_KILL_SEED={seed} DOZO_KILL_ROUNDS={rounds}");
    let dir = tempfile::tempdir().unwrap();
    let mut dice = dice(seed);
    let mut model = Model::default();
    let mut round = 0;
    // More is stored than there is room for: what was deleted has to be given back under way.
    while round < rounds || model.stored_bytes < STORE_BYTES {
        round += 1;
        // Some die while they open the store, some early, some late.
        let lines = match dice() % 4 {
            0 => 1,
            1 => 1 + dice() % 30,
            _ => 1 + dice() % LINES_MAX,
        };
        live_and_die(dir.path(), engine, dice(), lines, &mut model);
        // Where nobody looks, the next child finds what the crash left, and may die of it.
        if !dice().is_multiple_of(3) {
            model.check(&open(dir.path(), engine).await).await;
        }
    }
    model.check(&open(dir.path(), engine).await).await;
    println!("{engine:?}: {model}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kills_under_io_uring() {
    survives_kills(Engine::Uring).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kills_under_threads() {
    survives_kills(Engine::Threads).await;
}
