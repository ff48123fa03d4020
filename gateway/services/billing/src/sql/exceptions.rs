//! Records that could not be rated, until they can.

use std::sync::LazyLock;

use sqlx::sqlite::SqliteConnection;

use super::LedgerError;
use super::events::{StoredEvent, select};
use super::rows::{Bound, Insert};
use crate::period::Period;

pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    exceptions: &[(i64, String)],
) -> Result<(), LedgerError> {
    static INSERT: LazyLock<Insert> =
        LazyLock::new(|| Insert::new("INSERT INTO exceptions (event, reason)", 2, ""));
    let bind = |query: Bound, (event, reason): &(i64, String)| query.bind(*event).bind(reason.clone());
    INSERT.run(connection, exceptions, bind).await?;
    Ok(())
}

/// Open exceptions in the order of their events, from after `after`.
pub(crate) async fn open(
    connection: &mut SqliteConnection,
    after: i64,
    limit: i64,
) -> Result<Vec<StoredEvent>, LedgerError> {
    let sql = "WHERE x.resolved_outcome IS NULL AND x.event > ? ORDER BY x.event LIMIT ?";
    // Through the exceptions' own index: there are few of them among many events.
    let rows = sqlx::query(select(sql)).bind(after).bind(limit).fetch_all(connection).await?;
    rows.iter().map(StoredEvent::from_row).collect()
}

pub(crate) async fn resolve(
    connection: &mut SqliteConnection,
    event: i64,
    outcome: &'static str,
    period: Period,
    journal: Option<i64>,
) -> Result<(), LedgerError> {
    sqlx::query(
        "UPDATE exceptions SET resolved_outcome = ?, resolved_period = ?, journal = ? WHERE event = ?",
    )
    .bind(outcome)
    .bind(period.number())
    .bind(journal)
    .bind(event)
    .execute(connection)
    .await?;
    Ok(())
}
