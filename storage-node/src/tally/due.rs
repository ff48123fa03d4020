//! What is still to be counted at the chunks: rows in the slot of the name, written in the commit that makes them due.
//!
//! They move with their slot. Each is looked at anew until what was sent is how things are.

use std::ops::{Bound, ControlFlow};

use common::api::node::{Holding, HoldingState, RefTag};
use common::error::{ApiError, ApiResult};
use common::id::ClientId;
use common::manifest::ChunkList;
use common::name::ContentName;
use common::placement::Slot;

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{Row, TallyHolding, TemporaryValue};
use crate::catalog::txn::{RawRows, Rows, Txn};

/// Whether clients hold what a holding is made of: not while it is being collected.
fn is_counted(holding: &Holding) -> bool {
    holding.state != HoldingState::Collecting
}

/// A holding is no longer being collected: all clients of the name hold its chunks. Or a temporary content is whole: all
/// its visitors do.
pub fn completed(txn: &mut Txn<'_>, name: &ContentName, tag: RefTag) {
    txn.put(Key::TallyHolding(name, tag), &TallyHolding::default());
}

/// A holding went: nobody holds its chunks through it any more.
pub fn gone(txn: &mut Txn<'_>, holding: &Holding) {
    if is_counted(holding) {
        let gone = TallyHolding { gone: Some(holding.manifest.chunks.clone()), ..TallyHolding::default() };
        txn.put(Key::TallyHolding(&holding.name, holding.ref_tag), &gone);
    }
}

/// A client came to hold the name, or let it go. Also holdings that went and are not settled may count it.
pub fn client_changed(txn: &mut Txn<'_>, name: &ContentName, client: &ClientId) -> ApiResult<()> {
    let mut tags = Vec::new();
    if let Some(holding) = txn.get::<Holding>(Key::Holding(name))?.filter(is_counted) {
        tags.push(holding.ref_tag);
    }
    txn.scan(&key::tally_holdings(name), &mut |key, _| {
        tags.extend(key::tally_of(key).map(|(_, tag, _)| tag));
        Ok(ControlFlow::Continue(()))
    })?;
    tags.into_iter().for_each(|tag| txn.put_empty(Key::TallyClient(name, tag, client)));
    Ok(())
}

/// A whole temporary content went.
pub fn temporary_gone(txn: &mut Txn<'_>, name: &ContentName, tag: RefTag, chunks: &ChunkList) {
    let gone = TallyHolding { gone: Some(chunks.clone()), after: None, is_temporary: true };
    txn.put(Key::TallyHolding(name, tag), &gone);
}

/// A visitor came to hold a whole temporary content, or does no longer.
pub fn visitor_changed(txn: &mut Txn<'_>, name: &ContentName, tag: RefTag, client: &ClientId) {
    txn.put_empty(Key::TallyClient(name, tag, client));
}

/// Clients to be counted at the chunks of a holding, as things were when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    key: Vec<u8>,
    value: Vec<u8>,
    pub name: ContentName,
    pub ref_tag: RefTag,
    pub held: bool,
    pub clients: Vec<ClientId>,
    pub chunks: ChunkList,
    /// These are not all clients of the holding.
    more: bool,
}

impl Job {
    /// Rows that it may change at the chunks.
    pub fn weight(&self) -> usize {
        chunk_count(&self.chunks) * self.clients.len()
    }
}

/// Chunks that a holding consists of, its stored list included.
fn chunk_count(chunks: &ChunkList) -> usize {
    match chunks {
        ChunkList::Inline(chunks) => chunks.len(),
        ChunkList::Stored { count, .. } => *count as usize + 1,
    }
}

/// Rows that are due, with their values.
pub type Due = Vec<(Vec<u8>, Vec<u8>)>;

/// Up to `max` rows of a kind that are due, behind `after`, in slots that `mine` says are this node's.
pub fn page(
    rows: &(impl Rows + ?Sized),
    tag: Tag,
    after: &[u8],
    max: usize,
    mine: impl Fn(Slot) -> bool,
) -> ApiResult<Due> {
    let mut page = Vec::new();
    rows.scan_raw(&key::all(tag), Bound::Excluded(after), &mut |key, value| {
        if key::tally_of(key).is_some_and(|(name, ..)| mine(Slot::of_name(&name))) {
            page.push((key.to_vec(), value.to_vec()));
        }
        Ok(if page.len() == max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(page)
}

/// What a row that is due comes to at this moment, with at most about `weight_max` rows at the chunks; `None` when it is
/// settled already.
pub fn job(
    rows: &(impl Rows + ?Sized),
    key: &[u8],
    value: &[u8],
    weight_max: usize,
) -> ApiResult<Option<Job>> {
    let Some((name, ref_tag, client)) = key::tally_of(key) else { return Ok(None) };
    let (key, value) = (key.to_vec(), value.to_vec());
    let Some(counted) = counted(rows, &name, ref_tag)? else { return Ok(None) };
    let Counted { stands, chunks, is_temporary } = counted;
    if !client.is_empty() {
        let client = ClientId::new(client)?;
        let holder = match is_temporary {
            true => Key::Visitor(&name, ref_tag, &client),
            false => Key::HoldingClient(&name, &client),
        };
        let held = stands && rows.has(holder)?;
        let clients = vec![client];
        return Ok(Some(Job { key, value, name, ref_tag, held, clients, chunks, more: false }));
    }
    let after = TallyHolding::decode(&value)?.after;
    let clients_max = (weight_max / chunk_count(&chunks).max(1)).max(1);
    let holders = if is_temporary { key::visitors(&name, ref_tag) } else { key::holding_clients(&name) };
    let (clients, more) = clients_after(rows, holders, after.as_ref(), clients_max)?;
    Ok(Some(Job { key, value, name, ref_tag, held: stands, clients, chunks, more }))
}

/// The holding with this tag, if it is there to be counted.
fn current(rows: &(impl Rows + ?Sized), name: &ContentName, tag: RefTag) -> ApiResult<Option<Holding>> {
    let holding = rows.get::<Holding>(Key::Holding(name))?;
    Ok(holding.filter(|holding| holding.ref_tag == tag && is_counted(holding)))
}

/// What clients hold, or held, under a tag.
struct Counted {
    /// It is there.
    stands: bool,
    chunks: ChunkList,
    is_temporary: bool,
}

fn counted(rows: &(impl Rows + ?Sized), name: &ContentName, tag: RefTag) -> ApiResult<Option<Counted>> {
    if let Some(holding) = current(rows, name, tag)? {
        let chunks = holding.manifest.chunks;
        return Ok(Some(Counted { stands: true, chunks, is_temporary: false }));
    }
    let temporary = rows.get::<TemporaryValue>(Key::Temporary(name, tag))?;
    if let Some(temporary) = temporary.filter(|temporary| temporary.complete) {
        let chunks = temporary.manifest.chunks;
        return Ok(Some(Counted { stands: true, chunks, is_temporary: true }));
    }
    let gone = rows.get::<TallyHolding>(Key::TallyHolding(name, tag))?;
    Ok(gone.and_then(|row| {
        let chunks = row.gone?;
        Some(Counted { stands: false, chunks, is_temporary: row.is_temporary })
    }))
}

/// Up to `max` clients whose rows begin with `prefix`, behind `after`, and whether there are more.
fn clients_after(
    rows: &(impl Rows + ?Sized),
    prefix: Vec<u8>,
    after: Option<&ClientId>,
    max: usize,
) -> ApiResult<(Vec<ClientId>, bool)> {
    let mut from = prefix.clone();
    from.extend_from_slice(after.map_or("", |client| client.as_str()).as_bytes());
    let (mut clients, mut more) = (Vec::new(), false);
    rows.scan_raw(&prefix, Bound::Excluded(&from), &mut |key, _| {
        if clients.len() == max {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        let client = std::str::from_utf8(&key[prefix.len()..]).map_err(|error| ApiError::internal(&error))?;
        clients.push(ClientId::new(client)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((clients, more))
}

/// What `job` says has been counted at all its chunks: its row goes, unless things are otherwise by now. Answers whether
/// the row went.
pub fn settle(txn: &mut Txn<'_>, job: &Job) -> ApiResult<bool> {
    if key::tally_of(&job.key).is_some_and(|(_, _, client)| !client.is_empty()) {
        let still = self::job(txn, &job.key, &job.value, 1)?.is_none_or(|now| now.held == job.held);
        if still {
            txn.delete_raw(job.key.clone());
        }
        return Ok(still);
    }
    if txn.get_raw(&job.key)?.as_ref() != Some(&job.value) {
        return Ok(false);
    }
    // While clients of a holding that went are due, its row has the list of its chunks for them.
    let waits = !job.held && !txn.is_empty(&key::tally_clients(&job.name, job.ref_tag))?;
    if !job.more && !waits {
        txn.delete_raw(job.key.clone());
        return Ok(true);
    }
    if let Some(last) = job.clients.last() {
        let row = TallyHolding { after: Some(last.clone()), ..TallyHolding::decode(&job.value)? };
        txn.put_raw(job.key.clone(), row.encode());
    }
    Ok(false)
}

/// Marks the slots that hold nothing yet.
pub fn build_empty(txn: &mut Txn<'_>, slots: &[Slot]) -> ApiResult<()> {
    for slot in slots {
        if txn.is_empty(&key::slot_rows(Tag::Holding, *slot))? {
            txn.put_empty(Key::TallyBuilt(*slot));
        }
    }
    Ok(())
}

/// Makes up to `max` holdings of a slot due that come behind the name `after`; `None` when there are no more, and the
/// slot is marked. For rows from before there was a tally.
pub fn build(txn: &mut Txn<'_>, slot: Slot, after: &str, max: usize) -> ApiResult<Option<ContentName>> {
    let prefix = key::slot_rows(Tag::Holding, slot);
    let mut from = prefix.clone();
    from.extend_from_slice(after.as_bytes());
    let mut page = Vec::new();
    txn.scan_raw(&prefix, Bound::Excluded(&from), &mut |_, value| {
        page.push(Holding::decode(value)?);
        Ok(if page.len() == max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    page.iter().filter(|holding| is_counted(holding)).for_each(|h| completed(txn, &h.name, h.ref_tag));
    if page.len() < max {
        txn.put_empty(Key::TallyBuilt(slot));
        return Ok(None);
    }
    Ok(page.pop().map(|holding| holding.name))
}
