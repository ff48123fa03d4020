//! Announcements to search: what the site holds, and no longer holds. An announcement is deleted once search has it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use common::api::search::{AnnounceBatch, Announcement, Announcer};
use common::backoff::Backoff;
use common::error::{ApiResult, chain};
use common::trace;
use tokio::time::Instant;

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{AnnouncementHead, Row};
use crate::catalog::txn::{Rows, Txn};
use crate::outbox::snapshot;
use crate::shard::{Announced, Shard};

/// Most announcements in one batch.
const BATCH_LEN: usize = 512;
/// How often search is asked how far it is while there is nothing to tell it.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is looked for announcements that nobody told of.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

fn head(rows: &(impl Rows + ?Sized)) -> ApiResult<AnnouncementHead> {
    let first = AnnouncementHead { next_seq: 1 };
    Ok(rows.get::<AnnouncementHead>(Key::AnnouncementHead)?.unwrap_or(first))
}

/// Queues an announcement behind all others; answers its number.
pub fn enqueue(txn: &mut Txn<'_>, announcement: &Announcement) -> ApiResult<u64> {
    let seq = head(txn)?.next_seq;
    txn.put(Key::Announcement(seq), announcement);
    txn.put(Key::AnnouncementHead, &AnnouncementHead { next_seq: seq + 1 });
    Ok(seq)
}

/// The oldest announcements that wait, with the number of the first.
fn waiting(rows: &(impl Rows + ?Sized), max: usize) -> ApiResult<Option<(u64, Vec<Announcement>)>> {
    let (mut first, mut items) = (None, Vec::new());
    rows.scan(&key::all(Tag::Announcement), &mut |key, value| {
        if items.len() == max {
            return Ok(ControlFlow::Break(()));
        }
        first = first.or_else(|| key::announcement_seq(key));
        items.push(Announcement::decode(value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(first.map(|first| (first, items)))
}

/// How many announcements search has not taken yet.
pub fn count_waiting(rows: &(impl Rows + ?Sized)) -> ApiResult<u64> {
    let oldest = waiting(rows, 1)?;
    Ok(oldest.map_or(0, |(first, _)| head(rows).map_or(0, |head| head.next_seq - first)))
}

/// The last announcement that search has not taken yet, for who asks again for something that may be among them.
pub fn newest_waiting(rows: &(impl Rows + ?Sized)) -> ApiResult<Option<u64>> {
    Ok(waiting(rows, 1)?.map(|_| head(rows)).transpose()?.map(|head| head.next_seq - 1))
}

/// Numbers what waits from `first` on: a new epoch counts from 1, and a search that lost announcements cannot be
/// given them again.
pub fn renumber(txn: &mut Txn<'_>, first: u64) -> ApiResult<()> {
    let Some((old, items)) = waiting(txn, usize::MAX)? else {
        txn.put(Key::AnnouncementHead, &AnnouncementHead { next_seq: first });
        return Ok(());
    };
    for offset in 0..items.len() as u64 {
        txn.delete(Key::Announcement(old + offset));
    }
    for (seq, item) in (first..).zip(&items) {
        txn.put(Key::Announcement(seq), item);
    }
    txn.put(Key::AnnouncementHead, &AnnouncementHead { next_seq: first + items.len() as u64 });
    Ok(())
}

/// Deletes what search has: everything before `next_seq`.
fn acknowledge(txn: &mut Txn<'_>, first: u64, sent: usize, next_seq: u64) -> ApiResult<()> {
    for seq in first..next_seq.min(first + sent as u64) {
        txn.delete(Key::Announcement(seq));
    }
    Ok(())
}

/// Sends announcements as they come, for ever.
pub async fn send(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut epochs = shard.signals.head.subscribe();
    let mut probe_due = Instant::now();
    loop {
        // The sender lives as long as the node, which this task holds.
        let Ok(epoch) = epochs.wait_for(|head| head.epoch > 0).await.map(|head| head.epoch) else { return };
        let probes = Instant::now() >= probe_due;
        let done = trace::background("announcements", step(&shard, epoch, probes)).await;
        if probes || matches!(done, Ok(Step::Sent)) {
            probe_due = Instant::now() + PROBE_INTERVAL;
        }
        match done {
            Ok(Step::Idle) => {
                // Who queued one may have gone away before it could say so.
                let queued = shard.signals.announcement_queued.notified();
                let _either = tokio::time::timeout(LOOK_INTERVAL, queued).await;
            }
            Ok(Step::Sent) => backoff.reset(),
            Ok(Step::Unreached) => {
                shard.signals.announced.send_modify(|announced| announced.is_unreached = true);
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Err(error) => {
                tracing::warn!(shard = %shard.id, error = chain(&error), "announcements cannot be sent");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

enum Step {
    Idle,
    Sent,
    Unreached,
}

/// Sends the oldest that wait. When none do, and `probes`, asks search whether it still has those before.
async fn step(shard: &Shard, epoch: u64, probes: bool) -> ApiResult<Step> {
    let read = shard.read_settled(|rows| Ok((waiting(rows, BATCH_LEN)?, head(rows)?.next_seq)));
    let (batch, next) = read.await?;
    let is_idle = batch.is_none();
    let (first, items) = batch.unwrap_or_else(|| (next, Vec::new()));
    shard.pending.set_announcements(next - first);
    if is_idle && !probes {
        return Ok(Step::Idle);
    }
    let sent = items.len();
    let announcer = Announcer::Node(shard.id.clone());
    let answer = match shard
        .node
        .search
        .announce(&AnnounceBatch { announcer, epoch, first_seq: first, items })
        .await
    {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(shard = %shard.id, error = chain(&error), "search takes no announcements");
            return Ok(if is_idle { Step::Idle } else { Step::Unreached });
        }
    };
    let is_known = (first..=first + sent as u64).contains(&answer.next_seq);
    if !is_known || answer.resync {
        if !is_known {
            let expected = answer.next_seq;
            tracing::warn!(shard = %shard.id, expected, first, "search and this node do not remember the same announcements");
        }
        ask_for_snapshot(shard, (!is_known).then_some(answer.next_seq)).await?;
    }
    if !is_known {
        return Ok(Step::Sent);
    }
    if is_idle {
        return Ok(Step::Idle);
    }
    if answer.next_seq == first {
        return Ok(Step::Unreached);
    }
    // Whoever waits may go on before the queue is tidied up.
    shard.signals.announced.send_modify(|announced| {
        *announced = Announced { through: answer.next_seq - 1, is_unreached: false, ..*announced };
    });
    shard.catalog.commit(move |txn| acknowledge(txn, first, sent, answer.next_seq)).await?;
    Ok(Step::Sent)
}

/// Announces anew all that is held. `renumbered`: what waits is to be numbered from there on.
async fn ask_for_snapshot(shard: &Shard, renumbered: Option<u64>) -> ApiResult<()> {
    let ask = shard.catalog.commit(move |txn| match renumbered {
        Some(first) => {
            renumber(txn, first)?;
            snapshot::ask(txn);
            Ok(())
        }
        // Search goes on asking until the begin of a snapshot has reached it.
        None if snapshot::is_under_way(txn)? => Ok(()),
        None => {
            snapshot::ask(txn);
            Ok(())
        }
    });
    ask.await?;
    shard.signals.snapshot_asked.notify_one();
    Ok(())
}
