//! Checks the store of a node that does not run, and repairs what can be repaired.
//!
//! The device is first looked at as it is, behind damage too ([`crate::log::survey`]). Then log and catalog are opened
//! as a start would open them, over a layer that keeps what they write in memory. So a check without repair writes
//! nothing, and says what a start would find. Which references of chunks nothing needs it cannot say, for holdings may be
//! at other nodes: the recount of a running node finds these ([`crate::recount`]). A repair writes what follows from what is there: nothing is guessed.
//!
//! | file | owns |
//! |---|---|
//! | `report.rs` | figures and findings |
//! | `chunks.rs` | chunks against hashes and rows |

mod chunks;
mod report;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::error::chain;
use common::hash::ChunkHash;
use common::telemetry::MetricsRegistry;

use crate::catalog::CatalogError;
use crate::catalog::inspect::{self, Inspected};
use crate::io::{BlockIo, Engine, OverlayIo, Target};
use crate::log::survey::{Survey, survey};
use crate::log::{Log, LogError, OpenLogError, OpenOptions, segment_bytes_for};
use crate::store::{
    BlockStore, ChunkStore, LOG_FILE, ObjectChunkStore, OpenError, StoreError, StoreMetrics, StoreUrl,
};

pub use crate::catalog::inspect::IndexState;
pub use crate::log::survey::LogFigures;
pub use report::{CatalogFigures, ChunkFigures, Finding, Report, Severity};

/// What is to be checked, and how.
#[derive(Debug, Clone)]
pub struct Options {
    pub store: StoreUrl,
    pub data_dir: PathBuf,
    /// Writes what can be made again, and takes damaged chunks out.
    pub repair: bool,
    /// Does not read the bytes of chunks.
    pub fast: bool,
}

/// Told of bytes that were verified, and of all bytes in use.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    #[error("a store in memory is gone with its process: there is nothing to check")]
    Memory,
    #[error("{path} cannot be opened", path = .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "neither copy of the superblock in {place} can be read: it is not a store, or both are lost and with them all that it holds"
    )]
    NoSuperblock { place: String },
    #[error("the log in {place} cannot be read")]
    Log { place: String, source: OpenLogError },
    #[error("the object store cannot be used")]
    Object(#[source] OpenError),
    #[error("the chunks cannot be listed")]
    Chunks(#[source] StoreError),
    #[error("the catalog cannot be read")]
    Catalog(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("a repair was not written")]
    Repair(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("a thread of the check ended early")]
    Interrupted,
}

impl From<CatalogError> for FsckError {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(Box::new(error))
    }
}

/// Checks a store. One that a node has open is refused: its log is locked.
pub async fn run(options: &Options, progress: Progress<'_>) -> Result<Report, FsckError> {
    let metrics = StoreMetrics::new(&MetricsRegistry::new());
    let place = log_place(options)?;
    let (path, repair) = (place.clone(), options.repair);
    let is_device = matches!(options.store, StoreUrl::Device { .. });
    let (io, survey, repaired) = blocking(move || look(&path, is_device, repair)).await?;
    let mut report = Report {
        store: options.store.to_string(),
        fast: options.fast,
        log: survey.figures.clone(),
        chunks: None,
        catalog: None,
        findings: Vec::new(),
    };
    match repaired {
        Some(done) => done.into_iter().for_each(|what| report.add(Severity::Repaired, what)),
        None => report.add_repairable(&survey),
    }

    let (overlay, log_metrics) = (Arc::new(OverlayIo::new(Arc::clone(&io))), metrics.clone());
    let opened = blocking(move || Ok(Log::open_for_reading(overlay, log_metrics))).await?;
    let log = match opened {
        Ok(log) => log,
        Err(error) => {
            report.add_lost(&survey, None);
            report.add(Severity::Lost, format!("the node does not start: {}", chain(&error)));
            return Ok(report);
        }
    };
    let index_path = inspect::index_path(&options.data_dir);
    let (path, inspected_log) = (index_path.clone(), log.clone());
    let inspected = blocking(move || Ok(inspect::inspect(&path, &inspected_log)?)).await?;
    report.add_lost(&survey, index_position(&inspected.state));
    let store: Arc<dyn ChunkStore> = match objects(&options.store, &log.id(), metrics.clone()).await? {
        Some(objects) => Arc::new(objects),
        None => Arc::new(BlockStore::new(log.clone())),
    };
    let damaged = check_chunks(&mut report, &*store, &inspected, options, progress).await?;
    if let Some(error) = &inspected.replay_error {
        report
            .add(Severity::Lost, format!("the catalog cannot be brought up to the end of the log: {error}"));
    }
    // An index may be all that is left of rows that the log lost.
    let may_move_index = options.repair && survey.gaps.is_empty();
    add_index(&mut report, &inspected.state, &index_path, may_move_index)?;

    let log_id = log.id();
    drop((inspected, log));
    drop(store);
    if options.repair && !damaged.is_empty() {
        if options.store.has_objects() {
            take_out_objects(&options.store, &log_id, &damaged, metrics).await?;
        } else {
            take_out_of_log(io, damaged.clone(), metrics).await?;
        }
    }
    add_damaged(&mut report, &damaged, options.repair);
    Ok(report)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FsckError> + Send + 'static,
) -> Result<T, FsckError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(FsckError::Interrupted))
}

/// The file or device that the log is on.
fn log_place(options: &Options) -> Result<PathBuf, FsckError> {
    match &options.store {
        StoreUrl::Memory { .. } => Err(FsckError::Memory),
        StoreUrl::File { path, .. } | StoreUrl::Device { path } => Ok(path.clone()),
        StoreUrl::Dir { .. } | StoreUrl::S3 { .. } => Ok(options.data_dir.join(LOG_FILE)),
    }
}

/// What was repaired, if anything was to be.
type Repaired = Option<Vec<String>>;

/// Opens the device, looks at it, and repairs what can be made again of it.
fn look(
    path: &Path,
    is_device: bool,
    repair: bool,
) -> Result<(Arc<dyn BlockIo>, Survey, Repaired), FsckError> {
    let opened = Target::existing(path, is_device, repair).and_then(|target| target.start(Engine::Auto));
    let io = opened.map_err(|source| FsckError::Open { path: path.into(), source })?;
    let place = path.display().to_string();
    let survey = survey(&*io).map_err(|source| match source {
        OpenLogError::NotALog => FsckError::NoSuperblock { place },
        source => FsckError::Log { place, source },
    })?;
    let repaired = if repair { Some(survey.repair(&*io)) } else { None };
    let repaired = repaired.transpose().map_err(|error| FsckError::Repair(Box::new(error)))?;
    Ok((io, survey, repaired))
}

/// The chunks of an object store, to look at; none of a block store.
async fn objects(
    url: &StoreUrl,
    log_id: &str,
    metrics: StoreMetrics,
) -> Result<Option<ObjectChunkStore>, FsckError> {
    if let StoreUrl::Dir { path } = url {
        // Reaching it would make it.
        std::fs::metadata(path).map_err(|source| FsckError::Open { path: path.clone(), source })?;
    }
    ObjectChunkStore::open_for_reading(url, log_id, metrics).await.map_err(FsckError::Object)
}

/// Deletes damaged objects, and entries of packs. The store is opened for it as a start opens it.
async fn take_out_objects(
    url: &StoreUrl,
    log_id: &str,
    damaged: &[ChunkHash],
    metrics: StoreMetrics,
) -> Result<(), FsckError> {
    let opened = ObjectChunkStore::open(url, log_id, metrics).await.map_err(FsckError::Object)?;
    let Some(store) = opened else { return Ok(()) };
    for hash in damaged {
        store.delete(hash).await.map_err(|error| FsckError::Repair(Box::new(error)))?;
    }
    Ok(())
}

/// Position up to which an index of use has the log.
fn index_position(state: &IndexState) -> Option<u64> {
    match state {
        IndexState::Current { position } | IndexState::Behind { position } => Some(*position),
        IndexState::Missing | IndexState::Useless { .. } => None,
    }
}

/// Fills in the figures of chunks and catalog; answers the damaged chunks.
async fn check_chunks(
    report: &mut Report,
    store: &dyn ChunkStore,
    inspected: &Inspected,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Vec<ChunkHash>, FsckError> {
    let rows = inspected.rows().map_err(|error| FsckError::Catalog(Box::new(error)))?;
    let mut checked = chunks::check(store, &rows, options.fast, progress).await.map_err(FsckError::Chunks)?;
    if !options.store.has_objects() {
        checked.figures.dead = report.log.chunk_copies.saturating_sub(checked.figures.live);
    }
    let (chunks_missing, named) = chunks::missing(store, &rows).await.map_err(FsckError::Chunks)?;
    let counts = chunks::count_rows(&rows).map_err(|error| FsckError::Catalog(Box::new(error)))?;
    report.add_each(
        Severity::Note,
        named.iter().map(|hash| {
            format!("chunk {hash} is referred to and not there; it waits for a good copy from elsewhere")
        }),
        chunks_missing,
        "missing chunks",
    );
    if checked.figures.without_row > 0 {
        let count = checked.figures.without_row;
        report.add(
            Severity::Note,
            format!("{count} chunks have no row in the catalog; the node's scrub deletes them"),
        );
    }
    if let Some(count) = counts.get("SuspectRef") {
        report.add(
            Severity::Note,
            format!("{count} references were needed by no holding when they were looked at; the node's recount goes on"),
        );
    }
    report.add_each(
        Severity::Lost,
        checked.unreadable.iter().map(|hash| format!("chunk {hash} cannot be read")),
        checked.figures.unreadable,
        "chunks that cannot be read",
    );
    report.catalog = Some(CatalogFigures { index: inspected.state.clone(), rows: counts, chunks_missing });
    report.chunks = Some(checked.figures);
    Ok(checked.damaged)
}

/// Tells how the index file is; one of no use is moved aside by a repair.
fn add_index(report: &mut Report, state: &IndexState, path: &Path, may_move: bool) -> Result<(), FsckError> {
    match state {
        IndexState::Current { .. } => {}
        IndexState::Behind { position } => report.add(
            Severity::Note,
            format!("the index file has the log up to position {position}; the next start replays the rest"),
        ),
        IndexState::Missing => {
            report.add(Severity::Note, "there is no index file; the next start rebuilds it from the log");
        }
        IndexState::Useless { reason } if may_move => {
            let aside = inspect::move_aside(path).map_err(|error| FsckError::Repair(Box::new(error)))?;
            let aside = aside.display();
            report.add(
                Severity::Repaired,
                format!("the index file was moved to {aside} ({reason}); the next start rebuilds it"),
            );
        }
        IndexState::Useless { reason } => {
            report.add(Severity::Damage, format!("the index file cannot be used: {reason}"));
        }
    }
    Ok(())
}

fn add_damaged(report: &mut Report, damaged: &[ChunkHash], repair: bool) {
    let (severity, outcome) = match repair {
        true => (Severity::Repaired, "was damaged and is taken out; it comes back from another holder"),
        false => (Severity::Damage, "is damaged"),
    };
    let told = damaged.iter().map(|hash| format!("chunk {hash} {outcome}"));
    report.add_each(severity, told, damaged.len() as u64, "damaged chunks");
}

/// Appends a tombstone for each chunk. The log is opened for it as a start opens it.
async fn take_out_of_log(
    io: Arc<dyn BlockIo>,
    damaged: Vec<ChunkHash>,
    metrics: StoreMetrics,
) -> Result<(), FsckError> {
    let open =
        OpenOptions { segment_bytes: segment_bytes_for(io.size_bytes()), force: false, prefill: false };
    let opened = blocking(move || Ok(Log::open(io, open, metrics))).await?;
    let log = opened.map_err(|error| FsckError::Repair(Box::new(error)))?;
    for hash in damaged {
        let gone: Result<bool, LogError> = log.append_tombstone(hash).await;
        gone.map_err(|error| FsckError::Repair(Box::new(error)))?;
    }
    log.close().await;
    blocking(move || {
        drop(log);
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests;
