//! `billing backup` and `billing restore`: copies of the books in an SQLite file.

use std::path::PathBuf;

use billing::backup::{self, RestoreError};
use common::error::chain;

use super::billing::Fee;
use crate::error::Failure;
use crate::output;
use crate::session::EndpointsArgs;

#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// Must not be there yet
    file: PathBuf,
    /// Which books
    #[arg(long, value_enum)]
    fee: Fee,
    /// The server's data folder; that beside endpoints.json if it is not given
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    endpoints: EndpointsArgs,
}

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    file: PathBuf,
    /// Which books
    #[arg(long, value_enum)]
    fee: Fee,
    /// The data folder of the server that is to be started on it
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

impl From<Fee> for billing::Fee {
    fn from(fee: Fee) -> Self {
        match fee {
            Fee::Service => Self::Service,
            Fee::Content => Self::Content,
        }
    }
}

pub async fn backup(args: BackupArgs) -> Result<(), Failure> {
    let BackupArgs { file, fee, data_dir, endpoints } = args;
    let folder = || endpoints.folder().join(format!("{}-billing", fee.name()));
    let data_dir = data_dir.unwrap_or_else(folder);
    let bytes = backup::backup(&data_dir, fee.into(), &file).await.map_err(|error| {
        let next =
            "name another file, or the server's data folder with --data-dir; with PostgreSQL use pg_dump";
        Failure::new(chain(&error)).with_next_step(next)
    })?;
    output::line(&format!("{}: {bytes} bytes", file.display()))
}

/// Fails when the books are not in order; they are in place then, to be looked at.
pub async fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let RestoreArgs { file, fee, data_dir } = args;
    let report = backup::restore(&file, &data_dir, fee.into()).await.map_err(|error| {
        let next = match &error {
            RestoreError::Copy(_) => "stop the server and move its books out of the folder first",
            RestoreError::Open(_) | RestoreError::Verify(_) => {
                "take another backup; do not start the server on this one"
            }
        };
        Failure::new(chain(&error)).with_next_step(next)
    })?;
    output::json(&report)?;
    if report.ok {
        return Ok(());
    }
    Err(Failure::new(format!("the books of the {} fee are not in order", fee.name()))
        .with_next_step("take another backup; do not start the server on this one"))
}
