//! Sends out what is due: to the owners of the chunks' slots, many rows at once, again until they have it.
//!
//! One pass after the other goes over all that is due; within a pass nothing is sent twice. So what is sent about a
//! client and a holding goes out in order, and the last of it is how things are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::api::node::{TallyChange, TallyRequest};
use common::backoff::Backoff;
use common::cluster::MapEpoch;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::NodeId;
use common::manifest::{ChunkList, ChunkRef};
use common::placement::{SLOT_COUNT, Slot};
use futures_util::future::join_all;

use super::due::{self, Due, Job};
use crate::catalog::key::{self, Key, Tag};
use crate::catalog::txn::{Rows, Txn};
use crate::node::Node;
use crate::reaper::read_list;
use crate::shard::Shard;
use crate::view::View;

/// Rows that are taken at once.
const PAGE_LEN: usize = 512;
/// Rows at the chunks that one round changes, about.
const ROUND_WEIGHT: usize = 16_384;
/// Rows at the chunks that are changed in one call and commit.
const PIECE_WEIGHT: usize = 4096;
/// Holdings of one slot that are made due at once.
const BUILD_LEN: usize = 500;
/// How long it may take until what came to this node in other ways than by requests is seen.
const IDLE: Duration = Duration::from_secs(2);

/// Sends out what is due, for ever.
pub async fn run(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut built = None;
    loop {
        match step(&shard, &mut built).await {
            Ok(Pass::Done) => {
                backoff.reset();
                let _either = tokio::time::timeout(IDLE, shard.signals.tally_queued.notified()).await;
            }
            Ok(Pass::More) => backoff.reset(),
            Ok(Pass::Failed) => tokio::time::sleep(backoff.next_delay()).await,
            Err(error) => {
                tracing::debug!(shard = %shard.id, error = chain(&error), "who holds what is not counted yet");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// A pass, after a look for slots that came from before there was a tally, should the map have changed since `built`.
async fn step(shard: &Shard, built: &mut Option<MapEpoch>) -> ApiResult<Pass> {
    let epoch = shard.node.maps.epoch();
    if *built != Some(epoch) {
        build(shard).await?;
        *built = Some(epoch);
    }
    pass(shard).await
}

/// Makes all holdings of slots due that have none of it yet: once for each slot.
async fn build(shard: &Shard) -> ApiResult<()> {
    let unbuilt = || {
        shard.catalog.read(|rows| {
            let mut unbuilt = Vec::new();
            for slot in (0..SLOT_COUNT).map(Slot).filter(|slot| shard.slots.owns(*slot)) {
                if !rows.has(Key::TallyBuilt(slot))? {
                    unbuilt.push(slot);
                }
            }
            Ok(unbuilt)
        })
    };
    let slots = unbuilt()?;
    if let Some(first) = slots.first().copied() {
        let ours = shard.slots.clone();
        shard
            .commit_in(first, move |txn| {
                slots.iter().try_for_each(|slot| ours.check(*slot))?;
                due::build_empty(txn, &slots)
            })
            .await?;
    }
    for slot in unbuilt()? {
        let mut after = Some(String::new());
        while let Some(name) = after {
            let next = shard.commit_in(slot, move |txn| due::build(txn, slot, &name, BUILD_LEN)).await?;
            after = next.map(|name| name.to_string());
        }
    }
    Ok(())
}

/// What a pass came to; the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pass {
    Done,
    /// Something became due meanwhile, or was too much for one pass.
    More,
    Failed,
}

/// Goes once over all that is due.
async fn pass(shard: &Shard) -> ApiResult<Pass> {
    let mut pass = Pass::Done;
    for tag in [Tag::TallyClient, Tag::TallyHolding] {
        let mut after = key::all(tag);
        loop {
            let mine = |slot| shard.slots.check(slot).is_ok();
            let page = shard.catalog.read(|rows| due::page(rows, tag, &after, PAGE_LEN, mine))?;
            let Some((last, _)) = page.last() else { break };
            after.clone_from(last);
            let mut left = page;
            while !left.is_empty() {
                let jobs = take_jobs(shard, &mut left)?;
                // What the followers do not have yet may still turn out not to be so.
                shard.stream.settle().await;
                pass = pass.max(send_and_settle(shard, jobs).await?);
            }
        }
    }
    Ok(pass)
}

/// Takes as many rows from the page's end as one round may change, and sees what they come to.
fn take_jobs(shard: &Shard, page: &mut Due) -> ApiResult<Vec<Job>> {
    shard.catalog.read(|rows| {
        let (mut jobs, mut weight) = (Vec::new(), 0);
        while weight < ROUND_WEIGHT
            && let Some((key, value)) = page.pop()
        {
            if let Some(job) = due::job(rows, &key, &value, ROUND_WEIGHT)? {
                weight += job.weight();
                jobs.push(job);
            }
        }
        Ok(jobs)
    })
}

/// The parts of jobs that go to one shard: each with the job's place in the round.
type Parts = Vec<(usize, TallyChange)>;

async fn send_and_settle(shard: &Shard, jobs: Vec<Job>) -> ApiResult<Pass> {
    let node = &shard.node;
    let mut by_shard: BTreeMap<NodeId, Parts> = BTreeMap::new();
    let mut failed = vec![false; jobs.len()];
    for (place, job) in jobs.iter().enumerate() {
        match chunks_of(node, &job.chunks).await {
            Ok(chunks) => divide(node, place, job, &chunks, &mut by_shard)?,
            Err(error) => {
                tracing::debug!(shard = %shard.id, name = %job.name, error = chain(&error), "a content is not counted yet");
                failed[place] = true;
            }
        }
    }
    let sent = by_shard.iter().map(|(to, parts)| send_parts(shard, to, parts));
    for (parts, sent) in by_shard.values().zip(join_all(sent).await) {
        if let Err(error) = sent {
            tracing::debug!(shard = %shard.id, error = chain(&error), "who holds what is not counted yet");
            parts.iter().for_each(|(place, _)| failed[*place] = true);
        }
    }
    let mut pass = if failed.contains(&true) { Pass::Failed } else { Pass::Done };
    let done: Vec<Job> =
        jobs.into_iter().zip(failed).filter(|(_, failed)| !failed).map(|(job, _)| job).collect();
    if !done.is_empty() {
        let slots = shard.slots.clone();
        let settle = move |txn: &mut Txn<'_>| {
            let mut all_went = true;
            for job in done {
                // A slot that moves meanwhile takes its rows along.
                if slots.check(Slot::of_name(&job.name)).is_ok() {
                    all_went &= due::settle(txn, &job)?;
                }
            }
            Ok(all_went)
        };
        if !shard.catalog.commit(settle).await? {
            pass = pass.max(Pass::More);
        }
    }
    // Lists of chunks were kept until here.
    shard.signals.reap_queued.notify_one();
    Ok(pass)
}

/// All chunks that a holding keeps, its stored list among them. A list that is at no node is all that is known of it.
async fn chunks_of(node: &Node, chunks: &ChunkList) -> ApiResult<Vec<ChunkRef>> {
    match chunks {
        ChunkList::Inline(chunks) => Ok(chunks.clone()),
        ChunkList::Stored { list, .. } => {
            let mut chunks = read_list(node, list).await?.unwrap_or_default();
            chunks.push(*list);
            Ok(chunks)
        }
    }
}

fn shard_of(node: &Node, slot: Slot) -> ApiResult<NodeId> {
    let owner = node.maps.with(|view| Some(view.site()?.slot_owner(slot)?.id.clone()));
    owner.ok_or_else(|| {
        ApiError::new(ErrorCode::NodeUnavailable, "no node is known to own the slot of a chunk or name")
    })
}

/// Divides a job among the shards that count its chunks.
fn divide(
    node: &Node,
    place: usize,
    job: &Job,
    chunks: &[ChunkRef],
    by_shard: &mut BTreeMap<NodeId, Parts>,
) -> ApiResult<()> {
    let mut divided: BTreeMap<NodeId, Vec<ChunkRef>> = BTreeMap::new();
    for chunk in chunks {
        divided.entry(shard_of(node, Slot::of_chunk(&chunk.hash))?).or_default().push(*chunk);
    }
    for (shard, chunks) in divided {
        let clients_max = PIECE_WEIGHT / chunks.len().min(PIECE_WEIGHT);
        let parts = by_shard.entry(shard).or_default();
        for clients in job.clients.chunks(clients_max.max(1)) {
            for chunks in chunks.chunks(PIECE_WEIGHT) {
                let change = TallyChange {
                    name: job.name.clone(),
                    ref_tag: job.ref_tag,
                    held: job.held,
                    clients: clients.to_vec(),
                    chunks: chunks.to_vec(),
                };
                parts.push((place, change));
            }
        }
    }
    Ok(())
}

/// Sends a shard its parts, as many at once as one call may change.
async fn send_parts(shard: &Shard, to: &NodeId, parts: &Parts) -> ApiResult<()> {
    let mut left = parts.as_slice();
    while !left.is_empty() {
        let mut weight = 0;
        let fitting = left.iter().take_while(|(_, change)| {
            weight += change.chunks.len() * change.clients.len();
            weight <= PIECE_WEIGHT
        });
        let (piece, rest) = left.split_at(fitting.count().max(1));
        left = rest;
        send(shard, to, piece.iter().map(|(_, change)| change.clone()).collect()).await?;
    }
    Ok(())
}

async fn send(shard: &Shard, to: &NodeId, changes: Vec<TallyChange>) -> ApiResult<()> {
    let (node, from) = (&shard.node, shard.id.clone());
    let request = TallyRequest { from, term: shard.stream.term(), changes };
    if node.maps.with(|view| view.term_of(to).is_some()) {
        return apply_here(node, request).await;
    }
    node.shard_peer(to)?.tally(&request).await.map_err(|error| {
        error.to_api(
            ErrorCode::NodeUnavailable,
            "another node of the site does not count who holds its chunks",
        )
    })
}

/// Whether who sent this decides for all of its names, under the map of this node.
fn is_from_primary(view: &View, request: &TallyRequest) -> bool {
    let Some(site) = view.site() else { return false };
    let has = |name| site.slot_owner(Slot::of_name(name)).is_some_and(|owner| owner.id == request.from);
    site.node(&request.from).is_some_and(|node| node.shard.term == request.term)
        && request.changes.iter().all(|change| has(&change.name))
}

/// Enters changes at chunks whose slots this node owns, durably; those of one shard in one commit.
pub async fn apply_here(node: &Node, request: TallyRequest) -> ApiResult<()> {
    if !node.maps.with(|view| is_from_primary(view, &request)) {
        let message =
            format!("the shard of {} is not served in term {} any more", request.from, request.term);
        return Err(ApiError::new(ErrorCode::WrongNode, message));
    }
    let mut by_shard: BTreeMap<NodeId, Vec<TallyChange>> = BTreeMap::new();
    for change in request.changes {
        let mut divided: BTreeMap<NodeId, Vec<ChunkRef>> = BTreeMap::new();
        for chunk in &change.chunks {
            divided.entry(shard_of(node, Slot::of_chunk(&chunk.hash))?).or_default().push(*chunk);
        }
        for (shard, chunks) in divided {
            by_shard.entry(shard).or_default().push(TallyChange { chunks, ..change.clone() });
        }
    }
    for (shard, changes) in by_shard {
        let shard = node.shard(&shard)?;
        let first = changes.first().and_then(|change| change.chunks.first());
        let Some(slot) = first.map(|chunk| Slot::of_chunk(&chunk.hash)) else { continue };
        let slots = shard.slots.clone();
        let enter = move |txn: &mut Txn<'_>| {
            for change in &changes {
                for chunk in &change.chunks {
                    slots.check(Slot::of_chunk(&chunk.hash))?;
                    change.clients.iter().try_for_each(|client| super::apply(txn, change, client, chunk))?;
                }
            }
            Ok(())
        };
        shard.commit_in(slot, enter).await?;
    }
    Ok(())
}
