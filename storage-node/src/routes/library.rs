//! `/v1/library…`: a client's contents, at the owner of the client's slot.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::{ApiJson, ApiQuery};
use common::api::node::{Account, AddRequest, DropRequest, LibraryPage, LibraryRow, ReleaseAnswer};
use common::error::ApiResult;
use common::id::ClientId;
use common::name::ContentName;
use common::placement::Slot;

use crate::catalog::key::Key;
use crate::catalog::rows::LibraryValue;
use crate::catalog::txn::{Rows, Txn};
use crate::library;
use crate::node::Node;

type Shared = State<Arc<Node>>;

pub async fn add(State(node): Shared, ApiJson(request): ApiJson<AddRequest>) -> ApiResult<ApiJson<()>> {
    let (slot, now) = (Slot::of_client(&request.client), node.clock.now());
    let add = move |txn: &mut Txn<'_>| library::add(txn, &request, now, false);
    node.shard_with(slot)?.commit_in(slot, add).await.map(ApiJson)
}

pub async fn drop_row(
    State(node): Shared,
    ApiJson(request): ApiJson<DropRequest>,
) -> ApiResult<ApiJson<ReleaseAnswer>> {
    let slot = Slot::of_client(&request.client);
    let released =
        node.shard_with(slot)?.commit_in(slot, move |txn| library::drop_row(txn, &request)).await?;
    Ok(ApiJson(ReleaseAnswer { released }))
}

#[derive(serde::Deserialize)]
pub struct PageQuery {
    client: ClientId,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    #[serde(default)]
    limit: Option<u32>,
}

pub async fn page(
    State(node): Shared,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> ApiResult<ApiJson<LibraryPage>> {
    let PageQuery { client, prefix, after, limit } = query;
    let limit = limit.unwrap_or(library::PAGE_LEN_MAX);
    let slot = Slot::of_client(&client);
    let page =
        node.shard_with(slot)?.read_in(slot, |rows| library::page(rows, &client, &prefix, &after, limit))?;
    Ok(ApiJson(page))
}

#[derive(serde::Deserialize)]
pub struct RowQuery {
    client: ClientId,
    name: ContentName,
}

pub async fn row(
    State(node): Shared,
    ApiQuery(query): ApiQuery<RowQuery>,
) -> ApiResult<ApiJson<Option<LibraryRow>>> {
    let RowQuery { client, name } = query;
    let slot = Slot::of_client(&client);
    let row = node
        .shard_with(slot)?
        .read_in(slot, |rows| rows.get::<LibraryValue>(Key::Library(&client, &name)))?;
    Ok(ApiJson(row.map(|row| row.to_api(name))))
}

#[derive(serde::Deserialize)]
pub struct ClientQuery {
    client: ClientId,
}

pub async fn account(
    State(node): Shared,
    ApiQuery(query): ApiQuery<ClientQuery>,
) -> ApiResult<ApiJson<Account>> {
    let client = query.client;
    let slot = Slot::of_client(&client);
    node.shard_with(slot)?.read_in(slot, |rows| library::account(rows, &client)).map(ApiJson)
}
