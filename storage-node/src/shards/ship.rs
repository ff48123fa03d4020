//! A primary's side: keeps the followers of a shard up to date, chooses them, and hands the shard back to its own node.

use std::collections::HashMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::api::node::{Cargo, NodeClient, RefTag, ShardPosition, Shipment};
use common::api::search::{FollowersChange, HandOver};
use common::backoff::Backoff;
use common::client::CallError;
use common::cluster::{MapEpoch, NodeEntry, NodeState, SiteEntry};
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::NodeId;
use common::placement::preferred_followers;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::catalog::key;
use crate::catalog::stream::Next;
use crate::catalog::txn::RawRows;
use crate::shard::Shard;
use crate::view::View;

/// Bytes of one shipment.
const SHIPMENT_BYTES: usize = 1 << 20;
/// A follower that is silent for so long is suspected; search looks whether it is there.
const SILENT: Duration = Duration::from_secs(1);
/// One that was kept up to date for so long is not slow.
const STEADY: Duration = Duration::from_secs(60);
/// How often it is looked whether followers should change, beside each new map.
const REVIEW_INTERVAL: Duration = Duration::from_secs(1);

/// Makes answers wait for the followers that the map has: before the first change is taken. The shard's own node, which
/// is away, may come back soon: what is committed meanwhile is kept for it, as long as it fits.
pub fn require_followers(shard: &Shard) {
    if shard.id != shard.node.id {
        shard.stream.attach(&shard.id);
    }
    shard.node.maps.with(|view| {
        for follower in followers(view, &shard.id) {
            shard.stream.require(follower, true);
        }
    });
}

/// The followers that the map has.
fn followers<'a>(view: &'a View, shard: &NodeId) -> Vec<&'a NodeId> {
    let Some((site, entry)) = entry_of(view, shard) else { return Vec::new() };
    let nodes = entry.shard.followers.iter().filter_map(|index| site.nodes.get(usize::from(*index)));
    nodes.map(|node| &node.id).collect()
}

fn entry_of<'a>(view: &'a View, shard: &NodeId) -> Option<(&'a SiteEntry, &'a NodeEntry)> {
    let site = view.site()?;
    Some((site, site.node(shard)?))
}

/// Sends what is committed to all that follow or are to follow, as long as this node serves the shard.
pub async fn ship(shard: Arc<Shard>) {
    let mut senders: HashMap<NodeId, AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut views = shard.node.maps.watch();
    loop {
        let view = views.borrow_and_update().clone();
        if view.term_of(&shard.id) != Some(shard.stream.term()) {
            // A follower that is gone from such a map may be the new primary: what waits for it must not be answered.
            return;
        }
        require_known(&shard).await;
        let wanted = wanted(&view, &shard.id);
        senders.retain(|id, sender| {
            // One that search may be taking in is kept until it is known.
            let keeps = wanted.iter().any(|node| node == id) || shard.stream.is_required(id);
            if !keeps {
                sender.abort();
                shard.stream.detach(id);
            }
            keeps
        });
        for id in wanted {
            senders.entry(id.clone()).or_insert_with(|| tasks.spawn(send(shard.clone(), id)));
        }
        if let Err(error) = review(&shard, &view).await {
            tracing::debug!(shard = %shard.id, error = chain(&error), "the followers stay as they are for now");
        }
        let _either = tokio::time::timeout(REVIEW_INTERVAL, views.changed()).await;
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                // The followers would wait for ever; with the next term somebody else sends.
                shard.node.health.fail("shards", format!("sending the shard of {} panicked", shard.id));
            }
        }
    }
}

/// Makes answers wait for whoever the map has, however it came in: it may become primary.
async fn require_known(shard: &Shard) {
    let _together = shard.membership.lock().await;
    // Looked up anew: the view of a moment ago may name one that was let go since.
    shard.node.maps.with(|view| {
        if view.term_of(&shard.id) == Some(shard.stream.term()) {
            followers(view, &shard.id).into_iter().for_each(|id| shard.stream.require(id, true));
        }
    });
}

/// Those who follow, and those who are to.
fn wanted(view: &View, shard: &NodeId) -> Vec<NodeId> {
    let Some((site, entry)) = entry_of(view, shard) else { return Vec::new() };
    let mut wanted: Vec<NodeId> = followers(view, shard).into_iter().cloned().collect();
    for index in preferred_followers(site, entry) {
        if !wanted.contains(&site.nodes[index].id) {
            wanted.push(site.nodes[index].id.clone());
        }
    }
    wanted
}

/// Lets followers go that are too many, and hands the shard to the node that should serve it.
async fn review(shard: &Shard, view: &View) -> ApiResult<()> {
    let Some((site, entry)) = entry_of(view, &shard.id) else { return Ok(()) };
    let in_sync = &entry.shard.followers;
    let preferred = preferred_followers(site, entry);
    let is_in_sync = |index: &usize| in_sync.iter().any(|follower| usize::from(*follower) == *index);
    if let Some(to) = better_primary(site, entry) {
        return hand_over(shard, &to.id).await;
    }
    let surplus = in_sync.iter().map(|index| usize::from(*index)).filter(|index| !preferred.contains(index));
    let surplus: Vec<NodeId> = surplus.map(|index| site.nodes[index].id.clone()).collect();
    if !surplus.is_empty() && preferred.iter().all(is_in_sync) {
        change_followers(shard, Vec::new(), surplus).await?;
    }
    Ok(())
}

/// The follower that should serve the shard instead: its own node; or any, if the one that serves it is to be emptied.
fn better_primary<'a>(site: &'a SiteEntry, entry: &NodeEntry) -> Option<&'a NodeEntry> {
    let primary = &site.nodes[site.primary_index(entry)?];
    if primary.id == entry.id {
        return None;
    }
    let nodes = entry.shard.followers.iter().filter_map(|index| site.nodes.get(usize::from(*index)));
    let mut there = nodes.filter(|node| node.alive && node.state != NodeState::Removed);
    let own = there.clone().find(|node| node.id == entry.id);
    own.or_else(|| there.find(|node| node.weight > 0).filter(|_| primary.weight == 0))
}

async fn hand_over(shard: &Shard, to: &NodeId) -> ApiResult<()> {
    let request = HandOver {
        site: shard.node.site.clone(),
        shard: shard.id.clone(),
        primary: shard.node.id.clone(),
        term: shard.stream.term(),
        to: to.clone(),
    };
    let map = shard.node.search.hand_over(&request).await.map_err(|error| unavailable(&error))?;
    tracing::info!(shard = %shard.id, %to, "handed over");
    shard.node.adopt(map).await
}

async fn change_followers(shard: &Shard, add: Vec<NodeId>, remove: Vec<NodeId>) -> ApiResult<()> {
    let change = FollowersChange {
        site: shard.node.site.clone(),
        shard: shard.id.clone(),
        primary: shard.node.id.clone(),
        term: shard.stream.term(),
        add,
        remove: remove.clone(),
    };
    let map = shard.node.search.change_followers(&change).await.map_err(|error| unavailable(&error))?;
    let _together = shard.membership.lock().await;
    shard.node.adopt(map).await?;
    // Only now that the map says so: before, one of them might have become primary.
    remove.iter().for_each(|follower| shard.stream.require(follower, false));
    Ok(())
}

fn unavailable(error: &CallError) -> ApiError {
    error.to_api(ErrorCode::SearchUnavailable, "search does not answer, and it decides who follows a shard")
}

/// Keeps one follower up to date, for ever.
async fn send(shard: Arc<Shard>, follower: NodeId) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let mut pause = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
    shard.stream.attach(&follower);
    loop {
        let began = Instant::now();
        if let Err(error) = feed(&shard, &follower, &mut backoff).await {
            tracing::debug!(shard = %shard.id, %follower, error = chain(&error), "the follower is not up to date");
            if began.elapsed() >= STEADY {
                pause.reset();
            }
            // Another history is put right by sending all rows; whatever else it is, writes must not wait for it.
            // Nor is it the follower's fault when search is away.
            if !matches!(error.code, ErrorCode::Conflict | ErrorCode::SearchUnavailable) {
                if let Err(error) = give_up(&shard, &follower).await {
                    tracing::debug!(shard = %shard.id, %follower, error = chain(&error), "nor is it let go");
                }
                tokio::time::sleep(pause.next_delay()).await;
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// A follower cannot be reached. Search looks whether it is there, and takes it out of the map if it is not; if it is,
/// this primary does so: it will follow again when it answers.
async fn give_up(shard: &Shard, follower: &NodeId) -> ApiResult<()> {
    let looked = shard.node.search.suspect(follower).await.map_err(|error| unavailable(&error))?;
    let counts = shard.node.maps.with(|view| followers(view, &shard.id).contains(&follower));
    let is_required = shard.stream.is_required(follower);
    if looked.alive && (counts || is_required) {
        change_followers(shard, Vec::new(), vec![follower.clone()]).await?;
    } else if is_required {
        leave_out(shard, follower).await?;
    }
    Ok(())
}

/// Search does not have the follower, or refused to take it in. Answers no longer wait for it, unless it is in the map
/// all the same, or another node serves the shard by now.
async fn leave_out(shard: &Shard, follower: &NodeId) -> ApiResult<()> {
    let map = shard.node.search.map(MapEpoch(0), Duration::ZERO).await;
    let map = map.map_err(|error| unavailable(&error))?;
    let _together = shard.membership.lock().await;
    shard.node.adopt(map).await?;
    let is_out = shard.node.maps.with(|view| {
        let is_ours = view.term_of(&shard.id) == Some(shard.stream.term());
        is_ours && !followers(view, &shard.id).contains(&follower)
    });
    if is_out {
        shard.stream.require(follower, false);
    }
    Ok(())
}

/// Sends what a follower lacks as long as that goes well.
async fn feed(shard: &Shard, follower: &NodeId, backoff: &mut Backoff) -> ApiResult<()> {
    let peer = shard.node.maps.with(|view| Some(shard.node.peer(view.site()?.node(follower)?)));
    let peer = Peer { shard, follower, client: peer.ok_or_else(|| gone(follower))? };
    let mut heads = shard.stream.head();
    let mut at = match peer.ship(Cargo::Question).await? {
        Some(at) if shard.stream.after(at, 0) != Next::Unknown => at,
        _ => peer.send_all_rows().await?,
    };
    shard.stream.acknowledge(follower, at.seq);
    loop {
        heads.borrow_and_update();
        match shard.stream.after(at, SHIPMENT_BYTES) {
            Next::Unknown => return Err(other_history(follower)),
            Next::Entries(entries) if entries.is_empty() => {
                backoff.reset();
                // Without search it does not enter, but it goes on to be sent what answers may wait for.
                if let Err(error) = peer.enter(at).await {
                    tracing::debug!(shard = %shard.id, %follower, error = chain(&error), "not taken in yet");
                }
                // The sender lives as long as the stream.
                let _either = tokio::time::timeout(REVIEW_INTERVAL, heads.changed()).await;
            }
            Next::Entries(entries) => at = peer.send_entries(entries).await?,
        }
    }
}

fn gone(follower: &NodeId) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("{follower} is not in the map"))
}

fn other_history(follower: &NodeId) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("{follower} is not where it said"))
}

/// A follower that is being sent to.
struct Peer<'a> {
    shard: &'a Shard,
    follower: &'a NodeId,
    client: NodeClient,
}

impl Peer<'_> {
    /// Sends cargo and answers where the follower is; `None` while it lacks rows.
    async fn ship(&self, cargo: Cargo) -> ApiResult<Option<ShardPosition>> {
        let shipment =
            Shipment { primary: self.shard.node.id.clone(), term: self.shard.stream.term(), cargo };
        let mut answer = std::pin::pin!(self.client.ship(&self.shard.id, &shipment));
        let answer = match tokio::time::timeout(SILENT, &mut answer).await {
            Ok(answer) => answer,
            Err(_) => {
                // While search looks, the answer may still come.
                tokio::select! {
                    biased;
                    answer = &mut answer => answer,
                    _looked = self.shard.node.search.suspect(self.follower) => answer.await,
                }
            }
        };
        let state = answer
            .map_err(|error| error.to_api(ErrorCode::NodeUnavailable, "the follower does not answer"))?;
        Ok(state.at)
    }

    async fn send_entries(
        &self,
        entries: Vec<Arc<common::api::node::ShardEntry>>,
    ) -> ApiResult<ShardPosition> {
        let last = entries.last().map(|entry| entry.position);
        let entries = entries.iter().map(|entry| entry.as_ref().clone()).collect();
        let at = self.ship(Cargo::Entries(entries)).await?;
        match at {
            Some(at) if Some(at) == last => {
                self.shard.stream.acknowledge(self.follower, at.seq);
                Ok(at)
            }
            _ => Err(other_history(self.follower)),
        }
    }

    /// Has the follower counted, if it is to be and is not yet; it has the entries up to `at`.
    async fn enter(&self, at: ShardPosition) -> ApiResult<()> {
        let (shard, follower) = (self.shard, self.follower);
        let is_wanted = shard.node.maps.with(|view| {
            let (site, entry) = entry_of(view, &shard.id)?;
            let counts = followers(view, &shard.id).contains(&follower);
            let index = site.node_index(follower)?;
            Some(!counts && preferred_followers(site, entry).contains(&index))
        });
        if is_wanted != Some(true) {
            return Ok(());
        }
        // First answers wait for it, then it may become primary. What was answered before that it must have.
        shard.stream.require(follower, true);
        if shard.stream.at() != at {
            return Ok(());
        }
        let added = change_followers(shard, vec![follower.clone()], Vec::new()).await;
        if let Err(error) = &added
            && error.code == ErrorCode::Conflict
        {
            leave_out(shard, follower).await?;
        }
        added.inspect(|()| tracing::info!(shard = %shard.id, %follower, "the follower has all rows"))
    }

    /// Sends all rows. What is committed meanwhile goes in between: a row that was read later than an entry is newer
    /// than it, and the entries that made it so come behind.
    async fn send_all_rows(&self) -> ApiResult<ShardPosition> {
        let (shard, follower) = (self.shard, self.follower);
        if shard.stream.is_required(follower) {
            change_followers(shard, Vec::new(), vec![follower.clone()]).await?;
        }
        shard.stream.forget_acknowledged(follower);
        let (mut at, attempt) = (shard.stream.at(), RefTag::generate().0);
        self.ship(Cargo::Begin { at, attempt }).await?;
        let mut after = Vec::new();
        loop {
            let page = shard.catalog.read(|rows| page_after(rows, &after))?;
            let Some((last, _)) = page.last() else { break };
            after = last.to_vec();
            self.ship(Cargo::Rows { attempt, rows: page }).await?;
            at = self.send_waiting(at).await?;
        }
        at = self.send_waiting(at).await?;
        match self.ship(Cargo::Whole { at, attempt }).await? {
            Some(there) if there == at => Ok(at),
            _ => Err(other_history(follower)),
        }
    }

    /// Sends the entries that wait, to a follower that still lacks rows.
    async fn send_waiting(&self, mut at: ShardPosition) -> ApiResult<ShardPosition> {
        loop {
            let entries = match self.shard.stream.after(at, SHIPMENT_BYTES) {
                Next::Entries(entries) => entries,
                Next::Unknown => return Err(other_history(self.follower)),
            };
            let Some(last) = entries.last() else { return Ok(at) };
            at = last.position;
            let entries = entries.iter().map(|entry| entry.as_ref().clone()).collect();
            self.ship(Cargo::Entries(entries)).await?;
            self.shard.stream.acknowledge(self.follower, at.seq);
        }
    }
}

/// Rows of a shard behind `after`, of about one shipment.
fn page_after(rows: &impl RawRows, after: &[u8]) -> ApiResult<Vec<(Bytes, Bytes)>> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for tag in key::shard_tags() {
        let prefix = key::all(tag);
        let from = if after.first().is_some_and(|first| *first == prefix[0]) {
            Bound::Excluded(after)
        } else if after < prefix.as_slice() {
            Bound::Included(prefix.as_slice())
        } else {
            continue;
        };
        rows.scan_raw(&prefix, from, &mut |key, value| {
            bytes += key.len() + value.len();
            page.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            let full = bytes >= SHIPMENT_BYTES;
            Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if bytes >= SHIPMENT_BYTES {
            break;
        }
    }
    Ok(page)
}
