//! Copies of the directory, and putting them back; see [`database::backup`].
//!
//! Holdings and the map may then be older than what the sites have; both come back from the storage nodes. Clients,
//! buckets and cards that were made after the copy do not.

use std::path::Path;

pub use database::backup::BackupError;

use crate::db::DATABASE_FILE;

/// Copies the directory in `data_dir` to `file`, also while search runs; answers its bytes.
pub async fn backup(data_dir: &Path, file: &Path) -> Result<u64, BackupError> {
    database::backup::backup(&data_dir.join(DATABASE_FILE), file).await
}

/// Puts a copy in `data_dir`, which must not have a directory; answers its bytes.
pub async fn restore(file: &Path, data_dir: &Path) -> Result<u64, BackupError> {
    database::backup::restore(file, &data_dir.join(DATABASE_FILE), "search", "map_state").await
}
