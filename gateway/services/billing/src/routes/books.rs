//! What is booked: usage, records, accounts, and the requests that change them.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use common::api::billing::{ChainView, Quote, Totals, Usage};
use common::api::extract::{ApiJson, ApiQuery};
use common::error::ApiResult;
use common::id::{ClientId, DeliveryId, NodeId};
use common::name::ContentName;
use serde::{Deserialize, Serialize};

use super::{invalid, limit};
use crate::ledger::{
    AccountView, CorrectionReport, CorrectionRequest, Ledger, PaymentReport, PaymentRequest, RecordView,
};
use crate::period::Period;
use crate::sql::requests::RequestKey;
use crate::verify::VerifyReport;

/// Header that names a request, so that its repetition changes nothing.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    client: ClientId,
    period: Period,
}

pub(super) async fn usage(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<UsageQuery>,
) -> ApiResult<Json<Usage>> {
    Ok(Json(ledger.usage(&query.client, query.period).await?))
}

pub(super) async fn totals(State(ledger): State<Ledger>) -> ApiResult<Json<Totals>> {
    Ok(Json(ledger.totals().await?))
}

/// A page of records; ask again with `after = next` until `next` is null.
#[derive(Serialize)]
pub(super) struct RecordPage {
    pub records: Vec<RecordView>,
    pub next: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordsQuery {
    delivery: Option<DeliveryId>,
    node: Option<NodeId>,
    epoch: Option<u64>,
    /// Record number after which the page begins.
    #[serde(default)]
    after: u64,
    limit: Option<i64>,
}

pub(super) async fn records(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<RecordsQuery>,
) -> ApiResult<Json<RecordPage>> {
    match (query.delivery, query.node, query.epoch) {
        (Some(delivery), None, None) => {
            let records = ledger.records_of_delivery(delivery).await?;
            Ok(Json(RecordPage { records, next: None }))
        }
        (None, Some(node), Some(epoch)) if i64::try_from(epoch).is_ok() => {
            let limit = limit(query.limit)?;
            let records = ledger.records_of_node(&node, epoch, query.after, limit).await?;
            let full = records.len() as i64 == limit;
            let next = records.last().filter(|_| full).map(|r| r.seq.cast_signed());
            Ok(Json(RecordPage { records, next }))
        }
        _ => Err(invalid("give either delivery, or node and epoch (and after)")),
    }
}

pub(super) async fn verify(State(ledger): State<Ledger>) -> ApiResult<Json<VerifyReport>> {
    let report = ledger.verify().await?;
    if !report.ok {
        tracing::error!(fee = %ledger.fee(), faults = report.faults, first = report.findings.first(),
            "the ledger does not verify");
    }
    Ok(Json(report))
}

pub(super) async fn chains(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<ChainView>>> {
    Ok(Json(ledger.chains().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccountsQuery {
    #[serde(default)]
    after: String,
    limit: Option<i64>,
}

pub(super) async fn accounts(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<AccountsQuery>,
) -> ApiResult<Json<Vec<AccountView>>> {
    Ok(Json(ledger.accounts(&query.after, limit(query.limit)?).await?))
}

pub(super) async fn correct(
    State(ledger): State<Ledger>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<CorrectionRequest>,
) -> ApiResult<Json<CorrectionReport>> {
    let key = request_key(&headers, "corrections", &request)?;
    Ok(Json(ledger.correct(request, key).await?))
}

pub(super) async fn pay(
    State(ledger): State<Ledger>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<PaymentRequest>,
) -> ApiResult<Json<PaymentReport>> {
    let key = request_key(&headers, "payments", &request)?;
    Ok(Json(ledger.pay(request, key).await?))
}

/// The key that the caller gave, with a digest of what is asked.
fn request_key(headers: &HeaderMap, what: &str, request: &impl Serialize) -> ApiResult<Option<RequestKey>> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=100).contains(&key.len()));
    let key = key.ok_or_else(|| invalid("idempotency-key must have 1 to 100 printable ASCII characters"))?;
    let body = serde_json::to_vec(request).map_err(|error| invalid(error.to_string()))?;
    let mut hasher = blake3::Hasher::new_derive_key("dozo billing request v1");
    hasher.update(&(what.len() as u64).to_le_bytes()).update(what.as_bytes()).update(&body);
    Ok(Some(RequestKey { key: key.to_owned(), digest: hasher.finalize().into() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuoteQuery {
    client: ClientId,
    content: ContentName,
    provider: ClientId,
    /// Length of the content.
    bytes: u64,
    /// Whether another site than the client's home would serve it.
    #[serde(default)]
    away: bool,
}

/// What a delivery would be charged now.
pub(super) async fn quote(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<QuoteQuery>,
) -> ApiResult<Json<Quote>> {
    let QuoteQuery { client, content, provider, bytes, away } = query;
    Ok(Json(ledger.quote(client, content, provider, bytes, away).await?))
}
