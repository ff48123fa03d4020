//! The head of an answer: what the headers say of a content and of its delivery.

use common::api::gateway::{METADATA_PREFIX, SOURCE, SOURCE_SITE};
use common::api::node::Holding;
use common::client::encode;
use common::record::{DeliveryClass, DeliveryPath, Source};
use http::header::{ACCEPT_RANGES, CONTENT_TYPE, ETAG, LAST_MODIFIED, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Headers that describe a content, whole or in part.
pub fn head_of(holding: &Holding, path: DeliveryPath, source: Option<&Source>) -> HeaderMap {
    let manifest = &holding.manifest;
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(ETAG, header(&etag(holding)));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, header(&manifest.media_type));
    headers.insert(LAST_MODIFIED, header(&holding.version.time.millis().http_date()));
    // The provider chose the media type; a browser shall not guess another.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(SOURCE, HeaderValue::from_static(path_text(path)));
    match source {
        Some(Source::Site(site)) => headers.insert(SOURCE_SITE, header(site.as_str())),
        Some(Source::Origin(origin)) => headers.insert(SOURCE_SITE, header(origin.as_str())),
        None => None,
    };
    for (key, value) in &manifest.metadata {
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(format!("{METADATA_PREFIX}{key}").as_bytes()),
            HeaderValue::from_str(value),
        ) {
            headers.insert(name, value);
        }
    }
    headers
}

/// A header value from text of ours; what a header cannot carry is percent-encoded.
pub fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text)
        .or_else(|_| HeaderValue::from_str(&encode(text).to_string()))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

pub fn class_text(class: DeliveryClass) -> &'static str {
    match class {
        DeliveryClass::Purchase => "purchase",
        DeliveryClass::Reference => "reference",
    }
}

fn path_text(path: DeliveryPath) -> &'static str {
    match path {
        DeliveryPath::Hit => "hit",
        DeliveryPath::Peer => "peer",
        DeliveryPath::Origin => "origin",
    }
}

pub fn etag(holding: &Holding) -> String {
    format!("\"{}\"", holding.manifest.hash)
}
