//! Contents and their holders: the rows, and what an announcement does to them.
//!
//! Every function here keeps `contents.held` equal to the number of holders of the newest version, and answers
//! how the two totals (names listed, rows of holders) changed.

use common::api::search::ChangeKind;
use common::id::ClientId;
use common::name::ContentName;
use common::version::Version;

use crate::db::{Connection, version_of};
use crate::error::{Failure, integer};

/// Who holds: a site or an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub kind: &'static str,
    pub name: String,
}

impl Holder {
    pub fn site(name: &str) -> Self {
        Self { kind: "site", name: name.to_owned() }
    }

    pub fn origin(name: &str) -> Self {
        Self { kind: "origin", name: name.to_owned() }
    }
}

/// What is announced about a held version.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    pub name: &'a ContentName,
    pub version: Version,
    pub len: u64,
    pub media_type: &'a str,
    pub provider: &'a ClientId,
}

/// What one announcement did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effect {
    /// Names listed, more or fewer.
    pub contents: i64,
    /// Rows of holders, more or fewer.
    pub holders: i64,
    /// To be appended to the change feed.
    pub change: Option<(ChangeKind, Version)>,
}

struct Newest {
    version: Version,
    withdrawn: bool,
    held: i64,
}

async fn newest(conn: &mut Connection, name: &ContentName) -> Result<Option<Newest>, Failure> {
    let row: Option<(i64, Vec<u8>, i64, i64)> =
        sqlx::query_as("SELECT time, hash, withdrawn, held FROM contents WHERE name = $1")
            .bind(name.as_str())
            .fetch_optional(conn)
            .await?;
    let read = |(time, hash, withdrawn, held): (i64, Vec<u8>, i64, i64)| {
        Ok(Newest { version: version_of(time, &hash)?, withdrawn: withdrawn != 0, held })
    };
    row.map(read).transpose()
}

async fn held_version(
    conn: &mut Connection,
    name: &ContentName,
    holder: &Holder,
) -> Result<Option<Version>, Failure> {
    let row: Option<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT time, hash FROM holders WHERE name = $1 AND kind = $2 AND holder = $3")
            .bind(name.as_str())
            .bind(holder.kind)
            .bind(&holder.name)
            .fetch_optional(conn)
            .await?;
    row.map(|(time, hash)| version_of(time, &hash)).transpose()
}

/// The holder holds a version. An older one than the newest known, or a withdrawn one, is answered with a
/// change, so that the holder learns what it missed.
pub async fn hold(conn: &mut Connection, holder: &Holder, held: Held<'_>) -> Result<Effect, Failure> {
    let known = newest(conn, held.name).await?;
    if let Some(known) = &known
        && known.withdrawn
        && held.version <= known.version
    {
        let change = Some((ChangeKind::Withdrawn, known.version));
        return Ok(Effect { change, ..Effect::default() });
    }
    let before = held_version(conn, held.name, holder).await?;
    if before.is_some_and(|b| b >= held.version) {
        return Ok(Effect::default());
    }
    put_holder(conn, held.name, holder, held.version).await?;
    let mut effect = Effect { holders: i64::from(before.is_none()), ..Effect::default() };
    match known {
        Some(known) if held.version < known.version => {
            effect.change = Some((ChangeKind::NewVersion, known.version));
        }
        Some(known) if held.version == known.version => {
            set_held(conn, held.name, known.held + 1).await?;
            effect.contents = i64::from(known.held == 0);
        }
        known => {
            // The newest version from now on, with this as its one holder.
            put_newest(conn, held, false, 1).await?;
            effect.contents = i64::from(known.as_ref().is_none_or(|k| k.held == 0));
            effect.change = known.map(|_| (ChangeKind::NewVersion, held.version));
        }
    }
    Ok(effect)
}

/// The holder no longer holds this version or an earlier one.
pub async fn release(
    conn: &mut Connection,
    holder: &Holder,
    name: &ContentName,
    version: Version,
) -> Result<Effect, Failure> {
    match held_version(conn, name, holder).await? {
        Some(held) if held <= version => remove_holder(conn, holder, name, held).await,
        _ => Ok(Effect::default()),
    }
}

/// The holder was asked for exactly this version and did not have it.
pub async fn missing(
    conn: &mut Connection,
    holder: &Holder,
    name: &ContentName,
    version: Version,
) -> Result<Effect, Failure> {
    match held_version(conn, name, holder).await? {
        Some(held) if held == version => remove_holder(conn, holder, name, held).await,
        _ => Ok(Effect::default()),
    }
}

async fn remove_holder(
    conn: &mut Connection,
    holder: &Holder,
    name: &ContentName,
    held: Version,
) -> Result<Effect, Failure> {
    sqlx::query("DELETE FROM holders WHERE name = $1 AND kind = $2 AND holder = $3")
        .bind(name.as_str())
        .bind(holder.kind)
        .bind(&holder.name)
        .execute(&mut *conn)
        .await?;
    let mut effect = Effect { holders: -1, ..Effect::default() };
    if let Some(known) = newest(conn, name).await?
        && known.version == held
    {
        set_held(conn, name, known.held - 1).await?;
        effect.contents = -i64::from(known.held == 1);
    }
    Ok(effect)
}

/// Versions up to this one are not to be found any more, whoever holds them.
pub async fn withdraw(
    conn: &mut Connection,
    name: &ContentName,
    version: Version,
) -> Result<Effect, Failure> {
    let known = newest(conn, name).await?;
    if known.as_ref().is_some_and(|k| k.withdrawn && k.version >= version) {
        return Ok(Effect::default());
    }
    let mut effect = Effect { change: Some((ChangeKind::Withdrawn, version)), ..Effect::default() };
    let removed =
        sqlx::query("DELETE FROM holders WHERE name = $1 AND (time < $2 OR (time = $2 AND hash <= $3))")
            .bind(name.as_str())
            .bind(integer(version.time.0, "the version's time")?)
            .bind(version.hash.as_bytes().as_slice())
            .execute(&mut *conn)
            .await?;
    effect.holders = -i64::try_from(removed.rows_affected()).unwrap_or(i64::MAX);
    match known {
        Some(known) if known.version > version => {}
        known => {
            put_withdrawn(conn, name, version).await?;
            effect.contents = -i64::from(known.is_some_and(|k| k.held > 0));
        }
    }
    Ok(effect)
}

async fn put_holder(
    conn: &mut Connection,
    name: &ContentName,
    holder: &Holder,
    version: Version,
) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO holders (name, kind, holder, time, hash) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name, kind, holder) DO UPDATE SET time = excluded.time, hash = excluded.hash",
    )
    .bind(name.as_str())
    .bind(holder.kind)
    .bind(&holder.name)
    .bind(integer(version.time.0, "the version's time")?)
    .bind(version.hash.as_bytes().as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

async fn set_held(conn: &mut Connection, name: &ContentName, held: i64) -> Result<(), Failure> {
    sqlx::query("UPDATE contents SET held = $1 WHERE name = $2")
        .bind(held)
        .bind(name.as_str())
        .execute(conn)
        .await?;
    Ok(())
}

async fn put_newest(conn: &mut Connection, new: Held<'_>, withdrawn: bool, held: i64) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO contents (name, time, hash, len, media_type, provider, withdrawn, held)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (name) DO UPDATE SET
             time = excluded.time, hash = excluded.hash, len = excluded.len, media_type = excluded.media_type,
             provider = excluded.provider, withdrawn = excluded.withdrawn, held = excluded.held",
    )
    .bind(new.name.as_str())
    .bind(integer(new.version.time.0, "the version's time")?)
    .bind(new.version.hash.as_bytes().as_slice())
    .bind(integer(new.len, "the content's length")?)
    .bind(new.media_type)
    .bind(new.provider.as_str())
    .bind(i64::from(withdrawn))
    .bind(held)
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes a withdrawal, also of a name that was never announced: its holders' announcements may come later.
async fn put_withdrawn(conn: &mut Connection, name: &ContentName, version: Version) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO contents (name, time, hash, len, media_type, provider, withdrawn, held)
         VALUES ($1, $2, $3, 0, '', '', 1, 0)
         ON CONFLICT (name) DO UPDATE SET
             time = excluded.time, hash = excluded.hash, withdrawn = excluded.withdrawn, held = excluded.held",
    )
    .bind(name.as_str())
    .bind(integer(version.time.0, "the version's time")?)
    .bind(version.hash.as_bytes().as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

/// Names listed, and rows of holders.
pub async fn totals(conn: &mut Connection) -> Result<(i64, i64), Failure> {
    let contents: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM contents WHERE held > 0").fetch_one(&mut *conn).await?;
    let holders: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM holders").fetch_one(conn).await?;
    Ok((contents, holders))
}
