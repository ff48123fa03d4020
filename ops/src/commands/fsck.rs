//! `fsck`: checks the store of a storage node that does not run, and repairs what can be repaired.

use std::path::PathBuf;
use std::sync::OnceLock;

use common::config::show_bytes;
use common::error::chain;
use storage_node::fsck::{
    CatalogFigures, ChunkFigures, FsckError, IndexState, Options, Report, Severity, run,
};
use storage_node::store::StoreUrl;

use crate::error::Failure;
use crate::output::{self, OutputArgs};
use crate::progress::Progress;

#[derive(Debug, clap::Args)]
pub struct FsckArgs {
    /// Where the node keeps its chunks, as its own --store says
    #[arg(long)]
    store: StoreUrl,
    /// The node's folder
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Write what can be made again, and take damaged chunks out so that they come back from other holders
    #[arg(long)]
    repair: bool,
    /// Do not read the bytes of chunks
    #[arg(long)]
    fast: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub async fn fsck(args: FsckArgs) -> Result<(), Failure> {
    let FsckArgs { store, data_dir, repair, fast, output } = args;
    let options = Options { store, data_dir, repair, fast };
    let report = check(&options).await?;
    if output.json {
        output::json(&report)?;
    } else {
        output::text_block(&text(&report))?;
    }
    if report.is_clean() {
        return Ok(());
    }
    let count = |severity| report.findings.iter().filter(|f| f.severity == severity).count();
    let (damage, lost) = (count(Severity::Damage), count(Severity::Lost));
    let failure = Failure::new(format!(
        "{} is damaged; findings that can be repaired: {damage}, that cannot: {lost}",
        report.store
    ));
    Err(failure.with_next_step(if damage > 0 {
        "run it again with --repair"
    } else {
        "what is lost here may be whole on other nodes: start this node on an empty store if it does not start on this one"
    }))
}

/// Checks with a bar on a terminal.
async fn check(options: &Options) -> Result<Report, Failure> {
    let bar: OnceLock<Progress> = OnceLock::new();
    let advance = |done: u64, total: u64| bar.get_or_init(|| Progress::bytes(total, "verifying")).set(done);
    let checked = run(options, &advance).await;
    if let Some(bar) = bar.get() {
        bar.finish();
    }
    checked.map_err(|error| match error {
        FsckError::Memory => Failure::usage(error.to_string()),
        FsckError::Open { .. } => Failure::new(chain(&error))
            .with_next_step("stop the node first, and give --store and --data-dir as the node has them"),
        error => Failure::new(chain(&error)),
    })
}

fn text(report: &Report) -> String {
    let log = &report.log;
    let mut text = format!("store {}\n  log          {}\n", report.store, log.log_id);
    let mut line = |name: &str, what: String| text.push_str(&format!("  {name:<11}  {what}\n"));
    line("superblock", format!("{} of 2 copies are good", log.superblock_copies));
    line(
        "slots",
        format!(
            "{} of {}: {} in use, {} freed, {} never used, {} unreadable",
            log.slots,
            show_bytes(log.segment_bytes),
            log.slots_in_use,
            log.slots_freed,
            log.slots_never_used,
            log.slots_unreadable
        ),
    );
    line(
        "segments",
        format!(
            "{} sealed, {} being written, {} with a damaged footer",
            log.segments_sealed, log.segments_open, log.footers_damaged
        ),
    );
    line(
        "frames",
        format!("{}, with {} gaps, {} unfinished", log.frames, log.frame_gaps, log.frames_unfinished),
    );
    line(
        "rows",
        format!(
            "{} entries, {}; {} behind the floor at position {}",
            log.rows_entries,
            show_bytes(log.rows_bytes),
            log.rows_entries_needed,
            log.floor
        ),
    );
    line(
        "chunks",
        report.chunks.as_ref().map_or_else(not_looked_at, |chunks| show_chunks(chunks, report.fast)),
    );
    match &report.catalog {
        None => line("catalog", not_looked_at()),
        Some(catalog) => {
            line("index", show_index(&catalog.index));
            line("catalog", show_rows(catalog));
        }
    }
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Damage => "damage",
            Severity::Repaired => "repaired",
            Severity::Lost => "lost",
        };
        text.push_str(&format!("{severity}: {}\n", finding.what));
    }
    if report.is_clean() {
        text.push_str("clean\n");
    }
    text
}

fn not_looked_at() -> String {
    "not looked at: the log cannot be opened".to_owned()
}

fn show_chunks(chunks: &ChunkFigures, fast: bool) -> String {
    let ChunkFigures { live, dead, verified, verified_bytes, damaged, unreadable, without_row } = chunks;
    let read = match fast {
        true => "not read".to_owned(),
        false => {
            format!(
                "{verified} verified ({}), {damaged} damaged, {unreadable} unreadable",
                show_bytes(*verified_bytes)
            )
        }
    };
    format!("{live} live, {dead} dead copies; {read}; {without_row} without a row")
}

fn show_index(index: &IndexState) -> String {
    match index {
        IndexState::Current { position } => format!("has all of the log, up to position {position}"),
        IndexState::Behind { position } => format!("has the log up to position {position}"),
        IndexState::Missing => "there is none".to_owned(),
        IndexState::Useless { reason } => format!("cannot be used: {reason}"),
    }
}

fn show_rows(catalog: &CatalogFigures) -> String {
    let rows: Vec<String> = catalog.rows.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let rows = if rows.is_empty() { "no rows".to_owned() } else { rows.join(", ") };
    format!("{rows}; {} chunks missing", catalog.chunks_missing)
}
