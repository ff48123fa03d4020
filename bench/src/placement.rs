//! Placement by itself, in memory, with the rules that gateways and nodes use: how evenly nodes fill, how much moves when
//! one comes, goes or grows, and what ranking costs.
//!
//! A sample of chunks stands for all. Its own unevenness, which more chunks would level, is told apart from what the
//! rules leave uneven.

use std::hint::black_box;

use common::cluster::{NodeEntry, NodeState, ShardEntry, SiteEntry};
use common::hash::ChunkHash;
use common::id::{InvalidId, NodeId, SiteId};
use common::placement::{nodes_of_chunk, rank_for_chunk, weights};
use serde::Serialize;

use crate::process::thread_cpu_time;

/// Capacities in TiB that unequal nodes have in turn.
const UNEQUAL_TIB: [u64; 4] = [1, 2, 4, 8];
/// Numbers of nodes for which the cost of ranking is measured.
const COST_NODES: [usize; 3] = [3, 16, 100];
const COST_ROUNDS: usize = 3;
/// Part of the site's capacity that is in use.
const FILL: f64 = 0.7;

#[derive(Debug, Clone, Serialize)]
pub struct PlacementPlan {
    pub nodes: usize,
    /// Chunks that are ranked.
    pub sample: u32,
    /// Chunks that they stand for.
    pub chunks: u64,
}

#[derive(Debug, Serialize)]
pub struct PlacementReport {
    pub plan: PlacementPlan,
    pub balance: Vec<Balance>,
    pub moves: Vec<Moves>,
    pub costs: Vec<Cost>,
}

/// How evenly nodes fill, at 70 % of the site's capacity; in points, hundredths of a node's capacity.
#[derive(Debug, Serialize)]
pub struct Balance {
    pub capacities: &'static str,
    pub replicas: u8,
    /// Standard deviation over the nodes, in the sample.
    pub sample_points: f64,
    /// What chance alone gives in a sample of this size.
    pub chance_points: f64,
    /// Standard deviation to be expected with all chunks.
    pub all_points: f64,
    /// The fullest node of the sample above the mean.
    pub fullest_points: f64,
}

/// What a change moves.
#[derive(Debug, Serialize)]
pub struct Moves {
    pub capacities: &'static str,
    pub replicas: u8,
    pub change: &'static str,
    /// Copies that have to be made, of all.
    pub moved_share: f64,
    /// The least that gives the nodes the shares that they have afterwards.
    pub least_share: f64,
}

#[derive(Debug, Serialize)]
pub struct Cost {
    pub nodes: usize,
    /// CPU time of one call of `nodes_of_chunk` with two copies.
    pub nodes_of_chunk_ns: f64,
    /// CPU time of one call of `rank_for_chunk`.
    pub rank_for_chunk_ns: f64,
    /// Chunks that a walk of a node's inventory compares with the map in a second of one core.
    pub walk_rows_per_s: f64,
}

/// A site whose nodes have these capacities in bytes; 0 for one that is drained.
fn site(capacities: &[u64], replicas: u8) -> Result<SiteEntry, InvalidId> {
    let mut site = SiteEntry { replicas, ..SiteEntry::new(SiteId::new("tokyo")?) };
    for (index, weight) in weights(capacities, replicas).into_iter().enumerate() {
        site.nodes.push(NodeEntry {
            id: NodeId::new(&format!("tokyo.n{}", index + 1))?,
            http: String::new(),
            admin: String::new(),
            state: if weight > 0 { NodeState::Active } else { NodeState::Draining },
            alive: true,
            weight,
            capacity_bytes: capacities[index],
            shard: ShardEntry::default(),
        });
    }
    Ok(site)
}

fn hash_of(chunk: u32) -> ChunkHash {
    ChunkHash::of(&chunk.to_le_bytes())
}

/// Runs everything; `say` is told what is going on.
pub fn run(plan: PlacementPlan, say: impl Fn(&str)) -> Result<PlacementReport, InvalidId> {
    let mut report = PlacementReport { balance: Vec::new(), moves: Vec::new(), costs: Vec::new(), plan };
    for nodes in COST_NODES {
        say(&format!("cost with {nodes} nodes"));
        report.costs.push(cost(nodes)?);
    }
    let (nodes, sample) = (report.plan.nodes, report.plan.sample);
    let equal = vec![1 << 40; nodes];
    let unequal: Vec<u64> = (0..nodes).map(|i| UNEQUAL_TIB[i % UNEQUAL_TIB.len()] << 40).collect();
    for (name, capacities) in [("equal", equal), ("unequal", unequal)] {
        for replicas in 1..=3 {
            say(&format!("{nodes} {name} nodes, {replicas} copies"));
            let before = site(&capacities, replicas)?;
            let counts = placed(&before, sample);
            report.balance.push(balance(name, &before, &counts, &report.plan));
            for (change, capacities) in changes(&capacities) {
                let after = site(&capacities, replicas)?;
                let (moved_share, least_share) = moves(&before, &after, sample);
                report.moves.push(Moves { capacities: name, replicas, change, moved_share, least_share });
            }
        }
    }
    Ok(report)
}

/// The same site with a node more, with the last one drained, and with the last one twice as large.
fn changes(capacities: &[u64]) -> [(&'static str, Vec<u64>); 3] {
    let last = capacities.len() - 1;
    let with_last = |capacity| capacities[..last].iter().copied().chain([capacity]).collect();
    let added = capacities.iter().copied().chain([capacities[last]]).collect();
    [("added", added), ("drained", with_last(0)), ("doubled", with_last(2 * capacities[last]))]
}

/// Chunks on each node.
fn placed(site: &SiteEntry, sample: u32) -> Vec<u64> {
    let mut counts = vec![0; site.nodes.len()];
    for chunk in 0..sample {
        nodes_of_chunk(site, &hash_of(chunk)).into_iter().for_each(|node| counts[node] += 1);
    }
    counts
}

fn balance(capacities: &'static str, site: &SiteEntry, counts: &[u64], plan: &PlacementPlan) -> Balance {
    let copies: u64 = counts.iter().sum();
    let capacity: u64 = site.nodes.iter().map(|node| node.capacity_bytes).sum();
    // Fill of a node if all copies together fill the site to the mean.
    let per_copy = FILL * capacity as f64 / copies as f64;
    let points: Vec<f64> = site
        .nodes
        .iter()
        .zip(counts)
        .map(|(node, count)| 100.0 * (*count as f64 * per_copy / node.capacity_bytes as f64 - FILL))
        .collect();
    let mean_square = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / points.len() as f64;
    let sample = mean_square(&mut points.iter().map(|p| p * p));
    // A count that is drawn varies by about its root.
    let by_chance = |(node, count): (&NodeEntry, &u64)| {
        let deviation = 100.0 * (*count as f64).sqrt() * per_copy / node.capacity_bytes as f64;
        deviation * deviation
    };
    let chance = mean_square(&mut site.nodes.iter().zip(counts).map(by_chance));
    let scale = f64::from(plan.sample) / plan.chunks as f64;
    Balance {
        capacities,
        replicas: site.replicas,
        sample_points: sample.sqrt(),
        chance_points: chance.sqrt(),
        all_points: ((sample - chance).max(0.0) + chance * scale).sqrt(),
        fullest_points: points.iter().copied().fold(f64::MIN, f64::max),
    }
}

/// Share of the copies that moves, and the least that could.
fn moves(before: &SiteEntry, after: &SiteEntry, sample: u32) -> (f64, f64) {
    let nodes = before.nodes.len().max(after.nodes.len());
    let (mut old_counts, mut new_counts) = (vec![0i64; nodes], vec![0i64; nodes]);
    let (mut moved, mut copies) = (0u64, 0u64);
    for chunk in 0..sample {
        let hash = hash_of(chunk);
        let (old, new) = (nodes_of_chunk(before, &hash), nodes_of_chunk(after, &hash));
        moved += new.iter().filter(|node| !old.contains(node)).count() as u64;
        copies += new.len() as u64;
        old.into_iter().for_each(|node| old_counts[node] += 1);
        new.into_iter().for_each(|node| new_counts[node] += 1);
    }
    let least: i64 = old_counts.iter().zip(&new_counts).map(|(old, new)| (new - old).max(0)).sum();
    (moved as f64 / copies as f64, least as f64 / copies as f64)
}

fn cost(nodes: usize) -> Result<Cost, InvalidId> {
    let site = site(&vec![1 << 40; nodes], 2)?;
    let hashes: Vec<ChunkHash> = (0..(2_000_000 / nodes as u32).min(200_000)).map(hash_of).collect();
    let best = |call: &dyn Fn(&ChunkHash) -> Vec<usize>| {
        let round = |_| {
            let before = thread_cpu_time();
            for hash in &hashes {
                black_box(call(black_box(hash)));
            }
            (thread_cpu_time() - before).as_nanos() as f64 / hashes.len() as f64
        };
        // The best of a few: caches are shared with whatever else the machine does.
        (0..COST_ROUNDS).map(round).fold(f64::INFINITY, f64::min)
    };
    let nodes_of_chunk_ns = best(&|hash| nodes_of_chunk(&site, hash));
    let rank_for_chunk_ns = best(&|hash| rank_for_chunk(&site, hash));
    Ok(Cost { nodes, nodes_of_chunk_ns, rank_for_chunk_ns, walk_rows_per_s: 1e9 / nodes_of_chunk_ns })
}

impl PlacementReport {
    /// The tables for a terminal.
    pub fn to_text(&self) -> String {
        let mut lines =
            vec![format!("{:>5} {:>16} {:>16} {:>16}", "nodes", "nodes_of_chunk", "rank_for_chunk", "walk")];
        for cost in &self.costs {
            lines.push(format!(
                "{:>5} {:>13.0} ns {:>13.0} ns {:>10.0} rows/s",
                cost.nodes, cost.nodes_of_chunk_ns, cost.rank_for_chunk_ns, cost.walk_rows_per_s
            ));
        }
        let PlacementPlan { nodes, sample, chunks } = &self.plan;
        lines.push(format!(
            "\n{nodes} nodes, {sample} chunks for {chunks}; points of a node's capacity, the site 70 % full"
        ));
        lines.push(format!(
            "{:<8} {:>6} {:>12} {:>12} {:>12} {:>12}",
            "nodes", "copies", "deviation", "by chance", "with all", "fullest"
        ));
        for row in &self.balance {
            lines.push(format!(
                "{:<8} {:>6} {:>12.3} {:>12.3} {:>12.3} {:>+12.2}",
                row.capacities,
                row.replicas,
                row.sample_points,
                row.chance_points,
                row.all_points,
                row.fullest_points
            ));
        }
        lines.push(format!(
            "\n{:<8} {:>6} {:<8} {:>10} {:>10} {:>8}",
            "nodes", "copies", "change", "moved", "least", "times"
        ));
        for row in &self.moves {
            lines.push(format!(
                "{:<8} {:>6} {:<8} {:>9.3}% {:>9.3}% {:>8.2}",
                row.capacities,
                row.replicas,
                row.change,
                100.0 * row.moved_share,
                100.0 * row.least_share,
                row.moved_share / row.least_share
            ));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_more_moves_its_share_and_an_even_site_is_told_to_be_even() {
        let plan = PlacementPlan { nodes: 4, sample: 20_000, chunks: 2_000_000 };
        let before = site(&[1 << 40; 4], 2).unwrap();
        let counts = placed(&before, plan.sample);
        let even = balance("equal", &before, &counts, &plan);
        assert!(even.sample_points < 2.0 * even.chance_points, "{even:?}");
        assert!(even.all_points < even.sample_points, "{even:?}");
        let skewed = balance("equal", &before, &[14_000, 10_000, 8_000, 8_000], &plan);
        assert!(skewed.all_points > 15.0 && skewed.fullest_points > 27.0, "{skewed:?}");
        for (change, capacities) in changes(&[1 << 40; 4]) {
            let (moved, least) = moves(&before, &site(&capacities, 2).unwrap(), plan.sample);
            let ideal = match change {
                "added" => 1.0 / 5.0,
                "drained" => 1.0 / 4.0,
                _ => 2.0 / 5.0 - 1.0 / 4.0,
            };
            assert!((least - ideal).abs() < 0.01, "{change}: {least}");
            assert!(moved >= least && moved < 1.1 * ideal + 0.01, "{change}: {moved}");
        }
    }
}
