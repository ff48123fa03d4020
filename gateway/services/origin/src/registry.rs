//! The registry: sources, and what is known of each object of theirs.

use std::collections::{BTreeMap, HashMap};

use sqlx::{QueryBuilder, Sqlite};

use common::api::node::{Holding, HoldingState, RefTag};
use common::api::origin::Source;
use common::api::search::Announcement;
use common::hash::{ChunkHash, ContentHash};
use common::id::{BucketName, ClientId};
use common::manifest::{ChunkList, ChunkRef, Manifest};
use common::name::ContentName;
use common::time::UnixMillis;
use common::version::{HybridTime, Version};

use crate::db::Connection;
use crate::error::{Failure, integer, natural};
use crate::manifest::Digest;
use crate::media::media_type_of;
use crate::outbox;
use crate::source::Facts;

/// Makes a source, or changes one that is there. At another URL nothing is known of the place of its contents.
pub async fn put_source(conn: &mut Connection, source: &Source) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO sources (bucket, provider, url, read_concurrency, scan) VALUES ($1, $2, $3, $4, 0)
         ON CONFLICT (bucket) DO UPDATE SET
             provider = excluded.provider, url = excluded.url, read_concurrency = excluded.read_concurrency,
             place = CASE WHEN sources.url = excluded.url THEN sources.place ELSE '' END, removing = FALSE",
    )
    .bind(source.bucket.as_str())
    .bind(source.provider.as_str())
    .bind(&source.url)
    .bind(source.read_concurrency.map(i64::from))
    .execute(conn)
    .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct SourceRow {
    bucket: String,
    provider: String,
    url: String,
    read_concurrency: Option<i64>,
    removing: bool,
}

/// A source as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSource {
    pub source: Source,
    pub removing: bool,
}

pub async fn sources(conn: &mut Connection) -> Result<Vec<KeptSource>, Failure> {
    let rows: Vec<SourceRow> = sqlx::query_as(
        "SELECT bucket, provider, url, read_concurrency, removing FROM sources ORDER BY bucket",
    )
    .fetch_all(conn)
    .await?;
    let read = |row: SourceRow| {
        let source = Source {
            bucket: BucketName::new(&row.bucket)?,
            provider: ClientId::new(&row.provider)?,
            url: row.url,
            read_concurrency: row.read_concurrency.and_then(|n| u32::try_from(n).ok()),
        };
        Ok(KeptSource { source, removing: row.removing })
    };
    rows.into_iter().map(read).collect()
}

/// Notes that a source is to be removed; from then on it is, whatever happens.
pub async fn begin_removing(conn: &mut Connection, bucket: &BucketName) -> Result<(), Failure> {
    sqlx::query("UPDATE sources SET removing = TRUE WHERE bucket = $1")
        .bind(bucket.as_str())
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn forget_source(conn: &mut Connection, bucket: &BucketName) -> Result<(), Failure> {
    sqlx::query("DELETE FROM sources WHERE bucket = $1").bind(bucket.as_str()).execute(conn).await?;
    Ok(())
}

/// Where the contents were when they were last seen; empty if that says nothing.
pub async fn place(conn: &mut Connection, bucket: &BucketName) -> Result<String, Failure> {
    let place = sqlx::query_scalar("SELECT place FROM sources WHERE bucket = $1").bind(bucket.as_str());
    Ok(place.fetch_optional(conn).await?.unwrap_or_default())
}

pub async fn put_place(conn: &mut Connection, bucket: &BucketName, place: &str) -> Result<(), Failure> {
    sqlx::query("UPDATE sources SET place = $1 WHERE bucket = $2")
        .bind(place)
        .bind(bucket.as_str())
        .execute(conn)
        .await?;
    Ok(())
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

/// What the registry knows of those of the names that are there: cheaper than [`find`], which brings chunk lists.
pub async fn facts(conn: &mut Connection, names: &[&ContentName]) -> Result<HashMap<String, Facts>, Failure> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT name, location, size, modified, tag FROM contents WHERE gone = FALSE AND name IN (",
    );
    let mut list = query.separated(", ");
    for name in names {
        list.push_bind(name.as_str());
    }
    query.push(")");
    let rows: Vec<(String, String, i64, i64, String)> = query.build_query_as().fetch_all(conn).await?;
    let read = |(name, location, size, modified, tag)| {
        let facts = Facts { location, size: natural(size), modified: UnixMillis(natural(modified)), tag };
        (name, facts)
    };
    Ok(rows.into_iter().map(read).collect())
}

/// Notes that a scan saw the objects.
pub async fn mark_seen(conn: &mut Connection, names: &[&ContentName], scan: i64) -> Result<(), Failure> {
    let mut query = QueryBuilder::<Sqlite>::new("UPDATE contents SET scan = ");
    query.push_bind(scan).push(" WHERE name IN (");
    let mut list = query.separated(", ");
    for name in names {
        list.push_bind(name.as_str());
    }
    query.push(")");
    query.build().execute(conn).await?;
    Ok(())
}

/// What registering an object led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    NewContent,
    NewVersion,
    /// Its bytes are what they were: nothing is announced.
    SameContent,
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
) -> Result<Put, Failure> {
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
    let announced = match &same {
        Some(_) => Put::SameContent,
        None if known.as_ref().is_some_and(|k| !k.gone) => Put::NewVersion,
        None => Put::NewContent,
    };
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
    if announced != Put::SameContent {
        let provider = source.provider.clone();
        let media_type = media_type.to_owned();
        let hold = Announcement::Hold { name: name.clone(), version, len: digest.len, media_type, provider };
        outbox::append(conn, &hold).await?;
    }
    Ok(announced)
}

/// How many contents of a bucket are there, and how many of them this scan, which must have come to its end, did not
/// see.
pub async fn count_vanished(
    conn: &mut Connection,
    bucket: &BucketName,
    scan: i64,
) -> Result<(u64, u64), Failure> {
    let (known, missing): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(*), COALESCE(SUM(CASE WHEN scan < $1 THEN 1 ELSE 0 END), 0)
         FROM contents WHERE bucket = $2 AND gone = FALSE",
    )
    .bind(scan)
    .bind(bucket.as_str())
    .fetch_one(conn)
    .await?;
    Ok((natural(known), natural(missing)))
}

/// Names of a bucket that were not seen since before this scan.
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

/// Whether contents are registered whose keys begin with `folder/`.
pub async fn has_folder(conn: &mut Connection, bucket: &BucketName, folder: &str) -> Result<bool, Failure> {
    // '0' follows '/'.
    let found: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM contents WHERE name > $1 AND name < $2 AND gone = FALSE LIMIT 1")
            .bind(format!("{bucket}/{folder}/"))
            .bind(format!("{bucket}/{folder}0"))
            .fetch_optional(conn)
            .await?;
    Ok(found.is_some())
}

/// Notes that an object is gone, and announces it; false if that was known.
pub async fn withdraw(conn: &mut Connection, name: &ContentName) -> Result<bool, Failure> {
    let Some(known) = find(conn, name).await?.filter(|k| !k.gone) else { return Ok(false) };
    sqlx::query("UPDATE contents SET gone = TRUE WHERE name = $1")
        .bind(name.as_str())
        .execute(&mut *conn)
        .await?;
    outbox::append(conn, &Announcement::Withdraw { name: name.clone(), version: known.version }).await?;
    Ok(true)
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

/// Contents that are there and their bytes, by bucket.
pub async fn totals(conn: &mut Connection) -> Result<HashMap<String, (u64, u64)>, Failure> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(
        "SELECT bucket, COUNT(*), COALESCE(SUM(len), 0) FROM contents WHERE gone = FALSE GROUP BY bucket",
    )
    .fetch_all(conn)
    .await?;
    let read = |(bucket, contents, bytes)| (bucket, (natural(contents), natural(bytes)));
    Ok(rows.into_iter().map(read).collect())
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
