//! Sweeping after a snapshot: what a site held, in the slots that a snapshot covered, and did not confirm, is withdrawn.
//!
//! A snapshot is announced like everything else, between a begin and an end: what is told from its begin on gets its mark,
//! what is known stays until the end. So nothing that is held is ever missing. The sweep itself goes in small transactions,
//! and on after a restart; what is told meanwhile has the mark too, and stays.

use std::collections::BTreeSet;

use common::error::chain;
use common::name::ContentName;
use common::placement::{SLOT_COUNT, Slot};

use crate::contents::{Effect, Entries, Holder};
use crate::db::Connection;
use crate::error::Failure;
use crate::server::App;

/// Most rows of one transaction.
const PAGE: i64 = 256;

/// The mark of the newest snapshot.
pub async fn mark(conn: &mut Connection) -> Result<i64, Failure> {
    Ok(sqlx::query_scalar("SELECT mark FROM map_state").fetch_one(conn).await?)
}

/// A mark greater than every one before.
pub async fn next_mark(conn: &mut Connection) -> Result<i64, Failure> {
    sqlx::query("UPDATE map_state SET mark = mark + 1").execute(&mut *conn).await?;
    mark(conn).await
}

/// Lets what the snapshot did not confirm be withdrawn.
pub async fn enqueue(
    conn: &mut Connection,
    mark: i64,
    holder: &Holder,
    slots: &[Slot],
) -> Result<(), Failure> {
    let mut bits = vec![0u8; usize::from(SLOT_COUNT).div_ceil(8)];
    for slot in slots.iter().filter(|slot| slot.0 < SLOT_COUNT) {
        bits[usize::from(slot.0 / 8)] |= 1 << (slot.0 % 8);
    }
    sqlx::query("INSERT INTO sweeps (mark, site, slots, after) VALUES ($1, $2, $3, '')")
        .bind(mark)
        .bind(holder.name.as_str())
        .bind(bits)
        .execute(conn)
        .await?;
    Ok(())
}

/// Sweeps whenever a snapshot has ended, for ever.
pub async fn work(app: App) {
    loop {
        match step(&app).await {
            Ok(true) => {}
            Ok(false) => app.sweep_due.notified().await,
            Err(failure) => {
                tracing::warn!(
                    error = chain(&failure),
                    "what a snapshot did not confirm is not withdrawn yet"
                );
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

/// One page; false if there is nothing to sweep.
async fn step(app: &App) -> Result<bool, Failure> {
    let mut conn = app.db.read().await?;
    let next: Option<(i64, String, Vec<u8>, String)> =
        sqlx::query_as("SELECT mark, site, slots, after FROM sweeps ORDER BY mark LIMIT 1")
            .fetch_optional(&mut *conn)
            .await?;
    let Some((mark, site, slots, after)) = next else { return Ok(false) };
    let unconfirmed: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM holders WHERE name > $1 AND kind = 'site' AND holder = $2 AND mark < $3
         ORDER BY name LIMIT $4",
    )
    .bind(&after)
    .bind(&site)
    .bind(mark)
    .bind(PAGE)
    .fetch_all(&mut *conn)
    .await?;
    drop(conn);
    let names = unconfirmed.iter().map(|name| name.parse()).collect::<Result<Vec<ContentName>, _>>()?;
    let is_covered = |name: &&ContentName| {
        let slot = Slot::of_name(name).0;
        slots.get(usize::from(slot / 8)).is_some_and(|bits| bits & (1 << (slot % 8)) != 0)
    };
    let covered: BTreeSet<&ContentName> = names.iter().filter(is_covered).collect();
    let mut tx = app.db.write().await?;
    let effect = withdraw(&mut tx, &covered, &Holder::site(&site), mark).await?;
    match unconfirmed.last() {
        Some(last) => {
            sqlx::query("UPDATE sweeps SET after = $1 WHERE mark = $2")
                .bind(last)
                .bind(mark)
                .execute(&mut *tx)
                .await?
        }
        None => sqlx::query("DELETE FROM sweeps WHERE mark = $1").bind(mark).execute(&mut *tx).await?,
    };
    tx.commit().await?;
    app.publish_effect(effect);
    if !covered.is_empty() {
        tracing::info!(site, withdrawn = -effect.holders, "a snapshot did not confirm what search knew");
    }
    Ok(true)
}

async fn withdraw(
    conn: &mut Connection,
    names: &BTreeSet<&ContentName>,
    holder: &Holder,
    mark: i64,
) -> Result<Effect, Failure> {
    let holders = BTreeSet::from([holder.clone()]);
    let mut entries = Entries::read(conn, names, &holders, &BTreeSet::new()).await?;
    for name in names {
        entries.of(name).unconfirmed(holder, mark);
    }
    entries.write(conn).await
}
