//! `search find`, `lookup`, `explain`, `resync`: what the directory knows of contents. `search backup`: a copy of it.

use std::path::PathBuf;
use std::time::Duration;

use common::api::peer::{PeerClient, RankedCandidate, Ranking};
use common::api::search::{ContentInfo, ContentPage, ContentSummary, HolderLine, HolderName, SearchClient};
use common::cluster::MapEpoch;
use common::error::chain;
use common::hash::ContentHash;
use common::id::{ClientId, SiteId};
use common::name::ContentName;
use serde::Serialize;

use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::{EndpointsArgs, Operator, OperatorArgs};

#[derive(Debug, Clone, clap::Subcommand)]
pub enum SearchCommand {
    /// Find contents by a part of their name
    Find {
        text: String,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Look contents up by their exact name, their hash, or their provider
    Lookup {
        #[command(flatten)]
        what: LookupArgs,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show who holds a content, whose site is heard of, and how a site's gateway would rank the holders
    Explain {
        #[arg(value_name = "BUCKET/KEY")]
        name: ContentName,
        /// Ask a gateway of this site how it ranks them, and by which figures
        #[arg(long, value_name = "SITE")]
        from: Option<SiteId>,
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Let a site's nodes announce anew all that they hold; what is not among it is withdrawn
    Resync {
        site: SiteId,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Copy the directory's SQLite file, also while search runs; on the machine that has it
    ///
    /// To put a copy back: stop search, remove search.db, search.db-wal and search.db-shm from its data folder, move the
    /// copy there as search.db (or `restore` it), start search. What the sites have decided and hold since then comes back from the storage
    /// nodes; clients, buckets and cards made since then do not. With PostgreSQL use pg_dump.
    #[command(verbatim_doc_comment)]
    Backup {
        /// Must not be there yet. Holds clients' secret keys
        file: PathBuf,
        /// Search's data folder; `search` beside endpoints.json if it is not given
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        #[command(flatten)]
        endpoints: EndpointsArgs,
    },
    /// Check a backup and put it into a data folder that has no directory, for search to be started on
    Restore {
        file: PathBuf,
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
}

#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct LookupArgs {
    #[arg(value_name = "BUCKET/KEY")]
    name: Option<ContentName>,
    /// The hash of the content, as `b3sum` prints it
    #[arg(long)]
    hash: Option<ContentHash>,
    /// All contents of a provider's buckets
    #[arg(long, value_name = "CLIENT")]
    provider: Option<ClientId>,
}

#[derive(Debug, Clone, clap::Args)]
pub struct PageArgs {
    /// Lines at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on where an earlier answer ended
    #[arg(long, value_name = "NEXT", default_value = "")]
    after: String,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub async fn search(command: SearchCommand) -> Result<(), Failure> {
    match command {
        SearchCommand::Find { text, page } => {
            let search = page.operator.connect()?.search();
            tell_page(search.find(&text, &page.after, page.limit).await?, page.output)
        }
        SearchCommand::Lookup { what, page } => lookup(what, page).await,
        SearchCommand::Explain { name, from, operator, output } => {
            explain(&operator.connect()?, &name, from.as_ref(), output).await
        }
        SearchCommand::Resync { site, operator } => {
            let asked = operator.connect()?.search().resync(&site).await?.nodes;
            if asked == 0 {
                return Err(Failure::new(format!("no node of site {site} ever announced anything")));
            }
            output::line(&format!("{asked} nodes of {site} were asked to announce all that they hold"))
        }
        SearchCommand::Backup { file, data_dir, endpoints } => {
            let data_dir = data_dir.unwrap_or_else(|| endpoints.folder().join("search"));
            let bytes = search::backup::backup(&data_dir, &file).await.map_err(|error| {
                let next =
                    "name another file, or search's data folder with --data-dir; with PostgreSQL use pg_dump";
                Failure::new(chain(&error)).with_next_step(next)
            })?;
            output::line(&format!("{}: {bytes} bytes", file.display()))
        }
        SearchCommand::Restore { file, data_dir } => {
            let bytes = search::backup::restore(&file, &data_dir).await.map_err(|error| {
                let next = "stop search and move its search.db, with -wal and -shm, out of the folder first";
                Failure::new(chain(&error)).with_next_step(next)
            })?;
            output::line(&format!("{}: {bytes} bytes; start search on it", data_dir.display()))
        }
    }
}

async fn lookup(what: LookupArgs, page: PageArgs) -> Result<(), Failure> {
    let PageArgs { limit, after, operator, output } = page;
    let search = operator.connect()?.search();
    match what {
        LookupArgs { hash: Some(hash), .. } => tell_page(search.by_hash(hash, &after, limit).await?, output),
        LookupArgs { provider: Some(provider), .. } => {
            tell_page(search.by_provider(&provider, &after, limit).await?, output)
        }
        LookupArgs { name: Some(name), .. } => {
            let info = search.lookup(&name).await?;
            if output.json { output::json(&info) } else { output::text_block(&show_content(&info)) }
        }
        LookupArgs { .. } => Err(Failure::usage("name a content, or give --hash or --provider")),
    }
}

fn tell_page(page: ContentPage, output: OutputArgs) -> Result<(), Failure> {
    if output.json {
        return output::json(&page);
    }
    let columns =
        [("name", Align::Left), ("bytes", Align::Right), ("provider", Align::Left), ("hash", Align::Left)];
    let mut table = Table::new(&columns);
    for ContentSummary { name, version, len, provider, .. } in &page.contents {
        table.row(vec![name.to_string(), len.to_string(), provider.to_string(), version.hash.to_string()]);
    }
    let mut text = table.render(0);
    if let Some(next) = &page.next {
        text.push_str(&format!("more: --after '{next}'\n"));
    }
    output::text_block(&text)
}

fn show_content(info: &ContentInfo) -> String {
    let sites: Vec<&str> = info.sites.iter().map(SiteId::as_str).collect();
    let origins: Vec<&str> = info.origins.iter().map(|origin| origin.as_str()).collect();
    let or_none = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    format!(
        "{}\n  hash      {}\n  size      {} bytes, {}\n  provider  {}\n  sites     {}\n  origins   {}\n",
        info.name,
        info.version.hash,
        info.len,
        info.media_type,
        info.provider,
        or_none(sites),
        or_none(origins),
    )
}

#[derive(Debug, Serialize)]
struct Explanation {
    name: ContentName,
    /// What a site that collects is told; absent when nobody is offered.
    content: Option<ContentInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    holders: Vec<HolderLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranking: Option<SiteRanking>,
}

#[derive(Debug, Serialize)]
struct SiteRanking {
    site: SiteId,
    gateway: String,
    #[serde(flatten)]
    ranking: Ranking,
}

async fn explain(
    session: &Operator,
    name: &ContentName,
    from: Option<&SiteId>,
    output: OutputArgs,
) -> Result<(), Failure> {
    let search = session.search();
    let holders = search.holders(name).await?.holders;
    let (content, problem) = match search.lookup(name).await {
        Ok(content) => (Some(content), None),
        Err(error) => (None, Some(chain(&error))),
    };
    let ranking = match from {
        Some(site) => Some(rank(session, &search, site, name).await?),
        None => None,
    };
    let explanation = Explanation { name: name.clone(), content, problem, holders, ranking };
    if output.json {
        return output::json(&explanation);
    }
    output::text_block(&show(&explanation))
}

/// Asks the site's gateways in turn until one answers.
async fn rank(
    session: &Operator,
    search: &SearchClient,
    site: &SiteId,
    name: &ContentName,
) -> Result<SiteRanking, Failure> {
    let map = search.map(MapEpoch(0), Duration::ZERO).await?;
    let entry = map.site(site).ok_or_else(|| Failure::new(format!("there is no site {site}")))?;
    let mut last = Failure::new(format!("site {site} has no gateway"));
    for gateway in &entry.gateways {
        match PeerClient::gateway(session.server.clone(), &gateway.http).ranking(name).await {
            Ok(ranking) => {
                return Ok(SiteRanking { site: site.clone(), gateway: gateway.name.to_string(), ranking });
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn show(explanation: &Explanation) -> String {
    let mut text = match (&explanation.content, &explanation.problem) {
        (Some(content), _) => show_content(content),
        (None, problem) => format!("{}\n  {}\n", explanation.name, problem.as_deref().unwrap_or_default()),
    };
    let columns =
        [("holder", Align::Left), ("version", Align::Left), ("heard of", Align::Right), ("", Align::Left)];
    let mut table = Table::new(&columns);
    for line in &explanation.holders {
        let newest = explanation.content.as_ref().map(|content| content.version);
        let version = if newest == Some(line.version) { "newest" } else { "another" };
        let heard =
            line.heard_ms_ago.map_or_else(|| "-".to_owned(), |ms| format!("{:.1} s ago", ms as f64 / 1e3));
        let holder = match &line.holder {
            HolderName::Site(site) => format!("site {site}"),
            HolderName::Origin(name) => format!("origin {name}"),
        };
        let note = if line.is_silent { "silent: not offered" } else { "" };
        table.row(vec![holder, version.to_owned(), heard, note.to_owned()]);
    }
    text.push('\n');
    text.push_str(&table.render(2));
    if let Some(SiteRanking { site, gateway, ranking }) = &explanation.ranking {
        text.push_str(&format!("\n  as {site}.{gateway} ranks them:\n"));
        text.push_str(&show_ranking(ranking));
    }
    text
}

fn show_ranking(ranking: &Ranking) -> String {
    if ranking.candidates.is_empty() {
        return "  nothing to collect from\n".to_owned();
    }
    let mut table = Table::new(&[
        ("", Align::Left),
        ("source", Align::Left),
        ("gateway", Align::Left),
        ("round trip", Align::Right),
        ("throughput", Align::Right),
        ("load", Align::Right),
        ("distance", Align::Right),
        ("score", Align::Right),
        ("why", Align::Left),
    ]);
    for RankedCandidate {
        source,
        gateway,
        round_trip_us,
        throughput_bytes_per_s,
        load,
        same_zone,
        distance,
        score,
        chosen,
        why,
        ..
    } in &ranking.candidates
    {
        let measured = |value: Option<f64>, unit: f64, name: &str| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{:.2} {name}", value / unit))
        };
        table.row(vec![
            if *chosen { "→".to_owned() } else { String::new() },
            source.clone(),
            gateway.to_string(),
            measured(*round_trip_us, 1e3, "ms"),
            measured(*throughput_bytes_per_s, f64::from(1 << 20), "MiB/s"),
            format!("{load:.0}"),
            match distance {
                _ if *same_zone => "same zone".to_owned(),
                Some(distance) => distance.to_string(),
                None => "-".to_owned(),
            },
            format!("{score:.4}"),
            why.clone(),
        ]);
    }
    table.render(2)
}
