//! Cards: which public keys stand for which client.

use common::api::search::{CardHolder, CardRecord, DisableCards, NewCard};
use common::card::PublicKey;
use common::error::ErrorCode;
use common::id::ClientId;
use common::time::UnixMillis;

use crate::clients;
use crate::db::Connection;
use crate::error::{Failure, integer, natural};

/// Cards that a client may have, disabled ones too.
const CARDS_MAX: usize = 100;

#[derive(sqlx::FromRow)]
struct Columns {
    card: String,
    client: String,
    disabled: i64,
    created: i64,
}

fn record_of(row: Columns) -> Result<CardRecord, Failure> {
    Ok(CardRecord {
        card: row.card.parse()?,
        client: ClientId::new(&row.client)?,
        disabled: row.disabled != 0,
        created: UnixMillis(natural(row.created)),
    })
}

/// Makes a card known. One that is known already stays as it is, also if it is disabled.
pub async fn add(conn: &mut Connection, new: &NewCard, now: UnixMillis) -> Result<CardRecord, Failure> {
    if clients::find(conn, &new.client).await?.is_none() {
        return Err(clients::not_found(&new.client));
    }
    if let Some(known) = find(conn, &new.card).await? {
        if known.client != new.client {
            return Err(Failure::refused(ErrorCode::Conflict, "this is the card of another client"));
        }
        return Ok(known);
    }
    if list(conn, Some(&new.client)).await?.len() >= CARDS_MAX {
        let message = format!("client {} has {CARDS_MAX} cards, more are not kept", new.client);
        return Err(Failure::refused(ErrorCode::Conflict, message));
    }
    sqlx::query("INSERT INTO cards (card, client, disabled, created) VALUES ($1, $2, 0, $3)")
        .bind(new.card.to_string())
        .bind(new.client.as_str())
        .bind(integer(now.0, "the time")?)
        .execute(conn)
        .await?;
    Ok(CardRecord { card: new.card, client: new.client.clone(), disabled: false, created: now })
}

async fn find(conn: &mut Connection, card: &PublicKey) -> Result<Option<CardRecord>, Failure> {
    let row: Option<Columns> =
        sqlx::query_as("SELECT card, client, disabled, created FROM cards WHERE card = $1")
            .bind(card.to_string())
            .fetch_optional(conn)
            .await?;
    row.map(record_of).transpose()
}

/// A card and its client.
pub async fn holder(conn: &mut Connection, card: &PublicKey) -> Result<CardHolder, Failure> {
    let unknown = || Failure::refused(ErrorCode::CardUnknown, "no client has this card");
    let card = find(conn, card).await?.ok_or_else(unknown)?;
    let client = clients::find(conn, &card.client).await?.ok_or_else(unknown)?;
    Ok(CardHolder { card, client })
}

/// The cards of one client, or all, in the order in which they were made.
pub async fn list(conn: &mut Connection, client: Option<&ClientId>) -> Result<Vec<CardRecord>, Failure> {
    let rows: Vec<Columns> = match client {
        Some(client) => {
            sqlx::query_as(
                "SELECT card, client, disabled, created FROM cards WHERE client = $1 ORDER BY created, card",
            )
            .bind(client.as_str())
            .fetch_all(conn)
            .await?
        }
        None => {
            sqlx::query_as("SELECT card, client, disabled, created FROM cards ORDER BY client, created, card")
                .fetch_all(conn)
                .await?
        }
    };
    rows.into_iter().map(record_of).collect()
}

/// Shuts cards out for good: a client that finds its card again gets a new one. Answers those that were meant.
pub async fn disable(conn: &mut Connection, which: &DisableCards) -> Result<Vec<CardRecord>, Failure> {
    let mut meant = list(conn, Some(&which.client)).await?;
    meant.retain(|known| which.card.is_none_or(|card| known.card == card));
    if meant.is_empty() {
        let message = format!("client {} has no such card", which.client);
        return Err(Failure::refused(ErrorCode::CardUnknown, message));
    }
    for known in &mut meant {
        sqlx::query("UPDATE cards SET disabled = 1 WHERE card = $1")
            .bind(known.card.to_string())
            .execute(&mut *conn)
            .await?;
        known.disabled = true;
    }
    Ok(meant)
}
