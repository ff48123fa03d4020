//! `/v1/deliveries/…`: begin, at the owner of the client's slot; open, at the owner of the name's slot too; end, at
//! the node that recorded the begin.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::ApiJson;
use common::api::node::{BeginAnswer, BeginRequest, EndBatch, OpenAnswer, OpenRequest};
use common::error::ApiResult;
use common::placement::Slot;

use crate::deliveries::{self, Begun};
use crate::node::Node;
use crate::open;

type Shared = State<Arc<Node>>;

pub async fn begin(
    State(node): Shared,
    ApiJson(request): ApiJson<BeginRequest>,
) -> ApiResult<ApiJson<BeginAnswer>> {
    let (now, window) = (node.clock.now(), node.limits.delivery_join_window);
    let slot = Slot::of_client(&request.client);
    let begun = node.commit_in(slot, move |txn| deliveries::begin(txn, &request, now, window)).await?;
    Ok(ApiJson(answer_begun(&node, begun)))
}

pub async fn open(
    State(node): Shared,
    ApiJson(request): ApiJson<OpenRequest>,
) -> ApiResult<ApiJson<OpenAnswer>> {
    let (now, window) = (node.clock.now(), node.limits.delivery_join_window);
    let (slots, client_slot) = (node.slots.clone(), Slot::of_client(&request.client));
    let opened = node
        .commit_in(Slot::of_name(&request.name), move |txn| {
            slots.check(client_slot)?;
            open::open(txn, &request, now, window)
        })
        .await?;
    node.signals.tally_queued.notify_one();
    let begin = opened.begun.map(|begun| answer_begun(&node, begun));
    Ok(ApiJson(OpenAnswer { holding: opened.holding, begin }))
}

fn answer_begun(node: &Node, begun: Begun) -> BeginAnswer {
    if begun.opened {
        node.metrics.add_open_deliveries(1);
    }
    BeginAnswer { delivery: begun.delivery, class: begun.class, shard: node.id.clone() }
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
