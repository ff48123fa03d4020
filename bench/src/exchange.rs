//! One PUT or GET of a content, with all that is checked about its answer.

use common::api::gateway::{CLASS, DELIVERY, Published, SOURCE};
use common::hash::ContentHash;
use common::id::DeliveryId;
use http::header::ETAG;
use http::{HeaderMap, HeaderName, Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::content::Content;
use crate::measure::{Source, Tally};
use crate::plan::Verify;
use crate::wire::{Connection, Outgoing, WireError, read_text};

/// Puts one content.
pub async fn store(
    connection: &mut Connection,
    path: &str,
    content: Content,
) -> Result<Published, WireError> {
    let response = connection.send(Method::PUT, path, Outgoing::content(content)).await?;
    let text = read_text(response.into_body()).await?;
    serde_json::from_slice(&text).map_err(|_| WireError::Answer)
}

/// A content that was received.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    pub bytes: u64,
    pub source: Source,
}

/// Gets one content and checks it. What is wrong is counted in `tally`, and so is the delivery.
pub async fn fetch(
    connection: &mut Connection,
    path: &str,
    content: Content,
    expected: Option<&ContentHash>,
    verify: Verify,
    tally: &mut Tally,
) -> Result<Fetched, WireError> {
    let response = connection.send(Method::GET, path, Outgoing::EMPTY).await?;
    let headers = response.headers();
    let source = Source::of(text(headers, &SOURCE));
    let delivery = text(headers, &DELIVERY).and_then(|id| id.parse::<DeliveryId>().ok());
    for (name, counts) in [(&SOURCE, &mut tally.deliveries.sources), (&CLASS, &mut tally.deliveries.classes)]
    {
        if let Some(value) = text(headers, name) {
            match counts.get_mut(value) {
                Some(count) => *count += 1,
                None => drop(counts.insert(value.to_owned(), 1)),
            }
        }
    }
    let mut wrong = None;
    if verify != Verify::Off {
        let etag = text(headers, &ETAG).map(|etag| etag.trim_matches('"'));
        if let (Some(expected), etag) = (expected, etag)
            && etag != Some(expected.to_string().as_str())
        {
            wrong = Some(format!("{path}: the ETag is {etag:?}, not {expected}"));
        }
        if delivery.is_none() {
            wrong = Some(format!("{path}: the answer names no delivery"));
        }
    }
    let received = match read_content(response, content, verify).await {
        Ok((len, matches)) => {
            if verify != Verify::Off && (len != content.len || !matches) {
                wrong =
                    Some(format!("{path}: {len} bytes received, {} expected, or bytes differ", content.len));
            }
            tally.deliveries.whole.extend(delivery);
            Ok(Fetched { bytes: len, source })
        }
        Err(error) => {
            tally.deliveries.broken.extend(delivery);
            Err(error)
        }
    };
    if let Some(what) = wrong {
        tally.wrong(what);
    }
    received
}

async fn read_content(
    response: Response<Incoming>,
    content: Content,
    verify: Verify,
) -> Result<(u64, bool), WireError> {
    let mut body = response.into_body();
    let (mut offset, mut matches) = (0, true);
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame.map_err(WireError::Transport)?.into_data() {
            matches &= verify != Verify::Full || content.matches(offset, &bytes);
            offset += bytes.len() as u64;
        }
    }
    Ok((offset, matches))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
