//! `temporary list`: what sites keep for clients of other sites that visit them, and until when.

use std::time::Duration;

use common::api::peer::PeerClient;
use common::api::temporary::{TemporaryContent, TemporaryPage};
use common::cluster::{MapEpoch, SiteEntry};
use common::config::show_bytes;
use common::id::{ClientId, SiteId};
use common::time::{Clock, UnixMillis};
use serde::Serialize;

use super::status::show_seconds;
use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::{Operator, OperatorArgs};

/// Contents asked for at a time.
const PAGE_LEN: u32 = 1000;

#[derive(Debug, clap::Subcommand)]
pub enum TemporaryCommand {
    /// List what sites keep for clients of other sites, and until when
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only this site
    #[arg(long, value_name = "SITE")]
    site: Option<SiteId>,
    /// Only what is kept for this client
    #[arg(long, value_name = "CLIENT")]
    client: Option<ClientId>,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// A content, and where it is kept.
#[derive(Debug, Serialize)]
struct Line {
    site: SiteId,
    #[serde(flatten)]
    content: TemporaryContent,
}

pub async fn temporary(command: TemporaryCommand) -> Result<(), Failure> {
    let TemporaryCommand::List(args) = command;
    let session = args.operator.connect()?;
    let map = session.search().map(MapEpoch(0), Duration::ZERO).await?;
    let wanted = |site: &&SiteEntry| args.site.as_ref().is_none_or(|only| *only == site.id);
    let sites: Vec<&SiteEntry> = map.sites.iter().filter(wanted).collect();
    if let (true, Some(site)) = (sites.is_empty(), &args.site) {
        return Err(
            Failure::new(format!("there is no site {site}")).with_next_step("`dozo status` shows the sites")
        );
    }
    let mut lines = Vec::new();
    for site in sites {
        let contents = ask_site(&session, site, args.client.as_ref()).await?;
        lines.extend(contents.into_iter().map(|content| Line { site: site.id.clone(), content }));
    }
    if args.output.json {
        return output::json(&lines);
    }
    output::text_block(&table(&lines, Clock::System.now()).render(0))
}

/// All of a site, from the first of its gateways that answers.
async fn ask_site(
    session: &Operator,
    site: &SiteEntry,
    client: Option<&ClientId>,
) -> Result<Vec<TemporaryContent>, Failure> {
    let mut failure = Failure::new(format!("site {} has no gateway", site.id));
    for gateway in &site.gateways {
        match ask(&PeerClient::gateway(session.server.clone(), &gateway.http), client).await {
            Ok(contents) => return Ok(contents),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn ask(gateway: &PeerClient, client: Option<&ClientId>) -> Result<Vec<TemporaryContent>, Failure> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let TemporaryPage { contents, next } = gateway.temporary(client, after.as_ref(), PAGE_LEN).await?;
        all.extend(contents);
        match next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

fn table(lines: &[Line], now: UnixMillis) -> Table {
    let mut table = Table::new(&[
        ("site", Align::Left),
        ("client", Align::Left),
        ("home", Align::Left),
        ("content", Align::Left),
        ("bytes", Align::Right),
        ("here", Align::Left),
        ("expires in", Align::Right),
    ]);
    for Line { site, content } in lines {
        table.row(vec![
            site.to_string(),
            content.client.to_string(),
            content.home.to_string(),
            content.name.to_string(),
            show_bytes(content.len),
            if content.complete { "whole" } else { "in part" }.to_owned(),
            show_seconds(content.expires.since(now).as_secs()),
        ]);
    }
    table
}
