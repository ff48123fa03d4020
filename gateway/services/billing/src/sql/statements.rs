//! Payout statements as they were issued.

use common::money::Currency;
use database::Connection;
use sqlx::Row;

use super::LedgerError;
use crate::documents::{PayoutMethod, Statement};
use crate::period::Period;

pub(crate) async fn next_number(connection: &mut Connection) -> Result<i64, LedgerError> {
    let sql = "SELECT coalesce(max(number), 0) + 1 FROM statements";
    Ok(sqlx::query_scalar(sql).fetch_one(connection).await?)
}

/// What the party's newest statement carried forward, in millionths.
pub(crate) async fn carried(
    connection: &mut Connection,
    party: &str,
    currency: Currency,
) -> Result<i64, LedgerError> {
    let sql =
        "SELECT closing FROM statements WHERE party = $1 AND currency = $2 ORDER BY period DESC LIMIT 1";
    let query = sqlx::query_scalar(sql).bind(party.to_owned()).bind(currency.code());
    Ok(query.fetch_optional(connection).await?.unwrap_or(0))
}

pub(crate) async fn insert(
    connection: &mut Connection,
    period: Period,
    number: Option<i64>,
    journal: Option<i64>,
    statement: &Statement,
) -> Result<(), LedgerError> {
    let document = serde_json::to_string(statement).map_err(LedgerError::corrupt)?;
    sqlx::query(
        "INSERT INTO statements (party, period, currency, number, payout_minor, method, closing, journal, \
         document) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(statement.party.party.clone())
    .bind(period.number())
    .bind(statement.currency.code())
    .bind(number)
    .bind(statement.payout_minor)
    .bind(statement.payout_method.map_or("", PayoutMethod::as_str))
    .bind(statement.carried_micros)
    .bind(journal)
    .bind(document)
    .execute(connection)
    .await?;
    Ok(())
}

/// A party's statements of a month, one for each currency.
pub(crate) async fn of_party(
    connection: &mut Connection,
    party: &str,
    period: Period,
) -> Result<Vec<Statement>, LedgerError> {
    let sql = "SELECT document FROM statements WHERE party = $1 AND period = $2 ORDER BY currency";
    let rows = sqlx::query(sql).bind(party.to_owned()).bind(period.number()).fetch_all(connection).await?;
    rows.iter().map(|row| serde_json::from_str(row.try_get(0)?).map_err(LedgerError::corrupt)).collect()
}

/// A party's statements of the months after `after`, by month.
pub(crate) async fn all_of_party(
    connection: &mut Connection,
    party: &str,
    after: Option<Period>,
    limit: i64,
) -> Result<Vec<Statement>, LedgerError> {
    let sql =
        "SELECT document FROM statements WHERE party = $1 AND period > $2 ORDER BY period, currency LIMIT $3";
    let query = sqlx::query(sql).bind(party.to_owned()).bind(after.map_or(0, Period::number)).bind(limit);
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(|row| serde_json::from_str(row.try_get(0)?).map_err(LedgerError::corrupt)).collect()
}

/// All statements of a month after a party, by party.
pub(crate) async fn of_period(
    connection: &mut Connection,
    period: Period,
    after: &str,
    limit: i64,
) -> Result<Vec<Statement>, LedgerError> {
    let sql =
        "SELECT document FROM statements WHERE period = $1 AND party > $2 ORDER BY party, currency LIMIT $3";
    let query = sqlx::query(sql).bind(period.number()).bind(after.to_owned()).bind(limit);
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(|row| serde_json::from_str(row.try_get(0)?).map_err(LedgerError::corrupt)).collect()
}
