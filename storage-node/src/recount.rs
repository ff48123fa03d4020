//! Finds references to this node's chunks that no holding needs: of uploads that were given up, or left by a crash.
//!
//! A round goes over all references and asks the owner of each name whether its holding has that tag. One that was not
//! needed in two looks, `surplus_grace` apart, is released: in between an upload has had time to become a holding. What
//! was not needed at the first look stands in the catalog, so that a restart forgets nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::Duration;

use common::api::node::{CheckRefsRequest, ChunkReleaseRequest, RefTag};
use common::backoff::Backoff;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::hash::ChunkHash;
use common::id::NodeId;
use common::name::ContentName;
use common::placement::Slot;

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::Since;
use crate::catalog::txn::{RawRows, Rows, Txn};
use crate::holdings;
use crate::node::Node;
use crate::reaper::release_here;

/// References that are looked at together.
const PAGE_LEN: usize = 1024;
/// Rest after each page: a round is in no hurry.
const REST: Duration = Duration::from_millis(20);
/// Rounds in one grace; a reference is released at most one round late.
const ROUNDS: u32 = 4;
/// Shortest time from round to round.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// A reference: a chunk, and the holding that is to need it.
type Reference = (ChunkHash, RefTag, ContentName);

/// Counts anew, round after round, for ever.
pub async fn run(node: Arc<Node>) {
    let interval = (node.limits.surplus_grace / ROUNDS).max(INTERVAL_MIN);
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    let mut after = Vec::new();
    loop {
        match round(&node, &mut after).await {
            Ok(()) => {
                backoff.reset();
                after.clear();
                tokio::time::sleep(interval).await;
            }
            Err(error) => {
                tracing::debug!(node = %node.id, error = chain(&error), "the recount of references pauses");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Goes over all references behind `after`, which says how far the round came.
async fn round(node: &Node, after: &mut Vec<u8>) -> ApiResult<()> {
    while let Some(last) = look(node, after).await? {
        *after = last;
        tokio::time::sleep(REST).await;
    }
    forget_suspects(node).await
}

/// Looks at one page; answers its last key.
async fn look(node: &Node, after: &[u8]) -> ApiResult<Option<Vec<u8>>> {
    let page = node.catalog.read(|rows| references(rows, Tag::ChunkRef, after))?;
    let Some((last, _)) = page.last() else { return Ok(None) };
    let last = last.clone();
    let references: Vec<Reference> = page.into_iter().map(|(_, reference)| reference).collect();
    let surplus = not_needed(node, &references).await?;
    note(node, references, surplus).await?;
    Ok(Some(last))
}

type Page = Vec<(Vec<u8>, Reference)>;

/// Rows of references, or of suspects, behind a key.
fn references(rows: &(impl RawRows + ?Sized), tag: Tag, after: &[u8]) -> ApiResult<Page> {
    let prefix = key::all(tag);
    let from = if after.is_empty() { Bound::Included(prefix.as_slice()) } else { Bound::Excluded(after) };
    let mut page = Vec::new();
    rows.scan_raw(&prefix, from, &mut |key, _| {
        page.extend(key::chunk_ref(key).map(|reference| (key.to_vec(), reference)));
        Ok(if page.len() == PAGE_LEN { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(page)
}

/// The holdings, by tag and name, that these references are of and that are not there.
async fn not_needed(node: &Node, references: &[Reference]) -> ApiResult<BTreeSet<(ContentName, RefTag)>> {
    let asked: BTreeSet<_> = references.iter().map(|(_, tag, name)| (name.clone(), *tag)).collect();
    let view = node.maps.view();
    let site = view.site().ok_or_else(|| no_owner(None))?;
    let mut by_owner: BTreeMap<&NodeId, Vec<(ContentName, RefTag)>> = BTreeMap::new();
    for (name, tag) in asked {
        let owner = site.slot_primary(Slot::of_name(&name)).ok_or_else(|| no_owner(None))?;
        by_owner.entry(&owner.id).or_default().push((name, tag));
    }
    let mut surplus = BTreeSet::new();
    for (owner, refs) in by_owner {
        let request = CheckRefsRequest { refs };
        let current = if *owner == node.id {
            check_here(node, &request)?
        } else {
            let owner = site.node(owner).ok_or_else(|| no_owner(None))?;
            node.peer(owner).check_refs(&request).await.map_err(|error| no_owner(Some(&error)))?.current
        };
        if current.len() != request.refs.len() {
            return Err(no_owner(None));
        }
        surplus.extend(request.refs.into_iter().zip(current).filter(|(_, current)| !current).map(|(r, _)| r));
    }
    Ok(surplus)
}

fn no_owner(cause: Option<&common::client::CallError>) -> ApiError {
    let message = "the node that knows a holding does not answer";
    match cause {
        Some(cause) => cause.to_api(ErrorCode::NodeUnavailable, message),
        None => ApiError::new(ErrorCode::NodeUnavailable, message),
    }
}

/// Which of the references are those of a present holding, by this node, which must own the names.
pub fn check_here(node: &Node, request: &CheckRefsRequest) -> ApiResult<Vec<bool>> {
    let check = |(name, tag): &(ContentName, RefTag)| {
        let slot = Slot::of_name(name);
        node.shard_with(slot)?.read_in(slot, |rows| holdings::needs_ref(rows, name, *tag))
    };
    request.refs.iter().map(check).collect()
}

/// Notes what is not needed, clears what is, and releases what was not needed before for the grace.
async fn note(
    node: &Node,
    references: Vec<Reference>,
    surplus: BTreeSet<(ContentName, RefTag)>,
) -> ApiResult<()> {
    let (now, grace) = (node.clock.now(), node.limits.surplus_grace);
    let (mut changes, mut overdue) = (Vec::new(), Vec::new());
    node.catalog.read(|rows| {
        for (hash, tag, name) in references {
            let since = rows.get::<Since>(Key::SuspectRef(&hash, tag, &name))?;
            match (surplus.contains(&(name.clone(), tag)), since) {
                (false, None) => {}
                (true, Some(Since(since))) if now.since(since) < grace => {}
                (true, Some(_)) => overdue.push((hash, tag, name)),
                (is_surplus, _) => changes.push((hash, tag, name, is_surplus)),
            }
        }
        Ok(())
    })?;
    if !changes.is_empty() {
        let suspected = move |txn: &mut Txn<'_>| {
            for (hash, tag, name, is_surplus) in &changes {
                let key = Key::SuspectRef(hash, *tag, name);
                if *is_surplus { txn.put(key, &Since(now)) } else { txn.delete(key) }
            }
            Ok(())
        };
        node.catalog.commit(suspected).await?;
    }
    release_overdue(node, overdue).await
}

async fn release_overdue(node: &Node, overdue: Vec<Reference>) -> ApiResult<()> {
    let mut by_holding: BTreeMap<(ContentName, RefTag), Vec<ChunkHash>> = BTreeMap::new();
    for (hash, tag, name) in overdue {
        by_holding.entry((name, tag)).or_default().push(hash);
    }
    for ((name, ref_tag), chunks) in by_holding {
        let count = chunks.len() as u64;
        tracing::info!(node = %node.id, name = %name, chunks = count, "references that no holding needs are released");
        let suspects = chunks.clone();
        release_here(node, ChunkReleaseRequest { name: name.clone(), ref_tag, chunks }).await?;
        node.metrics.surplus_references.increment(count);
        node.catalog
            .commit(move |txn| {
                suspects.iter().for_each(|hash| txn.delete(Key::SuspectRef(hash, ref_tag, &name)));
                Ok(())
            })
            .await?;
    }
    Ok(())
}

/// Forgets suspects whose reference went in another way.
async fn forget_suspects(node: &Node) -> ApiResult<()> {
    let mut after = Vec::new();
    loop {
        let page = node.catalog.read(|rows| references(rows, Tag::SuspectRef, &after))?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after.clone_from(last);
        let gone = node.catalog.read(|rows| {
            let mut gone = Vec::new();
            for (key, (hash, tag, name)) in page {
                if !rows.has(Key::ChunkRef(&hash, tag, &name))? {
                    gone.push(key);
                }
            }
            Ok(gone)
        })?;
        if !gone.is_empty() {
            node.catalog
                .commit(move |txn| {
                    gone.into_iter().for_each(|key| txn.delete_raw(key));
                    Ok(())
                })
                .await?;
        }
    }
}
