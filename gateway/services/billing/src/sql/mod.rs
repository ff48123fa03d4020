//! The statements, by topic. They are the same for SQLite and PostgreSQL.

pub(crate) mod chains;
pub(crate) mod clients;
pub(crate) mod corrections;
pub(crate) mod earnings;
pub(crate) mod events;
pub(crate) mod exceptions;
pub(crate) mod figures;
pub(crate) mod invoices;
pub(crate) mod journals;
pub(crate) mod payments;
pub(crate) mod periods;
pub(crate) mod requests;
pub(crate) mod statements;
pub(crate) mod terms;
pub(crate) mod usage;

use common::error::{ApiError, ErrorCode};
use common::money::Currency;
use common::server::StartError;
use database::{Connection, Db, Location, Owner};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::config::Fee;
use crate::period::Period;
use crate::tariff::InvalidTerms;

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// The books cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the ledger's database failed")]
    Sql(#[from] sqlx::Error),
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
    /// What was asked for is not there, or is not of its form.
    #[error("{0}")]
    Invalid(String),
    /// What was asked contradicts what is stored.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    NotFound(String),
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
            LedgerError::Invalid(message) => Self::new(ErrorCode::InvalidRequest, message),
            LedgerError::Conflict(message) => Self::new(ErrorCode::Conflict, message),
            LedgerError::NotFound(message) => Self::new(ErrorCode::NotFound, message),
            LedgerError::Stopping => {
                Self::new(ErrorCode::Draining, "the ledger is stopping; ask again later")
            }
            LedgerError::Sql(_) | LedgerError::NotCommitted(_) => {
                Self::new(ErrorCode::BillingUnavailable, "the ledger cannot be used now; ask again later")
                    .with_cause(&error)
            }
            LedgerError::Corrupt(_) => Self::internal(&error),
        }
    }
}

/// Opens the books of `fee` and brings their schema up to date.
pub(crate) async fn open(location: &Location, fee: Fee) -> Result<Db, StartError> {
    let (name, writer_lock) = match fee {
        Fee::Service => ("service-billing", 0x646f_7a6f_0001),
        Fee::Content => ("content-billing", 0x646f_7a6f_0002),
    };
    Db::open(location, Owner { name, migrations: &MIGRATOR, writer_lock }).await
}

/// What a transaction goes on from.
pub(crate) struct Newest {
    /// The latest closed month.
    pub closed: Option<Period>,
    /// The greatest ids; 0 before the first.
    pub event: i64,
    pub journal: i64,
    pub journal_digest: journals::JournalDigest,
}

pub(crate) async fn newest(connection: &mut Connection) -> Result<Newest, LedgerError> {
    let sql = "SELECT (SELECT max(period) FROM periods), (SELECT coalesce(max(id), 0) FROM events), n.id, n.digest \
         FROM (SELECT 1) AS one LEFT JOIN (SELECT id, digest FROM journals ORDER BY id DESC LIMIT 1) AS n ON 1 = 1";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    let read = |n| Period::from_number(n).ok_or_else(|| LedgerError::corrupt(format!("period {n}")));
    let of_journal: Option<&[u8]> = row.try_get(3)?;
    Ok(Newest {
        closed: row.try_get::<Option<i64>, _>(0)?.map(read).transpose()?,
        event: row.try_get(1)?,
        journal: row.try_get::<Option<i64>, _>(2)?.unwrap_or(0),
        journal_digest: of_journal.map_or(Ok([0; 32]), digest)?,
    })
}

fn period(row: &AnyRow, column: &str) -> Result<Period, LedgerError> {
    let number = row.try_get(column)?;
    Period::from_number(number).ok_or_else(|| LedgerError::corrupt(format!("period {number}")))
}

fn currency(row: &AnyRow, column: &str) -> Result<Currency, LedgerError> {
    row.try_get::<&str, _>(column)?.parse().map_err(LedgerError::corrupt)
}

fn digest(bytes: &[u8]) -> Result<[u8; 32], LedgerError> {
    bytes.try_into().map_err(LedgerError::corrupt)
}
