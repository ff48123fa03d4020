//! Which slots a shard decides for: what the cluster map says, less the slots that are between two owners.
//!
//! A change asks [`Slots::check`] inside its commit. Freezing is itself a commit, so whatever came before it is in
//! what the new owner gets, and whatever comes after is refused. How far a move is is a row of the shard: whoever serves
//! it next, in the middle of a move, must not bring back an owner that was moved away from.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::NodeId;
use common::placement::{SLOT_COUNT, Slot};

use crate::catalog::key::{self, Key, SLOT_TAGS, Tag};
use crate::catalog::rows::{MoveStep, MovingSlot, Row};
use crate::catalog::txn::{Rows, Txn};
use crate::view::Maps;

/// A row as it travels between nodes.
pub type RowBytes = (Bytes, Bytes);

pub struct Slots {
    shard: NodeId,
    maps: Arc<Maps>,
    frozen: Vec<AtomicBool>,
    /// Why moves do not go on, for whoever is refused meanwhile.
    hindrance: Mutex<Option<String>>,
}

impl Slots {
    /// Of a shard that this node serves while the map says so.
    pub fn new(shard: NodeId, maps: Arc<Maps>) -> Self {
        let frozen = (0..SLOT_COUNT).map(|_| AtomicBool::new(false)).collect();
        Self { shard, maps, frozen, hindrance: Mutex::default() }
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
            let hindrance = self.hindrance.lock().unwrap_or_else(PoisonError::into_inner);
            let why = hindrance.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            return Err(ApiError::new(ErrorCode::SlotMoving, format!("slot {} is moving{why}", slot.0)));
        }
        Ok(())
    }

    pub fn is_frozen(&self, slot: Slot) -> bool {
        self.frozen[usize::from(slot.0)].load(Ordering::Acquire)
    }

    /// Tells those who are refused why moves do not go on; `None` when they do.
    pub fn set_hindrance(&self, why: Option<String>) {
        *self.hindrance.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn set_frozen(&self, slot: Slot, frozen: bool) {
        self.frozen[usize::from(slot.0)].store(frozen, Ordering::Release);
    }

    /// Reads how far moves were when the shard was served last.
    pub fn restore(&self, rows: &(impl Rows + ?Sized)) -> ApiResult<()> {
        for (slot, moving) in moving(rows)? {
            self.set_frozen(slot, moving.step.freezes());
        }
        Ok(())
    }

    /// Freezes slots for the move that `moving` describes; in a commit.
    pub fn freeze(&self, txn: &mut Txn<'_>, slots: &[Slot], moving: &MovingSlot) -> ApiResult<()> {
        for slot in slots {
            if !self.owns(*slot) {
                return Err(ApiError::new(
                    ErrorCode::WrongNode,
                    format!("slot {} is not owned here", slot.0),
                ));
            }
            // What is here of such a slot is not what it should be.
            if of(txn, *slot)?.is_some_and(|before| before.step == MoveStep::Promised) {
                self.check(*slot)?;
            }
        }
        slots.iter().for_each(|slot| self.note(txn, *slot, moving));
        Ok(())
    }

    /// Notes how far a slot's move is; in a commit, with [`Slots::recall`] in another one behind it.
    pub fn note(&self, txn: &mut Txn<'_>, slot: Slot, moving: &MovingSlot) {
        txn.put(Key::MovingSlot(slot), moving);
        if moving.step.freezes() {
            self.set_frozen(slot, true);
        }
    }

    /// Lets changes in again, or not, as is noted of the slots. In a commit of its own: only a note that is durable lets
    /// changes in, and one that failed has frozen nothing.
    pub fn recall(&self, txn: &Txn<'_>, slots: &[Slot]) -> ApiResult<()> {
        slots.iter().try_for_each(|slot| {
            self.set_frozen(*slot, of(txn, *slot)?.is_some_and(|moving| moving.step.freezes()));
            Ok(())
        })
    }
}

/// How far the move of a slot is.
pub fn of(rows: &(impl Rows + ?Sized), slot: Slot) -> ApiResult<Option<MovingSlot>> {
    rows.get(Key::MovingSlot(slot))
}

/// The slots that are between two owners.
pub fn moving(rows: &(impl Rows + ?Sized)) -> ApiResult<Vec<(Slot, MovingSlot)>> {
    let mut slots = Vec::new();
    rows.scan(&key::all(Tag::MovingSlot), &mut |key, value| {
        if let Some(slot) = key::moving_slot(key) {
            slots.push((slot, MovingSlot::decode(value)?));
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
