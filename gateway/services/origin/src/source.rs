//! Sources: listing and reading the objects of a folder or an object store.
//!
//! Reading goes through `object_store`. Folders are walked here: its listing ends at the first file whose name it
//! cannot express (not UTF-8, control characters), and one such file must not hide all others.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{GetResult, ObjectMeta, ObjectStore, ObjectStoreExt};
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;

use common::s3;
use common::time::UnixMillis;

/// Objects are handed on in groups of at most this many.
const GROUP: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("source {url:?} cannot be used: {reason}")]
    Url { url: String, reason: String },
    #[error("the folder {path} cannot be read", path = .path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("the store failed")]
    Store(#[from] object_store::Error),
    #[error("a file cannot be read")]
    File(#[from] std::io::Error),
    /// Longer than a chunk list can describe (about 120 GB).
    #[error("the object has too many chunks")]
    TooLong,
    #[error("the object changed while it was read")]
    Changed,
}

impl SourceError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(object_store::Error::NotFound { .. }))
            || matches!(self, Self::File(e) if e.kind() == std::io::ErrorKind::NotFound)
    }
}

/// What a store says of an object. While it says the same, the object is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where the object is in its store; also its key.
    pub location: String,
    pub size: u64,
    pub modified: UnixMillis,
    /// The store's entity tag; for files inode, device and the times of change in nanoseconds.
    pub tag: String,
}

/// An opened source. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Set for folders.
    folder: Option<PathBuf>,
}

impl Store {
    /// Opens `dir:/path`, `s3://bucket/prefix?endpoint=&region=` or `memory:`. Credentials for S3 are taken from
    /// the environment (`AWS_ACCESS_KEY_ID`, …).
    pub fn open(url: &str) -> Result<Self, SourceError> {
        let invalid = |reason: String| SourceError::Url { url: url.to_owned(), reason };
        if let Some(path) = url.strip_prefix("dir:") {
            let folder = std::fs::canonicalize(path).map_err(|e| invalid(format!("folder {path}: {e}")))?;
            if !folder.is_dir() {
                return Err(invalid(format!("{path} is not a folder")));
            }
            let objects = LocalFileSystem::new_with_prefix(&folder)?;
            return Ok(Self { objects: Arc::new(objects), folder: Some(folder) });
        }
        if let Some(rest) = url.strip_prefix("s3://") {
            return Ok(Self { objects: open_s3(rest).map_err(invalid)?, folder: None });
        }
        if url == "memory:" {
            return Ok(Self { objects: Arc::new(InMemory::new()), folder: None });
        }
        Err(invalid("the form is dir:/path, s3://bucket/prefix?endpoint=URL&region=R or memory:".into()))
    }

    /// Sends the facts of every object, in groups. Ends early when nobody listens any more.
    pub async fn list(&self, groups: mpsc::Sender<Vec<Facts>>) -> Result<(), SourceError> {
        if let Some(folder) = self.folder.clone() {
            let walked = tokio::task::spawn_blocking(move || walk(&folder, &groups)).await;
            return walked.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked).into()));
        }
        let mut objects = self.objects.list(None).ready_chunks(GROUP);
        while let Some(group) = objects.next().await {
            let group: Vec<Facts> = group.into_iter().map(|o| o.map(facts_of)).collect::<Result<_, _>>()?;
            if groups.send(group).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// What the store says of one object now; `None` if it is not there.
    pub async fn facts(&self, location: &str) -> Result<Option<Facts>, SourceError> {
        let found = match &self.folder {
            Some(folder) => {
                let (path, location) = (folder.join(location), location.to_owned());
                let read = tokio::task::spawn_blocking(move || std::fs::metadata(path)).await;
                read.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)))
                    .map(|metadata| metadata.is_file().then(|| file_facts(location, &metadata)))
                    .map_err(SourceError::from)
            }
            None => {
                self.objects.head(&path_of(location)?).await.map(|m| Some(facts_of(m))).map_err(Into::into)
            }
        };
        match found {
            Err(error) if error.is_not_found() => Ok(None),
            other => other,
        }
    }

    pub async fn open_object(&self, location: &str) -> Result<GetResult, SourceError> {
        Ok(self.objects.get(&path_of(location)?).await?)
    }

    /// Bytes of an object; fewer than asked for if it has become shorter.
    pub async fn read(&self, location: &str, range: Range<u64>) -> Result<Bytes, SourceError> {
        Ok(self.objects.get_range(&path_of(location)?, range).await?)
    }
}

fn path_of(location: &str) -> Result<Path, object_store::Error> {
    Ok(Path::parse(location)?)
}

fn facts_of(meta: ObjectMeta) -> Facts {
    let modified = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
    let tag = meta.e_tag.unwrap_or_default();
    Facts { location: meta.location.into(), size: meta.size, modified: UnixMillis(modified), tag }
}

fn file_facts(location: String, metadata: &std::fs::Metadata) -> Facts {
    let modified = metadata.mtime().max(0) as u64 * 1000 + metadata.mtime_nsec() as u64 / 1_000_000;
    let tag = format!(
        "{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
        metadata.dev(),
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    );
    Facts { location, size: metadata.len(), modified: UnixMillis(modified), tag }
}

fn open_s3(rest: &str) -> Result<Arc<dyn ObjectStore>, String> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() {
        return Err("the bucket is missing".into());
    }
    let (mut endpoint, mut region) = (None, None);
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8().map_err(|e| e.to_string())?;
        match key {
            "endpoint" => endpoint = Some(value),
            "region" => region = Some(value),
            _ => return Err(format!("unknown parameter {key:?}; there are endpoint and region")),
        }
    }
    let store =
        s3::client(bucket, endpoint.as_deref(), region.as_deref()).build().map_err(|e| e.to_string())?;
    let prefix = Path::parse(prefix).map_err(|e| e.to_string())?;
    Ok(if prefix.is_root() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) })
}

/// Walks a folder depth first. Links to files are followed, links to folders are not: they may lead in circles
/// and out of the folder.
fn walk(folder: &FilePath, groups: &mpsc::Sender<Vec<Facts>>) -> Result<(), SourceError> {
    let unreadable = |path: &FilePath| {
        let path = path.to_owned();
        move |source| SourceError::Folder { path, source }
    };
    let mut open = vec![folder.to_owned()];
    let mut group = Vec::new();
    while let Some(path) = open.pop() {
        let entries = match std::fs::read_dir(&path) {
            // Removed between its listing and now.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && path != folder => continue,
            entries => entries.map_err(unreadable(&path))?,
        };
        for entry in entries {
            let entry = entry.map_err(unreadable(&path))?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                open.push(path);
                continue;
            }
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            if !metadata.is_file() {
                continue;
            }
            match location_of(folder, &path) {
                Some(location) => group.push(file_facts(location, &metadata)),
                None => tracing::warn!(path = %path.display(), "a file name that cannot be a key; left out"),
            }
            if group.len() == GROUP && groups.blocking_send(std::mem::take(&mut group)).is_err() {
                return Ok(());
            }
        }
    }
    if !group.is_empty() {
        // Nobody listens any more: the scan was given up.
        let _given_up = groups.blocking_send(group);
    }
    Ok(())
}

/// A file's place below its folder, if the store can name it: UTF-8 without control characters, and not ending in
/// `#` and digits, which the store keeps for files that it is writing.
fn location_of(folder: &FilePath, path: &FilePath) -> Option<String> {
    let location = path.strip_prefix(folder).ok()?.to_str()?;
    let file = location.rsplit('/').next()?;
    let is_temporary = file
        .split_once('#')
        .is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|b| b.is_ascii_digit()));
    if is_temporary || Path::parse(location).is_err() {
        return None;
    }
    Some(location.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_another_form_is_refused_with_the_reason() {
        for (url, reason) in [
            ("ftp://x", "the form is"),
            ("dir:/no/such/folder", "/no/such/folder"),
            ("s3://", "bucket is missing"),
            ("s3://b?zone=x", "unknown parameter"),
            ("memory:x", "the form is"),
        ] {
            let Err(error) = Store::open(url) else { panic!("{url} was opened") };
            assert!(error.to_string().contains(reason), "{url}: {error}");
        }
        let s3 = "s3://b/p/q?endpoint=http%3A%2F%2F127.0.0.1%3A9&region=eu-1";
        assert!(Store::open(s3).is_ok());
    }

    #[tokio::test]
    async fn an_object_store_lists_tells_and_reads_what_is_in_it() {
        let memory = InMemory::new();
        for key in ["a.txt", "deep/b.txt"] {
            memory.put(&Path::from(key), key.into()).await.unwrap();
        }
        let store = Store { objects: Arc::new(memory), folder: None };
        let (sender, mut groups) = mpsc::channel(8);
        store.list(sender).await.unwrap();
        let mut found = Vec::new();
        while let Some(group) = groups.recv().await {
            found.extend(group);
        }
        let keys: Vec<_> = found.iter().map(|f| (f.location.as_str(), f.size)).collect();
        assert_eq!(keys, [("a.txt", 5), ("deep/b.txt", 10)]);
        assert_eq!(store.facts("deep/b.txt").await.unwrap().as_ref(), Some(&found[1]));
        assert_eq!(store.facts("c.txt").await.unwrap(), None);
        assert_eq!(store.read("deep/b.txt", 5..8).await.unwrap(), "b.t");
    }
}
