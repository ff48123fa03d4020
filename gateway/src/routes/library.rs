//! A client's own: `GET|DELETE /v1/library[/{bucket}/{key}]` `GET /v1/usage` and `GET /v1/quote/{bucket}/{key}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::api::extract::ApiQuery;
use common::error::{ApiError, ErrorCode};
use common::placement::Slot;
use http::{HeaderMap, StatusCode, Uri};
use serde::Deserialize;

use super::{content_name, counted};
use crate::metrics::Op;
use crate::server::Gateway;

#[derive(Debug, Deserialize)]
pub struct LibraryQuery {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    limit: Option<u32>,
}

pub async fn list(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<LibraryQuery>, ApiError>,
    headers: HeaderMap,
) -> Response {
    counted(&gateway, Op::Library, async {
        let client = gateway.authenticate(&headers).await?;
        gateway.check_home(&client)?;
        let ApiQuery(query) = query?;
        let limit = query.limit.unwrap_or(1000);
        if limit == 0 || limit > 1000 {
            return Err(ApiError::new(
                ErrorCode::InvalidRequest,
                format!("limit is {limit}, it must be 1 to 1000"),
            ));
        }
        let page = gateway.library(&client.client, &query.prefix, &query.after, limit).await?;
        Ok(Json(page).into_response())
    })
    .await
}

pub async fn row(State(gateway): State<Arc<Gateway>>, uri: Uri, headers: HeaderMap) -> Response {
    counted(&gateway, Op::Library, async {
        let client = gateway.authenticate(&headers).await?;
        gateway.check_home(&client)?;
        let name = content_name(&uri)?;
        let (id, wanted) = (&client.client, &name);
        let row = gateway
            .site
            .ask_owner(Slot::of_client(id), |node| async move { node.library_row(id, wanted).await })
            .await?;
        row.map(|row| Json(row).into_response()).ok_or_else(|| not_in_library(&name))
    })
    .await
}

pub async fn drop(State(gateway): State<Arc<Gateway>>, uri: Uri, headers: HeaderMap) -> Response {
    counted(&gateway, Op::Library, async {
        let client = gateway.authenticate(&headers).await?;
        gateway.check_home(&client)?;
        let name = content_name(&uri)?;
        if gateway.drop_from_library(&client, &name).await? {
            Ok(StatusCode::NO_CONTENT.into_response())
        } else {
            Err(not_in_library(&name))
        }
    })
    .await
}

pub async fn usage(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Response {
    counted(&gateway, Op::Usage, async {
        let client = gateway.authenticate(&headers).await?;
        gateway.check_home(&client)?;
        Ok(Json(gateway.usage(&client.client).await?).into_response())
    })
    .await
}

/// What a delivery of a content would cost.
pub async fn quote(State(gateway): State<Arc<Gateway>>, uri: Uri, headers: HeaderMap) -> Response {
    counted(&gateway, Op::Usage, async {
        let client = gateway.authenticate(&headers).await?;
        gateway.check_home(&client)?;
        Ok(Json(gateway.quote(&client, &content_name(&uri)?).await?).into_response())
    })
    .await
}

fn not_in_library(name: &common::name::ContentName) -> ApiError {
    ApiError::new(ErrorCode::ContentNotFound, format!("{name} is not in your library"))
}
