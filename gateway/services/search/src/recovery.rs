//! Taking the map over from the storage nodes.
//!
//! Each node keeps its newest map on disk. One that registers with a map that search's own does not follow from shows that
//! search's database was lost, or was put back as it once was, and that the nodes know better who has which slot and who
//! serves which shard. Search then asks all nodes, and goes on from the newest of their maps. Until then nothing happens to
//! anybody's rows: nodes and gateways do not take a map that does not follow from theirs.
//!
//! - Whoever acts on a map has it on disk, so the newest map of all nodes says all that counts. One that counts as alive and
//!   does not say which it has is waited for, as long as a lease.
//! - A map is taken over only if it goes back to this database, or if this database has no node yet. Else somebody mixed
//!   up two clusters, or went on without a node that was needed: that is refused, and the operator decides.
//!
//! Clients, buckets and cards are on no node: they come from a backup, or are made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::api::node::NodeClient;
use common::api::search::Registration;
use common::cluster::{ClusterMap, NodeState, SiteEntry};
use common::error::{ErrorCode, chain};
use common::id::NodeId;
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::db::Connection;
use crate::error::{Failure, integer};
use crate::server::App;
use crate::servers::{self, NodeRow, ServerKey, ServerRow};
use crate::{map, shards, slots};

/// How long a node may take to say which map it has.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// How far it is.
pub struct Recovery {
    started: Instant,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Since when a map is to be taken over, if one is.
    since: Option<Instant>,
    /// Whether one was since the start.
    is_done: bool,
}

impl Recovery {
    /// At the start of search.
    pub fn new() -> Self {
        Self { started: Instant::now(), state: tokio::sync::Mutex::default() }
    }
}

/// Takes the nodes' map over, if a node registers with one that search's does not follow from.
pub async fn catch_up(app: &App, registration: &Registration) -> Result<(), Failure> {
    let (Some(facts), Some(site)) = (&registration.node, &registration.site) else { return Ok(()) };
    let mut state = app.recovery.state.lock().await;
    let own = app.view.borrow().map.clone();
    if own.follows(&facts.map) {
        return Ok(());
    }
    let begin = *state.since.get_or_insert_with(Instant::now);
    let node = NodeId::of(site, &registration.name);
    // Until it heard of the nodes, search handed out maps of its own that they know better than.
    let was_premature = !state.is_done && begin.duration_since(app.recovery.started) < app.lease;
    let question = Question {
        node: &node,
        http: &registration.http,
        waited_enough: begin.elapsed() >= app.lease,
        ignored_run: was_premature.then(|| app.run()),
    };
    let newest = match newest_of_all(app, &question).await {
        Ok(newest) => newest,
        Err(failure) => {
            tracing::warn!(%node, kept = facts.map.epoch.0, own = own.epoch.0, error = chain(&failure),
                "a node knows of changes that search does not");
            app.health.note(
                "map",
                format!("map {} of {node} is not taken over: {}", facts.map.epoch.0, chain(&failure)),
            );
            return Err(failure);
        }
    };
    check_kinship(&own, &newest, &node)?;
    let epoch = take_over(app, &own, &newest).await?;
    *state = State { since: None, is_done: true };
    let what = format!("map {} of {node} was taken over, as {epoch}", newest.epoch.0);
    tracing::warn!(
        "search's database was older than its nodes: {what}; clients, buckets and cards made since are missing"
    );
    app.health.note("map", what);
    Ok(())
}

struct Question<'a> {
    /// The node that knows better.
    node: &'a NodeId,
    http: &'a str,
    /// Whether nodes that do not answer count as lost by now.
    waited_enough: bool,
    ignored_run: Option<String>,
}

/// The newest map that nodes have.
async fn newest_of_all(app: &App, question: &Question<'_>) -> Result<ClusterMap, Failure> {
    let Question { node: first, http, waited_enough, ignored_run } = question;
    let silent = |node: &str| {
        let message =
            format!("{node} does not say which map it has; start it, or wait until it counts as lost");
        Failure::refused(ErrorCode::NodeUnavailable, message)
    };
    let mut newest = ask(app, http).await.ok_or_else(|| silent(first.as_str()))?;
    let (mut asked, mut mute) = (BTreeSet::from([(*first).clone()]), BTreeSet::new());
    loop {
        let unasked: BTreeMap<NodeId, String> = nodes_of(&newest)
            .filter(|(_, node)| node.state != NodeState::Removed && !asked.contains(&node.id))
            .map(|(_, node)| (node.id.clone(), node.http.clone()))
            .collect();
        if unasked.is_empty() {
            break;
        }
        let mut answers = JoinSet::new();
        for (node, http) in unasked {
            asked.insert(node.clone());
            let app = app.clone();
            answers.spawn(async move { (node, ask(&app, &http).await) });
        }
        while let Some(answer) = answers.join_next().await {
            match answer {
                Ok((node, None)) => drop(mute.insert(node)),
                Ok((_, Some(map))) if ignored_run.is_some() && map.id().run == *ignored_run => {}
                Ok((node, Some(map))) => newest = newer_of(newest, map, first, &node)?,
                Err(panicked) => return Err(Failure::from(common::error::ApiError::internal(&panicked))),
            }
        }
    }
    let missing = nodes_of(&newest).find(|(_, node)| node.alive && mute.contains(&node.id));
    match missing {
        Some((_, node)) if !*waited_enough => Err(silent(node.id.as_str())),
        _ => Ok(newest),
    }
}

fn nodes_of(map: &ClusterMap) -> impl Iterator<Item = (&SiteEntry, &common::cluster::NodeEntry)> {
    map.sites.iter().flat_map(|site| site.nodes.iter().map(move |node| (site, node)))
}

async fn ask(app: &App, http: &str) -> Option<ClusterMap> {
    let client = NodeClient::new(app.server.clone(), http);
    let answer = tokio::time::timeout(ANSWER_TIME_MAX, client.map()).await.ok()?;
    answer
        .inspect_err(|error| tracing::debug!(http, error = chain(error), "a node does not tell its map"))
        .ok()
}

fn newer_of(
    one: ClusterMap,
    other: ClusterMap,
    first: &NodeId,
    node: &NodeId,
) -> Result<ClusterMap, Failure> {
    if other.follows(&one.id()) {
        Ok(other)
    } else if one.follows(&other.id()) {
        Ok(one)
    } else {
        let message = format!(
            "storage nodes {first} and {node} keep maps {} and {} that do not follow from each other; stop the one \
             whose changes are to be given up, and start it again with an empty store",
            one.epoch.0, other.epoch.0
        );
        Err(Failure::refused(ErrorCode::Conflict, message))
    }
}

/// Refuses what does not belong together.
fn check_kinship(own: &ClusterMap, newest: &ClusterMap, node: &NodeId) -> Result<(), Failure> {
    let is_shared = |run: &str| own.runs.iter().any(|known| known.id == run);
    let is_kin = newest.runs.iter().any(|run| is_shared(&run.id)) || nodes_of(own).next().is_none();
    if is_kin && !own.follows(&newest.id()) {
        return Ok(());
    }
    let message = format!(
        "storage node {node} keeps a map that search and its nodes know nothing of: it belongs to another cluster, or \
         counted as lost when search's database was put back; start it where it belongs, or with an empty store"
    );
    Err(Failure::refused(ErrorCode::Conflict, message))
}

/// Goes on from a map of the nodes; answers the epoch of the map that is served then.
async fn take_over(app: &App, own: &ClusterMap, newest: &ClusterMap) -> Result<u64, Failure> {
    // Fences count slot moves; the clock's milliseconds are more than all that were ever given.
    let fence = integer(app.clock.now().0, "the time")?;
    let mut tx = app.db.write().await?;
    let known = servers::all(&mut tx).await?;
    forget(&mut tx).await?;
    for site in &newest.sites {
        servers::put_site(&mut tx, site.id.as_str(), site.zone.as_deref()).await?;
        servers::set_replicas(&mut tx, &site.id, site.replicas_wanted).await?;
        for row in rows_of(site, &known) {
            servers::put_row(&mut tx, &row).await?;
            if row.alive {
                app.leases.renew(row.key);
            }
        }
        shards::put_all(&mut tx, site).await?;
        slots::put_all(&mut tx, site, fence).await?;
    }
    slots::raise_fence(&mut tx, fence).await?;
    map::go_on_from(&mut tx, own, newest).await?;
    // Maps that were made meanwhile are of a run that ends here.
    app.begin_run();
    Ok(app.commit_map(tx).await?.epoch().0)
}

/// Forgets what maps tell of sites. Other servers stay.
async fn forget(conn: &mut Connection) -> Result<(), Failure> {
    let servers = "servers WHERE role IN ('gateway', 'storage-node')";
    for rows in ["shard_followers", "shards", "slots", servers, "sites"] {
        sqlx::query(AssertSqlSafe(format!("DELETE FROM {rows}"))).execute(&mut *conn).await?;
    }
    Ok(())
}

/// The rows of a site's servers, with what is known beside the map.
fn rows_of(site: &SiteEntry, known: &[ServerRow]) -> Vec<ServerRow> {
    let key = |role, name: &str| ServerKey { role, site: site.id.to_string(), name: name.to_owned() };
    let gateways = site.gateways.iter().map(|gateway| ServerRow {
        key: key(common::auth::Role::Gateway, gateway.name.as_str()),
        position: 0,
        http: gateway.http.clone(),
        s3: gateway.s3.clone(),
        admin: gateway.admin.clone(),
        alive: gateway.alive,
        node: None,
    });
    let nodes = site.nodes.iter().map(|node| {
        let key = ServerKey::of_node(&node.id);
        let known = known.iter().find(|row| row.key == key).and_then(|row| row.node.clone());
        // The node itself tells the rest when it registers.
        let (log_id, record_epoch) =
            known.map_or_else(Default::default, |row| (row.log_id, row.record_epoch));
        let capacity_bytes = i64::try_from(node.capacity_bytes).unwrap_or(i64::MAX);
        let row = NodeRow { state: node.state, capacity_bytes, log_id, record_epoch };
        ServerRow {
            key,
            position: 0,
            http: node.http.clone(),
            s3: None,
            admin: node.admin.clone(),
            alive: node.alive,
            node: Some(row),
        }
    });
    gateways.chain(nodes).collect()
}
