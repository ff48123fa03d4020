//! How the origin's work fails, and what a caller is told.

use common::error::{ApiError, ErrorCode};
use common::id::InvalidId;

use crate::limit::Busy;
use crate::source::SourceError;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The caller asked for what cannot be.
    #[error(transparent)]
    Refused(#[from] ApiError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// Only a damaged database, or one written by a newer version, leads here.
    #[error("a row of the database cannot be read")]
    Unreadable(#[from] InvalidId),
    #[error("an announcement in the outbox cannot be read")]
    Outbox(#[from] serde_json::Error),
    #[error("a source cannot be read")]
    Source(#[from] SourceError),
    #[error("a task ended before its work was done")]
    Task(#[from] tokio::task::JoinError),
}

impl Failure {
    pub fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Refused(ApiError::new(code, message))
    }
}

impl From<Busy> for Failure {
    fn from(busy: Busy) -> Self {
        Self::refused(ErrorCode::OriginBusy, format!("origin busy: {busy}; ask again in a second"))
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => error,
            Failure::Source(SourceError::Url { url, reason }) => {
                Self::new(ErrorCode::InvalidRequest, format!("source {url:?} cannot be used: {reason}"))
            }
            Failure::Source(SourceError::Changed) => Self::new(
                ErrorCode::OriginalChanged,
                "the original changed since it was registered; it is read again, ask for its new version in a moment",
            ),
            Failure::Source(_) => {
                Self::new(ErrorCode::SourceUnavailable, "the origin cannot read its source now")
                    .with_cause(&failure)
            }
            failure => Self::internal(&failure),
        }
    }
}

/// A number as SQL keeps it. Lengths and times of objects never reach the bound.
pub fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A stored number, never negative.
pub fn natural(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
