//! Versions of tariffs, splits and parties.

use axum::Json;
use axum::extract::State;
use common::api::extract::{ApiJson, ApiQuery};
use common::error::ApiResult;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::limit;
use crate::ledger::{Ledger, StoredVersion};
use crate::sql::terms::Table;

/// Answer to a `PUT` of a tariff or split.
#[derive(Serialize)]
pub(super) struct Stored {
    version: i64,
}

pub(super) async fn put_tariff(
    State(ledger): State<Ledger>,
    ApiJson(document): ApiJson<Value>,
) -> ApiResult<Json<Stored>> {
    Ok(Json(Stored { version: ledger.put_tariff(document).await? }))
}

pub(super) async fn put_split(
    State(ledger): State<Ledger>,
    ApiJson(document): ApiJson<Value>,
) -> ApiResult<Json<Stored>> {
    Ok(Json(Stored { version: ledger.put_split(document).await? }))
}

pub(super) async fn put_party(
    State(ledger): State<Ledger>,
    ApiJson(document): ApiJson<Value>,
) -> ApiResult<Json<Value>> {
    ledger.put_party(document).await?;
    Ok(Json(json!({})))
}

pub(super) async fn tariffs(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<StoredVersion>>> {
    Ok(Json(ledger.versions(Table::Tariffs).await?))
}

pub(super) async fn splits(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<StoredVersion>>> {
    Ok(Json(ledger.versions(Table::Splits).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartiesQuery {
    #[serde(default)]
    after: String,
    limit: Option<i64>,
}

pub(super) async fn parties(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<PartiesQuery>,
) -> ApiResult<Json<Vec<Value>>> {
    Ok(Json(ledger.parties(&query.after, limit(query.limit)?).await?))
}
