//! Delivery records to one billing server: a durable cursor into this shard's records, batches behind it. Each
//! of the two servers has its own; one that is down does not hold up the other. Records stay in the catalog when they
//! are booked: a server whose books were put back from a backup says what it expects, and is sent it again.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::api::billing::{BATCH_RECORDS_MAX, BatchAnswer, BillingClient, CHAIN_ENDED, RecordBatch};
use common::auth::Role;
use common::backoff::Backoff;
use common::cluster::NodeState;
use common::error::{ApiResult, chain};
use common::record::{ChainedRecord, RecordNumber};
use common::time::UnixMillis;
use common::trace;

use crate::catalog::key::{self, Fee, Key, Tag};
use crate::catalog::rows::{ChainHead, OpenDelivery, Row};
use crate::catalog::txn::Rows;
use crate::shard::Shard;

/// How long records gather before they are sent.
const GATHER: Duration = Duration::from_millis(200);

/// How often it is looked for records that nobody told of.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How often a server is told that all is booked which began before some time.
const MARK_INTERVAL: Duration = Duration::from_secs(30);

/// How far clocks of nodes that may own this shard one after the other may differ.
const CLOCK_MARGIN_MS: u64 = 60_000;

const START: RecordNumber = RecordNumber { epoch: 0, seq: 0 };

/// Sends records as they come, until the receiver contradicts them.
pub async fn send(shard: Arc<Shard>, fee: Fee) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    let mut was_reached = true;
    // When, and whether as one that has left.
    let mut marked: Option<(Instant, bool)> = None;
    loop {
        match trace::background("billing", step(&shard, fee)).await {
            Ok(Step::Idle) => {
                let left = has_left(&shard);
                if marked.is_none_or(|(at, was_left)| was_left != left || at.elapsed() >= MARK_INTERVAL) {
                    marked = match mark(&shard, fee, left).await {
                        Ok(is_told) => is_told.then(|| (Instant::now(), left)),
                        Err(error) => {
                            tracing::debug!(shard = %shard.id, fee = fee.as_str(), error = chain(&error), "a mark is lost");
                            None
                        }
                    };
                }
            }
            Ok(Step::Booked) => {
                backoff.reset();
                if !std::mem::replace(&mut was_reached, true) {
                    tracing::info!(shard = %shard.id, fee = fee.as_str(), "the billing server is reached again");
                }
            }
            Ok(Step::Unreached(reason)) => {
                if std::mem::replace(&mut was_reached, false) {
                    tracing::warn!(shard = %shard.id, fee = fee.as_str(), reason, "the billing server takes no records; they wait");
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Ok(Step::Stopped(reason)) => {
                shard.node.metrics.outbox(fee).stopped.set(1.0);
                tracing::error!(shard = %shard.id, fee = fee.as_str(), reason, "the billing server contradicts this shard's records; nothing more is sent to it until the node is restarted");
                return;
            }
            Err(error) => {
                tracing::warn!(shard = %shard.id, fee = fee.as_str(), error = chain(&error), "records cannot be sent");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

enum Step {
    /// Nothing was waiting; something may be now.
    Idle,
    Booked,
    Unreached(String),
    Stopped(String),
}

async fn step(shard: &Shard, fee: Fee) -> ApiResult<Step> {
    let mut heads = shard.signals.head.subscribe();
    let head = *heads.borrow_and_update();
    let cursor = shard.catalog.read(|rows| cursor(rows, fee))?;
    let oldest = shard.catalog.read(|rows| behind(rows, cursor, head, 1))?;
    let oldest = oldest.as_ref().and_then(|(_, records)| records.first()).map(|record| record.record.end);
    let left = if cursor.epoch == head.epoch { head.seq.saturating_sub(cursor.seq) } else { head.seq };
    shard.pending.set_records(fee, left, oldest);
    if oldest.is_none() {
        if tokio::time::timeout(LOOK_INTERVAL, heads.changed()).await.is_err() {
            // Who committed a record may have gone away before it could say so.
            let head = shard.read_settled(|rows| rows.get::<ChainHead>(Key::ChainHead)).await?;
            head.into_iter().for_each(|head| {
                shard.signals.recorded(RecordNumber { epoch: head.epoch, seq: head.seq });
            });
        }
        return Ok(Step::Idle);
    }
    let Some(client) = receiver(shard, fee) else {
        return Ok(Step::Unreached("it is not in the map".into()));
    };
    let is_full = |head: &RecordNumber| head.seq.saturating_sub(cursor.seq) >= BATCH_RECORDS_MAX as u64;
    // Full or not, it goes out when the time is over.
    drop(tokio::time::timeout(GATHER, heads.wait_for(is_full)).await);
    let head = *heads.borrow();
    let Some((epoch, records)) =
        shard.read_settled(|rows| behind(rows, cursor, head, BATCH_RECORDS_MAX)).await?
    else {
        return Ok(Step::Idle);
    };
    let first = records[0].seq;
    let last = records[records.len() - 1].seq;
    let batch = RecordBatch { node: shard.id.clone(), epoch, records, passed: None };
    let through = match client.send_batch(&batch).await {
        Ok(BatchAnswer::Booked { through }) => through.min(last),
        Ok(BatchAnswer::Gap { expected }) if expected == first => {
            return Ok(Step::Unreached(format!("it does not take record {first}, which it expects")));
        }
        Ok(BatchAnswer::Gap { expected }) if (1..=last).contains(&expected) => {
            go_back(shard, fee, epoch, expected).await?;
            return Ok(Step::Booked);
        }
        Ok(BatchAnswer::Gap { expected }) => {
            return Ok(Step::Stopped(format!(
                "it expects record {expected} of epoch {epoch}, the last is {last}"
            )));
        }
        Ok(BatchAnswer::Fork { seq, reason }) => {
            return Ok(Step::Stopped(format!("record {seq} of epoch {epoch}: {reason}")));
        }
        Err(error) => return Ok(Step::Unreached(chain(&error))),
    };
    put_cursor(shard, fee, RecordNumber { epoch, seq: through }).await?;
    Ok(Step::Booked)
}

async fn put_cursor(shard: &Shard, fee: Fee, number: RecordNumber) -> ApiResult<()> {
    shard
        .catalog
        .commit(move |txn| {
            txn.put(Key::BillingCursor(fee), &number);
            Ok(())
        })
        .await
}

/// Sets the cursor back to where a server that lost records goes on. One that knows nothing of an epoch may have lost
/// the end of the epoch before as well, so the last record of that is sent once more: the answer tells.
async fn go_back(shard: &Shard, fee: Fee, epoch: u64, expected: u64) -> ApiResult<()> {
    let mut number = RecordNumber { epoch, seq: expected.saturating_sub(1) };
    if number.seq == 0 {
        let before = shard.read_settled(|rows| last_before(rows, epoch)).await?;
        if let Some(last) = before {
            number = RecordNumber { seq: last.seq.saturating_sub(1), ..last };
        }
    }
    tracing::warn!(shard = %shard.id, fee = fee.as_str(), epoch, expected, "the billing server has lost records, as when a backup was put back; they are sent again");
    put_cursor(shard, fee, number).await
}

/// The last record of the newest epoch before this one.
fn last_before(rows: &(impl Rows + ?Sized), epoch: u64) -> ApiResult<Option<RecordNumber>> {
    for epoch in (0..epoch).rev() {
        let mut last = None;
        rows.scan(&key::records(epoch), &mut |_, value| {
            last = Some(RecordNumber { epoch, seq: ChainedRecord::decode(value)?.seq });
            Ok(ControlFlow::Continue(()))
        })?;
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}

/// Whether no delivery can begin in this shard any more: its node is removed, and its slots are with others.
fn has_left(shard: &Shard) -> bool {
    shard.node.maps.with(|view| {
        let Some(site) = view.site() else { return false };
        let is_removed = site.node(&shard.id).is_some_and(|node| node.state == NodeState::Removed);
        is_removed && site.slots_owned_by(&shard.id).next().is_none()
    })
}

/// Tells the server up to when all deliveries of this shard are booked, if that is so: what the close of a month waits for.
/// For ever, if it has `left`, so that no month waits for a node that is gone. The last record goes with it, so that a
/// server which lost records says so, instead of believing the mark. Whether the mark was said; one that is lost is made
/// good by the next.
async fn mark(shard: &Shard, fee: Fee, left: bool) -> ApiResult<bool> {
    let Some(client) = receiver(shard, fee) else { return Ok(false) };
    let now = shard.node.clock.now();
    // One moment of the rows: what has ended by now is in the records up to the head, what has not is open.
    let passed = shard
        .read_settled(|rows| {
            let Some(head) = rows.get::<ChainHead>(Key::ChainHead)? else { return Ok(None) };
            let head = RecordNumber { epoch: head.epoch, seq: head.seq };
            if cursor(rows, fee)? != head {
                return Ok(None);
            }
            let settled = UnixMillis(now.0.saturating_sub(CLOCK_MARGIN_MS));
            let mut passed = if left { CHAIN_ENDED } else { settled };
            rows.scan(&key::all(Tag::OpenDelivery), &mut |_, value| {
                passed = passed.min(OpenDelivery::decode(value)?.begin);
                Ok(ControlFlow::Continue(()))
            })?;
            let before_last = RecordNumber { seq: head.seq.saturating_sub(1), ..head };
            let last = behind(rows, before_last, head, 1)?.map_or_else(Vec::new, |(_, last)| last);
            Ok(Some((head.epoch, last, passed)))
        })
        .await?;
    let Some((epoch, records, passed)) = passed else { return Ok(false) };
    let batch = RecordBatch { node: shard.id.clone(), epoch, records, passed: Some(passed) };
    match client.send_batch(&batch).await {
        Ok(BatchAnswer::Gap { expected }) => {
            go_back(shard, fee, epoch, expected).await?;
            Ok(false)
        }
        Ok(BatchAnswer::Booked { .. }) => Ok(true),
        Ok(BatchAnswer::Fork { seq, reason }) => {
            tracing::error!(shard = %shard.id, fee = fee.as_str(), epoch, seq, reason, "the billing server contradicts this shard's records");
            Ok(true)
        }
        Err(error) => {
            tracing::debug!(shard = %shard.id, fee = fee.as_str(), error = chain(&error), "a mark is lost");
            Ok(false)
        }
    }
}

/// Records that some billing server has not booked yet, counted up to one batch for each.
pub fn pending(shard: &Shard) -> ApiResult<u64> {
    let head = *shard.signals.head.borrow();
    shard.catalog.read(|rows| {
        [Fee::Service, Fee::Content].into_iter().try_fold(0, |sum, fee| {
            let waiting = behind(rows, cursor(rows, fee)?, head, BATCH_RECORDS_MAX)?;
            Ok(sum + waiting.map_or(0, |(_, records)| records.len() as u64))
        })
    })
}

fn cursor(rows: &(impl Rows + ?Sized), fee: Fee) -> ApiResult<RecordNumber> {
    Ok(rows.get::<RecordNumber>(Key::BillingCursor(fee))?.unwrap_or(START))
}

/// The next records behind `cursor`, at most `max`, all of one epoch.
fn behind(
    rows: &(impl Rows + ?Sized),
    cursor: RecordNumber,
    head: RecordNumber,
    max: usize,
) -> ApiResult<Option<(u64, Vec<ChainedRecord>)>> {
    for epoch in cursor.epoch..=head.epoch {
        let after = if epoch == cursor.epoch { cursor } else { RecordNumber { epoch, seq: 0 } };
        let mut records = Vec::new();
        rows.scan_raw(
            &key::records(epoch),
            Bound::Excluded(&Key::Record(after).encode()),
            &mut |_, value| {
                records.push(ChainedRecord::decode(value)?);
                let full = records.len() == max;
                Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            },
        )?;
        if !records.is_empty() {
            return Ok(Some((epoch, records)));
        }
    }
    Ok(None)
}

fn receiver(shard: &Shard, fee: Fee) -> Option<BillingClient> {
    let view = shard.node.maps.view();
    let (entry, role) = match fee {
        Fee::Service => (&view.map.service_billing, Role::ServiceBilling),
        Fee::Content => (&view.map.content_billing, Role::ContentBilling),
    };
    entry.as_ref().map(|entry| BillingClient::new(shard.node.client.clone(), &entry.http, role))
}
