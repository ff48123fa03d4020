//! Which slots this node decides for: the cluster map as this node knows it, and the slots it has handed out.
//!
//! A change asks [`Slots::check`] inside its commit. Freezing is itself a commit, so whatever came before it is in
//! what the new owner gets, and whatever comes after is refused. Frozen slots are rows of the catalog: a restart
//! in the middle of a move must not bring back an owner that was moved away from.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use common::cluster::{ClusterMap, MapEpoch, NodeEntry, SiteEntry};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{NodeId, SiteId};
use common::placement::{SLOT_COUNT, Slot};
use tokio::sync::watch;

use crate::catalog::key::{self, Key, SLOT_TAGS, Tag};
use crate::catalog::rows::{FrozenSlot, Row};
use crate::catalog::txn::{Rows, Txn};

/// A row as it travels between nodes.
pub type RowBytes = (Bytes, Bytes);

/// The cluster map and what it says about this node.
pub struct View {
    pub map: ClusterMap,
    site: SiteId,
    node: NodeId,
    owned: Vec<bool>,
}

impl View {
    fn new(map: ClusterMap, site: &SiteId, node: &NodeId) -> Self {
        let mut owned = vec![false; usize::from(SLOT_COUNT)];
        if let Some(entry) = map.site(site) {
            for slot in entry.slots_owned_by(node) {
                owned[usize::from(slot.0)] = true;
            }
        }
        Self { map, site: site.clone(), node: node.clone(), owned }
    }

    pub fn site(&self) -> Option<&SiteEntry> {
        self.map.site(&self.site)
    }

    /// This node's entry; `None` until search has taken it in.
    pub fn me(&self) -> Option<&NodeEntry> {
        self.site().and_then(|site| site.node(&self.node))
    }

    pub fn owns(&self, slot: Slot) -> bool {
        self.owned.get(usize::from(slot.0)).copied().unwrap_or(false)
    }

    /// The site's other nodes.
    pub fn others(&self) -> impl Iterator<Item = &NodeEntry> {
        self.site().into_iter().flat_map(|site| &site.nodes).filter(|node| node.id != self.node)
    }
}

pub struct Slots {
    node: NodeId,
    site: SiteId,
    view: watch::Sender<Arc<View>>,
    frozen: Vec<AtomicBool>,
}

impl Slots {
    pub fn new(node: NodeId, site: SiteId, map: ClusterMap) -> Self {
        let view = watch::Sender::new(Arc::new(View::new(map, &site, &node)));
        let frozen = (0..SLOT_COUNT).map(|_| AtomicBool::new(false)).collect();
        Self { node, site, view, frozen }
    }

    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    pub fn epoch(&self) -> MapEpoch {
        self.view.borrow().map.epoch
    }

    /// Takes a newer map. The caller has made it durable.
    pub fn adopt(&self, map: ClusterMap) {
        self.view.send_if_modified(|view| {
            let newer = map.epoch > view.map.epoch;
            if newer {
                *view = Arc::new(View::new(map, &self.site, &self.node));
            }
            newer
        });
    }

    /// Whether this node owns the slot under the map it knows.
    pub fn owns(&self, slot: Slot) -> bool {
        self.view.borrow().owns(slot)
    }

    /// Refuses a request about a slot that this node does not decide for at the moment.
    pub fn check(&self, slot: Slot) -> ApiResult<()> {
        if !self.owns(slot) {
            let message = format!("slot {} belongs to another node under map {}", slot.0, self.epoch().0);
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

    /// Reads which slots were frozen when the node stopped.
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
