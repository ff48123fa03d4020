//! The arguments of sub-commands, and what each does with them.

pub mod agent;
pub mod canonical;
pub mod compare;
pub mod diff;
pub mod explain;
pub mod observe;
pub mod report;
pub mod run;
pub mod saturate;
pub mod warmup;

use std::path::Path;

use common::config::parse_bytes;

pub type Failure = Box<dyn std::error::Error>;

/// The text to standard output, and the JSON to a file; or the JSON to standard output and the text beside it.
#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
pub fn tell(report: &impl serde::Serialize, text: &str, json: Option<&Path>) -> Result<(), Failure> {
    match json {
        Some(path) if path.as_os_str() == "-" => {
            eprintln!("{text}");
            println!("{}", serde_json::to_string(report)?);
        }
        Some(path) => {
            std::fs::write(path, serde_json::to_vec_pretty(report)?)?;
            println!("{text}");
        }
        None => println!("{text}"),
    }
    Ok(())
}

/// Reads a list of sizes, `4KiB,1MiB`.
pub fn parse_sizes(text: &str) -> Result<Vec<u64>, String> {
    text.split(',').map(|size| parse_bytes(size).map_err(|error| error.to_string())).collect()
}

pub fn half_the_cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1)
}

pub fn random_seed() -> u64 {
    let mut seed = [0u8; 8];
    common::auth::fill_random(&mut seed);
    // Numbers in JSON are exact up to 53 bits in every reader.
    u64::from_le_bytes(seed) >> 11
}
