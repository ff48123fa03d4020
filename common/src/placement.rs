//! Who holds what in a site: two rules that every gateway and node computes alike from the cluster map.
//!
//! - **Rows** (holdings of a name, the library of a client) live in one of [`SLOT_COUNT`] *slots*; the map
//!   names the node whose shard has each slot, and the node that serves each shard. Slots move by a transaction in
//!   search each, so of what several nodes may do for a name or client at most one node's changes are acknowledged.
//!   New nodes take over the slots that the ranking below gives them: about 1/n of all, and no other slot moves.
//! - **Chunks** never change, so they need no owner: weighted rendezvous hashing ranks the site's nodes for
//!   a chunk; as many of the first as the site keeps copies are to have it, and it is looked for down the ranking.
//!   (Thaler and Ravishankar, 1998; weights: Schindelhauer and Schomaker, 2005.)

use std::cmp::Ordering;

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
    rank(site, Key::of_chunk(hash))
}

/// The nodes that are to have a chunk, best first: as many as the site keeps copies, or has nodes. A node that is
/// down is among them: what it has is still there when it comes back.
pub fn nodes_of_chunk(site: &SiteEntry, hash: &ChunkHash) -> Vec<usize> {
    let mut scored = scores(site, Key::of_chunk(hash));
    scored.retain(|(_, index)| site.nodes[*index].weight > 0);
    let count = usize::from(site.replicas).min(scored.len());
    if (1..scored.len()).contains(&count) {
        scored.select_nth_unstable_by(count - 1, |a, b| best_first(site, a, b));
    }
    scored.truncate(count);
    in_order(site, scored)
}

/// The node whose shard should have a slot: the owner differs only while slots are on the move.
pub fn preferred_owner(site: &SiteEntry, slot: Slot) -> Option<&NodeEntry> {
    rank(site, Key::of_bytes(&slot.0.to_le_bytes())).first().map(|index| &site.nodes[*index])
}

/// The nodes that should follow a shard, best first: alive, other than its primary, as many as there are further
/// copies.
pub fn preferred_followers(site: &SiteEntry, shard: &NodeEntry) -> Vec<usize> {
    let mut key = b"shard\0".to_vec();
    key.extend_from_slice(shard.id.as_str().as_bytes());
    let mut ranked = rank(site, Key::of_bytes(&key));
    // The shard's own node also while it drains: what is left in the shard is settled there.
    let may_follow = |node: &NodeEntry| node.alive && (node.weight > 0 || node.id == shard.id);
    ranked.retain(|index| may_follow(&site.nodes[*index]) && *index != usize::from(shard.shard.primary));
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

/// What nodes are ranked for: 64 bits that are spread evenly.
#[derive(Debug, Clone, Copy)]
struct Key(u64);

impl Key {
    /// Chunk hashes are spread evenly as they are.
    fn of_chunk(hash: &ChunkHash) -> Self {
        let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        Self(u64::from_le_bytes(*first))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        Self::of_chunk(&ChunkHash::of(bytes))
    }
}

fn rank(site: &SiteEntry, key: Key) -> Vec<usize> {
    in_order(site, scores(site, key))
}

/// The score of each node that is not gone, and its place in [`SiteEntry::nodes`].
fn scores(site: &SiteEntry, key: Key) -> Vec<(f64, usize)> {
    let nodes = site.nodes.iter().zip(0..).filter(|(node, _)| node.state != NodeState::Removed);
    nodes.map(|(node, index)| (score(&node.id, node.weight, key), index)).collect()
}

fn in_order(site: &SiteEntry, mut scored: Vec<(f64, usize)>) -> Vec<usize> {
    scored.sort_unstable_by(|a, b| best_first(site, a, b));
    scored.into_iter().map(|(_, index)| index).collect()
}

fn best_first(site: &SiteEntry, (a, x): &(f64, usize), (b, y): &(f64, usize)) -> Ordering {
    b.total_cmp(a).then_with(|| site.nodes[*x].id.cmp(&site.nodes[*y].id))
}

/// `-weight / ln(u)` with `u` uniform in (0, 1) from node and key.
///
/// An inventory walk ranks every chunk that a node has, so this is a mixer of a few nanoseconds and not a
/// cryptographic hash: keys are spread evenly already, and whoever wants to choose where a chunk goes can try out
/// bytes with any function.
fn score(node: &NodeId, weight: u32, key: Key) -> f64 {
    let node = node_key(node);
    let bits = mix(mix(key.0 ^ node).wrapping_add(node)) >> 11;
    let uniform = (bits as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(weight) / uniform.ln()
}

/// FNV-1a over the name, then mixed: names differ in few bits.
fn node_key(node: &NodeId) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
    mix(node.as_str().as_bytes().iter().fold(0xCBF2_9CE4_8422_2325, fnv))
}

/// The finaliser of SplitMix64: spreads every input bit over all output bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
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
    fn the_ranking_is_pinned() {
        let site = SiteEntry { replicas: 2, ..site(&[100, 100, 200, 50, 100]) };
        let ranked: Vec<_> = keys(4).map(|key| rank_for_chunk(&site, &key)).collect();
        assert_eq!(ranked, PINNED, "whatever is stored would have to move");
        let owners = [0, 1, 2, 1023].map(|slot| preferred_owner(&site, Slot(slot)).unwrap().id.name());
        assert_eq!(owners, PINNED_OWNERS, "rows would have to move");
    }

    const PINNED: [[usize; 5]; 4] = [[1, 4, 0, 2, 3], [2, 4, 3, 1, 0], [1, 2, 0, 4, 3], [2, 1, 0, 4, 3]];
    const PINNED_OWNERS: [&str; 4] = ["n2", "n1", "n1", "n4"];

    /// The second place must not follow from the first, and names that differ in one digit must not be alike.
    #[test]
    fn every_pair_of_nodes_has_its_share() {
        let site = SiteEntry { replicas: 2, ..site(&[100; 16]) };
        let mut counts = [0u32; 256];
        let total = 48_000;
        for key in keys(total) {
            let nodes = nodes_of_chunk(&site, &key);
            counts[nodes[0] * 16 + nodes[1]] += 1;
        }
        let expected = f64::from(total) / 240.0;
        let pairs = counts.iter().zip(0..).filter(|(_, pair)| pair / 16 != pair % 16);
        let chi_square: f64 = pairs.map(|(c, _)| (f64::from(*c) - expected).powi(2) / expected).sum();
        // 239 degrees of freedom: mean 239, standard deviation 21.9.
        assert!((160.0..325.0).contains(&chi_square), "{chi_square}");
    }

    #[test]
    fn the_nodes_of_a_chunk_are_the_first_of_its_ranking() {
        for replicas in [1, 2, 3] {
            let site = SiteEntry { replicas, ..site(&[100, 0, 200, 50, 100, 100]) };
            for key in keys(500) {
                let ranked: Vec<_> = rank_for_chunk(&site, &key).into_iter().filter(|i| *i != 1).collect();
                assert_eq!(nodes_of_chunk(&site, &key), ranked[..usize::from(replicas)]);
            }
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
