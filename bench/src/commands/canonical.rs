//! `bench` without anything: the canonical run of a minute, the same for everybody.

use std::fmt::Write as _;
use std::path::PathBuf;

use bench::plan::{Pace, Plan};
use bench::report::{Report, show_us};
use bench::run::run as run_once;
use bench::schedule::Arrivals;
use bench::target::{Endpoints, Target};
use clap::Parser;

use super::Failure;
use super::run::LoadArgs;

/// Length of each part, after a warm-up: four parts and what is prepared for them make a minute.
const PART: &str = "10s";
const WARMUP: &str = "1s";
/// Enough to choose from, and few enough to be put in a second or two.
const OBJECTS: &str = "200";
/// Times are told at this share of what a closed loop reaches, as users come and not as fast as can be.
const SHARE: f64 = 0.5;

/// Arguments of a run as they are typed, so that presets and defaults are those of `bench run`.
#[derive(Parser)]
struct Typed {
    #[command(flatten)]
    load: LoadArgs,
}

fn typed(preset: &str) -> Result<LoadArgs, Failure> {
    let line = ["bench", preset, "--duration", PART, "--warmup", WARMUP, "--objects", OBJECTS];
    Ok(Typed::try_parse_from(line)?.load)
}

/// Where `dozo up` says that a system runs.
fn endpoints() -> PathBuf {
    std::env::var_os("DOZO_ENDPOINTS").map_or_else(|| "dozo-data/endpoints.json".into(), PathBuf::from)
}

#[expect(clippy::print_stdout, reason = "the result is what the command is for")]
pub async fn run() -> Result<bool, Failure> {
    let path = endpoints();
    let endpoints = Endpoints::read(&path).map_err(|error| {
        format!(
            "{}; the canonical run needs a system that runs: start one with `dozo up --demo`, or name its endpoints.json \
             in DOZO_ENDPOINTS",
            common::error::chain(&error)
        )
    })?;
    let target = Target::of(&endpoints, "bob")?;
    let (mut text, mut failed, mut held_back) = (String::new(), Vec::new(), Vec::new());
    let mut gets_per_s = 0.0;
    for (name, preset, open) in [
        ("get-4k", "get-4k", false),
        ("get-1m", "get-1m", false),
        ("put-1m", "put-1m", false),
        ("get-4k at half the rate", "get-4k", true),
    ] {
        eprintln!("bench: {name}");
        let load = typed(preset)?;
        let plan = load.plan()?;
        let pace = if open {
            Pace::Open { rate: gets_per_s * SHARE, arrivals: Arrivals::Poisson }
        } else {
            plan.pace
        };
        let outcome = run_once(Plan { pace, ..plan }, &target, &load.options(), |_| {}).await?;
        let report = Report::of(outcome);
        if gets_per_s == 0.0 {
            gets_per_s = report.requests_per_s();
        }
        if !report.passed {
            failed.push(name);
        }
        held_back.extend(report.generator.as_ref().filter(|check| check.refusal().is_some()).map(|_| name));
        write_part(&mut text, name, &report)?;
    }
    let verdict = match (failed.is_empty(), held_back.is_empty()) {
        (false, _) => format!("failed: a check did not hold in {}", failed.join(", ")),
        (true, false) => format!(
            "every byte and every booking is right, but the load generator was the limit in {}: these rates are its own",
            held_back.join(", ")
        ),
        (true, true) => {
            "every byte and every booking is right, and the load generator was not the limit".to_owned()
        }
    };
    println!("{text}\n{verdict}");
    Ok(failed.is_empty())
}

fn write_part(text: &mut String, name: &str, report: &Report) -> std::fmt::Result {
    // The last row sums up those before it.
    let (p50_us, p99_us) =
        report.results.last().map_or((0.0, 0.0), |row| (row.response.p50_us, row.response.p99_us));
    writeln!(
        text,
        "{name:<24} {:>9.1}/s {:>9.1} MiB/s   p50 {:>9}   p99 {:>9}",
        report.requests_per_s(),
        report.bytes_per_s() / f64::from(1 << 20),
        show_us(p50_us),
        show_us(p99_us),
    )?;
    for check in report.checks() {
        let mark = check.held.map_or("--  ", |held| if held { "ok  " } else { "FAIL" });
        writeln!(text, "  {mark} {}: {}", check.name, check.text)?;
    }
    Ok(())
}
