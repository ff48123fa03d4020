//! Copies of a service's SQLite file, also while the service runs, and putting them back. (PostgreSQL has `pg_dump`.)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} is there already; nothing is replaced", .0.display())]
    Exists(PathBuf),
    #[error("{} cannot be read", .file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{} cannot be written", .file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error("the database {} cannot be copied", .database.display())]
    Database { database: PathBuf, source: sqlx::Error },
    #[error("{} is no backup of {service}: {reason}", .file.display())]
    NoBackup { file: PathBuf, service: &'static str, reason: String },
}

/// Copies `database`, as it is at one moment, to `file`, which must not be there yet; answers its bytes. Only its owner may
/// read the copy: it may hold clients' keys. It is durable, and whole, when it has its name.
pub async fn backup(database: &Path, file: &Path) -> Result<u64, BackupError> {
    must_not_be(file)?;
    let part = part_of(file);
    let copied = async {
        make_private(&part)?;
        let failed = |source| BackupError::Database { database: database.to_owned(), source };
        let mut conn = SqliteConnectOptions::new().filename(database).connect().await.map_err(failed)?;
        // SQLite writes into an empty file, and keeps its mode.
        let copy = sqlx::query("VACUUM INTO $1").bind(part.to_string_lossy().into_owned());
        copy.execute(&mut conn).await.map_err(failed)?;
        conn.close().await.map_err(failed)?;
        finish(&part, file)
    };
    clean(&part, copied.await)
}

/// Puts a backup of `service` in place as `database`, which must not be there, nor its log; answers its bytes. The copy is
/// checked first: every page of it, and that it has the table that is the service's own.
pub async fn restore(
    file: &Path,
    database: &Path,
    service: &'static str,
    own_table: &str,
) -> Result<u64, BackupError> {
    for end in ["", "-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(end);
        must_not_be(Path::new(&path))?;
    }
    if let Some(folder) = database.parent() {
        let failed = |source| BackupError::Write { file: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let part = part_of(database);
    let restored = async {
        let mut from =
            File::open(file).map_err(|source| BackupError::Read { file: file.to_owned(), source })?;
        let mut to = make_private(&part)?;
        io::copy(&mut from, &mut to).map_err(|source| BackupError::Write { file: part.clone(), source })?;
        check(&part, own_table).await.map_err(|reason| BackupError::NoBackup {
            file: file.to_owned(),
            service,
            reason,
        })?;
        finish(&part, database)
    };
    clean(&part, restored.await)
}

/// What is wrong with a copy, in words.
async fn check(copy: &Path, own_table: &str) -> Result<(), String> {
    let told = |error: sqlx::Error| error.to_string();
    let options = SqliteConnectOptions::new().filename(copy).read_only(true);
    let mut conn = options.connect().await.map_err(told)?;
    let found: String =
        sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(&mut conn).await.map_err(told)?;
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = $1";
    let tables: i64 = sqlx::query_scalar(sql).bind(own_table).fetch_one(&mut conn).await.map_err(told)?;
    conn.close().await.map_err(told)?;
    if found != "ok" {
        return Err(found);
    }
    if tables == 0 { Err(format!("it has no table {own_table}")) } else { Ok(()) }
}

fn must_not_be(path: &Path) -> Result<(), BackupError> {
    match path.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(BackupError::Exists(path.to_owned())),
        Err(source) => Err(BackupError::Read { file: path.to_owned(), source }),
    }
}

fn part_of(file: &Path) -> PathBuf {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

fn make_private(file: &Path) -> Result<File, BackupError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(file).map_err(|source| BackupError::Write { file: file.to_owned(), source })
}

fn finish(part: &Path, file: &Path) -> Result<u64, BackupError> {
    let finish = || {
        let copy = File::open(part)?;
        copy.sync_all()?;
        std::fs::rename(part, file)?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(copy.metadata()?.len())
    };
    finish().map_err(|source| BackupError::Write { file: file.to_owned(), source })
}

/// Leaves no half of a copy behind.
fn clean(part: &Path, copied: Result<u64, BackupError>) -> Result<u64, BackupError> {
    if copied.is_err() {
        // The first error is the one to tell.
        let _not_there = std::fs::remove_file(part);
    }
    copied
}
