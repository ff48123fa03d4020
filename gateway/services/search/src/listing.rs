//! Finding contents: one by name, many by prefix (with the meaning of S3's listing), hash, provider, or a part of the name.

use common::api::search::{
    ContentInfo, ContentPage, ContentSummary, HolderLine, HolderList, HolderName, ListQuery,
};
use common::error::ErrorCode;
use common::hash::ContentHash;
use common::id::{BucketName, ClientId, ServerName, SiteId};
use common::name::ContentName;

use crate::buckets;
use crate::db::{Connection, Dialect, version_of};
use crate::error::{Failure, natural};

type Columns = (String, i64, Vec<u8>, i64, String, String);

fn summary_of((name, time, hash, len, media_type, provider): Columns) -> Result<ContentSummary, Failure> {
    Ok(ContentSummary {
        name: name.parse()?,
        version: version_of(time, &hash)?,
        len: natural(len),
        media_type,
        provider: ClientId::new(&provider)?,
    })
}

/// The newest version of a name and who holds it.
pub async fn lookup(conn: &mut Connection, name: &ContentName) -> Result<ContentInfo, Failure> {
    type Row = (i64, Vec<u8>, i64, String, String, String, String);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT c.time, c.hash, c.len, c.media_type, c.provider, h.kind, h.holder
         FROM contents c JOIN holders h ON h.name = c.name AND h.time = c.time AND h.hash = c.hash
         WHERE c.name = $1 AND c.withdrawn = 0 ORDER BY h.holder",
    )
    .bind(name.as_str())
    .fetch_all(conn)
    .await?;
    let Some((time, hash, len, media_type, provider, ..)) = rows.first() else {
        return Err(Failure::refused(ErrorCode::ContentNotFound, format!("nobody holds {name}")));
    };
    let mut info = ContentInfo {
        name: name.clone(),
        version: version_of(*time, hash)?,
        len: natural(*len),
        media_type: media_type.clone(),
        provider: ClientId::new(provider)?,
        sites: Vec::new(),
        origins: Vec::new(),
    };
    for (.., kind, holder) in &rows {
        match kind.as_str() {
            "site" => info.sites.push(SiteId::new(holder)?),
            _ => info.origins.push(ServerName::new(holder)?),
        }
    }
    Ok(info)
}

/// Every holder of a name, also of versions that are not its newest.
pub async fn holders(conn: &mut Connection, name: &ContentName) -> Result<HolderList, Failure> {
    let rows: Vec<(String, String, i64, Vec<u8>)> =
        sqlx::query_as("SELECT kind, holder, time, hash FROM holders WHERE name = $1 ORDER BY kind, holder")
            .bind(name.as_str())
            .fetch_all(conn)
            .await?;
    let line = |(kind, holder, time, hash): (String, String, i64, Vec<u8>)| {
        let holder = match kind.as_str() {
            "site" => HolderName::Site(SiteId::new(&holder)?),
            _ => HolderName::Origin(ServerName::new(&holder)?),
        };
        let version = version_of(time, &hash)?;
        Ok::<_, Failure>(HolderLine { holder, version, is_silent: false, heard_ms_ago: None })
    };
    Ok(HolderList { holders: rows.into_iter().map(line).collect::<Result<_, _>>()? })
}

/// Checks the bounds of a listing's parameters; answers the page size.
pub fn check(prefix: &str, after: &str, delimiter: &str, limit: Option<u32>) -> Result<usize, Failure> {
    let invalid = |message: String| Err(Failure::refused(ErrorCode::InvalidRequest, message));
    let bounds = [("prefix", prefix, 1024), ("after", after, 1100), ("delimiter", delimiter, 64)];
    for (what, text, max) in bounds {
        if text.len() > max || text.contains('\0') {
            return invalid(format!("{what} must have at most {max} bytes and no NUL"));
        }
    }
    let limit = limit.unwrap_or(ListQuery::LIMIT_MAX);
    if limit == 0 || limit > ListQuery::LIMIT_MAX {
        return invalid(format!("limit is {limit}; it must be 1 to {}", ListQuery::LIMIT_MAX));
    }
    Ok(limit as usize)
}

/// Rows that are read at once where they may turn out to be of one common prefix.
const FIRST_RUN: usize = 16;
const RUN_AFTER_LEAP: usize = 2;

/// A page of a bucket in the order of keys. With a delimiter, keys that share what comes before its first
/// place after the prefix are one line, their common prefix, and count as one.
pub async fn list(
    conn: &mut Connection,
    bucket: &BucketName,
    query: &ListQuery,
) -> Result<ContentPage, Failure> {
    let delimiter = query.delimiter.as_deref().unwrap_or("");
    let limit = check(&query.prefix, &query.after, delimiter, query.limit)?;
    let key_start = bucket.as_str().len() + 1;
    let whole = format!("{bucket}/{}", query.prefix);
    let end = successor(&whole).unwrap_or_default();
    let mut start = first_after(bucket, query, delimiter).max(whole);
    let mut page = ContentPage::default();
    let mut last = String::new();
    let mut run = if delimiter.is_empty() { limit + 1 } else { FIRST_RUN };
    loop {
        // One more than fits tells whether there is a next page.
        let wanted = run.min(limit + 1 - page.contents.len() - page.prefixes.len());
        let rows = range(conn, &start, &end, wanted).await?;
        let is_end = rows.len() < wanted;
        run *= 4;
        for row in rows {
            if row.0 < start {
                continue;
            }
            let key = &row.0[key_start..];
            let common = common_prefix(key, query.prefix.len(), delimiter);
            if page.contents.len() + page.prefixes.len() == limit {
                page.next = Some(last);
                return Ok(page);
            }
            last = common.unwrap_or(key).to_owned();
            match common {
                Some(common) => {
                    page.prefixes.push(common.to_owned());
                    // Leaps over the rest of those keys, however many: one look into the index for each common prefix.
                    start = successor(&row.0[..key_start + common.len()]).unwrap_or_default();
                    run = RUN_AFTER_LEAP;
                }
                None => {
                    start = just_after(&row.0);
                    page.contents.push(summary_of(row)?);
                }
            }
        }
        if is_end {
            return Ok(page);
        }
    }
}

/// The common prefix that a key belongs to, if the delimiter is in it after the prefix.
fn common_prefix<'a>(key: &'a str, prefix_len: usize, delimiter: &str) -> Option<&'a str> {
    if delimiter.is_empty() {
        return None;
    }
    let at = key[prefix_len..].find(delimiter)?;
    Some(&key[..prefix_len + at + delimiter.len()])
}

/// The least name that may follow `after`. If that is a common prefix of this listing, all under it was shown.
fn first_after(bucket: &BucketName, query: &ListQuery, delimiter: &str) -> String {
    let after = format!("{bucket}/{}", query.after);
    if query.after.is_empty() {
        return after;
    }
    let is_common = query.after.starts_with(&query.prefix)
        && common_prefix(&query.after, query.prefix.len(), delimiter) == Some(&query.after);
    if is_common { successor(&after).unwrap_or_default() } else { just_after(&after) }
}

/// The least text greater than `text`. (NUL is in no name, and not every database takes it.)
fn just_after(text: &str) -> String {
    format!("{text}\u{1}")
}

/// The least text that is greater than every text beginning with `prefix`; `None` if there is none.
fn successor(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // UTF-8 sorts as its code points do; the surrogates are none.
        let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

async fn range(conn: &mut Connection, start: &str, end: &str, limit: usize) -> Result<Vec<Columns>, Failure> {
    let rows = sqlx::query_as(
        "SELECT name, time, hash, len, media_type, provider FROM contents
         WHERE held > 0 AND name >= $1 AND name < $2 ORDER BY name LIMIT $3",
    )
    .bind(start)
    .bind(end)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(conn)
    .await?;
    Ok(rows)
}

/// Contents with this hash in their newest version, in the order of names.
pub async fn by_hash(
    conn: &mut Connection,
    hash: ContentHash,
    after: &str,
    limit: Option<u32>,
) -> Result<ContentPage, Failure> {
    let limit = check("", after, "", limit)?;
    let rows: Vec<Columns> = sqlx::query_as(
        "SELECT name, time, hash, len, media_type, provider FROM contents
         WHERE hash = $1 AND held > 0 AND name > $2 ORDER BY name LIMIT $3",
    )
    .bind(hash.as_bytes().as_slice())
    .bind(after)
    .bind(i64::try_from(limit + 1).unwrap_or(i64::MAX))
    .fetch_all(conn)
    .await?;
    page_of(rows, limit)
}

/// Contents of a provider's buckets, in the order of names.
pub async fn by_provider(
    conn: &mut Connection,
    provider: &ClientId,
    after: &str,
    limit: Option<u32>,
) -> Result<ContentPage, Failure> {
    let limit = check("", after, "", limit)?;
    let of_provider = buckets::list(conn).await?.into_iter().filter(|bucket| bucket.provider == *provider);
    let mut ranges: Vec<String> = of_provider.map(|record| format!("{}/", record.bucket)).collect();
    ranges.sort_unstable();
    let mut rows = Vec::new();
    for begin in ranges {
        let end = successor(&begin).unwrap_or_default();
        let start = if after < begin.as_str() { begin } else { just_after(after) };
        if start < end && rows.len() <= limit {
            rows.extend(range(conn, &start, &end, limit + 1 - rows.len()).await?);
        }
    }
    page_of(rows, limit)
}

/// A page of at most `limit` lines from one row more.
fn page_of(mut rows: Vec<Columns>, limit: usize) -> Result<ContentPage, Failure> {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = if more { rows.last().map(|row| row.0.clone()) } else { None };
    let contents = rows.into_iter().map(summary_of).collect::<Result<_, _>>()?;
    Ok(ContentPage { contents, prefixes: Vec::new(), next })
}

/// So many characters, or more, are looked up in an index.
const INDEXED_LEN: usize = 3;
/// How many contents one question about fewer characters reads.
const WINDOW: i64 = 100_000;

/// Contents whose name contains `text`, letter case of a-z aside, in the order in which they became known. `after` is an
/// earlier page's `next`. A page for less than three characters may have fewer lines than asked for, or none, and still a
/// next.
pub async fn find(
    conn: &mut Connection,
    dialect: Dialect,
    text: &str,
    after: &str,
    limit: Option<u32>,
) -> Result<ContentPage, Failure> {
    let limit = check(text, after, "", limit)?;
    let after: i64 = if after.is_empty() { 0 } else { after.parse().map_err(|_| no_such_page(after))? };
    let is_indexed = text.chars().count() >= INDEXED_LEN;
    let end = if is_indexed { i64::MAX } else { after.saturating_add(WINDOW) };
    type Row = (i64, String, i64, Vec<u8>, i64, String, String);
    let sql = match dialect {
        Dialect::Sqlite if is_indexed => {
            r"SELECT c.id, c.name, c.time, c.hash, c.len, c.media_type, c.provider
              FROM names JOIN contents c ON c.id = names.rowid
              WHERE names.rowid > $1 AND names.rowid <= $2 AND c.held > 0 AND c.name LIKE $3 ESCAPE '\'
                  AND names MATCH $5
              ORDER BY names.rowid LIMIT $4"
        }
        Dialect::Sqlite => {
            r"SELECT id, name, time, hash, len, media_type, provider FROM contents
              WHERE id > $1 AND id <= $2 AND held > 0 AND name LIKE $3 ESCAPE '\' ORDER BY id LIMIT $4"
        }
        Dialect::Postgres => {
            "SELECT id, name, time, hash, len, media_type, provider FROM contents
             WHERE id > $1 AND id <= $2 AND held > 0 AND lower(name) LIKE lower($3) ORDER BY id LIMIT $4"
        }
    };
    let mut query = sqlx::query_as(sql)
        .bind(after)
        .bind(end)
        .bind(pattern(text))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX));
    if dialect == Dialect::Sqlite && is_indexed {
        query = query.bind(trigrams(text));
    }
    let rows: Vec<Row> = query.fetch_all(&mut *conn).await?;
    let next = match rows.last() {
        Some(last) if rows.len() == limit => Some(last.0),
        _ if is_indexed => None,
        _ => Some(end),
    };
    let next = match next {
        Some(next) if is_known_after(conn, next).await? => Some(next.to_string()),
        _ => None,
    };
    let line = |(_, name, time, hash, len, media_type, provider): Row| {
        summary_of((name, time, hash, len, media_type, provider))
    };
    Ok(ContentPage {
        contents: rows.into_iter().map(line).collect::<Result<_, _>>()?,
        prefixes: Vec::new(),
        next,
    })
}

fn no_such_page(after: &str) -> Failure {
    let message = format!("`after` is {after:?}; give `next` of the page before");
    Failure::refused(ErrorCode::InvalidRequest, message)
}

async fn is_known_after(conn: &mut Connection, id: i64) -> Result<bool, Failure> {
    let newest: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) FROM contents").fetch_one(conn).await?;
    Ok(newest > id)
}

/// For LIKE.
fn pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

/// The question for every three characters that follow each other, as FTS5 has it.
fn trigrams(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let quoted = |three: &[char]| format!("\"{}\"", three.iter().collect::<String>().replace('"', "\"\""));
    chars.windows(INDEXED_LEN).map(quoted).collect::<Vec<_>>().join(" AND ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_successor_parts_what_begins_with_a_prefix_from_what_follows(
            prefix in "\\PC{1,6}", rest in "\\PC{0,4}", other in "\\PC{0,8}",
        ) {
            let end = successor(&prefix).unwrap();
            let inside = format!("{prefix}{rest}");
            prop_assert!(inside < end);
            if !other.starts_with(&prefix) {
                prop_assert!(other < prefix || other >= end);
            }
        }
    }

    #[test]
    fn the_successor_steps_over_the_surrogates_and_carries() {
        assert_eq!(successor("a\u{d7ff}").as_deref(), Some("a\u{e000}"));
        assert_eq!(successor("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(successor("\u{10ffff}"), None);
    }
}
