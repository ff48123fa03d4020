//! Finding contents: one by name, many by prefix (with the meaning of S3's listing), many by a part of the name.

use common::api::search::{ContentInfo, ContentPage, ContentSummary, ListQuery};
use common::error::ErrorCode;
use common::id::{BucketName, ClientId, ServerName, SiteId};
use common::name::ContentName;

use crate::db::{Connection, version_of};
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
    loop {
        // One more than fits tells whether there is a next page.
        let wanted = limit + 1 - page.contents.len() - page.prefixes.len();
        let rows = range(conn, &start, &end, wanted).await?;
        let is_end = rows.len() < wanted;
        for row in rows {
            let key = &row.0[key_start..];
            let common = common_prefix(key, query.prefix.len(), delimiter);
            start = match common {
                // Also leaps over the rest of those keys, however many, should the rows end here.
                Some(common) => successor(&row.0[..key_start + common.len()]).unwrap_or_default(),
                None => just_after(&row.0),
            };
            if common.is_some() && page.prefixes.last().map(String::as_str) == common {
                continue;
            }
            if page.contents.len() + page.prefixes.len() == limit {
                page.next = Some(last);
                return Ok(page);
            }
            last = common.unwrap_or(key).to_owned();
            match common {
                Some(common) => page.prefixes.push(common.to_owned()),
                None => page.contents.push(summary_of(row)?),
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

/// Contents whose name contains `text`, letter case of a-z aside. Reads names one after the other.
pub async fn find(
    conn: &mut Connection,
    text: &str,
    after: &str,
    limit: Option<u32>,
) -> Result<ContentPage, Failure> {
    let limit = check(text, after, "", limit)?;
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    let mut rows: Vec<Columns> = sqlx::query_as(
        r"SELECT name, time, hash, len, media_type, provider FROM contents
          WHERE held > 0 AND name > $1 AND LOWER(name) LIKE LOWER($2) ESCAPE '\' ORDER BY name LIMIT $3",
    )
    .bind(after)
    .bind(pattern)
    .bind(i64::try_from(limit + 1).unwrap_or(i64::MAX))
    .fetch_all(conn)
    .await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = if more { rows.last().map(|r| r.0.clone()) } else { None };
    let contents = rows.into_iter().map(summary_of).collect::<Result<_, _>>()?;
    Ok(ContentPage { contents, prefixes: Vec::new(), next })
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
