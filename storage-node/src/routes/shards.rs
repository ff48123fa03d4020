//! `/v1/shards/…`: what the primary of a shard sends to the nodes that follow it.

use std::sync::Arc;

use axum::extract::{Path, State};
use bytes::Bytes;
use common::api::extract::ApiJson;
use common::api::node::{ShardState, Shipment};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{InvalidId, NodeId};

use crate::node::Node;
use crate::shards;

/// Longest shipment: entries of about 1 MiB and a last one that may be as long as a batch of the committer.
pub const SHIPMENT_BYTES_MAX: usize = 32 << 20;

pub async fn ship(
    State(node): State<Arc<Node>>,
    Path(shard): Path<String>,
    body: Bytes,
) -> ApiResult<ApiJson<ShardState>> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidRequest, message);
    let shard = NodeId::new(&shard).map_err(|error: InvalidId| invalid(error.to_string()))?;
    let shipment: Shipment = postcard::from_bytes(&body)
        .map_err(|error| invalid("the shipment cannot be read".into()).with_cause(&error))?;
    shards::receive(&node, &shard, shipment).await.map(ApiJson)
}
