//! `/v1/deliveries/…`: begin, in the shard with the client's slot; open, if that has the name's slot too; end, in the
//! shard that recorded the begin.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::ApiJson;
use common::api::node::{BeginAnswer, BeginRequest, EndBatch, OpenAnswer, OpenRequest};
use common::error::ApiResult;
use common::placement::Slot;

use crate::deliveries::{self, Begun};
use crate::node::Node;
use crate::open;
use crate::shard::Shard;

type Shared = State<Arc<Node>>;

pub async fn begin(
    State(node): Shared,
    ApiJson(request): ApiJson<BeginRequest>,
) -> ApiResult<ApiJson<BeginAnswer>> {
    let (now, window) = (node.clock.now(), node.limits.delivery_join_window);
    let slot = Slot::of_client(&request.client);
    let shard = node.shard_with(slot)?;
    let begun = shard.commit_in(slot, move |txn| deliveries::begin(txn, &request, now, window)).await?;
    Ok(ApiJson(answer_begun(&shard, begun)))
}

pub async fn open(
    State(node): Shared,
    ApiJson(request): ApiJson<OpenRequest>,
) -> ApiResult<ApiJson<OpenAnswer>> {
    let (now, window) = (node.clock.now(), node.limits.delivery_join_window);
    let (name_slot, client_slot) = (Slot::of_name(&request.name), Slot::of_client(&request.client));
    let shard = node.shard_with(name_slot)?;
    let slots = shard.slots.clone();
    let opened = shard
        .commit_in(name_slot, move |txn| {
            slots.check(client_slot)?;
            open::open(txn, &request, now, window)
        })
        .await?;
    shard.signals.tally_queued.notify_one();
    let begin = opened.begun.map(|begun| answer_begun(&shard, begun));
    Ok(ApiJson(OpenAnswer { holding: opened.holding, begin }))
}

fn answer_begun(shard: &Shard, begun: Begun) -> BeginAnswer {
    if begun.opened {
        shard.add_open_deliveries(1);
    }
    BeginAnswer { delivery: begun.delivery, class: begun.class, shard: shard.id.clone() }
}

pub async fn end(State(node): Shared, ApiJson(batch): ApiJson<EndBatch>) -> ApiResult<ApiJson<()>> {
    let shard = node.shard(&batch.shard)?;
    let (now, recorder) = (node.clock.now(), shard.recorder());
    let ends = shard
        .catalog
        .commit(move |txn| {
            let end = |end| deliveries::end(txn, &recorder, end, now);
            batch.ends.iter().map(end).collect::<ApiResult<Vec<_>>>()
        })
        .await?;
    shard.report_ends(&ends);
    Ok(ApiJson(()))
}
