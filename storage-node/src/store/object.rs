//! Chunks as objects: one a chunk, named by its hash, in a directory or any S3-compatible store.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::hash::ChunkHash;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::sync::{Mutex, MutexGuard};

use super::{ChunkPage, ChunkStore, OpenError, PutOutcome, StoreError, StoreMetrics, StoreStats, StoreUrl};

/// Changes of chunks that share a stripe wait for each other, so that each is counted once.
const STRIPES: usize = 1024;
/// Free space of a directory's file system that chunks may not take.
const DIR_RESERVED_BYTES: u64 = 64 << 20;
/// A store that does not answer is given up within this time.
const RETRY_LIMIT: Duration = Duration::from_secs(10);

/// See the module.
///
/// The number of chunks and their bytes are counted when it is opened, by listing all of them, and kept from
/// then on; nothing else may change the objects meanwhile.
pub struct ObjectChunkStore {
    objects: Arc<dyn ObjectStore>,
    room: Room,
    chunks: AtomicU64,
    used_bytes: AtomicU64,
    stripes: Box<[Mutex<()>]>,
    metrics: StoreMetrics,
}

enum Room {
    /// What the file system of this directory has.
    Directory(PathBuf),
    Fixed(u64),
}

impl ObjectChunkStore {
    /// `None` if the URL is of a block store.
    pub async fn open(url: &StoreUrl, metrics: StoreMetrics) -> Result<Option<Self>, OpenError> {
        let failed = |source| OpenError::Object { url: url.to_string(), source };
        let (objects, room): (Arc<dyn ObjectStore>, _) = match url {
            StoreUrl::Dir { path } => {
                let prepared = path.clone();
                let made = tokio::task::spawn_blocking(move || prepare_directory(&prepared)).await;
                made.unwrap_or_else(|e| Err(io::Error::other(e)))
                    .map_err(|source| OpenError::Open { path: path.clone(), source })?;
                let local = LocalFileSystem::new_with_prefix(path).map_err(failed)?.with_fsync(true);
                (Arc::new(local), Room::Directory(path.clone()))
            }
            StoreUrl::S3 { bucket, prefix, endpoint, region, capacity_bytes } => {
                let retry =
                    RetryConfig { max_retries: 5, retry_timeout: RETRY_LIMIT, ..RetryConfig::default() };
                let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
                if let Some(endpoint) = endpoint {
                    builder =
                        builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
                }
                if let Some(region) = region {
                    builder = builder.with_region(region);
                }
                let s3 = builder.build().map_err(failed)?;
                (Arc::new(PrefixStore::new(s3, prefix.as_str())), Room::Fixed(*capacity_bytes))
            }
            StoreUrl::File { .. } | StoreUrl::Device { .. } | StoreUrl::Memory { .. } => return Ok(None),
        };
        let count = |(chunks, bytes), object: object_store::ObjectMeta| async move {
            Ok((chunks + 1, bytes + object.size))
        };
        let listing = objects.list(Some(&ObjectPath::from("chunks")));
        let (chunks, used_bytes): (u64, u64) = listing.try_fold((0, 0), count).await.map_err(failed)?;
        Ok(Some(Self {
            objects,
            room,
            chunks: chunks.into(),
            used_bytes: used_bytes.into(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            metrics,
        }))
    }

    async fn store(&self, hash: ChunkHash, bytes: Bytes) -> Result<PutOutcome, StoreError> {
        let len = bytes.len() as u64;
        let _alone = self.stripe(&hash).await;
        if self.size_of(&hash).await?.is_some() {
            return Ok(PutOutcome::Present);
        }
        let capacity_bytes = self.stats().capacity_bytes;
        if self.used_bytes.load(Ordering::Relaxed) + len > capacity_bytes {
            return Err(StoreError::Full { capacity_bytes });
        }
        let put = self.objects.put(&name_of(&hash), bytes.into()).await;
        put.map_err(|error| store_error(error, capacity_bytes))?;
        self.metrics.written_bytes.increment(len);
        self.chunks.fetch_add(1, Ordering::Relaxed);
        self.used_bytes.fetch_add(len, Ordering::Relaxed);
        Ok(PutOutcome::Stored)
    }

    async fn read(&self, hash: &ChunkHash) -> Result<Bytes, StoreError> {
        let found = self.objects.get(&name_of(hash)).await.map_err(|e| store_error(e, 0))?;
        let bytes = found.bytes().await.map_err(|e| store_error(e, 0))?;
        self.metrics.read_bytes.increment(bytes.len() as u64);
        if ChunkHash::of(&bytes) != *hash {
            tracing::error!(%hash, "a chunk is damaged in the object store");
            self.metrics.damaged_chunks.increment(1);
            return Err(StoreError::Damaged { hash: *hash });
        }
        Ok(bytes)
    }

    async fn remove(&self, hash: &ChunkHash) -> Result<bool, StoreError> {
        let _alone = self.stripe(hash).await;
        let Some(size) = self.size_of(hash).await? else { return Ok(false) };
        self.objects.delete(&name_of(hash)).await.map_err(|e| store_error(e, 0))?;
        self.chunks.fetch_sub(1, Ordering::Relaxed);
        self.used_bytes.fetch_sub(size, Ordering::Relaxed);
        Ok(true)
    }

    async fn size_of(&self, hash: &ChunkHash) -> Result<Option<u64>, StoreError> {
        match self.objects.head(&name_of(hash)).await {
            Ok(object) => Ok(Some(object.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(store_error(error, 0)),
        }
    }

    async fn stripe(&self, hash: &ChunkHash) -> MutexGuard<'_, ()> {
        let bytes = hash.as_bytes();
        self.stripes[usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) % STRIPES].lock().await
    }
}

impl ChunkStore for ObjectChunkStore {
    fn put(&self, hash: ChunkHash, bytes: Bytes) -> BoxFuture<'_, Result<PutOutcome, StoreError>> {
        Box::pin(self.store(hash, bytes))
    }

    fn get<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.read(hash))
    }

    fn delete<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(self.remove(hash))
    }

    fn contains<'a>(&'a self, hash: &'a ChunkHash) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.size_of(hash).await?.is_some()) })
    }

    /// A page is what begins with the same byte.
    fn list(&self, page: u64) -> BoxFuture<'_, Result<ChunkPage, StoreError>> {
        Box::pin(async move {
            let prefix = ObjectPath::from(format!("chunks/{page:02x}"));
            let hash = |object: object_store::ObjectMeta| async move {
                Ok(object.location.filename().and_then(|name| name.parse::<ChunkHash>().ok()))
            };
            let listing = self.objects.list(Some(&prefix)).try_filter_map(hash);
            let hashes = listing.try_collect().await.map_err(|error| store_error(error, 0))?;
            Ok(ChunkPage { hashes, next: (page < 255).then_some(page + 1) })
        })
    }

    fn stats(&self) -> StoreStats {
        let used_bytes = self.used_bytes.load(Ordering::Relaxed);
        let capacity_bytes = match &self.room {
            Room::Fixed(bytes) => *bytes,
            // A file system that cannot be asked has no room to count on.
            Room::Directory(path) => {
                used_bytes + available_bytes(path).unwrap_or(0).saturating_sub(DIR_RESERVED_BYTES)
            }
        };
        StoreStats { capacity_bytes, used_bytes, chunks: self.chunks.load(Ordering::Relaxed) }
    }
}

/// `chunks/ab/abcdef...`
fn name_of(hash: &ChunkHash) -> ObjectPath {
    let hex = hash.to_string();
    ObjectPath::from(format!("chunks/{}/{hex}", &hex[..2]))
}

/// `NotFound` and a full file system have their own names; the rest is the store's trouble.
fn store_error(error: object_store::Error, capacity_bytes: u64) -> StoreError {
    if matches!(error, object_store::Error::NotFound { .. }) {
        return StoreError::NotFound;
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        let kind = e.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return StoreError::Full { capacity_bytes };
        }
        cause = e.source();
    }
    StoreError::Io { source: Arc::new(error) }
}

/// Makes the directory, and whatever an earlier process left visible in it durable: a chunk that is found is
/// taken for stored.
fn prepare_directory(path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    std::fs::create_dir_all(path.join("chunks"))?;
    let directory = std::fs::File::open(path)?;
    // SAFETY: a call on a descriptor that `directory` keeps open.
    if unsafe { libc::syncfs(directory.as_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn available_bytes(path: &Path) -> io::Result<u64> {
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
