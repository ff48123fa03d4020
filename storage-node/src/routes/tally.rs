//! `/v1/tally…`: who holds which bytes, at the owner of the chunks' slots.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::ApiJson;
use common::api::node::{TallyRequest, TallySums, TallySumsRequest};
use common::error::{ApiError, ApiResult};

use crate::catalog::txn::Reader;
use crate::node::Node;
use crate::tally::{self, worker};

type Shared = State<Arc<Node>>;

pub async fn apply(State(node): Shared, ApiJson(request): ApiJson<TallyRequest>) -> ApiResult<ApiJson<()>> {
    worker::apply_here(&node, request).await.map(ApiJson)
}

pub async fn sums(
    State(node): Shared,
    ApiJson(request): ApiJson<TallySumsRequest>,
) -> ApiResult<ApiJson<TallySums>> {
    // Over many clients it takes a while.
    let summed = tokio::task::spawn_blocking(move || {
        let mut sums = TallySums::default();
        for slot in request.slots {
            let sum = |rows: &Reader| tally::sums(rows, slot, request.clients.as_deref(), &mut sums);
            node.shard_with(slot)?.read_in(slot, sum)?;
        }
        Ok(ApiJson(sums))
    });
    summed.await.unwrap_or_else(|error| Err(ApiError::internal(&error)))
}
