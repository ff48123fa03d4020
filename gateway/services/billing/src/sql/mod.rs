//! The statements, by topic. SQLite's dialect stays in this folder, so that another database can take its place.

pub(crate) mod chains;
pub(crate) mod events;
pub(crate) mod exceptions;
pub(crate) mod invoices;
pub(crate) mod journals;
pub(crate) mod rows;
pub(crate) mod terms;
pub(crate) mod usage;

use std::path::Path;
use std::time::Duration;

use common::error::{ApiError, ErrorCode};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};

use crate::tariff::InvalidTerms;

/// Pages of 4 KiB kept in memory by the writer, as SQLite counts them: negative is KiB.
const WRITER_CACHE: &str = "-65536";
/// Pages in the log before they are moved into the database: 32 MiB.
const CHECKPOINT_PAGES: &str = "8192";
const READERS: u32 = 4;

/// The books cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the ledger's database failed")]
    Sql(#[from] sqlx::Error),
    #[error("the ledger's database cannot be brought to this version")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A stored value is not what was stored.
    #[error("the ledger holds a value that is not valid: {0}")]
    Corrupt(String),
    /// The transaction that this was part of did not commit; nothing of it is booked.
    #[error("the transaction failed: {0}")]
    NotCommitted(String),
    #[error("the ledger is stopping")]
    Stopping,
    #[error(transparent)]
    Terms(#[from] InvalidTerms),
    /// What was asked contradicts what is stored.
    #[error("{0}")]
    Conflict(String),
}

impl LedgerError {
    pub(crate) fn corrupt(error: impl std::fmt::Display) -> Self {
        Self::Corrupt(error.to_string())
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Terms(error) => Self::new(ErrorCode::InvalidRequest, error.to_string()),
            LedgerError::Conflict(message) => Self::new(ErrorCode::Conflict, message),
            LedgerError::Stopping => {
                Self::new(ErrorCode::Draining, "the ledger is stopping; ask again later")
            }
            LedgerError::Sql(_) | LedgerError::NotCommitted(_) => {
                Self::new(ErrorCode::BillingUnavailable, "the ledger cannot be used now; ask again later")
                    .with_cause(&error)
            }
            LedgerError::Migrate(_) | LedgerError::Corrupt(_) => Self::internal(&error),
        }
    }
}

/// Opens the one connection that writes; makes and migrates the database.
pub(crate) async fn open_writer(path: &Path) -> Result<SqliteConnection, LedgerError> {
    let options = options(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .pragma("cache_size", WRITER_CACHE)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        // Without it REPLACE would delete rows past the triggers that forbid it.
        .pragma("recursive_triggers", "ON");
    let mut connection = options.connect().await?;
    sqlx::migrate!("./migrations").run(&mut connection).await?;
    Ok(connection)
}

/// Connections that read while the writer writes.
pub(crate) fn open_readers(path: &Path) -> SqlitePool {
    SqlitePoolOptions::new().max_connections(READERS).connect_lazy_with(options(path).read_only(true))
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::from_secs(10))
        .disable_statement_logging()
}

/// Ends the writer's connection in order: SQLite then moves its log into the database.
pub(crate) async fn close_writer(connection: SqliteConnection) {
    if let Err(error) = connection.close().await {
        tracing::warn!(error = %common::error::chain(&error), "the ledger's database did not close in order");
    }
}
