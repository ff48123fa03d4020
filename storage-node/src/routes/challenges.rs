//! `/v1/challenges/answer`: a card of a client answered, at the owner of the client's slot.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::ApiJson;
use common::api::mobile_access::AnsweredChallenge;
use common::error::ApiResult;
use common::placement::Slot;

use crate::challenges;
use crate::node::Node;

pub async fn answer(
    State(node): State<Arc<Node>>,
    ApiJson(request): ApiJson<AnsweredChallenge>,
) -> ApiResult<ApiJson<()>> {
    let (slot, now) = (Slot::of_client(&request.client), node.clock.now());
    let shard = node.shard_with(slot)?;
    shard.commit_in(slot, move |txn| challenges::answer(txn, &request, now)).await.map(ApiJson)
}
