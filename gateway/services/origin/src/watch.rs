//! Watching folders: which files may have changed, as it happens.
//!
//! A watch is a hint. The file system may drop events, another machine may change what a network file system
//! holds, and the number of watches is bounded: the rescan at its interval is the truth. So nothing here fails;
//! what cannot be told as one file is told as "look at everything".

use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RemoveKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::source::location_of;
use crate::sources::OpenSource;

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    File(String),
    /// More than can be told.
    Everything,
}

/// Ends when dropped.
pub struct Watch {
    _watcher: RecommendedWatcher,
    /// What is watched: after a mount or unmount it is no longer what is at the path.
    place: String,
}

/// The watch of a folder, begun anew if there is none or the folder is another by now.
pub async fn renewed(open: &OpenSource, watch: Option<Watch>) -> Option<Watch> {
    let folder = open.store.folder()?.to_owned();
    let place = open.store.place().ok()?;
    if let Some(watch) = watch.filter(|watch| watch.place == place) {
        return Some(watch);
    }
    let changes = open.changes.clone();
    let begun = tokio::task::spawn_blocking(move || begin(folder, changes)).await.ok()?;
    open.change(|progress| progress.watched = begun.is_ok());
    match begun {
        Ok(watcher) => Some(Watch { _watcher: watcher, place }),
        Err(error) => {
            let bucket = &open.source.bucket;
            tracing::warn!(%bucket, %error, "the folder is not watched; changes are found by the next scan");
            None
        }
    }
}

/// Watches a folder with all that is in it. Walks it once, so it must not be called where others wait.
fn begin(folder: PathBuf, changes: mpsc::Sender<Change>) -> Result<RecommendedWatcher, notify::Error> {
    let root = folder.clone();
    let tell = move |event: Result<Event, notify::Error>| {
        let told = match event {
            Ok(event) => changes_of(&root, &event),
            Err(_) => vec![Change::Everything],
        };
        for change in told {
            // Whoever reads a full queue looks at everything, see `was_full`.
            let _full = changes.try_send(change);
        }
    };
    let config = notify::Config::default().with_follow_symlinks(false);
    let mut watcher = RecommendedWatcher::new(tell, config)?;
    watcher.watch(&folder, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Whether the queue was full before the last change was taken from it, so that others may have been dropped.
pub fn was_full(changes: &mpsc::Receiver<Change>) -> bool {
    changes.len() + 1 >= changes.max_capacity()
}

fn changes_of(root: &Path, event: &Event) -> Vec<Change> {
    if event.need_rescan() {
        return vec![Change::Everything];
    }
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Data(_)) => {
            files(root, event)
        }
        EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => {
            vec![Change::Everything]
        }
        EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Metadata(_)) => {
            files(root, event)
        }
        // A folder that came with its name brings its files without a word about them.
        EventKind::Modify(ModifyKind::Name(_)) if event.paths.iter().any(|path| path.is_dir()) => {
            vec![Change::Everything]
        }
        EventKind::Modify(_) => files(root, event),
        EventKind::Access(_) => Vec::new(),
        EventKind::Any | EventKind::Other => vec![Change::Everything],
    }
}

fn files(root: &Path, event: &Event) -> Vec<Change> {
    event.paths.iter().filter_map(|path| location_of(root, path)).map(Change::File).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_was_full_is_told_after_its_first_change_was_taken() {
        let (sender, mut changes) = mpsc::channel(3);
        let put = |count: usize| (0..count).for_each(|_| sender.try_send(Change::Everything).unwrap());
        put(2);
        changes.try_recv().unwrap();
        assert!(!was_full(&changes));
        put(2);
        assert!(sender.try_send(Change::Everything).is_err());
        changes.try_recv().unwrap();
        assert!(was_full(&changes));
    }
}
