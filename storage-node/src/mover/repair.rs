//! Getting a chunk back that this node lost.

use std::time::Duration;

use bytes::Bytes;
use common::api::node::NodeClient;
use common::error::chain;
use common::hash::ChunkHash;
use common::placement::rank_for_chunk;

use super::with_site;
use crate::catalog::key::Key;
use crate::catalog::txn::Rows;
use crate::node::Node;

/// How long one other node may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Gets a chunk from another node and stores it in the place of the lost copy; `None` if no node that is
/// there has a good one. The bytes are answered also if they cannot be stored, and are not stored if nothing
/// knows of the chunk any more.
pub async fn repair(node: &Node, hash: &ChunkHash) -> Option<Bytes> {
    for other in others(node, hash) {
        match tokio::time::timeout(LIMIT, other.get_chunk_bytes(hash)).await {
            Ok(Ok(bytes)) if ChunkHash::of(&bytes) == *hash => {
                put_back(node, hash, bytes.clone()).await;
                return Some(bytes);
            }
            Ok(Err(error)) => {
                tracing::debug!(node = %node.id, chunk = %hash, error = chain(&error), "no copy to repair from");
            }
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    None
}

fn others(node: &Node, hash: &ChunkHash) -> Vec<NodeClient> {
    with_site(node, |_, site| {
        let ranked = rank_for_chunk(site, hash).into_iter().map(|index| &site.nodes[index]);
        ranked.filter(|other| other.id != node.id && other.alive).map(|other| node.peer(other)).collect()
    })
    .unwrap_or_default()
}

async fn put_back(node: &Node, hash: &ChunkHash, bytes: Bytes) {
    let _kept = node.chunk_locks.using(hash).await;
    if !node.catalog.read(|rows| rows.has(Key::Chunk(hash))).unwrap_or(false) {
        return;
    }
    match node.chunks.put(*hash, bytes).await {
        Ok(_) => {
            tracing::info!(node = %node.id, chunk = %hash, "a lost chunk was put back from another node's copy");
            node.metrics.moves.repaired_chunks.increment(1);
        }
        Err(error) => {
            tracing::warn!(node = %node.id, chunk = %hash, error = chain(&error), "a lost chunk is not put back");
        }
    }
}
