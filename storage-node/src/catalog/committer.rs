//! The one thread that changes the catalog: group commit.
//!
//! It takes what is queued, runs it against the index, appends one redo entry to the log, applies the entry to the
//! index and answers all. While the log syncs, the next batch gathers in the queue. After any failure but a
//! full log it stops for good: what the index holds would no longer be known. A restart recovers.

use std::sync::Arc;

use bytes::Bytes;
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use redb::Database;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};

use super::key::Key;
use super::rows::Row;
use super::txn::{Overlay, ROWS, RawRows, Reader, Txn, placed};
use super::write_out::{WriteOut, is_due, pays};
use super::{Scope, index, redo};
use crate::log::{Log, LogError, LogPosition};

/// Most changes in one batch.
const BATCH_LEN: usize = 256;
/// A batch takes no further change once its redo entry is this long.
const BATCH_BYTES: usize = 1 << 20;
/// The index is synced also when this much was logged since.
const CHECKPOINT_BYTES: usize = 64 << 20;

/// Told when the batch is durable, or why it is not.
pub(super) type Answer = Box<dyn FnOnce(ApiResult<()>) + Send>;
/// Runs a change; says whether its writes count.
pub(super) type Work = Box<dyn FnOnce(&mut Txn<'_>) -> (bool, Answer) + Send>;

pub(super) enum Job {
    Change(Scope, Work),
    Checkpoint(Option<oneshot::Sender<()>>),
    /// Write the whole catalog into the log now, due or not.
    #[cfg(test)]
    WriteOut(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// Wraps a change and the place where its answer goes.
pub(super) fn work<T, F>(change: F, answer: oneshot::Sender<ApiResult<T>>) -> Work
where
    T: Send + 'static,
    F: FnOnce(&mut Txn<'_>) -> ApiResult<T> + Send + 'static,
{
    Box::new(move |txn| {
        let result = change(txn);
        let counts = result.is_ok();
        let tell = move |batch: ApiResult<()>| {
            // Nobody may wait any more; the change is carried out all the same.
            let _unheard = answer.send(batch.and(result));
        };
        (counts, Box::new(tell))
    })
}

pub(super) struct Committer {
    index: Arc<Database>,
    log: Log,
    jobs: mpsc::Receiver<Job>,
    /// The index holds the log up to here.
    applied: LogPosition,
    /// And up to here it does so durably.
    synced: LogPosition,
    bytes_since_sync: usize,
    write_out: Option<WriteOut>,
    /// Bytes that the last write-out took; 0 before the first since the start.
    written_out_bytes: u64,
    stop: watch::Sender<Option<String>>,
}

impl Committer {
    pub fn spawn(
        index: Arc<Database>,
        log: Log,
        position: LogPosition,
        jobs: mpsc::Receiver<Job>,
        stop: watch::Sender<Option<String>>,
    ) -> std::io::Result<()> {
        let committer = Self {
            index,
            log,
            jobs,
            applied: position,
            synced: position,
            bytes_since_sync: 0,
            write_out: None,
            written_out_bytes: 0,
            stop,
        };
        let run = move || {
            // Whoever waits for the end may open the same log again at once: `run` has let go of it by then.
            if let Some(done) = committer.run() {
                let _unheard = done.send(());
            }
        };
        std::thread::Builder::new().name("catalog".into()).spawn(run).map(drop)
    }

    /// Works until closed, stopped by a failure, or left by everyone. Answers who waits for the end.
    fn run(mut self) -> Option<oneshot::Sender<()>> {
        let mut next = None;
        loop {
            let job = match next.take() {
                Some(job) => job,
                None if self.write_out.is_some() => match self.jobs.try_recv() {
                    Ok(job) => job,
                    Err(TryRecvError::Disconnected) => return None,
                    Err(TryRecvError::Empty) => {
                        self.go_on_writing_out();
                        continue;
                    }
                },
                None => self.jobs.blocking_recv()?,
            };
            let failed = match job {
                Job::Change(scope, work) => {
                    let failed = self.batch((scope, work), &mut next).err();
                    self.go_on_writing_out();
                    failed
                }
                #[cfg(test)]
                Job::WriteOut(done) => {
                    self.write_out = Some(WriteOut::begin(self.applied));
                    while self.write_out.is_some() {
                        self.go_on_writing_out();
                    }
                    let _unheard = done.send(());
                    None
                }
                Job::Checkpoint(done) => {
                    let failed = self.checkpoint().err();
                    if self.write_out.is_none() && is_due(&self.log, self.written_out_bytes) {
                        self.write_out = Some(WriteOut::begin(self.applied));
                    }
                    if let (Some(done), None) = (done, &failed) {
                        let _unheard = done.send(());
                    }
                    failed
                }
                Job::Close(done) => {
                    if let Err(reason) = self.checkpoint() {
                        tracing::error!(
                            reason,
                            "the index was not synced; the next start replays more of the log"
                        );
                    }
                    self.stop.send_replace(Some("the node is stopping".into()));
                    return Some(done);
                }
            };
            if let Some(reason) = failed {
                tracing::error!(reason, "the catalog takes no more changes; restart the node to recover");
                self.stop.send_replace(Some(reason));
                return None;
            }
        }
    }

    /// Writes the next piece of a write-out that is on its way. One that fails is given up: a later one begins anew,
    /// and a log that has stopped tells the next change.
    fn go_on_writing_out(&mut self) {
        let Some(mut write_out) = self.write_out.take() else { return };
        match self.write_piece(&mut write_out) {
            Ok(true) => self.write_out = Some(write_out),
            Ok(false) => {
                tracing::debug!(bytes = write_out.bytes, "the catalog was written out");
                self.written_out_bytes = write_out.bytes;
            }
            Err(reason) => {
                tracing::warn!(reason, "the catalog is not written out; space of the log stays taken")
            }
        }
    }

    /// Answers whether more is to come.
    fn write_piece(&mut self, write_out: &mut WriteOut) -> Result<bool, String> {
        let piece = Reader::new(&self.index, Arc::default()).and_then(|rows| write_out.piece(&rows));
        if let Some(piece) = piece.map_err(|error| chain(&error))? {
            let entry = redo::encode(&piece);
            self.bytes_since_sync += entry.len();
            self.applied = self.log.write_out_rows_blocking(entry).map_err(|error| chain(&error))?;
            return Ok(true);
        }
        // The index must not need rows from below the floor.
        self.checkpoint()?;
        self.log.raise_floor_blocking(write_out.floor).map_err(|error| chain(&error))?;
        Ok(false)
    }

    /// Commits `first` and what is queued behind it; a job that is no change is left in `next`.
    /// An error means that the committer must stop.
    fn batch(&mut self, first: (Scope, Work), next: &mut Option<Job>) -> Result<(), String> {
        let mut parts = Vec::new();
        let committed = self.commit(first, next, &mut parts);
        let (refused, failed) = match committed {
            Ok(()) => (None, None),
            Err(Failure::Refused(error)) => {
                // The rows that led to here may be what takes the room.
                let is_full = error.code == ErrorCode::NodeFull;
                if is_full && self.write_out.is_none() && self.log.is_higher_floor(self.applied) {
                    self.write_out = Some(WriteOut::begin(self.applied));
                }
                (Some(error), None)
            }
            Err(Failure::Broken(reason)) => {
                let mut error = ApiError::new(ErrorCode::Unavailable, "the node takes no more changes");
                error.cause = Some(reason.clone());
                (Some(error), Some(reason))
            }
        };
        for part in parts {
            part.answer(refused.as_ref());
        }
        if self.bytes_since_sync >= CHECKPOINT_BYTES {
            self.checkpoint()?;
        }
        if self.write_out.is_none() && pays(&self.log, self.written_out_bytes) {
            self.write_out = Some(WriteOut::begin(self.applied));
        }
        failed.map_or(Ok(()), Err)
    }

    fn commit(
        &mut self,
        first: (Scope, Work),
        next: &mut Option<Job>,
        parts: &mut Vec<Part>,
    ) -> Result<(), Failure> {
        let txn = index::begin_unsynced(&self.index).map_err(broken)?;
        {
            let mut table = txn.open_table(ROWS).map_err(|error| broken(error.into()))?;
            let (mut work, mut changes, mut bytes) = (Some(first), 0, 0);
            while let Some((scope, change)) = work.take() {
                let part = part_of(parts, scope);
                bytes -= part.overlay.bytes;
                part.run(&table, change);
                bytes += part.overlay.bytes;
                changes += 1;
                if changes < BATCH_LEN && bytes < BATCH_BYTES {
                    match self.jobs.try_recv() {
                        Ok(Job::Change(scope, change)) => work = Some((scope, change)),
                        Ok(other) => *next = Some(other),
                        Err(_) => {}
                    }
                }
            }
            parts.iter_mut().for_each(Part::finish);
            let merged;
            let all = match &parts[..] {
                [one] if one.scope.prefix.is_empty() => &one.overlay,
                _ => {
                    merged = merge(parts);
                    &merged
                }
            };
            if all.changes.is_empty() {
                return Ok(());
            }
            let entry = redo::encode(all);
            let entry_bytes = entry.len();
            self.applied = self.log.append_rows_blocking(entry).map_err(Failure::from)?;
            self.bytes_since_sync += entry_bytes;
            for (key, value) in &all.changes {
                let applied = match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice()),
                    None => table.remove(key.as_slice()),
                };
                applied.map_err(|error| broken(error.into()))?;
            }
        }
        txn.commit().map_err(|error| broken(error.into()))
    }

    fn checkpoint(&mut self) -> Result<(), String> {
        if self.applied > self.synced {
            index::save_position(&self.index, self.applied).map_err(|error| chain(&*error))?;
            self.synced = self.applied;
            self.bytes_since_sync = 0;
        }
        Ok(())
    }
}

/// A committer that ends for another reason than these (a panic) must not look alive.
impl Drop for Committer {
    fn drop(&mut self) {
        self.stop.send_if_modified(|reason| {
            let unexplained = reason.is_none();
            if unexplained {
                *reason = Some("the committer ended".into());
            }
            unexplained
        });
    }
}

/// What a batch changes in one scope.
struct Part {
    scope: Scope,
    overlay: Overlay,
    answers: Vec<Answer>,
    /// The changes as the followers get them, if there are any.
    entry: Option<Bytes>,
}

/// The part of a scope; those of one shard share their stream.
fn part_of(parts: &mut Vec<Part>, scope: Scope) -> &mut Part {
    let is_same = |part: &Part| match (&part.scope.stream, &scope.stream) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => part.scope.prefix == scope.prefix,
        _ => false,
    };
    let index = parts.iter().position(is_same).unwrap_or_else(|| {
        parts.push(Part { scope, overlay: Overlay::default(), answers: Vec::new(), entry: None });
        parts.len() - 1
    });
    &mut parts[index]
}

/// All changes by their keys in the index.
fn merge(parts: &[Part]) -> Overlay {
    let mut all = Overlay::default();
    for part in parts {
        for (key, value) in &part.overlay.changes {
            all.set(placed(&part.scope.prefix, key).into_owned(), value.clone());
        }
    }
    all
}

impl Part {
    fn run(&mut self, table: &dyn RawRows, change: Work) {
        let mut one = Txn::new(table, &self.scope.prefix, &self.overlay);
        let (counts, answer) = change(&mut one);
        let changes = one.into_changes();
        self.answers.push(answer);
        if counts && !self.scope.stream.as_ref().is_some_and(|stream| stream.is_closed()) {
            self.overlay.absorb(changes);
        }
    }

    /// Adds where the shard is after these changes.
    fn finish(&mut self) {
        let Some(stream) = self.scope.stream.as_ref().filter(|_| !self.overlay.changes.is_empty()) else {
            return;
        };
        self.overlay.set(Key::ShardPosition.encode(), Some(stream.next().encode()));
        // Without followers there still is an entry: the shard moves on.
        self.entry = Some(if stream.is_followed() { redo::encode(&self.overlay) } else { Bytes::new() });
    }

    /// Answers all, at once or when the followers have it, too.
    fn answer(self, refused: Option<&ApiError>) {
        match (refused, self.scope.stream) {
            (Some(error), _) => self.answers.into_iter().for_each(|answer| answer(Err(error.clone()))),
            (None, None) => self.answers.into_iter().for_each(|answer| answer(Ok(()))),
            (None, Some(stream)) => stream.committed(self.entry, self.answers),
        }
    }
}

enum Failure {
    /// Nothing was written; the next change may fit.
    Refused(ApiError),
    /// What was written is not known.
    Broken(String),
}

fn broken(error: Box<dyn std::error::Error + Send + Sync>) -> Failure {
    Failure::Broken(chain(&*error))
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Full { .. } => {
                let message = "the node's log is full; delete contents or add a node";
                Self::Refused(ApiError::new(ErrorCode::NodeFull, message).with_cause(&error))
            }
            LogError::TooLong { .. } => {
                let message = "the change is too large for the node's log";
                Self::Refused(ApiError::new(ErrorCode::TooLarge, message).with_cause(&error))
            }
            other => Self::Broken(chain(&other)),
        }
    }
}
