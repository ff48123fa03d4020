//! Closed months and their seals.

use common::time::UnixMillis;
use database::Connection;
use futures_util::TryStreamExt;
use serde::Serialize;
use sqlx::Row;
use utoipa::ToSchema;

use super::LedgerError;
use crate::period::Period;

/// A closed month as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ClosedPeriod {
    pub period: Period,
    pub closed_ms: UnixMillis,
    /// Journals that were booked by then.
    pub journals: i64,
    /// Nodes whose log was not known to have passed the month's end.
    pub missing: Vec<String>,
    /// Digest over the seal before, the newest journal's digest and the month's documents.
    pub seal: String,
}

/// The latest closed month: it and all before it are closed.
pub(crate) async fn closed_through(connection: &mut Connection) -> Result<Option<Period>, LedgerError> {
    let number: Option<i64> =
        sqlx::query_scalar("SELECT max(period) FROM periods").fetch_one(connection).await?;
    let read = |n| Period::from_number(n).ok_or_else(|| LedgerError::corrupt(format!("period {n}")));
    number.map(read).transpose()
}

pub(crate) async fn close(
    connection: &mut Connection,
    period: Period,
    now: UnixMillis,
    journals: i64,
    missing: &[String],
    seal: [u8; 32],
) -> Result<(), LedgerError> {
    let missing = serde_json::to_string(missing).map_err(LedgerError::corrupt)?;
    let sql = "INSERT INTO periods (period, closed_ms, journals, missing, seal) VALUES ($1, $2, $3, $4, $5)";
    sqlx::query(sql)
        .bind(period.number())
        .bind(now.0.cast_signed())
        .bind(journals)
        .bind(missing)
        .bind(seal.to_vec())
        .execute(connection)
        .await?;
    Ok(())
}

/// All closed months, the first one first.
pub(crate) async fn all(connection: &mut Connection) -> Result<Vec<ClosedPeriod>, LedgerError> {
    let sql = "SELECT period, closed_ms, journals, missing, seal FROM periods ORDER BY period";
    let rows = sqlx::query(sql).fetch_all(connection).await?;
    let view = |row: &sqlx::any::AnyRow| {
        Ok(ClosedPeriod {
            period: super::period(row, "period")?,
            closed_ms: UnixMillis(row.try_get::<i64, _>(1)?.cast_unsigned()),
            journals: row.try_get(2)?,
            missing: serde_json::from_str(row.try_get(3)?).map_err(LedgerError::corrupt)?,
            seal: blake3::Hash::from_bytes(super::digest(row.try_get(4)?)?).to_hex().to_string(),
        })
    };
    rows.iter().map(view).collect()
}

/// The seal that a month has: BLAKE3 (derive-key mode) over the seal before, the digest of the last of its journals
/// and all its documents.
pub(crate) async fn seal(
    connection: &mut Connection,
    period: Period,
    journals: i64,
) -> Result<[u8; 32], LedgerError> {
    let before: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT seal FROM periods WHERE period < $1 ORDER BY period DESC LIMIT 1")
            .bind(period.number())
            .fetch_optional(&mut *connection)
            .await?;
    let newest: Option<Vec<u8>> = sqlx::query_scalar("SELECT digest FROM journals WHERE id = $1")
        .bind(journals)
        .fetch_optional(&mut *connection)
        .await?;
    let mut hasher = blake3::Hasher::new_derive_key("dozo billing period v1");
    hasher.update(&before.unwrap_or_else(|| vec![0; 32])).update(&newest.unwrap_or_else(|| vec![0; 32]));
    for sql in [
        "SELECT document FROM invoices WHERE period = $1 AND kind = 'invoice' ORDER BY number",
        "SELECT document FROM statements WHERE period = $1 ORDER BY party, currency",
    ] {
        let mut rows = sqlx::query(sql).bind(period.number()).fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            let document: &str = row.try_get(0)?;
            hasher.update(&(document.len() as u64).to_le_bytes()).update(document.as_bytes());
        }
    }
    Ok(hasher.finalize().into())
}
