//! Sites and what their operator sets: copies, the zone they are in, how far others are.

use std::collections::BTreeMap;

use common::cluster::REPLICAS_MAX;
use common::error::ErrorCode;
use common::id::{ServerName, SiteId};

use crate::db::Connection;
use crate::error::{Failure, natural};

/// Makes a site if it is new. The zone that a server tells is taken only where none is known, so servers that disagree
/// do not turn the map over, nor what the operator set.
pub async fn put(conn: &mut Connection, site: &str, zone: Option<&str>) -> Result<(), Failure> {
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
async fn replicas(conn: &mut Connection, site: &str) -> Result<Option<Option<i64>>, Failure> {
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
        None => Err(no_such_site(site)),
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

/// Sets the zone that a site is in. False if it is so already.
pub async fn set_zone(
    conn: &mut Connection,
    site: &SiteId,
    wanted: Option<&ServerName>,
) -> Result<bool, Failure> {
    let known: Option<Option<String>> = sqlx::query_scalar("SELECT zone FROM sites WHERE site = $1")
        .bind(site.as_str())
        .fetch_optional(&mut *conn)
        .await?;
    let known = known.ok_or_else(|| no_such_site(site))?;
    let wanted = wanted.map(ServerName::as_str);
    if known.as_deref() == wanted {
        return Ok(false);
    }
    sqlx::query("UPDATE sites SET zone = $1 WHERE site = $2")
        .bind(wanted)
        .bind(site.as_str())
        .execute(conn)
        .await?;
    Ok(true)
}

/// Sets how far a site, a zone or an origin is from a site; `None` forgets it. False if it is so already.
pub async fn set_distance(
    conn: &mut Connection,
    site: &SiteId,
    to: &ServerName,
    wanted: Option<u32>,
) -> Result<bool, Failure> {
    let is_there: Option<i64> = sqlx::query_scalar("SELECT position FROM sites WHERE site = $1")
        .bind(site.as_str())
        .fetch_optional(&mut *conn)
        .await?;
    is_there.ok_or_else(|| no_such_site(site))?;
    if to.as_str() == site.as_str() {
        let message = format!("a distance is to another place than site {site} itself");
        return Err(Failure::refused(ErrorCode::InvalidRequest, message));
    }
    if distances(conn, site.as_str()).await?.get(to.as_str()).copied() == wanted {
        return Ok(false);
    }
    let query = match wanted {
        Some(distance) => sqlx::query(
            "INSERT INTO site_distances (site, name, distance) VALUES ($1, $2, $3)
             ON CONFLICT (site, name) DO UPDATE SET distance = excluded.distance",
        )
        .bind(site.as_str())
        .bind(to.as_str())
        .bind(i64::from(distance)),
        None => sqlx::query("DELETE FROM site_distances WHERE site = $1 AND name = $2")
            .bind(site.as_str())
            .bind(to.as_str()),
    };
    query.execute(conn).await?;
    Ok(true)
}

/// Stores the distances of a site that has none.
pub async fn set_distances(
    conn: &mut Connection,
    site: &SiteId,
    distances: &BTreeMap<String, u32>,
) -> Result<(), Failure> {
    for (name, distance) in distances {
        sqlx::query("INSERT INTO site_distances (site, name, distance) VALUES ($1, $2, $3)")
            .bind(site.as_str())
            .bind(name.clone())
            .bind(i64::from(*distance))
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// How far places are from a site, by name.
pub async fn distances(conn: &mut Connection, site: &str) -> Result<BTreeMap<String, u32>, Failure> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT name, distance FROM site_distances WHERE site = $1 ORDER BY name")
            .bind(site)
            .fetch_all(conn)
            .await?;
    let distance = |distance| u32::try_from(natural(distance)).unwrap_or(u32::MAX);
    Ok(rows.into_iter().map(|(name, number)| (name, distance(number))).collect())
}

fn no_such_site(site: &SiteId) -> Failure {
    Failure::refused(ErrorCode::NotFound, format!("there is no site {site}"))
}
