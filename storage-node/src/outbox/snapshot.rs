//! Snapshots for search: all that the shard holds, announced anew between a begin and an end, among what else happens.
//!
//! Asked for when search and the node do not remember the same announcements, and by the operator. How far it is is a row, so
//! that whoever serves the shard goes on with it.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::Duration;

use common::api::node::{Holding, HoldingState};
use common::api::search::Announcement;
use common::error::{ApiResult, chain};
use common::placement::{SLOT_COUNT, Slot};

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{Row, Snapshot};
use crate::catalog::txn::{RawRows, Rows, Txn};
use crate::holdings::hold_announcement;
use crate::outbox::announcements;
use crate::shard::Shard;
use crate::slots::Slots;

/// Holdings that are looked at in one commit.
const PIECE_LEN: usize = 256;
/// With more announcements waiting than this, the snapshot waits too.
const WAITING_MAX: u64 = 2048;
/// How often it is looked whether it may go on, or was asked for by somebody who went away.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Begins a snapshot, or begins again with one that is under way.
pub fn ask(txn: &mut Txn<'_>) {
    txn.put(Key::Snapshot, &Snapshot::default());
}

/// Begins again with a snapshot if one is under way.
pub fn restart(txn: &mut Txn<'_>) -> ApiResult<()> {
    if is_under_way(txn)? {
        ask(txn);
    }
    Ok(())
}

pub fn is_under_way(rows: &(impl Rows + ?Sized)) -> ApiResult<bool> {
    rows.has(Key::Snapshot)
}

/// Sends snapshots when they are asked for, for ever.
pub async fn send(shard: Arc<Shard>) {
    loop {
        let mut announced = shard.signals.announced.subscribe();
        announced.mark_unchanged();
        match step(&shard).await {
            Ok(Step::Announced) => shard.signals.announcement_queued.notify_one(),
            Ok(Step::Waits) => {
                let _either = tokio::time::timeout(LOOK_INTERVAL, announced.changed()).await;
            }
            Ok(Step::Idle) => {
                let _either =
                    tokio::time::timeout(LOOK_INTERVAL, shard.signals.snapshot_asked.notified()).await;
            }
            Err(error) => {
                tracing::warn!(shard = %shard.id, error = chain(&error), "what is held cannot be announced anew");
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

enum Step {
    Announced,
    /// Until search has taken what is queued.
    Waits,
    Idle,
}

async fn step(shard: &Shard) -> ApiResult<Step> {
    let (under_way, waiting) =
        shard.catalog.read(|rows| Ok((is_under_way(rows)?, announcements::count_waiting(rows)?)))?;
    if !under_way {
        return Ok(Step::Idle);
    }
    if waiting > WAITING_MAX {
        return Ok(Step::Waits);
    }
    let slots = shard.slots.clone();
    let ended = shard.catalog.commit(move |txn| advance(txn, &slots)).await?;
    if ended {
        tracing::info!(shard = %shard.id, "all that is held was announced anew");
    }
    Ok(Step::Announced)
}

/// Announces the next holdings. Answers whether those were the last.
fn advance(txn: &mut Txn<'_>, slots: &Slots) -> ApiResult<bool> {
    let Some(mut snapshot) = txn.get::<Snapshot>(Key::Snapshot)? else { return Ok(false) };
    // What moves is for its next owner to tell.
    let is_ours = |slot: &Slot| slots.owns(*slot) && !slots.is_frozen(*slot);
    let covered: BTreeSet<Slot> = match snapshot.slots.take() {
        Some(covered) => covered.into_iter().filter(is_ours).collect(),
        None => {
            announcements::enqueue(txn, &Announcement::SnapshotBegin)?;
            (0..SLOT_COUNT).map(Slot).filter(is_ours).collect()
        }
    };
    let (mut held, mut seen, mut is_end) = (Vec::new(), 0, true);
    let mut after = snapshot.after.clone();
    let prefix = key::all(Tag::Holding);
    let from = if snapshot.after.is_empty() { &prefix } else { &snapshot.after };
    txn.scan_raw(&prefix, Bound::Excluded(from), &mut |key, value| {
        if seen == PIECE_LEN {
            is_end = false;
            return Ok(ControlFlow::Break(()));
        }
        seen += 1;
        after = key.to_vec();
        let holding = Holding::decode(value)?;
        if holding.state == HoldingState::Complete && covered.contains(&Slot::of_name(&holding.name)) {
            held.push(hold_announcement(&holding));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for announcement in &held {
        announcements::enqueue(txn, announcement)?;
    }
    let slots: Vec<Slot> = covered.into_iter().collect();
    if is_end {
        announcements::enqueue(txn, &Announcement::SnapshotEnd { slots })?;
        txn.delete(Key::Snapshot);
    } else {
        txn.put(Key::Snapshot, &Snapshot { slots: Some(slots), after });
    }
    Ok(is_end)
}
