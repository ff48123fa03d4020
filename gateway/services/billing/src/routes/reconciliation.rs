//! Whether the nodes' logs and both servers' books agree.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use common::api::billing::MonthTotals;
use common::api::extract::ApiQuery;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::RecordDigest;
use common::id::NodeId;
use serde::Deserialize;

use super::parse_period;
use crate::ledger::Ledger;
use crate::period::Period;
use crate::reconcile::{self, Peers, ReconciliationReport};

/// Compare the nodes' logs and both servers' books
#[utoipa::path(
    get,
    path = "/v1/reconciliation/{period}",
    params(("period" = Period, Path, description = "The month")),
    responses((status = 200, body = ReconciliationReport))
)]
pub(super) async fn reconcile(
    State(ledger): State<Ledger>,
    Extension(peers): Extension<Peers>,
    Path(period): Path<String>,
) -> ApiResult<Json<ReconciliationReport>> {
    Ok(Json(reconcile::reconcile(&ledger, &peers, parse_period(&period)?).await?))
}

/// What the records of a month sum to
#[utoipa::path(
    get,
    path = "/v1/periods/{period}/totals",
    params(("period" = Period, Path, description = "The month")),
    responses((status = 200, body = MonthTotals))
)]
pub(super) async fn month_totals(
    State(ledger): State<Ledger>,
    Path(period): Path<String>,
) -> ApiResult<Json<MonthTotals>> {
    Ok(Json(ledger.month_totals(parse_period(&period)?).await?))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DigestQuery {
    node: NodeId,
    epoch: u64,
    seq: u64,
}

/// The digest of a booked record
#[utoipa::path(
    get,
    path = "/v1/records/digest",
    params(DigestQuery),
    responses((status = 200, body = RecordDigest))
)]
pub(super) async fn record_digest(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<DigestQuery>,
) -> ApiResult<Json<RecordDigest>> {
    let DigestQuery { node, epoch, seq } = query;
    let none = || {
        let message = format!("record {seq} of {node} in epoch {epoch} is not booked here");
        ApiError::new(ErrorCode::NotFound, message)
    };
    ledger.digest_of(&node, epoch, seq).await?.map(Json).ok_or_else(none)
}
