//! Moves slots between shards: that of a node which joined takes over its share, an owner that handed slots out gives
//! them up or takes them back.
//!
//! ```text
//! new owner                         old owner                       search
//!   export(slots) ────────────────▶ fence ─────────────────────────▶ proves ownership, newest fence
//!                                   freeze (durable), read rows
//!   import rows (durable) ◀──────── rows, fence
//!   move(slots, fence) ────────────────────────────────────────────▶ compare-and-set: new map
//!                                   map shows new owner: delete rows
//!                                   or time is over: fence anew (the old one is void), thaw
//! ```
//! Every step may be repeated. Until the map changes the old owner is the owner; it only takes no changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::api::node::{ExportAnswer, ExportRequest};
use common::api::search::{FenceRequest, SlotMove};
use common::backoff::Backoff;
use common::cluster::NodeEntry;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::NodeId;
use common::placement::{SLOT_COUNT, Slot, preferred_owner};

use crate::catalog::key::{self, Key};
use crate::catalog::rows::FrozenSlot;
use crate::catalog::txn::{Rows, Txn};
use crate::feed;
use crate::outbox::snapshot;
use crate::shard::Shard;
use crate::slots::{self, RowBytes};
use crate::view::View;

/// How often it is looked for frozen slots that nobody told of.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Slots that are asked for at once.
const BATCH_LEN: usize = 64;
/// Rows of one export; JSON makes about four times as much of it.
const EXPORT_BYTES: usize = 8 << 20;
/// Rows that are written or deleted in one commit.
const PIECE_LEN: usize = 1000;

fn unavailable(error: &common::client::CallError) -> ApiError {
    error.to_api(ErrorCode::SearchUnavailable, "search does not answer, and slots move only with it")
}

/// Owner's side: freezes slots and hands out their rows.
pub async fn export(shard: &Shard, request: ExportRequest) -> ApiResult<ExportAnswer> {
    let slots = shard.catalog.read(|rows| {
        let (mut fitting, mut bytes) = (Vec::new(), 0);
        for slot in request.slots {
            bytes += slots::row_bytes(rows, slot)?;
            if bytes > EXPORT_BYTES && !fitting.is_empty() {
                break;
            }
            fitting.push(slot);
        }
        Ok(fitting)
    })?;
    let question =
        FenceRequest { site: shard.node.site.clone(), owner: shard.id.clone(), slots: slots.clone() };
    let fence = shard.node.search.fence_slots(&question).await.map_err(|error| unavailable(&error))?.fence;
    let (ours, moving) = (shard.slots.clone(), slots.clone());
    let frozen = FrozenSlot { to: request.to, fence, since: shard.node.clock.now() };
    shard
        .catalog
        .commit(move |txn| ours.freeze(txn, &moving, &frozen))
        .await
        .inspect_err(|_| shard.slots.unfreeze(&slots))?;
    shard.signals.slot_frozen.notify_one();
    let (rows, changes_after) = shard.catalog.read(|reader| {
        let mut rows = Vec::new();
        for slot in &slots {
            slots::export(reader, *slot, &mut rows)?;
        }
        Ok((rows, feed::cursor(reader)?))
    })?;
    Ok(ExportAnswer { fence, slots, changes_after, rows })
}

/// New owner's side: takes over, for ever, the slots that the placement gives to this node.
pub async fn take_over(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut views = shard.node.maps.watch();
    loop {
        let view = views.borrow_and_update().clone();
        let Some((owner, wanted)) = next_batch(&view, &shard.id) else {
            // The sender lives as long as the node, so this ends with a new map.
            let _changed = views.changed().await;
            continue;
        };
        match take_batch(&shard, owner, wanted).await {
            Ok(moved) => {
                tracing::info!(shard = %shard.id, from = %owner.id, slots = moved, "took over slots");
                backoff.reset();
            }
            Err(error) => {
                tracing::debug!(shard = %shard.id, from = %owner.id, error = chain(&error), "slots are not taken over yet");
                // A newer map may be all that is missing.
                let _either = tokio::time::timeout(backoff.next_delay(), views.changed()).await;
            }
        }
    }
}

/// Slots of one shard, which is served, that should be this shard's.
fn next_batch<'a>(view: &'a View, shard: &NodeId) -> Option<(&'a NodeEntry, Vec<Slot>)> {
    let site = view.site()?;
    let mut wanted: BTreeMap<&NodeId, (&NodeEntry, Vec<Slot>)> = BTreeMap::new();
    for slot in (0..SLOT_COUNT).map(Slot) {
        let is_served = |owner: &NodeEntry| site.shard_primary(&owner.id).is_some_and(|node| node.alive);
        let Some(owner) = site.slot_owner(slot).filter(|o| &o.id != shard && is_served(o)) else {
            continue;
        };
        if preferred_owner(site, slot).is_some_and(|preferred| &preferred.id == shard) {
            wanted.entry(&owner.id).or_insert_with(|| (owner, Vec::new())).1.push(slot);
        }
    }
    // The owner with the most to give first.
    let (owner, mut slots) = wanted.into_values().max_by_key(|(_, slots)| slots.len())?;
    slots.truncate(BATCH_LEN);
    Some((owner, slots))
}

async fn take_batch(shard: &Shard, owner: &NodeEntry, wanted: Vec<Slot>) -> ApiResult<usize> {
    let request = ExportRequest { from: owner.id.clone(), to: shard.id.clone(), slots: wanted };
    let export = shard.node.shard_peer(&owner.id)?.export_slots(&request).await.map_err(|error| {
        error.to_api(ErrorCode::NodeUnavailable, "the owner of the slots does not answer")
    })?;
    let ExportAnswer { fence, slots, changes_after, rows } = export;
    let outside = |(key, _): &RowBytes| !slots.iter().any(|slot| key::is_in_slot(key, *slot));
    if slots.is_empty() || slots.iter().any(|s| !request.slots.contains(s)) || rows.iter().any(outside) {
        return Err(ApiError::new(
            ErrorCode::InvalidRequest,
            "the owner sent other slots than were asked for",
        ));
    }
    import(shard, &slots, rows, changes_after).await?;
    let step = SlotMove {
        site: shard.node.site.clone(),
        from: owner.id.clone(),
        to: shard.id.clone(),
        slots: slots.clone(),
        fence,
    };
    let map = shard.node.search.move_slots(&step).await.map_err(|error| unavailable(&error))?;
    shard.node.adopt(map).await?;
    Ok(slots.len())
}

/// Replaces the rows of slots that this node does not own yet, durably.
async fn import(shard: &Shard, slots: &[Slot], rows: Vec<RowBytes>, changes_after: u64) -> ApiResult<()> {
    // What this node itself once handed out is superseded: its old rows must not be tidied away later.
    let (ours, thawed) = (shard.slots.clone(), slots.to_vec());
    shard
        .catalog
        .commit(move |txn| {
            thawed.iter().for_each(|slot| txn.delete(Key::FrozenSlot(*slot)));
            ours.unfreeze(&thawed);
            Ok(())
        })
        .await?;
    for slot in slots {
        delete_rows(shard, *slot, |_| Ok(true)).await?;
    }
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let piece: Vec<RowBytes> = rows.by_ref().take(PIECE_LEN).collect();
        shard
            .catalog
            .commit(move |txn| {
                piece.iter().for_each(|(key, value)| txn.put_raw(key.to_vec(), value.to_vec()));
                Ok(())
            })
            .await?;
    }
    // Only now that all rows are here: the feed would otherwise pass by those that come after it.
    shard
        .catalog
        .commit(move |txn| {
            // A snapshot that is under way has passed by some of these rows.
            snapshot::restart(txn)?;
            feed::rewind(txn, changes_after)
        })
        .await?;
    shard.signals.feed_rewound.notify_one();
    Ok(())
}

/// Deletes a slot's rows piece by piece, as long as `still` says so in each commit.
async fn delete_rows(
    shard: &Shard,
    slot: Slot,
    still: impl Fn(&Txn<'_>) -> ApiResult<bool> + Clone + Send + 'static,
) -> ApiResult<()> {
    loop {
        let still = still.clone();
        let deleted = shard
            .catalog
            .commit(move |txn| {
                if !still(txn)? {
                    return Ok(0);
                }
                let keys = slots::some_keys(txn, slot, PIECE_LEN)?;
                let deleted = keys.len();
                keys.into_iter().for_each(|key| txn.delete_raw(key));
                Ok(deleted)
            })
            .await?;
        if deleted < PIECE_LEN {
            return Ok(());
        }
    }
}

/// Owner's side: settles, for ever, what became of the slots that were handed out.
pub async fn settle(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut views = shard.node.maps.watch();
    loop {
        views.borrow_and_update();
        match settle_once(&shard).await {
            Ok(None) => {
                backoff.reset();
                // Who froze one may have gone away before it could say so.
                let _either = tokio::time::timeout(LOOK_INTERVAL, shard.signals.slot_frozen.notified()).await;
            }
            Ok(Some(wait)) => {
                backoff.reset();
                let _either = tokio::time::timeout(wait, views.changed()).await;
            }
            Err(error) => {
                tracing::debug!(shard = %shard.id, error = chain(&error), "handed out slots are not settled yet");
                let _either = tokio::time::timeout(backoff.next_delay(), views.changed()).await;
            }
        }
    }
}

/// Deletes the rows of slots that went, takes back those whose time is over. Answers how long to wait for the
/// rest; `None` when there is none.
async fn settle_once(shard: &Shard) -> ApiResult<Option<Duration>> {
    let (now, mut wait, mut overdue) = (shard.node.clock.now(), None::<Duration>, Vec::new());
    for (slot, frozen) in shard.catalog.read(slots::frozen)? {
        if !shard.slots.owns(slot) {
            delete_rows(shard, slot, move |txn| is_still(txn, slot, frozen.fence)).await?;
            thaw(shard, vec![(slot, frozen.fence)]).await?;
            continue;
        }
        let age = now.since(frozen.since);
        if age >= shard.node.limits.slot_move {
            overdue.push((slot, frozen.fence));
        } else {
            let left = shard.node.limits.slot_move - age;
            wait = Some(wait.map_or(left, |wait| wait.min(left)));
        }
    }
    if !overdue.is_empty() {
        take_back(shard, overdue).await?;
    }
    Ok(wait)
}

/// Voids the fence that was handed out, so that the slots cannot go any more, then thaws them.
async fn take_back(shard: &Shard, slots: Vec<Handed>) -> ApiResult<()> {
    let question = FenceRequest {
        site: shard.node.site.clone(),
        owner: shard.id.clone(),
        slots: slots.iter().map(|(slot, _)| *slot).collect(),
    };
    match shard.node.search.fence_slots(&question).await {
        Ok(_) => {
            tracing::warn!(shard = %shard.id, slots = slots.len(), "handed out slots were not taken over in time; they stay");
            thaw(shard, slots).await
        }
        Err(error) => {
            if error.code() == Some(ErrorCode::Conflict) {
                // Some went after all; the newest map says which.
                let map = shard.node.search.map(common::cluster::MapEpoch(0), Duration::ZERO).await;
                shard.node.adopt(map.map_err(|error| unavailable(&error))?).await?;
            }
            Err(unavailable(&error))
        }
    }
}

/// Lets changes in again, except to slots that were handed out anew meanwhile.
async fn thaw(shard: &Shard, slots: Vec<Handed>) -> ApiResult<()> {
    let ours = shard.slots.clone();
    shard
        .catalog
        .commit(move |txn| {
            for (slot, fence) in slots {
                if is_still(txn, slot, fence)? {
                    txn.delete(Key::FrozenSlot(slot));
                    ours.unfreeze(&[slot]);
                }
            }
            Ok(())
        })
        .await
}

/// A slot and the fence that it was handed out with.
type Handed = (Slot, u64);

fn is_still(txn: &Txn<'_>, slot: Slot, fence: u64) -> ApiResult<bool> {
    Ok(txn.get::<FrozenSlot>(Key::FrozenSlot(slot))?.is_some_and(|frozen| frozen.fence == fence))
}
