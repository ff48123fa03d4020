//! The events of one client: through runs of events that are sorted by client, and among the newest, which are in no run.

use common::id::ClientId;
use common::money::Currency;
use database::Connection;
use sqlx::{AssertSqlSafe, Row};

use super::LedgerError;
use super::events::{SELECT, StoredEvent};

/// Adds a run of the events that are in none.
pub(crate) async fn add_run(connection: &mut Connection) -> Result<(), LedgerError> {
    let row = sqlx::query(
        "SELECT (SELECT coalesce(max(run), 0) FROM client_runs), (SELECT coalesce(max(id), 0) FROM events)",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (last, run): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    if last == run {
        return Ok(());
    }
    let run_of_clients = "INSERT INTO client_events (run, client, event) \
         SELECT CAST($1 AS BIGINT), client, id FROM events WHERE id > $2 AND id <= $1 ORDER BY client, id";
    let its_months = "INSERT INTO client_runs (run, first_period, last_period) \
         SELECT CAST($1 AS BIGINT), min(booked_period), max(booked_period) FROM events WHERE id > $2 AND id <= $1";
    for sql in [run_of_clients, its_months] {
        sqlx::query(sql).bind(run).bind(last).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Charges that are looked for.
pub(crate) struct Charges<'a> {
    pub client: &'a ClientId,
    pub currency: Currency,
    /// The months that they are booked in, the last one included.
    pub booked: (i64, i64),
}

impl Charges<'_> {
    /// Up to `limit` charges after event `after`, in order. What was taken back before it was invoiced is none.
    pub async fn page(
        &self,
        connection: &mut Connection,
        mut after: i64,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, LedgerError> {
        let len = usize::try_from(limit).unwrap_or_default();
        let mut charges = Vec::new();
        while charges.len() < len {
            let events = self.candidates(connection, after, limit).await?;
            let Some(last) = events.last() else { break };
            after = *last;
            let ids: Vec<String> = events.iter().map(i64::to_string).collect();
            let rows = sqlx::query(AssertSqlSafe(format!(
                "{SELECT}WHERE e.id IN ({}) AND coalesce(x.resolved_outcome, e.outcome) = 'charged' \
                 AND coalesce(e.currency, x.currency) = $1 \
                 AND coalesce(x.resolved_period, e.booked_period) BETWEEN $2 AND $3 \
                 AND (k.event IS NULL OR k.invoice IS NOT NULL) ORDER BY e.id",
                ids.join(",")
            )))
            .persistent(false)
            .bind(self.currency.code())
            .bind(self.booked.0)
            .bind(self.booked.1)
            .fetch_all(&mut *connection)
            .await?;
            for row in rows.iter().take(len - charges.len()) {
                charges.push(StoredEvent::from_row(row)?);
            }
        }
        Ok(charges)
    }

    /// Events of the client that may be charges of these months: up to `limit` after event `after`, in order.
    async fn candidates(
        &self,
        connection: &mut Connection,
        after: i64,
        limit: i64,
    ) -> Result<Vec<i64>, LedgerError> {
        let in_runs = "SELECT c.event FROM client_runs r JOIN client_events c ON c.run = r.run AND c.client = $1 \
             WHERE r.run > $2 AND c.event > $2 AND r.last_period >= $3 AND r.first_period <= $4 \
             ORDER BY r.run, c.event LIMIT $5";
        let newest = "SELECT id FROM events WHERE id > (SELECT coalesce(max(run), 0) FROM client_runs) \
             AND client = $1 AND id > $2 AND booked_period BETWEEN $3 AND $4 ORDER BY id LIMIT $5";
        let resolved = "SELECT x.event FROM exceptions x JOIN events e ON e.id = x.event WHERE e.client = $1 \
             AND x.event > $2 AND x.resolved_period BETWEEN $3 AND $4 ORDER BY x.event LIMIT $5";
        let (first, last) = self.booked;
        let mut events: Vec<i64> = Vec::new();
        for sql in [in_runs, newest, resolved] {
            let query =
                sqlx::query_scalar::<_, i64>(sql).bind(self.client.to_string()).bind(after).bind(first);
            events.extend(query.bind(last).bind(limit).fetch_all(&mut *connection).await?);
        }
        events.sort_unstable();
        events.dedup();
        events.truncate(usize::try_from(limit).unwrap_or_default());
        Ok(events)
    }
}
