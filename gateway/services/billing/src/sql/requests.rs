//! Answers to requests that named a key (`Idempotency-Key`), kept with what the request did.

use common::time::UnixMillis;
use database::Connection;
use serde_json::Value;
use sqlx::Row;

use super::LedgerError;

/// A request's key and the digest of all that it asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    pub key: String,
    pub digest: [u8; 32],
}

/// The answer that the same request had.
///
/// # Errors
/// [`LedgerError::Conflict`] if another request had this key.
pub(crate) async fn find(
    connection: &mut Connection,
    request: &RequestKey,
) -> Result<Option<Value>, LedgerError> {
    let sql = "SELECT digest, answer FROM requests WHERE idempotency_key = $1";
    let row = sqlx::query(sql).bind(request.key.clone()).fetch_optional(connection).await?;
    let Some(row) = row else { return Ok(None) };
    if super::digest(row.try_get(0)?)? != request.digest {
        let key = &request.key;
        return Err(LedgerError::Conflict(format!(
            "the idempotency key {key} was used for another request; take a new one"
        )));
    }
    serde_json::from_str(row.try_get(1)?).map(Some).map_err(LedgerError::corrupt)
}

pub(crate) async fn keep(
    connection: &mut Connection,
    request: &RequestKey,
    answer: &Value,
    now: UnixMillis,
) -> Result<(), LedgerError> {
    let sql = "INSERT INTO requests (idempotency_key, digest, answer, booked_ms) VALUES ($1, $2, $3, $4)";
    sqlx::query(sql)
        .bind(request.key.clone())
        .bind(request.digest.to_vec())
        .bind(answer.to_string())
        .bind(now.0.cast_signed())
        .execute(connection)
        .await?;
    Ok(())
}
