//! Sums of events by client and month: kept in the same transaction as the events, read for usage and invoices.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use common::api::billing::{Totals, Usage};
use common::id::ClientId;
use common::money::{Currency, Money};
use common::record::DeliveryRecord;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::LedgerError;
use super::events::{class_text, path_text, status_text};
use super::journals;
use super::rows::{Bound, Insert};
use crate::period::Period;
use crate::rating::{PLAUSIBLE_MAX, Rating};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    client: String,
    booked_period: i64,
    usage_period: i64,
    outcome: &'static str,
    status: &'static str,
    class: &'static str,
    path: &'static str,
    currency: &'static str,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    deliveries: i64,
    bytes_sent: i64,
    micros: i64,
}

/// Changes to the sums, gathered for one transaction.
#[derive(Default)]
pub(crate) struct UsageChanges {
    sums: BTreeMap<Key, Sums>,
}

impl UsageChanges {
    /// Counts a rated event.
    pub fn add(&mut self, record: &DeliveryRecord, booked: Period, usage: Period, rating: &Rating) {
        self.change(record, booked, usage, rating.outcome(), rating, 1);
    }

    /// Takes back that an event was counted as an exception.
    pub fn take_exception(&mut self, record: &DeliveryRecord, booked: Period, usage: Period) {
        self.change(record, booked, usage, "exception", &Rating::Unbilled, -1);
    }

    fn change(
        &mut self,
        record: &DeliveryRecord,
        booked: Period,
        usage: Period,
        outcome: &'static str,
        rating: &Rating,
        count: i64,
    ) {
        let (currency, micros) = match rating {
            Rating::Charged(charge) => (charge.currency.code(), charge.micros),
            _ => ("", 0),
        };
        let key = Key {
            client: record.client.to_string(),
            booked_period: booked.number(),
            usage_period: usage.number(),
            outcome,
            status: status_text(record.status),
            class: class_text(record.class),
            path: path_text(record.path),
            currency,
        };
        // A broken node's count of bytes must not spoil the client's sum.
        let bytes = if record.bytes_sent > PLAUSIBLE_MAX { 0 } else { record.bytes_sent.cast_signed() };
        let sums = self.sums.entry(key).or_default();
        sums.deliveries += count;
        sums.bytes_sent += count * bytes;
        sums.micros += micros;
    }

    pub async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), LedgerError> {
        static ADD: LazyLock<Insert> = LazyLock::new(|| {
            let head = "INSERT INTO usage (client, booked_period, usage_period, outcome, status, class, path, \
                 currency, deliveries, bytes_sent, amount)";
            let tail = "ON CONFLICT (client, booked_period, usage_period, outcome, status, class, path, currency) \
                 DO UPDATE SET deliveries = deliveries + excluded.deliveries, \
                 bytes_sent = bytes_sent + excluded.bytes_sent, amount = amount + excluded.amount";
            Insert::new(head, 11, tail)
        });
        let rows: Vec<(&Key, &Sums)> = self.sums.iter().collect();
        let bind = |query: Bound, (key, sums): &(&Key, &Sums)| {
            let query = query.bind(key.client.clone()).bind(key.booked_period).bind(key.usage_period);
            let query = query.bind(key.outcome).bind(key.status).bind(key.class).bind(key.path);
            query.bind(key.currency).bind(sums.deliveries).bind(sums.bytes_sent).bind(sums.micros)
        };
        ADD.run(connection, &rows, bind).await?;
        Ok(())
    }
}

/// What `client` used in a month: by the month of the deliveries, also of those that were booked later.
pub(crate) async fn of_client(
    connection: &mut SqliteConnection,
    client: &ClientId,
    period: Period,
) -> Result<Usage, LedgerError> {
    let rows = sqlx::query(
        "SELECT outcome, status, class, currency, sum(deliveries), sum(bytes_sent), sum(amount) FROM usage \
         WHERE client = ? AND usage_period = ? GROUP BY outcome, status, class, currency",
    )
    .bind(client.as_str())
    .bind(period.number())
    .fetch_all(connection)
    .await?;
    let (mut deliveries, mut classes) = (BTreeMap::new(), BTreeMap::new());
    let mut charges: BTreeMap<Currency, i64> = BTreeMap::new();
    let mut bytes_sent = 0u64;
    for row in rows {
        let count: i64 = row.try_get(4)?;
        if count == 0 {
            continue; // exceptions that were resolved
        }
        *deliveries.entry(row.try_get(1)?).or_default() += count.cast_unsigned();
        bytes_sent = bytes_sent.saturating_add_signed(row.try_get(5)?);
        if row.try_get::<&str, _>(0)? == "charged" {
            *classes.entry(row.try_get(2)?).or_default() += count.cast_unsigned();
            let currency = row.try_get::<&str, _>(3)?.parse().map_err(LedgerError::corrupt)?;
            *charges.entry(currency).or_default() += row.try_get::<i64, _>(6)?;
        }
    }
    let charges = charges.into_iter().map(|(currency, micros)| Money { micros, currency }).collect();
    Ok(Usage { client: client.clone(), period: period.to_string(), deliveries, classes, bytes_sent, charges })
}

/// The whole ledger in sums. Cost grows with the number of clients and months, not of records.
pub(crate) async fn totals(connection: &mut SqliteConnection) -> Result<Totals, LedgerError> {
    let rows = sqlx::query("SELECT status, sum(deliveries) FROM usage GROUP BY status")
        .fetch_all(&mut *connection)
        .await?;
    let mut records = BTreeMap::new();
    for row in rows {
        records.insert(row.try_get(0)?, row.try_get::<i64, _>(1)?.cast_unsigned());
    }
    // Ids of journals count from 1 without gaps, so the greatest is their number.
    let journals = journals::next_id(connection).await?.cast_unsigned() - 1;
    let exceptions: i64 =
        sqlx::query_scalar("SELECT count(*) FROM exceptions WHERE resolved_outcome IS NULL")
            .fetch_one(&mut *connection)
            .await?;
    let imbalance_micros = journals::imbalance(connection).await?;
    Ok(Totals { records, journals, exceptions: exceptions.cast_unsigned(), imbalance_micros })
}
