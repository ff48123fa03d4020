//! A process is killed with SIGKILL; what it told to be done must be found by the next one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use storage_node::io::Engine;

use super::model::Model;
use super::{STORE_BYTES, child, dice, from_env, open, seed};

/// Lives of a run, at least, unless the environment says more.
const ROUNDS: u64 = 12;
/// Lines that a process tells before it is killed, at most.
const LINES_MAX: u64 = 8000;

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
    let seed = seed(&format!("kills under {engine:?}"));
    let rounds = from_env("DOZO_STRESS_ROUNDS").unwrap_or(ROUNDS);
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
