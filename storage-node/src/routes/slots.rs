//! `/v1/slots/export`: the rows of slots, to the node that is to own them.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::ApiJson;
use common::api::node::{ExportAnswer, ExportRequest};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::placement::SLOT_COUNT;

use crate::node::Node;
use crate::slot_moves;

pub async fn export(
    State(node): State<Arc<Node>>,
    ApiJson(request): ApiJson<ExportRequest>,
) -> ApiResult<ApiJson<ExportAnswer>> {
    if request.to == request.from || request.slots.iter().any(|slot| slot.0 >= SLOT_COUNT) {
        let message = "slots 0 to 1023 are exported to another shard";
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    let shard = node.shard(&request.from)?;
    slot_moves::export(&shard, request).await.map(ApiJson)
}
