//! `/v1/deliveries/…`: begin, in the shard with the client's slot; open, if that has the name's slot too; join and end,
//! in the shard that recorded the begin.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use common::api::extract::{self, ApiJson, ApiQuestion};
use common::api::node::{
    BeginAnswer, BeginRequest, EndBatch, JoinRequest, OpenAnswer, OpenAnswers, OpenBatch, OpenRequest,
};
use common::error::{ApiError, ApiResult, chain};
use common::placement::Slot;
use futures_util::future::join_all;

use crate::catalog::txn::Txn;
use crate::deliveries::{self, Beginning, Begun, Joining};
use crate::node::Node;
use crate::open::{self, Opened};
use crate::shard::Shard;

type Shared = State<Arc<Node>>;

/// How long a begin waits for another shard to let it join a delivery, before a new one begins.
const JOIN_TIME_MAX: Duration = Duration::from_secs(2);

pub async fn begin(
    State(node): Shared,
    ApiJson(request): ApiJson<BeginRequest>,
) -> ApiResult<ApiJson<BeginAnswer>> {
    let slot = Slot::of_client(&request.client);
    let shard = node.shard_with(slot)?;
    let request = Arc::new(request);
    let mut elsewhere = true;
    loop {
        let (request, joining, now) = (request.clone(), joining(&shard, elsewhere), node.clock.now());
        let begin = move |txn: &mut Txn<'_>| deliveries::begin(txn, &request, &joining, now);
        let beginning = shard.commit_in(slot, begin).await?;
        if let Some(answer) = answer_beginning(&shard, beginning).await {
            return Ok(ApiJson(answer));
        }
        elsewhere = false;
    }
}

pub async fn open(
    State(node): Shared,
    ApiQuestion(batch, form): ApiQuestion<OpenBatch>,
) -> ApiResult<Response> {
    // All are queued at once, so that one commit takes them.
    let answers = join_all(batch.opens.into_iter().map(|request| open_one(&node, request))).await;
    let refusal = |error: ApiError| {
        // The answer as a whole is a success: nobody else tells of it.
        if error.code.status().is_server_error() {
            let cause = error.cause.as_deref().unwrap_or("");
            tracing::warn!(code = %error.code, message = error.message, cause, "a delivery is not opened");
        }
        error.to_body()
    };
    let answers = answers.into_iter().map(|answer| answer.map_err(refusal)).collect();
    extract::answer::<OpenBatch>(form, &OpenAnswers { answers })
}

async fn open_one(node: &Node, request: OpenRequest) -> ApiResult<OpenAnswer> {
    let (name_slot, client_slot) = (Slot::of_name(&request.name), Slot::of_client(&request.client));
    let shard = node.shard_with(name_slot)?;
    let (joining, now, slots) = (joining(&shard, true), node.clock.now(), shard.slots.clone());
    let opened = shard
        .commit_in(name_slot, move |txn| {
            slots.check(client_slot)?;
            open::open(txn, &request, &joining, now)
        })
        .await?;
    shard.signals.tally_queued.notify_one();
    let Opened { holding, begun } = opened;
    let begin = match begun {
        Some(Beginning::Begun(begun)) => Some(answer_begun(&shard, begun)),
        // Others of the batch do not wait until another shard was asked.
        Some(Beginning::Elsewhere(_)) | None => None,
    };
    Ok(OpenAnswer { holding, begin })
}

fn joining(shard: &Shard, elsewhere: bool) -> Joining {
    Joining { shard: shard.id.clone(), window: shard.node.limits.delivery_join_window, elsewhere }
}

/// `None` when no other shard lets the request join: it is to begin here after all.
async fn answer_beginning(shard: &Shard, beginning: Beginning) -> Option<BeginAnswer> {
    match beginning {
        Beginning::Begun(begun) => Some(answer_begun(shard, begun)),
        Beginning::Elsewhere(join) => join_elsewhere(&shard.node, &join).await,
    }
}

/// Asks whoever serves the shard of a delivery, once.
async fn join_elsewhere(node: &Node, join: &JoinRequest) -> Option<BeginAnswer> {
    let peer = node.maps.with(|view| {
        let primary = view.site()?.shard_primary(&join.shard).filter(|primary| primary.alive)?;
        Some(node.peer(primary))
    })?;
    match tokio::time::timeout(JOIN_TIME_MAX, peer.join(join)).await {
        Ok(Ok(joined)) => joined,
        Ok(Err(error)) => {
            tracing::debug!(shard = %join.shard, error = chain(&error), "a delivery cannot be joined; another begins");
            None
        }
        Err(_) => None,
    }
}

pub(super) fn answer_begun(shard: &Shard, begun: Begun) -> BeginAnswer {
    if begun.opened {
        shard.add_open_deliveries(1);
    }
    BeginAnswer { delivery: begun.delivery, class: begun.class, shard: shard.id.clone() }
}

pub async fn join(
    State(node): Shared,
    ApiJson(request): ApiJson<JoinRequest>,
) -> ApiResult<ApiJson<Option<BeginAnswer>>> {
    let shard = node.shard(&request.shard)?;
    let (now, window) = (node.clock.now(), node.limits.delivery_join_window);
    let joined = shard.catalog.commit(move |txn| deliveries::join(txn, &request, window, now)).await?;
    Ok(ApiJson(joined.map(|begun| answer_begun(&shard, begun))))
}

pub async fn end(
    State(node): Shared,
    ApiQuestion(batch, _): ApiQuestion<EndBatch>,
) -> ApiResult<ApiJson<()>> {
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
