//! `/v1/slots/…`: what the old and the new owner of slots ask each other.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::ApiJson;
use common::api::node::{
    ExportAnewAnswer, ExportAnewRequest, ExportAnswer, ExportRequest, ReleaseSlotsAnswer, ReleaseSlotsRequest,
};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::NodeId;
use common::placement::{SLOT_COUNT, Slot};

use crate::node::Node;
use crate::slot_moves;

pub async fn export(
    State(node): State<Arc<Node>>,
    ApiJson(request): ApiJson<ExportRequest>,
) -> ApiResult<ApiJson<ExportAnswer>> {
    check(&request.from, &request.to, &request.slots)?;
    let shard = node.shard(&request.from)?;
    slot_moves::export(&shard, request).await.map(ApiJson)
}

pub async fn release(
    State(node): State<Arc<Node>>,
    ApiJson(request): ApiJson<ReleaseSlotsRequest>,
) -> ApiResult<ApiJson<ReleaseSlotsAnswer>> {
    check(&request.from, &request.to, &request.slots)?;
    let shard = node.shard(&request.to)?;
    slot_moves::promise(&shard, request).await.map(ApiJson)
}

pub async fn export_anew(
    State(node): State<Arc<Node>>,
    ApiJson(request): ApiJson<ExportAnewRequest>,
) -> ApiResult<ApiJson<ExportAnewAnswer>> {
    check(&request.from, &request.to, &request.slots)?;
    let shard = node.shard(&request.from)?;
    slot_moves::export_anew(&shard, request).await.map(ApiJson)
}

fn check(from: &NodeId, to: &NodeId, slots: &[Slot]) -> ApiResult<()> {
    if to != from && slots.iter().all(|slot| slot.0 < SLOT_COUNT) {
        return Ok(());
    }
    let message = format!("slots 0 to {} move from one shard to another", SLOT_COUNT - 1);
    Err(ApiError::new(ErrorCode::InvalidRequest, message))
}
