//! Months, invoices and statements.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use common::api::extract::ApiQuery;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::ClientId;
use common::money::Currency;
use serde::Deserialize;
use serde_json::Value;

use super::books::RecordPage;
use super::{invalid, limit};
use crate::documents::{Invoice, Statement, csv, html, ubl};
use crate::invoicing::parse_number;
use crate::ledger::{
    CloseReport, CloseRequest, ClosedPeriod, Direction, ExportRequest, ImportReport, Ledger, Scheme,
};
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

/// An invoice or credit note as it was issued, in the form that the name ends in.
pub(super) async fn invoice(State(ledger): State<Ledger>, Path(file): Path<String>) -> ApiResult<Response> {
    let (name, form) = file.rsplit_once('.').unwrap_or((&file, ""));
    let number = parse_number(ledger.fee(), name).ok_or_else(|| no_invoice(&file))?;
    let document = ledger.invoice(number).await?.ok_or_else(|| no_invoice(&file))?;
    if form == "json" {
        return Ok(Json(document).into_response());
    }
    let invoice: Invoice = serde_json::from_value(document).map_err(|error| ApiError::internal(&error))?;
    Ok(match form {
        "csv" => text("text/csv; charset=utf-8", csv::invoice(&invoice)),
        "html" => text("text/html; charset=utf-8", html::invoice(&invoice)),
        "xml" => {
            let written = ubl::write(&invoice)
                .map_err(|error| ApiError::new(ErrorCode::Conflict, format!("{file}: {error}")))?;
            text("application/xml", written)
        }
        _ => return Err(no_invoice(&file)),
    })
}

fn text(media_type: &'static str, body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, media_type)], body.into()).into_response()
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

/// A party's statements of a month, one for each currency; while the month is open, as they would be now. As JSON a list,
/// in other forms the one of `currency`.
pub(super) async fn statement(
    State(ledger): State<Ledger>,
    Path((party, file)): Path<(String, String)>,
    ApiQuery(query): ApiQuery<StatementQuery>,
) -> ApiResult<Response> {
    let (period, form) = file.rsplit_once('.').unwrap_or((&file, "json"));
    let period = period.parse().map_err(|error: InvalidTime| invalid(error.to_string()))?;
    let mut all = ledger.statements(&party, period).await?;
    if form == "json" {
        return Ok(Json(all).into_response());
    }
    all.retain(|statement| query.currency.is_none_or(|currency| statement.currency == currency));
    let [statement] = &all[..] else {
        let message = match all.len() {
            0 => format!("{party} earned nothing up to {period}"),
            n => format!("{party} has {n} statements of {period}; name one with ?currency="),
        };
        return Err(ApiError::new(ErrorCode::NotFound, message));
    };
    match form {
        "csv" => Ok(text("text/csv; charset=utf-8", csv::statement(statement))),
        "html" => Ok(text("text/html; charset=utf-8", html::statement(statement))),
        _ => Err(invalid(format!("a statement has the forms .json, .html and .csv, not .{form}"))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatementQuery {
    currency: Option<Currency>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportQuery {
    scheme: Scheme,
    /// Day of the payments.
    date: String,
    #[serde(default)]
    skip_missing: bool,
}

/// The bank file of a closed month: `payouts` or `debits`.
pub(super) async fn export(
    State(ledger): State<Ledger>,
    Path((period, direction)): Path<(String, String)>,
    ApiQuery(query): ApiQuery<ExportQuery>,
) -> ApiResult<Response> {
    let direction = match direction.as_str() {
        "payouts" => Direction::Payouts,
        "debits" => Direction::Debits,
        _ => return Err(invalid("bank files are of payouts or of debits")),
    };
    let period = period.parse().map_err(|error: InvalidTime| invalid(error.to_string()))?;
    let ExportQuery { scheme, date, skip_missing } = query;
    let file = ledger.export(&ExportRequest { period, direction, scheme, date, skip_missing }).await?;
    let media_type = match scheme {
        Scheme::Zengin => "application/octet-stream",
        Scheme::Sepa => "application/xml",
    };
    Ok(text(media_type, file))
}

/// Takes a bank's result file of a collection.
pub(super) async fn import_debit_results(
    State(ledger): State<Ledger>,
    file: Bytes,
) -> ApiResult<Json<ImportReport>> {
    Ok(Json(ledger.import_debit_results(&file).await?))
}

fn no_invoice(name: &str) -> ApiError {
    let shown: String = name.chars().take(40).collect();
    ApiError::new(
        ErrorCode::NotFound,
        format!("there is no invoice {shown}; use NUMBER.json, .html, .csv or .xml"),
    )
}
