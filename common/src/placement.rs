//! Who holds what in a site: two rules that every gateway and node computes alike from the cluster map.
//!
//! - **Rows** (holdings of a name, the library of a client) live in one of [`SLOT_COUNT`] *slots*; the map
//!   names each slot's owner. Slots move one at a time, each by one transaction in search, so at any epoch
//!   exactly one node decides for a name or client. New nodes take over the slots that the ranking below
//!   gives them: about 1/n of all, and no other slot moves.
//! - **Chunks** never change, so they need no owner: weighted rendezvous hashing ranks the site's nodes for
//!   a chunk; it is written to the first and looked for down the ranking.
//!   (Thaler and Ravishankar, 1998; weights: Schindelhauer and Schomaker, 2005.)

use crate::cluster::{NodeEntry, SiteEntry};
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

    fn of(domain: &[u8], text: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(domain).update(b"\0").update(text.as_bytes());
        let first = hasher.finalize();
        Self(u16::from_le_bytes([first.as_bytes()[0], first.as_bytes()[1]]) % SLOT_COUNT)
    }
}

/// The site's nodes for a chunk, best first, as places in [`SiteEntry::nodes`]. Nodes without weight (draining)
/// come last.
pub fn rank_for_chunk(site: &SiteEntry, hash: &ChunkHash) -> Vec<usize> {
    rank(site, hash.as_bytes())
}

/// The node that should own a slot: the owner differs only while slots are on the move.
pub fn preferred_owner(site: &SiteEntry, slot: Slot) -> Option<&NodeEntry> {
    rank(site, &slot.0.to_le_bytes()).first().map(|index| &site.nodes[*index])
}

fn rank(site: &SiteEntry, key: &[u8]) -> Vec<usize> {
    let scores = site.nodes.iter().map(|node| score(&node.id, node.weight, key));
    let mut scored: Vec<(f64, usize)> = scores.zip(0..).collect();
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
    use crate::cluster::NodeState;
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
                weight: *weight,
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
