//! Who holds which bytes: per client the bytes that it alone holds and those that it shares, always current.
//!
//! ```text
//! slot of the name                              slots of the chunks
//!   a holding completes or goes, a client   ┌─▶ ChunkHolder   who holds it, and through what
//!   comes or leaves: a row says that it is ─┤   ChunkTally    how many clients
//!   due ([`due`]), in the same commit       │   ClientTally   bytes of a client, of all clients: SlotTally
//!   a worker sends it out ([`worker`]) ─────┘
//! ```
//! The rows that are due say whom to look at, not what to do: what is sent is how things are when it is sent. So it
//! may be sent twice, and only the last word counts. At the chunks a set of holders is kept, never a bare counter; the
//! sums change with the set, in the same commit, a few rows for each chunk.
//!
//! A chunk counts once for a client, through however many of its contents. Bytes that several clients hold are divided
//! among them in proportion to what each holds of such bytes ([`common::api::node::TallySums::fair_share`]); so all
//! clients together come to the bytes of all chunks that any client holds. What is on its way counts a moment later.

pub mod due;
pub mod worker;

use std::ops::ControlFlow;

use common::api::node::{ClientTally, RefTag, TallyChange, TallySums};
use common::error::{ApiError, ApiResult};
use common::hash::ChunkHash;
use common::id::ClientId;
use common::manifest::ChunkRef;
use common::name::ContentName;
use common::placement::Slot;

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{ChunkTally, Row, SlotTally};
use crate::catalog::txn::{Rows, Txn};

/// Enters what `change` says of one of its clients and one of its chunks.
pub fn apply(txn: &mut Txn<'_>, change: &TallyChange, client: &ClientId, chunk: &ChunkRef) -> ApiResult<()> {
    if change.held {
        hold(txn, chunk, client, change.ref_tag, &change.name)
    } else {
        let_go(txn, &chunk.hash, client, change.ref_tag, &change.name)
    }
}

fn hold(
    txn: &mut Txn<'_>,
    chunk: &ChunkRef,
    client: &ClientId,
    tag: RefTag,
    name: &ContentName,
) -> ApiResult<()> {
    let hash = &chunk.hash;
    let holder = Key::ChunkHolder(hash, client, tag, name);
    if txn.has(holder)? {
        return Ok(());
    }
    let is_new = txn.is_empty(&key::chunk_holders_of(hash, client))?;
    if is_new {
        let before = txn.get(Key::ChunkTally(hash))?.unwrap_or(ChunkTally { len: chunk.len, clients: 0 });
        let mut sums = Sums::of(txn, hash, before.len)?;
        match before.clients {
            0 => sums.add_alone(txn, client)?,
            1 => {
                let other = some_holder(txn, hash)?;
                sums.remove_alone(txn, &other)?;
                sums.slot.shared_bytes += sums.len;
                sums.add_sharing(txn, &other)?;
                sums.add_sharing(txn, client)?;
            }
            _ => sums.add_sharing(txn, client)?,
        }
        sums.put(txn);
        txn.put(Key::ChunkTally(hash), &ChunkTally { clients: before.clients + 1, ..before });
    }
    txn.put_empty(holder);
    Ok(())
}

fn let_go(
    txn: &mut Txn<'_>,
    hash: &ChunkHash,
    client: &ClientId,
    tag: RefTag,
    name: &ContentName,
) -> ApiResult<()> {
    let holder = Key::ChunkHolder(hash, client, tag, name);
    if !txn.has(holder)? {
        return Ok(());
    }
    txn.delete(holder);
    if !txn.is_empty(&key::chunk_holders_of(hash, client))? {
        return Ok(());
    }
    let Some(before) = txn.get::<ChunkTally>(Key::ChunkTally(hash))? else { return Ok(()) };
    let mut sums = Sums::of(txn, hash, before.len)?;
    match before.clients {
        0 | 1 => sums.remove_alone(txn, client)?,
        2 => {
            let other = some_holder(txn, hash)?;
            sums.remove_sharing(txn, client)?;
            sums.remove_sharing(txn, &other)?;
            sums.slot.shared_bytes = sums.slot.shared_bytes.saturating_sub(sums.len);
            sums.add_alone(txn, &other)?;
        }
        _ => sums.remove_sharing(txn, client)?,
    }
    sums.put(txn);
    match before.clients {
        0 | 1 => txn.delete(Key::ChunkTally(hash)),
        clients => txn.put(Key::ChunkTally(hash), &ChunkTally { clients: clients - 1, ..before }),
    }
    Ok(())
}

/// The first of a chunk's holders.
fn some_holder(txn: &Txn<'_>, hash: &ChunkHash) -> ApiResult<ClientId> {
    let mut found = None;
    txn.scan(&key::chunk_holders(hash), &mut |key, _| {
        found = key::chunk_holder(key);
        Ok(ControlFlow::Break(()))
    })?;
    found.ok_or_else(|| ApiError::internal(&NoHolder(*hash)))
}

/// The rows of a chunk contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("chunk {0} is counted as held, and nobody holds it")]
struct NoHolder(ChunkHash);

/// The sums that a chunk of `len` bytes enters into.
struct Sums {
    place: Slot,
    slot: SlotTally,
    len: u64,
}

impl Sums {
    fn of(txn: &Txn<'_>, hash: &ChunkHash, len: u32) -> ApiResult<Self> {
        let place = Slot::of_chunk(hash);
        Ok(Self { place, slot: txn.get(Key::SlotTally(place))?.unwrap_or_default(), len: u64::from(len) })
    }

    fn put(self, txn: &mut Txn<'_>) {
        txn.put(Key::SlotTally(self.place), &self.slot);
    }

    fn add_alone(&mut self, txn: &mut Txn<'_>, client: &ClientId) -> ApiResult<()> {
        self.slot.unique_bytes += self.len;
        self.change(txn, client, |tally, len| tally.unique_bytes += len)
    }

    fn remove_alone(&mut self, txn: &mut Txn<'_>, client: &ClientId) -> ApiResult<()> {
        self.slot.unique_bytes = self.slot.unique_bytes.saturating_sub(self.len);
        self.change(txn, client, |tally, len| tally.unique_bytes = tally.unique_bytes.saturating_sub(len))
    }

    fn add_sharing(&mut self, txn: &mut Txn<'_>, client: &ClientId) -> ApiResult<()> {
        self.slot.shared_held_bytes += self.len;
        self.change(txn, client, |tally, len| tally.shared_held_bytes += len)
    }

    fn remove_sharing(&mut self, txn: &mut Txn<'_>, client: &ClientId) -> ApiResult<()> {
        self.slot.shared_held_bytes = self.slot.shared_held_bytes.saturating_sub(self.len);
        self.change(txn, client, |tally, len| {
            tally.shared_held_bytes = tally.shared_held_bytes.saturating_sub(len);
        })
    }

    fn change(
        &self,
        txn: &mut Txn<'_>,
        client: &ClientId,
        change: impl FnOnce(&mut ClientTally, u64),
    ) -> ApiResult<()> {
        let key = Key::ClientTally(self.place, client);
        let mut tally = txn.get::<ClientTally>(key)?.unwrap_or_default();
        change(&mut tally, self.len);
        if tally == ClientTally::default() {
            txn.delete(key);
        } else {
            txn.put(key, &tally);
        }
        Ok(())
    }
}

/// The sums over a slot's chunks, for `clients`, or for all that hold any of them.
pub fn sums(
    rows: &(impl Rows + ?Sized),
    slot: Slot,
    clients: Option<&[ClientId]>,
    into: &mut TallySums,
) -> ApiResult<()> {
    let all = rows.get::<SlotTally>(Key::SlotTally(slot))?.unwrap_or_default();
    let mut sums = TallySums {
        unique_bytes: all.unique_bytes,
        shared_bytes: all.shared_bytes,
        shared_held_bytes: all.shared_held_bytes,
        ..TallySums::default()
    };
    if let Some(clients) = clients {
        for client in clients {
            if let Some(tally) = rows.get(Key::ClientTally(slot, client))? {
                sums.clients.insert(client.clone(), tally);
            }
        }
    } else {
        let prefix = key::slot_rows(Tag::ClientTally, slot);
        rows.scan(&prefix, &mut |key, value| {
            let client =
                std::str::from_utf8(&key[prefix.len()..]).map_err(|error| ApiError::internal(&error))?;
            sums.clients.insert(ClientId::new(client)?, ClientTally::decode(value)?);
            Ok(ControlFlow::Continue(()))
        })?;
    }
    into.add(&sums);
    Ok(())
}

#[cfg(test)]
mod tests;
