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

/// An object that was read.
pub struct Found<'a> {
    pub name: &'a ContentName,
    pub facts: &'a Facts,
    pub digest: Digest,
}

/// What registering objects led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registered {
    /// Contents that were not there before.
    pub new: u64,
    /// Versions that search is told of.
    pub announced: u64,
}

#[derive(sqlx::FromRow)]
struct Before {
    name: String,
    gone: bool,
    time: i64,
    hash: Vec<u8>,
    media_type: String,
    since: i64,
}

/// Registers what was read, and announces what was not announced as it is. A version's time is the object's own, or
/// just after the version that it replaces. The names differ; there are at most [`crate::source::GROUP`].
pub async fn put(
    conn: &mut Connection,
    source: &Source,
    found: &[Found<'_>],
    now: UnixMillis,
) -> Result<Registered, Failure> {
    if found.is_empty() {
        return Ok(Registered::default());
    }
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT name, gone, time, hash, media_type, since FROM contents WHERE name IN (",
    );
    let mut list = query.separated(", ");
    for object in found {
        list.push_bind(object.name.as_str());
    }
    query.push(")");
    let before: Vec<Before> = query.build_query_as().fetch_all(&mut *conn).await?;
    let before: HashMap<&str, &Before> = before.iter().map(|row| (row.name.as_str(), row)).collect();
    // What is there now was seen by the scan under way, whoever found it.
    let scan: i64 = sqlx::query_scalar("SELECT scan FROM sources WHERE bucket = $1")
        .bind(source.bucket.as_str())
        .fetch_one(&mut *conn)
        .await?;
    let mut registered = Registered::default();
    let mut announcements = Vec::new();
    let mut rows = Vec::with_capacity(found.len());
    for Found { name, facts, digest } in found {
        let known = before.get(name.as_str()).copied();
        let media_type = media_type_of(name.key());
        let same = known.filter(|known| {
            !known.gone && known.hash == digest.hash.as_bytes() && known.media_type == media_type
        });
        let (time, since) = match same {
            Some(same) => (HybridTime(natural(same.time)), UnixMillis(natural(same.since))),
            None => {
                // An object dated in the future is as new as the moment it was found.
                let modified = facts.modified.min(now);
                (HybridTime::next(modified, known.map(|known| HybridTime(natural(known.time)))), now)
            }
        };
        if same.is_none() {
            let version = Version { time, hash: digest.hash };
            let (provider, media_type) = (source.provider.clone(), media_type.to_owned());
            let name = (*name).clone();
            announcements.push(Announcement::Hold { name, version, len: digest.len, media_type, provider });
            registered.announced += 1;
            registered.new += u64::from(known.is_none_or(|known| known.gone));
        }
        rows.push((name, facts, digest, time, media_type, since));
    }
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO contents (name, bucket, location, size, modified, tag, scan, gone, time, hash, len, media_type, \
         since, chunks) ",
    );
    query.push_values(rows, |mut row, (name, facts, digest, time, media_type, since)| {
        row.push_bind(name.as_str())
            .push_bind(source.bucket.as_str())
            .push_bind(&facts.location)
            .push_bind(integer(facts.size))
            .push_bind(integer(facts.modified.0))
            .push_bind(&facts.tag)
            .push_bind(scan)
            .push_bind(false)
            .push_bind(integer(time.0))
            .push_bind(digest.hash.as_bytes().as_slice())
            .push_bind(integer(digest.len))
            .push_bind(media_type)
            .push_bind(integer(since.0))
            .push_bind(ChunkList::encode(&digest.chunks));
    });
    query.push(
        " ON CONFLICT (name) DO UPDATE SET
             location = excluded.location, size = excluded.size, modified = excluded.modified, tag = excluded.tag,
             scan = excluded.scan, gone = FALSE, time = excluded.time, hash = excluded.hash, len = excluded.len,
             media_type = excluded.media_type, since = excluded.since, chunks = excluded.chunks",
    );
    query.build().execute(&mut *conn).await?;
    outbox::append(conn, &announcements).await?;
    Ok(registered)
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
    let withdraw = Announcement::Withdraw { name: name.clone(), version: known.version };
    outbox::append(conn, &[withdraw]).await?;
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
        let mut announcements = Vec::with_capacity(names.len());
        for name in names {
            let name: ContentName = name.parse()?;
            if let Some(holding) = holding(conn, &name).await? {
                let Holding { name, version, manifest, provider, .. } = holding;
                let (len, media_type) = (manifest.len, manifest.media_type);
                announcements.push(Announcement::Hold { name, version, len, media_type, provider });
            }
        }
        outbox::append(conn, &announcements).await?;
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
