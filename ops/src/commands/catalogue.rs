//! `catalogue`: the closed lists of names that operators, dashboards and scripts rely on.

use crate::error::Failure;
use crate::output;
use crate::reference;

#[derive(Debug, clap::Subcommand)]
pub enum CatalogueCommand {
    /// Print every setting of every server, as Markdown
    Config,
}

pub fn catalogue(command: CatalogueCommand) -> Result<(), Failure> {
    match command {
        CatalogueCommand::Config => output::text_block(&reference::config()),
    }
}
