//! Which slots a shard decides for: what the cluster map says, and the slots that were handed out.
//!
//! A change asks [`Slots::check`] inside its commit. Freezing is itself a commit, so whatever came before it is in
//! what the new owner gets, and whatever comes after is refused. Frozen slots are rows of the shard: whoever serves it
//! next, in the middle of a move, must not bring back an owner that was moved away from.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::NodeId;
use common::placement::{SLOT_COUNT, Slot};

use crate::catalog::key::{self, Key, SLOT_TAGS, Tag};
use crate::catalog::rows::{FrozenSlot, Row};
use crate::catalog::txn::{Rows, Txn};
use crate::view::Maps;

/// A row as it travels between nodes.
pub type RowBytes = (Bytes, Bytes);

pub struct Slots {
    shard: NodeId,
    maps: Arc<Maps>,
    frozen: Vec<AtomicBool>,
}

impl Slots {
    /// Of a shard that this node serves while the map says so.
    pub fn new(shard: NodeId, maps: Arc<Maps>) -> Self {
        let frozen = (0..SLOT_COUNT).map(|_| AtomicBool::new(false)).collect();
        Self { shard, maps, frozen }
    }

    /// Whether the shard has the slot, and this node serves it, under the map that it knows.
    pub fn owns(&self, slot: Slot) -> bool {
        self.maps.with(|view| view.serves_slot(&self.shard, slot))
    }

    /// Refuses a request about a slot that is not decided for here at the moment.
    pub fn check(&self, slot: Slot) -> ApiResult<()> {
        if !self.owns(slot) {
            let epoch = self.maps.epoch().0;
            let message = format!("slot {} belongs to another node under map {epoch}", slot.0);
            return Err(ApiError::new(ErrorCode::WrongNode, message));
        }
        if self.is_frozen(slot) {
            return Err(ApiError::new(ErrorCode::SlotMoving, format!("slot {} is moving", slot.0)));
        }
        Ok(())
    }

    pub fn is_frozen(&self, slot: Slot) -> bool {
        self.frozen[usize::from(slot.0)].load(Ordering::Acquire)
    }

    fn set_frozen(&self, slot: Slot, frozen: bool) {
        self.frozen[usize::from(slot.0)].store(frozen, Ordering::Release);
    }

    /// Reads which slots were frozen when the shard was served last.
    pub fn restore(&self, rows: &(impl Rows + ?Sized)) -> ApiResult<()> {
        for (slot, _) in frozen(rows)? {
            self.set_frozen(slot, true);
        }
        Ok(())
    }

    /// Freezes slots for the move that `frozen` describes; in a commit. Should the commit fail,
    /// [`Slots::unfreeze`] them.
    pub fn freeze(&self, txn: &mut Txn<'_>, slots: &[Slot], frozen: &FrozenSlot) -> ApiResult<()> {
        for slot in slots {
            if !self.owns(*slot) {
                return Err(ApiError::new(
                    ErrorCode::WrongNode,
                    format!("slot {} is not owned here", slot.0),
                ));
            }
        }
        for slot in slots {
            txn.put(Key::FrozenSlot(*slot), frozen);
            self.set_frozen(*slot, true);
        }
        Ok(())
    }

    /// Lets changes in again. In the commit that removes the rows which say otherwise, so that a freeze behind it is
    /// not undone.
    pub fn unfreeze(&self, slots: &[Slot]) {
        slots.iter().for_each(|slot| self.set_frozen(*slot, false));
    }
}

/// The slots that are frozen, and for whom.
pub fn frozen(rows: &(impl Rows + ?Sized)) -> ApiResult<Vec<(Slot, FrozenSlot)>> {
    let mut slots = Vec::new();
    rows.scan(&key::all(Tag::FrozenSlot), &mut |key, value| {
        if let Some(slot) = key::frozen_slot(key) {
            slots.push((slot, FrozenSlot::decode(value)?));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(slots)
}

/// Bytes of a slot's rows.
pub fn row_bytes(rows: &(impl Rows + ?Sized), slot: Slot) -> ApiResult<usize> {
    let mut bytes = 0;
    for tag in SLOT_TAGS {
        rows.scan(&key::slot_rows(tag, slot), &mut |key, value| {
            bytes += key.len() + value.len();
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(bytes)
}

/// A slot's rows, as they are kept.
pub fn export(rows: &(impl Rows + ?Sized), slot: Slot, into: &mut Vec<RowBytes>) -> ApiResult<()> {
    for tag in SLOT_TAGS {
        rows.scan(&key::slot_rows(tag, slot), &mut |key, value| {
            into.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(())
}

/// Up to `max` keys of a slot's rows.
pub fn some_keys(rows: &(impl Rows + ?Sized), slot: Slot, max: usize) -> ApiResult<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    for tag in SLOT_TAGS {
        rows.scan(&key::slot_rows(tag, slot), &mut |key, _| {
            if keys.len() == max {
                return Ok(ControlFlow::Break(()));
            }
            keys.push(key.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(keys)
}
