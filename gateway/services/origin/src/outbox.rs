//! The outbox: announcements that search has not acknowledged, numbered without gaps within an epoch.

use sqlx::{QueryBuilder, Sqlite};

use common::api::search::Announcement;
use common::time::UnixMillis;

use crate::db::Connection;
use crate::error::{Failure, integer, natural};

/// Makes the epoch if the database is new: its time of birth, so a database that was lost and made again
/// announces in a later epoch.
pub async fn init(conn: &mut Connection, now: UnixMillis) -> Result<(), Failure> {
    sqlx::query("INSERT INTO announcing (id, epoch, next_seq) VALUES (1, $1, 1) ON CONFLICT (id) DO NOTHING")
        .bind(integer(now.0))
        .execute(conn)
        .await?;
    Ok(())
}

/// Appends announcements in their order; they are sent once the transaction is committed.
pub async fn append(conn: &mut Connection, items: &[Announcement]) -> Result<(), Failure> {
    if items.is_empty() {
        return Ok(());
    }
    let first: i64 = sqlx::query_scalar("SELECT next_seq FROM announcing").fetch_one(&mut *conn).await?;
    let texts = items.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO outbox (seq, item) ");
    query.push_values((first..).zip(&texts), |mut row, (seq, text)| {
        row.push_bind(seq).push_bind(text);
    });
    query.build().execute(&mut *conn).await?;
    sqlx::query("UPDATE announcing SET next_seq = next_seq + $1")
        .bind(items.len() as i64)
        .execute(conn)
        .await?;
    Ok(())
}

/// The oldest announcements to send.
#[derive(Debug)]
pub struct Pending {
    pub epoch: u64,
    /// Number of the first item; of the next one to come if there is none.
    pub first_seq: u64,
    /// Number after the last of the whole outbox.
    pub end_seq: u64,
    pub items: Vec<Announcement>,
}

pub async fn pending(conn: &mut Connection, limit: i64) -> Result<Pending, Failure> {
    // The items first: what a scan appends between the two reads then counts as waiting, and no item that is sent
    // is beyond the end.
    let rows: Vec<(i64, String)> = sqlx::query_as("SELECT seq, item FROM outbox ORDER BY seq LIMIT $1")
        .bind(limit)
        .fetch_all(&mut *conn)
        .await?;
    let (epoch, next_seq): (i64, i64) =
        sqlx::query_as("SELECT epoch, next_seq FROM announcing").fetch_one(conn).await?;
    let first_seq = rows.first().map_or(next_seq, |(seq, _)| *seq);
    let items = rows.iter().map(|(_, item)| serde_json::from_str(item)).collect::<Result<_, _>>()?;
    Ok(Pending { epoch: natural(epoch), first_seq: natural(first_seq), end_seq: natural(next_seq), items })
}

/// Forgets what search has: everything before `next_seq`.
pub async fn acknowledge(conn: &mut Connection, next_seq: u64) -> Result<(), Failure> {
    sqlx::query("DELETE FROM outbox WHERE seq < $1").bind(integer(next_seq)).execute(conn).await?;
    Ok(())
}

/// Begins a later epoch with an empty outbox.
pub async fn restart(conn: &mut Connection, now: UnixMillis) -> Result<(), Failure> {
    sqlx::query("DELETE FROM outbox").execute(&mut *conn).await?;
    let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM announcing").fetch_one(&mut *conn).await?;
    sqlx::query("UPDATE announcing SET epoch = $1, next_seq = 1")
        .bind(integer(now.0).max(epoch + 1))
        .execute(conn)
        .await?;
    Ok(())
}
