//! Servers that stop in order: the map leads past them before they are gone, and followers serve what a node served.

use common::api::search::Leave;
use common::auth::Role;
use common::cluster::{ClusterMap, SiteEntry};
use common::id::{NodeId, SiteId};

use crate::error::Failure;
use crate::server::{App, mark_down};
use crate::servers::ServerKey;

/// Leads others past a server, until it registers again. False, and nothing changes, for a node that alone serves
/// something.
pub async fn leave(app: &App, request: &Leave) -> Result<bool, Failure> {
    let site = request.site.as_ref().map_or_else(String::new, ToString::to_string);
    let key = ServerKey { role: request.role, site, name: request.name.to_string() };
    if let (Role::StorageNode, Some(site)) = (request.role, &request.site) {
        let node = NodeId::of(site, &request.name);
        if !can_be_stood_in_for(&app.view.borrow().map, site, &node) {
            tracing::info!(%node, "a node stops that nobody can stand in for");
            return Ok(false);
        }
    }
    tracing::info!(role = %key.role, site = key.site, name = key.name, "leaves to stop");
    app.leases.forget(&key);
    if let Err(failure) = mark_down(app, std::slice::from_ref(&key)).await {
        app.leases.renew(key);
        return Err(failure);
    }
    Ok(true)
}

/// Whether another node that is there follows each shard that this one serves.
fn can_be_stood_in_for(map: &ClusterMap, site: &SiteId, node: &NodeId) -> bool {
    let Some(entry) = map.site(site) else { return false };
    served_alone(entry, node).next().is_none()
        && entry.nodes.iter().any(|other| other.alive && other.id != *node)
}

/// Nodes whose shards this one serves while no other node that is there follows them.
pub fn served_alone<'a>(site: &'a SiteEntry, node: &'a NodeId) -> impl Iterator<Item = &'a NodeId> {
    let is_served = |index: Option<usize>| index.is_some_and(|index| site.nodes[index].id == *node);
    let is_there = |index: &u16| site.nodes.get(usize::from(*index)).is_some_and(|node| node.alive);
    let all = site.nodes.iter().filter(move |owner| is_served(site.primary_index(owner)));
    all.filter(move |owner| !owner.shard.followers.iter().any(is_there)).map(|owner| &owner.id)
}
