//! Folders: walking them, and what the file system says of a file.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path as FilePath;

use object_store::path::Path;

use common::time::UnixMillis;

use super::{Facts, GROUP, Groups, Listing, SourceError};

pub fn facts_of(location: String, metadata: &std::fs::Metadata) -> Facts {
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

pub fn place(folder: &FilePath) -> Result<String, SourceError> {
    let unreadable = |source| SourceError::Folder { path: folder.to_owned(), source };
    let metadata = std::fs::metadata(folder).map_err(unreadable)?;
    Ok(format!("{:x}-{:x}", metadata.dev(), metadata.ino()))
}

/// Walks a folder depth first. Links to files are followed, links to folders are not: they may lead in circles
/// and out of the folder. What cannot be looked at is counted and passed over; the folder itself must be readable.
pub fn walk(folder: &FilePath, groups: &Groups) -> Result<Listing, SourceError> {
    let mut listing = Listing::default();
    let mut open = vec![folder.to_owned()];
    let mut group = Vec::new();
    while let Some(path) = open.pop() {
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(source) if path == folder => return Err(SourceError::Folder { path, source }),
            // Removed between its listing and now.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a folder that cannot be read");
                listing.unreadable += 1;
                continue;
            }
        };
        for entry in entries {
            let entry = entry.map_err(|source| SourceError::Folder { path: path.clone(), source })?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                open.push(path);
                continue;
            }
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => metadata,
                // A device, a socket, a link to a folder.
                Ok(_) => continue,
                // Removed meanwhile, or a link to nothing.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a file that cannot be looked at");
                    listing.unreadable += 1;
                    continue;
                }
            };
            match location_of(folder, &path) {
                Some(location) => group.push(facts_of(location, &metadata)),
                None => {
                    tracing::debug!(path = %path.display(), "a file name that cannot be a key; left out");
                    listing.left_out += 1;
                }
            }
            if group.len() == GROUP && groups.blocking_send(std::mem::take(&mut group)).is_err() {
                return Ok(listing);
            }
        }
    }
    if !group.is_empty() {
        // Nobody listens any more: the scan was given up.
        let _given_up = groups.blocking_send(group);
    }
    Ok(listing)
}

/// A file's place below its folder, if the store can name it: UTF-8 without control characters, and not ending in
/// `#` and digits, which the store keeps for files that it is writing.
pub fn location_of(folder: &FilePath, path: &FilePath) -> Option<String> {
    let location = path.strip_prefix(folder).ok()?.to_str()?;
    let file = location.rsplit('/').next()?;
    let is_temporary = file
        .split_once('#')
        .is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|b| b.is_ascii_digit()));
    if location.is_empty() || is_temporary || Path::parse(location).is_err() {
        return None;
    }
    Some(location.to_owned())
}
