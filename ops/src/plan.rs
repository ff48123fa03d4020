//! What adding or draining a node moves: placement, asked for a sample of chunks under the map as it is and
//! as it would be, scaled up with what the nodes have now. Computes only; asks nobody.

use std::collections::HashSet;

use common::cluster::{NodeEntry, NodeState, ShardEntry, SiteEntry};
use common::hash::ChunkHash;
use common::id::NodeId;
use common::placement::{SLOT_COUNT, Slot, nodes_of_chunk, preferred_owner, share_out};
use serde::Serialize;

/// Chunks of the sample: the error of a share is well below a percent.
const SAMPLE: u32 = 20_000;
/// Fuller than this a node is not to become.
const FULL_PERCENT: f64 = 90.0;

/// What a node said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    pub used_bytes: u64,
    pub capacity_bytes: u64,
    /// Bytes a second that it may send; 0 is without limit.
    pub limit_bytes_per_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub bytes_to_move: u64,
    /// At the nodes' limits; `null` while one that sends has none.
    pub seconds: Option<u64>,
    pub slots_to_move: usize,
    pub nodes: Vec<NodePlan>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodePlan {
    pub node: NodeId,
    pub capacity_bytes: u64,
    pub used_bytes_before: u64,
    pub used_bytes_after: u64,
    pub percent_before: f64,
    pub percent_after: f64,
    /// It would be too full afterwards.
    pub too_full: bool,
}

impl Plan {
    /// Nodes that would be too full afterwards.
    pub fn too_full(&self) -> impl Iterator<Item = &NodePlan> {
        self.nodes.iter().filter(|node| node.too_full)
    }
}

/// The site as it is while a node drains.
pub fn drained(site: &SiteEntry, node: &NodeId) -> SiteEntry {
    let mut site = site.clone();
    for entry in site.nodes.iter_mut().filter(|entry| &entry.id == node) {
        entry.state = NodeState::Draining;
    }
    share_out(&mut site);
    site
}

/// The site with one more node.
pub fn added(site: &SiteEntry, node: NodeId, capacity_bytes: u64) -> SiteEntry {
    let mut site = site.clone();
    site.nodes.push(NodeEntry {
        id: node,
        http: String::new(),
        admin: String::new(),
        state: NodeState::Active,
        alive: true,
        weight: 0,
        capacity_bytes,
        shard: ShardEntry::default(),
    });
    share_out(&mut site);
    site
}

/// What moves when `before` becomes `after`, which has the same nodes or one more. `figures` are of the nodes
/// of
/// `before`, in their order; one that does not answer is taken to have what the others have.
pub fn plan(before: &SiteEntry, after: &SiteEntry, figures: &[Option<Figures>]) -> Plan {
    let moves = Moves::sample(before, after);
    let share = moves.bytes_per_copy(figures);
    let mut lines = Vec::new();
    let (mut to_move, mut slowest, mut unlimited) = (0.0, 0.0f64, false);
    for (index, node) in after.nodes.iter().enumerate() {
        let figures = figures.get(index).copied().flatten();
        let sends: f64 =
            moves.sent[index].iter().map(|copies| f64::from(*copies)).sum::<f64>() * share[index];
        to_move += sends;
        match figures.map_or(0, |f| f.limit_bytes_per_s) {
            0 => unlimited |= sends > 0.0,
            limit => slowest = slowest.max(sends / limit as f64),
        }
        if node.state != NodeState::Removed {
            lines.push(moves.line(index, node, figures, &share));
        }
    }
    Plan {
        bytes_to_move: to_move as u64,
        seconds: (!unlimited).then_some(slowest.ceil() as u64),
        slots_to_move: slots_to_move(after),
        nodes: lines,
    }
}

/// Slots that are not where placement wants them.
fn slots_to_move(after: &SiteEntry) -> usize {
    let moves = |slot: &Slot| match (after.slot_owner(*slot), preferred_owner(after, *slot)) {
        (Some(owner), Some(preferred)) => owner.id != preferred.id,
        _ => false,
    };
    (0..SLOT_COUNT).map(Slot).filter(moves).count()
}

/// The sample's copies, by the place of their node.
struct Moves {
    before: Vec<u32>,
    /// Copies dropped.
    dropped: Vec<u32>,
    /// From which node to which.
    sent: Vec<Vec<u32>>,
}

impl Moves {
    fn sample(before: &SiteEntry, after: &SiteEntry) -> Self {
        let count = after.nodes.len();
        let mut moves =
            Self { before: vec![0; count], dropped: vec![0; count], sent: vec![vec![0; count]; count] };
        for key in 0..SAMPLE {
            let hash = ChunkHash::of(&key.to_le_bytes());
            let (old, new) = (nodes_of_chunk(before, &hash), nodes_of_chunk(after, &hash));
            old.iter().for_each(|index| moves.before[*index] += 1);
            let old_set: HashSet<_> = old.iter().collect();
            let leaving: Vec<_> = old.iter().filter(|index| !new.contains(index)).collect();
            leaving.iter().for_each(|index| moves.dropped[**index] += 1);
            for (place, to) in new.iter().filter(|index| !old_set.contains(index)).enumerate() {
                // Who gives a copy up sends it; for one more copy than before it is who has one.
                if let Some(from) = leaving.get(place).copied().or(old.first()) {
                    moves.sent[*from][*to] += 1;
                }
            }
        }
        moves
    }

    /// Bytes that one copy of the sample stands for, by node.
    fn bytes_per_copy(&self, figures: &[Option<Figures>]) -> Vec<f64> {
        let known = || figures.iter().zip(&self.before).filter_map(|(f, copies)| Some(((*f)?, *copies)));
        let copies: u64 = known().map(|(_, copies)| u64::from(copies)).sum();
        let used: u64 = known().map(|(f, _)| f.used_bytes).sum();
        let mean = used as f64 / copies.max(1) as f64;
        let share = |(index, copies): (usize, &u32)| match figures.get(index).copied().flatten() {
            Some(figures) if *copies > 0 => figures.used_bytes as f64 / f64::from(*copies),
            _ => mean,
        };
        self.before.iter().enumerate().map(share).collect()
    }

    fn line(&self, index: usize, node: &NodeEntry, figures: Option<Figures>, share: &[f64]) -> NodePlan {
        let used = figures.map_or(f64::from(self.before[index]) * share[index], |f| f.used_bytes as f64);
        let capacity_bytes = figures.map_or(node.capacity_bytes, |f| f.capacity_bytes);
        let gained: f64 = self.sent.iter().zip(share).map(|(to, share)| f64::from(to[index]) * share).sum();
        let after = (used + gained - f64::from(self.dropped[index]) * share[index]).max(0.0);
        let percent = |bytes: f64| bytes / capacity_bytes.max(1) as f64 * 100.0;
        NodePlan {
            node: node.id.clone(),
            capacity_bytes,
            used_bytes_before: used as u64,
            used_bytes_after: after as u64,
            percent_before: percent(used),
            percent_after: percent(after),
            too_full: gained > 0.0 && percent(after) > FULL_PERCENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::id::SiteId;

    const GIB: u64 = 1 << 30;

    fn site(sizes_gib: &[u64], replicas: Option<u8>) -> SiteEntry {
        let mut site = SiteEntry::new(SiteId::new("tokyo").unwrap());
        site.replicas_wanted = replicas;
        for (index, size) in sizes_gib.iter().enumerate() {
            site = added(&site, NodeId::new(&format!("tokyo.n{index}")).unwrap(), size * GIB);
        }
        site.slot_owners = (0..SLOT_COUNT)
            .map(|slot| {
                let owner = preferred_owner(&site, Slot(slot)).unwrap().id.clone();
                site.node_index(&owner).unwrap() as u16
            })
            .collect();
        site
    }

    fn all(used_gib: &[u64], size_gib: &[u64], limit: u64) -> Vec<Option<Figures>> {
        let figures = |(used, size): (&u64, &u64)| {
            let (used_bytes, capacity_bytes) = (used * GIB, size * GIB);
            Some(Figures { used_bytes, capacity_bytes, limit_bytes_per_s: limit })
        };
        used_gib.iter().zip(size_gib).map(figures).collect()
    }

    fn new_node() -> NodeId {
        NodeId::new("tokyo.new").unwrap()
    }

    #[test]
    fn a_fourth_node_is_sent_a_quarter_of_all_copies_and_all_fill_evenly() {
        for replicas in 1..=3 {
            let before = site(&[100; 3], Some(replicas));
            let after = added(&before, new_node(), 100 * GIB);
            let plan = plan(&before, &after, &all(&[40; 3], &[100; 3], GIB));
            let share = plan.bytes_to_move as f64 / (120 * GIB) as f64;
            assert!((0.25 / 1.1..0.25 * 1.1).contains(&share), "{replicas} copies: {share}");
            for node in &plan.nodes {
                assert!((28.0..32.0).contains(&node.percent_after), "{replicas} copies: {:?}", plan.nodes);
                assert!(!node.too_full);
            }
            assert!((200..312).contains(&plan.slots_to_move), "{} slots", plan.slots_to_move);
            // Each of the three sends a third of it.
            let seconds = plan.seconds.unwrap();
            assert!((9..=12).contains(&seconds), "{seconds} s for 10 GiB at 1 GiB/s");
        }
    }

    #[test]
    fn nodes_of_different_sizes_are_equally_full_afterwards() {
        let sizes = [50, 100, 200];
        let before = site(&sizes, Some(1));
        let after = added(&before, new_node(), 350 * GIB);
        let plan = plan(&before, &after, &all(&[20, 40, 80], &sizes, 0));
        for node in &plan.nodes {
            assert!((18.0..22.0).contains(&node.percent_after), "{:?}", plan.nodes);
        }
        let share = plan.bytes_to_move as f64 / (140 * GIB) as f64;
        assert!((0.47..0.53).contains(&share), "half of the whole is on the new node: {share}");
        assert_eq!(plan.seconds, None, "nobody said how fast it goes");
    }

    #[test]
    fn a_drained_node_is_empty_and_the_others_have_what_it_had() {
        let before = site(&[100; 4], Some(2));
        let node = before.nodes[1].id.clone();
        let after = drained(&before, &node);
        let plan = plan(&before, &after, &all(&[60; 4], &[100; 4], GIB));
        let moved_gib = plan.bytes_to_move as f64 / GIB as f64;
        assert!((57.0..63.0).contains(&moved_gib), "{moved_gib}");
        assert_eq!(plan.nodes[1].used_bytes_after, 0);
        for index in [0, 2, 3] {
            assert!((77.0..83.0).contains(&plan.nodes[index].percent_after), "{:?}", plan.nodes);
        }
        assert_eq!(plan.too_full().count(), 0);
        assert_eq!(plan.slots_to_move, before.slots_owned_by(&node).count());
        assert!((57..=63).contains(&plan.seconds.unwrap()), "one node sends all of it");

        let fuller = super::plan(&before, &after, &all(&[75; 4], &[100; 4], GIB));
        assert_eq!(fuller.too_full().count(), 3, "{:?}", fuller.nodes);
    }

    #[test]
    fn draining_one_of_two_nodes_with_two_copies_sends_no_chunk() {
        let before = site(&[100; 2], None);
        assert_eq!(before.replicas, 2);
        let after = drained(&before, &before.nodes[0].id.clone());
        let plan = plan(&before, &after, &all(&[95; 2], &[100; 2], GIB));
        assert_eq!((plan.bytes_to_move, plan.nodes[0].used_bytes_after), (0, 0));
        assert_eq!(plan.nodes[1].used_bytes_after, 95 * GIB);
        assert_eq!(plan.too_full().count(), 0, "it was as full before");
        assert!(plan.slots_to_move > 0);
    }

    #[test]
    fn a_second_node_is_sent_a_copy_of_everything() {
        let before = site(&[100], None);
        let after = added(&before, new_node(), 100 * GIB);
        let plan = plan(&before, &after, &all(&[30], &[100], 0));
        assert_eq!(plan.bytes_to_move, 30 * GIB);
        let used: Vec<_> = plan.nodes.iter().map(|n| n.used_bytes_after).collect();
        assert_eq!(used, [30 * GIB, 30 * GIB]);
    }

    #[test]
    fn a_node_that_does_not_answer_is_taken_to_be_as_the_others() {
        let before = site(&[100; 4], Some(1));
        let mut figures = all(&[40; 4], &[100; 4], GIB);
        figures[2] = None;
        let plan = plan(&before, &drained(&before, &before.nodes[2].id.clone()), &figures);
        let moved_gib = plan.bytes_to_move as f64 / GIB as f64;
        assert!((37.0..43.0).contains(&moved_gib), "{moved_gib}");
        assert_eq!(plan.seconds, None);
    }
}
