//! The old owner's side of moves: what became of the slots that were handed out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::api::node::ReleaseSlotsRequest;
use common::api::search::FenceRequest;
use common::backoff::Backoff;
use common::cluster::MapEpoch;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::NodeId;
use common::placement::Slot;

use super::{delete_rows, learn_map, move_of, note, unavailable};
use crate::catalog::key::Key;
use crate::catalog::rows::{MoveStep, MovingSlot};
use crate::catalog::txn::Txn;
use crate::shard::Shard;
use crate::slots::{self, Slots};

/// How often it is looked for slots that nobody told of.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A move that takes longer may have lost search: it is looked whether that answers, so often and for so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Settles, for ever, what became of the slots that were handed out.
pub async fn settle(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut views = shard.node.maps.watch();
    loop {
        views.borrow_and_update();
        match settle_once(&shard).await {
            Ok(wait) => {
                backoff.reset();
                shard.slots.set_hindrance(None);
                match wait {
                    Some(wait) => drop(tokio::time::timeout(wait, views.changed()).await),
                    // Who froze one may have gone away before it could say so.
                    None => {
                        drop(tokio::time::timeout(LOOK_INTERVAL, shard.signals.slot_frozen.notified()).await)
                    }
                }
            }
            Err(error) => {
                tracing::debug!(shard = %shard.id, error = chain(&error), "handed out slots are not settled yet");
                shard.slots.set_hindrance(Some(error.message));
                let _either = tokio::time::timeout(backoff.next_delay(), views.changed()).await;
            }
        }
    }
}

/// A slot and the fence that it was handed out with.
type Handed = (Slot, u64);

/// Slots that were handed out together: to whom and with which fence.
type Together = BTreeMap<(NodeId, u64), Vec<Slot>>;

/// Deletes the rows of slots that went; takes back those whose time is over, or of which search does not tell. Answers
/// how long to wait for the rest; `None` when there is none.
async fn settle_once(shard: &Shard) -> ApiResult<Option<Duration>> {
    let (mut young, mut old, mut back, mut gone) =
        (None::<Duration>, Vec::new(), Vec::new(), Together::new());
    let now = shard.node.clock.now();
    for (slot, moving) in shard.catalog.read(slots::moving)? {
        let (is_ours, age) = (shard.slots.owns(slot), now.since(moving.since));
        match moving.step {
            // Not handed out but to be had: see `promise`.
            MoveStep::Promised => {}
            MoveStep::HandedOut if is_ours && age < PATIENCE => {
                young = Some(young.map_or(age, |young| young.max(age)));
            }
            MoveStep::HandedOut if is_ours => old.push((slot, moving)),
            MoveStep::TakenBack if is_ours => back.push((slot, moving.fence)),
            MoveStep::TakenBack if is_owner(shard, &moving.other, slot) => {
                gone.entry((moving.other, moving.fence)).or_default().push(slot);
            }
            MoveStep::HandedOut | MoveStep::TakenBack => let_go(shard, slot, moving.fence).await?,
        }
    }
    let waits = !(old.is_empty() && back.is_empty() && gone.is_empty());
    if !old.is_empty() || !back.is_empty() {
        if search_answers(shard).await {
            let is_over = |moving: &MovingSlot| now.since(moving.since) >= shard.node.limits.slot_move;
            back.extend(old.iter().filter(|(_, m)| is_over(m)).map(|(slot, m)| (*slot, m.fence)));
            void(shard, back).await?;
        } else {
            take_back(shard, old).await?;
        }
    }
    for ((other, fence), slots) in gone {
        let_go_if_had(shard, &other, fence, slots).await?;
    }
    Ok(young.map(|age| PATIENCE.saturating_sub(age)).or(waits.then_some(PATIENCE)))
}

fn is_owner(shard: &Shard, other: &NodeId, slot: Slot) -> bool {
    shard.node.maps.with(|view| {
        let owner = view.site().and_then(|site| site.slot_owner(slot));
        owner.is_some_and(|owner| &owner.id == other)
    })
}

/// Whether search is there; if so its map is taken.
async fn search_answers(shard: &Shard) -> bool {
    let map = shard.node.search.map(MapEpoch(0), Duration::ZERO);
    match tokio::time::timeout(PATIENCE, map).await {
        Ok(Ok(map)) => shard.node.adopt(map).await.is_ok(),
        _ => false,
    }
}

/// Voids the fences that were handed out, so that the slots cannot go any more, then lets changes in.
async fn void(shard: &Shard, slots: Vec<Handed>) -> ApiResult<()> {
    if slots.is_empty() {
        return Ok(());
    }
    let question = FenceRequest {
        site: shard.node.site.clone(),
        owner: shard.id.clone(),
        slots: slots.iter().map(|(slot, _)| *slot).collect(),
    };
    match shard.node.search.fence_slots(&question).await {
        Ok(_) => {
            tracing::warn!(shard = %shard.id, slots = slots.len(), "handed out slots were not taken over in time; they stay");
            end_moves(shard, slots).await
        }
        Err(error) => {
            if error.code() == Some(ErrorCode::Conflict) {
                // Some went after all; the newest map says which.
                let map = shard.node.search.map(MapEpoch(0), Duration::ZERO).await;
                shard.node.adopt(map.map_err(|error| unavailable(&error))?).await?;
            }
            Err(unavailable(&error))
        }
    }
}

/// Without search: has those who were to have the slots promise that they do not serve them, then lets changes in.
async fn take_back(shard: &Shard, slots: Vec<(Slot, MovingSlot)>) -> ApiResult<()> {
    let mut together = Together::new();
    for (slot, moving) in slots {
        together.entry((moving.other, moving.fence)).or_default().push(slot);
    }
    let mut result = Ok(());
    for ((other, fence), slots) in together {
        let wanted = slots.len();
        let promised = ask_back(shard, &other, fence, slots).await.map_err(|error| {
            let message = format!("search does not answer, nor does {other}, to which the slot goes");
            ApiError::new(ErrorCode::SearchUnavailable, message).with_cause(&error)
        });
        match promised {
            Ok(promised) => {
                tracing::warn!(shard = %shard.id, to = %other, wanted, slots = promised.len(), "search does not answer; handed out slots are taken back");
                let_changes_in(shard, promised, fence).await?;
            }
            Err(error) => result = Err(error),
        }
    }
    result
}

/// The slots that `other` promises not to serve. If it does not of all, its map is taken, which says who has the rest.
async fn ask_back(shard: &Shard, other: &NodeId, fence: u64, slots: Vec<Slot>) -> ApiResult<Vec<Slot>> {
    let peer = shard.node.shard_peer(other)?;
    let request = ReleaseSlotsRequest { from: shard.id.clone(), to: other.clone(), slots, fence };
    let answer = peer.release_slots(&request).await;
    let is_of_another_map = match &answer {
        Ok(answer) => answer.promised.len() < request.slots.len(),
        Err(error) => error.code() == Some(ErrorCode::WrongNode),
    };
    if is_of_another_map {
        learn_map(&shard.node, &peer).await?;
    }
    let answer = answer.map_err(|error| error.to_api(ErrorCode::NodeUnavailable, "it does not answer"))?;
    Ok(answer.promised)
}

/// Takes slots back, unless a map has come meanwhile that has them elsewhere.
async fn let_changes_in(shard: &Shard, slots: Vec<Slot>, fence: u64) -> ApiResult<()> {
    let take = move |ours: &Slots, txn: &mut Txn<'_>, slots: &[Slot]| {
        for slot in slots.iter().filter(|slot| ours.owns(**slot)) {
            if let Some(moving) = move_of(txn, *slot, fence)? {
                ours.note(txn, *slot, &MovingSlot { step: MoveStep::TakenBack, ..moving });
            }
        }
        Ok(())
    };
    note(shard, slots, take).await
}

/// Slots that were taken back and went all the same: their rows may go as soon as the new owner has what became of them.
async fn let_go_if_had(shard: &Shard, other: &NodeId, fence: u64, slots: Vec<Slot>) -> ApiResult<()> {
    let still_wanted = ask_back(shard, other, fence, slots.clone()).await?;
    for slot in slots.into_iter().filter(|slot| !still_wanted.contains(slot)) {
        let_go(shard, slot, fence).await?;
    }
    Ok(())
}

/// Deletes the rows of a slot that went, unless it came back meanwhile.
async fn let_go(shard: &Shard, slot: Slot, fence: u64) -> ApiResult<()> {
    delete_rows(shard, slot, move |txn| Ok(move_of(txn, slot, fence)?.is_some())).await?;
    end_moves(shard, vec![(slot, fence)]).await
}

/// The moves are over; except of slots that were handed out anew meanwhile.
async fn end_moves(shard: &Shard, handed: Vec<Handed>) -> ApiResult<()> {
    let slots = handed.iter().map(|(slot, _)| *slot).collect();
    let end = move |_: &Slots, txn: &mut Txn<'_>, _: &[Slot]| {
        for (slot, fence) in handed {
            if move_of(txn, slot, fence)?.is_some() {
                txn.delete(Key::MovingSlot(slot));
            }
        }
        Ok(())
    };
    note(shard, slots, end).await
}
