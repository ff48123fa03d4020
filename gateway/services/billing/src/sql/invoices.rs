//! Closed months, the charges that wait to be invoiced, and the invoices.

use std::collections::BTreeMap;

use common::id::ClientId;
use common::money::Currency;
use common::time::UnixMillis;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::LedgerError;
use super::events::{StoredEvent, select};
use crate::invoice::{Invoice, InvoiceLine};
use crate::period::Period;

/// Lines of one client in one currency.
pub(crate) struct Waiting {
    pub client: ClientId,
    pub currency: Currency,
    pub lines: Vec<InvoiceLine>,
}

fn period(row: &SqliteRow, column: usize) -> Result<Period, LedgerError> {
    let number = row.try_get(column)?;
    Period::from_number(number).ok_or_else(|| LedgerError::corrupt(format!("period {number}")))
}

/// The latest closed month: it and all before it are closed.
pub(crate) async fn closed_through(connection: &mut SqliteConnection) -> Result<Option<Period>, LedgerError> {
    let number: Option<i64> =
        sqlx::query_scalar("SELECT max(period) FROM periods").fetch_one(connection).await?;
    let read = |n| Period::from_number(n).ok_or_else(|| LedgerError::corrupt(format!("period {n}")));
    number.map(read).transpose()
}

pub(crate) async fn close_period(
    connection: &mut SqliteConnection,
    period: Period,
    now: UnixMillis,
) -> Result<(), LedgerError> {
    sqlx::query("INSERT INTO periods (period, closed_ms) VALUES (?, ?)")
        .bind(period.number())
        .bind(now.0.cast_signed())
        .execute(connection)
        .await?;
    Ok(())
}

/// Charges of months after `closed` up to `through` that were not invoiced yet: of up to `clients` clients
/// after `after`, by name.
pub(crate) async fn waiting(
    connection: &mut SqliteConnection,
    closed: Option<Period>,
    through: Period,
    after: &str,
    clients: i64,
) -> Result<Vec<Waiting>, LedgerError> {
    let rows = sqlx::query(
        "SELECT client, currency, usage_period, class, path, sum(deliveries), \
         sum(bytes_sent), sum(amount) FROM usage \
         WHERE outcome = 'charged' AND booked_period > ?1 AND booked_period <= ?2 AND client > ?3 \
         AND client <= (SELECT max(client) FROM (SELECT DISTINCT client FROM usage WHERE outcome = 'charged' \
             AND booked_period > ?1 AND booked_period <= ?2 AND client > ?3 ORDER BY client LIMIT ?4)) \
         GROUP BY client, currency, usage_period, class, path \
         ORDER BY client, currency, usage_period, class, path",
    )
    .bind(closed.map_or(0, Period::number))
    .bind(through.number())
    .bind(after)
    .bind(clients)
    .fetch_all(connection)
    .await?;
    let mut groups: BTreeMap<(ClientId, Currency), Vec<InvoiceLine>> = BTreeMap::new();
    for row in &rows {
        let client = ClientId::new(row.try_get(0)?).map_err(LedgerError::corrupt)?;
        let currency = row.try_get::<&str, _>(1)?.parse().map_err(LedgerError::corrupt)?;
        let line = InvoiceLine {
            usage_period: period(row, 2)?,
            late: closed.is_some_and(|closed| period(row, 2).is_ok_and(|usage| usage <= closed)),
            class: row.try_get(3)?,
            path: row.try_get(4)?,
            deliveries: row.try_get(5)?,
            bytes_sent: row.try_get(6)?,
            amount_micros: row.try_get(7)?,
        };
        groups.entry((client, currency)).or_default().push(line);
    }
    let waiting = |((client, currency), lines)| Waiting { client, currency, lines };
    Ok(groups.into_iter().map(waiting).collect())
}

pub(crate) async fn next_number(connection: &mut SqliteConnection) -> Result<i64, LedgerError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(number), 0) + 1 FROM invoices").fetch_one(connection).await?)
}

pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    number: i64,
    first_period: Option<Period>,
    journal: i64,
    invoice: &Invoice,
) -> Result<(), LedgerError> {
    let document = serde_json::to_string(invoice).map_err(LedgerError::corrupt)?;
    sqlx::query(
        "INSERT INTO invoices (number, period, first_period, client, currency, journal, document) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(number)
    .bind(invoice.period.number())
    .bind(first_period.map_or(0, Period::number))
    .bind(invoice.client.as_str())
    .bind(invoice.currency.code())
    .bind(journal)
    .bind(document)
    .execute(connection)
    .await?;
    Ok(())
}

/// The issued document.
pub(crate) async fn document(
    connection: &mut SqliteConnection,
    number: i64,
) -> Result<Option<serde_json::Value>, LedgerError> {
    let text: Option<String> = sqlx::query_scalar("SELECT document FROM invoices WHERE number = ?")
        .bind(number)
        .fetch_optional(connection)
        .await?;
    text.map(|text| serde_json::from_str(&text).map_err(LedgerError::corrupt)).transpose()
}

/// What a listing of invoices asks for.
pub(crate) struct InvoiceQuery<'a> {
    pub period: Option<Period>,
    pub client: Option<&'a ClientId>,
    /// Numbers after this one.
    pub after: i64,
    pub limit: i64,
}

/// Issued documents by number.
pub(crate) async fn documents(
    connection: &mut SqliteConnection,
    query: &InvoiceQuery<'_>,
) -> Result<Vec<serde_json::Value>, LedgerError> {
    let rows = sqlx::query(
        "SELECT document FROM invoices WHERE number > ?1 AND (?2 IS NULL OR period = ?2) \
         AND (?3 IS NULL OR client = ?3) ORDER BY number LIMIT ?4",
    )
    .bind(query.after)
    .bind(query.period.map(Period::number))
    .bind(query.client.map(ClientId::as_str))
    .bind(query.limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| serde_json::from_str(row.try_get(0)?).map_err(LedgerError::corrupt)).collect()
}

/// Number of invoices of a month.
pub(crate) async fn count(connection: &mut SqliteConnection, period: Period) -> Result<i64, LedgerError> {
    let sql = "SELECT count(*) FROM invoices WHERE period = ?";
    Ok(sqlx::query_scalar(sql).bind(period.number()).fetch_one(connection).await?)
}

/// The deliveries on an invoice, by event from after `after`; `None` if there is no such invoice.
pub(crate) async fn deliveries(
    connection: &mut SqliteConnection,
    number: i64,
    after: i64,
    limit: i64,
) -> Result<Option<Vec<StoredEvent>>, LedgerError> {
    let sql = "SELECT client, currency, first_period, period FROM invoices WHERE number = ?";
    let Some(invoice) = sqlx::query(sql).bind(number).fetch_optional(&mut *connection).await? else {
        return Ok(None);
    };
    let (client, currency): (String, String) = (invoice.try_get(0)?, invoice.try_get(1)?);
    let (first, last): (i64, i64) = (invoice.try_get(2)?, invoice.try_get(3)?);
    let rows = sqlx::query(select(
        "WHERE e.id IN ( \
             SELECT id FROM events WHERE client = ?1 AND booked_period BETWEEN ?3 AND ?4 \
                 AND outcome = 'charged' AND id > ?5 \
             UNION SELECT xe.id FROM exceptions xx JOIN events xe ON xe.id = xx.event \
                 WHERE xx.resolved_outcome = 'charged' AND xx.resolved_period BETWEEN ?3 AND ?4 \
                 AND xe.client = ?1 AND xx.event > ?5) \
         AND j.currency = ?2 ORDER BY e.id LIMIT ?6",
    ))
    .bind(client)
    .bind(currency)
    .bind(first)
    .bind(last)
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(StoredEvent::from_row).collect::<Result<_, _>>().map(Some)
}
