//! The HTTP routes: one table says what there is and who may ask for it. The router and the API's description are both
//! made of it.

mod access;
mod books;
mod description;
mod documents;
mod reconciliation;
mod terms;

use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};
use axum::{Extension, Router};
use common::auth::Guard;
use common::error::{ApiError, ApiResult, ErrorBody, ErrorCode};
use utoipa::OpenApi;

use self::access::Who::{self, Anybody, Auditor, Billing, Gateway, Node, Operator};
use self::access::{Gate, admit};
use crate::ledger::{Direction, Ledger, Scheme};
use crate::metrics::Metrics;
use crate::period::{InvalidTime, Period};
use crate::reconcile::Peers;

pub use self::description::description;

/// Longest body: a batch of 4,096 records of 4 KiB.
const BODY_BYTES_MAX: usize = 16 << 20;
const PAGE_MAX: i64 = 1000;
const PAGE: i64 = 100;

/// One line of the table.
struct Route {
    method: &'static str,
    path: &'static str,
    who: &'static [Who],
}

macro_rules! routes {
    ($($method:ident $path:literal $module:ident::$handler:ident [$($who:ident),*];)*) => {
        const ROUTES: &[Route] =
            &[$(Route { method: stringify!($method), path: $path, who: &[$($who),*] },)*];

        #[derive(OpenApi)]
        // Named are those types that no body brings along.
        #[openapi(paths($($module::$handler),*), components(schemas(ErrorBody, Direction, Scheme)))]
        struct Described;

        fn router(gate: impl Fn(&'static [Who]) -> Gate) -> Router<Ledger> {
            Router::new()
                $(.route(
                    $path,
                    $method($module::$handler).route_layer(from_fn_with_state(gate(&[$($who),*]), admit)),
                ))*
        }
    };
}

routes! {
    post "/v1/batches"                       books::book_batch                [Node];

    get  "/v1/usage"                         books::usage                     [Operator, Auditor, Gateway];
    get  "/v1/quote"                         books::quote                     [Operator, Auditor, Gateway];
    get  "/v1/invoices"                      documents::invoices              [Operator, Auditor, Gateway];
    get  "/v1/invoices/{file}"               documents::invoice               [Operator, Auditor, Gateway];
    get  "/v1/invoices/{number}/deliveries"  documents::invoice_deliveries    [Operator, Auditor, Gateway];
    get  "/v1/statements"                    documents::statements            [Operator, Auditor, Gateway];
    get  "/v1/statements/{party}/{file}"     documents::statement             [Operator, Auditor, Gateway];

    get  "/v1/chains"                        books::chains                    [Operator, Auditor, Billing];
    get  "/v1/records/digest"                reconciliation::record_digest    [Operator, Auditor, Billing];
    get  "/v1/periods/{period}/totals"       reconciliation::month_totals     [Operator, Auditor, Billing];

    get  "/v1/tariffs"                       terms::tariffs                   [Operator, Auditor];
    get  "/v1/splits"                        terms::splits                    [Operator, Auditor];
    get  "/v1/parties"                       terms::parties                   [Operator, Auditor];
    get  "/v1/totals"                        books::totals                    [Operator, Auditor];
    get  "/v1/records"                       books::records                   [Operator, Auditor];
    get  "/v1/accounts"                      books::accounts                  [Operator, Auditor];
    get  "/v1/periods"                       documents::periods               [Operator, Auditor];
    get  "/v1/exports/{period}/{direction}"  documents::export                [Operator, Auditor];
    get  "/v1/reconciliation/{period}"       reconciliation::reconcile        [Operator, Auditor];
    get  "/v1/verify"                        books::verify                    [Operator, Auditor];

    put  "/v1/tariffs"                       terms::put_tariff                [Operator];
    put  "/v1/splits"                        terms::put_split                 [Operator];
    put  "/v1/parties"                       terms::put_party                 [Operator];
    post "/v1/periods/{period}/close"        documents::close                 [Operator];
    post "/v1/corrections"                   books::correct                   [Operator];
    post "/v1/payments"                      books::pay                       [Operator];
    post "/v1/imports/debit-results"         documents::import_debit_results  [Operator];

    get  "/v1/openapi.json"                  description::openapi             [Anybody];
}

pub(crate) fn routes(ledger: Ledger, peers: Peers, guard: Guard, metrics: Metrics) -> Router {
    router(|who| Gate { guard: guard.clone(), metrics: metrics.clone(), who })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(Extension(peers))
        .layer(Extension(metrics))
        .with_state(ledger)
}

fn limit(asked: Option<i64>) -> ApiResult<i64> {
    match asked {
        None => Ok(PAGE),
        Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(invalid(format!("limit {limit} is not within 1 to {PAGE_MAX}"))),
    }
}

fn parse_period(text: &str) -> ApiResult<Period> {
    text.parse().map_err(|error: InvalidTime| invalid(error.to_string()))
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, message)
}
