//! `site set`: what the operator wants of a site.

use common::api::search::SiteSettings;
use common::cluster::REPLICAS_MAX;
use common::id::SiteId;

use crate::commands::status::show_copies;
use crate::error::Failure;
use crate::output;
use crate::session::OperatorArgs;

#[derive(Debug, clap::Subcommand)]
pub enum SiteCommand {
    /// Change a site's settings
    Set {
        name: SiteId,
        /// Copies of each chunk and row, 1 to 3, each on another node; `auto` keeps two as soon as there are
        /// two nodes
        #[arg(long, value_name = "N|auto", value_parser = replicas)]
        replicas: Replicas,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

/// A number of copies, or none for automatic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas(Option<u8>);

fn replicas(text: &str) -> Result<Replicas, String> {
    match (text, text.parse::<u8>()) {
        ("auto", _) => Ok(Replicas(None)),
        (_, Ok(copies)) if (1..=REPLICAS_MAX).contains(&copies) => Ok(Replicas(Some(copies))),
        _ => Err(format!("{text:?} is not 1 to {REPLICAS_MAX}, or auto")),
    }
}

pub async fn site(command: SiteCommand) -> Result<(), Failure> {
    let SiteCommand::Set { name, replicas: Replicas(replicas), operator } = command;
    let map = operator.connect()?.search().set_site(&name, &SiteSettings { replicas }).await?;
    let site = map.site(&name).ok_or_else(|| Failure::new(format!("site {name} is not in the map")))?;
    output::line(&format!("site {name} keeps {}", show_copies(site.replicas, site.replicas_wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_a_number_or_automatic() {
        assert_eq!(replicas("auto"), Ok(Replicas(None)));
        assert_eq!(replicas("3"), Ok(Replicas(Some(3))));
        for wrong in ["0", "4", "two", "", "-1"] {
            assert!(replicas(wrong).is_err(), "{wrong}");
        }
    }
}
