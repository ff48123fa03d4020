//! Reaching the place that a URL names, and taking it for this node.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::s3;
use object_store::aws::AmazonS3ConfigKey;
use object_store::limit::LimitStore;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, ObjectStoreExt, RetryConfig};

use super::names;
use super::objects::{Room, bounded};
use crate::store::{OpenError, StoreError, StoreUrl};

/// Requests that are under way at once.
const REQUESTS_MAX: usize = 64;
const CONNECT_LIMIT: &str = "3s";
/// A server that says nothing for this long is not waited for.
const SILENCE_LIMIT: &str = "10s";
/// A request that failed is tried again within this time from its start.
const RETRY_LIMIT: Duration = Duration::from_secs(10);
const RETRIES_MAX: usize = 6;

/// The objects that a URL of an object store names; `None` if the URL is of another kind.
pub async fn reach(url: &StoreUrl) -> Result<Option<(Arc<dyn ObjectStore>, Room)>, OpenError> {
    match url {
        StoreUrl::Dir { path } => {
            let prepared = path.clone();
            let made = tokio::task::spawn_blocking(move || prepare_directory(&prepared)).await;
            made.unwrap_or_else(|e| Err(io::Error::other(e)))
                .map_err(|source| OpenError::Open { path: path.clone(), source })?;
            let local =
                LocalFileSystem::new_with_prefix(path).map_err(|e| unusable(url, e))?.with_fsync(true);
            Ok(Some((Arc::new(local), Room::Directory(path.clone()))))
        }
        StoreUrl::S3 { bucket, prefix, endpoint, region, keys, capacity_bytes } => {
            let backoff = BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() };
            let retry = RetryConfig { backoff, max_retries: RETRIES_MAX, retry_timeout: RETRY_LIMIT };
            let client = s3::client(bucket, endpoint.as_deref(), region.as_deref(), keys.as_ref())
                .map_err(|problem| unusable(url, WrongKeys(problem)))?
                .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), CONNECT_LIMIT)
                .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ReadTimeout), SILENCE_LIMIT)
                .with_retry(retry)
                .with_disable_bulk_delete(true);
            // Elsewhere than at AWS no machine has a role, and asking for it would take long.
            if endpoint.is_some() && client.get_config_value(&AmazonS3ConfigKey::AccessKeyId).is_none() {
                return Err(unusable(url, MissingKeys));
            }
            let s3 = client.build().map_err(|e| unusable(url, e))?;
            let objects = LimitStore::new(PrefixStore::new(s3, prefix.as_str()), REQUESTS_MAX);
            Ok(Some((Arc::new(objects), Room::Fixed(*capacity_bytes))))
        }
        StoreUrl::File { .. } | StoreUrl::Device { .. } | StoreUrl::Memory { .. } => Ok(None),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no keys are given: add credentials=FILE, or set AWS_ACCESS_KEY_ID")]
struct MissingKeys;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongKeys(String);

#[derive(Debug, thiserror::Error)]
#[error("it belongs to the node whose log has the id {owner}; this node's is {log_id}")]
struct OtherOwner {
    owner: String,
    log_id: String,
}

/// Makes the place this node's if it is nobody's, and shows whether it can be read and written.
///
/// Of two nodes that take a place at the same moment, without conditional requests, both may get it; the one that
/// wrote first is refused at its next start.
pub async fn take(store: &dyn ObjectStore, url: &StoreUrl, log_id: &str) -> Result<(), OpenError> {
    let read = async || bounded(async { store.get(&names::owner()).await?.bytes().await }).await;
    let mut found = read().await;
    if matches!(found, Err(object_store::Error::NotFound { .. })) {
        let text = format!("{log_id}\n");
        bounded(store.put(&names::owner(), text.into())).await.map_err(|e| unusable(url, e))?;
        found = read().await;
    }
    is_owner(&found.map_err(|error| unusable(url, error))?, url, log_id)
}

/// Whether the place is this node's, or nobody's; writes nothing.
pub async fn check_owner(store: &dyn ObjectStore, url: &StoreUrl, log_id: &str) -> Result<(), OpenError> {
    match bounded(async { store.get(&names::owner()).await?.bytes().await }).await {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        found => is_owner(&found.map_err(|error| unusable(url, error))?, url, log_id),
    }
}

fn is_owner(owner: &[u8], url: &StoreUrl, log_id: &str) -> Result<(), OpenError> {
    if owner.trim_ascii() == log_id.as_bytes() {
        return Ok(());
    }
    let owner = String::from_utf8_lossy(owner.trim_ascii()).chars().take(64).collect();
    Err(unusable(url, OtherOwner { owner, log_id: log_id.into() }))
}

/// The error, with what to do next.
pub fn unusable(url: &StoreUrl, error: impl Error + Send + Sync + 'static) -> OpenError {
    let source: Arc<dyn Error + Send + Sync> = Arc::new(error);
    let is_s3 = matches!(url, StoreUrl::S3 { .. });
    let advice = match answer_of(&*source) {
        Some(object_store::Error::NotFound { .. }) if is_s3 => {
            "make its bucket, or correct the bucket's name"
        }
        Some(object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. })
            if is_s3 =>
        {
            "check that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are right and may list, read, write and delete there"
        }
        _ if source.downcast_ref::<MissingKeys>().is_some() => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        }
        _ if source.downcast_ref::<OtherOwner>().is_some() => {
            "give each node a place of its own, or, if that node is gone for ever, delete the object `owner` there"
        }
        _ if is_s3 => "check that its endpoint is right and answers",
        _ => "check the directory",
    };
    OpenError::Object { url: url.to_string(), advice: advice.into(), source }
}

/// What the store itself said, somewhere in the chain.
fn answer_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a object_store::Error> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        let shared = match e.downcast_ref() {
            Some(StoreError::Io { source }) => source.downcast_ref(),
            _ => None,
        };
        let found = shared.or_else(|| e.downcast_ref());
        if found.is_some() {
            return found;
        }
        cause = e.source();
    }
    None
}

/// Makes the directory, and whatever an earlier process left visible in it durable: what is found is taken for
/// stored.
fn prepare_directory(path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    std::fs::create_dir_all(path)?;
    let directory = std::fs::File::open(path)?;
    // SAFETY: a call on a descriptor that `directory` keeps open.
    if unsafe { libc::syncfs(directory.as_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
