//! Verifies what is stored: reads every chunk, slowly, round after round.
//!
//! A round first goes over the catalog's chunks in the order of their hashes. One that is damaged is taken out as by any
//! other reader; it, and one that the store does not have, is put back if another node has it. Then it goes over the store's
//! own list: a chunk that no row knows of, left by a crash or a put that was given up, is deleted once it was so for
//! the chunk grace. How far the round is stands in the catalog, so that a restart goes on where it was.
//!
//! Only this worker deletes chunks without a row. It does so alone with the chunk ([`crate::chunks::ChunkLocks`]), and
//! asks the committer, behind whatever a put has queued, whether there is a row by now.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::api::node::{ScrubCounts, ScrubRound, ScrubStatus};
use common::backoff::Backoff;
use common::config::Live;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::hash::ChunkHash;
use common::time::UnixMillis;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::catalog::key::{self, Key};
use crate::catalog::rows::{OpenScrubRound, ScrubValue};
use crate::catalog::txn::Rows;
use crate::chunks::{self, store_error};
use crate::metrics::ScrubMetrics;
use crate::mover;
use crate::node::Node;

/// Rows that are read at once.
const PAGE_LEN: usize = 256;
/// How often progress is written down at most.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// How often a chunk that cannot be read is tried.
const TRIES: u32 = 3;
/// Surplus chunks that one round deletes at most; the next one finds the rest.
const SUSPECTS_MAX: usize = 100_000;
/// Chunks that one round names in the log, of those that are missing or cannot be read.
const NAMED_MAX: u64 = 10;

/// Progress of the scrub, and what it may take.
pub struct Scrub {
    /// 0 while it is off.
    bytes_per_s: Live,
    interval_ms: Live,
    state: Mutex<ScrubValue>,
    started: Notify,
}

impl Scrub {
    pub fn new(bytes_per_s: Live, interval_ms: Live) -> Self {
        Self { bytes_per_s, interval_ms, state: Mutex::default(), started: Notify::new() }
    }

    pub fn is_on(&self) -> bool {
        self.bytes_per_s.get() > 0
    }

    /// Takes up what the catalog says.
    pub fn restore(&self, rows: &(impl Rows + ?Sized), metrics: &ScrubMetrics) -> ApiResult<()> {
        let state = rows.get::<ScrubValue>(Key::Scrub)?.unwrap_or_default();
        *self.state() = state;
        show(metrics, &state);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, ScrubValue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self) -> ScrubStatus {
        let ScrubValue { round, last_completed } = *self.state();
        ScrubStatus {
            running: round.is_some() && self.is_on(),
            bytes_per_s: self.bytes_per_s.get(),
            progress: round.map_or(1.0, |round| progress(&round)),
            started: round.map(|round| round.started),
            counts: round.map(|round| round.counts).unwrap_or_default(),
            last_completed,
        }
    }

    /// Time until the next round is due; `None` while one is under way.
    fn due_in(&self, now: UnixMillis) -> Option<Duration> {
        let ScrubValue { round: None, last_completed } = *self.state() else { return None };
        let interval = Duration::from_millis(self.interval_ms.get());
        let due = last_completed.map_or(now, |last| last.started.saturating_add(interval));
        Some(due.since(now))
    }
}

/// Hashes are evenly spread, so how far the round is in their order is how much it has read.
fn progress(round: &OpenScrubRound) -> f64 {
    let Some(after) = round.after else { return 0.0 };
    let mut head = [0; 8];
    head.copy_from_slice(&after.as_bytes()[..8]);
    u64::from_be_bytes(head) as f64 / u64::MAX as f64
}

fn show(metrics: &ScrubMetrics, state: &ScrubValue) {
    metrics.progress_ratio.set(state.round.as_ref().map_or(1.0, progress));
    let completed = state.last_completed.map_or(0.0, |last| last.completed.0 as f64 / 1000.0);
    metrics.last_completed_timestamp_seconds.set(completed);
}

/// Begins a round, durably, unless one is under way.
pub async fn start(node: &Node) -> ApiResult<()> {
    {
        let mut state = node.scrub.state();
        if state.round.is_some() {
            return Ok(());
        }
        let (started, counts) = (node.clock.now(), ScrubCounts::default());
        state.round = Some(OpenScrubRound { started, after: None, counts });
    }
    node.scrub.started.notify_one();
    save(node).await
}

/// Scrubs round after round, for ever.
pub async fn run(node: Arc<Node>) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        node.scrub.bytes_per_s.wait_for(|bytes_per_s| *bytes_per_s > 0).await;
        match run_round(&node).await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                tracing::warn!(node = %node.id, error = chain(&error), "the scrub pauses");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Waits until a round is due or was asked for, and brings it to its end.
async fn run_round(node: &Arc<Node>) -> ApiResult<()> {
    let interval_ms = &node.scrub.interval_ms;
    while let Some(due) = node.scrub.due_in(node.clock.now()) {
        let known_ms = interval_ms.get();
        if due.is_zero() {
            start(node).await?;
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(due) => {}
            () = node.scrub.started.notified() => {}
            () = interval_ms.wait_for(|ms| *ms != known_ms) => {}
        }
    }
    verify_chunks(node).await?;
    delete_surplus(node).await?;
    let state = {
        let mut state = node.scrub.state();
        if let Some(OpenScrubRound { started, counts, .. }) = state.round.take() {
            state.last_completed = Some(ScrubRound { started, completed: node.clock.now(), counts });
        }
        *state
    };
    if let Some(ScrubRound { started, completed, counts }) = state.last_completed {
        tracing::info!(node = %node.id, seconds = completed.since(started).as_secs(), chunks = counts.chunks, bytes = counts.bytes,
            damaged = counts.damaged, missing = counts.missing, unreadable = counts.unreadable, surplus = counts.surplus,
            "a round of the scrub is completed");
    }
    save(node).await
}

/// Writes down how far the scrub is.
async fn save(node: &Node) -> ApiResult<()> {
    let state = *node.scrub.state();
    show(&node.metrics.scrub, &state);
    node.catalog
        .commit(move |txn| {
            txn.put(Key::Scrub, &state);
            Ok(())
        })
        .await
}

/// Changes the figures of the round under way.
fn note(node: &Node, change: impl FnOnce(&mut OpenScrubRound)) {
    if let Some(round) = node.scrub.state().round.as_mut() {
        change(round);
    }
}

/// Holds reads to so many bytes a second; time in which nothing was read is not made up for.
struct Pace<'a> {
    bytes_per_s: &'a Live,
    free_at: Instant,
}

impl Pace<'_> {
    async fn spend(&mut self, bytes: u64) {
        // Turned off, it rests where it is.
        self.bytes_per_s.wait_for(|bytes_per_s| *bytes_per_s > 0).await;
        let time = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s.get().max(1) as f64);
        self.free_at = self.free_at.max(Instant::now()) + time;
        tokio::time::sleep_until(self.free_at).await;
    }
}

/// What became of a chunk that the catalog knows.
enum Verdict {
    Good {
        bytes: u64,
    },
    Damaged,
    Missing,
    Unreadable,
    /// It was deleted meanwhile.
    Gone,
}

async fn verify_chunks(node: &Node) -> ApiResult<()> {
    let mut pace = Pace { bytes_per_s: &node.scrub.bytes_per_s, free_at: Instant::now() };
    let mut saved: Option<Instant> = None;
    loop {
        let after = node.scrub.state().round.and_then(|round| round.after);
        let page = node.catalog.read(|rows| chunks::rows_after(rows, after.as_ref(), PAGE_LEN))?;
        if page.is_empty() {
            return Ok(());
        }
        for hash in page {
            let verdict = verify(node, &hash).await?;
            let bytes = if let Verdict::Good { bytes } = verdict { bytes } else { 0 };
            let is_lost = matches!(verdict, Verdict::Damaged | Verdict::Missing);
            let is_repaired = is_lost && mover::repair(node, &hash).await.is_some();
            record(node, hash, &verdict, is_repaired);
            if saved.is_none_or(|at| at.elapsed() >= SAVE_INTERVAL) {
                // A full log takes no progress; chunks can be read all the same.
                if let Err(error) = save(node).await {
                    tracing::debug!(node = %node.id, error = chain(&error), "the scrub's progress is not written down");
                }
                saved = Some(Instant::now());
            }
            pace.spend(bytes).await;
        }
    }
}

async fn verify(node: &Node, hash: &ChunkHash) -> ApiResult<Verdict> {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
    for _ in 0..TRIES {
        match chunks::read_own(node, hash).await {
            Ok(bytes) => return Ok(Verdict::Good { bytes: bytes.len() as u64 }),
            Err(error) if error.code == ErrorCode::Damaged => return Ok(Verdict::Damaged),
            Err(error) if error.code == ErrorCode::ChunkNotFound => return is_missing(node, hash).await,
            Err(error) => {
                tracing::debug!(node = %node.id, chunk = %hash, error = chain(&error), "a chunk cannot be read");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
    Ok(Verdict::Unreadable)
}

/// Whether a chunk that was not found should be there: its row stands while neither a put nor a deletion is under way.
async fn is_missing(node: &Node, hash: &ChunkHash) -> ApiResult<Verdict> {
    let _alone = node.chunk_locks.deleting(hash).await;
    let has_row = node.catalog.read(|rows| rows.has(Key::Chunk(hash)))?;
    let is_stored = node.chunks.contains(hash).await.map_err(|error| store_error(&error))?;
    Ok(if has_row && !is_stored { Verdict::Missing } else { Verdict::Gone })
}

fn record(node: &Node, hash: ChunkHash, verdict: &Verdict, is_repaired: bool) {
    let metrics = &node.metrics.scrub;
    let mut named = 0;
    note(node, |round| {
        round.after = Some(hash);
        let counts = &mut round.counts;
        match verdict {
            Verdict::Good { bytes } => {
                counts.chunks += 1;
                counts.bytes += bytes;
            }
            Verdict::Damaged => counts.damaged += 1,
            Verdict::Missing => counts.missing += 1,
            Verdict::Unreadable => counts.unreadable += 1,
            Verdict::Gone => {}
        }
        named = counts.missing + counts.unreadable;
        metrics.progress_ratio.set(progress(round));
    });
    match verdict {
        Verdict::Good { .. } => metrics.chunks.increment(1),
        // `chunks::read_own` has told the log.
        Verdict::Damaged => metrics.damaged.increment(1),
        Verdict::Missing if !is_repaired && named <= NAMED_MAX => {
            tracing::warn!(node = %node.id, chunk = %hash, "a chunk of the catalog is not in the store; it waits for a good copy");
        }
        Verdict::Unreadable if named <= NAMED_MAX => {
            tracing::warn!(node = %node.id, chunk = %hash, tries = TRIES, "a stored chunk cannot be read");
        }
        Verdict::Missing | Verdict::Unreadable | Verdict::Gone => {}
    }
}

/// Deletes chunks of the store that the catalog has not known for the chunk grace.
async fn delete_surplus(node: &Arc<Node>) -> ApiResult<()> {
    let suspects = suspects(node).await?;
    if suspects.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(node.limits.chunk_grace).await;
    for hash in suspects {
        if delete_if_unknown(node, hash).await? {
            tracing::info!(node = %node.id, chunk = %hash, "a stored chunk that nothing knew of was deleted");
            note(node, |round| round.counts.surplus += 1);
            node.metrics.scrub.surplus.increment(1);
        }
    }
    Ok(())
}

async fn suspects(node: &Arc<Node>) -> ApiResult<Vec<ChunkHash>> {
    let (mut suspects, mut next) = (Vec::new(), Some(0));
    while let Some(page) = next.filter(|_| suspects.len() < SUSPECTS_MAX) {
        let listed = node.chunks.list(page).await.map_err(|error| store_error(&error))?;
        let (reader, hashes) = (node.clone(), listed.hashes);
        let unknown = tokio::task::spawn_blocking(move || {
            reader.catalog.read(|rows| {
                let mut unknown = Vec::new();
                for hash in hashes {
                    if !is_known(rows, &hash)? {
                        unknown.push(hash);
                    }
                }
                Ok(unknown)
            })
        });
        suspects.extend(unknown.await.map_err(|error| ApiError::internal(&error))??);
        next = listed.next;
    }
    suspects.truncate(SUSPECTS_MAX);
    Ok(suspects)
}

fn is_known(rows: &(impl Rows + ?Sized), hash: &ChunkHash) -> ApiResult<bool> {
    Ok(rows.has(Key::Chunk(hash))? || !rows.is_empty(&key::chunk_refs(hash))?)
}

/// Deletes a chunk unless the catalog knows it by now; answers whether it was deleted.
async fn delete_if_unknown(node: &Node, hash: ChunkHash) -> ApiResult<bool> {
    let _alone = node.chunk_locks.deleting(&hash).await;
    // A put that its caller gave up may have left a change in the queue: this one is carried out behind it.
    if node.catalog.commit(move |txn| is_known(txn, &hash)).await? {
        return Ok(false);
    }
    node.chunks.delete(&hash).await.map_err(|error| store_error(&error))
}

#[cfg(test)]
mod tests;
