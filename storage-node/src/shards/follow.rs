//! A follower's side: takes what the primary of a shard sends, durably, in the order in which it was committed.

use std::collections::{BTreeSet, HashMap};
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::api::node::{Cargo, ShardEntry, ShardState, Shipment};
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::NodeId;
use common::placement::preferred_followers;
use tokio::time::Instant;

use super::scope_of;
use crate::catalog::Catalog;
use crate::catalog::apply_entry;
use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{ShardPosition, SyncAttempt};
use crate::catalog::txn::{RawRows, Rows, Txn};
use crate::node::Node;
use crate::view::View;

/// Rows that are deleted in one commit.
const PIECE_LEN: usize = 1000;
/// How often it is looked for copies of shards that this node need not have.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// A copy that was sent something so recently may be about to be made a follower's.
const RECENT: Duration = Duration::from_secs(60);

/// When each shard was heard of last from its primary.
#[derive(Default)]
pub struct Followed {
    heard: Mutex<HashMap<NodeId, Instant>>,
}

impl Followed {
    fn hear(&self, shard: &NodeId) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(shard.clone(), Instant::now());
    }

    fn is_recent(&self, shard: &NodeId) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(shard).is_some_and(|at| at.elapsed() < RECENT)
    }
}

/// Takes a shipment. Answers where this node is once it is durable.
///
/// # Errors
/// `Conflict` when this node knows a newer primary.
pub async fn receive(node: &Arc<Node>, shard: &NodeId, shipment: Shipment) -> ApiResult<ShardState> {
    node.shards.followed.hear(shard);
    let (rows, term) = (node.catalog.scoped(scope_of(node, shard, None)), shipment.term);
    let check = {
        let (node, shard) = (node.clone(), shard.clone());
        move || node.maps.with(|view| check_term(view, &shard, term))
    };
    if check().is_err() {
        // The primary may have heard of its term before this node did.
        if let Ok(map) = node.search.map(node.maps.epoch(), Duration::ZERO).await {
            node.adopt(map).await?;
        }
        check()?;
    }
    match shipment.cargo {
        Cargo::Question => {}
        Cargo::Entries(entries) => {
            rows.commit(move |txn| check().and_then(|()| append(txn, &entries))).await?
        }
        Cargo::Begin { at, attempt } => begin(&rows, at, attempt, check).await?,
        Cargo::Rows { attempt, rows: page } => {
            let put = move |txn: &mut Txn<'_>| {
                check()?;
                check_attempt(txn, attempt)?;
                page.into_iter().for_each(|(key, value)| txn.put_raw(key.to_vec(), value.to_vec()));
                Ok(())
            };
            rows.commit(put).await?;
        }
        Cargo::Whole { at, attempt } => {
            let whole = move |txn: &mut Txn<'_>| {
                check()?;
                check_attempt(txn, attempt)?;
                if txn.get::<ShardPosition>(Key::ShardPosition)? != Some(at) {
                    return Err(ApiError::new(ErrorCode::Conflict, "entries of the shard are missing"));
                }
                txn.delete(Key::Syncing);
                Ok(())
            };
            rows.commit(whole).await?;
        }
    }
    rows.read(|rows| {
        let at = rows.get::<ShardPosition>(Key::ShardPosition)?.unwrap_or_default();
        Ok(ShardState { at: (!rows.has(Key::Syncing)?).then_some(at) })
    })
}

/// Asked in each commit, so that a node which has become primary takes nothing more from the one before, and one that
/// has not heard that it no longer is takes nothing from the next.
fn check_term(view: &View, shard: &NodeId, term: u64) -> ApiResult<()> {
    let known = view.site().and_then(|site| site.node(shard)).map_or(0, |entry| entry.shard.term);
    if view.term_of(shard).is_some() || known != term {
        let message =
            format!("the shard of {shard} is in term {known}, not {term}, under map {}", view.map.epoch.0);
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    Ok(())
}

/// Refuses what comes late from an attempt that was given up.
fn check_attempt(txn: &Txn<'_>, attempt: u64) -> ApiResult<()> {
    match txn.get::<SyncAttempt>(Key::Syncing)? {
        Some(SyncAttempt(begun)) if begun == attempt => Ok(()),
        _ => Err(ApiError::new(ErrorCode::Conflict, "the rows are of an earlier attempt")),
    }
}

/// Applies the entries that come next. One from another place in the history, and what is behind it, is left out: the
/// answer says where this node is.
fn append(txn: &mut Txn<'_>, entries: &[ShardEntry]) -> ApiResult<()> {
    let mut at = txn.get::<ShardPosition>(Key::ShardPosition)?.unwrap_or_default();
    for entry in entries {
        if entry.previous != at {
            break;
        }
        apply_entry(txn, &entry.changes)?;
        at = entry.position;
    }
    Ok(())
}

/// Deletes what is there of the shard, to take all of it anew.
async fn begin(
    rows: &Catalog,
    at: ShardPosition,
    attempt: u64,
    check: impl Fn() -> ApiResult<()> + Clone + Send + 'static,
) -> ApiResult<()> {
    let first = check.clone();
    let mark = move |txn: &mut Txn<'_>| {
        first()?;
        txn.put(Key::Syncing, &SyncAttempt(attempt));
        Ok(())
    };
    rows.commit(mark).await?;
    delete_rows(rows, check.clone()).await?;
    let place = move |txn: &mut Txn<'_>| {
        check()?;
        check_attempt(txn, attempt)?;
        txn.put(Key::ShardPosition, &at);
        Ok(())
    };
    rows.commit(place).await
}

/// Deletes the rows of a shard, piece by piece, as long as `check` says so.
async fn delete_rows(
    rows: &Catalog,
    check: impl Fn() -> ApiResult<()> + Clone + Send + 'static,
) -> ApiResult<()> {
    loop {
        let check = check.clone();
        let piece = move |txn: &mut Txn<'_>| {
            check()?;
            let keys = some_keys(txn)?;
            let deleted = keys.len();
            keys.into_iter().for_each(|key| txn.delete_raw(key));
            Ok(deleted)
        };
        if rows.commit(piece).await? < PIECE_LEN {
            return Ok(());
        }
    }
}

fn some_keys(rows: &(impl Rows + ?Sized)) -> ApiResult<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    for tag in key::shard_tags() {
        rows.scan(&key::all(tag), &mut |key, _| {
            keys.push(key.to_vec());
            let full = keys.len() == PIECE_LEN;
            Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if keys.len() == PIECE_LEN {
            break;
        }
    }
    Ok(keys)
}

/// Deletes copies of shards that this node neither serves nor follows any more, for ever.
pub async fn tidy(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(TIDY_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(error) = tidy_once(&node).await {
            tracing::warn!(node = %node.id, error = chain(&error), "copies of shards are not tidied away");
        }
    }
}

async fn tidy_once(node: &Arc<Node>) -> ApiResult<()> {
    for shard in node.catalog.read(copies)? {
        if node.shards.followed.is_recent(&shard) || node.maps.with(|view| is_kept(view, &node.id, &shard)) {
            continue;
        }
        let (maps, id, of) = (node.maps.clone(), node.id.clone(), shard.clone());
        let check = move || match maps.with(|view| is_kept(view, &id, &of)) {
            true => Err(ApiError::new(ErrorCode::Conflict, "the copy is needed after all")),
            false => Ok(()),
        };
        let rows = node.catalog.scoped(scope_of(node, &shard, None));
        delete_rows(&rows, check.clone()).await?;
        let forget = move |txn: &mut Txn<'_>| {
            check()?;
            txn.delete(Key::ShardPosition);
            txn.delete(Key::Syncing);
            Ok(())
        };
        rows.commit(forget).await?;
        tracing::info!(node = %node.id, %shard, "the copy of a shard that is kept elsewhere is gone");
    }
    Ok(())
}

/// The shards of other nodes of which there are rows here.
fn copies(rows: &(impl RawRows + ?Sized)) -> ApiResult<BTreeSet<NodeId>> {
    let prefix = key::all(Tag::Followed);
    let (mut found, mut from) = (BTreeSet::new(), prefix.clone());
    loop {
        let mut next = None;
        rows.scan_raw(&prefix, Bound::Included(&from), &mut |key, _| {
            next = key::followed_shard(key);
            Ok(ControlFlow::Break(()))
        })?;
        let Some(shard) = next else { return Ok(found) };
        // Behind all of its keys: the NUL that ends the name becomes the byte after it.
        from = key::shard_prefix(&shard);
        if let Some(end) = from.last_mut() {
            *end = 1;
        }
        found.insert(shard);
    }
}

/// Whether the map gives this node a part in the shard, now or soon.
fn is_kept(view: &View, node: &NodeId, shard: &NodeId) -> bool {
    let Some(site) = view.site() else { return true };
    let (Some(entry), Some(me)) = (site.node(shard), site.node_index(node)) else { return true };
    usize::from(entry.shard.primary) == me
        || entry.shard.followers.iter().any(|follower| usize::from(*follower) == me)
        || preferred_followers(site, entry).contains(&me)
}
