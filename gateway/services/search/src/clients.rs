//! Clients: their home sites, keys, and what they may take.

use common::api::search::{ClientKeys, ClientLimits, ClientRecord, NewClient};
use common::auth::{random_hex, token_hash};
use common::error::ErrorCode;
use common::id::{ClientId, SiteId};
use common::time::UnixMillis;

use crate::db::Connection;
use crate::error::{Failure, integer, natural};

#[derive(sqlx::FromRow)]
struct Columns {
    client: String,
    site: String,
    disabled: i64,
    created: i64,
    quota_bytes: Option<i64>,
    quota_contents: Option<i64>,
    requests_per_s: Option<i64>,
    bytes_per_s: Option<i64>,
}

fn record_of(row: Columns) -> Result<ClientRecord, Failure> {
    Ok(ClientRecord {
        client: ClientId::new(&row.client)?,
        site: SiteId::new(&row.site)?,
        disabled: row.disabled != 0,
        created: UnixMillis(natural(row.created)),
        limits: ClientLimits {
            quota_bytes: row.quota_bytes.map(natural),
            quota_contents: row.quota_contents.map(natural),
            requests_per_s: row.requests_per_s.map(natural),
            bytes_per_s: row.bytes_per_s.map(natural),
        },
    })
}

/// Makes a client with fresh keys. The token is answered here and never again: only its hash is kept.
pub async fn create(conn: &mut Connection, new: &NewClient, now: UnixMillis) -> Result<ClientKeys, Failure> {
    check_site(conn, &new.site).await?;
    if find(conn, &new.client).await?.is_some() {
        let message =
            format!("there is a client {} already; its keys were shown when it was made", new.client);
        return Err(Failure::refused(ErrorCode::Conflict, message));
    }
    let keys = ClientKeys {
        client: new.client.clone(),
        site: new.site.clone(),
        access_key: format!("DZ{}", random_hex(9).to_uppercase()),
        secret_key: random_hex(20),
        token: format!("dozo_{}", random_hex(24)),
    };
    sqlx::query(
        "INSERT INTO clients (client, site, disabled, created, access_key, secret_key, token_hash)
         VALUES ($1, $2, 0, $3, $4, $5, $6)",
    )
    .bind(keys.client.as_str())
    .bind(keys.site.as_str())
    .bind(integer(now.0, "the time")?)
    .bind(&keys.access_key)
    .bind(&keys.secret_key)
    .bind(token_hash(&keys.token))
    .execute(conn)
    .await?;
    Ok(keys)
}

/// A home site that no server ever told of is most likely a slip of the pen.
async fn check_site(conn: &mut Connection, site: &SiteId) -> Result<(), Failure> {
    let sites: Vec<String> =
        sqlx::query_scalar("SELECT site FROM sites ORDER BY position").fetch_all(conn).await?;
    if sites.iter().any(|s| s == site.as_str()) {
        return Ok(());
    }
    let known = if sites.is_empty() { "none yet".to_owned() } else { sites.join(", ") };
    let message =
        format!("there is no site {site}; start a gateway or storage node there first (sites: {known})");
    Err(Failure::refused(ErrorCode::InvalidRequest, message))
}

pub async fn find(conn: &mut Connection, client: &ClientId) -> Result<Option<ClientRecord>, Failure> {
    let row: Option<Columns> = sqlx::query_as("SELECT * FROM clients WHERE client = $1")
        .bind(client.as_str())
        .fetch_optional(conn)
        .await?;
    row.map(record_of).transpose()
}

pub async fn by_token(conn: &mut Connection, hash: &str) -> Result<ClientRecord, Failure> {
    let row: Option<Columns> =
        sqlx::query_as("SELECT * FROM clients WHERE token_hash = $1").bind(hash).fetch_optional(conn).await?;
    let row = row.ok_or_else(|| Failure::refused(ErrorCode::ClientNotFound, "no client has this token"))?;
    record_of(row)
}

pub async fn list(conn: &mut Connection) -> Result<Vec<ClientRecord>, Failure> {
    let rows: Vec<Columns> = sqlx::query_as("SELECT * FROM clients ORDER BY client").fetch_all(conn).await?;
    rows.into_iter().map(record_of).collect()
}

/// Shuts a client out; what it holds and provides stays.
pub async fn disable(conn: &mut Connection, client: &ClientId) -> Result<ClientRecord, Failure> {
    sqlx::query("UPDATE clients SET disabled = 1 WHERE client = $1")
        .bind(client.as_str())
        .execute(&mut *conn)
        .await?;
    find(conn, client).await?.ok_or_else(|| not_found(client))
}

/// Sets what a client may take. Gateways follow within seconds.
pub async fn limit(
    conn: &mut Connection,
    client: &ClientId,
    limits: &ClientLimits,
) -> Result<ClientRecord, Failure> {
    if limits.requests_per_s == Some(0) || limits.bytes_per_s == Some(0) {
        let message = "a rate is 1 a second or more; to let a client ask for nothing, disable it";
        return Err(Failure::refused(ErrorCode::InvalidRequest, message));
    }
    let column = |value: Option<u64>, what| value.map(|value| integer(value, what)).transpose();
    sqlx::query(
        "UPDATE clients SET quota_bytes = $1, quota_contents = $2, requests_per_s = $3, bytes_per_s = $4
         WHERE client = $5",
    )
    .bind(column(limits.quota_bytes, "quota_bytes")?)
    .bind(column(limits.quota_contents, "quota_contents")?)
    .bind(column(limits.requests_per_s, "requests_per_s")?)
    .bind(column(limits.bytes_per_s, "bytes_per_s")?)
    .bind(client.as_str())
    .execute(&mut *conn)
    .await?;
    find(conn, client).await?.ok_or_else(|| not_found(client))
}

pub fn not_found(client: &ClientId) -> Failure {
    Failure::refused(ErrorCode::ClientNotFound, format!("there is no client {client}"))
}
