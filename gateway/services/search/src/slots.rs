//! Moving slots between the nodes of a site: fence, then compare and set.
//!
//! The present owner fences the slots before it hands out their rows; the new owner moves them with that
//! fence. Any other fence taken in between makes the move fail, so rows exported earlier can never win over
//! later ones.

use std::collections::{BTreeSet, HashSet};

use common::api::search::{FenceRequest, SlotMove};
use common::cluster::SiteEntry;
use common::error::ErrorCode;
use common::id::{NodeId, SiteId};
use common::placement::{SLOT_COUNT, Slot};

use crate::announcements;
use crate::db::Connection;
use crate::error::{Failure, integer, natural};
use crate::servers::check_site;
use crate::statements::Table;

/// Gives the slots a new fence, if `owner` owns them all.
pub async fn fence(conn: &mut Connection, request: &FenceRequest) -> Result<u64, Failure> {
    let slots = checked(&request.slots)?;
    check_site(&request.owner, &request.site)?;
    for slot in &slots {
        let (owner, _) = slot_row(conn, &request.site, *slot).await?;
        if owner != request.owner.name() {
            return Err(lost(*slot, &request.site, &owner, &request.owner));
        }
    }
    let fence = next_fence(conn).await?;
    for slot in slots {
        sqlx::query("UPDATE slots SET fence = $1 WHERE site = $2 AND slot = $3")
            .bind(fence)
            .bind(request.site.as_str())
            .bind(slot)
            .execute(&mut *conn)
            .await?;
    }
    Ok(natural(fence))
}

/// How many slots a node's shard has.
pub async fn count(conn: &mut Connection, node: &NodeId) -> Result<u64, Failure> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM slots WHERE site = $1 AND owner = $2")
        .bind(node.site())
        .bind(node.name())
        .fetch_one(conn)
        .await?;
    Ok(natural(count))
}

/// Whether a node's shard has no slot but these.
pub async fn are_all_in(conn: &mut Connection, node: &NodeId, slots: &[Slot]) -> Result<bool, Failure> {
    let owned: Vec<i64> = sqlx::query_scalar("SELECT slot FROM slots WHERE site = $1 AND owner = $2")
        .bind(node.site())
        .bind(node.name())
        .fetch_all(conn)
        .await?;
    let slots: HashSet<i64> = slots.iter().map(|slot| i64::from(slot.0)).collect();
    Ok(owned.iter().all(|slot| slots.contains(slot)))
}

/// Gives slots whose rows are lost to other nodes, with a new fence, so that nothing exported earlier comes
/// back.
pub async fn give_away(
    conn: &mut Connection,
    site: &SiteId,
    slots: &[(Slot, NodeId)],
) -> Result<(), Failure> {
    let fence = next_fence(conn).await?;
    for (slot, owner) in slots {
        sqlx::query("UPDATE slots SET owner = $1, fence = $2 WHERE site = $3 AND slot = $4")
            .bind(owner.name())
            .bind(fence)
            .bind(site.as_str())
            .bind(i64::from(slot.0))
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// Writes the owners of a site's slots, all with this fence.
pub async fn put_all(conn: &mut Connection, site: &SiteEntry, fence: i64) -> Result<(), Failure> {
    const SLOTS: Table<'_> = Table {
        insert: "INSERT INTO slots (site, slot, owner, fence)",
        columns: 4,
        conflict: "ON CONFLICT DO NOTHING",
    };
    let owner = |slot| site.slot_owner(Slot(slot)).map(|node| (slot, node.id.name()));
    let rows: Vec<(u16, &str)> = (0..SLOT_COUNT).filter_map(owner).collect();
    SLOTS
        .put(conn, &rows, |query, (slot, owner)| {
            let site = site.id.to_string();
            Ok(query.bind(site).bind(i64::from(*slot)).bind((*owner).to_owned()).bind(fence))
        })
        .await
}

/// The next fence will be greater than this one.
pub async fn raise_fence(conn: &mut Connection, fence: i64) -> Result<(), Failure> {
    sqlx::query("UPDATE map_state SET fence = $1 WHERE fence < $1").bind(fence).execute(conn).await?;
    Ok(())
}

async fn next_fence(conn: &mut Connection) -> Result<i64, Failure> {
    sqlx::query("UPDATE map_state SET fence = fence + 1").execute(&mut *conn).await?;
    Ok(sqlx::query_scalar("SELECT fence FROM map_state").fetch_one(conn).await?)
}

/// Moves the slots. False if they were moved just so before: the answer to a repeated request.
pub async fn move_slots(conn: &mut Connection, request: &SlotMove) -> Result<bool, Failure> {
    let slots = checked(&request.slots)?;
    check_site(&request.from, &request.site)?;
    check_site(&request.to, &request.site)?;
    check_exists(conn, &request.to).await?;
    let fence = integer(request.fence, "fence")?;
    let mut moved_before = 0;
    for slot in &slots {
        let (owner, newest) = slot_row(conn, &request.site, *slot).await?;
        if newest != fence {
            let message =
                format!("slot {slot} of site {} has another fence by now; export it again", request.site);
            return Err(Failure::refused(ErrorCode::Conflict, message));
        }
        if owner == request.to.name() {
            moved_before += 1;
        } else if owner != request.from.name() {
            return Err(lost(*slot, &request.site, &owner, &request.from));
        }
    }
    if moved_before == slots.len() {
        return Ok(false);
    }
    for slot in slots {
        sqlx::query("UPDATE slots SET owner = $1 WHERE site = $2 AND slot = $3")
            .bind(request.to.name())
            .bind(request.site.as_str())
            .bind(slot)
            .execute(&mut *conn)
            .await?;
    }
    announcements::ask_after_move(conn, &request.from, &request.to).await?;
    Ok(true)
}

fn checked(slots: &[Slot]) -> Result<BTreeSet<i64>, Failure> {
    if slots.is_empty() || slots.iter().any(|s| s.0 >= SLOT_COUNT) {
        let message = format!("`slots` must name at least one slot, each below {SLOT_COUNT}");
        return Err(Failure::refused(ErrorCode::InvalidRequest, message));
    }
    Ok(slots.iter().map(|s| i64::from(s.0)).collect())
}

async fn check_exists(conn: &mut Connection, node: &NodeId) -> Result<(), Failure> {
    let count: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM servers
         WHERE role = 'storage-node' AND site = $1 AND name = $2 AND state <> 'removed'",
    )
    .bind(node.site())
    .bind(node.name())
    .fetch_one(conn)
    .await?;
    if count > 0 {
        return Ok(());
    }
    Err(Failure::refused(ErrorCode::Conflict, format!("node {node} has not registered, or was removed")))
}

async fn slot_row(conn: &mut Connection, site: &SiteId, slot: i64) -> Result<(String, i64), Failure> {
    let row: Option<(String, i64)> =
        sqlx::query_as("SELECT owner, fence FROM slots WHERE site = $1 AND slot = $2")
            .bind(site.as_str())
            .bind(slot)
            .fetch_optional(conn)
            .await?;
    row.ok_or_else(|| {
        Failure::refused(ErrorCode::Conflict, format!("site {site} has no slots: no node registered"))
    })
}

fn lost(slot: i64, site: &SiteId, owner: &str, claimed: &NodeId) -> Failure {
    let message = format!("slot {slot} belongs to {site}.{owner}, not to {claimed}");
    Failure::refused(ErrorCode::Conflict, message)
}
