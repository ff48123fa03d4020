//! Sums of events by client and month, read for usage and invoices.
//!
//! Events are summed many together, and before sums are read: an event by itself would touch a page of its client's, however
//! little it adds. What is taken back or resolved later changes the sums at once.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use common::api::billing::{MonthTotals, Totals, Usage};
use common::id::ClientId;
use common::money::{Currency, Money};
use common::record::DeliveryRecord;
use database::{Column, Connection, Dialect, Insert};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::LedgerError;
use super::events::{class_text, path_text, status_text};
use super::invoices::Issued;
use super::journals;
use crate::period::Period;
use crate::rating::PLAUSIBLE_MAX;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    client: ClientId,
    booked_period: i64,
    usage_period: i64,
    outcome: &'static str,
    status: &'static str,
    class: &'static str,
    path: &'static str,
    currency: &'static str,
    tariff: i64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    deliveries: i64,
    bytes_sent: i64,
    micros: i64,
}

/// What one event counts as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    pub booked: Period,
    pub usage: Period,
    pub outcome: &'static str,
    /// Currency, millionths and tariff version of a charge.
    pub charge: Option<(Currency, i64, i64)>,
}

/// Changes to the sums, gathered for one transaction.
#[derive(Default)]
pub(crate) struct UsageChanges {
    sums: BTreeMap<Key, Sums>,
}

const COLUMNS: &[Column] = &[
    Column::Text("client"),
    Column::Integer("booked_period"),
    Column::Integer("usage_period"),
    Column::Text("outcome"),
    Column::Text("status"),
    Column::Text("class"),
    Column::Text("path"),
    Column::Text("currency"),
    Column::Integer("tariff"),
    Column::Integer("deliveries"),
    Column::Integer("bytes_sent"),
    Column::Integer("amount"),
];
static ADD: LazyLock<Insert> = LazyLock::new(|| {
    let tail = "ON CONFLICT (client, booked_period, usage_period, outcome, status, class, path, currency, tariff) \
         DO UPDATE SET deliveries = usage.deliveries + excluded.deliveries, \
         bytes_sent = usage.bytes_sent + excluded.bytes_sent, amount = usage.amount + excluded.amount";
    Insert::new("usage", COLUMNS, tail)
});

/// Sums the events that are not summed yet.
pub(crate) async fn sum_up(connection: &mut Connection) -> Result<(), LedgerError> {
    let (summed, newest) = summed(connection).await?;
    if summed == newest {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO usage (client, booked_period, usage_period, outcome, status, class, path, currency, tariff, \
         deliveries, bytes_sent, amount) \
         SELECT client, booked_period, usage_period, outcome, status, class, path, coalesce(currency, ''), \
         coalesce(tariff, 0), count(*), \
         CAST(sum(CASE WHEN bytes_sent BETWEEN 0 AND $3 THEN bytes_sent ELSE 0 END) AS BIGINT), \
         CAST(sum(coalesce(amount, 0)) AS BIGINT) FROM events WHERE id > $1 AND id <= $2 \
         GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9 \
         ON CONFLICT (client, booked_period, usage_period, outcome, status, class, path, currency, tariff) \
         DO UPDATE SET deliveries = usage.deliveries + excluded.deliveries, \
         bytes_sent = usage.bytes_sent + excluded.bytes_sent, amount = usage.amount + excluded.amount",
    )
    .bind(summed)
    .bind(newest)
    .bind(PLAUSIBLE_MAX.cast_signed())
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE usage_through SET event = $1").bind(newest).execute(connection).await?;
    Ok(())
}

/// The last event that is summed, and the newest one.
async fn summed(connection: &mut Connection) -> Result<(i64, i64), LedgerError> {
    let sql = "SELECT event, (SELECT coalesce(max(id), 0) FROM events) FROM usage_through";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Whether the sums tell of all events.
pub(crate) async fn is_summed_up(connection: &mut Connection) -> Result<bool, LedgerError> {
    let (summed, newest) = summed(connection).await?;
    Ok(summed == newest)
}

impl UsageChanges {
    /// Counts an event that is summed already `count` times: 1, or -1 to take it back.
    pub fn add(&mut self, record: &DeliveryRecord, counted: Counted, count: i64) {
        let (currency, micros, tariff) =
            counted.charge.map_or(("", 0, 0), |(currency, micros, tariff)| (currency.code(), micros, tariff));
        let key = Key {
            client: record.client.clone(),
            booked_period: counted.booked.number(),
            usage_period: counted.usage.number(),
            outcome: counted.outcome,
            status: status_text(record.status),
            class: class_text(record.class),
            path: path_text(record.path),
            currency,
            tariff,
        };
        // A broken node's count of bytes must not spoil the client's sum.
        let bytes = if record.bytes_sent > PLAUSIBLE_MAX { 0 } else { record.bytes_sent.cast_signed() };
        let sums = self.sums.entry(key).or_default();
        sums.deliveries += count;
        sums.bytes_sent += count * bytes;
        sums.micros += count * micros;
    }

    pub async fn apply(&self, connection: &mut Connection, dialect: Dialect) -> Result<(), LedgerError> {
        let rows: Vec<(&Key, &Sums)> = self.sums.iter().collect();
        ADD.run(connection, dialect, &rows, |(key, sums), values| {
            values.extend([
                key.client.as_str().into(),
                key.booked_period.into(),
                key.usage_period.into(),
                key.outcome.into(),
                key.status.into(),
                key.class.into(),
                key.path.into(),
                key.currency.into(),
                key.tariff.into(),
                sums.deliveries.into(),
                sums.bytes_sent.into(),
                sums.micros.into(),
            ]);
        })
        .await?;
        Ok(())
    }
}

/// What `client` used in a month: by the month of the deliveries, also of those that were booked later.
pub(crate) async fn of_client(
    connection: &mut Connection,
    client: &ClientId,
    period: Period,
) -> Result<Usage, LedgerError> {
    let rows = sqlx::query(
        "SELECT outcome, status, class, currency, CAST(sum(deliveries) AS BIGINT), \
         CAST(sum(bytes_sent) AS BIGINT), CAST(sum(amount) AS BIGINT) FROM usage \
         WHERE client = $1 AND usage_period = $2 GROUP BY outcome, status, class, currency",
    )
    .bind(client.to_string())
    .bind(period.number())
    .fetch_all(connection)
    .await?;
    let (mut deliveries, mut classes) = (BTreeMap::new(), BTreeMap::new());
    let mut charges: BTreeMap<Currency, i64> = BTreeMap::new();
    let mut bytes_sent = 0u64;
    for row in rows {
        let (outcome, count): (String, i64) = (row.try_get(0)?, row.try_get(4)?);
        if count == 0 {
            continue; // exceptions that were resolved
        }
        // What was credited is counted with the charges already.
        let is_credit = outcome == "credited";
        if !is_credit {
            *deliveries.entry(row.try_get(1)?).or_default() += count.cast_unsigned();
            bytes_sent = bytes_sent.saturating_add_signed(row.try_get(5)?);
        }
        if outcome == "charged" {
            *classes.entry(row.try_get(2)?).or_default() += count.cast_unsigned();
        }
        if outcome == "charged" || is_credit {
            let currency = super::currency(&row, "currency")?;
            let micros: i64 = row.try_get(6)?;
            *charges.entry(currency).or_default() += if is_credit { -micros } else { micros };
        }
    }
    let charges = charges.into_iter().map(|(currency, micros)| Money { micros, currency }).collect();
    Ok(Usage { client: client.clone(), period: period.to_string(), deliveries, classes, bytes_sent, charges })
}

/// What the records of a month sum to, by the month of the deliveries.
pub(crate) async fn of_month(
    connection: &mut Connection,
    period: Period,
) -> Result<MonthTotals, LedgerError> {
    let sql = "SELECT status, CAST(sum(deliveries) AS BIGINT), CAST(sum(bytes_sent) AS BIGINT) FROM usage \
         WHERE usage_period = $1 AND outcome <> 'credited' GROUP BY status";
    let rows = sqlx::query(sql).bind(period.number()).fetch_all(connection).await?;
    let mut totals = MonthTotals::default();
    for row in rows {
        totals.records.insert(row.try_get(0)?, row.try_get::<i64, _>(1)?.cast_unsigned());
        totals.bytes_sent = totals.bytes_sent.saturating_add_signed(row.try_get(2)?);
    }
    Ok(totals)
}

/// The whole ledger in sums. Cost grows with the number of clients and months, not of records.
pub(crate) async fn totals(connection: &mut Connection) -> Result<Totals, LedgerError> {
    let sql = "SELECT status, CAST(sum(deliveries) AS BIGINT) FROM usage WHERE outcome <> 'credited' GROUP BY status";
    let rows = sqlx::query(sql).fetch_all(&mut *connection).await?;
    let mut records = BTreeMap::new();
    for row in rows {
        records.insert(row.try_get(0)?, row.try_get::<i64, _>(1)?.cast_unsigned());
    }
    // Ids of journals count from 1 without gaps, so the greatest is their number.
    let journals = journals::newest(connection).await?.0.cast_unsigned();
    let exceptions: i64 =
        sqlx::query_scalar("SELECT count(*) FROM exceptions WHERE resolved_outcome IS NULL")
            .fetch_one(&mut *connection)
            .await?;
    let imbalance_micros = journals::imbalance(connection).await?;
    Ok(Totals { records, journals, exceptions: exceptions.cast_unsigned(), imbalance_micros })
}

/// Charges of one kind that wait to be invoiced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UsageLine {
    pub usage: Period,
    pub class: String,
    pub path: String,
    pub tariff: i64,
    pub deliveries: i64,
    pub bytes_sent: i64,
    pub micros: i64,
}

/// The charges of one client in one currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub client: ClientId,
    pub currency: Currency,
    pub lines: Vec<UsageLine>,
}

/// Charges of months after `closed` up to `through`: of up to `clients` clients after `after`, by name.
pub(crate) async fn waiting(
    connection: &mut Connection,
    closed: Option<Period>,
    through: Period,
    after: &str,
    clients: i64,
) -> Result<Vec<Waiting>, LedgerError> {
    let rows = sqlx::query(
        "SELECT u.client, u.currency, u.usage_period, u.class, u.path, u.tariff, \
         CAST(sum(u.deliveries) AS BIGINT) AS deliveries, CAST(sum(u.bytes_sent) AS BIGINT) AS bytes_sent, \
         CAST(sum(u.amount) AS BIGINT) AS amount FROM usage u JOIN ( \
             SELECT DISTINCT client FROM usage WHERE outcome = 'charged' AND booked_period > $1 \
             AND booked_period <= $2 AND client > $3 ORDER BY client LIMIT $4) AS page ON page.client = u.client \
         WHERE u.outcome = 'charged' AND u.booked_period > $1 AND u.booked_period <= $2 \
         GROUP BY u.client, u.currency, u.usage_period, u.class, u.path, u.tariff \
         ORDER BY u.client, u.currency, u.usage_period, u.class, u.path, u.tariff",
    )
    .bind(closed.map_or(0, Period::number))
    .bind(through.number())
    .bind(after.to_owned())
    .bind(clients)
    .fetch_all(connection)
    .await?;
    let mut waiting: Vec<Waiting> = Vec::new();
    for row in &rows {
        let client = ClientId::new(row.try_get(0)?).map_err(LedgerError::corrupt)?;
        let currency = super::currency(row, "currency")?;
        let line = UsageLine::from_row(row)?;
        match waiting.last_mut().filter(|last| last.client == client && last.currency == currency) {
            Some(last) => last.lines.push(line),
            None => waiting.push(Waiting { client, currency, lines: vec![line] }),
        }
    }
    Ok(waiting)
}

/// The charges that an issued invoice is of, as they were before any was taken back.
pub(crate) async fn charges_of(
    connection: &mut Connection,
    invoice: &Issued,
) -> Result<Vec<UsageLine>, LedgerError> {
    let rows = sqlx::query(
        "SELECT usage_period, class, path, tariff, CAST(sum(deliveries) AS BIGINT) AS deliveries, \
         CAST(sum(bytes_sent) AS BIGINT) AS bytes_sent, CAST(sum(amount) AS BIGINT) AS amount FROM usage \
         WHERE client = $1 AND currency = $2 AND booked_period >= $3 AND booked_period <= $4 \
         AND outcome = 'charged' GROUP BY usage_period, class, path, tariff",
    )
    .bind(invoice.client.to_string())
    .bind(invoice.currency.code())
    .bind(invoice.first_period)
    .bind(invoice.period.number())
    .fetch_all(connection)
    .await?;
    rows.iter().map(UsageLine::from_row).collect()
}

impl UsageLine {
    pub fn from_row(row: &AnyRow) -> Result<Self, LedgerError> {
        Ok(Self {
            usage: super::period(row, "usage_period")?,
            class: row.try_get("class")?,
            path: row.try_get("path")?,
            tariff: row.try_get("tariff")?,
            deliveries: row.try_get("deliveries")?,
            bytes_sent: row.try_get("bytes_sent")?,
            micros: row.try_get("amount")?,
        })
    }
}
