//! How an operation of the directory fails, and what the caller is told.

use common::error::{ApiError, ErrorCode};
use common::id::InvalidId;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The caller asked for what cannot be; nothing was changed.
    #[error(transparent)]
    Refused(#[from] ApiError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// Only a damaged database, or one written by a newer version, leads here.
    #[error("a row of the database cannot be read")]
    Unreadable(#[from] InvalidId),
    #[error("the map cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl Failure {
    pub fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Refused(ApiError::new(code, message))
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => error,
            Failure::Database(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => {
                Self::new(ErrorCode::SearchUnavailable, "search's database is busy; ask again")
                    .with_cause(&failure)
            }
            failure => Self::internal(&failure),
        }
    }
}

/// A number as SQL keeps it; `what` names it in the refusal of one that is too great.
pub fn integer(value: u64, what: &str) -> Result<i64, Failure> {
    i64::try_from(value).map_err(|_| {
        Failure::refused(
            ErrorCode::InvalidRequest,
            format!("{what} is {value}; at most {} is possible", i64::MAX),
        )
    })
}

/// A stored number, never negative.
pub fn natural(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
