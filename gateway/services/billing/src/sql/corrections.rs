//! Charges that were taken back.

use common::id::NodeId;
use common::time::UnixMillis;
use database::Connection;

use super::LedgerError;
use super::events::{StoredEvent, select};
use super::usage::UsageLine;

/// The event of a record's number.
pub(crate) async fn event(
    connection: &mut Connection,
    node: &NodeId,
    epoch: u64,
    seq: u64,
) -> Result<Option<StoredEvent>, LedgerError> {
    let sql = "WHERE c.node = $1 AND c.epoch = $2 AND e.seq = $3";
    let query = sqlx::query(select(sql)).bind(node.to_string()).bind(epoch.cast_signed());
    let row = query.bind(seq.cast_signed()).fetch_optional(connection).await?;
    row.as_ref().map(StoredEvent::from_row).transpose()
}

/// A charge that is taken back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Correction {
    pub event: i64,
    pub journal: i64,
    pub invoice: Option<i64>,
    pub credit_note: Option<i64>,
}

pub(crate) async fn insert(
    connection: &mut Connection,
    correction: Correction,
    reason: &str,
    now: UnixMillis,
) -> Result<(), LedgerError> {
    sqlx::query(
        "INSERT INTO corrections (event, journal, reason, booked_ms, invoice, credit_note) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(correction.event)
    .bind(correction.journal)
    .bind(reason.to_owned())
    .bind(now.0.cast_signed())
    .bind(correction.invoice)
    .bind(correction.credit_note)
    .execute(connection)
    .await?;
    Ok(())
}

/// What was taken back of an invoice so far, as lines of it.
pub(crate) async fn of_invoice(
    connection: &mut Connection,
    invoice: i64,
) -> Result<Vec<UsageLine>, LedgerError> {
    let sql = "SELECT e.usage_period, e.class, e.path, coalesce(e.tariff, x.tariff) AS tariff, \
         count(*) AS deliveries, CAST(sum(e.bytes_sent) AS BIGINT) AS bytes_sent, \
         CAST(sum(coalesce(e.amount, x.amount)) AS BIGINT) AS amount \
         FROM corrections k JOIN events e ON e.id = k.event LEFT JOIN exceptions x ON x.event = e.id \
         WHERE k.invoice = $1 GROUP BY e.usage_period, e.class, e.path, coalesce(e.tariff, x.tariff)";
    let rows = sqlx::query(sql).bind(invoice).fetch_all(connection).await?;
    rows.iter().map(UsageLine::from_row).collect()
}
