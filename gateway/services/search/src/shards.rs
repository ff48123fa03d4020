//! Who serves a node's shard, and who follows it.
//!
//! Two things hold after every change here: a follower of a living primary is alive, and a primary that is not
//! alive has no living follower, for that one would have been promoted. One that went down together with its
//! primary stays a follower: it has everything, and is promoted when it is the first to come back.
//! Whatever is no longer as it was when a primary last
//! looked has another term, so its change is refused.

use common::api::search::{FollowersChange, HandOver};
use common::cluster::{NodeState, SiteEntry};
use common::error::ErrorCode;
use common::id::{NodeId, SiteId};

use crate::db::Connection;
use crate::error::{Failure, integer, natural};
use crate::servers::{self, ServerKey, check_site};

/// A shard, its nodes by name in their site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRow {
    pub node: String,
    pub term: i64,
    pub primary: String,
    /// In the order of joining.
    pub followers: Vec<String>,
}

/// Makes the shard of a new node, which serves it itself.
pub async fn make(conn: &mut Connection, site: &str, node: &str) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO shards (site, node, term, primary_node) VALUES ($1, $2, 1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(site)
    .bind(node)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes the shards of a site's nodes as a map has them.
pub async fn put_all(conn: &mut Connection, site: &SiteEntry) -> Result<(), Failure> {
    let name = |index: u16| site.nodes.get(usize::from(index)).map_or("", |node| node.id.name());
    for node in &site.nodes {
        sqlx::query("INSERT INTO shards (site, node, term, primary_node) VALUES ($1, $2, $3, $4)")
            .bind(site.id.as_str())
            .bind(node.id.name())
            .bind(integer(node.shard.term, "a shard's term")?)
            .bind(name(node.shard.primary))
            .execute(&mut *conn)
            .await?;
        for (position, follower) in (1i64..).zip(&node.shard.followers) {
            sqlx::query(
                "INSERT INTO shard_followers (site, node, follower, position) VALUES ($1, $2, $3, $4)",
            )
            .bind(site.id.as_str())
            .bind(node.id.name())
            .bind(name(*follower))
            .bind(position)
            .execute(&mut *conn)
            .await?;
        }
    }
    Ok(())
}

pub async fn of_site(conn: &mut Connection, site: &str) -> Result<Vec<ShardRow>, Failure> {
    let rows: Vec<(String, i64, String)> =
        sqlx::query_as("SELECT node, term, primary_node FROM shards WHERE site = $1 ORDER BY node")
            .bind(site)
            .fetch_all(&mut *conn)
            .await?;
    let followers: Vec<(String, String)> =
        sqlx::query_as("SELECT node, follower FROM shard_followers WHERE site = $1 ORDER BY position")
            .bind(site)
            .fetch_all(conn)
            .await?;
    let row = |(node, term, primary): (String, i64, String)| {
        let of_shard = followers.iter().filter(|(shard, _)| *shard == node);
        let followers = of_shard.map(|(_, follower)| follower.clone()).collect();
        ShardRow { node, term, primary, followers }
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Makes the two things hold again after nodes of a site went down, were removed or came back: promotes the
/// first living follower of each shard that has no primary, and lets nobody follow who is not there while a
/// primary is.
pub async fn settle(conn: &mut Connection, site: &str) -> Result<(), Failure> {
    let alive: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM servers
         WHERE role = 'storage-node' AND site = $1 AND alive = 1 AND state <> 'removed'",
    )
    .bind(site)
    .fetch_all(&mut *conn)
    .await?;
    for shard in of_site(conn, site).await? {
        let (in_sync, gone): (Vec<_>, Vec<_>) = shard.followers.iter().partition(|name| alive.contains(name));
        let primary_is_there = alive.contains(&shard.primary);
        if primary_is_there || !in_sync.is_empty() {
            for follower in gone {
                drop_follower(conn, site, &shard.node, follower).await?;
            }
        }
        if primary_is_there {
            continue;
        }
        if let Some(next) = in_sync.first() {
            tracing::warn!(
                site,
                shard = shard.node,
                lost = shard.primary,
                primary = next,
                "follower promoted"
            );
            serve_by(conn, site, &shard, next).await?;
        }
    }
    Ok(())
}

/// A node lost all that it had: it follows no shard, and what it served goes to a follower, though that be away, or to
/// the shard's own node with the rows that it had. A shard of its own that nobody follows begins anew, in a new term, so
/// that older rows elsewhere are never taken for its own.
pub async fn forget_rows_of(conn: &mut Connection, site: &str, node: &str) -> Result<(), Failure> {
    for shard in of_site(conn, site).await? {
        drop_follower(conn, site, &shard.node, node).await?;
        if shard.primary != node {
            continue;
        }
        let key = ServerKey::of_node(&NodeId::new(&format!("{site}.{}", shard.node))?);
        let own_is_there = servers::find(conn, &key).await?.is_some_and(|row| !row.is_removed());
        let next = match shard.followers.iter().find(|follower| *follower != node) {
            Some(follower) => follower,
            None if own_is_there => &shard.node,
            None => &shard.primary,
        };
        tracing::warn!(
            site,
            shard = shard.node,
            lost = node,
            primary = next,
            "the rows of a primary are gone"
        );
        serve_by(conn, site, &shard, next).await?;
    }
    Ok(())
}

/// Makes a node the primary of a shard, in a new term; it is no follower any more.
pub async fn serve_by(
    conn: &mut Connection,
    site: &str,
    shard: &ShardRow,
    primary: &str,
) -> Result<(), Failure> {
    sqlx::query("UPDATE shards SET term = $1, primary_node = $2 WHERE site = $3 AND node = $4")
        .bind(shard.term + 1)
        .bind(primary)
        .bind(site)
        .bind(&shard.node)
        .execute(&mut *conn)
        .await?;
    drop_follower(conn, site, &shard.node, primary).await
}

/// Changes who follows. False if it is so already.
pub async fn change_followers(conn: &mut Connection, change: &FollowersChange) -> Result<bool, Failure> {
    let FollowersChange { site, shard, primary, term, add, remove } = change;
    for node in add.iter().chain(remove) {
        check_site(node, site)?;
    }
    let row = find(conn, site, shard).await?;
    check_primary(&row, site, primary, *term)?;
    // It would follow a primary that is given up already: nothing would ever promote it.
    if !add.is_empty() {
        check_alive(conn, primary).await?;
    }
    let mut changed = false;
    for node in remove.iter().filter(|node| row.followers.iter().any(|f| f == node.name())) {
        drop_follower(conn, site.as_str(), shard.name(), node.name()).await?;
        changed = true;
    }
    for node in add {
        if node == primary {
            let message = format!("node {node} is the primary of {shard}'s shard, so it does not follow it");
            return Err(Failure::refused(ErrorCode::InvalidRequest, message));
        }
        check_alive(conn, node).await?;
        changed |= add_follower(conn, site, shard, node).await?;
    }
    Ok(changed)
}

/// Makes a follower the primary, and the primary the last of the followers. False if it was done before.
pub async fn hand_over(conn: &mut Connection, request: &HandOver) -> Result<bool, Failure> {
    let HandOver { site, shard, primary, term, to } = request;
    check_site(to, site)?;
    let row = find(conn, site, shard).await?;
    if row.primary == to.name() && natural(row.term) == term + 1 {
        return Ok(false);
    }
    check_primary(&row, site, primary, *term)?;
    check_alive(conn, to).await?;
    if !row.followers.iter().any(|follower| follower == to.name()) {
        let message = format!("node {to} does not follow {shard}'s shard");
        return Err(Failure::refused(ErrorCode::Conflict, message));
    }
    serve_by(conn, site.as_str(), &row, to.name()).await?;
    add_follower(conn, site, shard, primary).await?;
    Ok(true)
}

/// Lets a node that is given up follow nothing.
pub async fn drop_everywhere(conn: &mut Connection, node: &NodeId) -> Result<(), Failure> {
    sqlx::query("DELETE FROM shard_followers WHERE site = $1 AND follower = $2")
        .bind(node.site())
        .bind(node.name())
        .execute(conn)
        .await?;
    Ok(())
}

/// Lets nobody follow a shard in which nothing is left.
pub async fn drop_followers(conn: &mut Connection, shard: &NodeId) -> Result<(), Failure> {
    sqlx::query("DELETE FROM shard_followers WHERE site = $1 AND node = $2")
        .bind(shard.site())
        .bind(shard.name())
        .execute(conn)
        .await?;
    Ok(())
}

async fn find(conn: &mut Connection, site: &SiteId, shard: &NodeId) -> Result<ShardRow, Failure> {
    check_site(shard, site)?;
    let rows = of_site(conn, site.as_str()).await?;
    rows.into_iter().find(|row| row.node == shard.name()).ok_or_else(|| servers::no_such_node(shard))
}

fn check_primary(row: &ShardRow, site: &SiteId, primary: &NodeId, term: u64) -> Result<(), Failure> {
    check_site(primary, site)?;
    if row.primary == primary.name() && natural(row.term) == term {
        return Ok(());
    }
    let message = format!(
        "{site}.{}'s shard is served by {site}.{} in term {}, not by {primary} in term {term}",
        row.node, row.primary, row.term
    );
    Err(Failure::refused(ErrorCode::Conflict, message))
}

async fn check_alive(conn: &mut Connection, node: &NodeId) -> Result<(), Failure> {
    let row = servers::find(conn, &ServerKey::of_node(node)).await?;
    let Some(row) = row else { return Err(servers::no_such_node(node)) };
    let state = row.node.as_ref().map(|n| n.state);
    if row.alive && state != Some(NodeState::Removed) {
        return Ok(());
    }
    let what = if row.alive { "was removed" } else { "is down until it reports again" };
    Err(Failure::refused(ErrorCode::Conflict, format!("node {node} {what}")))
}

/// False if it follows already.
async fn add_follower(
    conn: &mut Connection,
    site: &SiteId,
    shard: &NodeId,
    follower: &NodeId,
) -> Result<bool, Failure> {
    let done = sqlx::query(
        "INSERT INTO shard_followers (site, node, follower, position)
         VALUES ($1, $2, $3,
             (SELECT COALESCE(MAX(position), 0) + 1 FROM shard_followers WHERE site = $1 AND node = $2))
         ON CONFLICT DO NOTHING",
    )
    .bind(site.as_str())
    .bind(shard.name())
    .bind(follower.name())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

async fn drop_follower(
    conn: &mut Connection,
    site: &str,
    shard: &str,
    follower: &str,
) -> Result<(), Failure> {
    sqlx::query("DELETE FROM shard_followers WHERE site = $1 AND node = $2 AND follower = $3")
        .bind(site)
        .bind(shard)
        .bind(follower)
        .execute(conn)
        .await?;
    Ok(())
}
