//! `/v1/collections/…`: which gateway of the site collects a name, at the owner of its slot.

use std::sync::Arc;

use axum::extract::State;
use common::api::collect::{LeaseAnswer, LeaseEnd, LeaseRequest};
use common::api::extract::ApiJson;
use common::error::ApiResult;
use common::placement::Slot;

use crate::node::Node;

type Shared = State<Arc<Node>>;

pub async fn lease(
    State(node): Shared,
    ApiJson(request): ApiJson<LeaseRequest>,
) -> ApiResult<ApiJson<LeaseAnswer>> {
    let slot = Slot::of_name(&request.name);
    node.shard_with(slot)?.slots.check(slot)?;
    let collector = node.leases.take(request, node.clock.now());
    Ok(ApiJson(LeaseAnswer { collector }))
}

pub async fn release(State(node): Shared, ApiJson(end): ApiJson<LeaseEnd>) -> ApiJson<()> {
    node.leases.end(&end);
    ApiJson(())
}
