//! The cluster map: which sites and servers there are, and which node owns which slot.
//!
//! Changed only by search, one SQL transaction per change, each raising the epoch. Everyone else long-polls
//! it; nodes keep the last one on disk and hand it on, so sites run and gateways start while search is down.

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, ServerName, SiteId};
use crate::placement::{SLOT_COUNT, Slot};

/// Number of a map; each change has a greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct MapEpoch(pub u64);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ClusterMap {
    pub epoch: MapEpoch,
    pub sites: Vec<SiteEntry>,
    pub origins: Vec<ServerEntry>,
    pub service_billing: Option<ServerEntry>,
    pub content_billing: Option<ServerEntry>,
}

impl ClusterMap {
    pub fn site(&self, id: &SiteId) -> Option<&SiteEntry> {
        self.sites.iter().find(|s| &s.id == id)
    }

    pub fn origin(&self, name: &ServerName) -> Option<&ServerEntry> {
        self.origins.iter().find(|o| &o.name == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteEntry {
    pub id: SiteId,
    #[serde(default)]
    pub zone: Option<String>,
    pub gateways: Vec<GatewayEntry>,
    pub nodes: Vec<NodeEntry>,
    /// Owner of each slot as an index into `nodes`, [`SLOT_COUNT`] entries; empty before the first node.
    pub slot_owners: Vec<u16>,
}

impl SiteEntry {
    pub fn new(id: SiteId) -> Self {
        Self { id, zone: None, gateways: Vec::new(), nodes: Vec::new(), slot_owners: Vec::new() }
    }

    /// The node that decides for a slot; `None` while the site has no node.
    pub fn slot_owner(&self, slot: Slot) -> Option<&NodeEntry> {
        self.slot_owner_index(slot).map(|index| &self.nodes[index])
    }

    /// Place of that node in [`SiteEntry::nodes`].
    pub fn slot_owner_index(&self, slot: Slot) -> Option<usize> {
        let index = usize::from(*self.slot_owners.get(usize::from(slot.0))?);
        (index < self.nodes.len()).then_some(index)
    }

    pub fn node(&self, id: &NodeId) -> Option<&NodeEntry> {
        self.nodes.iter().find(|n| &n.id == id)
    }

    pub fn slots_owned_by<'a>(&'a self, id: &'a NodeId) -> impl Iterator<Item = Slot> + 'a {
        (0..SLOT_COUNT).map(Slot).filter(move |s| self.slot_owner(*s).is_some_and(|n| &n.id == id))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayEntry {
    pub name: ServerName,
    /// Base address, `http://host:port`.
    pub http: String,
    #[serde(default)]
    pub s3: Option<String>,
    pub admin: String,
    /// False while its heartbeat is missing.
    pub alive: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    pub id: NodeId,
    pub http: String,
    pub admin: String,
    pub state: NodeState,
    /// Share in placement, in proportion to capacity (GiB, at least 1; 0 while draining).
    pub weight: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Serves; takes its share of new writes.
    Active,
    /// Missed its heartbeats.
    Down,
}

/// A server that belongs to no site: origin, billing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEntry {
    pub name: ServerName,
    pub http: String,
    pub admin: String,
}
