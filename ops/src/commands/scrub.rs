//! `scrub`: how far each storage node is with verifying what it stores; or starts a round now. A node that does not
//! answer is shown with its reason; the rest is shown all the same.

use std::time::Duration;

use common::api::node::{ScrubCounts, ScrubStatus};
use common::auth::Role;
use common::config::show_bytes;
use common::error::chain;
use common::id::NodeId;
use futures_util::future::join_all;
use http::Method;
use serde::Serialize;

use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::{Operator, OperatorArgs};

const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct ScrubArgs {
    /// Only this node
    #[arg(long, value_name = "SITE.NAME")]
    node: Option<NodeId>,
    /// Start a round now; one that is under way goes on
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// One node, and what it answered.
#[derive(Debug, Serialize)]
struct NodeScrub {
    node: NodeId,
    #[serde(flatten)]
    status: Option<ScrubStatus>,
    /// Why there is no status.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub async fn scrub(args: ScrubArgs) -> Result<(), Failure> {
    let operator = args.operator.connect()?;
    let nodes = nodes(&operator, args.node.as_ref())?;
    let scrubs = join_all(nodes.iter().map(|(id, admin)| ask(&operator, id, admin, args.start))).await;
    let silent = scrubs.iter().filter(|scrub| scrub.problem.is_some()).count();
    if args.output.json {
        output::json(&scrubs)?;
    } else {
        output::text_block(&table(&scrubs).render(0))?;
    }
    if silent > 0 {
        let failure = Failure::new(format!("{silent} of {} nodes did not do it", scrubs.len()));
        return Err(failure.with_next_step("`dozo status` shows who is down; then try again"));
    }
    Ok(())
}

/// The nodes to ask, with their admin addresses.
fn nodes(operator: &Operator, only: Option<&NodeId>) -> Result<Vec<(NodeId, String)>, Failure> {
    let sites = &operator.endpoints.sites;
    let all = sites.iter().flat_map(|site| {
        site.nodes.iter().map(|node| (NodeId::of(&site.name, &node.name), node.admin.clone()))
    });
    let nodes: Vec<_> = all.filter(|(id, _)| only.is_none_or(|only| only == id)).collect();
    match only {
        Some(only) if nodes.is_empty() => Err(Failure::new(format!("there is no node {only}"))
            .with_next_step("`dozo node list` shows the nodes, as SITE.NAME")),
        _ => Ok(nodes),
    }
}

async fn ask(operator: &Operator, node: &NodeId, admin: &str, start: bool) -> NodeScrub {
    let (server, path) = (&operator.server, "/v1/scrub");
    let answer: Result<ScrubStatus, _> = if start {
        server.send_json(Method::POST, admin, Role::StorageNode, path, &(), ANSWER_TIME_MAX).await
    } else {
        server.get_json(admin, Role::StorageNode, path, ANSWER_TIME_MAX).await
    };
    let (status, problem) = match answer {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(chain(&error))),
    };
    NodeScrub { node: node.clone(), status, problem }
}

fn table(scrubs: &[NodeScrub]) -> Table {
    let mut table = Table::new(&[
        ("node", Align::Left),
        ("state", Align::Left),
        ("progress", Align::Right),
        ("chunks", Align::Right),
        ("bytes", Align::Right),
        ("damaged", Align::Right),
        ("missing", Align::Right),
        ("unreadable", Align::Right),
        ("surplus", Align::Right),
        ("started", Align::Left),
        ("last completed", Align::Left),
    ]);
    for scrub in scrubs {
        table.row(match &scrub.status {
            Some(status) => cells(&scrub.node, status),
            None => vec![scrub.node.to_string(), scrub.problem.clone().unwrap_or_default()],
        });
    }
    table
}

/// A node's line: its round under way or, between rounds, the last one.
fn cells(node: &NodeId, status: &ScrubStatus) -> Vec<String> {
    let (state, progress) = match status {
        ScrubStatus { bytes_per_s: 0, .. } => ("off", "-".to_owned()),
        ScrubStatus { running: true, progress, .. } => ("running", format!("{:.0}%", progress * 100.0)),
        _ => ("waiting", "-".to_owned()),
    };
    let last = status.last_completed;
    let round = if status.running { None } else { last };
    let ScrubCounts { chunks, bytes, damaged, missing, unreadable, surplus } =
        round.map_or(status.counts, |round| round.counts);
    let started = round.map(|round| round.started).or(status.started);
    let time =
        |time: Option<_>| time.map_or_else(|| "-".to_owned(), |t: common::time::UnixMillis| t.to_string());
    vec![
        node.to_string(),
        state.to_owned(),
        progress,
        chunks.to_string(),
        show_bytes(bytes),
        damaged.to_string(),
        missing.to_string(),
        unreadable.to_string(),
        surplus.to_string(),
        time(started),
        time(last.map(|last| last.completed)),
    ]
}
