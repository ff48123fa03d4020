//! The catalog: holdings, libraries, chunk references and delivery records of this node.
//!
//! **Log first, index behind.** A change is durable when the redo entry of its batch is in the node's log; only
//! then is it applied to the index, an embedded key-value file that is synced every few seconds. The index
//! may therefore be lost at any time: it is caught up from the log, or rebuilt from it. Readers see what is
//! applied, thus only what is durable.
//!
//! | file | owns |
//! |---|---|
//! | `key.rs` | the key space |
//! | `rows.rs` | the values |
//! | `txn.rs` | what a change sees and does |
//! | `redo.rs` | the form of a batch in the log |
//! | `committer.rs` | the one thread that changes anything |
//! | `stream.rs` | what a shard's followers are still to get |
//! | `index.rs` | the index file: open, catch up, rebuild |
//! | `inspect.rs` | the catalog of a stopped node, to look at |
//! | `write_out.rs` | the whole catalog once more in the log, so that older rows may go |

mod committer;
mod index;
pub(crate) mod inspect;
pub mod key;
mod redo;
pub mod rows;
pub mod stream;
pub mod txn;
mod write_out;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::error::{ApiError, ApiResult, ErrorCode};
use common::trace::{Stage, stage, timed};
use redb::Database;
use tokio::sync::{mpsc, oneshot, watch};

use crate::log::Log;
use committer::{Committer, Job};
use stream::Stream;
use txn::{Reader, Txn};

/// Changes that may wait for the committer before callers are held back.
const QUEUE_LEN: usize = 1024;
/// How much of the log is replayed at most after a crash: the index is synced this often.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);

/// Why the catalog does not open.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the index file {path} cannot be used")]
    Index { path: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the log cannot be replayed into the index")]
    Replay { source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the committer thread cannot be started")]
    Thread { source: std::io::Error },
}

/// Makes the changes of a batch that another node committed.
pub fn apply_entry(txn: &mut Txn<'_>, changes: &[u8]) -> ApiResult<()> {
    for (key, value) in redo::decode(changes).map_err(|error| ApiError::internal(&error))? {
        match value {
            Some(value) => txn.put_raw(key.to_vec(), value.to_vec()),
            None => txn.delete_raw(key.to_vec()),
        }
    }
    Ok(())
}

/// Which rows a handle of the catalog sees, and who follows what changes there.
#[derive(Clone, Default)]
pub struct Scope {
    /// What their keys begin with; it is left away.
    prefix: Arc<[u8]>,
    stream: Option<Arc<Stream>>,
}

impl Scope {
    pub fn new(prefix: Vec<u8>, stream: Option<Arc<Stream>>) -> Self {
        Self { prefix: prefix.into(), stream }
    }
}

/// Handle of the catalog. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    scope: Scope,
    index: Arc<Database>,
    jobs: mpsc::Sender<Job>,
    stopped: watch::Receiver<Option<String>>,
}

impl Catalog {
    /// Opens the index in `data_dir` and brings it up to the end of the log. Blocks while it replays.
    ///
    /// Must be called within a tokio runtime.
    pub async fn open(
        data_dir: &Path,
        log: Log,
        log_id: &str,
        cache_bytes: usize,
    ) -> Result<Self, CatalogError> {
        let (path, id, replayed) = (data_dir.join(index::FILE_NAME), log_id.to_owned(), log.clone());
        let opened = tokio::task::spawn_blocking(move || index::open(&path, &replayed, &id, cache_bytes))
            .await
            .map_err(|error| CatalogError::Replay { source: error.into() })??;
        let index = Arc::new(opened.database);
        let (jobs, queue) = mpsc::channel(QUEUE_LEN);
        let (stop, stopped) = watch::channel(None);
        Committer::spawn(index.clone(), log, opened.position, queue, stop)
            .map_err(|source| CatalogError::Thread { source })?;
        let ticks = jobs.downgrade();
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(CHECKPOINT_INTERVAL);
            loop {
                interval.tick().await;
                let Some(jobs) = ticks.upgrade() else { return };
                if jobs.send(Job::Checkpoint(None)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { scope: Scope::default(), index, jobs, stopped })
    }

    /// The same catalog, for other rows.
    pub fn scoped(&self, scope: Scope) -> Self {
        Self { scope, ..self.clone() }
    }

    /// Runs `change` in the committer and answers when what it wrote is durable. Changes run one after the other,
    /// each seeing those before it.
    ///
    /// An error of `change` drops its writes. A change whose caller went away is still carried out. In a scope with a
    /// stream the answer comes when the required followers have the change, too.
    ///
    /// # Errors
    /// Those of `change`; `NodeFull` when the log has no room; `Unavailable` once the log or index failed; `WrongNode`
    /// when another node became the shard's primary: whether the change counts is not known.
    pub async fn commit<T, F>(&self, change: F) -> ApiResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> ApiResult<T> + Send + 'static,
    {
        if self.scope.stream.as_ref().is_some_and(|stream| stream.is_backlogged()) {
            let message = "the nodes that follow this shard do not keep up; try again in a moment";
            return Err(ApiError::new(ErrorCode::Unavailable, message));
        }
        let (answer, answered) = oneshot::channel();
        let work = committer::work(change, answer);
        let change = Job::Change(self.scope.clone(), work);
        stage(Stage::Queue, self.jobs.send(change)).await.map_err(|_| self.stopped_error())?;
        stage(Stage::Commit, answered).await.map_err(|_| self.stopped_error())?
    }

    /// Reads what is durable at this moment.
    pub fn read<T>(&self, read: impl FnOnce(&Reader) -> ApiResult<T>) -> ApiResult<T> {
        timed(Stage::Index, || read(&Reader::new(&self.index, self.scope.prefix.clone())?))
    }

    /// Makes the index durable now; otherwise it is done every few seconds.
    pub async fn checkpoint(&self) -> ApiResult<()> {
        let (done, waited) = oneshot::channel();
        self.jobs.send(Job::Checkpoint(Some(done))).await.map_err(|_| self.stopped_error())?;
        waited.await.map_err(|_| self.stopped_error())
    }

    /// Writes the whole catalog into the log, and lets the log forget what came before.
    #[cfg(test)]
    async fn write_out(&self) {
        let (done, waited) = oneshot::channel();
        self.jobs.send(Job::WriteOut(done)).await.unwrap();
        waited.await.unwrap();
    }

    /// Finishes what is queued, makes the index durable and ends the committer. Later changes are refused.
    pub async fn close(&self) {
        let (done, waited) = oneshot::channel();
        if self.jobs.send(Job::Close(done)).await.is_ok() {
            // An error means that the committer ended before, which is what is wanted.
            let _ended = waited.await;
        }
    }

    /// Turns to a reason when the catalog stopped taking changes.
    pub fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.stopped.clone()
    }

    fn stopped_error(&self) -> ApiError {
        let mut error = ApiError::new(ErrorCode::Unavailable, "the node takes no more changes");
        error.cause = self.stopped.borrow().clone();
        error
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
