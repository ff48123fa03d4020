//! Invoices and credit notes as they were issued.

use std::sync::LazyLock;

use common::id::ClientId;
use common::money::Currency;
use database::{Column, Connection, Dialect, Insert};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::LedgerError;
use super::clients::Charges;
use super::events::{StoredEvent, select};
use crate::documents::Invoice;
use crate::period::Period;

pub(crate) async fn next_number(connection: &mut Connection) -> Result<i64, LedgerError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(number), 0) + 1 FROM invoices").fetch_one(connection).await?)
}

/// An invoice or credit note to be stored.
pub(crate) struct NewInvoice {
    pub number: i64,
    /// Of a credit note: the invoice.
    pub credits: Option<i64>,
    pub period: Period,
    pub first_period: i64,
    pub client: ClientId,
    pub currency: Currency,
    pub total_minor: i64,
    pub journal: Option<i64>,
    /// As JSON.
    pub document: String,
}

const COLUMNS: &[Column] = &[
    Column::Integer("number"),
    Column::Text("kind"),
    Column::Integer("credits"),
    Column::Integer("period"),
    Column::Integer("first_period"),
    Column::Text("client"),
    Column::Text("currency"),
    Column::Integer("total_minor"),
    Column::Integer("journal"),
    Column::Text("document"),
];
static INSERT: LazyLock<Insert> = LazyLock::new(|| Insert::new("invoices", COLUMNS, ""));

pub(crate) async fn insert(
    connection: &mut Connection,
    dialect: Dialect,
    invoices: &[NewInvoice],
) -> Result<(), LedgerError> {
    INSERT
        .run(connection, dialect, invoices, |new, values| {
            values.extend([
                new.number.into(),
                if new.credits.is_none() { "invoice" } else { "credit_note" }.into(),
                new.credits.into(),
                new.period.number().into(),
                new.first_period.into(),
                new.client.as_str().into(),
                new.currency.code().into(),
                new.total_minor.into(),
                new.journal.into(),
                new.document.as_str().into(),
            ]);
        })
        .await?;
    Ok(())
}

/// The issued document, if it is of `client` or that does not matter.
pub(crate) async fn document(
    connection: &mut Connection,
    number: i64,
    client: Option<&ClientId>,
) -> Result<Option<serde_json::Value>, LedgerError> {
    let sql = "SELECT document FROM invoices WHERE number = $1 AND ($2 = '' OR client = $2)";
    let text: Option<String> = sqlx::query_scalar(sql)
        .bind(number)
        .bind(client.map_or_else(String::new, ClientId::to_string))
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
    connection: &mut Connection,
    query: &InvoiceQuery<'_>,
) -> Result<Vec<serde_json::Value>, LedgerError> {
    let (period, client) = (query.period.map_or(0, Period::number), query.client);
    let rows = sqlx::query(
        "SELECT document FROM invoices WHERE number > $1 AND ($2 = 0 OR period = $2) \
         AND ($3 = '' OR client = $3) ORDER BY number LIMIT $4",
    )
    .bind(query.after)
    .bind(period)
    .bind(client.map_or_else(String::new, ClientId::to_string))
    .bind(query.limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| serde_json::from_str(row.try_get(0)?).map_err(LedgerError::corrupt)).collect()
}

/// Number of invoices of a month, without credit notes.
pub(crate) async fn count(connection: &mut Connection, period: Period) -> Result<i64, LedgerError> {
    let sql = "SELECT count(*) FROM invoices WHERE period = $1 AND kind = 'invoice'";
    Ok(sqlx::query_scalar(sql).bind(period.number()).fetch_one(connection).await?)
}

/// Which charges an issued invoice is of, and what is still owed of it.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub number: i64,
    pub is_credit_note: bool,
    pub client: ClientId,
    pub currency: Currency,
    pub first_period: i64,
    pub period: Period,
    /// Whole minor units: the total less credit notes and payments.
    pub open_minor: i64,
}

const ISSUED: &str = "SELECT i.number, i.kind, i.client, i.currency, i.first_period, i.period, \
     CAST(i.total_minor - (SELECT coalesce(sum(c.total_minor), 0) FROM invoices c WHERE c.credits = i.number) \
     - (SELECT coalesce(sum(p.minor), 0) FROM payments p WHERE p.invoice = i.number) AS BIGINT) AS open_minor \
     FROM invoices i ";

fn issued(row: &AnyRow) -> Result<Issued, LedgerError> {
    Ok(Issued {
        number: row.try_get(0)?,
        is_credit_note: row.try_get::<&str, _>(1)? == "credit_note",
        client: ClientId::new(row.try_get(2)?).map_err(LedgerError::corrupt)?,
        currency: super::currency(row, "currency")?,
        first_period: row.try_get(4)?,
        period: super::period(row, "period")?,
        open_minor: row.try_get(6)?,
    })
}

pub(crate) async fn find(connection: &mut Connection, number: i64) -> Result<Option<Issued>, LedgerError> {
    let sql = sqlx::AssertSqlSafe(format!("{ISSUED} WHERE i.number = $1"));
    let row = sqlx::query(sql).bind(number).fetch_optional(connection).await?;
    row.as_ref().map(issued).transpose()
}

/// The invoice that charges of `client` booked in `booked` are on.
pub(crate) async fn of_charge(
    connection: &mut Connection,
    client: &ClientId,
    currency: Currency,
    booked: Period,
) -> Result<Option<Issued>, LedgerError> {
    let sql = sqlx::AssertSqlSafe(format!(
        "{ISSUED} WHERE i.kind = 'invoice' AND i.client = $1 AND i.currency = $2 AND i.first_period <= $3 \
         AND i.period >= $3"
    ));
    let query = sqlx::query(sql).bind(client.to_string()).bind(currency.code()).bind(booked.number());
    query.fetch_optional(connection).await?.as_ref().map(issued).transpose()
}

/// Invoices of a month with something owed, by number.
pub(crate) async fn owed(connection: &mut Connection, period: Period) -> Result<Vec<Issued>, LedgerError> {
    let sql =
        sqlx::AssertSqlSafe(format!("{ISSUED} WHERE i.kind = 'invoice' AND i.period = $1 ORDER BY i.number"));
    let rows = sqlx::query(sql).bind(period.number()).fetch_all(connection).await?;
    let all: Result<Vec<Issued>, LedgerError> = rows.iter().map(issued).collect();
    Ok(all?.into_iter().filter(|invoice| invoice.open_minor > 0).collect())
}

/// Credit notes of an invoice, in order.
pub(crate) async fn credit_notes(
    connection: &mut Connection,
    invoice: i64,
) -> Result<Vec<Invoice>, LedgerError> {
    let sql = "SELECT document FROM invoices WHERE credits = $1 ORDER BY number";
    let rows = sqlx::query(sql).bind(invoice).fetch_all(connection).await?;
    rows.iter().map(|row| serde_json::from_str(row.try_get(0)?).map_err(LedgerError::corrupt)).collect()
}

/// The deliveries on an invoice, by event from after `after`; `None` if there is no such invoice, or it is not of `client`.
pub(crate) async fn deliveries(
    connection: &mut Connection,
    number: i64,
    client: Option<&ClientId>,
    after: i64,
    limit: i64,
) -> Result<Option<Vec<StoredEvent>>, LedgerError> {
    let invoice = find(&mut *connection, number).await?;
    let invoice = invoice.filter(|invoice| client.is_none_or(|client| *client == invoice.client));
    let Some(invoice) = invoice else { return Ok(None) };
    if invoice.is_credit_note {
        let sql = "WHERE k.credit_note = $1 AND e.id > $2 ORDER BY e.id LIMIT $3";
        let rows =
            sqlx::query(select(sql)).bind(number).bind(after).bind(limit).fetch_all(connection).await?;
        return rows.iter().map(StoredEvent::from_row).collect::<Result<_, _>>().map(Some);
    }
    let Issued { client, currency, first_period, period, .. } = &invoice;
    let charges = Charges { client, currency: *currency, booked: (*first_period, period.number()) };
    Ok(Some(charges.page(connection, after, limit).await?))
}
