//! `GET /v1/peer/ranking`: how this gateway ranks the sources of a content at the moment, for the operator.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::api::extract::ApiQuery;
use common::error::{ApiError, ErrorCode};

use super::counted;
use super::peer::NameQuery;
use crate::metrics::Op;
use crate::server::Gateway;

pub async fn ranking(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<NameQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(NameQuery { name }) = query?;
        let info = gateway.directory.search.lookup(&name).await.map_err(|error| {
            error.to_api(ErrorCode::SearchUnavailable, "search does not answer; try again in a moment")
        })?;
        Ok(Json(gateway.sources.explain(&gateway.site, &info).await).into_response())
    })
    .await
}
