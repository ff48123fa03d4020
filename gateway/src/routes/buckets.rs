//! `PUT|GET /v1/buckets/{bucket}`: a client makes its own buckets and sees those it may read.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use common::api::extract::ApiJson;
use common::api::search::{NewBucket, Visibility};
use common::error::{ApiError, ErrorCode};
use common::id::BucketName;
use http::HeaderMap;
use serde::Deserialize;

use super::counted;
use crate::directory::may_read;
use crate::metrics::Op;
use crate::server::Gateway;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketBody {
    visibility: Visibility,
}

pub async fn put(
    State(gateway): State<Arc<Gateway>>,
    Path(bucket): Path<String>,
    headers: HeaderMap,
    body: Result<ApiJson<BucketBody>, ApiError>,
) -> Response {
    counted(&gateway, Op::Bucket, async {
        let client = gateway.authenticate(&headers).await?;
        let bucket = BucketName::new(&bucket)?;
        let ApiJson(body) = body?;
        let new = NewBucket { provider: client.client, visibility: body.visibility };
        let record = gateway.directory.search.put_bucket(&bucket, &new).await.map_err(|error| {
            error.to_api(ErrorCode::SearchUnavailable, "buckets are kept by search, which does not answer")
        })?;
        gateway.directory.note_bucket(&record);
        Ok(Json(record).into_response())
    })
    .await
}

pub async fn get(
    State(gateway): State<Arc<Gateway>>,
    Path(bucket): Path<String>,
    headers: HeaderMap,
) -> Response {
    counted(&gateway, Op::Bucket, async {
        let client = gateway.authenticate(&headers).await?;
        let record = gateway.directory.bucket(&BucketName::new(&bucket)?).await?;
        if !may_read(&client.client, &record) {
            return Err(ApiError::new(
                ErrorCode::Forbidden,
                format!("bucket {} is private to its provider", record.bucket),
            ));
        }
        Ok(Json(record).into_response())
    })
    .await
}
