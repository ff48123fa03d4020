//! Servers: their rows, their registration, and the leases that heartbeats renew.
//!
//! Leases live in memory: a plain heartbeat writes nothing. After a restart every server that was alive has a
//! whole lease to report again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use common::api::search::Registration;
use common::auth::Role;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::placement::SLOT_COUNT;

use crate::db::Connection;
use crate::error::Failure;

const ADDRESS_LEN_MAX: usize = 255;
const LOG_ID_LEN_MAX: usize = 128;
const GIB: u64 = 1 << 30;

/// Which server: no two of a role share a name in a site.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerKey {
    pub role: Role,
    /// Empty for servers that belong to no site.
    pub site: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRow {
    pub key: ServerKey,
    pub position: i64,
    pub http: String,
    pub s3: Option<String>,
    pub admin: String,
    pub alive: bool,
    pub weight: Option<i64>,
    pub log_id: Option<String>,
    pub record_epoch: Option<i64>,
}

type Columns = (
    String,
    String,
    String,
    i64,
    String,
    Option<String>,
    String,
    bool,
    Option<i64>,
    Option<String>,
    Option<i64>,
);

fn row_of(columns: Columns) -> Result<ServerRow, Failure> {
    let (role, site, name, position, http, s3, admin, alive, weight, log_id, record_epoch) = columns;
    let role = role_of(&role)?;
    let key = ServerKey { role, site, name };
    Ok(ServerRow { key, position, http, s3, admin, alive, weight, log_id, record_epoch })
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
        "SELECT role, site, name, position, http, s3, admin, alive, weight, log_id, record_epoch
         FROM servers ORDER BY position",
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(row_of).collect()
}

pub async fn find(conn: &mut Connection, key: &ServerKey) -> Result<Option<ServerRow>, Failure> {
    let row: Option<Columns> = sqlx::query_as(
        "SELECT role, site, name, position, http, s3, admin, alive, weight, log_id, record_epoch
         FROM servers WHERE role = $1 AND site = $2 AND name = $3",
    )
    .bind(key.role.as_str())
    .bind(&key.site)
    .bind(&key.name)
    .fetch_optional(conn)
    .await?;
    row.map(row_of).transpose()
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

/// The row that a registration asks for, given the row that is there.
pub fn wanted(key: &ServerKey, registration: &Registration, known: Option<&ServerRow>) -> ServerRow {
    let weight =
        registration.node.as_ref().map(|f| (f.capacity_bytes / GIB).clamp(1, u64::from(u32::MAX)) as i64);
    let log_id = registration.node.as_ref().map(|f| f.log_id.clone());
    let epoch_before = known.and_then(|k| k.record_epoch).unwrap_or(0);
    let same_log = known.is_some_and(|k| k.log_id == log_id);
    ServerRow {
        key: key.clone(),
        position: known.map_or(0, |k| k.position),
        http: registration.http.clone(),
        s3: registration.s3.clone(),
        admin: registration.admin.clone(),
        alive: true,
        weight,
        record_epoch: log_id.as_ref().map(|_| if same_log { epoch_before } else { epoch_before + 1 }),
        log_id,
    }
}

/// Writes a registration: its site if that is new, its row, and the slots of a site's first node.
pub async fn put(conn: &mut Connection, row: &ServerRow, zone: Option<&str>) -> Result<(), Failure> {
    if !row.key.site.is_empty() {
        put_site(conn, &row.key.site, zone).await?;
    }
    sqlx::query(
        "INSERT INTO servers (role, site, name, position, http, s3, admin, alive, weight, log_id, record_epoch)
         VALUES ($1, $2, $3, (SELECT COALESCE(MAX(position), 0) + 1 FROM servers), $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (role, site, name) DO UPDATE SET
             http = excluded.http, s3 = excluded.s3, admin = excluded.admin, alive = excluded.alive,
             weight = excluded.weight, log_id = excluded.log_id, record_epoch = excluded.record_epoch",
    )
    .bind(row.key.role.as_str())
    .bind(&row.key.site)
    .bind(&row.key.name)
    .bind(&row.http)
    .bind(&row.s3)
    .bind(&row.admin)
    .bind(row.alive)
    .bind(row.weight)
    .bind(&row.log_id)
    .bind(row.record_epoch)
    .execute(&mut *conn)
    .await?;
    if row.key.role == Role::StorageNode {
        give_free_slots(conn, &row.key.site, &row.key.name).await?;
    }
    Ok(())
}

/// The first zone that a site's servers tell stays, so servers that disagree do not turn the map over.
async fn put_site(conn: &mut Connection, site: &str, zone: Option<&str>) -> Result<(), Failure> {
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
    let done = sqlx::query(
        "UPDATE servers SET alive = FALSE WHERE role = $1 AND site = $2 AND name = $3 AND alive = TRUE",
    )
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

    /// Puts a server back that could not be marked as down, so that the next sweep tries again.
    pub fn put_back(&self, key: ServerKey, lease: Duration) {
        let past = Instant::now().checked_sub(lease).unwrap_or_else(Instant::now);
        self.lock().entry(key).or_insert(past);
    }

    /// Whether the server was heard of since it was taken out.
    pub fn has(&self, key: &ServerKey) -> bool {
        self.lock().contains_key(key)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ServerKey, Instant>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
