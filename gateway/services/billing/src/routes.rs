//! The HTTP routes. All of them are for servers of the cluster and its operator; a gateway asks here on behalf
//! of its clients.

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use common::api::billing::{BatchAnswer, RecordBatch, Totals, Usage};
use common::api::extract::{ApiJson, ApiQuery};
use common::auth::{Guard, require_server};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{ClientId, DeliveryId, NodeId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::chain::CheckedBatch;
use crate::invoice::parse_number;
use crate::ledger::{CloseReport, CloseRequest, Ledger, RecordView, StoredVersion};
use crate::period::{InvalidTime, Period};
use crate::sql::invoices::InvoiceQuery;
use crate::sql::terms::Table;
use crate::verify::VerifyReport;

/// Longest batch in bytes: 4,096 records of 4 KiB.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Longest document of terms.
const TERMS_BYTES_MAX: usize = 4 << 20;
const PAGE_MAX: i64 = 1000;
const PAGE: i64 = 100;

pub(crate) fn routes(ledger: Ledger, guard: Guard) -> Router {
    let batches =
        Router::new().route("/v1/batches", post(book_batch)).layer(DefaultBodyLimit::max(BATCH_BYTES_MAX));
    let rest = Router::new()
        .route("/v1/tariffs", put(put_tariff).get(tariffs))
        .route("/v1/splits", put(put_split).get(splits))
        .route("/v1/parties", put(put_party).get(parties))
        .route("/v1/usage", get(usage))
        .route("/v1/totals", get(totals))
        .route("/v1/periods/{period}/close", post(close))
        .route("/v1/invoices", get(invoices))
        .route("/v1/invoices/{file}", get(invoice))
        .route("/v1/invoices/{number}/deliveries", get(invoice_deliveries))
        .route("/v1/records", get(records))
        .route("/v1/verify", get(verify))
        .layer(DefaultBodyLimit::max(TERMS_BYTES_MAX));
    batches.merge(rest).layer(from_fn_with_state(guard, require_server)).with_state(ledger)
}

async fn book_batch(
    State(ledger): State<Ledger>,
    ApiJson(batch): ApiJson<RecordBatch>,
) -> ApiResult<Json<BatchAnswer>> {
    let batch = CheckedBatch::new(batch)?;
    Ok(Json(ledger.book(batch).await?.answer))
}

/// Answer to a `PUT` of a tariff or split.
#[derive(Serialize)]
struct Stored {
    version: i64,
}

async fn put_tariff(
    State(ledger): State<Ledger>,
    ApiJson(document): ApiJson<Value>,
) -> ApiResult<Json<Stored>> {
    Ok(Json(Stored { version: ledger.put_tariff(document).await? }))
}

async fn put_split(
    State(ledger): State<Ledger>,
    ApiJson(document): ApiJson<Value>,
) -> ApiResult<Json<Stored>> {
    Ok(Json(Stored { version: ledger.put_split(document).await? }))
}

async fn put_party(
    State(ledger): State<Ledger>,
    ApiJson(document): ApiJson<Value>,
) -> ApiResult<Json<Value>> {
    ledger.put_party(document).await?;
    Ok(Json(json!({})))
}

async fn tariffs(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<StoredVersion>>> {
    Ok(Json(ledger.versions(Table::Tariffs).await?))
}

async fn splits(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<StoredVersion>>> {
    Ok(Json(ledger.versions(Table::Splits).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartiesQuery {
    #[serde(default)]
    after: String,
    limit: Option<i64>,
}

async fn parties(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<PartiesQuery>,
) -> ApiResult<Json<Vec<Value>>> {
    Ok(Json(ledger.parties(&query.after, limit(query.limit)?).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageQuery {
    client: ClientId,
    period: Period,
}

async fn usage(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<UsageQuery>,
) -> ApiResult<Json<Usage>> {
    Ok(Json(ledger.usage(&query.client, query.period).await?))
}

async fn totals(State(ledger): State<Ledger>) -> ApiResult<Json<Totals>> {
    Ok(Json(ledger.totals().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    after: String,
}

async fn close(
    State(ledger): State<Ledger>,
    Path(period): Path<String>,
    ApiQuery(query): ApiQuery<CloseQuery>,
) -> ApiResult<Json<CloseReport>> {
    let period = period.parse().map_err(|error: InvalidTime| invalid(error.to_string()))?;
    let request = CloseRequest { period, dry_run: query.dry_run, after: query.after };
    Ok(Json(ledger.close(&request).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InvoicesQuery {
    period: Option<Period>,
    client: Option<ClientId>,
    /// Number after which the page begins.
    after: Option<String>,
    limit: Option<i64>,
}

async fn invoices(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<InvoicesQuery>,
) -> ApiResult<Json<Vec<Value>>> {
    let after = match &query.after {
        None => 0,
        Some(text) => parse_number(ledger.fee(), text)
            .ok_or_else(|| invalid(format!("after {text:?} is no invoice number of this server")))?,
    };
    let (period, client) = (query.period, query.client.as_ref());
    let query = InvoiceQuery { period, client, after, limit: limit(query.limit)? };
    Ok(Json(ledger.invoices(query).await?))
}

async fn invoice(State(ledger): State<Ledger>, Path(file): Path<String>) -> ApiResult<Json<Value>> {
    let number = file.strip_suffix(".json").and_then(|text| parse_number(ledger.fee(), text));
    let Some(number) = number else { return Err(no_invoice(&file)) };
    ledger.invoice(number).await?.map(Json).ok_or_else(|| no_invoice(&file))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    #[serde(default)]
    after: i64,
    limit: Option<i64>,
}

/// A page of records; ask again with `after = next` until `next` is null.
#[derive(Serialize)]
struct RecordPage {
    records: Vec<RecordView>,
    next: Option<i64>,
}

async fn invoice_deliveries(
    State(ledger): State<Ledger>,
    Path(number): Path<String>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> ApiResult<Json<RecordPage>> {
    let parsed = parse_number(ledger.fee(), &number).ok_or_else(|| no_invoice(&number))?;
    let limit = limit(query.limit)?;
    let records = ledger.invoice_deliveries(parsed, query.after, limit).await?;
    let records = records.ok_or_else(|| no_invoice(&number))?;
    let next = records.last().filter(|_| records.len() as i64 == limit).map(|r| r.id);
    Ok(Json(RecordPage { records, next }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordsQuery {
    delivery: Option<DeliveryId>,
    node: Option<NodeId>,
    epoch: Option<u64>,
    /// Record number after which the page begins.
    #[serde(default)]
    after: u64,
    limit: Option<i64>,
}

async fn records(
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

async fn verify(State(ledger): State<Ledger>) -> ApiResult<Json<VerifyReport>> {
    let report = ledger.verify().await?;
    if !report.ok {
        tracing::error!(fee = %ledger.fee(), faults = report.faults, first = report.findings.first(),
            "the ledger does not verify");
    }
    Ok(Json(report))
}

fn limit(asked: Option<i64>) -> ApiResult<i64> {
    match asked {
        None => Ok(PAGE),
        Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(invalid(format!("limit {limit} is not within 1 to {PAGE_MAX}"))),
    }
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, message)
}

fn no_invoice(name: &str) -> ApiError {
    let shown: String = name.chars().take(40).collect();
    ApiError::new(ErrorCode::NotFound, format!("there is no invoice {shown}; use NUMBER.json"))
}
