//! Sources: listing and reading the objects of a folder or an object store.
//!
//! Reading goes through `object_store`. Listing does not: its listings end at the first name that it cannot express
//! (an empty segment as in `a//b`, not UTF-8, control characters), and one such name must not hide all others.

mod folder;
mod s3;

use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetOptions, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::sync::mpsc;

use common::time::UnixMillis;

pub use folder::location_of;

/// Objects are handed on in groups of at most this many.
pub const GROUP: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// `url` is without what might be a key.
    #[error("source {url:?} cannot be used: {reason}")]
    Url { url: String, reason: String },
    #[error("the folder {path} cannot be read", path = .path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("the store failed")]
    Store(#[source] object_store::Error),
    #[error("a file cannot be read")]
    File(#[from] std::io::Error),
    /// Longer than a chunk list can describe (about 120 GB).
    #[error("the object has too many chunks")]
    TooLong,
    #[error("the object changed while it was read")]
    Changed,
}

impl From<object_store::Error> for SourceError {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::Precondition { .. } => Self::Changed,
            other => Self::Store(other),
        }
    }
}

impl SourceError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(object_store::Error::NotFound { .. }))
            || matches!(self, Self::File(e) if e.kind() == std::io::ErrorKind::NotFound)
    }
}

/// What a store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where the object is in its store; also its key.
    pub location: String,
    pub size: u64,
    pub modified: UnixMillis,
    /// The store's entity tag, empty if it has none; for files device, inode and the times of change in nanoseconds.
    pub tag: String,
}

impl Facts {
    /// Whether these facts tell of the same bytes, so that they need not be read again. An entity tag is enough: a
    /// copy onto itself changes an object's time and nothing else.
    pub fn same_object(&self, other: &Self) -> bool {
        let same_state =
            if self.tag.is_empty() { self.modified == other.modified } else { self.tag == other.tag };
        self.location == other.location && self.size == other.size && same_state
    }
}

/// What a listing could not bring. Only one that found everything readable says what is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Listing {
    /// Objects whose names cannot be keys.
    pub left_out: u64,
    /// Folders and files that could not be looked at.
    pub unreadable: u64,
}

/// Groups of facts, as a listing finds them.
pub type Groups = mpsc::Sender<Vec<Facts>>;

/// An opened source. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Folder(PathBuf),
    S3(s3::Lister),
    Memory,
}

impl Store {
    /// Opens `dir:/path`, `s3://bucket/prefix?endpoint=&region=&anonymous=&credentials=&profile=&style=` or `memory:`.
    pub fn open(url: &str) -> Result<Self, SourceError> {
        let invalid = |reason: String| SourceError::Url { url: s3::without_keys(url), reason };
        if let Some(path) = url.strip_prefix("dir:") {
            let folder = std::fs::canonicalize(path).map_err(|e| invalid(format!("folder {path}: {e}")))?;
            if !folder.is_dir() {
                return Err(invalid(format!("{path} is not a folder")));
            }
            let objects = Arc::new(LocalFileSystem::new_with_prefix(&folder)?);
            return Ok(Self { objects, kind: Kind::Folder(folder) });
        }
        if let Some(rest) = url.strip_prefix("s3://") {
            let (objects, lister) = s3::open(rest).map_err(invalid)?;
            return Ok(Self { objects, kind: Kind::S3(lister) });
        }
        if url == "memory:" {
            return Ok(Self::nothing());
        }
        Err(invalid("the form is dir:/path, s3://bucket/prefix?endpoint=URL&region=R or memory:".into()))
    }

    /// A source without objects.
    pub fn nothing() -> Self {
        Self { objects: Arc::new(InMemory::new()), kind: Kind::Memory }
    }

    /// The folder, for those who watch it.
    pub fn folder(&self) -> Option<&FilePath> {
        match &self.kind {
            Kind::Folder(folder) => Some(folder),
            Kind::S3(_) | Kind::Memory => None,
        }
    }

    /// Objects that are best read at the same time: a store answers late, a disk and a core are busy.
    pub fn read_ahead(&self) -> usize {
        if self.folder().is_some() { 2 } else { 8 }
    }

    /// What tells this place from another at the same path: device and inode of a folder. Where a disk was
    /// unmounted, the folder that it hid is another. Empty for object stores.
    pub fn place(&self) -> Result<String, SourceError> {
        self.folder().map_or(Ok(String::new()), folder::place)
    }

    /// Sends the facts of every object, in groups. Ends early when nobody listens any more.
    pub async fn list(&self, groups: Groups) -> Result<Listing, SourceError> {
        match &self.kind {
            Kind::Folder(folder) => {
                let folder = folder.clone();
                let walked = tokio::task::spawn_blocking(move || folder::walk(&folder, &groups)).await;
                walked.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked).into()))
            }
            Kind::S3(lister) => lister.list(&groups).await,
            Kind::Memory => {
                let mut objects = self.objects.list(None).ready_chunks(GROUP);
                while let Some(group) = objects.next().await {
                    let group = group.into_iter().map(|o| o.map(facts_of)).collect::<Result<_, _>>()?;
                    if groups.send(group).await.is_err() {
                        break;
                    }
                }
                Ok(Listing::default())
            }
        }
    }

    /// What the store says of one object now; `None` if it is not there.
    pub async fn facts(&self, location: &str) -> Result<Option<Facts>, SourceError> {
        let found = match self.folder() {
            Some(folder) => {
                let (path, location) = (folder.join(location), location.to_owned());
                let read = tokio::task::spawn_blocking(move || std::fs::metadata(path)).await;
                read.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)))
                    .map(|metadata| metadata.is_file().then(|| folder::facts_of(location, &metadata)))
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

    /// Opens the object that these facts tell of; `Changed` if the store knows it to be another by now.
    pub async fn open_object(&self, facts: &Facts) -> Result<GetResult, SourceError> {
        Ok(self.objects.get_opts(&path_of(&facts.location)?, self.options(facts)).await?)
    }

    /// Bytes of the object that these facts tell of; fewer than asked for if a file has become shorter. `Changed` if
    /// the store knows it to be another by now; the bytes of files are to be verified.
    pub async fn read(&self, facts: &Facts, range: Range<u64>) -> Result<Bytes, SourceError> {
        let options = GetOptions { range: Some(range.into()), ..self.options(facts) };
        Ok(self.objects.get_opts(&path_of(&facts.location)?, options).await?.bytes().await?)
    }

    /// The tag of a file is ours, no entity tag: only stores can be asked for the very object.
    fn options(&self, facts: &Facts) -> GetOptions {
        let has_tag = self.folder().is_none() && !facts.tag.is_empty();
        GetOptions { if_match: has_tag.then(|| facts.tag.clone()), ..GetOptions::default() }
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
            ("s3://b?anonymous=perhaps", "true or false"),
            ("s3://b?credentials=/no/such/file", "/no/such/file"),
            ("s3://b?anonymous=true&credentials=/f", "not both"),
            ("s3://b?style=round", "path or virtual"),
            ("s3://b?endpoint=127.0.0.1", "http://"),
            ("memory:x", "the form is"),
        ] {
            let Err(error) = Store::open(url) else { panic!("{url} was opened") };
            assert!(error.to_string().contains(reason), "{url}: {error}");
        }
        let s3 = "s3://b/p/q?endpoint=http%3A%2F%2F127.0.0.1%3A9&region=eu-1&anonymous=true&style=path";
        assert!(Store::open(s3).is_ok());
    }

    #[test]
    fn keys_in_a_url_are_refused_and_not_repeated() {
        for url in [
            "s3://AKIA:hush@bucket/p",
            "s3://bucket?secret_key=hush",
            "s3://bucket?secret=hush&region=r",
            "s3://bucket?endpoint=http://AKIA:hush@127.0.0.1:9",
            "s3://bucket?endpoint=http%3A%2F%2FAKIA%3Ahush%40127.0.0.1%3A9",
            "https://AKIA:hush@host/bucket",
        ] {
            let Err(error) = Store::open(url) else { panic!("{url} was opened") };
            let text = common::error::chain(&error);
            assert!(!text.contains("hush") && !text.contains("AKIA"), "{text}");
        }
    }

    #[tokio::test]
    async fn an_object_store_lists_tells_and_reads_what_is_in_it() {
        let memory = InMemory::new();
        for key in ["a.txt", "deep/b.txt"] {
            memory.put(&Path::from(key), key.into()).await.unwrap();
        }
        let store = Store { objects: Arc::new(memory), kind: Kind::Memory };
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
        assert_eq!(store.read(&found[1], 5..8).await.unwrap(), "b.t");
        store.objects.put(&Path::from("deep/b.txt"), "another".into()).await.unwrap();
        assert!(matches!(store.read(&found[1], 0..3).await, Err(SourceError::Changed)));
        assert!(matches!(store.open_object(&found[1]).await, Err(SourceError::Changed)));
    }

    #[test]
    fn an_entity_tag_decides_and_without_one_the_time_does() {
        let facts = |tag: &str, modified, size| Facts {
            location: "x".into(),
            size,
            modified: UnixMillis(modified),
            tag: tag.into(),
        };
        assert!(facts("a", 1, 5).same_object(&facts("a", 2, 5)));
        assert!(!facts("a", 1, 5).same_object(&facts("b", 1, 5)));
        assert!(!facts("a", 1, 5).same_object(&facts("a", 1, 6)));
        assert!(facts("", 1, 5).same_object(&facts("", 1, 5)));
        assert!(!facts("", 1, 5).same_object(&facts("", 2, 5)));
    }
}
