//! `node`: the storage nodes, and what the operator wants of them: to be drained, to stay, to leave, to be given
//! up; and what a change would move, before it is made.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use common::api::node::NodeStatus;
use common::api::search::NodeAction;
use common::client::ServerClient;
use common::cluster::{ClusterMap, MapEpoch, NodeEntry, NodeState, SiteEntry};
use common::config::{self, show_bytes};
use common::error::{ErrorCode, chain};
use common::id::{InvalidId, NodeId, ServerName, SiteId};
use futures_util::future::join_all;

use crate::commands::lost;
use crate::commands::status::{self, StatusArgs, moves_eta_s, node_status, show_seconds};
use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::plan::{self, Figures, Plan};
use crate::progress::Progress;
use crate::session::{Operator, OperatorArgs};
use crate::signals::Signals;

/// Between two looks at a node that drains.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Subcommand)]
pub enum NodeCommand {
    /// List the storage nodes of all sites
    List(StatusArgs),
    /// Show what adding or draining a node would move, how long that takes and how full the nodes are then
    Plan(PlanArgs),
    /// Move everything that a node has to the other nodes of its site
    Drain {
        /// The node, as SITE.NAME, or its name alone where no other site has one of that name
        #[arg(value_name = "NODE")]
        name: NodeName,
        /// Wait until the node is empty
        #[arg(long)]
        wait: bool,
        /// Also when the other nodes would become more than 90% full
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Tell whether a node or gateway may be stopped now, and what speaks against it; exit status 0 or 1
    CanStop {
        /// The server, as SITE.NAME, or its name alone where no other site has one of that name
        #[arg(value_name = "SERVER")]
        name: NodeName,
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Let a draining node take its share again
    Undrain {
        #[arg(value_name = "NODE")]
        name: NodeName,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Let a drained node that is empty leave its site for ever
    Remove {
        #[arg(value_name = "NODE")]
        name: NodeName,
        /// Give a node up that is down, with all that it alone had
        #[arg(long)]
        lost: bool,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

#[derive(Debug, clap::Args)]
#[group(id = "change", required = true, multiple = false, args = ["drain", "add"])]
pub struct PlanArgs {
    /// The node to drain, or the new node as SITE.NAME
    #[arg(value_name = "NODE")]
    name: NodeName,
    /// The node is drained
    #[arg(long)]
    drain: bool,
    /// A node of this capacity is added
    #[arg(long, value_name = "BYTES", value_parser = config::parse_bytes)]
    add: Option<u64>,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// A node as it is typed: with its site, or without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeName {
    Whole(NodeId),
    Short(ServerName),
}

impl FromStr for NodeName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text.contains('.') {
            NodeId::new(text).map(Self::Whole)
        } else {
            ServerName::new(text).map(Self::Short)
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(id) => id.fmt(f),
            Self::Short(name) => name.fmt(f),
        }
    }
}

impl NodeName {
    /// The node that is meant, and its site.
    fn find<'a>(&self, map: &'a ClusterMap) -> Result<(&'a SiteEntry, &'a NodeEntry), Failure> {
        let is_meant = |node: &NodeEntry| match self {
            Self::Whole(id) => node.id == *id,
            Self::Short(name) => node.id.name() == name.as_str(),
        };
        let all = map.sites.iter().flat_map(|site| site.nodes.iter().map(move |node| (site, node)));
        let found: Vec<_> = all.filter(|(_, node)| is_meant(node)).collect();
        match found[..] {
            [one] => Ok(one),
            [] => Err(Failure::new(format!("there is no node {self}"))
                .with_next_step("`dozo node list` shows the nodes of all sites")),
            _ => {
                let ids: Vec<&str> = found.iter().map(|(_, node)| node.id.as_str()).collect();
                Err(Failure::usage(format!(
                    "several nodes are named {self}: say which of {}",
                    ids.join(", ")
                )))
            }
        }
    }
}

impl NodeName {
    /// The node or gateway that is meant.
    fn find_server(&self, map: &ClusterMap) -> Result<NodeId, Failure> {
        let short = match self {
            Self::Whole(id) => return Ok(id.clone()),
            Self::Short(short) => short,
        };
        let gateways =
            map.sites.iter().flat_map(|site| site.gateways.iter().map(move |gateway| (site, gateway)));
        let found: Vec<_> = gateways.filter(|(_, gateway)| gateway.name == *short).collect();
        match (self.find(map), &found[..]) {
            (Ok((_, node)), []) => Ok(node.id.clone()),
            (Err(_), [(site, gateway)]) => Ok(NodeId::of(&site.id, &gateway.name)),
            (Err(failure), []) => Err(failure),
            _ => Err(Failure::usage(format!("several servers are named {self}: say which, as SITE.NAME"))),
        }
    }
}

pub async fn node(command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List(args) => status::list_nodes(args).await,
        NodeCommand::Plan(args) => show_plan(args).await,
        NodeCommand::Drain { name, wait, force, operator } => drain(&name, wait, force, &operator).await,
        NodeCommand::CanStop { name, operator, output } => can_stop(&name, &operator, output).await,
        NodeCommand::Undrain { name, operator } => {
            let operator = operator.connect()?;
            let map = present_map(&operator).await?;
            let (_, node) = name.find(&map)?;
            operator.search().change_node(&node.id, NodeAction::Undrain).await?;
            output::line(&format!("node {} takes its share again", node.id))
        }
        NodeCommand::Remove { name, lost, operator } => {
            let operator = operator.connect()?;
            let map = present_map(&operator).await?;
            let (site, node) = name.find(&map)?;
            if lost { remove_lost(&operator, site, node).await } else { remove(&operator, node).await }
        }
    }
}

async fn present_map(operator: &Operator) -> Result<ClusterMap, Failure> {
    Ok(operator.search().map(MapEpoch(0), Duration::ZERO).await?)
}

// --- Planning ---

async fn show_plan(args: PlanArgs) -> Result<(), Failure> {
    let operator = args.operator.connect()?;
    let map = present_map(&operator).await?;
    let plan = match args.add {
        Some(capacity_bytes) => plan_of_adding(&operator, &map, &args.name, capacity_bytes).await?,
        None => {
            let (site, node) = args.name.find(&map)?;
            plan_of_draining(&operator, site, node).await?
        }
    };
    if args.output.json {
        return output::json(&plan);
    }
    output::text_block(&show(&plan))
}

async fn plan_of_adding(
    operator: &Operator,
    map: &ClusterMap,
    name: &NodeName,
    capacity_bytes: u64,
) -> Result<Plan, Failure> {
    let NodeName::Whole(id) = name else {
        return Err(Failure::usage(format!("{name} is in no site: name the new node as SITE.NAME")));
    };
    let site = map.site(&SiteId::new(id.site())?).ok_or_else(|| {
        let known: Vec<&str> = map.sites.iter().map(|site| site.id.as_str()).collect();
        Failure::new(format!("there is no site {}; there are: {}", id.site(), known.join(", ")))
    })?;
    if site.node(id).is_some() {
        return Err(Failure::new(format!("there is a node {id} already; choose another name")));
    }
    let figures = ask_all(&operator.server, site).await;
    Ok(plan::plan(site, &plan::added(site, id.clone(), capacity_bytes), &figures))
}

async fn plan_of_draining(operator: &Operator, site: &SiteEntry, node: &NodeEntry) -> Result<Plan, Failure> {
    match node.state {
        NodeState::Active => {}
        NodeState::Draining => {
            return Err(Failure::new(format!("node {} is being drained already", node.id))
                .with_next_step("`dozo status` shows how far it is"));
        }
        NodeState::Removed => return Err(Failure::new(format!("node {} was removed", node.id))),
    }
    let figures = ask_all(&operator.server, site).await;
    Ok(plan::plan(site, &plan::drained(site, &node.id), &figures))
}

/// What each node of a site says of itself, if it answers.
async fn ask_all(server: &ServerClient, site: &SiteEntry) -> Vec<Option<Figures>> {
    let ask = async |node: &NodeEntry| {
        if node.state == NodeState::Removed {
            return None;
        }
        let own = node_status(server, node).await.ok()?;
        Some(Figures {
            used_bytes: own.used_bytes,
            capacity_bytes: own.capacity_bytes,
            limit_bytes_per_s: own.moves_limit_bytes_per_s,
        })
    };
    join_all(site.nodes.iter().map(ask)).await
}

/// A plan for people.
fn show(plan: &Plan) -> String {
    let mut table = Table::new(&[
        ("node", Align::Left),
        ("capacity", Align::Right),
        ("used", Align::Right),
        ("then", Align::Right),
        ("full", Align::Right),
        ("then", Align::Right),
    ]);
    for node in &plan.nodes {
        table.row(vec![
            node.node.to_string(),
            show_bytes(node.capacity_bytes),
            show_bytes(node.used_bytes_before),
            show_bytes(node.used_bytes_after),
            format!("{:.0}%", node.percent_before),
            format!("{:.0}%", node.percent_after),
        ]);
    }
    let mut text = format!("{}\n{}", summary(plan), table.render(0));
    for node in plan.too_full() {
        text.push_str(&format!("{} would be more than 90% full: add a node first\n", node.node));
    }
    text
}

/// A plan in one line.
fn summary(plan: &Plan) -> String {
    let time = match plan.seconds {
        Some(seconds) => format!("about {}", show_seconds(seconds)),
        None => "in a time that the nodes do not limit".to_owned(),
    };
    format!("{} and {} slots to move, {time}", show_bytes(plan.bytes_to_move), plan.slots_to_move)
}

// --- Draining ---

async fn drain(name: &NodeName, wait: bool, force: bool, operator: &OperatorArgs) -> Result<(), Failure> {
    let operator = operator.connect()?;
    let map = present_map(&operator).await?;
    let (site, node) = name.find(&map)?;
    if node.state == NodeState::Active {
        let plan = plan_of_draining(&operator, site, node).await?;
        let full: Vec<&str> = plan.too_full().map(|node| node.node.as_str()).collect();
        if !full.is_empty() && !force {
            let message = format!("{} would be more than 90% full afterwards", full.join(", "));
            return Err(Failure::new(message).with_next_step(format!(
                "add a node first, or drain it all the same with --force; \
                 `dozo node plan {} --drain` shows the whole",
                node.id
            )));
        }
        operator.search().change_node(&node.id, NodeAction::Drain).await?;
        output::line(&format!("node {} is being drained: {}", node.id, summary(&plan)))?;
    } else {
        operator.search().change_node(&node.id, NodeAction::Drain).await?;
        output::line(&format!("node {} is being drained already", node.id))?;
    }
    if !wait {
        return output::line(&format!("`dozo node drain {} --wait` shows how far it is", node.id));
    }
    let mut signals = Signals::install()?;
    tokio::select! {
        emptied = wait_until_empty(&operator, &node.id) => emptied,
        _signal = signals.next() => {
            let id = &node.id;
            let next_step = format!("`dozo node undrain {id}` ends it, `drain --wait` watches it again");
            Err(Failure::new("the drain goes on").with_next_step(next_step))
        }
    }
}

/// What a draining node still has.
struct Left {
    own: NodeStatus,
    slots: usize,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.slots == 0
            && self.own.chunks == 0
            && self.own.moves_pending_bytes == 0
            && self.own.unsettled == 0
    }

    fn show(&self, node: &NodeId) -> String {
        let own = &self.own;
        let eta = moves_eta_s(own).map_or_else(String::new, |seconds| format!(", {}", show_seconds(seconds)));
        format!(
            "{node}: {} left ({} chunks, {} slots, {} to settle), {}/s{eta}",
            show_bytes(own.moves_pending_bytes),
            own.chunks,
            self.slots,
            own.unsettled,
            show_bytes(own.moves_rate_bytes_per_s),
        )
    }
}

async fn wait_until_empty(operator: &Operator, node: &NodeId) -> Result<(), Failure> {
    let bar = Progress::bytes(0, node.as_str());
    let mut total_bytes = 0;
    let mut last_line: Option<Instant> = None;
    loop {
        let left = look(operator, node).await?;
        if left.as_ref().is_ok_and(Left::is_empty) {
            bar.finish();
            return output::line(&format!("node {node} is empty; `dozo node remove {node}` lets it leave"));
        }
        if let Ok(left) = &left {
            total_bytes = total_bytes.max(left.own.moves_pending_bytes);
            bar.set_total(total_bytes);
            bar.set(total_bytes - left.own.moves_pending_bytes);
        }
        if !bar.is_shown() && last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL) {
            output::line(&left.map_or_else(|problem| problem, |left| left.show(node)))?;
            last_line = Some(Instant::now());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What the node has, or why that is not known at the moment.
async fn look(operator: &Operator, node: &NodeId) -> Result<Result<Left, String>, Failure> {
    let map = match operator.search().map(MapEpoch(0), Duration::ZERO).await {
        Ok(map) => map,
        Err(error) => return Ok(Err(chain(&error))),
    };
    let (site, entry) = NodeName::Whole(node.clone()).find(&map)?;
    match entry.state {
        NodeState::Draining => {}
        NodeState::Active => return Err(Failure::new(format!("node {node} is not drained any more"))),
        NodeState::Removed => return Err(Failure::new(format!("node {node} was removed"))),
    }
    match node_status(&operator.server, entry).await {
        Ok(own) => Ok(Ok(Left { own, slots: site.slots_owned_by(node).count() })),
        Err(error) => Ok(Err(format!("{node} says nothing: {}", chain(&error)))),
    }
}

// --- Stopping ---

async fn can_stop(name: &NodeName, operator: &OperatorArgs, output: OutputArgs) -> Result<(), Failure> {
    let operator = operator.connect()?;
    let server = name.find_server(&present_map(&operator).await?)?;
    let verdict = operator.search().can_stop(&server).await?;
    if output.json {
        output::json(&verdict)?;
    } else {
        let word = if verdict.can_stop { "may" } else { "should not" };
        output::line(&format!("{server} {word} be stopped now"))?;
        for reason in &verdict.reasons {
            output::line(&format!("  {reason}"))?;
        }
        for warning in &verdict.warnings {
            output::line(&format!("  note: {warning}"))?;
        }
    }
    if verdict.can_stop {
        return Ok(());
    }
    let count = verdict.reasons.len();
    let things = if count == 1 { "thing speaks" } else { "things speak" };
    Err(Failure::new(format!("{count} {things} against stopping {server}"))
        .with_next_step("ask again once that has changed, or stop it knowing what is away meanwhile"))
}

// --- Removing ---

async fn remove(operator: &Operator, node: &NodeEntry) -> Result<(), Failure> {
    if let Err(error) = operator.search().change_node(&node.id, NodeAction::Remove).await {
        let still_has_something = node.alive && error.code() == Some(ErrorCode::Conflict);
        let failure = Failure::from(error);
        return Err(if still_has_something {
            failure
                .with_next_step(format!("`dozo node drain {} --wait` ends when the node is empty", node.id))
        } else {
            failure
        });
    }
    output::line(&format!("node {} is removed; stop it", node.id))
}

async fn remove_lost(operator: &Operator, site: &SiteEntry, node: &NodeEntry) -> Result<(), Failure> {
    let search = operator.search();
    // Found before the slots get new owners, and withdrawn after: if the node is refused, nothing was
    // changed.
    let lost = lost::contents(&search, &site.id, &lost::slots(site, node)).await?;
    search.change_node(&node.id, NodeAction::RemoveLost).await?;
    lost::withdraw(&search, &site.id, &lost).await?;
    let mut text = format!("node {} is given up\n", node.id);
    if !lost.is_empty() {
        text.push_str(&format!("{} contents lost their list entry at site {}:\n", lost.len(), site.id));
        lost.iter().for_each(|content| text.push_str(&format!("  {}\n", content.name)));
    }
    let audit = lost::audit(operator, &site.id).await?;
    for content in &audit.incomplete {
        let missing = show_bytes(content.missing_bytes);
        text.push_str(&format!(
            "  {}: {missing} are gone; {} clients hold it\n",
            content.name, content.clients
        ));
    }
    text.push_str(&format!(
        "{} contents at site {} looked at, {} of them have parts that no node has\n",
        audit.checked,
        site.id,
        audit.incomplete.len()
    ));
    output::text_block(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> ClusterMap {
        let mut map = ClusterMap::default();
        for (site, nodes) in [("tokyo", &["n1", "n2"][..]), ("osaka", &["n1"])] {
            let mut entry = SiteEntry::new(SiteId::new(site).unwrap());
            for node in nodes {
                entry = plan::added(&entry, NodeId::new(&format!("{site}.{node}")).unwrap(), 1);
            }
            map.sites.push(entry);
        }
        map
    }

    fn find(text: &str) -> Result<String, String> {
        let name: NodeName = text.parse().unwrap();
        name.find(&map()).map(|(_, node)| node.id.to_string()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_node_is_named_with_its_site_or_alone_where_that_is_clear() {
        assert_eq!(find("osaka.n1").unwrap(), "osaka.n1");
        assert_eq!(find("n2").unwrap(), "tokyo.n2");
        assert!(find("n1").unwrap_err().contains("tokyo.n1, osaka.n1"));
        assert!(find("n9").unwrap_err().contains("no node n9"));
        assert!(find("kobe.n1").unwrap_err().contains("no node kobe.n1"));
        assert!("N 1".parse::<NodeName>().is_err() && "a.b.c".parse::<NodeName>().is_err());
    }

    #[test]
    fn slots_are_lost_only_with_a_node_that_is_down_and_serves_itself() {
        let mut site = map().sites.remove(0);
        site.slot_owners = vec![0; 1024];
        site.nodes[1].shard.primary = 1;
        assert!(lost::slots(&site, &site.nodes[0]).is_empty(), "it is alive");
        site.nodes[0].alive = false;
        assert_eq!(lost::slots(&site, &site.nodes[0]).len(), 1024);
        site.nodes[0].shard.primary = 1;
        assert!(lost::slots(&site, &site.nodes[0]).is_empty(), "a follower has them");
    }
}
