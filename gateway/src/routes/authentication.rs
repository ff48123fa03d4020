//! `/v1/peer/challenge` and `/v1/peer/answer`: mobile access asks for a client of this site that is elsewhere.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::api::extract::ApiJson;
use common::api::mobile_access::{CardAnswer, PeerChallengeRequest};
use common::error::ApiError;

use super::counted;
use crate::metrics::Op;
use crate::server::Gateway;

pub async fn challenge(
    State(gateway): State<Arc<Gateway>>,
    body: Result<ApiJson<PeerChallengeRequest>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiJson(request) = body?;
        Ok(Json(gateway.challenge(request)).into_response())
    })
    .await
}

pub async fn answer(
    State(gateway): State<Arc<Gateway>>,
    body: Result<ApiJson<CardAnswer>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiJson(answer) = body?;
        Ok(Json(gateway.take_answer(answer).await?).into_response())
    })
    .await
}
