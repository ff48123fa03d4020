//! `/v1/map` and `/v1/node`: what this node knows of the cluster, and how it is.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::api::extract::ApiJson;
use common::api::node::NodeStatus;
use common::cluster::ClusterMap;
use common::error::ApiResult;

use crate::node::Node;
use crate::temporary;

pub async fn map(State(node): State<Arc<Node>>) -> Response {
    axum::Json(&node.maps.view().map).into_response()
}

/// A map that another server has; taken if it is newer.
pub async fn take_map(
    State(node): State<Arc<Node>>,
    ApiJson(map): ApiJson<ClusterMap>,
) -> ApiResult<ApiJson<()>> {
    node.adopt(map).await.map(ApiJson)
}

pub async fn node(State(node): State<Arc<Node>>) -> ApiResult<ApiJson<NodeStatus>> {
    let (stats, view) = (node.chunks.stats(), node.maps.view());
    let state = match (view.site(), view.me()) {
        (Some(site), Some(me)) => me.shown_state(site),
        _ => "joining",
    };
    let unsettled = node.shards.get(&node.id).map_or(Ok(0), |shard| shard.unsettled())?;
    let (temporary_contents, temporary_bytes) = temporary::figures(&node.shards.all());
    Ok(ApiJson(NodeStatus {
        node: node.id.clone(),
        state: state.to_owned(),
        store: node.store.clone(),
        capacity_bytes: stats.capacity_bytes,
        used_bytes: stats.used_bytes,
        logical_bytes: node.metrics.logical_bytes(),
        chunks: stats.chunks,
        moves_pending_bytes: node.moves.pending_bytes(),
        moves_rate_bytes_per_s: node.moves.rate_bytes_per_s(),
        moves_limit_bytes_per_s: node.moves.limit_bytes_per_s(),
        unsettled,
        temporary_contents,
        temporary_bytes,
        epoch: view.map.epoch,
    }))
}
