//! The change feed: newer versions and withdrawals, numbered, for sites that hold what changed.

use common::api::search::{Change, ChangeKind, ChangePage};
use common::version::Version;

use crate::db::{Connection, version_of};
use crate::error::{Failure, integer, natural};
use crate::statements::Table;

/// Most changes in one answer.
const PAGE: i64 = 1000;

pub async fn last_seq(conn: &mut Connection) -> Result<i64, Failure> {
    Ok(sqlx::query_scalar("SELECT COALESCE(MAX(seq), 0) FROM changes").fetch_one(conn).await?)
}

/// Appends changes, no name twice; answers the number of the last.
pub async fn append(
    conn: &mut Connection,
    changes: &[(&str, (ChangeKind, Version))],
) -> Result<i64, Failure> {
    const CHANGES: Table<'_> = Table {
        insert: "INSERT INTO changes (name, seq, kind, time, hash)",
        columns: 5,
        conflict: "ON CONFLICT (name) DO UPDATE SET
             seq = excluded.seq, kind = excluded.kind, time = excluded.time, hash = excluded.hash",
    };
    let first = last_seq(conn).await? + 1;
    let numbered: Vec<_> = (first..).zip(changes).collect();
    CHANGES
        .put(conn, &numbered, |query, (seq, (name, (kind, version)))| {
            let kind = match kind {
                ChangeKind::NewVersion => "new_version",
                ChangeKind::Withdrawn => "withdrawn",
            };
            Ok(query
                .bind((*name).to_owned())
                .bind(*seq)
                .bind(kind)
                .bind(integer(version.time.0, "the version's time")?)
                .bind(version.hash.as_bytes().to_vec()))
        })
        .await?;
    Ok(numbered.last().map_or(first - 1, |(seq, _)| *seq))
}

/// Changes after a number. A number beyond the feed's end comes from a feed that is no more, and is answered
/// from the beginning.
pub async fn after(conn: &mut Connection, after: u64) -> Result<ChangePage, Failure> {
    let end = last_seq(conn).await?;
    let start = i64::try_from(after).ok().filter(|a| *a <= end).unwrap_or(0);
    let rows: Vec<(i64, String, String, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT seq, kind, name, time, hash FROM changes WHERE seq > $1 ORDER BY seq LIMIT $2",
    )
    .bind(start)
    .bind(PAGE)
    .fetch_all(conn)
    .await?;
    let mut changes = Vec::with_capacity(rows.len());
    for (seq, kind, name, time, hash) in rows {
        let kind = if kind == "withdrawn" { ChangeKind::Withdrawn } else { ChangeKind::NewVersion };
        changes.push(Change {
            seq: natural(seq),
            kind,
            name: name.parse()?,
            version: version_of(time, &hash)?,
        });
    }
    let last = changes.last().map_or(natural(start), |c| c.seq);
    Ok(ChangePage { changes, last })
}
