//! What is booked: batches, usage, records, accounts, and the requests that change them.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::{Extension, Json};
use common::api::billing::{BatchAnswer, ChainView, Quote, RecordBatch, Totals, Usage};
use common::api::extract::{ApiJson, ApiQuery, ApiQuestion};
use common::auth::Caller;
use common::error::ApiResult;
use common::id::{ClientId, DeliveryId, NodeId};
use common::name::ContentName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::check_sender;
use super::{invalid, limit};
use crate::chain::CheckedBatch;
use crate::ledger::{
    AccountView, CorrectionReport, CorrectionRequest, Ledger, PaymentReport, PaymentRequest, RecordView,
};
use crate::metrics::Metrics;
use crate::period::Period;
use crate::sql::requests::RequestKey;
use crate::verify::VerifyReport;

/// Header that names a request, so that its repetition changes nothing.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Book a batch of records
///
/// Of one node, in order; from that node, or from the one of its site that stands in for it. A batch that is known
/// changes nothing.
#[utoipa::path(post, path = "/v1/batches", request_body = RecordBatch, responses((status = 200, body = BatchAnswer)))]
pub(super) async fn book_batch(
    State(ledger): State<Ledger>,
    Extension(metrics): Extension<Metrics>,
    Extension(caller): Extension<Caller>,
    ApiQuestion(batch, _): ApiQuestion<RecordBatch>,
) -> ApiResult<Json<BatchAnswer>> {
    check_sender(&caller, &metrics, &batch.node)?;
    let batch = CheckedBatch::new(batch)?;
    Ok(Json(ledger.book(batch).await?.answer))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    client: ClientId,
    /// By default the present month, in the tariff's zone.
    period: Option<Period>,
}

/// What a client was delivered and charged in a month
#[utoipa::path(get, path = "/v1/usage", params(UsageQuery), responses((status = 200, body = Usage)))]
pub(super) async fn usage(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<UsageQuery>,
) -> ApiResult<Json<Usage>> {
    let period = match query.period {
        Some(period) => period,
        None => ledger.present_period().await?,
    };
    Ok(Json(ledger.usage(&query.client, period).await?))
}

/// What is booked in all
#[utoipa::path(get, path = "/v1/totals", responses((status = 200, body = Totals)))]
pub(super) async fn totals(State(ledger): State<Ledger>) -> ApiResult<Json<Totals>> {
    Ok(Json(ledger.totals().await?))
}

/// A page of records; ask again with `after = next` until `next` is null.
#[derive(Serialize, ToSchema)]
pub(super) struct RecordPage {
    pub records: Vec<RecordView>,
    pub next: Option<i64>,
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RecordsQuery {
    delivery: Option<DeliveryId>,
    node: Option<NodeId>,
    epoch: Option<u64>,
    /// Record number after which the page begins.
    #[serde(default)]
    after: u64,
    /// 1 to 1000, by default 100.
    limit: Option<i64>,
}

/// The booked records of a delivery, or of a node's chain
#[utoipa::path(get, path = "/v1/records", params(RecordsQuery), responses((status = 200, body = RecordPage)))]
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

/// Compute everything again and compare it with the books
#[utoipa::path(get, path = "/v1/verify", responses((status = 200, body = VerifyReport)))]
pub(super) async fn verify(State(ledger): State<Ledger>) -> ApiResult<Json<VerifyReport>> {
    let report = ledger.verify().await?;
    if !report.ok {
        tracing::error!(fee = %ledger.fee(), faults = report.faults, first = report.findings.first(),
            "the ledger does not verify");
    }
    Ok(Json(report))
}

/// How far each chain of records is booked
#[utoipa::path(get, path = "/v1/chains", responses((status = 200, body = Vec<ChainView>)))]
pub(super) async fn chains(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<ChainView>>> {
    Ok(Json(ledger.chains().await?))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AccountsQuery {
    /// Account after which the page begins.
    #[serde(default)]
    after: String,
    /// 1 to 1000, by default 100.
    limit: Option<i64>,
}

/// Accounts and what they come to
#[utoipa::path(get, path = "/v1/accounts", params(AccountsQuery), responses((status = 200, body = Vec<AccountView>)))]
pub(super) async fn accounts(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<AccountsQuery>,
) -> ApiResult<Json<Vec<AccountView>>> {
    Ok(Json(ledger.accounts(&query.after, limit(query.limit)?).await?))
}

/// Take charges back
///
/// By reversal or, if they were invoiced, with a credit note.
#[utoipa::path(
    post,
    path = "/v1/corrections",
    params(IdempotencyKey),
    request_body = CorrectionRequest,
    responses((status = 200, body = CorrectionReport))
)]
pub(super) async fn correct(
    State(ledger): State<Ledger>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<CorrectionRequest>,
) -> ApiResult<Json<CorrectionReport>> {
    let key = request_key(&headers, "corrections", &request)?;
    Ok(Json(ledger.correct(request, key).await?))
}

/// Book money that came in for an invoice
#[utoipa::path(
    post,
    path = "/v1/payments",
    params(IdempotencyKey),
    request_body = PaymentRequest,
    responses((status = 200, body = PaymentReport))
)]
pub(super) async fn pay(
    State(ledger): State<Ledger>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<PaymentRequest>,
) -> ApiResult<Json<PaymentReport>> {
    let key = request_key(&headers, "payments", &request)?;
    Ok(Json(ledger.pay(request, key).await?))
}

#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "tells of the header in the API's description")]
struct IdempotencyKey {
    /// Names the request, so that its repetition changes nothing; with another body it is a conflict.
    #[param(rename = "idempotency-key", min_length = 1, max_length = 100)]
    key: Option<String>,
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

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
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

/// What a delivery would be charged now
#[utoipa::path(get, path = "/v1/quote", params(QuoteQuery), responses((status = 200, body = Quote)))]
pub(super) async fn quote(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<QuoteQuery>,
) -> ApiResult<Json<Quote>> {
    let QuoteQuery { client, content, provider, bytes, away } = query;
    Ok(Json(ledger.quote(client, content, provider, bytes, away).await?))
}
