//! `/v1/holdings/…`: the content list, at the owner of the name's slot.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use common::api::extract::{ApiJson, ApiQuery};
use common::api::node::{
    AddRequest, CheckRefsAnswer, CheckRefsRequest, HoldAnswer, HoldRequest, Holding, HoldingClients,
    ReleaseAnswer, ReleaseRequest, ResolveAnswer, ResolveRequest,
};
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::name::ContentName;
use common::placement::Slot;

use crate::catalog::key::Key;
use crate::catalog::txn::Rows;
use crate::holdings::{self, is_current};
use crate::library;
use crate::node::Node;
use crate::recount;
use crate::shard::Shard;

type Shared = State<Arc<Node>>;

/// How long a hold waits for another node to add a library row, before it leaves that to who asked.
const ADD_TIME_MAX: Duration = Duration::from_secs(1);

pub async fn resolve(
    State(node): Shared,
    ApiJson(request): ApiJson<ResolveRequest>,
) -> ApiResult<ApiJson<ResolveAnswer>> {
    let ResolveRequest { name, client } = request;
    let slot = Slot::of_name(&name);
    let shard = node.shard_with(slot)?;
    let (holding, is_noted) = shard.read_in(slot, |rows| {
        let holding = rows.get::<Holding>(Key::Holding(&name))?;
        let is_noted = match (&holding, &client) {
            (Some(holding), Some(client)) if is_current(holding) => {
                rows.has(Key::HoldingClient(&name, client))?
            }
            _ => true,
        };
        Ok((holding, is_noted))
    })?;
    let Some(client) = client.filter(|_| !is_noted) else { return Ok(ApiJson(ResolveAnswer { holding })) };
    let now = node.clock.now();
    let holding = shard
        .commit_in(slot, move |txn| {
            let holding = txn.get::<Holding>(Key::Holding(&name))?;
            if holding.as_ref().is_some_and(is_current) {
                holdings::add_client(txn, &name, &client, now)?;
            }
            Ok(holding)
        })
        .await?;
    shard.signals.tally_queued.notify_one();
    Ok(ApiJson(ResolveAnswer { holding }))
}

pub async fn hold(
    State(node): Shared,
    ApiJson(request): ApiJson<HoldRequest>,
) -> ApiResult<ApiJson<HoldAnswer>> {
    request.manifest.check().map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))?;
    let (now, wait_ms) = (node.clock.now(), request.announce_wait_ms);
    let slot = Slot::of_name(&request.name);
    let shard = node.shard_with(slot)?;
    let (slots, row) = (shard.slots.clone(), library_row(&request));
    let (held, row_elsewhere) = shard
        .commit_in(slot, move |txn| {
            let held = holdings::hold(txn, &request, now)?;
            let Some(row) = row else { return Ok((held, None)) };
            if slots.check(Slot::of_client(&row.client)).is_err() {
                return Ok((held, Some(row)));
            }
            library::add(txn, &row, now, true)?;
            Ok((held, None))
        })
        .await?;
    shard.signals.reap_queued.notify_one();
    shard.signals.tally_queued.notify_one();
    let announced = shard.wait_announced(held.announcement, wait_ms);
    let (announced, in_library) = match row_elsewhere {
        Some(row) => tokio::join!(announced, add_elsewhere(&node, &row)),
        None => (announced.await, true),
    };
    let announced = announced?;
    let holdings::Held { version, ref_tag, replaced, .. } = held;
    Ok(ApiJson(HoldAnswer { version, ref_tag, replaced, announced, in_library }))
}

/// The library row that is wanted with a hold.
fn library_row(request: &HoldRequest) -> Option<AddRequest> {
    let client = request.client.as_ref().filter(|_| request.add_to_library)?;
    Some(AddRequest {
        client: client.clone(),
        name: request.name.clone(),
        hash: request.manifest.hash,
        len: request.manifest.len,
        provider: request.provider.clone(),
        quota: request.quota,
    })
}

/// Asks the owner of the client's slot for a library row, once. Answers whether it is durable there.
async fn add_elsewhere(node: &Node, row: &AddRequest) -> bool {
    let slot = Slot::of_client(&row.client);
    let owner = node.maps.with(|view| Some(node.peer(view.site()?.slot_primary(slot)?)));
    let Some(owner) = owner else { return false };
    match tokio::time::timeout(ADD_TIME_MAX, owner.library_add(row)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(
                owner = owner.base(),
                error = chain(&error),
                "library row not added; the gateway will ask"
            );
            false
        }
        Err(_) => false,
    }
}

pub async fn withdraw(
    State(node): Shared,
    ApiJson(request): ApiJson<ReleaseRequest>,
) -> ApiResult<ApiJson<ReleaseAnswer>> {
    let wait_ms = request.announce_wait_ms;
    let slot = Slot::of_name(&request.name);
    let shard = node.shard_with(slot)?;
    let gone = shard.commit_in(slot, move |txn| holdings::withdraw(txn, &request)).await?;
    answer_let(&shard, gone, wait_ms).await
}

pub async fn release(
    State(node): Shared,
    ApiJson(request): ApiJson<ReleaseRequest>,
) -> ApiResult<ApiJson<ReleaseAnswer>> {
    let wait_ms = request.announce_wait_ms;
    let slot = Slot::of_name(&request.name);
    let shard = node.shard_with(slot)?;
    let gone = shard.commit_in(slot, move |txn| holdings::release(txn, &request)).await?;
    answer_let(&shard, gone, wait_ms).await
}

async fn answer_let(shard: &Shard, gone: holdings::Let, wait_ms: u64) -> ApiResult<ApiJson<ReleaseAnswer>> {
    shard.signals.reap_queued.notify_one();
    shard.signals.tally_queued.notify_one();
    // Search learns it from the outbox in any case; who asked for it waits a moment so that lists show it.
    shard.wait_announced(gone.announcement, wait_ms).await?;
    Ok(ApiJson(ReleaseAnswer { released: gone.released }))
}

#[derive(serde::Deserialize)]
pub struct ClientsQuery {
    name: ContentName,
    #[serde(default)]
    after: String,
    #[serde(default)]
    limit: Option<u32>,
}

pub async fn clients(
    State(node): Shared,
    ApiQuery(query): ApiQuery<ClientsQuery>,
) -> ApiResult<ApiJson<HoldingClients>> {
    let ClientsQuery { name, after, limit } = query;
    let limit = limit.unwrap_or(library::PAGE_LEN_MAX).clamp(1, library::PAGE_LEN_MAX) as usize;
    let slot = Slot::of_name(&name);
    let page = node.shard_with(slot)?.read_in(slot, |rows| holdings::clients(rows, &name, &after, limit))?;
    Ok(ApiJson(page))
}

pub async fn check_refs(
    State(node): Shared,
    ApiJson(request): ApiJson<CheckRefsRequest>,
) -> ApiResult<ApiJson<CheckRefsAnswer>> {
    let current = recount::check_here(&node, &request)?;
    Ok(ApiJson(CheckRefsAnswer { current }))
}
