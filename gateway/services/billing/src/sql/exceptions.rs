//! Records that could not be rated, until they can.

use std::sync::LazyLock;

use database::{Column, Connection, Dialect, Insert};

use super::LedgerError;
use super::events::{Booked, StoredEvent, select};
use crate::period::Period;

const COLUMNS: &[Column] = &[Column::Integer("event"), Column::Text("reason")];
static INSERT: LazyLock<Insert> = LazyLock::new(|| Insert::new("exceptions", COLUMNS, ""));

pub(crate) async fn insert(
    connection: &mut Connection,
    dialect: Dialect,
    exceptions: &[(i64, String)],
) -> Result<(), LedgerError> {
    INSERT
        .run(connection, dialect, exceptions, |(event, reason), values| {
            values.extend([(*event).into(), reason.as_str().into()]);
        })
        .await?;
    Ok(())
}

/// Open exceptions in the order of their events, from after `after`.
pub(crate) async fn open(
    connection: &mut Connection,
    after: i64,
    limit: i64,
) -> Result<Vec<StoredEvent>, LedgerError> {
    let sql = "WHERE x.event IS NOT NULL AND x.resolved_outcome IS NULL AND x.event > $1 \
         ORDER BY x.event LIMIT $2";
    // Through the exceptions' own index: there are few of them among many events.
    let rows = sqlx::query(select(sql)).bind(after).bind(limit).fetch_all(connection).await?;
    rows.iter().map(StoredEvent::from_row).collect()
}

/// What became of an exception when it was rated again.
pub(crate) struct Resolved {
    pub event: i64,
    pub outcome: &'static str,
    pub period: Period,
    pub charge: Option<Booked>,
}

pub(crate) async fn resolve(connection: &mut Connection, resolved: &Resolved) -> Result<(), LedgerError> {
    let charge = resolved.charge.as_ref();
    sqlx::query(
        "UPDATE exceptions SET resolved_outcome = $1, resolved_period = $2, tariff = $3, split = $4, \
         currency = $5, amount = $6, journal = $7 WHERE event = $8",
    )
    .bind(resolved.outcome)
    .bind(resolved.period.number())
    .bind(charge.map(|c| c.tariff))
    .bind(charge.map(|c| c.split))
    .bind(charge.map(|c| c.currency.code()))
    .bind(charge.map(|c| c.micros))
    .bind(charge.map(|c| c.journal))
    .bind(resolved.event)
    .execute(connection)
    .await?;
    Ok(())
}
