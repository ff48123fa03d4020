//! Months, invoices and statements.

use axum::Json;
use axum::extract::{Path, State};
use common::api::extract::ApiQuery;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::ClientId;
use serde::Deserialize;
use serde_json::Value;

use super::books::RecordPage;
use super::{invalid, limit};
use crate::documents::Statement;
use crate::invoicing::parse_number;
use crate::ledger::{CloseReport, CloseRequest, ClosedPeriod, Ledger};
use crate::period::{InvalidTime, Period};
use crate::sql::invoices::InvoiceQuery;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CloseQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    after: String,
}

pub(super) async fn close(
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
pub(super) struct InvoicesQuery {
    period: Option<Period>,
    client: Option<ClientId>,
    /// Number after which the page begins.
    after: Option<String>,
    limit: Option<i64>,
}

pub(super) async fn invoices(
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

pub(super) async fn invoice(
    State(ledger): State<Ledger>,
    Path(file): Path<String>,
) -> ApiResult<Json<Value>> {
    let number = file.strip_suffix(".json").and_then(|text| parse_number(ledger.fee(), text));
    let Some(number) = number else { return Err(no_invoice(&file)) };
    ledger.invoice(number).await?.map(Json).ok_or_else(|| no_invoice(&file))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    #[serde(default)]
    after: i64,
    limit: Option<i64>,
}

pub(super) async fn invoice_deliveries(
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

pub(super) async fn periods(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<ClosedPeriod>>> {
    Ok(Json(ledger.periods().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatementsQuery {
    period: Period,
    /// Party after which the page begins.
    #[serde(default)]
    after: String,
    limit: Option<i64>,
}

/// The issued statements of a closed month.
pub(super) async fn statements(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<StatementsQuery>,
) -> ApiResult<Json<Vec<Statement>>> {
    Ok(Json(ledger.issued_statements(query.period, &query.after, limit(query.limit)?).await?))
}

/// A party's statements of a month, one for each currency; while the month is open, as they would be now.
pub(super) async fn statement(
    State(ledger): State<Ledger>,
    Path((party, file)): Path<(String, String)>,
) -> ApiResult<Json<Vec<Statement>>> {
    let period = file.strip_suffix(".json").unwrap_or(&file);
    let period = period.parse().map_err(|error: InvalidTime| invalid(error.to_string()))?;
    Ok(Json(ledger.statements(&party, period).await?))
}

fn no_invoice(name: &str) -> ApiError {
    let shown: String = name.chars().take(40).collect();
    ApiError::new(ErrorCode::NotFound, format!("there is no invoice {shown}; use NUMBER.json"))
}
