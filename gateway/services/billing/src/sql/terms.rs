//! Versions of tariffs, splits and parties: only ever added, each beginning after the one before.

use common::time::UnixMillis;
use serde::Serialize;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::LedgerError;
use crate::config::Fee;
use crate::rating::{RateBook, Version};
use crate::tariff::{Split, Tariff};

/// The two tables of numbered versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Tariffs,
    Splits,
}

/// A stored version as it is answered.
#[derive(Debug, Clone, Serialize)]
pub struct StoredVersion {
    pub version: i64,
    /// Milliseconds since 1970.
    pub valid_from_ms: u64,
    pub document: serde_json::Value,
}

pub(crate) async fn list(
    connection: &mut SqliteConnection,
    table: Table,
) -> Result<Vec<StoredVersion>, LedgerError> {
    let sql = match table {
        Table::Tariffs => "SELECT version, valid_from, document FROM tariffs ORDER BY valid_from",
        Table::Splits => "SELECT version, valid_from, document FROM splits ORDER BY valid_from",
    };
    let rows = sqlx::query(sql).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(StoredVersion {
                version: row.try_get(0)?,
                valid_from_ms: row.try_get::<i64, _>(1)?.cast_unsigned(),
                document: serde_json::from_str(row.try_get(2)?).map_err(LedgerError::corrupt)?,
            })
        })
        .collect()
}

/// All versions in their checked form.
pub(crate) async fn rate_book(connection: &mut SqliteConnection, fee: Fee) -> Result<RateBook, LedgerError> {
    let mut book = RateBook { fee, tariffs: Vec::new(), splits: Vec::new() };
    for stored in list(connection, Table::Tariffs).await? {
        let value = Tariff::from_json(fee, &stored.document).map_err(LedgerError::corrupt)?;
        book.tariffs.push(Version { number: stored.version, value });
    }
    for stored in list(connection, Table::Splits).await? {
        let value = Split::from_json(fee, &stored.document).map_err(LedgerError::corrupt)?;
        book.splits.push(Version { number: stored.version, value });
    }
    Ok(book)
}

/// Adds a version; the same document again changes nothing. Answers with its number.
pub(crate) async fn add(
    connection: &mut SqliteConnection,
    table: Table,
    valid_from: UnixMillis,
    document: &str,
    now: UnixMillis,
) -> Result<i64, LedgerError> {
    let (newest, insert) = match table {
        Table::Tariffs => (
            "SELECT version, valid_from, document FROM tariffs WHERE valid_from >= ? ORDER BY valid_from",
            "INSERT INTO tariffs (valid_from, document, stored_ms) VALUES (?, ?, ?) RETURNING version",
        ),
        Table::Splits => (
            "SELECT version, valid_from, document FROM splits WHERE valid_from >= ? ORDER BY valid_from",
            "INSERT INTO splits (valid_from, document, stored_ms) VALUES (?, ?, ?) RETURNING version",
        ),
    };
    let begin = valid_from.0.cast_signed();
    if let Some(row) = sqlx::query(newest).bind(begin).fetch_optional(&mut *connection).await? {
        let (version, stored, text): (i64, i64, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if stored == begin && text == document {
            return Ok(version);
        }
        return Err(LedgerError::Conflict(format!(
            "version {version} holds from {} on; a new version must begin later than every other",
            UnixMillis(stored.cast_unsigned())
        )));
    }
    let query = sqlx::query_scalar(insert).bind(begin).bind(document).bind(now.0.cast_signed());
    Ok(query.fetch_one(connection).await?)
}

/// Adds a version of a party; the same document again changes nothing.
pub(crate) async fn add_party(
    connection: &mut SqliteConnection,
    party: &str,
    valid_from: UnixMillis,
    document: &str,
    now: UnixMillis,
) -> Result<(), LedgerError> {
    let begin = valid_from.0.cast_signed();
    let later = "SELECT valid_from, document FROM parties WHERE party = ? AND valid_from >= ? \
         ORDER BY valid_from";
    let row = sqlx::query(later).bind(party).bind(begin).fetch_optional(&mut *connection).await?;
    if let Some(row) = row {
        let (stored, text): (i64, &str) = (row.try_get(0)?, row.try_get(1)?);
        if stored == begin && text == document {
            return Ok(());
        }
        return Err(LedgerError::Conflict(format!(
            "a version of {party} holds from {} on; a new version must begin later",
            UnixMillis(stored.cast_unsigned())
        )));
    }
    sqlx::query("INSERT INTO parties (party, valid_from, document, stored_ms) VALUES (?, ?, ?, ?)")
        .bind(party)
        .bind(begin)
        .bind(document)
        .bind(now.0.cast_signed())
        .execute(connection)
        .await?;
    Ok(())
}

/// A page of parties' versions by name.
pub(crate) async fn parties(
    connection: &mut SqliteConnection,
    after: &str,
    limit: i64,
) -> Result<Vec<serde_json::Value>, LedgerError> {
    let sql = "SELECT document FROM parties WHERE party > ? ORDER BY party, valid_from LIMIT ?";
    let rows = sqlx::query(sql).bind(after).bind(limit).fetch_all(connection).await?;
    rows.iter().map(|row| serde_json::from_str(row.try_get(0)?).map_err(LedgerError::corrupt)).collect()
}
