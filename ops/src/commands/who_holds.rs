//! `who-holds`: where a content is, down to nodes, clients and shared chunks.

use common::api::peer::{Holder, PeerClient, SiteHolders};
use common::api::search::ContentInfo;
use common::cluster::{ClusterMap, MapEpoch, SiteEntry};
use common::error::{ErrorCode, chain};
use common::id::SiteId;
use common::name::ContentName;
use futures_util::future::join_all;
use serde::Serialize;

use crate::error::Failure;
use crate::output::{self, OutputArgs};
use crate::session::{Operator, OperatorArgs};

#[derive(Debug, clap::Args)]
pub struct WhoHoldsArgs {
    #[arg(value_name = "BUCKET/KEY")]
    pub name: ContentName,
    /// Clients of each site that are listed at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// List the clients that come behind this one
    #[arg(long, value_name = "CLIENT", default_value = "")]
    pub after: String,
    #[command(flatten)]
    pub operator: OperatorArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Holders {
    content: ContentInfo,
    sites: Vec<SiteAnswer>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum SiteAnswer {
    Holds(SiteHolders),
    Silent { site: SiteId, problem: String },
}

pub async fn who_holds(args: WhoHoldsArgs) -> Result<(), Failure> {
    let session = args.operator.connect()?;
    let search = session.search();
    let content = search.lookup(&args.name).await?;
    let map: ClusterMap = search.map(MapEpoch(0), std::time::Duration::ZERO).await?;
    let asked = content.sites.iter().map(|site| ask_site(&session, map.site(site), site, &args));
    let sites = join_all(asked).await;
    let holders = Holders { content, sites };
    if args.output.json {
        return output::json(&holders);
    }
    output::text_block(&show(&holders))
}

/// Asks the site's gateways in turn until one answers.
async fn ask_site(
    session: &Operator,
    entry: Option<&SiteEntry>,
    site: &SiteId,
    args: &WhoHoldsArgs,
) -> SiteAnswer {
    let mut problem = "the site has no gateway".to_owned();
    for gateway in entry.iter().flat_map(|e| &e.gateways) {
        let gateway = PeerClient::gateway(session.server.clone(), &gateway.http);
        match gateway.who_holds(&args.name, &args.after, args.limit).await {
            Ok(holders) => return SiteAnswer::Holds(holders),
            Err(error) => {
                problem = chain(&error);
                if error.code() == Some(ErrorCode::ContentNotFound) {
                    break;
                }
            }
        }
    }
    SiteAnswer::Silent { site: site.clone(), problem }
}

fn show_holder(holder: &Holder) -> String {
    let Holder { client, since, deliveries, recent } = holder;
    let last = recent.last().map_or_else(String::new, |last| format!(", the last {last}"));
    format!("    client {client}   since {since}, {deliveries} deliveries{last}\n")
}

fn show(holders: &Holders) -> String {
    let content = &holders.content;
    let mut text = format!(
        "{}\n  hash      {}\n  size      {} bytes, {}\n  provider  {}\n",
        content.name, content.version.hash, content.len, content.media_type, content.provider,
    );
    for origin in &content.origins {
        text.push_str(&format!("  origin    {origin}\n"));
    }
    for site in &holders.sites {
        match site {
            SiteAnswer::Silent { site, problem } => {
                text.push_str(&format!("  site {site}: {problem}\n"));
            }
            SiteAnswer::Holds(site) => {
                text.push_str(&format!(
                    "  site {}: {} chunks, {} of them shared with other contents; {} clients\n",
                    site.site, site.chunks, site.chunks_shared, site.clients_total,
                ));
                site.holders.iter().for_each(|holder| text.push_str(&show_holder(holder)));
                if let Some(next) = &site.next {
                    text.push_str(&format!("    more behind {next}: --after {next}\n"));
                }
                if let Some(hash) = site.hash.filter(|h| *h != content.version.hash) {
                    text.push_str(&format!("    version   {hash} (another than search's newest)\n"));
                }
                for share in &site.nodes {
                    let (name, chunks, bytes) = (share.node.name(), share.chunks, share.bytes);
                    text.push_str(&format!("    node {name}   {chunks} chunks, {bytes} bytes\n"));
                }
            }
        }
    }
    text
}
