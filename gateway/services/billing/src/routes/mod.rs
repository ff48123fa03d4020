//! The HTTP routes. All of them are for servers of the cluster and its operator; a gateway asks here on behalf
//! of its clients.

mod books;
mod documents;
mod reconciliation;
mod terms;

use axum::extract::{DefaultBodyLimit, State};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use common::api::billing::{BatchAnswer, RecordBatch};
use common::api::extract::ApiJson;
use common::auth::{Guard, require_server};
use common::error::{ApiError, ApiResult, ErrorCode};

use crate::chain::CheckedBatch;
use crate::ledger::Ledger;
use crate::reconcile::Peers;

/// Longest batch in bytes: 4,096 records of 4 KiB.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Longest document of terms.
const TERMS_BYTES_MAX: usize = 4 << 20;
const PAGE_MAX: i64 = 1000;
const PAGE: i64 = 100;

pub(crate) fn routes(ledger: Ledger, peers: Peers, guard: Guard) -> Router {
    let batches =
        Router::new().route("/v1/batches", post(book_batch)).layer(DefaultBodyLimit::max(BATCH_BYTES_MAX));
    let rest = Router::new()
        .route("/v1/tariffs", put(terms::put_tariff).get(terms::tariffs))
        .route("/v1/splits", put(terms::put_split).get(terms::splits))
        .route("/v1/parties", put(terms::put_party).get(terms::parties))
        .route("/v1/usage", get(books::usage))
        .route("/v1/totals", get(books::totals))
        .route("/v1/periods/{period}/close", post(documents::close))
        .route("/v1/invoices", get(documents::invoices))
        .route("/v1/invoices/{file}", get(documents::invoice))
        .route("/v1/invoices/{number}/deliveries", get(documents::invoice_deliveries))
        .route("/v1/records", get(books::records))
        .route("/v1/periods", get(documents::periods))
        .route("/v1/statements", get(documents::statements))
        .route("/v1/statements/{party}/{period}", get(documents::statement))
        .route("/v1/exports/{period}/{direction}", get(documents::export))
        .route("/v1/imports/debit-results", post(documents::import_debit_results))
        .route("/v1/quote", get(books::quote))
        .route("/v1/reconciliation/{period}", get(reconciliation::reconcile))
        .route("/v1/periods/{period}/totals", get(reconciliation::month_totals))
        .route("/v1/records/digest", get(reconciliation::record_digest))
        .route("/v1/chains", get(books::chains))
        .route("/v1/accounts", get(books::accounts))
        .route("/v1/corrections", post(books::correct))
        .route("/v1/payments", post(books::pay))
        .route("/v1/verify", get(books::verify))
        .layer(DefaultBodyLimit::max(TERMS_BYTES_MAX));
    batches
        .merge(rest)
        .layer(Extension(peers))
        .layer(from_fn_with_state(guard, require_server))
        .with_state(ledger)
}

async fn book_batch(
    State(ledger): State<Ledger>,
    ApiJson(batch): ApiJson<RecordBatch>,
) -> ApiResult<Json<BatchAnswer>> {
    let batch = CheckedBatch::new(batch)?;
    Ok(Json(ledger.book(batch).await?.answer))
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
