//! Money that came in.

use std::sync::LazyLock;

use common::time::UnixMillis;
use database::{Column, Connection, Dialect, Insert};
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

/// A payment to be stored.
pub(crate) struct NewPayment {
    pub reference: String,
    pub invoice: i64,
    pub minor: i64,
    pub paid: UnixMillis,
    pub journal: i64,
}

const COLUMNS: &[Column] = &[
    Column::Text("reference"),
    Column::Integer("invoice"),
    Column::Integer("minor"),
    Column::Integer("paid_ms"),
    Column::Integer("journal"),
];
static INSERT: LazyLock<Insert> = LazyLock::new(|| Insert::new("payments", COLUMNS, ""));

pub(crate) async fn insert(
    connection: &mut Connection,
    dialect: Dialect,
    payments: &[NewPayment],
) -> Result<(), LedgerError> {
    INSERT
        .run(connection, dialect, payments, |new, values| {
            values.extend([
                new.reference.as_str().into(),
                new.invoice.into(),
                new.minor.into(),
                new.paid.0.cast_signed().into(),
                new.journal.into(),
            ]);
        })
        .await?;
    Ok(())
}
