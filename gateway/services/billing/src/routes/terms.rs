//! Versions of tariffs, splits and parties.

use axum::Json;
use axum::extract::State;
use common::api::extract::{ApiJson, ApiQuery};
use common::error::ApiResult;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::limit;
use crate::ledger::{Ledger, StoredVersion};
use crate::sql::terms::Table;
use crate::tariff::{ContentSplit, ContentTariff, Party, ServiceSplit, ServiceTariff};

/// A tariff of the server's own fee.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "tells in the API's description what is read as JSON and checked by its fee")]
enum AnyTariff {
    Service(ServiceTariff),
    Content(ContentTariff),
}

/// A split of the server's own fee.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "as above")]
enum AnySplit {
    Service(ServiceSplit),
    Content(ContentSplit),
}

/// Answer to a `PUT` of a tariff or split.
#[derive(Serialize, ToSchema)]
pub(super) struct Stored {
    version: i64,
}

/// Store a version of the tariff
///
/// It holds from its `valid_from` on. Records that waited for one are rated anew.
#[utoipa::path(put, path = "/v1/tariffs", request_body = AnyTariff, responses((status = 200, body = Stored)))]
pub(super) async fn put_tariff(
    State(ledger): State<Ledger>,
    ApiJson(document): ApiJson<Value>,
) -> ApiResult<Json<Stored>> {
    Ok(Json(Stored { version: ledger.put_tariff(document).await? }))
}

/// Store a version of how fees are shared
#[utoipa::path(put, path = "/v1/splits", request_body = AnySplit, responses((status = 200, body = Stored)))]
pub(super) async fn put_split(
    State(ledger): State<Ledger>,
    ApiJson(document): ApiJson<Value>,
) -> ApiResult<Json<Stored>> {
    Ok(Json(Stored { version: ledger.put_split(document).await? }))
}

/// Store a version of who a party is
#[utoipa::path(put, path = "/v1/parties", request_body = Party, responses((status = 200, body = Value)))]
pub(super) async fn put_party(
    State(ledger): State<Ledger>,
    ApiJson(document): ApiJson<Value>,
) -> ApiResult<Json<Value>> {
    ledger.put_party(document).await?;
    Ok(Json(json!({})))
}

/// All versions of the tariff
#[utoipa::path(get, path = "/v1/tariffs", responses((status = 200, body = Vec<StoredVersion>)))]
pub(super) async fn tariffs(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<StoredVersion>>> {
    Ok(Json(ledger.versions(Table::Tariffs).await?))
}

/// All versions of how fees are shared
#[utoipa::path(get, path = "/v1/splits", responses((status = 200, body = Vec<StoredVersion>)))]
pub(super) async fn splits(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<StoredVersion>>> {
    Ok(Json(ledger.versions(Table::Splits).await?))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PartiesQuery {
    /// Party after which the page begins.
    #[serde(default)]
    after: String,
    /// 1 to 1000, by default 100.
    limit: Option<i64>,
}

/// All versions of the parties
#[utoipa::path(get, path = "/v1/parties", params(PartiesQuery), responses((status = 200, body = Vec<Party>)))]
pub(super) async fn parties(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<PartiesQuery>,
) -> ApiResult<Json<Vec<Value>>> {
    Ok(Json(ledger.parties(&query.after, limit(query.limit)?).await?))
}
