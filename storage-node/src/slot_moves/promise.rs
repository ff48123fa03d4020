//! The new owner's side of a move that search did not see through: it promises not to serve slots with the rows that it
//! got, and fetches them anew should it turn out to be their owner. And what the old owner answers then.

use common::api::node::{ExportAnewAnswer, ExportAnewRequest, ReleaseSlotsAnswer, ReleaseSlotsRequest};
use common::cluster::NodeState;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::NodeId;
use common::placement::Slot;

use super::{
    BATCH_LEN, check_rows, fitting, import, learn_map, move_of, no_answer, note, read_out, superseded,
};
use crate::catalog::key::Key;
use crate::catalog::rows::{MoveStep, MovingSlot};
use crate::catalog::txn::{Rows, Txn};
use crate::shard::Shard;
use crate::slots::{self, Slots};

/// Promises not to serve slots, unless the map says already that the shard which asks no longer has them.
pub async fn promise(shard: &Shard, request: ReleaseSlotsRequest) -> ApiResult<ReleaseSlotsAnswer> {
    let ReleaseSlotsRequest { from, slots, fence, .. } = request;
    let promise = MovingSlot { other: from, fence, since: shard.node.clock.now(), step: MoveStep::Promised };
    let maps = shard.node.maps.clone();
    let give = move |ours: &Slots, txn: &mut Txn<'_>, slots: &[Slot]| {
        let mut promised = Vec::new();
        for slot in slots {
            let before = slots::of(txn, *slot)?;
            let stands = before.is_some_and(|b| b.step == MoveStep::Promised && b.fence >= fence);
            let is_askers =
                || maps.with(|view| view.site()?.slot_owner(*slot).map(|owner| owner.id == promise.other));
            if !stands && is_askers() == Some(true) {
                ours.note(txn, *slot, &promise);
            } else if !stands {
                continue;
            }
            promised.push(*slot);
        }
        Ok(promised)
    };
    Ok(ReleaseSlotsAnswer { promised: note(shard, slots, give).await? })
}

/// Fetches rows of slots that this shard has under its map and promised not to serve. Answers of how many slots it is
/// settled that way; 0 if there are no such slots.
pub(super) async fn fetch_next(shard: &Shard) -> ApiResult<usize> {
    let Some((from, fence, slots)) = shard.catalog.read(|rows| next_promised(rows, &shard.slots))? else {
        return Ok(0);
    };
    if is_lost(shard, &from) {
        tracing::warn!(shard = %shard.id, %from, slots = slots.len(), "the shard that had these slots is lost; what it handed out is what is left");
        return keep_promise(shard, slots, fence).await;
    }
    let request = ExportAnewRequest { from, to: shard.id.clone(), slots, fence };
    let export = shard.node.shard_peer(&request.from)?.export_slots_anew(&request).await;
    let ExportAnewAnswer { unchanged, slots, changes_after, rows } =
        export.map_err(|error| no_answer(&error))?;
    let told: Vec<Slot> = unchanged.iter().chain(&slots).copied().collect();
    check_rows(&request.slots, &told, &rows)?;
    let coming = slots.clone();
    let still = move |txn: &Txn<'_>| coming.iter().try_for_each(|slot| check_promised(txn, *slot, fence));
    import(shard, &slots, rows, changes_after, still).await?;
    keep_promise(shard, told, fence).await
}

/// Promised slots that the map gives to this shard: some that were handed out together.
fn next_promised(rows: &impl Rows, ours: &Slots) -> ApiResult<Option<(NodeId, u64, Vec<Slot>)>> {
    let mut due = slots::moving(rows)?;
    due.retain(|(slot, moving)| moving.step == MoveStep::Promised && ours.owns(*slot));
    let Some((_, first)) = due.first().cloned() else { return Ok(None) };
    let together = due.iter().filter(|(_, moving)| moving.fence == first.fence);
    let slots = together.map(|(slot, _)| *slot).take(BATCH_LEN).collect();
    Ok(Some((first.other, first.fence, slots)))
}

/// Nobody has the rows of the shard any more.
fn is_lost(shard: &Shard, from: &NodeId) -> bool {
    shard.node.maps.with(|view| {
        let primary = view.site().and_then(|site| site.shard_primary(from));
        primary.is_none_or(|node| node.state == NodeState::Removed && !node.alive)
    })
}

/// The rows are here as they should be: from now on the slots are served.
async fn keep_promise(shard: &Shard, slots: Vec<Slot>, fence: u64) -> ApiResult<usize> {
    let keep = move |_: &Slots, txn: &mut Txn<'_>, slots: &[Slot]| {
        for slot in slots {
            check_promised(txn, *slot, fence)?;
            txn.delete(Key::MovingSlot(*slot));
        }
        Ok(slots.len())
    };
    note(shard, slots, keep).await
}

fn check_promised(txn: &Txn<'_>, slot: Slot, fence: u64) -> ApiResult<()> {
    match move_of(txn, slot, fence)? {
        Some(moving) if moving.step == MoveStep::Promised => Ok(()),
        _ => Err(superseded(slot)),
    }
}

/// Old owner's side: the rows of slots that were taken back, and went all the same.
pub async fn export_anew(shard: &Shard, request: ExportAnewRequest) -> ApiResult<ExportAnewAnswer> {
    let ExportAnewRequest { to, slots, fence, .. } = request;
    if slots.iter().any(|slot| shard.slots.owns(*slot)) {
        // Who asks has a newer map.
        learn_map(&shard.node, &shard.node.shard_peer(&to)?).await?;
    }
    // In a commit: what came before it is read below, and nothing comes after it.
    let ours = shard.slots.clone();
    let sort = move |txn: &mut Txn<'_>| {
        let (mut back, mut unchanged) = (Vec::new(), Vec::new());
        for slot in slots {
            if ours.owns(slot) {
                let message = format!("slot {} is still owned here", slot.0);
                return Err(ApiError::new(ErrorCode::WrongNode, message));
            }
            match move_of(txn, slot, fence)? {
                Some(moving) if moving.step == MoveStep::TakenBack => back.push(slot),
                _ => unchanged.push(slot),
            }
        }
        Ok((back, unchanged))
    };
    let (back, unchanged) = shard.catalog.commit(sort).await?;
    let slots = shard.catalog.read(|rows| fitting(rows, back))?;
    let (rows, changes_after) = read_out(shard, &slots)?;
    Ok(ExportAnewAnswer { unchanged, slots, changes_after, rows })
}
