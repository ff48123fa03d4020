//! Who holds what in a site: two rules that every gateway and node computes alike from the cluster map.
//!
//! - **Rows** (holdings of a name, the library of a client) live in one of [`SLOT_COUNT`] *slots*; the map
//!   names the node whose shard has each slot, and the node that serves each shard. Slots move one at a time, each
//!   by one transaction in search, so at any epoch exactly one node decides for a name or client. New nodes take over the slots that the ranking below
//!   gives them: about 1/n of all, and no other slot moves.
//! - **Chunks** never change, so they need no owner: weighted rendezvous hashing ranks the site's nodes for
//!   a chunk; as many of the first as the site keeps copies are to have it, and it is looked for down the ranking.
//!   (Thaler and Ravishankar, 1998; weights: Schindelhauer and Schomaker, 2005.)

use crate::cluster::{NodeEntry, NodeState, REPLICAS_MAX, SiteEntry};
use crate::hash::ChunkHash;
use crate::id::{ClientId, NodeId};
use crate::name::ContentName;

/// Row slots of a site. Fixed: it is part of the keys on disk.
pub const SLOT_COUNT: u16 = 1024;

/// A slot: a fixed share of a site's names and clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u16);

impl Slot {
    pub fn of_name(name: &ContentName) -> Self {
        Self::of(b"name", name.as_str())
    }

    pub fn of_client(client: &ClientId) -> Self {
        Self::of(b"client", client.as_str())
    }

    /// Where it is counted who holds a chunk; the chunk itself has no owner.
    pub fn of_chunk(hash: &ChunkHash) -> Self {
        Self::first_of(hash.as_bytes())
    }

    fn of(domain: &[u8], text: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(domain).update(b"\0").update(text.as_bytes());
        Self::first_of(hasher.finalize().as_bytes())
    }

    fn first_of(hash: &[u8; 32]) -> Self {
        Self(u16::from_le_bytes([hash[0], hash[1]]) % SLOT_COUNT)
    }
}

/// The site's nodes for a chunk, best first, as places in [`SiteEntry::nodes`]. Nodes without weight (draining)
/// come last; those that are gone are left out.
pub fn rank_for_chunk(site: &SiteEntry, hash: &ChunkHash) -> Vec<usize> {
    rank(site, hash.as_bytes())
}

/// The nodes that are to have a chunk, best first: as many as the site keeps copies, or has nodes. A node that is
/// down is among them: what it has is still there when it comes back.
pub fn nodes_of_chunk(site: &SiteEntry, hash: &ChunkHash) -> Vec<usize> {
    let mut ranked = rank_for_chunk(site, hash);
    ranked.retain(|index| site.nodes[*index].weight > 0);
    ranked.truncate(usize::from(site.replicas));
    ranked
}

/// The node whose shard should have a slot: the owner differs only while slots are on the move.
pub fn preferred_owner(site: &SiteEntry, slot: Slot) -> Option<&NodeEntry> {
    rank(site, &slot.0.to_le_bytes()).first().map(|index| &site.nodes[*index])
}

/// The nodes that should follow a shard, best first: alive, other than its primary, as many as there are further
/// copies.
pub fn preferred_followers(site: &SiteEntry, shard: &NodeEntry) -> Vec<usize> {
    let mut key = b"shard\0".to_vec();
    key.extend_from_slice(shard.id.as_str().as_bytes());
    let mut ranked = rank(site, &key);
    ranked.retain(|index| site.nodes[*index].takes_writes() && *index != usize::from(shard.shard.primary));
    // The shard's own node, if it is back, before all others: it is to serve it again.
    ranked.sort_by_key(|index| site.nodes[*index].id != shard.id);
    ranked.truncate(usize::from(site.replicas.saturating_sub(1)));
    ranked
}

/// Greatest weight that [`weights`] gives.
const WEIGHT_MAX: f64 = 1_000_000.0;
/// Rounds of fitting; each about halves the error.
const FIT_ROUNDS: usize = 24;
/// Beyond this many nodes the closed form is as good as fitting, and faster.
const FIT_NODES_MAX: usize = 48;

/// Weights with which nodes of these capacities fill evenly when each chunk is on `replicas` of them. A capacity of 0
/// gives 0.
///
/// The places of a chunk are drawn one after the other and without putting back, so a node of twice the capacity, drawn
/// in proportion, would get less than twice as much. Wanted is that node *i* is among the drawn with probability
/// `p = replicas * capacity / sum`, at most 1. With exponential clocks, which is what the scores are, `-ln(1 - p)` is
/// near; proportional fitting with the exact probabilities does the rest.
pub fn weights(capacities: &[u64], replicas: u8) -> Vec<u32> {
    let used: Vec<usize> = (0..capacities.len()).filter(|i| capacities[*i] > 0).collect();
    let replicas = usize::from(replicas).clamp(1, used.len().max(1));
    let mut weights = vec![0; capacities.len()];
    let wanted = inclusions_wanted(&used.iter().map(|i| capacities[*i] as f64).collect::<Vec<_>>(), replicas);
    let mut fitted: Vec<f64> = match replicas {
        1 => wanted.clone(),
        _ => wanted.iter().map(|p| -(1.0 - p.min(0.999)).ln()).collect(),
    };
    if replicas > 1 && used.len() > replicas && used.len() <= FIT_NODES_MAX {
        for _ in 0..FIT_ROUNDS {
            let got = inclusions(&fitted, replicas);
            for ((weight, got), wanted) in fitted.iter_mut().zip(got).zip(&wanted) {
                *weight *= wanted / got;
            }
        }
    }
    let greatest = fitted.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    for (index, weight) in used.into_iter().zip(fitted) {
        weights[index] = (weight / greatest * WEIGHT_MAX).round().max(1.0) as u32;
    }
    weights
}

/// Copies that a site keeps unless its operator says otherwise.
const REPLICAS_DEFAULT: u8 = 2;
/// Size that a node is taken to have which tells none.
const CAPACITY_UNKNOWN: u64 = 1 << 30;

/// Sets how many copies a site keeps and the shares of its nodes, from what is wanted of it and of them: not
/// more copies than there are nodes, and shares by size for those that are to have any.
pub fn share_out(site: &mut SiteEntry) {
    let there = site.nodes.iter().filter(|node| node.state != NodeState::Removed).count();
    let wanted = site.replicas_wanted.unwrap_or(REPLICAS_DEFAULT);
    site.replicas = wanted.min(u8::try_from(there).unwrap_or(u8::MAX)).clamp(1, REPLICAS_MAX);
    let size = |node: &NodeEntry| match (node.state, node.capacity_bytes) {
        (NodeState::Active, 0) => CAPACITY_UNKNOWN,
        (NodeState::Active, bytes) => bytes,
        (NodeState::Draining | NodeState::Removed, _) => 0,
    };
    let sizes: Vec<u64> = site.nodes.iter().map(size).collect();
    for (node, weight) in site.nodes.iter_mut().zip(weights(&sizes, site.replicas)) {
        node.weight = weight;
    }
}

/// How often each node is to be among the drawn; what one cannot take, for no chunk is on a node twice, the others do.
fn inclusions_wanted(capacities: &[f64], replicas: usize) -> Vec<f64> {
    let mut wanted = vec![0.0; capacities.len()];
    let mut full = vec![false; capacities.len()];
    loop {
        let places = replicas - full.iter().filter(|full| **full).count();
        let sum: f64 = capacities.iter().zip(&full).filter(|(_, full)| !**full).map(|(c, _)| c).sum();
        let mut changed = false;
        for (index, capacity) in capacities.iter().enumerate().filter(|(index, _)| !full[*index]) {
            wanted[index] = places as f64 * capacity / sum;
        }
        for index in 0..capacities.len() {
            if !full[index] && wanted[index] >= 1.0 {
                (wanted[index], full[index], changed) = (1.0, true, true);
            }
        }
        if !changed {
            return wanted;
        }
    }
}

/// How often each of these weights is among the first `replicas` (2 or 3) that are drawn.
fn inclusions(weights: &[f64], replicas: usize) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    let mut got: Vec<f64> = weights.iter().map(|w| w / sum).collect();
    for (i, first) in weights.iter().enumerate() {
        for (j, second) in weights.iter().enumerate().filter(|(j, _)| *j != i) {
            let both = first / sum * second / (sum - first);
            got[j] += both;
            if replicas < 3 {
                continue;
            }
            for (k, third) in weights.iter().enumerate().filter(|(k, _)| *k != i && *k != j) {
                got[k] += both * third / (sum - first - second);
            }
        }
    }
    got
}

fn rank(site: &SiteEntry, key: &[u8]) -> Vec<usize> {
    let scores = site.nodes.iter().map(|node| score(&node.id, node.weight, key));
    let mut scored: Vec<(f64, usize)> =
        scores.zip(0..).filter(|(_, index)| site.nodes[*index].state != NodeState::Removed).collect();
    let id = |index: usize| &site.nodes[index].id;
    scored.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| id(*x).cmp(id(*y))));
    scored.into_iter().map(|(_, index)| index).collect()
}

/// `-weight / ln(u)` with `u` uniform in (0, 1) from the hash of node and key.
fn score(node: &NodeId, weight: u32, key: &[u8]) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(node.as_str().as_bytes()).update(b"\0").update(key);
    let digest = hasher.finalize();
    let bits = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("8 bytes")) >> 11;
    let uniform = (bits as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(weight) / uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ShardEntry;
    use crate::id::SiteId;
    use proptest::prelude::*;

    fn site(weights: &[u32]) -> SiteEntry {
        let mut site = SiteEntry::new(SiteId::new("tokyo").unwrap());
        for (i, weight) in weights.iter().enumerate() {
            let id = NodeId::new(&format!("tokyo.n{i}")).unwrap();
            site.nodes.push(NodeEntry {
                id,
                http: format!("http://127.0.0.1:{}", 9000 + i),
                admin: String::new(),
                state: NodeState::Active,
                alive: true,
                weight: *weight,
                capacity_bytes: u64::from(*weight) << 30,
                shard: ShardEntry { primary: i as u16, ..ShardEntry::default() },
            });
        }
        site
    }

    fn keys(n: u32) -> impl Iterator<Item = ChunkHash> {
        (0..n).map(|i| ChunkHash::of(&i.to_le_bytes()))
    }

    #[test]
    fn shares_follow_the_weights() {
        let site = site(&[100, 100, 200]);
        let mut counts = [0u32; 3];
        for key in keys(20_000) {
            counts[rank_for_chunk(&site, &key)[0]] += 1;
        }
        for (count, share) in counts.iter().zip([0.25, 0.25, 0.5]) {
            let got = f64::from(*count) / 20_000.0;
            assert!((got - share).abs() < 0.02, "{counts:?}");
        }
    }

    #[test]
    fn an_added_node_takes_its_share_and_nothing_else_moves() {
        let (before, after) = (site(&[100; 3]), site(&[100; 4]));
        let mut moved = 0;
        for key in keys(20_000) {
            let (old, new) = (rank_for_chunk(&before, &key)[0], rank_for_chunk(&after, &key)[0]);
            if old != new {
                assert_eq!(new, 3);
                moved += 1;
            }
        }
        assert!((4_600..5_400).contains(&moved), "{moved} of 20000 moved, a quarter is right");
    }

    #[test]
    fn nodes_of_different_sizes_fill_evenly() {
        for (capacities, replicas) in [
            (vec![10u64, 10, 20], 2),
            (vec![1, 1, 1, 5], 2),
            (vec![3, 7, 11, 2, 5], 3),
            (vec![10, 20, 30, 40], 1),
            (vec![4, 4, 100], 2),
        ] {
            let fitted = weights(&capacities, replicas);
            let site = SiteEntry { replicas, ..site(&fitted) };
            let mut counts = vec![0u64; capacities.len()];
            for key in keys(20_000) {
                nodes_of_chunk(&site, &key).into_iter().for_each(|index| counts[index] += 1);
            }
            let capacities_f64: Vec<f64> = capacities.iter().map(|c| *c as f64).collect();
            let wanted = inclusions_wanted(&capacities_f64, usize::from(replicas));
            for (count, wanted) in counts.iter().zip(wanted) {
                let got = *count as f64 / 20_000.0;
                assert!((got / wanted - 1.0).abs() < 0.05, "{capacities:?} x{replicas}: {counts:?}");
            }
        }
        assert_eq!(inclusions_wanted(&[10.0, 10.0, 20.0], 2), [0.5, 0.5, 1.0]);
        assert_eq!(inclusions_wanted(&[4.0, 4.0, 100.0], 2), [0.5, 0.5, 1.0]);
        assert_eq!(weights(&[5, 0, 5], 2), [1_000_000, 0, 1_000_000]);
        assert_eq!(weights(&[], 2), Vec::<u32>::new());
    }

    #[test]
    fn with_two_copies_an_added_node_takes_its_share_and_no_other_copy_moves() {
        let two = |n: usize| SiteEntry { replicas: 2, ..site(&weights(&vec![7; n], 2)) };
        let (before, after) = (two(3), two(4));
        let mut moved = 0;
        for key in keys(20_000) {
            let old = nodes_of_chunk(&before, &key);
            let new: Vec<_> = nodes_of_chunk(&after, &key).into_iter().filter(|i| !old.contains(i)).collect();
            assert!(new.iter().all(|index| *index == 3), "{old:?} {new:?}");
            moved += new.len();
        }
        assert!((9_600..10_400).contains(&moved), "{moved} of 40000 copies moved, a quarter is right");
    }

    proptest! {
        #[test]
        fn a_slot_is_in_bounds_and_the_order_of_nodes_in_the_map_does_not_matter(key in "[a-z]{3,10}/\\PC{1,20}", n in 1usize..8) {
            prop_assume!(key.parse::<ContentName>().is_ok());
            let name: ContentName = key.parse().unwrap();
            let slot = Slot::of_name(&name);
            prop_assert!(slot.0 < SLOT_COUNT);
            let a = site(&vec![100; n]);
            let mut b = a.clone();
            b.nodes.reverse();
            prop_assert_eq!(&preferred_owner(&a, slot).unwrap().id, &preferred_owner(&b, slot).unwrap().id);
        }
    }
}
