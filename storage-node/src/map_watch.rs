//! Keeps the cluster map: from search by long poll, in a file beside the catalog, and for whoever asks this node.
//!
//! Also tells search that the node is there (registration and heartbeat), which gives the record epoch.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::api::search::{Leave, NodeFacts, Registration};
use common::backoff::Backoff;
use common::cluster::ClusterMap;
use common::error::chain;
use common::record::RecordNumber;

use tokio_util::sync::CancellationToken;

use crate::deliveries;
use crate::node::Node;
use crate::shard::Shard;

pub const FILE_NAME: &str = "map.json";
/// How long search may hold a question for the next map.
const POLL_WAIT: Duration = Duration::from_secs(25);

/// The map that was kept last; an empty one if there is none yet.
pub fn load(path: &Path) -> std::io::Result<ClusterMap> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(std::io::Error::other),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ClusterMap::default()),
        Err(error) => Err(error),
    }
}

/// Replaces the kept map: after a crash the old or the new one is there, whole.
pub fn save(path: &Path, map: &ClusterMap) -> std::io::Result<()> {
    let text = serde_json::to_vec(map).map_err(std::io::Error::other)?;
    let new = path.with_extension("json.new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Follows search's map for ever.
pub async fn follow(node: Arc<Node>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let before = node.maps.epoch();
        match node.search.map(before, POLL_WAIT).await {
            Ok(map) if map.epoch > before => match node.adopt(map).await {
                Ok(()) => {
                    backoff.reset();
                    continue;
                }
                Err(error) => {
                    tracing::error!(node = %node.id, error = chain(&error), "the map cannot be kept")
                }
            },
            Ok(_) => {}
            Err(error) => tracing::debug!(node = %node.id, error = chain(&error), "search gives no map"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// What the node tells of itself, beside its store's figures.
pub struct Identity {
    pub registration: Registration,
    pub log_id: String,
}

/// Registers, and says again and again that the node is there, until it stops; then that it goes.
pub async fn register(node: Arc<Node>, identity: Identity, leaving: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut was_reached = true;
    while !leaving.is_cancelled() {
        let stats = node.chunks.stats();
        let facts = NodeFacts {
            log_id: identity.log_id.clone(),
            capacity_bytes: stats.capacity_bytes,
            used_bytes: stats.used_bytes,
            map: node.maps.with(|view| view.map.id()),
            record_epoch: record_epoch(&node),
        };
        let registration = Registration { node: Some(facts), ..identity.registration.clone() };
        let delay = match node.search.register(&registration).await {
            Ok(registered) => {
                if !std::mem::replace(&mut was_reached, true) {
                    tracing::info!(node = %node.id, "search is reached again");
                }
                node.health.note("search", "reached".to_owned());
                if let Some(epoch) = registered.record_epoch {
                    node.record_epoch.send_replace(epoch);
                }
                backoff.reset();
                Duration::from_millis(registered.heartbeat_ms.max(100))
            }
            Err(error) => {
                node.health.note("search", format!("does not take the registration: {}", chain(&error)));
                if std::mem::replace(&mut was_reached, false) {
                    tracing::warn!(node = %node.id, error = chain(&error), "search does not take the registration; trying on");
                }
                backoff.next_delay()
            }
        };
        let _either = leaving.run_until_cancelled(tokio::time::sleep(delay)).await;
    }
    match node.search.leave(&Leave::of(&identity.registration)).await {
        Ok(answer) => tracing::info!(node = %node.id, stood_in_for = answer.left, "search knows of the stop"),
        Err(error) => {
            tracing::debug!(node = %node.id, error = chain(&error), "search was not told of the stop; it finds out");
        }
    }
}

/// The record epoch that the node is in, as far as it knows: search may have forgotten which it gave.
fn record_epoch(node: &Node) -> u64 {
    let kept = node.shards.get(&node.id).map_or(0, |shard| shard.signals.head.borrow().epoch);
    kept.max(*node.record_epoch.borrow())
}

/// Keeps the record epoch in this node's own shard, for ever: records are numbered only within one that search gave.
/// While another node serves the shard, that one numbers them.
pub async fn keep_epoch(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut given = shard.node.record_epoch.subscribe();
    loop {
        let (epoch, known) = (*given.borrow_and_update(), shard.signals.head.borrow().epoch);
        if epoch < known && epoch > 0 {
            tracing::error!(shard = %shard.id, given = epoch, known, "search gave an older record epoch; the node goes on in its own");
        }
        if epoch > known {
            match shard.catalog.commit(move |txn| deliveries::set_epoch(txn, epoch)).await {
                Ok(head) => shard.signals.recorded(RecordNumber { epoch: head.epoch, seq: head.seq }),
                Err(error) => {
                    tracing::warn!(shard = %shard.id, error = chain(&error), "the record epoch is not kept");
                    tokio::time::sleep(backoff.next_delay()).await;
                    continue;
                }
            }
        }
        // The sender lives as long as the node, so this ends with a new epoch.
        let _changed = given.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::cluster::MapEpoch;

    #[test]
    fn a_kept_map_survives_and_a_missing_one_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        assert_eq!(load(&path).unwrap(), ClusterMap::default());
        let map = ClusterMap { epoch: MapEpoch(7), ..ClusterMap::default() };
        save(&path, &map).unwrap();
        assert_eq!(load(&path).unwrap(), map);
    }
}
