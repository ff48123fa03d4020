//! `/v1/collections/…`: which gateway of the site collects a name, at the owner of its slot.

use std::sync::Arc;

use axum::extract::State;
use common::api::collect::{LeaseAnswer, LeaseEnd, LeaseRequest};
use common::api::extract::ApiJson;
use common::api::node::Holding;
use common::error::ApiResult;
use common::placement::Slot;

use crate::catalog::key::Key;
use crate::catalog::txn::Rows;
use crate::node::Node;

type Shared = State<Arc<Node>>;

pub async fn lease(
    State(node): Shared,
    ApiJson(request): ApiJson<LeaseRequest>,
) -> ApiResult<ApiJson<LeaseAnswer>> {
    let slot = Slot::of_name(&request.name);
    let shard = node.shard_with(slot)?;
    shard.slots.check(slot)?;
    let name = request.name.clone();
    // The lease first: what its last holder completed is then seen.
    let collector = node.leases.take(request, node.clock.now());
    let holding = shard.read_in(slot, |rows| rows.get::<Holding>(Key::Holding(&name)))?;
    Ok(ApiJson(LeaseAnswer { collector, holding }))
}

pub async fn release(State(node): Shared, ApiJson(end): ApiJson<LeaseEnd>) -> ApiJson<()> {
    node.leases.end(&end);
    ApiJson(())
}
