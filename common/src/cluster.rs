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

/// The maps that one run of search made, one after the other.
///
/// Search's database may be lost, or be put back as it once was. Maps made after that take no account of what was decided
/// meanwhile, whatever their numbers. So a map names the runs that led to it, and whoever has a map goes on only to one
/// that follows from it: [`ClusterMap::follows`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRun {
    /// Made by chance.
    pub id: String,
    /// The last map before the run.
    pub after: MapEpoch,
}

/// Runs that a map names; older ones are forgotten.
pub const MAP_RUNS_MAX: usize = 256;

/// Which map somebody has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct MapId {
    pub epoch: MapEpoch,
    /// The run that made it; `None` for no map yet, or one from before maps named their runs.
    pub run: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ClusterMap {
    pub epoch: MapEpoch,
    /// Oldest first; the last one made this map.
    #[serde(default)]
    pub runs: Vec<MapRun>,
    pub sites: Vec<SiteEntry>,
    pub origins: Vec<ServerEntry>,
    pub service_billing: Option<ServerEntry>,
    pub content_billing: Option<ServerEntry>,
}

impl ClusterMap {
    pub fn id(&self) -> MapId {
        MapId { epoch: self.epoch, run: self.runs.last().map(|run| run.id.clone()) }
    }

    /// Whether this is the map `known`, or one that takes account of all that led to it.
    pub fn follows(&self, known: &MapId) -> bool {
        let Some(run) = &known.run else { return known.epoch <= self.epoch };
        let Some(at) = self.runs.iter().position(|known| known.id == *run) else { return false };
        // The run may have gone on after the database was copied from which the next one began.
        known.epoch <= self.runs.get(at + 1).map_or(self.epoch, |next| next.after)
    }

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
    /// Nodes that are to have each chunk, and each shard's rows: 1 to [`REPLICAS_MAX`].
    pub replicas: u8,
    /// As many as the operator wants; `None`: two, or one while the site has one node.
    #[serde(default)]
    pub replicas_wanted: Option<u8>,
    pub gateways: Vec<GatewayEntry>,
    /// Every node that ever was of the site; a node keeps its place.
    pub nodes: Vec<NodeEntry>,
    /// The node whose shard has each slot, as an index into `nodes`, [`SLOT_COUNT`] entries; empty before the
    /// first node.
    pub slot_owners: Vec<u16>,
}

/// Most copies of anything that a site keeps.
pub const REPLICAS_MAX: u8 = 3;

impl SiteEntry {
    pub fn new(id: SiteId) -> Self {
        Self {
            id,
            zone: None,
            replicas: 1,
            replicas_wanted: None,
            gateways: Vec::new(),
            nodes: Vec::new(),
            slot_owners: Vec::new(),
        }
    }

    /// The node whose shard has the slot; `None` while the site has no node.
    pub fn slot_owner(&self, slot: Slot) -> Option<&NodeEntry> {
        let index = usize::from(*self.slot_owners.get(usize::from(slot.0))?);
        self.nodes.get(index)
    }

    /// The node that decides for a slot at present: the one that serves the shard which has it.
    pub fn slot_primary(&self, slot: Slot) -> Option<&NodeEntry> {
        self.slot_primary_index(slot).map(|index| &self.nodes[index])
    }

    /// Place of that node in [`SiteEntry::nodes`].
    pub fn slot_primary_index(&self, slot: Slot) -> Option<usize> {
        self.primary_index(self.slot_owner(slot)?)
    }

    /// The node that serves a shard at present.
    pub fn shard_primary(&self, shard: &NodeId) -> Option<&NodeEntry> {
        self.primary_index(self.node(shard)?).map(|index| &self.nodes[index])
    }

    /// Place in [`SiteEntry::nodes`] of the node that serves `node`'s shard.
    pub fn primary_index(&self, node: &NodeEntry) -> Option<usize> {
        let index = usize::from(node.shard.primary);
        (index < self.nodes.len()).then_some(index)
    }

    pub fn node(&self, id: &NodeId) -> Option<&NodeEntry> {
        self.nodes.iter().find(|n| &n.id == id)
    }

    pub fn node_index(&self, id: &NodeId) -> Option<usize> {
        self.nodes.iter().position(|n| &n.id == id)
    }

    /// The slots of a node's shard.
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
    /// False while its heartbeat is missing.
    pub alive: bool,
    /// Share in placement; 0 unless active. Such that nodes fill evenly: see [`crate::placement::weights`].
    pub weight: u32,
    pub capacity_bytes: u64,
    pub shard: ShardEntry,
}

impl NodeEntry {
    /// Whether it may be given anything new.
    pub fn takes_writes(&self) -> bool {
        self.alive && self.weight > 0
    }

    /// Its state as people are told: also `down`, and `syncing` while another node still serves its shard.
    pub fn shown_state(&self, site: &SiteEntry) -> &'static str {
        let serves_itself = || site.primary_index(self).is_some_and(|index| site.nodes[index].id == self.id);
        match (self.state, self.alive) {
            (NodeState::Removed, _) => "removed",
            (_, false) => "down",
            (_, true) if !serves_itself() => "syncing",
            (NodeState::Draining, true) => "draining",
            (NodeState::Active, true) => "active",
        }
    }
}

/// What the operator wants of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Serves; takes its share of what is new.
    Active,
    /// Serves what it still has; everything moves to the other nodes.
    Draining,
    /// Gone for ever. Its place stays, and so does its shard until what is left in it is settled.
    Removed,
}

/// A node's *shard*: the rows of its slots, its delivery records, and what it still has to tell others. One node at a
/// time serves it: the node itself, or while that is away one that followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ShardEntry {
    /// Greater each time another node becomes primary.
    pub term: u64,
    /// Place in [`SiteEntry::nodes`] of the node that serves it.
    pub primary: u16,
    /// Places of the nodes that have every acknowledged change: one of them becomes primary when that one is lost.
    pub followers: Vec<u16>,
}

/// A server that belongs to no site: origin, billing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEntry {
    pub name: ServerName,
    pub http: String,
    pub admin: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(epoch: u64, runs: &[(&str, u64)]) -> ClusterMap {
        let run = |(id, after): &(&str, u64)| MapRun { id: (*id).to_owned(), after: MapEpoch(*after) };
        ClusterMap { epoch: MapEpoch(epoch), runs: runs.iter().map(run).collect(), ..ClusterMap::default() }
    }

    #[test]
    fn a_map_follows_from_those_that_led_to_it_and_from_no_other() {
        let first = map(52, &[("a", 0)]);
        assert!(first.follows(&first.id()) && first.follows(&MapId::default()));
        assert!(map(60, &[("a", 0), ("b", 52)]).follows(&first.id()));
        // From a copy that was made at 50; from a database that was empty; of another cluster.
        assert!(!map(60, &[("a", 0), ("b", 50)]).follows(&first.id()));
        assert!(!map(60, &[("b", 1)]).follows(&first.id()));
        assert!(!map(51, &[("a", 0)]).follows(&first.id()), "older");
        let unnamed = MapId { epoch: MapEpoch(52), run: None };
        assert!(first.follows(&unnamed) && !map(51, &[("a", 0)]).follows(&unnamed));
    }
}
