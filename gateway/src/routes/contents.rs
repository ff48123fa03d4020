//! `PUT|GET|HEAD|DELETE /v1/contents/{bucket}/{key}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use common::api::gateway::{CONTENT_HASH, METADATA_PREFIX};
use common::api::node::Precondition;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::ContentHash;
use common::name::ContentName;
use common::trace::{Stage, stage};
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::{content_name, counted};
use crate::metrics::Op;
use crate::publish::Publication;
use crate::server::Gateway;
use crate::visitors::Asker;
use crate::wish::{Wish, text, wish_of};

/// All bytes of a content's own metadata, names and values.
const METADATA_BYTES_MAX: usize = 4096;

pub async fn any(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let op = match parts.method {
        Method::GET => Op::Get,
        Method::HEAD => Op::Head,
        Method::PUT => Op::Put,
        Method::DELETE => Op::Delete,
        _ => {
            let mut response =
                ApiError::new(ErrorCode::MethodNotAllowed, "a content takes GET, HEAD, PUT and DELETE")
                    .into_response();
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, PUT, DELETE"));
            return response;
        }
    };
    counted(&gateway, op, async {
        let Asker { client, mobile_access } = match op {
            Op::Get | Op::Head => stage(Stage::Auth, gateway.identify(&parts)).await?,
            _ => {
                let client = stage(Stage::Auth, gateway.authenticate(&parts.headers)).await?;
                Asker { client, mobile_access: None }
            }
        };
        let name = content_name(&parts.uri)?;
        match op {
            Op::Put => {
                let publication = publication(name, &parts.headers)?;
                // The branches' futures are boxed: otherwise every request moves the largest of them.
                let outcome = Box::pin(gateway.publish(&client, publication, body)).await?;
                let status = if outcome.replaced { StatusCode::OK } else { StatusCode::CREATED };
                let mut response = (status, Json(&outcome.published)).into_response();
                if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", outcome.published.hash)) {
                    response.headers_mut().insert(ETAG, etag);
                }
                Ok(response)
            }
            Op::Delete => {
                let precondition = precondition(&parts.headers)?;
                Box::pin(gateway.withdraw(&client, &name, precondition)).await?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            _ => {
                let wish = wish_of(client.client.clone(), name, op == Op::Head, &parts.headers)?;
                let (quota, pace) = (client.limits.quota(), gateway.limits.pace(&client));
                let wish = Wish { mobile_access, quota, pace, ..wish };
                let response = if client.site == gateway.site.id {
                    Box::pin(gateway.deliver(wish)).await?
                } else {
                    Box::pin(gateway.deliver_visited(wish, &client.site)).await?
                };
                // Error answers to HEAD keep their head alone; hyper drops the body.
                Ok(if op == Op::Head { response.map(|_| Body::empty()) } else { response })
            }
        }
    })
    .await
}

fn publication(name: ContentName, headers: &HeaderMap) -> ApiResult<Publication> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidRequest, message);
    let media_type = text(headers, &CONTENT_TYPE)?.unwrap_or_else(|| "application/octet-stream".to_owned());
    let expected: Option<ContentHash> = match text(headers, &CONTENT_HASH)? {
        None => None,
        Some(hash) => Some(hash.parse().map_err(|e| invalid(format!("{CONTENT_HASH}: {e}")))?),
    };
    let declared_len = match text(headers, &CONTENT_LENGTH)? {
        None => None,
        Some(len) => Some(len.parse().map_err(|_| invalid("Content-Length is not a number".to_owned()))?),
    };
    let mut metadata = BTreeMap::new();
    let mut metadata_bytes = 0;
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix(METADATA_PREFIX) {
            let value =
                value.to_str().map_err(|_| invalid(format!("the header {header} is not plain text")))?;
            metadata_bytes += key.len() + value.len();
            metadata.insert(key.to_owned(), value.to_owned());
        }
    }
    if metadata_bytes > METADATA_BYTES_MAX {
        return Err(invalid(format!(
            "metadata takes {metadata_bytes} bytes, {METADATA_BYTES_MAX} are allowed"
        )));
    }
    Ok(Publication {
        name,
        media_type,
        metadata,
        precondition: precondition(headers)?,
        expected,
        declared_len,
    })
}

fn precondition(headers: &HeaderMap) -> ApiResult<Precondition> {
    let invalid = |message| Err(ApiError::new(ErrorCode::InvalidRequest, message));
    match (text(headers, &IF_MATCH)?, text(headers, &IF_NONE_MATCH)?) {
        (None, None) => Ok(Precondition::None),
        (None, Some(tags)) if tags.trim() == "*" => Ok(Precondition::Absent),
        (None, Some(_)) => invalid("If-None-Match with a PUT or DELETE takes * alone"),
        (Some(tag), None) => match tag.trim().trim_matches('"').parse() {
            Ok(hash) => Ok(Precondition::Matches(hash)),
            Err(_) => invalid("If-Match with a PUT or DELETE takes one ETag, the content's BLAKE3 hash"),
        },
        (Some(_), Some(_)) => invalid("If-Match and If-None-Match exclude each other"),
    }
}
