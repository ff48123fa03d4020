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
//!
//! Should search die in between, nobody knows whether the move took effect. The slots are served all the same:
//!
//! ```text
//! new owner                         old owner
//!   promise (durable) ◀──────────── release(slots, fence)
//!   not to serve them ────────────▶ takes them back (durable), takes changes
//!
//! search is back, and the map has the old owner: it fences anew, and all is as before.
//! Or the map has the new owner:
//!   export anew(slots, fence) ────▶ takes no changes any more, by the map
//!   import rows (durable) ◀──────── rows
//!   serves them                     release(slots, fence) again: no promise is left; delete rows
//! ```
//! Two never take changes to one slot: the old owner does while it is the owner in its map and the slot is not handed out,
//! the new one while it is the owner in its map and has not promised otherwise. A promise is given only under a map that
//! has the old owner, and ends with rows that were read when that one had the newer map.
//!
//! | file | owns |
//! |---|---|
//! | `slot_moves.rs` | the rows' way: handing out, taking over |
//! | `settle.rs` | the old owner's side: what became of the slots that were handed out |
//! | `promise.rs` | the new owner's side of a move that search did not see through |

mod promise;
mod settle;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::api::node::{ExportAnswer, ExportRequest, NodeClient};
use common::api::search::{FenceRequest, SlotMove};
use common::backoff::Backoff;
use common::client::CallError;
use common::cluster::NodeEntry;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::NodeId;
use common::placement::{SLOT_COUNT, Slot, preferred_owner};

use crate::catalog::key::{self, Key};
use crate::catalog::rows::{MoveStep, MovingSlot};
use crate::catalog::txn::{Rows, Txn};
use crate::feed;
use crate::node::Node;
use crate::outbox::snapshot;
use crate::shard::Shard;
use crate::slots::{self, RowBytes, Slots};
use crate::view::View;

pub use promise::{export_anew, promise};
pub use settle::settle;

/// Slots that are asked for at once.
const BATCH_LEN: usize = 64;
/// Rows of one export; JSON makes about four times as much of it.
const EXPORT_BYTES: usize = 8 << 20;
/// Rows that are written or deleted in one commit.
const PIECE_LEN: usize = 1000;

fn unavailable(error: &CallError) -> ApiError {
    error.to_api(ErrorCode::SearchUnavailable, "search does not answer, and slots move only with it")
}

/// The other shard's server may have heard what search said last.
async fn learn_map(node: &Node, peer: &NodeClient) -> ApiResult<()> {
    let map = peer.map().await;
    node.adopt(map.map_err(|error| error.to_api(ErrorCode::NodeUnavailable, "it gives no map"))?).await
}

/// As many of the slots as fit one answer, at least one.
fn fitting(rows: &impl Rows, slots: Vec<Slot>) -> ApiResult<Vec<Slot>> {
    let (mut fitting, mut bytes) = (Vec::new(), 0);
    for slot in slots {
        bytes += slots::row_bytes(rows, slot)?;
        if bytes > EXPORT_BYTES && !fitting.is_empty() {
            break;
        }
        fitting.push(slot);
    }
    Ok(fitting)
}

/// The rows of slots that take no changes at this moment, and the last change of search's feed that is in them.
fn read_out(shard: &Shard, slots: &[Slot]) -> ApiResult<(Vec<RowBytes>, u64)> {
    shard.catalog.read(|reader| {
        let mut rows = Vec::new();
        for slot in slots {
            slots::export(reader, *slot, &mut rows)?;
        }
        Ok((rows, feed::cursor(reader)?))
    })
}

/// Owner's side: freezes slots and hands out their rows.
pub async fn export(shard: &Shard, request: ExportRequest) -> ApiResult<ExportAnswer> {
    let slots = shard.catalog.read(|rows| fitting(rows, request.slots))?;
    let question =
        FenceRequest { site: shard.node.site.clone(), owner: shard.id.clone(), slots: slots.clone() };
    let fence = shard.node.search.fence_slots(&question).await.map_err(|error| unavailable(&error))?.fence;
    let since = shard.node.clock.now();
    let moving = MovingSlot { other: request.to, fence, since, step: MoveStep::HandedOut };
    note(shard, slots.clone(), move |ours, txn, slots| ours.freeze(txn, slots, &moving)).await?;
    shard.signals.slot_frozen.notify_one();
    let (rows, changes_after) = read_out(shard, &slots)?;
    Ok(ExportAnswer { fence, slots, changes_after, rows })
}

/// A commit that notes how far moves of slots are, and one that goes by what was noted.
async fn note<T, F>(shard: &Shard, slots: Vec<Slot>, change: F) -> ApiResult<T>
where
    T: Send + 'static,
    F: FnOnce(&Slots, &mut Txn<'_>, &[Slot]) -> ApiResult<T> + Send + 'static,
{
    let (ours, concerned) = (shard.slots.clone(), slots.clone());
    let noted = shard.catalog.commit(move |txn| change(&ours, txn, &concerned)).await;
    let ours = shard.slots.clone();
    let recalled = shard.catalog.commit(move |txn| ours.recall(txn, &slots)).await;
    noted.and_then(|noted| recalled.map(|()| noted))
}

/// New owner's side: takes over, for ever, the slots that the placement gives to this node.
pub async fn take_over(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut views = shard.node.maps.watch();
    loop {
        let view = views.borrow_and_update().clone();
        let taken = match promise::fetch_next(&shard).await {
            Ok(0) => match next_batch(&view, &shard.id) {
                Some((owner, wanted)) => take_batch(&shard, owner, wanted).await,
                None => {
                    // The sender lives as long as the node, so this ends with a new map.
                    let _changed = views.changed().await;
                    continue;
                }
            },
            fetched => fetched,
        };
        match taken {
            Ok(moved) => {
                tracing::info!(shard = %shard.id, slots = moved, "took over slots");
                backoff.reset();
            }
            Err(error) => {
                tracing::debug!(shard = %shard.id, error = chain(&error), "slots are not taken over yet");
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
    let export = shard.node.shard_peer(&owner.id)?.export_slots(&request).await;
    let ExportAnswer { fence, slots, changes_after, rows } = export.map_err(|error| no_answer(&error))?;
    check_rows(&request.slots, &slots, &rows)?;
    begin_import(shard, slots.clone(), fence).await?;
    let coming = slots.clone();
    let still = move |txn: &Txn<'_>| coming.iter().try_for_each(|slot| check_not_released(txn, *slot));
    import(shard, &slots, rows, changes_after, still).await?;
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

fn no_answer(error: &CallError) -> ApiError {
    error.to_api(ErrorCode::NodeUnavailable, "the owner of the slots does not answer")
}

/// Whether an export is of slots that were asked for.
fn check_rows(wanted: &[Slot], slots: &[Slot], rows: &[RowBytes]) -> ApiResult<()> {
    let is_outside = |(key, _): &RowBytes| !slots.iter().any(|slot| key::is_in_slot(key, *slot));
    if slots.is_empty() || slots.iter().any(|slot| !wanted.contains(slot)) || rows.iter().any(is_outside) {
        let message = "the owner sent other slots than were asked for";
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    Ok(())
}

/// What this shard itself once handed out, or promised, is superseded by a newer handing out: its old rows must not be
/// tidied away later.
async fn begin_import(shard: &Shard, slots: Vec<Slot>, fence: u64) -> ApiResult<()> {
    let begin = move |ours: &Slots, txn: &mut Txn<'_>, slots: &[Slot]| {
        for slot in slots {
            if ours.owns(*slot) || slots::of(txn, *slot)?.is_some_and(|moving| moving.fence >= fence) {
                return Err(superseded(*slot));
            }
            txn.delete(Key::MovingSlot(*slot));
        }
        Ok(())
    };
    note(shard, slots, begin).await
}

fn check_not_released(txn: &Txn<'_>, slot: Slot) -> ApiResult<()> {
    if slots::of(txn, slot)?.is_some() { Err(superseded(slot)) } else { Ok(()) }
}

fn superseded(slot: Slot) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("the rows of slot {} that come in are out of date", slot.0))
}

/// Replaces the rows of slots that are not served here, durably, as long as `still` says so in each commit.
async fn import(
    shard: &Shard,
    slots: &[Slot],
    rows: Vec<RowBytes>,
    changes_after: u64,
    still: impl Fn(&Txn<'_>) -> ApiResult<()> + Clone + Send + 'static,
) -> ApiResult<()> {
    for slot in slots {
        let still = still.clone();
        delete_rows(shard, *slot, move |txn| still(txn).map(|()| true)).await?;
    }
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let piece: Vec<RowBytes> = rows.by_ref().take(PIECE_LEN).collect();
        let still = still.clone();
        shard
            .catalog
            .commit(move |txn| {
                still(txn)?;
                piece.iter().for_each(|(key, value)| txn.put_raw(key.to_vec(), value.to_vec()));
                Ok(())
            })
            .await?;
    }
    // Only now that all rows are here: the feed would otherwise pass by those that come after it.
    shard
        .catalog
        .commit(move |txn| {
            still(txn)?;
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

/// The slot's move with that fence, if it is under way.
fn move_of(rows: &impl Rows, slot: Slot, fence: u64) -> ApiResult<Option<MovingSlot>> {
    Ok(slots::of(rows, slot)?.filter(|moving| moving.fence == fence))
}
