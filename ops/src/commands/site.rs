//! `site list|set|distance`: what the operator wants of sites, and where they are.

use std::collections::BTreeMap;
use std::time::Duration;

use common::api::search::{SearchClient, SiteDistance, SiteSettings, SiteZone};
use common::cluster::{ClusterMap, MapEpoch, REPLICAS_MAX, SiteEntry};
use common::id::{ServerName, SiteId};
use serde::Serialize;

use crate::commands::status::show_copies;
use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::OperatorArgs;

#[derive(Debug, clap::Subcommand)]
pub enum SiteCommand {
    /// List sites: copies, zones, and how far others are
    List {
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Change a site's settings
    Set(SetArgs),
    /// Set how far a site, a zone or an origin is from a site: of sources that are equally near by measurement, and in
    /// no zone of the site's, the one at the least distance is taken
    Distance {
        name: SiteId,
        /// A site, a zone or an origin
        to: ServerName,
        /// In any unit, or `none` to forget it
        #[arg(value_name = "N|none", value_parser = distance)]
        distance: Distance,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true, args = ["replicas", "zone"])]
pub struct SetArgs {
    name: SiteId,
    /// Copies of each chunk and row, 1 to 3, each on another node; `auto` keeps two as soon as there are
    /// two nodes
    #[arg(long, value_name = "N|auto", value_parser = replicas)]
    replicas: Option<Replicas>,
    /// Where it is, or `none`: of sources that are equally near by measurement those in the same zone are taken first
    #[arg(long, value_name = "ZONE|none")]
    zone: Option<ServerName>,
    #[command(flatten)]
    operator: OperatorArgs,
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

/// A distance, or none to forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance(Option<u32>);

fn distance(text: &str) -> Result<Distance, String> {
    match (text, text.parse()) {
        (NONE, _) => Ok(Distance(None)),
        (_, Ok(number)) => Ok(Distance(Some(number))),
        _ => Err(format!("{text:?} is not a number from 0 to {}, or {NONE}", u32::MAX)),
    }
}

/// What is said to take a setting away.
const NONE: &str = "none";

pub async fn site(command: SiteCommand) -> Result<(), Failure> {
    match command {
        SiteCommand::List { operator, output } => {
            let map = operator.connect()?.search().map(MapEpoch(0), Duration::ZERO).await?;
            list(&map, output)
        }
        SiteCommand::Set(args) => {
            let session = args.operator.connect()?;
            set(&session.search(), &args).await
        }
        SiteCommand::Distance { name, to, distance: Distance(distance), operator } => {
            let change = SiteDistance { to, distance };
            operator.connect()?.search().set_distance(&name, &change).await?;
            let to = change.to;
            output::line(&match distance {
                Some(distance) => format!("{to} is at distance {distance} from site {name}"),
                None => format!("{to} is at no known distance from site {name}"),
            })
        }
    }
}

async fn set(search: &SearchClient, args: &SetArgs) -> Result<(), Failure> {
    let name = &args.name;
    if let Some(Replicas(replicas)) = args.replicas {
        let map = search.set_site(name, &SiteSettings { replicas }).await?;
        let site = map.site(name).ok_or_else(|| Failure::new(format!("site {name} is not in the map")))?;
        output::line(&format!("site {name} keeps {}", show_copies(site.replicas, site.replicas_wanted)))?;
    }
    if let Some(zone) = &args.zone {
        let zone = Some(zone).filter(|zone| zone.as_str() != NONE).cloned();
        search.set_zone(name, &SiteZone { zone: zone.clone() }).await?;
        output::line(&match zone {
            Some(zone) => format!("site {name} is in zone {zone}"),
            None => format!("site {name} is in no zone"),
        })?;
    }
    Ok(())
}

/// A site as it is listed.
#[derive(Serialize)]
struct Line<'a> {
    site: &'a SiteId,
    replicas: u8,
    replicas_wanted: Option<u8>,
    zone: Option<&'a str>,
    distances: &'a BTreeMap<String, u32>,
}

fn list(map: &ClusterMap, output: OutputArgs) -> Result<(), Failure> {
    let lines = map.sites.iter().map(|site: &SiteEntry| Line {
        site: &site.id,
        replicas: site.replicas,
        replicas_wanted: site.replicas_wanted,
        zone: site.zone.as_deref(),
        distances: &site.distances,
    });
    if output.json {
        return output::json(&lines.collect::<Vec<_>>());
    }
    let columns =
        [("site", Align::Left), ("keeps", Align::Left), ("zone", Align::Left), ("distances", Align::Left)];
    let mut table = Table::new(&columns);
    for line in lines {
        let distances: Vec<String> =
            line.distances.iter().map(|(name, distance)| format!("{name} {distance}")).collect();
        table.row(vec![
            line.site.to_string(),
            show_copies(line.replicas, line.replicas_wanted),
            line.zone.unwrap_or("-").to_owned(),
            if distances.is_empty() { "-".to_owned() } else { distances.join(", ") },
        ]);
    }
    output::text_block(&table.render(0))
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

    #[test]
    fn a_distance_is_a_number_or_none() {
        assert_eq!(distance("none"), Ok(Distance(None)));
        assert_eq!(distance("0"), Ok(Distance(Some(0))));
        for wrong in ["", "-1", "near", "4294967296"] {
            assert!(distance(wrong).is_err(), "{wrong}");
        }
    }
}
