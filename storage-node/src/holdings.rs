//! The content list: which version of a name the site holds, and which clients hold the name.
//!
//! Rules on rows alone; routes call them inside a commit of the node that owns the name's slot. Every new
//! complete holding, and every one that goes, is queued for search in the same commit.

use std::ops::{Bound, ControlFlow};

use common::api::node::{
    HoldRequest, Holding, HoldingClient, HoldingClients, HoldingState, Precondition, RefTag, ReleaseRequest,
};
use common::api::search::{Announcement, Change, ChangeKind};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::ContentHash;
use common::id::ClientId;
use common::name::ContentName;
use common::time::UnixMillis;
use common::version::{HybridTime, Version};

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{ReapValue, Row, Since};
use crate::catalog::txn::{Rows, Txn};
use crate::outbox::announcements;
use crate::tally::due;

/// What a hold led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The version that the site holds now, and the tag of its references.
    pub version: Version,
    pub ref_tag: RefTag,
    pub replaced: Option<ContentHash>,
    /// Number of the announcement that tells search, if there is one to wait for.
    pub announcement: Option<u64>,
}

/// Whether a holding serves new deliveries: now, or once it is collected.
pub fn is_current(holding: &Holding) -> bool {
    matches!(holding.state, HoldingState::Complete | HoldingState::Collecting)
}

/// Adds `client` to the holders of the name.
pub fn add_client(
    txn: &mut Txn<'_>,
    name: &ContentName,
    client: &ClientId,
    now: UnixMillis,
) -> ApiResult<()> {
    let key = Key::HoldingClient(name, client);
    if !txn.has(key)? {
        txn.put(key, &Since(now));
        due::client_changed(txn, name, client)?;
    }
    Ok(())
}

/// Holds a version of a name: a publication takes a new version, a collection brings its own.
pub fn hold(txn: &mut Txn<'_>, request: &HoldRequest, now: UnixMillis) -> ApiResult<Held> {
    let existing = txn.get::<Holding>(Key::Holding(&request.name))?;
    if let Some(existing) = &existing
        && request.version_time.is_none()
        && existing.ref_tag == request.ref_tag
    {
        // The same publication again: its first answer was lost. Search may not know of it yet.
        let announcement = announcements::newest_waiting(txn)?;
        return Ok(Held { announcement, ..Held::known(existing.version, existing.ref_tag) });
    }
    if request.version_time.is_none() && txn.has(Key::Reap(request.ref_tag, &request.name))? {
        // The same, and it has been replaced or withdrawn since: its references are being released.
        let newest = txn.get::<HybridTime>(Key::NewestTime)?.unwrap_or_default();
        let gone = Version { time: newest, hash: request.manifest.hash };
        let version = existing.map_or(gone, |existing| existing.version);
        return Ok(Held::known(version, request.ref_tag));
    }
    check(request.precondition, existing.as_ref())?;
    let time = match request.version_time {
        Some(time) => time,
        None => next_time(txn, existing.as_ref(), now)?,
    };
    let version = Version { time, hash: request.manifest.hash };
    if let Some(client) = &request.client {
        add_client(txn, &request.name, client, now)?;
    }
    if let Some(existing) = &existing
        && stays(existing, version, request)
    {
        // The bytes of this collection are not needed: its references go.
        if existing.ref_tag != request.ref_tag {
            let surplus = ReapValue {
                name: request.name.clone(),
                ref_tag: request.ref_tag,
                chunks: request.manifest.chunks.clone(),
            };
            txn.put(Key::Reap(request.ref_tag, &request.name), &surplus);
        }
        return Ok(Held::known(existing.version, existing.ref_tag));
    }
    if request.version_time.is_some()
        && request.state == HoldingState::Complete
        && existing.as_ref().is_none_or(|existing| existing.ref_tag != request.ref_tag)
    {
        // Its references may be released already.
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("the collection of {} was given up meanwhile; ask for it anew", request.name),
        ));
    }
    let replaced = existing.as_ref().filter(|e| e.version != version).map(|e| e.version.hash);
    if let Some(existing) = existing.filter(|e| e.ref_tag != request.ref_tag) {
        reap(txn, existing);
    }
    let holding = Holding {
        name: request.name.clone(),
        version,
        manifest: request.manifest.clone(),
        provider: request.provider.clone(),
        state: request.state,
        ref_tag: request.ref_tag,
        since: now,
    };
    put(txn, &holding, now);
    let announcement = match request.state {
        HoldingState::Complete => Some(announcements::enqueue(txn, &hold_announcement(&holding))?),
        HoldingState::Collecting | HoldingState::Superseded => None,
    };
    Ok(Held { version, ref_tag: request.ref_tag, replaced, announcement })
}

impl Held {
    /// What was there stays.
    fn known(version: Version, ref_tag: RefTag) -> Self {
        Self { version, ref_tag, replaced: None, announcement: None }
    }
}

fn put(txn: &mut Txn<'_>, holding: &Holding, now: UnixMillis) {
    txn.put(Key::Holding(&holding.name), holding);
    match holding.state {
        HoldingState::Collecting => txn.put(Key::Collecting(&holding.name), &Since(now)),
        HoldingState::Complete => {
            txn.delete(Key::Collecting(&holding.name));
            due::completed(txn, &holding.name, holding.ref_tag);
        }
        HoldingState::Superseded => txn.delete(Key::Collecting(&holding.name)),
    }
}

fn delete(txn: &mut Txn<'_>, holding: Holding) {
    txn.delete(Key::Holding(&holding.name));
    txn.delete(Key::Collecting(&holding.name));
    reap(txn, holding);
}

/// Names whose collection began before `before`, at most `limit`, behind the row `after`.
pub fn collecting(
    rows: &(impl Rows + ?Sized),
    after: Option<&ContentName>,
    before: UnixMillis,
    limit: usize,
) -> ApiResult<Vec<ContentName>> {
    let (mut names, prefix) = (Vec::new(), key::all(Tag::Collecting));
    let from = after.map_or_else(|| prefix.clone(), |name| Key::Collecting(name).encode());
    rows.scan_raw(&prefix, Bound::Excluded(&from), &mut |row, value| {
        if Since::decode(value)?.0 < before {
            names.extend(key::collecting(row));
        }
        Ok(if names.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(names)
}

/// Gives up a collection that was not completed: what came in goes. Answers whether there was one, from before
/// `before`.
pub fn give_up(txn: &mut Txn<'_>, name: &ContentName, before: UnixMillis) -> ApiResult<bool> {
    let is_old = txn.get::<Since>(Key::Collecting(name))?.is_some_and(|since| since.0 < before);
    let holding = txn.get::<Holding>(Key::Holding(name))?;
    match holding.filter(|holding| is_old && holding.state == HoldingState::Collecting) {
        Some(holding) => delete(txn, holding),
        None => return Ok(false),
    }
    Ok(true)
}

/// Whether `existing` is as new as what is to be held, so that it stays.
fn stays(existing: &Holding, version: Version, request: &HoldRequest) -> bool {
    if existing.version != version {
        return existing.version > version;
    }
    match existing.state {
        HoldingState::Complete => true,
        // The first collector goes on; whoever has all chunks first completes it.
        HoldingState::Collecting => request.state == HoldingState::Collecting,
        // Withdrawn while it was collected: whoever bought it has it, nobody else gets it.
        HoldingState::Superseded => existing.ref_tag == request.ref_tag,
    }
}

/// What search is told of a complete holding.
pub fn hold_announcement(holding: &Holding) -> Announcement {
    Announcement::Hold {
        name: holding.name.clone(),
        version: holding.version,
        len: holding.manifest.len,
        media_type: holding.manifest.media_type.clone(),
        provider: holding.provider.clone(),
    }
}

/// A time after every version that this node gave, and after the one it replaces.
fn next_time(txn: &mut Txn<'_>, existing: Option<&Holding>, now: UnixMillis) -> ApiResult<HybridTime> {
    let given = txn.get::<HybridTime>(Key::NewestTime)?;
    let time = HybridTime::next(now, given.max(existing.map(|e| e.version.time)));
    txn.put(Key::NewestTime, &time);
    Ok(time)
}

fn check(precondition: Precondition, existing: Option<&Holding>) -> ApiResult<()> {
    // What was withdrawn, or is known to be outdated, is not there for who publishes.
    let existing = existing.filter(|e| e.state != HoldingState::Superseded);
    let met = match precondition {
        Precondition::None => true,
        Precondition::Absent => existing.is_none(),
        Precondition::Matches(hash) => existing.is_some_and(|e| e.manifest.hash == hash),
    };
    if met {
        return Ok(());
    }
    let message = match existing {
        Some(existing) => format!("the site holds {} with hash {}", existing.name, existing.manifest.hash),
        None => "the site does not hold the content".to_owned(),
    };
    Err(ApiError::new(ErrorCode::PreconditionFailed, message))
}

/// Queues the chunk references of a holding that goes.
fn reap(txn: &mut Txn<'_>, holding: Holding) {
    due::gone(txn, &holding);
    let value = ReapValue { ref_tag: holding.ref_tag, chunks: holding.manifest.chunks, name: holding.name };
    txn.put(Key::Reap(value.ref_tag, &value.name), &value);
}

/// What a withdrawal or release led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Let {
    pub released: bool,
    pub announcement: Option<u64>,
}

/// The provider takes the content back: nobody finds or buys it any more. Other clients that hold it keep it, so
/// the holding stays, superseded, until the last of them lets it go.
pub fn withdraw(txn: &mut Txn<'_>, request: &ReleaseRequest) -> ApiResult<Let> {
    let current = |holding: &Holding| holding.state != HoldingState::Superseded;
    let Some(holding) = txn.get::<Holding>(Key::Holding(&request.name))?.filter(current) else {
        check(request.precondition, None)?;
        // It may be the same once more, of which search does not know yet.
        return Ok(Let { released: false, announcement: announcements::newest_waiting(txn)? });
    };
    if holding.provider != request.client {
        return Err(ApiError::new(ErrorCode::Forbidden, "only its provider withdraws a content"));
    }
    check(request.precondition, Some(&holding))?;
    let withdraw = Announcement::Withdraw { name: holding.name.clone(), version: holding.version };
    let announcement = announcements::enqueue(txn, &withdraw)?;
    txn.delete(Key::HoldingClient(&request.name, &request.client));
    due::client_changed(txn, &request.name, &request.client)?;
    if txn.is_empty(&key::holding_clients(&request.name))? {
        delete(txn, holding);
    } else {
        put_superseded(txn, holding);
    }
    Ok(Let { released: true, announcement: Some(announcement) })
}

/// A client lets the name go; the holding goes with its last client.
pub fn release(txn: &mut Txn<'_>, request: &ReleaseRequest) -> ApiResult<Let> {
    let key = Key::HoldingClient(&request.name, &request.client);
    if !txn.has(key)? {
        return Ok(Let { released: false, announcement: None });
    }
    txn.delete(key);
    due::client_changed(txn, &request.name, &request.client)?;
    let mut announcement = None;
    if txn.is_empty(&key::holding_clients(&request.name))?
        && let Some(holding) = txn.get::<Holding>(Key::Holding(&request.name))?
        && holding.state != HoldingState::Collecting
    {
        let release = Announcement::Release { name: holding.name.clone(), version: holding.version };
        announcement = Some(announcements::enqueue(txn, &release)?);
        delete(txn, holding);
    }
    Ok(Let { released: true, announcement })
}

/// Marks a holding that search's feed says is no longer the newest. Answers whether it changed.
pub fn supersede(txn: &mut Txn<'_>, change: &Change) -> ApiResult<bool> {
    let Some(holding) = txn.get::<Holding>(Key::Holding(&change.name))? else { return Ok(false) };
    let outdated = match change.kind {
        ChangeKind::NewVersion => holding.version < change.version,
        ChangeKind::Withdrawn => holding.version <= change.version,
    };
    if !outdated || holding.state == HoldingState::Superseded {
        return Ok(false);
    }
    put_superseded(txn, holding);
    // The next publication here must be newer than that version too.
    let newest = txn.get::<HybridTime>(Key::NewestTime)?.max(Some(change.version.time)).unwrap_or_default();
    txn.put(Key::NewestTime, &newest);
    Ok(true)
}

fn put_superseded(txn: &mut Txn<'_>, mut holding: Holding) {
    // One that was being collected is counted from now on, as far as it got.
    if holding.state == HoldingState::Collecting {
        due::completed(txn, &holding.name, holding.ref_tag);
    }
    holding.state = HoldingState::Superseded;
    txn.put(Key::Holding(&holding.name), &holding);
    txn.delete(Key::Collecting(&holding.name));
}

/// The holding, and clients that hold the name, behind `after` in the order of their ids.
pub fn clients(
    rows: &(impl Rows + ?Sized),
    name: &ContentName,
    after: &str,
    limit: usize,
) -> ApiResult<HoldingClients> {
    let prefix = key::holding_clients(name);
    let mut from = prefix.clone();
    from.extend_from_slice(after.as_bytes());
    let mut page = HoldingClients {
        holding: rows.get(Key::Holding(name))?,
        clients: Vec::new(),
        clients_total: rows.count(&prefix)?,
        next: None,
    };
    rows.scan_raw(&prefix, Bound::Excluded(&from), &mut |key, value| {
        if page.clients.len() == limit {
            page.next = page.clients.last().map(|last| last.client.clone());
            return Ok(ControlFlow::Break(()));
        }
        let text = std::str::from_utf8(&key[prefix.len()..]).map_err(|error| ApiError::internal(&error))?;
        page.clients.push(HoldingClient { client: ClientId::new(text)?, since: Since::decode(value)?.0 });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(page)
}

/// Whether chunks with this tag are those of the name's holding, in whatever state, or of a temporary content.
pub fn needs_ref(rows: &(impl Rows + ?Sized), name: &ContentName, tag: RefTag) -> ApiResult<bool> {
    let holding = rows.get::<Holding>(Key::Holding(name))?;
    Ok(holding.is_some_and(|holding| holding.ref_tag == tag) || rows.has(Key::Temporary(name, tag))?)
}

#[cfg(test)]
mod tests;
