//! `status` and `node list`: the sites as search's map has them, with what each node says of itself. A node that does
//! not answer is shown with its reason; the rest is shown all the same. One that was removed is not asked.

use std::time::Duration;

use common::api::node::NodeStatus;
use common::auth::Role;
use common::client::{CallError, ServerClient};
use common::cluster::{ClusterMap, GatewayEntry, MapEpoch, NodeEntry, NodeState, SiteEntry};
use common::config::show_bytes;
use common::error::chain;
use common::id::SiteId;
use futures_util::future::join_all;
use serde::Serialize;

use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::OperatorArgs;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub operator: OperatorArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Status {
    epoch: MapEpoch,
    sites: Vec<SiteStatus>,
}

#[derive(Debug, Serialize)]
struct SiteStatus {
    name: SiteId,
    /// Copies of each chunk and each row.
    replicas: u8,
    /// As many as the operator wants; `null` is automatic.
    replicas_wanted: Option<u8>,
    gateways: Vec<GatewayEntry>,
    nodes: Vec<NodeLine>,
}

/// One node: what the map says, and its own figures if it answers.
#[derive(Debug, Serialize)]
struct NodeLine {
    site: SiteId,
    name: String,
    /// As the map has it: `active`, `draining`, `down`, `syncing` or `removed`.
    state: String,
    http: String,
    admin: String,
    /// Slots of names and clients that the node decides for.
    slots: usize,
    /// Who serves the node's shard in its place.
    served_by: Option<String>,
    /// Who has a copy of the shard and serves it if the one that does is lost.
    followers: Vec<String>,
    store: Option<String>,
    capacity_bytes: Option<u64>,
    used_bytes: Option<u64>,
    logical_bytes: Option<u64>,
    chunks: Option<u64>,
    /// Logical over used bytes; `null` while nothing is stored.
    dedup_ratio: Option<f64>,
    moves_pending_bytes: Option<u64>,
    moves_rate_bytes_per_s: Option<u64>,
    /// Seconds until what is pending has moved, at the present rate; `null` while nothing moves.
    moves_eta_s: Option<u64>,
    /// What the node's shard has still to tell others.
    unsettled: Option<u64>,
    /// Contents that the shards it serves keep for visitors, and their bytes.
    temporary_contents: Option<u64>,
    temporary_bytes: Option<u64>,
    /// The map that the node has.
    map_epoch: Option<u64>,
    /// Why the node's own figures are missing, or its map is not search's.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub async fn status(args: StatusArgs) -> Result<(), Failure> {
    let status = collect(&args.operator).await?;
    if args.output.json {
        return output::json(&status);
    }
    let mut text = String::new();
    for site in &status.sites {
        text.push_str(&format!("site {}, {}\n", site.name, show_copies(site.replicas, site.replicas_wanted)));
        for gateway in &site.gateways {
            let state = if gateway.alive { "active" } else { "down" };
            text.push_str(&format!("  gateway {}  {state}  {}\n", gateway.name, gateway.http));
        }
        text.push_str(&node_table(&site.nodes, false).render(2));
        for node in site.nodes.iter().filter(|node| node.store.is_some()) {
            if let Some(problem) = &node.problem {
                text.push_str(&format!("  {}: {problem}\n", node.name));
            }
        }
        text.push_str(&summary(&site.nodes));
    }
    if status.sites.is_empty() {
        text.push_str(
            "search knows of no site; if there are any, `/readyz?verbose` of a storage node says why\n",
        );
    }
    output::text_block(&text)
}

pub async fn list_nodes(args: StatusArgs) -> Result<(), Failure> {
    let nodes: Vec<NodeLine> =
        collect(&args.operator).await?.sites.into_iter().flat_map(|site| site.nodes).collect();
    if args.output.json {
        return output::json(&nodes);
    }
    output::text_block(&node_table(&nodes, true).render(0))
}

async fn collect(operator: &OperatorArgs) -> Result<Status, Failure> {
    let session = operator.connect()?;
    let map: ClusterMap = session.search().map(MapEpoch(0), Duration::ZERO).await?;
    let mut sites = Vec::new();
    for site in &map.sites {
        let mut nodes = join_all(site.nodes.iter().map(|node| ask(&session.server, site, node))).await;
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        sites.push(SiteStatus {
            name: site.id.clone(),
            replicas: site.replicas,
            replicas_wanted: site.replicas_wanted,
            gateways: site.gateways.clone(),
            nodes,
        });
    }
    // Asked for after the nodes' answers, it is as new as theirs, or search does not know what they do.
    let newest = session.search().map(MapEpoch(0), Duration::ZERO).await?.epoch.0;
    for node in sites.iter_mut().flat_map(|site| &mut site.nodes) {
        if let Some(kept) = node.map_epoch.filter(|kept| *kept > newest) {
            let message =
                format!("has map {kept}, search has {newest}; `/readyz?verbose` of search says why");
            node.problem = Some(message);
        }
    }
    // The map has them in the order in which they came.
    sites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Status { epoch: map.epoch, sites })
}

async fn ask(server: &ServerClient, site: &SiteEntry, node: &NodeEntry) -> NodeLine {
    let (own, problem) = if node.state == NodeState::Removed {
        (None, None)
    } else {
        match node_status(server, node).await {
            Ok(own) => (Some(own), None),
            Err(error) => (None, Some(chain(&error))),
        }
    };
    let name_of = |index: usize| site.nodes.get(index).map(|n| n.id.name().to_owned());
    let primary = site.primary_index(node).and_then(name_of);
    let ratio =
        |own: &NodeStatus| (own.used_bytes > 0).then(|| own.logical_bytes as f64 / own.used_bytes as f64);
    NodeLine {
        site: site.id.clone(),
        name: node.id.name().to_owned(),
        state: node.shown_state(site).to_owned(),
        http: node.http.clone(),
        admin: node.admin.clone(),
        slots: site.slots_owned_by(&node.id).count(),
        served_by: primary.filter(|name| name != node.id.name()),
        followers: node.shard.followers.iter().filter_map(|index| name_of(usize::from(*index))).collect(),
        dedup_ratio: own.as_ref().and_then(ratio),
        capacity_bytes: own.as_ref().map(|o| o.capacity_bytes),
        used_bytes: own.as_ref().map(|o| o.used_bytes),
        logical_bytes: own.as_ref().map(|o| o.logical_bytes),
        chunks: own.as_ref().map(|o| o.chunks),
        moves_pending_bytes: own.as_ref().map(|o| o.moves_pending_bytes),
        moves_rate_bytes_per_s: own.as_ref().map(|o| o.moves_rate_bytes_per_s),
        moves_eta_s: own.as_ref().and_then(moves_eta_s),
        unsettled: own.as_ref().map(|o| o.unsettled),
        temporary_contents: own.as_ref().map(|o| o.temporary_contents),
        temporary_bytes: own.as_ref().map(|o| o.temporary_bytes),
        map_epoch: own.as_ref().map(|o| o.epoch.0),
        store: own.map(|o| o.store),
        problem,
    }
}

/// What a node says of itself.
pub async fn node_status(server: &ServerClient, node: &NodeEntry) -> Result<NodeStatus, CallError> {
    server.get_json(&node.admin, Role::StorageNode, "/v1/node", ANSWER_TIME_MAX).await
}

/// Seconds until what is pending at a node has moved, at its present rate.
pub fn moves_eta_s(own: &NodeStatus) -> Option<u64> {
    let moving = own.moves_pending_bytes > 0 && own.moves_rate_bytes_per_s > 0;
    moving.then(|| own.moves_pending_bytes.div_ceil(own.moves_rate_bytes_per_s))
}

/// The copies that a site keeps, as people are told.
pub fn show_copies(replicas: u8, wanted: Option<u8>) -> String {
    let copies = if replicas == 1 { "1 copy".to_owned() } else { format!("{replicas} copies") };
    match wanted {
        None => format!("{copies} (automatic)"),
        Some(wanted) if wanted != replicas => format!("{copies} ({wanted} wanted: add nodes)"),
        Some(_) => copies,
    }
}

/// A time ahead, in the unit that fits.
pub fn show_seconds(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{:.1} h", seconds as f64 / 3_600.0),
    }
}

fn node_table(nodes: &[NodeLine], with_site: bool) -> Table {
    let mut columns = vec![
        ("node", Align::Left),
        ("state", Align::Left),
        ("used", Align::Right),
        ("capacity", Align::Right),
        ("chunks", Align::Right),
        ("dedup", Align::Right),
        ("moving", Align::Right),
        ("slots", Align::Right),
        ("served by", Align::Left),
        ("followers", Align::Left),
        ("store", Align::Left),
    ];
    if with_site {
        columns.insert(0, ("site", Align::Left));
    }
    let mut table = Table::new(&columns);
    let bytes = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), show_bytes);
    for node in nodes {
        let followers = if node.followers.is_empty() { "-".to_owned() } else { node.followers.join(",") };
        let mut cells = vec![
            node.name.clone(),
            node.state.clone(),
            bytes(node.used_bytes),
            bytes(node.capacity_bytes),
            node.chunks.map_or_else(|| "-".to_owned(), |c| c.to_string()),
            show_ratio(node.dedup_ratio),
            show_moves(node),
            node.slots.to_string(),
            node.served_by.clone().unwrap_or_else(|| "itself".to_owned()),
            followers,
            node.store.clone().or_else(|| node.problem.clone()).unwrap_or_default(),
        ];
        if with_site {
            cells.insert(0, node.site.to_string());
        }
        table.row(cells);
    }
    table
}

/// What is pending, how fast it moves and how long that takes.
fn show_moves(node: &NodeLine) -> String {
    let Some(pending) = node.moves_pending_bytes else { return "-".to_owned() };
    let rate = node.moves_rate_bytes_per_s.unwrap_or(0);
    match node.moves_eta_s {
        Some(seconds) => {
            format!("{}, {}/s, {}", show_bytes(pending), show_bytes(rate), show_seconds(seconds))
        }
        None => show_bytes(pending),
    }
}

fn show_ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}x"))
}

/// The site in one line.
fn summary(nodes: &[NodeLine]) -> String {
    let sum = |figure: fn(&NodeLine) -> Option<u64>| nodes.iter().filter_map(figure).sum::<u64>();
    let (used, capacity) = (sum(|n| n.used_bytes), sum(|n| n.capacity_bytes));
    let (logical, chunks) = (sum(|n| n.logical_bytes), sum(|n| n.chunks));
    let ratio = (used > 0).then(|| logical as f64 / used as f64);
    let kept = match sum(|n| n.temporary_contents) {
        0 => String::new(),
        contents => {
            format!(", {contents} contents of {} for visitors", show_bytes(sum(|n| n.temporary_bytes)))
        }
    };
    format!(
        "  in all: {} of {} used, {chunks} chunks, dedup {}{kept}\n\n",
        show_bytes(used),
        show_bytes(capacity),
        show_ratio(ratio)
    )
}
