//! Deliveries: from begin to the numbered, chained record.
//!
//! ```text
//! begin ──▶ open ──end, all bytes──────────────▶ complete
//!            │  ├──end, no byte ever───────────▶ void (what begin changed is taken back)
//!            │  ├──idle for the join window────▶ partial
//!            │  └──no word for too long────────▶ partial if bytes are known to have gone out, else recovered
//!            ◀── a later range of the same version joins
//! ```
//! A delivery stays in the shard that recorded its begin. When the client's slot moves to another one meanwhile, later
//! ranges that come there join it where it is.
//!
//! Begin is durable before the first byte. The outcome gets its number and chain link in the same commit that
//! closes the delivery; while the node has no record epoch, the decided outcome waits in the open row.

use std::time::Duration;

use common::api::node::{BeginRequest, EndRequest, JoinRequest, LibraryRow, Quota};
use common::error::ApiResult;
use common::hash::RecordDigest;
use common::id::{ClientId, DeliveryId, NodeId, SiteId};
use common::record::{ChainedRecord, DeliveryClass, DeliveryRecord, DeliveryStatus, RecordNumber};
use common::time::UnixMillis;

use crate::catalog::key::Key;
use crate::catalog::rows::{ChainHead, LibraryValue, OpenDelivery};
use crate::catalog::txn::{Rows, Txn};
use crate::library;

/// Who records.
#[derive(Debug, Clone)]
pub struct Recorder {
    pub node: NodeId,
    /// The clients' home, unless the delivery says another.
    pub home: SiteId,
}

/// How begins join deliveries that are open.
#[derive(Debug, Clone)]
pub struct Joining {
    /// The shard that takes the begin.
    pub shard: NodeId,
    pub window: Duration,
    /// Whether a delivery may be looked for in another shard; not when it was, in vain.
    pub elsewhere: bool,
}

/// What is to be done about a begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    Begun(Begun),
    /// Nothing here, if another shard lets the request join.
    Elsewhere(JoinRequest),
}

/// What a begin led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    pub delivery: DeliveryId,
    pub class: DeliveryClass,
    /// A row was opened: false when it joined, or was repeated.
    pub opened: bool,
}

/// What became of an open delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Final before, never begun here, or told before.
    Unknown,
    /// Stays open for later ranges.
    Open,
    /// Decided; waits for the record epoch.
    Waiting,
    Recorded(RecordNumber),
}

/// Records the begin of a delivery and its library row, or the request in the delivery that it joins.
pub fn begin(
    txn: &mut Txn<'_>,
    request: &BeginRequest,
    joining: &Joining,
    now: UnixMillis,
) -> ApiResult<Beginning> {
    if let Some(open) = txn.get::<OpenDelivery>(Key::OpenDelivery(&request.delivery))? {
        return repeat(txn, open, request).map(Beginning::Begun);
    }
    let row = txn.get::<LibraryValue>(Key::Library(&request.client, &request.name))?;
    // What the client holds it gets, whatever its quota.
    let quota = if row.is_none() { request.quota } else { Quota::default() };
    if let Some(wanted) = row.as_ref().and_then(|row| wanted(row, request, joining)) {
        if wanted.shard != joining.shard && joining.elsewhere {
            return Ok(Beginning::Elsewhere(wanted));
        }
        if let Some(begun) = join(txn, &wanted, joining.window, now)? {
            return Ok(Beginning::Begun(begun));
        }
    }
    let (class, mut row) = deliver_to(row, request, now);
    row.newest_shard = Some(joining.shard.clone());
    library::change(txn, &request.client, &request.name, Some(&row), &quota)?;
    let open = OpenDelivery {
        delivery: request.delivery,
        client: request.client.clone(),
        name: request.name.clone(),
        hash: request.hash,
        provider: request.provider.clone(),
        class,
        path: request.path,
        source: request.source.clone(),
        searched: request.searched,
        surrogate: request.surrogate.clone(),
        mobile_access: request.mobile_access.clone(),
        bytes_total: request.bytes_total,
        bytes_sent: 0,
        begin: now,
        touched: now,
        in_flight: vec![request.delivery],
        ended: Vec::new(),
        outcome: None,
        home: None,
    };
    txn.put(Key::OpenDelivery(&request.delivery), &open);
    Ok(Beginning::Begun(Begun { delivery: request.delivery, class, opened: true }))
}

/// The same begin again: its first answer was lost, so no byte has gone out. Should the site have got another version
/// meanwhile, that one will be sent.
fn repeat(txn: &mut Txn<'_>, mut open: OpenDelivery, request: &BeginRequest) -> ApiResult<Begun> {
    let begun = Begun { delivery: open.delivery, class: open.class, opened: false };
    if open.hash == request.hash {
        return Ok(begun);
    }
    open.hash = request.hash;
    open.provider = request.provider.clone();
    open.bytes_total = request.bytes_total;
    open.path = request.path;
    open.source = request.source.clone();
    open.searched = request.searched;
    txn.put(Key::OpenDelivery(&open.delivery), &open);
    if let Some(mut row) = txn.get::<LibraryValue>(Key::Library(&request.client, &request.name))? {
        take_version(&mut row, request);
        library::change(txn, &request.client, &request.name, Some(&row), &Quota::default())?;
    }
    Ok(begun)
}

/// The client's newest delivery, if this request may belong to it: a later range, or the same begin again at the slot's
/// next owner.
fn wanted(row: &LibraryValue, request: &BeginRequest, joining: &Joining) -> Option<JoinRequest> {
    let (newest, _) = row.newest?;
    (request.range_start > 0 || newest == request.delivery).then(|| JoinRequest {
        shard: row.newest_shard.clone().unwrap_or_else(|| joining.shard.clone()),
        delivery: newest,
        request: request.delivery,
        hash: request.hash,
        client: request.client.clone(),
    })
}

/// Adds a request to a delivery that is open in this shard; `None` when nothing may join it any more.
pub fn join(
    txn: &mut Txn<'_>,
    request: &JoinRequest,
    window: Duration,
    now: UnixMillis,
) -> ApiResult<Option<Begun>> {
    let open = txn.get::<OpenDelivery>(Key::OpenDelivery(&request.delivery))?;
    let Some(mut open) = open.filter(|open| {
        open.client == request.client
            && open.hash == request.hash
            && open.outcome.is_none()
            && now.since(open.touched) <= window
    }) else {
        return Ok(None);
    };
    let begun = Begun { delivery: open.delivery, class: open.class, opened: false };
    if open.add_request(request.request) {
        open.touched = now;
        txn.put(Key::OpenDelivery(&open.delivery), &open);
    }
    Ok(Some(begun))
}

/// The library row with this delivery in it, and whether the delivery is the purchase.
fn deliver_to(
    row: Option<LibraryValue>,
    request: &BeginRequest,
    now: UnixMillis,
) -> (DeliveryClass, LibraryValue) {
    let (class, mut row) = match row {
        None => {
            let row = LibraryValue {
                hash: request.hash,
                len: request.bytes_total,
                provider: request.provider.clone(),
                since: now,
                deliveries: 0,
                recent: Vec::new(),
                newest: None,
                made_by: Some(request.delivery),
                purchase_owed: false,
                newest_shard: None,
            };
            (DeliveryClass::Purchase, row)
        }
        // The slot came from another shard, which recorded this begin and does not say what became of it.
        Some(row) if row.newest.is_some_and(|(newest, _)| newest == request.delivery) => {
            let class = row.newest.map_or(DeliveryClass::Reference, |(_, class)| class);
            return (class, row);
        }
        Some(row) if row.purchase_owed => (DeliveryClass::Purchase, row),
        Some(row) => (DeliveryClass::Reference, row),
    };
    take_version(&mut row, request);
    row.deliveries += 1;
    if row.recent.len() >= LibraryRow::RECENT_MAX {
        row.recent.remove(0);
    }
    row.recent.push(now);
    row.newest = Some((request.delivery, class));
    row.purchase_owed = false;
    (class, row)
}

fn take_version(row: &mut LibraryValue, request: &BeginRequest) {
    row.hash = request.hash;
    row.len = request.bytes_total;
    row.provider = request.provider.clone();
}

/// Adds the bytes of one request to its delivery, and closes the delivery if that decides it.
pub fn end(
    txn: &mut Txn<'_>,
    recorder: &Recorder,
    request: &EndRequest,
    now: UnixMillis,
) -> ApiResult<Ended> {
    let Some(mut open) = txn.get::<OpenDelivery>(Key::OpenDelivery(&request.delivery))? else {
        return Ok(Ended::Unknown);
    };
    if open.outcome.is_some() || !open.end_request(request.request) {
        return Ok(Ended::Unknown);
    }
    open.bytes_sent = open.bytes_sent.saturating_add(request.bytes_sent);
    open.touched = now;
    if open.bytes_sent >= open.bytes_total {
        return close(txn, recorder, open, DeliveryStatus::Complete, now);
    }
    if open.bytes_sent == 0 && open.is_idle() {
        return close(txn, recorder, open, DeliveryStatus::Void, now);
    }
    txn.put(Key::OpenDelivery(&open.delivery), &open);
    Ok(Ended::Open)
}

/// When a delivery that stays silent is given up.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    pub join_window: Duration,
    pub open_max: Duration,
    /// Since when this node serves the shard: gateways that asked before may be gone.
    pub started: UnixMillis,
}

impl Deadlines {
    /// `may_be_joined`: whether a delivery that is idle waits for later ranges.
    pub fn has_passed(&self, open: &OpenDelivery, may_be_joined: bool, now: UnixMillis) -> bool {
        if open.is_idle() && !may_be_joined {
            return true;
        }
        let deadline = if open.outcome.is_some() {
            open.touched
        } else if open.is_idle() {
            open.touched.saturating_add(self.join_window)
        } else if open.touched < self.started {
            self.started.saturating_add(self.join_window)
        } else {
            open.touched.saturating_add(self.open_max)
        };
        now >= deadline
    }
}

/// Closes a delivery whose deadline has passed, or whose outcome waited for the record epoch. `may_be_joined` says
/// whether a client's idle deliveries wait for later ranges.
pub fn expire(
    txn: &mut Txn<'_>,
    recorder: &Recorder,
    delivery: &DeliveryId,
    deadlines: &Deadlines,
    may_be_joined: impl Fn(&ClientId) -> bool,
    now: UnixMillis,
) -> ApiResult<Ended> {
    let Some(open) = txn.get::<OpenDelivery>(Key::OpenDelivery(delivery))? else { return Ok(Ended::Unknown) };
    if !deadlines.has_passed(&open, may_be_joined(&open.client), now) {
        return Ok(Ended::Open);
    }
    if let Some(outcome) = open.outcome {
        let end = open.touched;
        return number(txn, recorder, open, outcome, end);
    }
    let status = if open.bytes_sent > 0 { DeliveryStatus::Partial } else { DeliveryStatus::Recovered };
    let end = open.touched;
    close(txn, recorder, open, status, end)
}

fn close(
    txn: &mut Txn<'_>,
    recorder: &Recorder,
    open: OpenDelivery,
    status: DeliveryStatus,
    end: UnixMillis,
) -> ApiResult<Ended> {
    if status == DeliveryStatus::Void {
        take_back(txn, &open)?;
    }
    number(txn, recorder, open, status, end)
}

/// A void delivery leaves the library as if it had not been; a purchase that later deliveries built on is owed.
fn take_back(txn: &mut Txn<'_>, open: &OpenDelivery) -> ApiResult<()> {
    let library = Key::Library(&open.client, &open.name);
    // Dropped since, or dropped and made anew: then nothing of this delivery is left.
    let Some(mut row) = txn.get::<LibraryValue>(library)?.filter(|row| row.since <= open.begin) else {
        return Ok(());
    };
    row.deliveries = row.deliveries.saturating_sub(1);
    if let Some(index) = row.recent.iter().rposition(|time| *time == open.begin) {
        row.recent.remove(index);
    }
    if row.deliveries == 0 && row.made_by == Some(open.delivery) {
        return library::change(txn, &open.client, &open.name, None, &Quota::default());
    }
    if open.class == DeliveryClass::Purchase && row.made_by.is_some() {
        row.purchase_owed = true;
    }
    library::change(txn, &open.client, &open.name, Some(&row), &Quota::default())
}

/// Gives the outcome its number and link, or lets it wait for the record epoch.
fn number(
    txn: &mut Txn<'_>,
    recorder: &Recorder,
    mut open: OpenDelivery,
    status: DeliveryStatus,
    end: UnixMillis,
) -> ApiResult<Ended> {
    let Some(head) = txn.get::<ChainHead>(Key::ChainHead)? else {
        open.outcome = Some(status);
        open.touched = end;
        txn.put(Key::OpenDelivery(&open.delivery), &open);
        return Ok(Ended::Waiting);
    };
    let delivery = open.delivery;
    let record = DeliveryRecord {
        delivery,
        begin: open.begin,
        end,
        client: open.client,
        content: open.name,
        hash: open.hash,
        provider: open.provider,
        class: open.class,
        path: open.path,
        home: open.home.unwrap_or_else(|| recorder.home.clone()),
        source: open.source,
        searched: open.searched,
        surrogate: open.surrogate,
        mobile_access: open.mobile_access,
        status,
        bytes_total: open.bytes_total,
        bytes_sent: open.bytes_sent,
    };
    let chained = ChainedRecord::append(&recorder.node, head.epoch, head.seq, head.digest, record);
    let number = RecordNumber { epoch: head.epoch, seq: chained.seq };
    txn.put(Key::Record(number), &chained);
    txn.put(Key::ChainHead, &ChainHead { epoch: head.epoch, seq: chained.seq, digest: chained.digest });
    txn.delete(Key::OpenDelivery(&delivery));
    Ok(Ended::Recorded(number))
}

/// Takes the record epoch that search gave: a greater one starts a new chain. Answers the chain's head.
pub fn set_epoch(txn: &mut Txn<'_>, epoch: u64) -> ApiResult<ChainHead> {
    match txn.get::<ChainHead>(Key::ChainHead)? {
        Some(head) if head.epoch >= epoch => Ok(head),
        before => {
            let head = ChainHead { epoch, seq: 0, digest: RecordDigest::ZERO };
            txn.put(Key::ChainHead, &head);
            if before.is_some() {
                crate::outbox::announcements::renumber(txn, 1)?;
                crate::outbox::snapshot::ask(txn);
            }
            Ok(head)
        }
    }
}

#[cfg(test)]
mod tests;
