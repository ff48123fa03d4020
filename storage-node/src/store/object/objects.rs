//! The objects of a store as everything here reaches them: each request ends in bounded time.

use std::error::Error;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::sync::Notify;

use super::index::Index;
use super::names;
use crate::store::{StoreError, StoreMetrics};

/// However the store behaves, and however often a request was tried again: then it has failed.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Free space of a directory's file system that chunks may not take; deletions and rewriting need some.
const DIR_RESERVED_BYTES: u64 = 64 << 20;

/// What may be filled.
pub enum Room {
    /// What the file system of this directory has.
    Directory(PathBuf),
    Fixed(u64),
}

/// What the parts of an opened store share.
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    room: Room,
    pub index: Index,
    next_sequence: AtomicU64,
    /// Something may be worth tidying.
    pub changed: Notify,
    pub metrics: StoreMetrics,
}

impl Objects {
    pub fn new(store: Arc<dyn ObjectStore>, room: Room, metrics: StoreMetrics) -> Self {
        let (index, next_sequence, changed) = (Index::default(), AtomicU64::new(0), Notify::new());
        Self { store, room, index, next_sequence, changed, metrics }
    }

    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Each is given out once.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence.fetch_add(1, Ordering::Relaxed)
    }

    pub fn start_sequence(&self, first: u64) {
        self.next_sequence.store(first, Ordering::Relaxed);
    }

    /// Stores an object durably.
    ///
    /// # Errors
    /// `Full`, and nothing is stored; `Io`, and it may be there, or appear later, whole.
    pub async fn put(&self, name: &Path, payload: PutPayload) -> Result<(), StoreError> {
        let len = payload.content_length() as u64;
        bounded(self.store.put(name, payload)).await.map_err(|error| self.store_error(error))?;
        self.metrics.written_bytes.increment(len);
        Ok(())
    }

    /// The bytes of a part of an object, or fewer if the object is shorter; `NotFound` if it is not there.
    pub async fn get(&self, name: &Path, range: Range<u64>) -> Result<Bytes, StoreError> {
        let bytes = bounded(self.store.get_range(name, range)).await.map_err(|e| self.store_error(e))?;
        self.metrics.read_bytes.increment(bytes.len() as u64);
        Ok(bytes)
    }

    /// As [`Objects::get`] for several parts.
    pub async fn get_parts(&self, name: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        let parts = bounded(self.store.get_ranges(name, ranges)).await.map_err(|e| self.store_error(e))?;
        self.metrics.read_bytes.increment(parts.iter().map(|part| part.len() as u64).sum());
        Ok(parts)
    }

    /// Deletes an object; that it is not there is just as well.
    pub async fn delete(&self, name: &Path) -> Result<(), StoreError> {
        match bounded(self.store.delete(name)).await.map_err(|error| self.store_error(error)) {
            Err(StoreError::NotFound) => Ok(()),
            done => done,
        }
    }

    /// An error unless the objects of this store are still where they were, one that is missing aside.
    pub async fn check_place(&self) -> Result<(), StoreError> {
        match bounded(self.store.get(&names::owner())).await.map_err(|error| self.store_error(error)) {
            Ok(_owner) => Ok(()),
            Err(StoreError::NotFound) => {
                let what = "nothing is found at the store's place; is it mounted, and its endpoint right?";
                Err(io::Error::new(io::ErrorKind::NotFound, what).into())
            }
            Err(error) => Err(error),
        }
    }

    pub fn capacity_bytes(&self) -> u64 {
        match &self.room {
            Room::Fixed(bytes) => *bytes,
            // A file system that cannot be asked has no room to count on.
            Room::Directory(path) => {
                let available = available_bytes(path).unwrap_or(0).saturating_sub(DIR_RESERVED_BYTES);
                self.index.lock().used_bytes() + available
            }
        }
    }

    /// `NotFound` and a full file system have their own names; the rest is the store's trouble.
    fn store_error(&self, error: object_store::Error) -> StoreError {
        if matches!(error, object_store::Error::NotFound { .. }) {
            return StoreError::NotFound;
        }
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(e) = cause {
            let kind = e.downcast_ref::<io::Error>().map(io::Error::kind);
            if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
                return StoreError::Full { capacity_bytes: self.capacity_bytes() };
            }
            cause = e.source();
        }
        StoreError::Io { source: Arc::new(error) }
    }
}

/// The answer to a request, or the failure that there was none in time.
pub async fn bounded<T>(
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<T, object_store::Error> {
    tokio::time::timeout(REQUEST_LIMIT, request).await.unwrap_or_else(|_elapsed| {
        let source = format!("no answer within {} seconds", REQUEST_LIMIT.as_secs());
        Err(object_store::Error::Generic { store: "object store", source: source.into() })
    })
}

fn available_bytes(path: &std::path::Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut facts = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in a zero and `facts` has room for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), facts.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled `facts`.
    let facts = unsafe { facts.assume_init() };
    Ok(facts.f_bavail * facts.f_frsize)
}
