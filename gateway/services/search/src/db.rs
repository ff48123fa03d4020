//! The database: one writer connection and a few readers on one SQLite file, and its schema.
//!
//! WAL lets readers go on while the writer commits; `synchronous = FULL` makes a commit durable before it is
//! answered. One writer means that transactions never meet a busy database and run in the order they began.

use std::path::Path;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};

use common::hash::ContentHash;
use common::server::StartError;
use common::version::{HybridTime, Version};

use crate::error::{Failure, natural};

/// What the topic modules run their statements on.
pub type Connection = SqliteConnection;

const READERS: u32 = 4;
const WAIT_MAX: Duration = Duration::from_secs(5);

static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// The open database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Db {
    /// Opens or makes `data_dir/search.db` and brings its schema up to date.
    pub async fn open(data_dir: &Path) -> Result<Self, StartError> {
        let path = data_dir.join("search.db");
        let what = format!("opening the database {}", path.display());
        std::fs::create_dir_all(data_dir).map_err(|e| StartError::failed(&what, e))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
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

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), Failure> {
        sqlx::query("SELECT epoch FROM map_state").fetch_one(&self.readers).await?;
        Ok(())
    }

    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// A version from its two columns.
pub fn version_of(time: i64, hash: &[u8]) -> Result<Version, Failure> {
    let hash: [u8; 32] = hash
        .try_into()
        .map_err(|_| sqlx::Error::Decode(format!("a hash has {} bytes, not 32", hash.len()).into()))?;
    Ok(Version { time: HybridTime(natural(time)), hash: ContentHash::from_bytes(hash) })
}
