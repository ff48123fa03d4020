//! Servers: their rows, their registration, and the leases that heartbeats renew.
//!
//! Leases live in memory: a plain heartbeat writes nothing. After a restart every server that was alive has a
//! whole lease to report again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use common::api::search::{NodeFacts, Registration};
use common::auth::Role;
use common::cluster::{NodeState, REPLICAS_MAX};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{NodeId, SiteId};
use common::placement::SLOT_COUNT;

use crate::db::Connection;
use crate::error::{Failure, integer};
use crate::shards;

const ADDRESS_LEN_MAX: usize = 255;
const LOG_ID_LEN_MAX: usize = 128;
/// A capacity counts as changed when it differs by more than this part of it.
const CAPACITY_SLACK: u64 = 10;

/// Which server: no two of a role share a name in a site.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerKey {
    pub role: Role,
    /// Empty for servers that belong to no site.
    pub site: String,
    pub name: String,
}

impl ServerKey {
    pub fn of_node(node: &NodeId) -> Self {
        Self { role: Role::StorageNode, site: node.site().to_owned(), name: node.name().to_owned() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRow {
    pub key: ServerKey,
    pub position: i64,
    pub http: String,
    pub s3: Option<String>,
    pub admin: String,
    pub alive: bool,
    /// Of storage nodes.
    pub node: Option<NodeRow>,
}

impl ServerRow {
    /// Whether a node that is to have this row lost what it had.
    pub fn has_other_log(&self, wanted: &Self) -> bool {
        self.node
            .as_ref()
            .zip(wanted.node.as_ref())
            .is_some_and(|(known, wanted)| !known.has_log(&wanted.log_id))
    }

    pub fn is_removed(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.state == NodeState::Removed)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    pub state: NodeState,
    pub capacity_bytes: i64,
    /// Empty after the map was taken over, until the node tells.
    pub log_id: String,
    pub record_epoch: i64,
}

impl NodeRow {
    fn has_log(&self, log_id: &str) -> bool {
        self.log_id.is_empty() || self.log_id == log_id
    }
}

#[derive(sqlx::FromRow)]
struct Columns {
    role: String,
    site: String,
    name: String,
    position: i64,
    http: String,
    s3: Option<String>,
    admin: String,
    alive: i64,
    state: Option<String>,
    capacity_bytes: Option<i64>,
    log_id: Option<String>,
    record_epoch: Option<i64>,
}

impl Columns {
    fn into_row(self) -> Result<ServerRow, Failure> {
        let node = match self.state {
            None => None,
            Some(state) => Some(NodeRow {
                state: state_of(&state)?,
                capacity_bytes: self.capacity_bytes.unwrap_or(0),
                log_id: self.log_id.unwrap_or_default(),
                record_epoch: self.record_epoch.unwrap_or(0),
            }),
        };
        let key = ServerKey { role: role_of(&self.role)?, site: self.site, name: self.name };
        let Self { position, http, s3, admin, alive, .. } = self;
        Ok(ServerRow { key, position, http, s3, admin, alive: alive != 0, node })
    }
}

/// A node's state as its column has it.
pub fn state_text(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Removed => "removed",
    }
}

fn state_of(text: &str) -> Result<NodeState, Failure> {
    const STATES: [NodeState; 3] = [NodeState::Active, NodeState::Draining, NodeState::Removed];
    let unknown = || sqlx::Error::Decode(format!("there is no node state {text}").into());
    Ok(STATES.into_iter().find(|state| state_text(*state) == text).ok_or_else(unknown)?)
}

fn role_of(text: &str) -> Result<Role, Failure> {
    const ROLES: [Role; 7] = [
        Role::Gateway,
        Role::StorageNode,
        Role::Search,
        Role::Origin,
        Role::ServiceBilling,
        Role::ContentBilling,
        Role::MobileAccess,
    ];
    let unknown = || sqlx::Error::Decode(format!("there is no role {text}").into());
    Ok(ROLES.into_iter().find(|r| r.as_str() == text).ok_or_else(unknown)?)
}

/// All servers in the order of their first registration.
pub async fn all(conn: &mut Connection) -> Result<Vec<ServerRow>, Failure> {
    let rows: Vec<Columns> = sqlx::query_as(
        "SELECT role, site, name, position, http, s3, admin, alive, state, capacity_bytes, log_id,
             record_epoch
         FROM servers ORDER BY position",
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Columns::into_row).collect()
}

pub async fn find(conn: &mut Connection, key: &ServerKey) -> Result<Option<ServerRow>, Failure> {
    let row: Option<Columns> = sqlx::query_as(
        "SELECT role, site, name, position, http, s3, admin, alive, state, capacity_bytes, log_id,
             record_epoch
         FROM servers WHERE role = $1 AND site = $2 AND name = $3",
    )
    .bind(key.role.as_str())
    .bind(&key.site)
    .bind(&key.name)
    .fetch_optional(conn)
    .await?;
    row.map(Columns::into_row).transpose()
}

/// Checks what a registration says, before anything is done with it.
pub fn check(registration: &Registration) -> ApiResult<ServerKey> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidRequest, message);
    let role = registration.role;
    let needs_site = matches!(role, Role::Gateway | Role::StorageNode);
    if role == Role::Search {
        return Err(invalid("search does not register: it is the directory".into()));
    }
    if needs_site != registration.site.is_some() {
        let rule = if needs_site { "needs a site" } else { "belongs to no site" };
        return Err(invalid(format!("a server of role {role} {rule}")));
    }
    if (role == Role::StorageNode) != registration.node.is_some() {
        return Err(invalid("`node` (log id, capacity, use) is for storage nodes, and needed there".into()));
    }
    let addresses = [("http", Some(&registration.http)), ("admin", Some(&registration.admin))];
    for (what, address) in addresses.into_iter().chain([("s3", registration.s3.as_ref())]) {
        let Some(address) = address else { continue };
        let is_url =
            ["http://", "https://"].iter().any(|s| address.len() > s.len() && address.starts_with(s));
        if !is_url || address.len() > ADDRESS_LEN_MAX {
            return Err(invalid(format!("{what} address {address:?} is not of the form http://HOST:PORT")));
        }
    }
    if let Some(facts) = &registration.node
        && (facts.log_id.is_empty() || facts.log_id.len() > LOG_ID_LEN_MAX)
    {
        return Err(invalid(format!("log_id must have 1 to {LOG_ID_LEN_MAX} characters")));
    }
    let site = registration.site.as_ref().map_or_else(String::new, ToString::to_string);
    Ok(ServerKey { role, site, name: registration.name.to_string() })
}

/// The row that a registration asks for, given the row that is there. `Conflict` for a node that was removed.
pub fn wanted(
    key: &ServerKey,
    registration: &Registration,
    known: Option<&ServerRow>,
) -> Result<ServerRow, Failure> {
    let known_node = known.and_then(|k| k.node.as_ref());
    let node = match &registration.node {
        None => None,
        Some(facts) => Some(wanted_node(key, facts, known_node)?),
    };
    Ok(ServerRow {
        key: key.clone(),
        position: known.map_or(0, |k| k.position),
        http: registration.http.clone(),
        s3: registration.s3.clone(),
        admin: registration.admin.clone(),
        alive: true,
        node,
    })
}

fn wanted_node(key: &ServerKey, facts: &NodeFacts, known: Option<&NodeRow>) -> Result<NodeRow, Failure> {
    let told = integer(facts.capacity_bytes, "capacity_bytes")?;
    let told_epoch = integer(facts.record_epoch, "record_epoch")?;
    let Some(known) = known else {
        let (log_id, record_epoch) = (facts.log_id.clone(), told_epoch.max(1));
        return Ok(NodeRow { state: NodeState::Active, capacity_bytes: told, log_id, record_epoch });
    };
    let same_log = known.has_log(&facts.log_id);
    let state = match known.state {
        NodeState::Removed if same_log => {
            let message = format!(
                "node {}.{} was removed; start it under a new name or with a new log",
                key.site, key.name
            );
            return Err(Failure::refused(ErrorCode::Conflict, message));
        }
        NodeState::Removed => NodeState::Active,
        state => state,
    };
    let capacity_bytes =
        if same_log && is_same_size(known.capacity_bytes, told) { known.capacity_bytes } else { told };
    // The node knows better than a database that was put back.
    let record_epoch = known.record_epoch.max(told_epoch).max(1) + i64::from(!same_log);
    Ok(NodeRow { state, capacity_bytes, log_id: facts.log_id.clone(), record_epoch })
}

/// The size of a store that shares its file system wavers; chunks are not to be placed anew for that.
fn is_same_size(known: i64, told: i64) -> bool {
    known.abs_diff(told) <= known.unsigned_abs() / CAPACITY_SLACK
}

/// Writes a registration: its site if that is new, its row, a new node's shard, and the slots of a site's
/// first node.
pub async fn put(conn: &mut Connection, row: &ServerRow, zone: Option<&str>) -> Result<(), Failure> {
    if !row.key.site.is_empty() {
        put_site(conn, &row.key.site, zone).await?;
    }
    put_row(conn, row).await?;
    if row.key.role == Role::StorageNode {
        shards::make(conn, &row.key.site, &row.key.name).await?;
        give_free_slots(conn, &row.key.site, &row.key.name).await?;
    }
    Ok(())
}

/// Writes the row alone.
pub async fn put_row(conn: &mut Connection, row: &ServerRow) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO servers
             (role, site, name, position, http, s3, admin, alive, state, capacity_bytes, log_id, record_epoch)
         VALUES ($1, $2, $3, (SELECT COALESCE(MAX(position), 0) + 1 FROM servers),
             $4, $5, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (role, site, name) DO UPDATE SET
             http = excluded.http, s3 = excluded.s3, admin = excluded.admin, alive = excluded.alive,
             state = excluded.state, capacity_bytes = excluded.capacity_bytes, log_id = excluded.log_id,
             record_epoch = excluded.record_epoch",
    )
    .bind(row.key.role.as_str())
    .bind(&row.key.site)
    .bind(&row.key.name)
    .bind(&row.http)
    .bind(&row.s3)
    .bind(&row.admin)
    .bind(i64::from(row.alive))
    .bind(row.node.as_ref().map(|n| state_text(n.state)))
    .bind(row.node.as_ref().map(|n| n.capacity_bytes))
    .bind(row.node.as_ref().map(|n| n.log_id.as_str()))
    .bind(row.node.as_ref().map(|n| n.record_epoch))
    .execute(conn)
    .await?;
    Ok(())
}

/// The first zone that a site's servers tell stays, so servers that disagree do not turn the map over.
pub async fn put_site(conn: &mut Connection, site: &str, zone: Option<&str>) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO sites (site, zone, position)
         VALUES ($1, $2, (SELECT COALESCE(MAX(position), 0) + 1 FROM sites))
         ON CONFLICT (site) DO UPDATE SET zone = COALESCE(sites.zone, excluded.zone)",
    )
    .bind(site)
    .bind(zone)
    .execute(conn)
    .await?;
    Ok(())
}

/// The zone of a site that has none yet is worth a write.
pub async fn lacks_zone(conn: &mut Connection, site: &str) -> Result<bool, Failure> {
    let zone: Option<Option<String>> =
        sqlx::query_scalar("SELECT zone FROM sites WHERE site = $1").bind(site).fetch_optional(conn).await?;
    Ok(zone.is_some_and(|z| z.is_none()))
}

/// The copies that a site's operator wants, `None` for automatic; outer `None` for an unknown site.
pub async fn replicas(conn: &mut Connection, site: &str) -> Result<Option<Option<i64>>, Failure> {
    let query = sqlx::query_scalar("SELECT replicas FROM sites WHERE site = $1");
    Ok(query.bind(site).fetch_optional(conn).await?)
}

/// Sets how many copies a site keeps. False if it is so already.
pub async fn set_replicas(conn: &mut Connection, site: &SiteId, wanted: Option<u8>) -> Result<bool, Failure> {
    if wanted.is_some_and(|copies| !(1..=REPLICAS_MAX).contains(&copies)) {
        let message = format!("`replicas` must be 1 to {REPLICAS_MAX}, or null for automatic");
        return Err(Failure::refused(ErrorCode::InvalidRequest, message));
    }
    let wanted = wanted.map(i64::from);
    match replicas(conn, site.as_str()).await? {
        None => Err(Failure::refused(ErrorCode::NotFound, format!("there is no site {site}"))),
        Some(known) if known == wanted => Ok(false),
        Some(_) => {
            sqlx::query("UPDATE sites SET replicas = $1 WHERE site = $2")
                .bind(wanted)
                .bind(site.as_str())
                .execute(conn)
                .await?;
            Ok(true)
        }
    }
}

pub fn no_such_node(node: &NodeId) -> Failure {
    Failure::refused(ErrorCode::NotFound, format!("there is no node {node}"))
}

/// Refuses a node of another site.
pub fn check_site(node: &NodeId, site: &SiteId) -> Result<(), Failure> {
    if node.site() == site.as_str() {
        return Ok(());
    }
    Err(Failure::refused(ErrorCode::InvalidRequest, format!("node {node} is not of site {site}")))
}

async fn give_free_slots(conn: &mut Connection, site: &str, node: &str) -> Result<(), Failure> {
    let given: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM slots WHERE site = $1")
        .bind(site)
        .fetch_one(&mut *conn)
        .await?;
    if given > 0 {
        return Ok(());
    }
    for slot in 0..SLOT_COUNT {
        sqlx::query("INSERT INTO slots (site, slot, owner, fence) VALUES ($1, $2, $3, 0)")
            .bind(site)
            .bind(i64::from(slot))
            .bind(node)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// Marks a server as down; false if it was down already.
pub async fn mark_down(conn: &mut Connection, key: &ServerKey) -> Result<bool, Failure> {
    let done =
        sqlx::query("UPDATE servers SET alive = 0 WHERE role = $1 AND site = $2 AND name = $3 AND alive = 1")
            .bind(key.role.as_str())
            .bind(&key.site)
            .bind(&key.name)
            .execute(conn)
            .await?;
    Ok(done.rows_affected() > 0)
}

/// When each server that counts as alive was last heard of.
#[derive(Default)]
pub struct Leases {
    heard: Mutex<HashMap<ServerKey, Instant>>,
}

impl Leases {
    pub fn renew(&self, key: ServerKey) {
        self.lock().insert(key, Instant::now());
    }

    /// Takes out the servers that were not heard of for `lease`.
    pub fn take_expired(&self, lease: Duration) -> Vec<ServerKey> {
        let now = Instant::now();
        self.lock().extract_if(|_, heard| now.duration_since(*heard) > lease).map(|(key, _)| key).collect()
    }

    /// Takes a server out that was not heard of since then; false if it was.
    pub fn take_silent(&self, key: &ServerKey, since: Instant) -> bool {
        let mut heard = self.lock();
        if heard.get(key).is_some_and(|heard| *heard > since) {
            return false;
        }
        heard.remove(key);
        true
    }

    /// Expects no heartbeat of this server any more.
    pub fn forget(&self, key: &ServerKey) {
        self.lock().remove(key);
    }

    /// Puts a server back that could not be marked as down, so that the next sweep tries again.
    pub fn put_back(&self, key: ServerKey, lease: Duration) {
        let past = Instant::now().checked_sub(lease).unwrap_or_else(Instant::now);
        self.lock().entry(key).or_insert(past);
    }

    /// How long ago any server of a site was heard of.
    pub fn heard_of_site(&self, site: &str) -> Option<Duration> {
        let heard = self.lock();
        heard.iter().filter(|(key, _)| key.site == site).map(|(_, heard)| heard.elapsed()).min()
    }

    /// Whether the server was heard of since it was taken out.
    pub fn has(&self, key: &ServerKey) -> bool {
        self.lock().contains_key(key)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ServerKey, Instant>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
