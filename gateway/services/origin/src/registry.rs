//! The registry: sources, and what is known of each object of theirs.

use std::collections::BTreeMap;

use common::api::node::{Holding, HoldingState, RefTag};
use common::api::search::Announcement;
use common::hash::{ChunkHash, ContentHash};
use common::id::{BucketName, ClientId};
use common::manifest::{ChunkList, ChunkRef, Manifest};
use common::name::ContentName;
use common::time::UnixMillis;
use common::version::{HybridTime, Version};

use crate::config::Source;
use crate::db::Connection;
use crate::error::{Failure, integer, natural};
use crate::manifest::Digest;
use crate::media::media_type_of;
use crate::outbox;
use crate::source::Facts;

pub async fn put_source(conn: &mut Connection, source: &Source) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO sources (bucket, provider, url, scan) VALUES ($1, $2, $3, 0)
         ON CONFLICT (bucket) DO UPDATE SET provider = excluded.provider, url = excluded.url",
    )
    .bind(source.bucket.as_str())
    .bind(source.provider.as_str())
    .bind(&source.url)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn sources(conn: &mut Connection) -> Result<Vec<Source>, Failure> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT bucket, provider, url FROM sources ORDER BY bucket").fetch_all(conn).await?;
    let read = |(bucket, provider, url): (String, String, String)| {
        Ok(Source { bucket: BucketName::new(&bucket)?, provider: ClientId::new(&provider)?, url })
    };
    rows.into_iter().map(read).collect()
}

/// Begins a scan of a bucket's source; answers its number.
pub async fn begin_scan(conn: &mut Connection, bucket: &BucketName) -> Result<i64, Failure> {
    sqlx::query("UPDATE sources SET scan = scan + 1 WHERE bucket = $1")
        .bind(bucket.as_str())
        .execute(&mut *conn)
        .await?;
    Ok(sqlx::query_scalar("SELECT scan FROM sources WHERE bucket = $1")
        .bind(bucket.as_str())
        .fetch_one(conn)
        .await?)
}

/// What is known of an object, whether or not it is still there.
#[derive(Debug, Clone)]
pub struct Known {
    pub facts: Facts,
    pub gone: bool,
    pub version: Version,
    pub len: u64,
    pub media_type: String,
    pub since: UnixMillis,
    /// Encoded chunk list.
    pub chunks: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct Row {
    location: String,
    size: i64,
    modified: i64,
    tag: String,
    gone: bool,
    time: i64,
    hash: Vec<u8>,
    len: i64,
    media_type: String,
    since: i64,
    chunks: Vec<u8>,
}

pub async fn find(conn: &mut Connection, name: &ContentName) -> Result<Option<Known>, Failure> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT location, size, modified, tag, gone, time, hash, len, media_type, since, chunks
         FROM contents WHERE name = $1",
    )
    .bind(name.as_str())
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Known {
        version: version_of(row.time, &row.hash)?,
        facts: Facts {
            location: row.location,
            size: natural(row.size),
            modified: UnixMillis(natural(row.modified)),
            tag: row.tag,
        },
        gone: row.gone,
        len: natural(row.len),
        media_type: row.media_type,
        since: UnixMillis(natural(row.since)),
        chunks: row.chunks,
    }))
}

fn version_of(time: i64, hash: &[u8]) -> Result<Version, Failure> {
    let hash: [u8; 32] = hash
        .try_into()
        .map_err(|_| sqlx::Error::Decode(format!("a hash has {} bytes, not 32", hash.len()).into()))?;
    Ok(Version { time: HybridTime(natural(time)), hash: ContentHash::from_bytes(hash) })
}

/// What decides whether an object must be read: cheaper than [`find`], which brings the chunk list.
pub async fn is_unchanged(conn: &mut Connection, name: &ContentName, facts: &Facts) -> Result<bool, Failure> {
    let row: Option<(String, i64, i64, String)> =
        sqlx::query_as("SELECT location, size, modified, tag FROM contents WHERE name = $1 AND gone = FALSE")
            .bind(name.as_str())
            .fetch_optional(conn)
            .await?;
    Ok(row.is_some_and(|(location, size, modified, tag)| {
        location == facts.location
            && natural(size) == facts.size
            && natural(modified) == facts.modified.0
            && tag == facts.tag
    }))
}

/// Notes that a scan saw the object.
pub async fn mark_seen(conn: &mut Connection, name: &ContentName, scan: i64) -> Result<(), Failure> {
    sqlx::query("UPDATE contents SET scan = $1 WHERE name = $2")
        .bind(scan)
        .bind(name.as_str())
        .execute(conn)
        .await?;
    Ok(())
}

/// Registers what was read, and announces it unless that version was announced before. The version's time is
/// the object's own, or just after the version that it replaces.
pub async fn put(
    conn: &mut Connection,
    source: &Source,
    name: &ContentName,
    facts: &Facts,
    digest: &Digest,
    now: UnixMillis,
) -> Result<bool, Failure> {
    let known = find(conn, name).await?;
    let media_type = media_type_of(name.key());
    let same =
        known.as_ref().filter(|k| !k.gone && k.version.hash == digest.hash && k.media_type == media_type);
    let version = match same {
        Some(known) => known.version,
        None => {
            // An object dated in the future is as new as the moment it was found.
            let modified = facts.modified.min(now);
            let time = HybridTime::next(modified, known.as_ref().map(|k| k.version.time));
            Version { time, hash: digest.hash }
        }
    };
    let since = same.map_or(now, |k| k.since);
    let is_new = same.is_none();
    sqlx::query(
        "INSERT INTO contents
             (name, bucket, location, size, modified, tag, scan, gone, time, hash, len, media_type, since, chunks)
         VALUES ($1, $2, $3, $4, $5, $6, 0, FALSE, $7, $8, $9, $10, $11, $12)
         ON CONFLICT (name) DO UPDATE SET
             location = excluded.location, size = excluded.size, modified = excluded.modified, tag = excluded.tag,
             gone = FALSE, time = excluded.time, hash = excluded.hash, len = excluded.len,
             media_type = excluded.media_type, since = excluded.since, chunks = excluded.chunks",
    )
    .bind(name.as_str())
    .bind(source.bucket.as_str())
    .bind(&facts.location)
    .bind(integer(facts.size))
    .bind(integer(facts.modified.0))
    .bind(&facts.tag)
    .bind(integer(version.time.0))
    .bind(version.hash.as_bytes().as_slice())
    .bind(integer(digest.len))
    .bind(media_type)
    .bind(integer(since.0))
    .bind(ChunkList::encode(&digest.chunks))
    .execute(&mut *conn)
    .await?;
    if is_new {
        let provider = source.provider.clone();
        let media_type = media_type.to_owned();
        let hold = Announcement::Hold { name: name.clone(), version, len: digest.len, media_type, provider };
        outbox::append(conn, &hold).await?;
    }
    Ok(is_new)
}

/// Names of a bucket that were not seen by this scan, which must have come to its end.
pub async fn vanished(
    conn: &mut Connection,
    bucket: &BucketName,
    scan: i64,
    limit: i64,
) -> Result<Vec<ContentName>, Failure> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM contents WHERE bucket = $1 AND gone = FALSE AND scan < $2 LIMIT $3",
    )
    .bind(bucket.as_str())
    .bind(scan)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(names.iter().map(|n| n.parse()).collect::<Result<_, _>>()?)
}

/// Notes that an object is gone, and announces it.
pub async fn withdraw(conn: &mut Connection, name: &ContentName) -> Result<(), Failure> {
    let Some(known) = find(conn, name).await?.filter(|k| !k.gone) else { return Ok(()) };
    sqlx::query("UPDATE contents SET gone = TRUE WHERE name = $1")
        .bind(name.as_str())
        .execute(&mut *conn)
        .await?;
    outbox::append(conn, &Announcement::Withdraw { name: name.clone(), version: known.version }).await
}

/// Announces everything anew, in an epoch of its own: search has lost what it was told.
pub async fn announce_all(conn: &mut Connection, now: UnixMillis) -> Result<(), Failure> {
    outbox::restart(conn, now).await?;
    let mut after = String::new();
    loop {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM contents WHERE gone = FALSE AND name > $1 ORDER BY name LIMIT 500",
        )
        .bind(&after)
        .fetch_all(&mut *conn)
        .await?;
        let Some(last) = names.last() else { return Ok(()) };
        after = last.clone();
        for name in names {
            let name: ContentName = name.parse()?;
            if let Some(holding) = holding(conn, &name).await? {
                let Holding { name, version, manifest, provider, .. } = holding;
                let (len, media_type) = (manifest.len, manifest.media_type);
                outbox::append(conn, &Announcement::Hold { name, version, len, media_type, provider })
                    .await?;
            }
        }
    }
}

/// Number of contents that are there.
pub async fn count(conn: &mut Connection) -> Result<i64, Failure> {
    Ok(sqlx::query_scalar("SELECT COUNT(*) FROM contents WHERE gone = FALSE").fetch_one(conn).await?)
}

/// The content as it is told to a collector.
pub async fn holding(conn: &mut Connection, name: &ContentName) -> Result<Option<Holding>, Failure> {
    let Some(known) = find(conn, name).await?.filter(|k| !k.gone) else { return Ok(None) };
    let provider: Option<String> = sqlx::query_scalar("SELECT provider FROM sources WHERE bucket = $1")
        .bind(name.bucket())
        .fetch_optional(conn)
        .await?;
    let Some(provider) = provider else { return Ok(None) };
    let chunks = match stored_list(&known.chunks) {
        Some(list) => ChunkList::Stored { list, count: (known.chunks.len() / ChunkRef::ENCODED_LEN) as u32 },
        None => {
            let chunks = ChunkList::decode(&known.chunks);
            ChunkList::Inline(chunks.map_err(|e| sqlx::Error::Decode(e.into()))?)
        }
    };
    let manifest = Manifest {
        hash: known.version.hash,
        len: known.len,
        media_type: known.media_type,
        metadata: BTreeMap::new(),
        chunks,
    };
    Ok(Some(Holding {
        name: name.clone(),
        version: known.version,
        manifest,
        provider: ClientId::new(&provider)?,
        state: HoldingState::Complete,
        // An origin keeps no back-references: its chunks are parts of its objects.
        ref_tag: RefTag(0),
        since: known.since,
    }))
}

/// The chunk that a long chunk list is sent as; `None` for one that travels in the manifest.
pub fn stored_list(encoded: &[u8]) -> Option<ChunkRef> {
    let is_long = encoded.len() > ChunkList::INLINE_MAX * ChunkRef::ENCODED_LEN;
    is_long.then(|| ChunkRef { hash: ChunkHash::of(encoded), len: encoded.len() as u32 })
}
