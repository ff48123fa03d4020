//! The cluster map as it is served: read from the database after each change, kept in memory, written as JSON
//! once. Beside it the list of targets for Prometheus, which comes from the same rows.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use common::auth::Role;
use common::cluster::{
    ClusterMap, GatewayEntry, MAP_RUNS_MAX, MapEpoch, MapRun, NodeEntry, ServerEntry, ShardEntry, SiteEntry,
};
use common::id::{NodeId, ServerName, SiteId};
use common::placement;

use crate::db::Connection;
use crate::error::{Failure, integer, natural};
use crate::servers::{self, ServerKey, ServerRow};
use crate::{shards, sites};

/// One state of the directory of servers. Cheap to clone.
#[derive(Clone)]
pub struct View {
    pub map: Arc<ClusterMap>,
    pub map_json: Bytes,
    pub targets: Arc<Vec<Target>>,
}

impl View {
    pub fn epoch(&self) -> MapEpoch {
        self.map.epoch
    }

    /// Whether all servers that a site ever had have fallen silent: what it holds is not offered until one of them reports.
    pub fn is_silent(&self, site: &SiteId) -> bool {
        self.map.site(site).is_some_and(|site| {
            !site.gateways.iter().any(|gateway| gateway.alive) && !site.nodes.iter().any(|node| node.alive)
        })
    }
}

/// One entry of Prometheus' HTTP service discovery.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    #[serde(skip)]
    pub key: ServerKey,
    /// `host:port`, without a scheme.
    pub targets: [String; 1],
    pub labels: Labels,
}

#[derive(Debug, Clone, Serialize)]
pub struct Labels {
    /// The role.
    pub job: &'static str,
    /// The server as people call it: `tokyo.n1`, `origin`; it stays the same when the address changes.
    pub instance: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// How Prometheus is to ask; `http` if it is not said.
    #[serde(rename = "__scheme__", skip_serializing_if = "Option::is_none")]
    pub scheme: Option<&'static str>,
}

impl Target {
    /// `admin` and `http` are the server's URLs. One that answers health and metrics at every address of its machine
    /// does not know by which of them it can be reached; it is asked on the host under which others reach it.
    pub fn new(key: ServerKey, admin: &str, http: &str) -> Self {
        let ServerKey { role, site, name } = &key;
        let address = match unspecified_port(address_of(admin)) {
            Some(port) => at_host_of(http, port),
            None => address_of(admin).to_owned(),
        };
        let labels = Labels {
            job: role.as_str(),
            instance: if site.is_empty() { name.clone() } else { format!("{site}.{name}") },
            site: (!site.is_empty()).then(|| site.clone()),
            scheme: admin.starts_with("https:").then_some("https"),
        };
        Self { targets: [address], labels, key }
    }

    /// The target as somebody sees it who asked for it under `host`: where nothing better is known, that is a host at
    /// which this machine can be reached.
    pub fn seen_under(&self, host: Option<&str>) -> Self {
        let [address] = &self.targets;
        match (unspecified_port(address), host) {
            (Some(port), Some(host)) => Self { targets: [at_host_of(host, port)], ..self.clone() },
            _ => self.clone(),
        }
    }
}

fn address_of(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/')
}

/// The port of an address like `0.0.0.0:80`, which is no address to connect to.
fn unspecified_port(address: &str) -> Option<u16> {
    let address: SocketAddr = address.parse().ok()?;
    address.ip().is_unspecified().then_some(address.port())
}

fn at_host_of(url: &str, port: u16) -> String {
    let authority = address_of(url).split('/').next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    format!("{host}:{port}")
}

/// Raises the epoch; the change that it stands for is in the same transaction, and made in this run.
pub async fn raise_epoch(conn: &mut Connection, run: &str) -> Result<(), Failure> {
    let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM map_state").fetch_one(&mut *conn).await?;
    if runs(conn).await?.last().is_none_or(|last| last.id != run) {
        put_run(conn, run, epoch).await?;
    }
    sqlx::query("UPDATE map_state SET epoch = $1").bind(epoch + 1).execute(conn).await?;
    Ok(())
}

/// Goes on from `newest`, a map of the nodes, instead of `own`: the next map follows from both, so that also those go on
/// to it who had taken one that did not follow from `newest`.
pub async fn go_on_from(conn: &mut Connection, own: &ClusterMap, newest: &ClusterMap) -> Result<(), Failure> {
    let epoch = integer(own.epoch.max(newest.epoch).0, "the map's epoch")?;
    sqlx::query("DELETE FROM map_runs").execute(&mut *conn).await?;
    for run in &newest.runs {
        put_run(conn, &run.id, integer(run.after.0, "the map's epoch")?).await?;
    }
    for run in own.runs.iter().filter(|run| !newest.runs.iter().any(|known| known.id == run.id)) {
        put_run(conn, &run.id, epoch).await?;
    }
    sqlx::query("UPDATE map_state SET epoch = $1").bind(epoch).execute(conn).await?;
    Ok(())
}

async fn put_run(conn: &mut Connection, run: &str, after: i64) -> Result<(), Failure> {
    let last: i64 =
        sqlx::query_scalar("SELECT COALESCE(MAX(position), 0) FROM map_runs").fetch_one(&mut *conn).await?;
    sqlx::query("INSERT INTO map_runs (position, id, after_epoch) VALUES ($1, $2, $3)")
        .bind(last + 1)
        .bind(run)
        .bind(after)
        .execute(&mut *conn)
        .await?;
    let forgotten = last + 1 - i64::try_from(MAP_RUNS_MAX).unwrap_or(i64::MAX);
    sqlx::query("DELETE FROM map_runs WHERE position <= $1").bind(forgotten).execute(conn).await?;
    Ok(())
}

async fn runs(conn: &mut Connection) -> Result<Vec<MapRun>, Failure> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT id, after_epoch FROM map_runs ORDER BY position").fetch_all(conn).await?;
    Ok(rows.into_iter().map(|(id, after)| MapRun { id, after: MapEpoch(natural(after)) }).collect())
}

/// Reads the whole view. Run inside the changing transaction, it shows the change.
pub async fn load(conn: &mut Connection) -> Result<View, Failure> {
    let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM map_state").fetch_one(&mut *conn).await?;
    let rows = servers::all(conn).await?;
    let runs = runs(conn).await?;
    let mut map = ClusterMap { epoch: MapEpoch(natural(epoch)), runs, ..ClusterMap::default() };
    let known: Vec<(String, Option<String>, Option<i64>)> =
        sqlx::query_as("SELECT site, zone, replicas FROM sites ORDER BY position")
            .fetch_all(&mut *conn)
            .await?;
    for (site, zone, replicas) in known {
        let replicas_wanted = replicas.and_then(|copies| u8::try_from(copies).ok());
        let distances = sites::distances(conn, &site).await?;
        let mut entry = SiteEntry { zone, distances, replicas_wanted, ..SiteEntry::new(SiteId::new(&site)?) };
        for row in rows.iter().filter(|r| r.key.site == site) {
            add_to_site(&mut entry, row)?;
        }
        placement::share_out(&mut entry);
        let places: HashMap<String, u16> =
            (0u16..).zip(&entry.nodes).map(|(i, n)| (n.id.name().to_owned(), i)).collect();
        set_shards(conn, &mut entry, &places).await?;
        entry.slot_owners = slot_owners(conn, &entry.id, &places).await?;
        map.sites.push(entry);
    }
    map.origins =
        rows.iter().filter(|r| r.key.role == Role::Origin).map(server_entry).collect::<Result<_, _>>()?;
    map.service_billing = the_one(&rows, Role::ServiceBilling)?;
    map.content_billing = the_one(&rows, Role::ContentBilling)?;
    let map_json = serde_json::to_vec(&map)?.into();
    let targets = rows.iter().filter(|r| !r.is_removed());
    let targets = targets.map(|r| Target::new(r.key.clone(), &r.admin, &r.http)).collect();
    Ok(View { map: Arc::new(map), map_json, targets: Arc::new(targets) })
}

fn add_to_site(entry: &mut SiteEntry, row: &ServerRow) -> Result<(), Failure> {
    let name = ServerName::new(&row.key.name)?;
    match (row.key.role, &row.node) {
        (Role::Gateway, _) => entry.gateways.push(GatewayEntry {
            name,
            http: row.http.clone(),
            s3: row.s3.clone(),
            admin: row.admin.clone(),
            alive: row.alive,
        }),
        (Role::StorageNode, Some(node)) => entry.nodes.push(NodeEntry {
            id: NodeId::of(&entry.id, &name),
            http: row.http.clone(),
            admin: row.admin.clone(),
            state: node.state,
            alive: row.alive,
            weight: 0,
            capacity_bytes: natural(node.capacity_bytes),
            shard: ShardEntry::default(),
        }),
        _ => {}
    }
    Ok(())
}

async fn set_shards(
    conn: &mut Connection,
    entry: &mut SiteEntry,
    places: &HashMap<String, u16>,
) -> Result<(), Failure> {
    for row in shards::of_site(conn, entry.id.as_str()).await? {
        let shard = ShardEntry {
            term: natural(row.term),
            primary: place(places, &row.primary)?,
            followers: row.followers.iter().map(|name| place(places, name)).collect::<Result<_, _>>()?,
        };
        entry.nodes[usize::from(place(places, &row.node)?)].shard = shard;
    }
    Ok(())
}

/// Owner of each slot as an index into the site's nodes.
async fn slot_owners(
    conn: &mut Connection,
    site: &SiteId,
    places: &HashMap<String, u16>,
) -> Result<Vec<u16>, Failure> {
    let owners: Vec<String> = sqlx::query_scalar("SELECT owner FROM slots WHERE site = $1 ORDER BY slot")
        .bind(site.as_str())
        .fetch_all(conn)
        .await?;
    owners.iter().map(|owner| place(places, owner)).collect()
}

/// Place of a node in its site's list.
fn place(places: &HashMap<String, u16>, name: &str) -> Result<u16, Failure> {
    let missing = || sqlx::Error::Decode(format!("the node {name} is no server").into());
    Ok(places.get(name).copied().ok_or_else(missing)?)
}

fn server_entry(row: &ServerRow) -> Result<ServerEntry, Failure> {
    let name = ServerName::new(&row.key.name)?;
    Ok(ServerEntry { name, http: row.http.clone(), admin: row.admin.clone() })
}

/// The server of a role that exists once: of several the newest that is alive, so a replacement takes over when
/// the lease of the one it replaces has run out.
fn the_one(rows: &[ServerRow], role: Role) -> Result<Option<ServerEntry>, Failure> {
    let of_role = rows.iter().filter(|r| r.key.role == role);
    of_role.max_by_key(|r| (r.alive, r.position)).map(server_entry).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(role: Role, site: &str, name: &str, admin: &str, http: &str) -> Target {
        Target::new(ServerKey { role, site: site.to_owned(), name: name.to_owned() }, admin, http)
    }

    fn address(admin: &str, http: &str) -> String {
        target(Role::Gateway, "tokyo", "g1", admin, http).targets[0].clone()
    }

    #[test]
    fn a_target_is_an_address_that_can_be_connected_to() {
        assert_eq!(address("http://10.0.0.7:9100/", "http://10.0.0.7:80"), "10.0.0.7:9100");
        assert_eq!(address("http://0.0.0.0:9100", "http://10.0.0.7:80"), "10.0.0.7:9100");
        assert_eq!(address("http://[::]:9100", "http://[fd00::7]:80"), "[fd00::7]:9100");
        assert_eq!(address("http://0.0.0.0:9100", "https://tokyo.example/"), "tokyo.example:9100");
        let own = target(Role::Search, "", "search", "http://0.0.0.0:9100", "http://0.0.0.0:80");
        assert_eq!(own.seen_under(Some("search.example:80")).targets, ["search.example:9100"]);
        assert_eq!(own.seen_under(None).targets, ["0.0.0.0:9100"]);
        let own = target(Role::Search, "", "search", "http://127.0.0.1:9100", "http://0.0.0.0:80");
        assert_eq!(own.seen_under(Some("search.example")).targets, ["127.0.0.1:9100"]);
    }
}
