//! Versions of tariffs, splits and parties: only ever added, each beginning after the one before.

use std::collections::HashMap;

use common::id::ClientId;
use common::time::UnixMillis;
use database::Connection;
use futures_util::TryStreamExt;
use serde::Serialize;
use sqlx::Row;
use utoipa::ToSchema;

use super::LedgerError;
use crate::config::Fee;
use crate::documents::{PartyView, PayoutMethod};
use crate::rating::{RateBook, Version};
use crate::tariff::{Party, Split, Tariff};

/// The two tables of numbered versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Tariffs,
    Splits,
}

/// A stored version as it is answered.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StoredVersion {
    pub version: i64,
    /// Milliseconds since 1970.
    pub valid_from_ms: u64,
    pub document: serde_json::Value,
}

pub(crate) async fn list(
    connection: &mut Connection,
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
pub(crate) async fn rate_book(connection: &mut Connection, fee: Fee) -> Result<RateBook, LedgerError> {
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
    connection: &mut Connection,
    table: Table,
    valid_from: UnixMillis,
    document: &str,
    now: UnixMillis,
) -> Result<i64, LedgerError> {
    let (newest, insert) = match table {
        Table::Tariffs => (
            "SELECT version, valid_from, document FROM tariffs WHERE valid_from >= $1 ORDER BY valid_from",
            "INSERT INTO tariffs (version, valid_from, document, stored_ms) \
             SELECT coalesce(max(version), 0) + 1, $1, $2, $3 FROM tariffs RETURNING version",
        ),
        Table::Splits => (
            "SELECT version, valid_from, document FROM splits WHERE valid_from >= $1 ORDER BY valid_from",
            "INSERT INTO splits (version, valid_from, document, stored_ms) \
             SELECT coalesce(max(version), 0) + 1, $1, $2, $3 FROM splits RETURNING version",
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
    let query = sqlx::query_scalar(insert).bind(begin).bind(document.to_owned()).bind(now.0.cast_signed());
    Ok(query.fetch_one(connection).await?)
}

/// Adds a version of a party; the same document again changes nothing.
pub(crate) async fn add_party(
    connection: &mut Connection,
    party: &str,
    valid_from: UnixMillis,
    document: &str,
    now: UnixMillis,
) -> Result<(), LedgerError> {
    let begin = valid_from.0.cast_signed();
    let later = "SELECT valid_from, document FROM parties WHERE party = $1 AND valid_from >= $2 \
         ORDER BY valid_from";
    let row = sqlx::query(later).bind(party.to_owned()).bind(begin).fetch_optional(&mut *connection).await?;
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
    sqlx::query("INSERT INTO parties (party, valid_from, document, stored_ms) VALUES ($1, $2, $3, $4)")
        .bind(party.to_owned())
        .bind(begin)
        .bind(document.to_owned())
        .bind(now.0.cast_signed())
        .execute(connection)
        .await?;
    Ok(())
}

/// A page of parties' versions by name.
pub(crate) async fn parties(
    connection: &mut Connection,
    after: &str,
    limit: i64,
) -> Result<Vec<serde_json::Value>, LedgerError> {
    let sql = "SELECT document FROM parties WHERE party > $1 ORDER BY party, valid_from LIMIT $2";
    let rows = sqlx::query(sql).bind(after.to_owned()).bind(limit).fetch_all(connection).await?;
    rows.iter().map(|row| serde_json::from_str(row.try_get(0)?).map_err(LedgerError::corrupt)).collect()
}

/// The version of a party that holds at `at`, if there is one.
async fn party_at(
    connection: &mut Connection,
    party: &str,
    at: UnixMillis,
) -> Result<Option<Party>, LedgerError> {
    let sql =
        "SELECT document FROM parties WHERE party = $1 AND valid_from <= $2 ORDER BY valid_from DESC LIMIT 1";
    let query = sqlx::query_scalar(sql).bind(party.to_owned()).bind(at.0.cast_signed());
    let text: Option<String> = query.fetch_optional(connection).await?;
    text.map(|text| serde_json::from_str(&text).map_err(LedgerError::corrupt)).transpose()
}

fn view(name: &str, party: Option<Party>) -> PartyView {
    let Some(party) = party else {
        return PartyView {
            party: name.to_owned(),
            name: name.split_once(':').map_or(name, |(_, name)| name).to_owned(),
            address: None,
            country: None,
            registration_number: None,
            email: None,
        };
    };
    PartyView {
        party: party.party,
        name: party.name,
        address: party.address,
        country: party.country,
        registration_number: party.registration_number,
        email: party.email,
    }
}

/// Who a party is, for documents made at `at`; of one that was never told, its name.
pub(crate) async fn party(
    connection: &mut Connection,
    name: &str,
    at: UnixMillis,
) -> Result<PartyView, LedgerError> {
    Ok(view(name, party_at(connection, name, at).await?))
}

/// The same of `KIND:NAME`.
pub(crate) async fn party_view(
    connection: &mut Connection,
    kind: &str,
    name: &ClientId,
    at: UnixMillis,
) -> Result<PartyView, LedgerError> {
    party(connection, &format!("{kind}:{name}"), at).await
}

/// Those of `clients` that were told of, as they are at `at`. The clients are sorted by name.
pub(crate) async fn customers(
    connection: &mut Connection,
    clients: &[&ClientId],
    at: UnixMillis,
) -> Result<HashMap<ClientId, PartyView>, LedgerError> {
    let (Some(first), Some(last)) = (clients.first(), clients.last()) else { return Ok(HashMap::new()) };
    let sql = "SELECT party, document FROM parties WHERE party >= $1 AND party <= $2 AND valid_from <= $3 \
         ORDER BY party, valid_from";
    let query = sqlx::query(sql).bind(format!("client:{first}")).bind(format!("client:{last}"));
    let mut rows = query.bind(at.0.cast_signed()).fetch(connection);
    let mut customers = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let name: &str = row.try_get(0)?;
        let client = name.strip_prefix("client:").unwrap_or_default();
        if let Ok(found) = clients.binary_search_by(|known| known.as_str().cmp(client)) {
            let party = serde_json::from_str(row.try_get(1)?).map_err(LedgerError::corrupt)?;
            // The newest version comes last.
            customers.insert(clients[found].clone(), view(name, Some(party)));
        }
    }
    Ok(customers)
}

/// Who a client is that was never told of: its name.
pub(crate) fn unknown_customer(client: &ClientId) -> PartyView {
    view(&format!("client:{client}"), None)
}

/// Who a party is, and how it is paid out.
pub(crate) async fn payee(
    connection: &mut Connection,
    name: &str,
    at: UnixMillis,
) -> Result<(PartyView, PayoutMethod), LedgerError> {
    let party = party_at(connection, name, at).await?;
    let method = party.as_ref().map_or(PayoutMethod::default(), |party| party.payout);
    Ok((view(name, party), method))
}

/// The stored document of a party at `at`.
pub(crate) async fn party_document(
    connection: &mut Connection,
    name: &str,
    at: UnixMillis,
) -> Result<Option<Party>, LedgerError> {
    party_at(connection, name, at).await
}
