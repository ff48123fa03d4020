//! `/v1/temporary/…`: what is kept for visitors, at the owner of the name's slot.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::{ApiJson, ApiQuery};
use common::api::node::BeginAnswer;
use common::api::temporary::{
    BeginAwayRequest, CompleteAnswer, CompleteRequest, KeepAnswer, KeepEndsRequest, KeepRequest, Kept,
    ListRequest, TemporaryContent,
};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::ClientId;
use common::name::ContentName;
use common::placement::Slot;

use crate::catalog::txn::Txn;
use crate::node::Node;
use crate::{outbox, temporary};

type Shared = State<Arc<Node>>;

/// Most contents of one page.
const PAGE_LEN_MAX: u32 = 1000;

pub async fn keep(
    State(node): Shared,
    ApiJson(request): ApiJson<KeepRequest>,
) -> ApiResult<ApiJson<KeepAnswer>> {
    request.manifest.check().map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))?;
    let (slot, now) = (Slot::of_name(&request.possession.name), node.clock.now());
    let shard = node.shard_with(slot)?;
    if let Some(kept) = shard.read_in(slot, |rows| temporary::is_kept(rows, &request))? {
        return Ok(ApiJson(kept));
    }
    let kept = shard.commit_in(slot, move |txn| temporary::keep(txn, &request, now)).await?;
    // One of another version may have gone.
    shard.signals.reap_queued.notify_one();
    shard.signals.tally_queued.notify_one();
    Ok(ApiJson(kept))
}

pub async fn complete(
    State(node): Shared,
    ApiJson(request): ApiJson<CompleteRequest>,
) -> ApiResult<ApiJson<CompleteAnswer>> {
    let slot = Slot::of_name(&request.name);
    let shard = node.shard_with(slot)?;
    let kept = shard.commit_in(slot, move |txn| temporary::complete(txn, &request)).await?;
    shard.signals.tally_queued.notify_one();
    Ok(ApiJson(CompleteAnswer { kept }))
}

#[derive(serde::Deserialize)]
pub struct KeptQuery {
    client: ClientId,
    name: ContentName,
}

pub async fn kept(
    State(node): Shared,
    ApiQuery(query): ApiQuery<KeptQuery>,
) -> ApiResult<ApiJson<Option<Kept>>> {
    let KeptQuery { client, name } = query;
    let (slot, now) = (Slot::of_name(&name), node.clock.now());
    node.shard_with(slot)?.read_in(slot, |rows| temporary::kept(rows, &name, &client, now)).map(ApiJson)
}

pub async fn begin(
    State(node): Shared,
    ApiJson(request): ApiJson<BeginAwayRequest>,
) -> ApiResult<ApiJson<BeginAnswer>> {
    let slot = Slot::of_name(&request.name);
    let shard = node.shard_with(slot)?;
    let (id, now, window) = (shard.id.clone(), node.clock.now(), node.limits.delivery_join_window);
    let begin = move |txn: &mut Txn<'_>| temporary::begin_away(txn, &request, &id, window, now);
    let begun = shard.commit_in(slot, begin).await?;
    Ok(ApiJson(super::deliveries::answer_begun(&shard, begun)))
}

pub async fn keep_ends(
    State(node): Shared,
    ApiJson(request): ApiJson<KeepEndsRequest>,
) -> ApiResult<ApiJson<()>> {
    let (shard, now) = (node.shard(&request.keeper)?, node.clock.now());
    let keep = move |txn: &mut Txn<'_>| {
        outbox::home::keep(txn, &request, now);
        Ok(())
    };
    shard.catalog.commit(keep).await?;
    shard.signals.end_kept.notify_one();
    Ok(ApiJson(()))
}

/// As many as fit one page, of the first slots of the request.
pub async fn list(
    State(node): Shared,
    ApiJson(request): ApiJson<ListRequest>,
) -> ApiResult<ApiJson<Vec<TemporaryContent>>> {
    let ListRequest { mut slots, client, after, limit } = request;
    let limit = limit.clamp(1, PAGE_LEN_MAX) as usize;
    let first = after.as_ref().map(|(name, _)| Slot::of_name(name));
    slots.retain(|slot| first.is_none_or(|first| *slot >= first));
    slots.sort_unstable();
    let now = node.clock.now();
    let listed = tokio::task::spawn_blocking(move || {
        let mut contents = Vec::new();
        for slot in slots {
            let left = limit - contents.len();
            if left == 0 {
                break;
            }
            node.shard_with(slot)?.read_in(slot, |rows| {
                temporary::list(rows, slot, client.as_ref(), after.as_ref(), left, now, &mut contents)
            })?;
        }
        Ok(ApiJson(contents))
    });
    listed.await.unwrap_or_else(|error| Err(ApiError::internal(&error)))
}
