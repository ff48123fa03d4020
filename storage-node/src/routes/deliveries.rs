//! `/v1/deliveries/…`: begin, at the owner of the client's slot; end, at the node that recorded the begin.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::ApiJson;
use common::api::node::{BeginAnswer, BeginRequest, EndBatch};
use common::error::ApiResult;
use common::placement::Slot;

use crate::deliveries;
use crate::node::Node;

type Shared = State<Arc<Node>>;

pub async fn begin(
    State(node): Shared,
    ApiJson(request): ApiJson<BeginRequest>,
) -> ApiResult<ApiJson<BeginAnswer>> {
    let (now, window) = (node.clock.now(), node.limits.delivery_join_window);
    let slot = Slot::of_client(&request.client);
    let begun = node.commit_in(slot, move |txn| deliveries::begin(txn, &request, now, window)).await?;
    if begun.opened {
        node.metrics.add_open_deliveries(1);
    }
    Ok(ApiJson(BeginAnswer { delivery: begun.delivery, class: begun.class, node: node.id.clone() }))
}

pub async fn end(State(node): Shared, ApiJson(batch): ApiJson<EndBatch>) -> ApiResult<ApiJson<()>> {
    let (now, recorder) = (node.clock.now(), node.recorder());
    let ends = node
        .catalog
        .commit(move |txn| {
            let end = |end| deliveries::end(txn, &recorder, end, now);
            batch.ends.iter().map(end).collect::<ApiResult<Vec<_>>>()
        })
        .await?;
    node.report_ends(&ends);
    Ok(ApiJson(()))
}
