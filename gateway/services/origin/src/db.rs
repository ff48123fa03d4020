//! The database: one writer connection and a few readers on one SQLite file, and its schema.

use std::path::Path;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};

use common::server::StartError;

use crate::error::Failure;

/// What the topic modules run their statements on.
pub type Connection = SqliteConnection;

const READERS: u32 = 4;
const WAIT_MAX: Duration = Duration::from_secs(10);

static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// The open database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Db {
    /// Opens or makes `data_dir/origin.db` and brings its schema up to date. A commit is durable when it returns:
    /// what search acknowledged must never be numbered anew.
    pub async fn open(data_dir: &Path) -> Result<Self, StartError> {
        let path = data_dir.join("origin.db");
        let what = format!("opening the database {}", path.display());
        std::fs::create_dir_all(data_dir).map_err(|e| StartError::failed(&what, e))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(WAIT_MAX);
        let pool =
            |connections| SqlitePoolOptions::new().max_connections(connections).acquire_timeout(WAIT_MAX);
        let writer = pool(1).connect_with(options.clone()).await.map_err(|e| StartError::failed(&what, e))?;
        MIGRATOR.run(&writer).await.map_err(|e| StartError::failed(&what, e))?;
        let readers = pool(READERS).connect_with(options).await.map_err(|e| StartError::failed(&what, e))?;
        Ok(Self { writer, readers })
    }

    /// A transaction of the one writer; rolled back unless committed.
    pub async fn write(&self) -> Result<Transaction<'static, Sqlite>, Failure> {
        Ok(self.writer.begin().await?)
    }

    pub async fn read(&self) -> Result<sqlx::pool::PoolConnection<Sqlite>, Failure> {
        Ok(self.readers.acquire().await?)
    }

    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
