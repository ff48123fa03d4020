//! Copies of the books, and putting them back; see [`database::backup`].
//!
//! Nodes have then booked more than the books know. They keep their records, and send again what the server says that it
//! expects; see the storage node's `outbox::billing`. What is on no node does not come back: tariffs, splits, parties,
//! closes and payments after the copy.

use std::path::Path;

use common::server::StartError;
use common::time::Clock;
use database::Location;
pub use database::backup::BackupError;

use crate::config::Fee;
use crate::ledger::Ledger;
use crate::sql::LedgerError;
use crate::verify::VerifyReport;

/// Why books are not in place, or not known to be in order.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Copy(#[from] BackupError),
    #[error(transparent)]
    Open(#[from] StartError),
    #[error("the books are in place, and cannot be verified")]
    Verify(#[from] LedgerError),
}

/// Name of the books' file in a data folder.
pub fn file_name(fee: Fee) -> String {
    format!("{fee}.db")
}

/// Copies the books in `data_dir` to `file`, also while the server runs; answers its bytes.
pub async fn backup(data_dir: &Path, fee: Fee, file: &Path) -> Result<u64, BackupError> {
    database::backup::backup(&data_dir.join(file_name(fee)), file).await
}

/// Puts a copy in `data_dir`, which must not have such books, and recomputes all of it.
pub async fn restore(file: &Path, data_dir: &Path, fee: Fee) -> Result<VerifyReport, RestoreError> {
    let service = fee.server_role().as_str();
    database::backup::restore(file, &data_dir.join(file_name(fee)), service, "postings").await?;
    let location = Location::in_folder(data_dir, &file_name(fee))?;
    // Nothing is booked: the writer does not run.
    let (ledger, _writer) = Ledger::open(&location, fee, Clock::System).await?;
    Ok(ledger.verify().await?)
}
