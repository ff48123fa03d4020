//! The index file: opened, matched with the log, caught up or rebuilt. Everything here blocks.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use common::error::chain;
use redb::{Database, DatabaseError, Durability, ReadableTable, TableDefinition, WriteTransaction};

use super::CatalogError;
use super::redo;
use super::txn::ROWS;
use crate::log::{BoxError, Log, LogPosition, ReplayError};

pub const FILE_NAME: &str = "index.redb";
const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
const FORMAT: &str = "1";
/// Redo bytes that are applied per transaction while replaying.
const REPLAY_BYTES: usize = 4 << 20;

pub(super) struct Opened {
    pub database: Database,
    /// The index holds the log up to here, durably.
    pub position: LogPosition,
}

/// Opens the index at `path` and replays the log behind it. An index that is missing, damaged, of another format
/// or of another log is moved aside and rebuilt from the whole log.
pub(super) fn open(path: &Path, log: &Log, log_id: &str, cache_bytes: usize) -> Result<Opened, CatalogError> {
    let failed = |source: BoxError| CatalogError::Index { path: path.display().to_string(), source };
    let existed = path.exists();
    let opened =
        try_open(path, log_id, cache_bytes).and_then(|(database, from)| match replay(&database, log, from) {
            Err(ReplayError::BeyondEnd { .. }) => Err("it is ahead of the log".into()),
            Err(ReplayError::Reclaimed { .. }) => Err("it is older than what the log still has".into()),
            position => Ok((database, from, position)),
        });
    let (database, from, position) = match opened {
        Ok(opened) => opened,
        Err(reason) if existed => {
            let aside = aside(path);
            tracing::warn!(index = %path.display(), aside = %aside.display(), reason = chain(&*reason), "the index is of no use and is rebuilt from the log");
            std::fs::rename(path, &aside).map_err(|error| failed(error.into()))?;
            let (database, from) = try_open(path, log_id, cache_bytes).map_err(failed)?;
            let position = replay(&database, log, from);
            (database, from, position)
        }
        Err(reason) => return Err(failed(reason)),
    };
    let position = position.map_err(|source| CatalogError::Replay { source: source.into() })?;
    if position > from {
        tracing::info!(from = from.0, to = position.0, "index caught up with the log");
    }
    save_position(&database, position).map_err(failed)?;
    Ok(Opened { database, position })
}

/// Where an index of no use goes.
pub(super) fn aside(path: &Path) -> PathBuf {
    path.with_extension("redb.aside")
}

fn try_open(path: &Path, log_id: &str, cache_bytes: usize) -> Result<(Database, LogPosition), BoxError> {
    open_matched(|| Database::builder().set_cache_size(cache_bytes).create(path), log_id)
}

/// Opens a database and matches it with the log.
pub(super) fn open_matched(
    open: impl FnOnce() -> Result<Database, DatabaseError>,
    log_id: &str,
) -> Result<(Database, LogPosition), BoxError> {
    // redb may panic on a file that was altered behind its back.
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| -> Result<_, BoxError> {
        let database = open()?;
        let position = match_log(&database, log_id)?;
        Ok((database, position))
    }));
    opened.unwrap_or_else(|_| Err("the file is damaged".into()))
}

/// Checks that the index belongs to this log, or claims it for the log if it is new.
fn match_log(database: &Database, log_id: &str) -> Result<LogPosition, BoxError> {
    let txn = database.begin_write()?;
    let position = {
        txn.open_table(ROWS)?;
        let mut meta = txn.open_table(META)?;
        let get =
            |meta: &redb::Table<'_, &'static str, &'static str>, key| -> Result<Option<String>, BoxError> {
                Ok(meta.get(key)?.map(|value| value.value().to_owned()))
            };
        let (format, log) = (get(&meta, "format")?, get(&meta, "log")?);
        match (format.as_deref(), log.as_deref()) {
            (None, None) => {
                meta.insert("format", FORMAT)?;
                meta.insert("log", log_id)?;
                LogPosition(0)
            }
            (Some(FORMAT), Some(id)) if id == log_id => {
                let position = get(&meta, "position")?.unwrap_or_else(|| "0".to_owned());
                LogPosition(position.parse()?)
            }
            (Some(FORMAT), _) => return Err("it belongs to another log".into()),
            _ => return Err("it has another format".into()),
        }
    };
    txn.commit()?;
    Ok(position)
}

pub(super) fn replay(database: &Database, log: &Log, from: LogPosition) -> Result<LogPosition, ReplayError> {
    let mut last = from;
    let mut pending: Vec<Vec<u8>> = Vec::new();
    let mut pending_bytes = 0;
    log.replay_rows(from, &mut |position, entry| {
        pending_bytes += entry.len();
        pending.push(entry.to_vec());
        last = position;
        if pending_bytes >= REPLAY_BYTES {
            apply(database, &pending)?;
            pending.clear();
            pending_bytes = 0;
        }
        Ok(())
    })?;
    apply(database, &pending).map_err(ReplayError::Visit)?;
    Ok(last)
}

fn apply(database: &Database, entries: &[Vec<u8>]) -> Result<(), BoxError> {
    if entries.is_empty() {
        return Ok(());
    }
    let txn = begin_unsynced(database)?;
    {
        let mut table = txn.open_table(ROWS)?;
        for entry in entries {
            for (key, value) in redo::decode(entry)? {
                match value {
                    Some(value) => drop(table.insert(key, value)?),
                    None => drop(table.remove(key)?),
                }
            }
        }
    }
    txn.commit()?;
    Ok(())
}

/// A write transaction whose commit is not synced: the log is.
pub(super) fn begin_unsynced(database: &Database) -> Result<WriteTransaction, BoxError> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::None)?;
    Ok(txn)
}

/// Makes everything committed so far durable, together with the log position that it reaches.
pub(super) fn save_position(database: &Database, position: LogPosition) -> Result<(), BoxError> {
    let mut txn = database.begin_write()?;
    txn.set_quick_repair(true);
    txn.open_table(META)?.insert("position", position.0.to_string().as_str())?;
    txn.commit()?;
    Ok(())
}
