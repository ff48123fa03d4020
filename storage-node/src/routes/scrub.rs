//! `/v1/scrub`: how far the verification of stored chunks is, and starting a round of it.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::ApiJson;
use common::api::node::ScrubStatus;
use common::error::{ApiError, ApiResult, ErrorCode};

use crate::node::Node;

pub async fn status(State(node): State<Arc<Node>>) -> ApiJson<ScrubStatus> {
    ApiJson(node.scrub.status())
}

/// Starts a round now; one that is under way goes on.
pub async fn start(State(node): State<Arc<Node>>) -> ApiResult<ApiJson<ScrubStatus>> {
    if !node.scrub.is_on() {
        let message = "the scrub is off on this node: set scrub_bytes_per_s";
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    crate::scrub::start(&node).await?;
    Ok(ApiJson(node.scrub.status()))
}
