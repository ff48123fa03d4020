//! Copies of the directory's SQLite file, also while search runs. (PostgreSQL has `pg_dump`.)
//!
//! To put a copy back: stop search, remove `search.db` with its `-wal` and `-shm` from the data folder, move the copy there as
//! `search.db`, start search. Holdings and the map may be older than what the sites have; both come back from the
//! storage nodes. Clients, buckets and cards that were made after the copy do not.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::db::DATABASE_FILE;

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} is there already; a backup replaces nothing", .0.display())]
    Exists(PathBuf),
    #[error("{} cannot be written", .file.display())]
    File { file: PathBuf, source: io::Error },
    #[error("the database {} cannot be copied", .database.display())]
    Database { database: PathBuf, source: sqlx::Error },
}

/// Copies the database in `data_dir`, as it is at one moment, to `file`, which must not be there yet; answers its bytes. The
/// copy holds clients' secret keys, so only its owner may read it. It is durable, and whole, when it has its name.
pub async fn backup(data_dir: &Path, file: &Path) -> Result<u64, BackupError> {
    let failed = |source| BackupError::File { file: file.to_owned(), source };
    if file.try_exists().map_err(failed)? {
        return Err(BackupError::Exists(file.to_owned()));
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let copied = match copy(data_dir, &part).await {
        Ok(()) => finish(&part, file).map_err(failed),
        Err(error) => Err(error),
    };
    if copied.is_err() {
        // The first error is the one to tell.
        let _not_there = std::fs::remove_file(&part);
    }
    copied
}

async fn copy(data_dir: &Path, part: &Path) -> Result<(), BackupError> {
    let database = data_dir.join(DATABASE_FILE);
    // SQLite writes into an empty file, and keeps its mode.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(part)
        .map_err(|source| BackupError::File { file: part.to_owned(), source })?;
    let failed = |source| BackupError::Database { database: database.clone(), source };
    let mut conn = SqliteConnectOptions::new().filename(&database).connect().await.map_err(failed)?;
    let copy = sqlx::query("VACUUM INTO $1").bind(part.to_string_lossy().into_owned());
    copy.execute(&mut conn).await.map_err(failed)?;
    conn.close().await.map_err(failed)
}

fn finish(part: &Path, file: &Path) -> io::Result<u64> {
    let copy = File::open(part)?;
    copy.sync_all()?;
    std::fs::rename(part, file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(copy.metadata()?.len())
}
