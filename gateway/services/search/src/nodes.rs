//! What the operator wants of a node: to be drained, to stay, to leave, to be given up.

use std::time::Duration;

use common::api::node::NodeStatus;
use common::auth::Role;
use common::client::ServerClient;
use common::cluster::{NodeState, SiteEntry};
use common::error::{ErrorCode, chain};
use common::id::{NodeId, SiteId};
use common::placement::{Slot, preferred_owner};

use crate::db::Connection;
use crate::error::Failure;
use crate::servers::{self, NodeRow, ServerKey, ServerRow, state_text};
use crate::shards::{self, ShardRow};
use crate::{map, slots};

const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// Lets everything move to the other nodes. False if it is under way already.
pub async fn drain(conn: &mut Connection, node: &NodeId) -> Result<bool, Failure> {
    match present(conn, node).await?.1.state {
        NodeState::Draining => return Ok(false),
        NodeState::Removed => return Err(conflict(format!("node {node} was removed"))),
        NodeState::Active => {}
    }
    if !has_other_active(conn, node).await? {
        let site = node.site();
        let message = format!(
            "node {node} is the last active node of site {site}, so what it has could go nowhere; \
             add a node first"
        );
        return Err(conflict(message));
    }
    set_state(conn, node, NodeState::Draining).await?;
    Ok(true)
}

/// Lets a draining node take its share again. False if it does.
pub async fn undrain(conn: &mut Connection, node: &NodeId) -> Result<bool, Failure> {
    match present(conn, node).await?.1.state {
        NodeState::Active => return Ok(false),
        NodeState::Removed => return Err(conflict(format!("node {node} was removed"))),
        NodeState::Draining => {}
    }
    set_state(conn, node, NodeState::Active).await?;
    Ok(true)
}

/// Checks that search knows of nothing that a node still has; answers where to ask the node itself, or `None`
/// if it has left already.
pub async fn check_leaves(conn: &mut Connection, node: &NodeId) -> Result<Option<String>, Failure> {
    let (row, own) = present(conn, node).await?;
    match own.state {
        NodeState::Removed => return Ok(None),
        NodeState::Active if !row.alive => return Err(down(node)),
        NodeState::Active => return Err(conflict(format!("node {node} is active; drain it first"))),
        NodeState::Draining => {}
    }
    let slots = slots::count(conn, node).await?;
    if slots > 0 {
        return Err(conflict(format!("node {node} still has {slots} slots; wait until they have moved")));
    }
    for shard in shards::of_site(conn, node.site()).await? {
        let is_own = shard.node == node.name();
        if is_own != (shard.primary == node.name()) {
            let (site, ShardRow { node: of, primary, .. }) = (node.site(), &shard);
            let message = format!(
                "{site}.{of}'s shard is served by {site}.{primary}; wait until that hands it to {site}.{of}"
            );
            return Err(conflict(message));
        }
    }
    if !row.alive {
        return Err(down(node));
    }
    Ok(Some(row.admin))
}

/// Asks a node whether it is empty.
pub async fn check_empty(server: &ServerClient, node: &NodeId, admin: &str) -> Result<(), Failure> {
    let own: NodeStatus =
        server.get_json(admin, Role::StorageNode, "/v1/node", ANSWER_TIME_MAX).await.map_err(|error| {
            let message = format!("node {node} does not say whether it is empty: {}", chain(&error));
            Failure::refused(ErrorCode::NodeUnavailable, message)
        })?;
    let left = [
        (own.chunks, "chunks"),
        (own.moves_pending_bytes, "bytes to move"),
        (own.unsettled, "records and announcements to settle"),
    ];
    let left: Vec<String> = left
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(conflict(format!("node {node} still has {}; wait until it has none", left.join(", "))))
}

/// Lets a node leave that said that it is empty. False if it has left already.
pub async fn remove(conn: &mut Connection, node: &NodeId) -> Result<bool, Failure> {
    if check_leaves(conn, node).await?.is_none() {
        return Ok(false);
    }
    set_state(conn, node, NodeState::Removed).await?;
    shards::drop_followers(conn, node).await?;
    shards::settle(conn, node.site()).await?;
    Ok(true)
}

/// Gives a node up that is down. Slots whose rows it alone had go to the other nodes, without their rows.
/// False if it was removed before.
pub async fn remove_lost(conn: &mut Connection, node: &NodeId) -> Result<bool, Failure> {
    let (row, own) = present(conn, node).await?;
    if own.state == NodeState::Removed {
        return Ok(false);
    }
    if row.alive {
        let message = format!("node {node} is alive; drain it, then remove it without --lost");
        return Err(conflict(message));
    }
    if !has_other_active(conn, node).await? {
        let message = format!(
            "no other node of site {} is active, so nobody could take its slots; add a node first",
            node.site()
        );
        return Err(conflict(message));
    }
    set_state(conn, node, NodeState::Removed).await?;
    shards::drop_everywhere(conn, node).await?;
    shards::settle(conn, node.site()).await?;
    let mut lost = Vec::new();
    let all = shards::of_site(conn, node.site()).await?;
    for shard in all.into_iter().filter(|shard| shard.primary == node.name()) {
        if !is_left_to_its_node(conn, node, &shard).await? {
            lost.push(shard);
        }
    }
    give_slots_away(conn, node, &lost).await?;
    Ok(true)
}

/// A shard that the lost node served: a follower that is away has its rows, or its own node older ones, which are better
/// than none.
async fn is_left_to_its_node(
    conn: &mut Connection,
    lost: &NodeId,
    shard: &ShardRow,
) -> Result<bool, Failure> {
    // One that is away has everything.
    if let Some(follower) = shard.followers.iter().find(|follower| *follower != lost.name()) {
        shards::serve_by(conn, lost.site(), shard, follower).await?;
        return Ok(true);
    }
    let key = ServerKey { name: shard.node.clone(), ..ServerKey::of_node(lost) };
    if servers::find(conn, &key).await?.is_none_or(|row| row.is_removed()) {
        return Ok(false);
    }
    tracing::warn!(site = lost.site(), shard = shard.node, %lost, "its own node goes on with older rows");
    shards::serve_by(conn, lost.site(), shard, &shard.node).await?;
    Ok(true)
}

async fn give_slots_away(conn: &mut Connection, node: &NodeId, lost: &[ShardRow]) -> Result<(), Failure> {
    let site = SiteId::new(node.site())?;
    let view = map::load(conn).await?;
    let Some(entry) = view.map.site(&site) else { return Ok(()) };
    let given = slots_of(entry, lost);
    if given.is_empty() {
        return Ok(());
    }
    tracing::warn!(%node, slots = given.len(), "slots given to other nodes without their rows");
    slots::give_away(conn, &site, &given).await
}

/// The slots of shards, each with the node that is to have it now.
fn slots_of(site: &SiteEntry, shards: &[ShardRow]) -> Vec<(Slot, NodeId)> {
    let is_lost = |owner: &NodeId| shards.iter().any(|shard| shard.node == owner.name());
    (0..)
        .zip(&site.slot_owners)
        .map(|(slot, owner)| (Slot(slot), &site.nodes[usize::from(*owner)].id))
        .filter(|(_, owner)| is_lost(owner))
        .filter_map(|(slot, _)| Some((slot, preferred_owner(site, slot)?.id.clone())))
        .collect()
}

async fn present(conn: &mut Connection, node: &NodeId) -> Result<(ServerRow, NodeRow), Failure> {
    let row = servers::find(conn, &ServerKey::of_node(node)).await?;
    let row = row.ok_or_else(|| servers::no_such_node(node))?;
    let own = row.node.clone().ok_or_else(|| servers::no_such_node(node))?;
    Ok((row, own))
}

async fn has_other_active(conn: &mut Connection, node: &NodeId) -> Result<bool, Failure> {
    let others: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM servers
         WHERE role = 'storage-node' AND site = $1 AND name <> $2 AND state = 'active'",
    )
    .bind(node.site())
    .bind(node.name())
    .fetch_one(conn)
    .await?;
    Ok(others > 0)
}

/// A removed node is not alive either: its heartbeats are refused.
async fn set_state(conn: &mut Connection, node: &NodeId, state: NodeState) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE servers SET state = $1, alive = alive * $2
         WHERE role = 'storage-node' AND site = $3 AND name = $4",
    )
    .bind(state_text(state))
    .bind(i64::from(state != NodeState::Removed))
    .bind(node.site())
    .bind(node.name())
    .execute(conn)
    .await?;
    Ok(())
}

fn down(node: &NodeId) -> Failure {
    conflict(format!(
        "node {node} is down, so it cannot say that it is empty; start it, or give it up with \
         `dozo node remove {node} --lost`"
    ))
}

fn conflict(message: String) -> Failure {
    Failure::refused(ErrorCode::Conflict, message)
}
