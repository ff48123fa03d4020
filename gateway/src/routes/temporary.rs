//! What the site keeps for visitors: `GET /v1/temporary` for a client, `GET /v1/peer/temporary` for the operator.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::api::extract::ApiQuery;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::ClientId;
use common::name::ContentName;
use http::HeaderMap;
use serde::Deserialize;

use super::counted;
use crate::metrics::Op;
use crate::server::Gateway;

/// Contents of one page, unless asked otherwise, and at most.
const PAGE_LEN_MAX: u32 = 1000;

#[derive(Debug, Deserialize)]
pub struct TemporaryQuery {
    #[serde(default)]
    client: Option<ClientId>,
    #[serde(default)]
    after: Option<ContentName>,
    #[serde(default)]
    after_client: Option<ClientId>,
    limit: Option<u32>,
}

impl TemporaryQuery {
    fn limit(&self) -> ApiResult<u32> {
        match self.limit.unwrap_or(PAGE_LEN_MAX) {
            limit @ 1..=PAGE_LEN_MAX => Ok(limit),
            limit => {
                let message = format!("limit is {limit}, it must be 1 to {PAGE_LEN_MAX}");
                Err(ApiError::new(ErrorCode::InvalidRequest, message))
            }
        }
    }

    fn after(&self) -> ApiResult<Option<(ContentName, ClientId)>> {
        match (self.after.clone(), self.after_client.clone()) {
            (None, None) => Ok(None),
            (Some(name), Some(client)) => Ok(Some((name, client))),
            _ => Err(ApiError::new(ErrorCode::InvalidRequest, "after and after_client go together")),
        }
    }
}

/// What is kept for the client that asks.
pub async fn own(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<TemporaryQuery>, ApiError>,
    headers: HeaderMap,
) -> Response {
    counted(&gateway, Op::Library, async {
        let client = gateway.authenticate(&headers).await?.client;
        let ApiQuery(query) = query?;
        if query.client.as_ref().is_some_and(|asked| *asked != client) {
            let message = "a client sees what is kept for itself alone";
            return Err(ApiError::new(ErrorCode::Forbidden, message));
        }
        let page = gateway.temporary(Some(&client), query.after()?, query.limit()?).await?;
        Ok(Json(page).into_response())
    })
    .await
}

/// What is kept for all visitors, or for one.
pub async fn all(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<TemporaryQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(query) = query?;
        let page = gateway.temporary(query.client.as_ref(), query.after()?, query.limit()?).await?;
        Ok(Json(page).into_response())
    })
    .await
}
