//! Feeds a decoder with what valid encodings become when they rot; used by the tests of several crates.
//!
//! A target is a function of bytes that panics when what must hold does not, so any other fuzzer can drive it too.
//! Here it gets every encoding of its committed corpus, then changed ones. Each run takes another seed; a failure
//! tells it, and the bytes. For a long run: `DOZO_FUZZ_ROUNDS=100000000 cargo test --release fuzz`; for the same once
//! more: `DOZO_FUZZ_SEED=7`. A corpus holds one encoding a line, in hexadecimal digits. `DOZO_REWRITE_FIXTURES=1`
//! adds the encodings of today's examples to it; what is there stays, and must be read for good.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::SystemTime;

/// Panics when something does not hold for the bytes.
pub type Target = fn(&[u8]);

/// Inputs of a target that is quick.
pub const ROUNDS: u64 = 10_000;
/// Changes of one input, at most.
const CHANGES_MAX: u64 = 6;
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Integers at which something may turn over.
const INTEGERS: [u64; 16] = [
    0,
    1,
    2,
    127,
    128,
    255,
    4095,
    4096,
    4097,
    65_535,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 63,
    u64::MAX - 4095,
    u64::MAX,
];
/// Pieces that mean something in texts.
const WORDS: [&str; 14] = [
    "bytes=",
    "-",
    ",",
    " ",
    "/",
    "..",
    "\0",
    "\u{e9}",
    "=",
    "+",
    "\"",
    "18446744073709551615",
    "18446744073709551616",
    "Dozo ",
];

/// Numbers for a seed (splitmix64).
fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// The encodings of a committed corpus, with `examples` added if the environment says so.
pub fn corpus(path: &Path, examples: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let read = || std::fs::read_to_string(path).map(|text| text.lines().map(from_hex).collect());
    if std::env::var_os("DOZO_REWRITE_FIXTURES").is_some() {
        let mut all: BTreeSet<Vec<u8>> = read().unwrap_or_default();
        all.extend(examples.iter().cloned());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, all.iter().map(|bytes| to_hex(bytes) + "\n").collect::<String>()).unwrap();
    }
    let all = read().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(!all.is_empty(), "{} is empty", path.display());
    all.into_iter().collect()
}

/// Runs the target on each seed, then on changed ones: so many inputs in all, if the environment says nothing else.
pub fn fuzz(target: Target, rounds: u64, seeds: &[Vec<u8>]) {
    let from_env = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = from_env("DOZO_FUZZ_SEED").unwrap_or(now.as_nanos() as u64 % 1_000_000);
    let rounds = from_env("DOZO_FUZZ_ROUNDS").unwrap_or(rounds);
    let mut dice = dice(seed);
    for round in 0..rounds {
        let input = match seeds.get(round as usize) {
            Some(unchanged) => unchanged.clone(),
            None => {
                let mut pick = || &seeds[dice() as usize % seeds.len()];
                let (mut input, other) = (pick().clone(), pick());
                for _ in 0..=dice() % CHANGES_MAX {
                    change(&mut input, other, &mut dice);
                }
                input
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&input))) {
            eprintln!("DOZO_FUZZ_SEED={seed}, round {round}, input {}", to_hex(&input));
            resume_unwind(panic);
        }
    }
}

/// One change, of one of many kinds.
fn change(input: &mut Vec<u8>, other: &[u8], dice: &mut impl FnMut() -> u64) {
    let len = input.len();
    // A place, also the one behind the end.
    let at = dice() as usize % (len + 1);
    let piece_len = dice() as usize % (len - at + 1).min(64);
    let integer = INTEGERS[dice() as usize % INTEGERS.len()].to_le_bytes();
    match dice() % 9 {
        0 if at < len => input[at] ^= 1 << (dice() % 8),
        1 if at < len => input[at] = dice() as u8,
        2 if at < len => input[at] = input[at].wrapping_add(1 + (dice() % 2) as u8 * 254),
        3 if at + 4 <= len => input[at..at + 4].copy_from_slice(&integer[..4]),
        4 if at + 8 <= len => input[at..at + 8].copy_from_slice(&integer),
        5 => drop(input.drain(at..at + piece_len)),
        6 => input.extend_from_within(at..at + piece_len),
        7 => {
            let word = WORDS[dice() as usize % WORDS.len()];
            drop(input.splice(at..at, word.bytes()));
        }
        _ => {
            input.truncate(at);
            input.extend_from_slice(&other[at.min(other.len())..]);
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}
