//! Closes deliveries that nobody ends any more, and numbers those whose outcome waited for the record epoch.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use common::error::{ApiResult, chain};
use common::id::{ClientId, DeliveryId};
use common::placement::Slot;
use common::time::UnixMillis;

use crate::catalog::key::{self, Tag};
use crate::catalog::rows::{OpenDelivery, Row};
use crate::catalog::txn::Rows;
use crate::deliveries::{self, Deadlines};
use crate::shard::Shard;
use crate::slots::Slots;
use crate::view::View;

/// Deliveries that are closed in one commit.
const PIECE_LEN: usize = 256;

/// Looks again and again for deliveries whose deadline has passed.
pub async fn close(shard: Arc<Shard>, started: UnixMillis) {
    let deadlines = Deadlines {
        join_window: shard.node.limits.delivery_join_window,
        open_max: shard.node.limits.delivery_open_max,
        started,
    };
    let shortest = deadlines.join_window.min(deadlines.open_max);
    let mut ticks =
        tokio::time::interval((shortest / 10).clamp(Duration::from_millis(50), Duration::from_secs(5)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = close_due(&shard, &deadlines).await {
            tracing::warn!(shard = %shard.id, error = chain(&error), "silent deliveries are not closed");
        }
    }
}

async fn close_due(shard: &Arc<Shard>, deadlines: &Deadlines) -> ApiResult<()> {
    let now = shard.node.clock.now();
    let (reader, limits) = (shard.clone(), *deadlines);
    let is_numbered = shard.signals.head.borrow().epoch > 0;
    let listed = tokio::task::spawn_blocking(move || due(&reader, &limits, now, is_numbered)).await;
    let due = listed.map_err(|error| common::error::ApiError::internal(&error))??;
    for piece in due.chunks(PIECE_LEN) {
        let (piece, recorder, limits) = (piece.to_vec(), shard.recorder(), *deadlines);
        let joinable = Joinable::of(shard);
        let ends = shard
            .catalog
            .commit(move |txn| {
                piece
                    .iter()
                    .map(|id| deliveries::expire(txn, &recorder, id, &limits, |c| joinable.has(c), now))
                    .collect::<ApiResult<Vec<_>>>()
            })
            .await?;
        shard.report_ends(&ends);
    }
    Ok(())
}

/// Whose idle deliveries wait for later ranges: those of clients whose ranges come to the shard, and of all others too
/// as long as the shard's node stays. One that is to go is not kept by ranges that may never come.
struct Joinable {
    slots: Arc<Slots>,
    stays: bool,
}

impl Joinable {
    fn of(shard: &Shard) -> Self {
        let stays = |view: &View| view.site()?.node(&shard.id).map(|node| node.weight > 0);
        Self { slots: shard.slots.clone(), stays: shard.node.maps.with(stays).unwrap_or(false) }
    }

    fn has(&self, client: &ClientId) -> bool {
        self.stays || self.slots.owns(Slot::of_client(client))
    }
}

/// Open deliveries to be closed now. Those whose outcome waits for an epoch wait on while there is none.
fn due(
    shard: &Shard,
    deadlines: &Deadlines,
    now: UnixMillis,
    is_numbered: bool,
) -> ApiResult<Vec<DeliveryId>> {
    let joinable = Joinable::of(shard);
    shard.catalog.read(|rows| {
        let mut due = Vec::new();
        rows.scan(&key::all(Tag::OpenDelivery), &mut |_, value| {
            let open = OpenDelivery::decode(value)?;
            let may_be_joined = joinable.has(&open.client);
            if deadlines.has_passed(&open, may_be_joined, now) && (is_numbered || open.outcome.is_none()) {
                due.push(open.delivery);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(due)
    })
}
