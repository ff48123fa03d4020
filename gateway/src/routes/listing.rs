//! Listings: `GET /v1/contents/{bucket}` and `GET /v1/search?q=`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use common::api::extract::ApiQuery;
use common::api::gateway::{ContentListing, ListedContent};
use common::api::search::{ContentPage, ListQuery};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{BucketName, ClientId};
use http::HeaderMap;
use serde::Deserialize;

use super::counted;
use crate::directory::may_read;
use crate::metrics::Op;
use crate::server::Gateway;

pub async fn list(
    State(gateway): State<Arc<Gateway>>,
    Path(bucket): Path<String>,
    query: Result<ApiQuery<ListQuery>, ApiError>,
    headers: HeaderMap,
) -> Response {
    counted(&gateway, Op::List, async {
        let client = gateway.authenticate(&headers).await?;
        let ApiQuery(query) = query?;
        check_limit(query.limit)?;
        let bucket = gateway.directory.bucket(&BucketName::new(&bucket)?).await?;
        if !may_read(&client.client, &bucket) {
            return Err(ApiError::new(
                ErrorCode::Forbidden,
                format!("bucket {} is private to its provider", bucket.bucket),
            ));
        }
        let page = gateway.directory.search.list(&bucket.bucket, &query).await.map_err(no_listing)?;
        Ok(Json(listing(page, false)).into_response())
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct SearchQuery {
    q: String,
    #[serde(default)]
    after: String,
    limit: Option<u32>,
}

/// Contents, of buckets that the client may read, whose name contains a text. Keys are whole names here.
pub async fn search(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<SearchQuery>, ApiError>,
    headers: HeaderMap,
) -> Response {
    counted(&gateway, Op::List, async {
        let client = gateway.authenticate(&headers).await?;
        let ApiQuery(query) = query?;
        check_limit(query.limit)?;
        let limit = query.limit.unwrap_or(100);
        let mut page =
            gateway.directory.search.find(&query.q, &query.after, limit).await.map_err(no_listing)?;
        page.contents = readable(&gateway, &client.client, page.contents).await?;
        Ok(Json(listing(page, true)).into_response())
    })
    .await
}

async fn readable(
    gateway: &Gateway,
    client: &ClientId,
    contents: Vec<common::api::search::ContentSummary>,
) -> ApiResult<Vec<common::api::search::ContentSummary>> {
    let mut kept = Vec::with_capacity(contents.len());
    for content in contents {
        match gateway.directory.bucket(&content.name.bucket_name()).await {
            Ok(bucket) if may_read(client, &bucket) => kept.push(content),
            Ok(_) => {}
            Err(error) if error.code == ErrorCode::BucketNotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(kept)
}

fn check_limit(limit: Option<u32>) -> ApiResult<()> {
    match limit {
        Some(limit) if limit == 0 || limit > ListQuery::LIMIT_MAX => Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("limit is {limit}, it must be 1 to {}", ListQuery::LIMIT_MAX),
        )),
        _ => Ok(()),
    }
}

fn no_listing(error: common::client::CallError) -> ApiError {
    error.to_api(
        ErrorCode::SearchUnavailable,
        "listings come from search, which does not answer; try again in a moment",
    )
}

fn listing(page: ContentPage, whole_names: bool) -> ContentListing {
    let contents = page.contents.into_iter().map(|content| ListedContent {
        key: if whole_names { content.name.as_str() } else { content.name.key() }.to_owned(),
        hash: content.version.hash,
        len: content.len,
        media_type: content.media_type,
        provider: content.provider,
        modified: content.version.time.millis(),
    });
    ContentListing { contents: contents.collect(), prefixes: page.prefixes, next: page.next }
}
