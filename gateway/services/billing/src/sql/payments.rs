//! Money that came in.

use common::time::UnixMillis;
use database::Connection;
use sqlx::Row;

use super::LedgerError;

/// The payment of this reference: its invoice and its minor units.
pub(crate) async fn find(
    connection: &mut Connection,
    reference: &str,
) -> Result<Option<(i64, i64)>, LedgerError> {
    let sql = "SELECT invoice, minor FROM payments WHERE reference = $1";
    let row = sqlx::query(sql).bind(reference.to_owned()).fetch_optional(connection).await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}

pub(crate) async fn insert(
    connection: &mut Connection,
    reference: &str,
    invoice: i64,
    minor: i64,
    journal: i64,
    now: UnixMillis,
) -> Result<(), LedgerError> {
    let sql =
        "INSERT INTO payments (reference, invoice, minor, paid_ms, journal) VALUES ($1, $2, $3, $4, $5)";
    sqlx::query(sql)
        .bind(reference.to_owned())
        .bind(invoice)
        .bind(minor)
        .bind(now.0.cast_signed())
        .bind(journal)
        .execute(connection)
        .await?;
    Ok(())
}
