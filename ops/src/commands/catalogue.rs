//! `catalogue`: the closed lists of names that operators, dashboards and scripts rely on.

use crate::catalogue;
use crate::error::Failure;
use crate::output;

#[derive(Debug, clap::Subcommand)]
pub enum CatalogueCommand {
    /// Print every metric of every server, as Markdown
    Metrics,
    /// Print every error code
    Errors,
    /// Print every HTTP route
    Routes,
    /// Print every setting of every server
    Config,
    /// Print what holds at every moment, and what would see it broken
    Invariants,
}

pub fn catalogue(command: CatalogueCommand) -> Result<(), Failure> {
    let text = match command {
        CatalogueCommand::Metrics => catalogue::metrics(),
        CatalogueCommand::Errors => catalogue::errors(),
        CatalogueCommand::Routes => catalogue::routes(),
        CatalogueCommand::Config => catalogue::config(),
        CatalogueCommand::Invariants => catalogue::invariants(),
    };
    output::text_block(&text)
}
