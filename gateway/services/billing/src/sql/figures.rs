//! What is shown of the books while they are kept: sums that any reader can ask for often.

use common::money::Currency;
use database::Connection;
use sqlx::Row;

use super::{LedgerError, currency, journals};

/// Cost grows with the number of accounts, not of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Figures {
    pub imbalance_micros: i64,
    /// Sums in micros by kind of account and currency; debits are positive.
    pub balances: Vec<(String, Currency, i64)>,
    /// Records that could not be rated and that nobody has settled.
    pub exceptions: i64,
    /// Invoices and credit notes.
    pub invoices: i64,
    /// Milliseconds since 1970; 0 before the first close.
    pub last_close_ms: i64,
}

/// The kind of an account is what its name has before the colon.
const BALANCES: &str = "SELECT CASE
        WHEN a.name LIKE 'unbilled:%' THEN 'unbilled'
        WHEN a.name LIKE 'receivable:%' THEN 'receivable'
        WHEN a.name LIKE 'payable:%' THEN 'payable'
        WHEN a.name LIKE 'wallet:%' THEN 'wallet'
        ELSE a.name END AS kind,
    a.currency AS currency, CAST(sum(b.amount) AS BIGINT) AS amount
    FROM balances b JOIN accounts a ON a.id = b.account GROUP BY 1, 2";

const COUNTS: &str = "SELECT
    (SELECT count(*) FROM exceptions WHERE resolved_outcome IS NULL),
    (SELECT coalesce(max(number), 0) FROM invoices),
    (SELECT coalesce(max(closed_ms), 0) FROM periods)";

pub(crate) async fn figures(connection: &mut Connection) -> Result<Figures, LedgerError> {
    let imbalance_micros = journals::imbalance(connection).await?;
    let mut balances = Vec::new();
    for row in &sqlx::query(BALANCES).fetch_all(&mut *connection).await? {
        balances.push((row.try_get(0)?, currency(row, "currency")?, row.try_get(2)?));
    }
    let counts = sqlx::query(COUNTS).fetch_one(connection).await?;
    Ok(Figures {
        imbalance_micros,
        balances,
        exceptions: counts.try_get(0)?,
        invoices: counts.try_get(1)?,
        last_close_ms: counts.try_get(2)?,
    })
}
