//! A site that grows, shrinks and loses a node while users go on: how long each takes, what moves, and what users feel.
//!
//! It starts the storage nodes itself, as processes of the `dozo` binary on this machine, under a mixed load at a share
//! of what the system can do ([`crate::mixed`]).

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::api::node::NodeStatus;
use common::api::search::NodeAction;
use common::chunker::Chunker;
use common::client::CallError;
use common::cluster::{ClusterMap, SiteEntry};
use common::error::ErrorCode;
use common::hash::ChunkHash;
use common::id::{InvalidId, SiteId};
use serde::Serialize;

use crate::mixed::report::Report;
use crate::mixed::{MixedError, MixedLoad, MixedPlan, MixedTarget};
use crate::operator::Operator;
use crate::target::Endpoints;

/// Chunks of which it is looked up which nodes have them, before and after.
const SAMPLE: usize = 500;
const POLL_EVERY: Duration = Duration::from_millis(20);
const STEP_TIME_MAX: Duration = Duration::from_secs(3600);
/// Nothing to move for this long: it is over, and not only not begun.
const QUIET: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum GrowthError {
    #[error(transparent)]
    Load(#[from] MixedError),
    #[error(transparent)]
    Name(#[from] InvalidId),
    #[error("the cluster cannot be asked")]
    Call(#[from] CallError),
    #[error("the load generator cannot start its runtime")]
    Runtime(#[source] std::io::Error),
    #[error("{} cannot be started", .path.display())]
    Spawn { path: PathBuf, source: std::io::Error },
    #[error("the step {0:?} is done to the node that the step add added; it must come first")]
    NoNode(Step),
    #[error("site {0:?} is not in the map")]
    NoSite(String),
    #[error("the started node ended with {status}; see {log}", log = .log.display())]
    Ended { status: std::process::ExitStatus, log: PathBuf },
    #[error("{what}: not within {STEP_TIME_MAX:?}")]
    TooLong { what: String },
}

/// What is done to the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// A node joins.
    Add,
    /// The node that joined is killed (SIGKILL) and started again after a while.
    Kill,
    /// The node that joined is drained, and leaves.
    Drain,
}

pub struct GrowthPlan {
    pub site: String,
    pub steps: Vec<Step>,
    pub dozo: PathBuf,
    pub secret_file: PathBuf,
    /// Where the new node keeps its store, its log and what it says.
    pub data_dir: PathBuf,
    pub node_size: String,
    /// Part of the closed loop's rate that users ask for.
    pub share: f64,
    pub calibration: Duration,
    /// Length of the phases before and after each step, and of the time that a killed node is away.
    pub phase: Duration,
    pub load: MixedPlan,
}

/// How one step went. Times are in seconds from its beginning.
#[derive(Debug, Default, Serialize)]
pub struct StepResult {
    /// Until the map has it.
    pub in_map_s: Option<f64>,
    /// Until the new node has a first chunk.
    pub first_write_s: Option<f64>,
    /// Until the killed node serves its shard again, from its start.
    pub serves_again_s: Option<f64>,
    /// Until nothing is left to move.
    pub settled_s: f64,
    /// Of the copies of a sample of the contents that never change: how many got to a node that had none before.
    pub moved_share: f64,
    /// What has to move at least: the new node's part, or the drained node's.
    pub least_share: f64,
}

#[derive(Debug, Serialize)]
pub struct GrowthReport {
    pub nodes_before: usize,
    pub rate_per_s: f64,
    pub steps: Vec<(Step, StepResult)>,
    /// Phases are named after the steps: `before add`, `add`, `after add`.
    pub load: Report,
}

/// A storage node that this process started.
struct Node {
    child: Child,
    command: Vec<String>,
    http: String,
    admin: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Gone already is as good.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

struct Growth {
    runtime: tokio::runtime::Runtime,
    plan: GrowthPlan,
    endpoints: Endpoints,
    site: SiteId,
    operator: Operator,
    load: MixedLoad,
    node: Option<Node>,
    sample: Vec<ChunkHash>,
}

/// Goes through the steps; `say` is told what is going on. Blocks: not to be called from a task.
pub fn run(plan: GrowthPlan, endpoints: Endpoints, say: impl Fn(&str)) -> Result<GrowthReport, GrowthError> {
    let target = MixedTarget::of(&endpoints, &plan.site, &[])?;
    say(&format!("preparing {} objects", plan.load.stable));
    let load = MixedLoad::start(&target, plan.load.clone())?;
    let rate_per_s = load.requests_per_s(plan.calibration) * plan.share;
    if rate_per_s > 0.0 {
        load.set_rate(rate_per_s)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let mut growth = Growth {
        runtime: runtime.map_err(GrowthError::Runtime)?,
        site: SiteId::new(&plan.site)?,
        operator: Operator::new(&endpoints.admin_token),
        sample: sample(&plan.load),
        node: None,
        plan,
        endpoints,
        load,
    };
    let nodes_before = growth.site_entry()?.nodes.iter().filter(|node| node.weight > 0).count();
    let mut steps = Vec::new();
    for step in growth.plan.steps.clone() {
        let name = format!("{step:?}").to_lowercase();
        growth.rest(&format!("before {name}"));
        say(&format!("{name}, at {rate_per_s:.0} requests a second"));
        growth.load.mark(&name);
        let result = match step {
            Step::Add => growth.add()?,
            Step::Kill => growth.kill()?,
            Step::Drain => growth.drain()?,
        };
        steps.push((step, result));
        growth.rest(&format!("after {name}"));
    }
    say("reading everything back, comparing deliveries with bookings");
    let Growth { load, node, .. } = growth;
    // The node has what was last written to it until all is read back.
    let load = load.stop()?;
    drop(node);
    Ok(GrowthReport { nodes_before, rate_per_s, steps, load })
}

impl Growth {
    fn rest(&self, phase: &str) {
        self.load.mark(phase);
        std::thread::sleep(self.plan.phase);
    }

    fn add(&mut self) -> Result<StepResult, GrowthError> {
        let before = self.holders()?;
        let start = Instant::now();
        let name = format!("b{}", std::process::id());
        let node = self.spawn_new(&name)?;
        let admin = node.admin.clone();
        self.node = Some(node);
        let in_map = self.await_that("the node is in the map", |growth| {
            Ok(growth.site_entry()?.nodes.iter().any(|node| node.id.name() == name && node.takes_writes()))
        })?;
        let in_map_s = in_map.duration_since(start).as_secs_f64();
        let written = self.await_that("the node is written to", |growth| {
            Ok(growth.status(&admin).is_ok_and(|status| status.chunks > 0))
        })?;
        let settled = self.await_settled()?;
        let after = self.holders()?;
        let nodes = self.site_entry()?.nodes.iter().filter(|node| node.weight > 0).count();
        Ok(StepResult {
            in_map_s: Some(in_map_s),
            first_write_s: Some(written.duration_since(start).as_secs_f64()),
            serves_again_s: None,
            settled_s: settled.duration_since(start).as_secs_f64(),
            moved_share: moved_share(&before, &after),
            least_share: 1.0 / nodes as f64,
        })
    }

    fn kill(&mut self) -> Result<StepResult, GrowthError> {
        let before = self.holders()?;
        let mut node = self.node.take().ok_or(GrowthError::NoNode(Step::Kill))?;
        let start = Instant::now();
        let spawn_error = |source| GrowthError::Spawn { path: self.plan.dozo.clone(), source };
        node.child.kill().and_then(|()| node.child.wait()).map_err(spawn_error)?;
        std::thread::sleep(self.plan.phase);
        let restarted = Instant::now();
        node.child = self.start(&node.command)?;
        let id = self.id_at(&node.http)?;
        self.node = Some(node);
        let back = self.await_that("the node serves its shard again", |growth| {
            let site = growth.site_entry()?;
            Ok(site.nodes.iter().any(|node| node.id.as_str() == id && node.shown_state(&site) == "active"))
        })?;
        let settled = self.await_settled()?;
        let after = self.holders()?;
        Ok(StepResult {
            serves_again_s: Some(back.duration_since(restarted).as_secs_f64()),
            settled_s: settled.duration_since(start).as_secs_f64(),
            moved_share: moved_share(&before, &after),
            ..StepResult::default()
        })
    }

    fn drain(&mut self) -> Result<StepResult, GrowthError> {
        let before = self.holders()?;
        let node = self.node.take().ok_or(GrowthError::NoNode(Step::Drain))?;
        let id = self.id_at(&node.http)?;
        let had = before.iter().filter(|holders| holders.contains(&node.http)).count();
        let copies: usize = before.iter().map(Vec::len).sum();
        let start = Instant::now();
        let act = |growth: &Self, action: NodeAction| {
            let url = format!("{}/v1/nodes/{id}/{}", growth.endpoints.search.http, action.as_str());
            growth.runtime.block_on(growth.operator.post(&url, &serde_json::Value::Null))
        };
        act(self, NodeAction::Drain)?;
        let settled = self.await_that("the drained node has nothing left", |growth| {
            match act(growth, NodeAction::Remove) {
                Ok(()) => Ok(true),
                Err(error) if error.code() == Some(ErrorCode::Conflict) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })?;
        let after = self.holders()?;
        drop(node);
        Ok(StepResult {
            settled_s: settled.duration_since(start).as_secs_f64(),
            moved_share: moved_share(&before, &after),
            least_share: had as f64 / copies.max(1) as f64,
            ..StepResult::default()
        })
    }

    fn spawn_new(&self, name: &str) -> Result<Node, GrowthError> {
        let spawn_error = |source| GrowthError::Spawn { path: self.plan.dozo.clone(), source };
        let data_dir = self.plan.data_dir.join(name);
        std::fs::create_dir_all(&data_dir).map_err(spawn_error)?;
        let (listen, admin) = free_addresses().map_err(spawn_error)?;
        let store = format!("file:{}?size={}", data_dir.join("store").display(), self.plan.node_size);
        let flags = [
            ("--name", name.to_owned()),
            ("--site", self.plan.site.clone()),
            ("--search", self.endpoints.search.http.clone()),
            ("--store", store),
            ("--data-dir", data_dir.display().to_string()),
            ("--listen", listen.clone()),
            ("--admin", admin.clone()),
            ("--cluster-secret-file", self.plan.secret_file.display().to_string()),
        ];
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let command: Vec<String> = ["storage-node".to_owned()].into_iter().chain(flags).collect();
        let child = self.start(&command)?;
        Ok(Node { child, command, http: format!("http://{listen}"), admin: format!("http://{admin}") })
    }

    fn log(&self) -> PathBuf {
        self.plan.data_dir.join("node.log")
    }

    fn start(&self, command: &[String]) -> Result<Child, GrowthError> {
        let start = || {
            let log = File::options().create(true).append(true).open(self.log())?;
            Command::new(&self.plan.dozo)
                .args(command)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
        };
        start().map_err(|source| GrowthError::Spawn { path: self.plan.dozo.clone(), source })
    }

    fn site_entry(&self) -> Result<SiteEntry, GrowthError> {
        let url = format!("{}/v1/map?after=0&wait_ms=0", self.endpoints.search.http);
        let map: ClusterMap = self.runtime.block_on(self.operator.get(&url))?;
        map.site(&self.site).cloned().ok_or_else(|| GrowthError::NoSite(self.site.to_string()))
    }

    fn id_at(&self, http: &str) -> Result<String, GrowthError> {
        let site = self.site_entry()?;
        let node = site.nodes.iter().find(|node| node.http == http);
        Ok(node.map_or_else(String::new, |node| node.id.to_string()))
    }

    fn status(&self, admin: &str) -> Result<NodeStatus, CallError> {
        self.runtime.block_on(self.operator.get(&format!("{admin}/v1/node")))
    }

    /// When the last moves ended; it takes a moment longer to be sure of it.
    fn await_settled(&mut self) -> Result<Instant, GrowthError> {
        let mut quiet_since: Option<Instant> = None;
        self.await_that("nothing is left to move", |growth| {
            let site = growth.site_entry()?;
            let mut alive = site.nodes.iter().filter(|node| node.alive);
            let is_quiet = |node: &common::cluster::NodeEntry| {
                growth.status(&node.admin).is_ok_and(|status| status.moves_pending_bytes == 0)
            };
            if alive.all(is_quiet) {
                let since = *quiet_since.get_or_insert_with(Instant::now);
                return Ok(since.elapsed() >= QUIET);
            }
            quiet_since = None;
            Ok(false)
        })?;
        Ok(quiet_since.unwrap_or_else(Instant::now))
    }

    fn await_that(
        &mut self,
        what: &str,
        mut check: impl FnMut(&Self) -> Result<bool, GrowthError>,
    ) -> Result<Instant, GrowthError> {
        let give_up = Instant::now() + STEP_TIME_MAX;
        loop {
            if check(self)? {
                return Ok(Instant::now());
            }
            if let Some(node) = &mut self.node
                && let Ok(Some(status)) = node.child.try_wait()
            {
                return Err(GrowthError::Ended { status, log: self.log() });
            }
            if Instant::now() >= give_up {
                return Err(GrowthError::TooLong { what: what.to_owned() });
            }
            std::thread::sleep(POLL_EVERY);
        }
    }

    /// For each chunk of the sample the addresses of the nodes that have it.
    fn holders(&self) -> Result<Vec<Vec<String>>, GrowthError> {
        let site = self.site_entry()?;
        let nodes: Vec<&String> =
            site.nodes.iter().filter(|node| node.alive).map(|node| &node.http).collect();
        self.runtime.block_on(async {
            let mut holders = Vec::new();
            for hash in &self.sample {
                let mut having = Vec::new();
                for node in &nodes {
                    if self.operator.has_chunk(node, hash).await? {
                        having.push((*node).clone());
                    }
                }
                holders.push(having);
            }
            Ok(holders)
        })
    }
}

/// Copies at nodes that had none before, of all copies.
fn moved_share(before: &[Vec<String>], after: &[Vec<String>]) -> f64 {
    let new =
        |(old, new): (&Vec<String>, &Vec<String>)| new.iter().filter(|node| !old.contains(node)).count();
    let moved: usize = before.iter().zip(after).map(new).sum();
    let copies: usize = after.iter().map(Vec::len).sum();
    moved as f64 / copies.max(1) as f64
}

/// Chunks of the contents that are put once.
fn sample(plan: &MixedPlan) -> Vec<ChunkHash> {
    let mut chunks = Vec::new();
    for id in 0..plan.stable {
        let content = plan.stable_content(id);
        let mut chunker = Chunker::new();
        chunker.push(&content.bytes(0, content.len as usize));
        while let Some(chunk) = chunker.next_chunk() {
            chunks.push(ChunkHash::of(&chunk));
        }
        chunks.extend(chunker.finish().iter().map(|chunk| ChunkHash::of(chunk)));
        if chunks.len() >= SAMPLE {
            break;
        }
    }
    chunks
}

/// Two addresses on this machine that nobody listens on.
fn free_addresses() -> std::io::Result<(String, String)> {
    let (first, second) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((first.local_addr()?.to_string(), second.local_addr()?.to_string()))
}

impl GrowthReport {
    /// The tables for a terminal.
    pub fn to_text(&self) -> String {
        let mut lines = vec![
            format!("{} nodes before, {:.0} requests a second", self.nodes_before, self.rate_per_s),
            format!(
                "{:<6} {:>9} {:>12} {:>13} {:>9} {:>8} {:>8}",
                "step", "in map", "first write", "serves again", "settled", "moved", "least"
            ),
        ];
        let seconds = |s: Option<f64>| s.map_or_else(|| "-".to_owned(), |s| format!("{s:.2} s"));
        for (step, result) in &self.steps {
            lines.push(format!(
                "{:<6} {:>9} {:>12} {:>13} {:>9} {:>7.1}% {:>7.1}%",
                format!("{step:?}").to_lowercase(),
                seconds(result.in_map_s),
                seconds(result.first_write_s),
                seconds(result.serves_again_s),
                seconds(Some(result.settled_s)),
                100.0 * result.moved_share,
                100.0 * result.least_share
            ));
        }
        lines.push(String::new());
        lines.push(self.load.to_text());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_copies_at_other_nodes_have_moved() {
        let holders = |lists: &[&[&str]]| -> Vec<Vec<String>> {
            lists.iter().map(|list| list.iter().map(|node| (*node).to_owned()).collect()).collect()
        };
        let before = holders(&[&["a", "b"], &["a", "c"]]);
        assert_eq!(moved_share(&before, &before), 0.0);
        assert_eq!(moved_share(&before, &holders(&[&["a", "b"], &["d", "c"]])), 0.25);
        assert_eq!(moved_share(&before, &holders(&[&["d", "e"], &["d", "e"]])), 1.0);
    }
}
