//! S3-compatible stores, also buckets that are not ours: read only, with keys from the environment or a file, or
//! without any. Keys are never part of a URL, since URLs are stored, shown and logged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::{Error as PathError, Path};
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};
use percent_encoding::percent_decode_str;

use common::s3::{self, KeysFile};

use super::{Facts, GROUP, Groups, Listing, SourceError, facts_of};

const PARAMETERS: [&str; 6] = ["endpoint", "region", "anonymous", "credentials", "profile", "style"];
/// A collector waits ten seconds for a chunk; what fails for longer is told.
const RETRY_TIME_MAX: Duration = Duration::from_secs(8);
const PAGE: usize = 1000;

/// Opens `bucket/prefix?endpoint=&region=&anonymous=&credentials=&profile=&style=`.
pub fn open(rest: &str) -> Result<(Arc<dyn ObjectStore>, Lister), String> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() {
        return Err("the bucket is missing".into());
    }
    if bucket.contains(['@', ':']) {
        return Err("keys do not belong into a URL; use credentials=FILE or AWS_ACCESS_KEY_ID and \
                    AWS_SECRET_ACCESS_KEY"
            .into());
    }
    let store = Arc::new(client(bucket, &parameters(query)?)?);
    let prefix = Path::parse(prefix).map_err(|e| e.to_string())?;
    let lister = Lister { store: store.clone(), prefix: prefix.clone() };
    Ok(if prefix.is_root() { (store, lister) } else { (Arc::new(PrefixStore::new(store, prefix)), lister) })
}

fn client(bucket: &str, given: &BTreeMap<&str, String>) -> Result<AmazonS3, String> {
    let endpoint = given.get("endpoint");
    if endpoint.is_some_and(|e| !e.starts_with("http://") && !e.starts_with("https://")) {
        return Err("endpoint must begin with http:// or https://".into());
    }
    if endpoint.is_some_and(|e| e.contains('@')) {
        return Err("keys do not belong into the endpoint; use credentials=FILE".into());
    }
    let retry = RetryConfig { retry_timeout: RETRY_TIME_MAX, max_retries: 4, ..RetryConfig::default() };
    let region = given.get("region").map(String::as_str);
    let profile = given.get("profile").map_or("default", String::as_str);
    let is_anonymous = match given.get("anonymous").map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err("anonymous is true or false".into()),
    };
    if is_anonymous && given.contains_key("credentials") {
        return Err("a bucket is read anonymously or with credentials, not both".into());
    }
    let keys = given.get("credentials").map(|file| KeysFile { path: file.into(), profile: profile.into() });
    let builder = s3::client(bucket, endpoint.map(String::as_str), region, keys.as_ref())?;
    let mut builder = builder.with_retry(retry).with_skip_signature(is_anonymous);
    match given.get("style").map(String::as_str) {
        None | Some("path") => {}
        Some("virtual") => builder = builder.with_virtual_hosted_style_request(true),
        Some(_) => return Err("style is path or virtual".into()),
    }
    builder.build().map_err(|e| e.to_string())
}

fn parameters(query: &str) -> Result<BTreeMap<&'static str, String>, String> {
    let mut given = BTreeMap::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(known) = PARAMETERS.iter().find(|known| **known == key) else {
            return Err(format!("unknown parameter {key:?}; there are {}", PARAMETERS.join(", ")));
        };
        let value = percent_decode_str(value).decode_utf8().map_err(|e| format!("{key}: {e}"))?;
        given.insert(*known, value.into_owned());
    }
    Ok(given)
}

/// The URL without what might be a key: what stands before an `@`, and values of unknown parameters.
pub fn without_keys(url: &str) -> String {
    let (place, query) = url.split_once('?').map_or((url, None), |(place, query)| (place, Some(query)));
    let hide_user = |text: &str| match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}://…{}", &text[..scheme], &text[at..]),
        (None, Some(at)) => format!("…{}", &text[at..]),
        _ => text.to_owned(),
    };
    let mut shown = hide_user(place);
    for (i, pair) in query.into_iter().flat_map(|q| q.split('&')).enumerate() {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = match percent_decode_str(value).decode_utf8() {
            Ok(value) if PARAMETERS.contains(&key) => hide_user(&value),
            _ => "…".to_owned(),
        };
        shown.push_str(&format!("{}{key}={value}", if i == 0 { '?' } else { '&' }));
    }
    shown
}

/// Lists a bucket page by page, in the order of keys.
#[derive(Clone)]
pub struct Lister {
    store: Arc<AmazonS3>,
    prefix: Path,
}

impl Lister {
    /// Sends the facts of every object. A page with a key that has no [`Path`] fails as a whole: it is asked for in
    /// smaller pieces, down to the one key, which is passed over.
    pub async fn list(&self, groups: &Groups) -> Result<Listing, SourceError> {
        let prefix = if self.prefix.is_root() { String::new() } else { format!("{}/", self.prefix) };
        let mut listing = Listing::default();
        let (mut offset, mut page_token) = (None, None);
        let mut max_keys = PAGE;
        loop {
            let options = PaginatedListOptions {
                offset: offset.clone(),
                page_token: page_token.clone(),
                max_keys: Some(max_keys),
                ..PaginatedListOptions::default()
            };
            let page = match self.store.list_paginated(Some(&prefix), options).await {
                Ok(page) => page,
                Err(object_store::Error::InvalidPath { .. }) if max_keys > 1 => {
                    max_keys /= 2;
                    continue;
                }
                Err(object_store::Error::InvalidPath { source }) => {
                    tracing::debug!(%source, "a key that has no path; left out");
                    listing.left_out += 1;
                    (offset, page_token, max_keys) = (Some(key_of(source)?), None, PAGE);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let facts = page.result.objects.into_iter().filter_map(|object| self.below(facts_of(object)));
            let mut facts = facts.peekable();
            while facts.peek().is_some() {
                if groups.send(facts.by_ref().take(GROUP).collect()).await.is_err() {
                    return Ok(listing);
                }
            }
            if page.page_token.is_none() {
                return Ok(listing);
            }
            (page_token, max_keys) = (page.page_token, PAGE);
        }
    }

    /// Facts with the location below the prefix.
    fn below(&self, facts: Facts) -> Option<Facts> {
        if self.prefix.is_root() {
            return Some(facts);
        }
        let location = facts.location.strip_prefix(self.prefix.as_ref())?.strip_prefix('/')?.to_owned();
        Some(Facts { location, ..facts })
    }
}

/// The key that an error tells of.
fn key_of(error: PathError) -> Result<String, SourceError> {
    match error {
        PathError::EmptySegment { path }
        | PathError::BadSegment { path, .. }
        | PathError::NonUnicode { path, .. } => Ok(path),
        source => Err(object_store::Error::InvalidPath { source }.into()),
    }
}
