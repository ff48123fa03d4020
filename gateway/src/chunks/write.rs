//! Storing chunks: as many copies as the site keeps, on the nodes that are to have them.
//!
//! A chunk goes to the first nodes of its ranking that take writes, at the same time. For one that is full,
//! fails or is silent the next in the ranking stands in; the nodes see to it that the chunk comes to where it
//! belongs later. A write is acknowledged
//!
//! - with all copies that the site keeps, or as many as it has nodes that take writes;
//! - with fewer only when no further node is left: all others are full, or do not answer although tried twice, or
//!   long enough. So as long as two nodes of the site take writes and have room there are two copies, if the site
//!   keeps two.
//!
//! A node that the map says is down is not waited for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::api::node::{ClaimRequest, NodeClient, RefTag};
use common::client::CallError;
use common::error::{ApiError, ErrorCode};
use common::hash::ChunkHash;
use common::id::NodeId;
use common::manifest::ChunkRef;
use common::name::ContentName;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;

use super::Chunks;
use crate::site::{Place, Places};

/// Chunks at least this long are asked for before they are sent: the answer may save sending them.
const CLAIM_LEN_MIN: usize = 64 * 1024;
/// How long a node may take before another stands in for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long copies are waited for beyond the first when no other node can stand in.
const COPY_WAIT_MAX: Duration = Duration::from_secs(6);
/// Before a node that failed is tried a second time, because there is no other.
const RETRY_DELAY: Duration = Duration::from_millis(100);

impl Chunks {
    /// Stores a chunk, durably, with a back-reference to the holding that `tag` marks, at as many nodes as
    /// the rule above says. True when no node had the bytes before.
    ///
    /// # Errors
    /// `NodeFull` or `NodeUnavailable` when no node takes it.
    pub async fn write(
        &self,
        hash: &ChunkHash,
        name: &ContentName,
        tag: RefTag,
        bytes: Bytes,
    ) -> Result<bool, ApiError> {
        let Places { copies, nodes } = self.site.places(hash);
        let nodes = writers(nodes);
        let wanted = copies.min(nodes.len());
        let write_one = |index: usize| {
            let (Place { id, client, .. }, bytes) = (&nodes[index], bytes.clone());
            async move {
                let call = write_at(client, hash, name, tag, bytes);
                (index, self.site.unless_down(id, client.base(), call).await)
            }
        };
        let mut writing: FuturesUnordered<_> = (0..wanted).map(write_one).collect();
        let (begun, mut next, mut failure) = (Instant::now(), wanted, None);
        let (mut done, mut is_new, mut failed, mut retried) = (0, true, Vec::new(), false);
        while done < wanted {
            match tokio::time::timeout(PATIENCE, writing.next()).await {
                Ok(Some((_, Ok(stored)))) => {
                    done += 1;
                    is_new &= stored;
                }
                Ok(Some((_, Err(error)))) if is_callers_fault(&error) => {
                    return Err(error.to_api(ErrorCode::NodeUnavailable, "a storage node failed"));
                }
                Ok(Some((index, Err(error)))) => {
                    if matches!(error, CallError::Unreachable { .. } | CallError::Timeout { .. }) {
                        self.site.suspect(&nodes[index].id);
                    }
                    if error.code() != Some(ErrorCode::NodeFull) {
                        failed.push(index);
                    }
                    failure = Some(error);
                    writing.extend((next..nodes.len()).take(1).map(write_one));
                    next += 1;
                }
                Ok(None) if done < wanted.min(2) && !retried && !failed.is_empty() => {
                    retried = true;
                    tokio::time::sleep(RETRY_DELAY).await;
                    writing.extend(failed.drain(..).map(write_one));
                }
                Ok(None) => break,
                // Stand-ins for all that are late; what they store still counts.
                Err(_) if next < nodes.len() => {
                    let stand_ins = next..nodes.len().min(next + wanted - done);
                    next = stand_ins.end;
                    writing.extend(stand_ins.map(write_one));
                }
                Err(_) if done > 0 && begun.elapsed() >= COPY_WAIT_MAX => break,
                Err(_) => {}
            }
        }
        match (done, failure) {
            (0, Some(error)) => Err(error.to_api(
                ErrorCode::NodeUnavailable,
                "no storage node of the site takes the content at the moment; try again in a moment",
            )),
            (0, None) => Err(no_nodes()),
            _ => {
                if done < copies {
                    self.metrics.chunk_copies_short.increment(1);
                }
                Ok(is_new)
            }
        }
    }

    /// [`Chunks::write`] for a task of its own.
    pub async fn write_owned(
        self: Arc<Self>,
        hash: ChunkHash,
        name: ContentName,
        tag: RefTag,
        bytes: Bytes,
    ) -> Result<bool, ApiError> {
        self.write(&hash, &name, tag, bytes).await
    }

    /// Which of these chunks the site lacks; those it has get their back-reference in the same step, at every
    /// node that has them and is to. One copy is enough: nodes make the others.
    pub async fn claim(
        &self,
        chunks: &[ChunkRef],
        name: &ContentName,
        tag: RefTag,
    ) -> Result<Vec<ChunkRef>, ApiError> {
        let mut missing = chunks.to_vec();
        // What is not where it belongs may be anywhere while chunks are on the move.
        for is_right in [true, false] {
            let mut by_node: HashMap<NodeId, (NodeClient, Vec<ChunkHash>)> = HashMap::new();
            for chunk in &missing {
                let nodes = self.site.places(&chunk.hash).nodes.into_iter();
                for node in nodes.filter(|node| node.alive && node.is_right == is_right) {
                    by_node.entry(node.id).or_insert((node.client, Vec::new())).1.push(chunk.hash);
                }
            }
            let asked = by_node.into_iter().map(|(id, (client, hashes))| async move {
                self.claim_at(&id, &client, hashes, name, tag).await
            });
            let found: HashSet<ChunkHash> = join_all(asked).await.into_iter().flatten().collect();
            missing.retain(|chunk| !found.contains(&chunk.hash));
            if missing.is_empty() {
                break;
            }
        }
        Ok(missing)
    }

    /// Those of the chunks that a node has.
    async fn claim_at(
        &self,
        id: &NodeId,
        client: &NodeClient,
        hashes: Vec<ChunkHash>,
        name: &ContentName,
        tag: RefTag,
    ) -> Vec<ChunkHash> {
        let request = ClaimRequest { name: name.clone(), ref_tag: tag, chunks: hashes };
        match self.site.unless_down(id, client.base(), client.claim(&request)).await {
            Ok(answer) => {
                let lacks: HashSet<_> = answer.missing.into_iter().collect();
                request.chunks.into_iter().filter(|hash| !lacks.contains(hash)).collect()
            }
            // What a silent node has counts as missing: a further copy does no harm.
            Err(error) => {
                tracing::debug!(node = %id, error = %common::error::chain(&error), "claim not answered");
                Vec::new()
            }
        }
    }
}

/// Who may be given a chunk, best first. If the map says that nobody may, those are tried that are down: it
/// may be wrong, as after search was away.
fn writers(nodes: Vec<Place>) -> Vec<Place> {
    let takes_writes = nodes.iter().any(|node| node.takes_writes);
    nodes.into_iter().filter(|node| if takes_writes { node.takes_writes } else { node.is_right }).collect()
}

/// No other node would take it either.
fn is_callers_fault(error: &CallError) -> bool {
    use ErrorCode::{ContentMismatch, Forbidden, InvalidRequest, TooLarge, Unauthenticated};
    let faults = [ContentMismatch, Forbidden, InvalidRequest, TooLarge, Unauthenticated];
    error.code().is_some_and(|code| faults.contains(&code))
}

async fn write_at(
    node: &NodeClient,
    hash: &ChunkHash,
    name: &ContentName,
    tag: RefTag,
    bytes: Bytes,
) -> Result<bool, CallError> {
    if bytes.len() >= CLAIM_LEN_MIN {
        let request = ClaimRequest { name: name.clone(), ref_tag: tag, chunks: vec![*hash] };
        if node.claim(&request).await?.missing.is_empty() {
            return Ok(false);
        }
    }
    node.put_chunk(hash, name, tag, bytes).await
}

fn no_nodes() -> ApiError {
    ApiError::new(ErrorCode::NodeUnavailable, "the site has no storage node yet; start one and try again")
}
