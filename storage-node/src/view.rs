//! The cluster map as this node knows it, and what it says about this node.

use std::sync::Arc;

use common::cluster::{ClusterMap, MapEpoch, NodeEntry, SiteEntry};
use common::id::{NodeId, SiteId};
use common::placement::Slot;
use tokio::sync::watch;

/// One map.
pub struct View {
    pub map: ClusterMap,
    site: SiteId,
    node: NodeId,
}

impl View {
    pub fn site(&self) -> Option<&SiteEntry> {
        self.map.site(&self.site)
    }

    /// This node's entry; `None` until search has taken it in.
    pub fn me(&self) -> Option<&NodeEntry> {
        self.site().and_then(|site| site.node(&self.node))
    }

    /// The site's other nodes.
    pub fn others(&self) -> impl Iterator<Item = &NodeEntry> {
        self.site().into_iter().flat_map(|site| &site.nodes).filter(|node| node.id != self.node)
    }

    /// The term in which this node serves a shard; `None` if another node does.
    pub fn term_of(&self, shard: &NodeId) -> Option<u64> {
        let site = self.site()?;
        let entry = site.node(shard)?;
        site.primary_index(entry).filter(|index| site.nodes[*index].id == self.node).map(|_| entry.shard.term)
    }

    /// The shards that this node serves, with their terms.
    pub fn served(&self) -> impl Iterator<Item = (&NodeId, u64)> {
        let nodes = self.site().into_iter().flat_map(|site| &site.nodes);
        nodes.filter_map(|node| Some((&node.id, self.term_of(&node.id)?)))
    }

    /// Followers that the shards served here are to have and do not have in step.
    pub fn followers_missing(&self) -> usize {
        let Some(site) = self.site() else { return 0 };
        let entries = self.served().filter_map(|(shard, _)| site.node(shard));
        let wanted = usize::from(site.replicas_wanted.unwrap_or(site.replicas)).saturating_sub(1);
        entries.map(|entry| wanted.saturating_sub(entry.shard.followers.len())).sum()
    }

    /// Whether the shard has the slot and this node serves it.
    pub fn serves_slot(&self, shard: &NodeId, slot: Slot) -> bool {
        let owner = self.site().and_then(|site| site.slot_owner(slot));
        owner.is_some_and(|owner| &owner.id == shard) && self.term_of(shard).is_some()
    }
}

/// The newest map.
pub struct Maps {
    site: SiteId,
    node: NodeId,
    view: watch::Sender<Arc<View>>,
}

impl Maps {
    pub fn new(node: NodeId, site: SiteId, map: ClusterMap) -> Self {
        let view = View { map, site: site.clone(), node: node.clone() };
        Self { site, node, view: watch::Sender::new(Arc::new(view)) }
    }

    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    pub fn with<T>(&self, ask: impl FnOnce(&View) -> T) -> T {
        ask(&self.view.borrow())
    }

    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    pub fn epoch(&self) -> MapEpoch {
        self.view.borrow().map.epoch
    }

    /// How a map looks from this node.
    pub fn look_at(&self, map: ClusterMap) -> View {
        View { map, site: self.site.clone(), node: self.node.clone() }
    }

    /// Takes a newer map. The caller has made it durable, and lets go first of what this node no longer serves in it.
    pub fn adopt(&self, newer: View) {
        self.view.send_if_modified(|view| {
            let is_newer = newer.map.epoch > view.map.epoch;
            if is_newer {
                *view = Arc::new(newer);
            }
            is_newer
        });
    }
}
