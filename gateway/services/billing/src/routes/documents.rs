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
use super::{invalid, limit, parse_period};
use crate::documents::{Invoice, Statement, csv, html, ubl};
use crate::invoicing::parse_number;
use crate::ledger::{
    CloseReport, CloseRequest, ClosedPeriod, Direction, ExportRequest, ImportReport, Ledger, Scheme,
};
use crate::period::Period;
use crate::sql::invoices::InvoiceQuery;

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CloseQuery {
    /// Only show what would be invoiced.
    #[serde(default)]
    dry_run: bool,
    /// Client after which the documents shown begin.
    #[serde(default)]
    after: String,
}

/// Close a month
///
/// Its invoices and statements are issued and nothing more is booked into it. Closing it again changes nothing.
#[utoipa::path(
    post,
    path = "/v1/periods/{period}/close",
    params(("period" = Period, Path, description = "The month"), CloseQuery),
    responses((status = 200, body = CloseReport))
)]
pub(super) async fn close(
    State(ledger): State<Ledger>,
    Path(period): Path<String>,
    ApiQuery(query): ApiQuery<CloseQuery>,
) -> ApiResult<Json<CloseReport>> {
    let period = parse_period(&period)?;
    let request = CloseRequest { period, dry_run: query.dry_run, after: query.after };
    Ok(Json(ledger.close(&request).await?))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct InvoicesQuery {
    period: Option<Period>,
    client: Option<ClientId>,
    /// Number after which the page begins.
    after: Option<String>,
    /// 1 to 1000, by default 100.
    limit: Option<i64>,
}

/// Issued invoices and credit notes
#[utoipa::path(get, path = "/v1/invoices", params(InvoicesQuery), responses((status = 200, body = Vec<Invoice>)))]
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

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct InvoiceOwner {
    /// Only if it is this client's.
    client: Option<ClientId>,
}

/// An invoice or credit note as it was issued
///
/// In the form that the name ends in; `.xml` is UBL 2.1.
#[utoipa::path(
    get,
    path = "/v1/invoices/{file}",
    params(("file" = String, Path, description = "NUMBER.json, .csv, .html or .xml"), InvoiceOwner),
    responses((status = 200, content(
        (Invoice = "application/json"),
        (String = "text/csv"),
        (String = "text/html"),
        (String = "application/xml")
    )))
)]
pub(super) async fn invoice(
    State(ledger): State<Ledger>,
    Path(file): Path<String>,
    ApiQuery(owner): ApiQuery<InvoiceOwner>,
) -> ApiResult<Response> {
    let (name, form) = file.rsplit_once('.').unwrap_or((&file, ""));
    let number = parse_number(ledger.fee(), name).ok_or_else(|| no_invoice(&file))?;
    let document = ledger.invoice(number, owner.client.as_ref()).await?.ok_or_else(|| no_invoice(&file))?;
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

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeliveriesQuery {
    /// Only if the invoice is this client's.
    client: Option<ClientId>,
    /// Number of the booking after which the page begins.
    #[serde(default)]
    after: i64,
    /// 1 to 1000, by default 100.
    limit: Option<i64>,
}

/// The deliveries that an invoice or credit note is of
#[utoipa::path(
    get,
    path = "/v1/invoices/{number}/deliveries",
    params(("number" = String, Path, description = "As in S-0000001"), DeliveriesQuery),
    responses((status = 200, body = RecordPage))
)]
pub(super) async fn invoice_deliveries(
    State(ledger): State<Ledger>,
    Path(number): Path<String>,
    ApiQuery(query): ApiQuery<DeliveriesQuery>,
) -> ApiResult<Json<RecordPage>> {
    let parsed = parse_number(ledger.fee(), &number).ok_or_else(|| no_invoice(&number))?;
    let limit = limit(query.limit)?;
    let records = ledger.invoice_deliveries(parsed, query.client.as_ref(), query.after, limit).await?;
    let records = records.ok_or_else(|| no_invoice(&number))?;
    let next = records.last().filter(|_| records.len() as i64 == limit).map(|r| r.id);
    Ok(Json(RecordPage { records, next }))
}

/// The closed months
#[utoipa::path(get, path = "/v1/periods", responses((status = 200, body = Vec<ClosedPeriod>)))]
pub(super) async fn periods(State(ledger): State<Ledger>) -> ApiResult<Json<Vec<ClosedPeriod>>> {
    Ok(Json(ledger.periods().await?))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StatementsQuery {
    /// Of this month.
    period: Option<Period>,
    /// Of this party, as `provider:alice`.
    party: Option<String>,
    /// What the page begins after: a party or, if one party is asked for, a month.
    #[serde(default)]
    after: String,
    /// 1 to 1000, by default 100.
    limit: Option<i64>,
}

/// Issued payout statements of a month, or of a party
#[utoipa::path(
    get,
    path = "/v1/statements",
    params(StatementsQuery),
    responses((status = 200, body = Vec<Statement>))
)]
pub(super) async fn statements(
    State(ledger): State<Ledger>,
    ApiQuery(query): ApiQuery<StatementsQuery>,
) -> ApiResult<Json<Vec<Statement>>> {
    let StatementsQuery { period, party, after, limit: asked } = query;
    let limit = limit(asked)?;
    let statements = match (period, party) {
        (Some(period), None) => ledger.issued_statements(period, &after, limit).await?,
        (None, Some(party)) => {
            let after = if after.is_empty() { None } else { Some(parse_period(&after)?) };
            ledger.issued_statements_of(&party, after, limit).await?
        }
        _ => return Err(invalid("give either period or party")),
    };
    Ok(Json(statements))
}

/// A party's statements of a month
///
/// One for each currency; while the month is open, as they would be now. As JSON a list, in other forms the one of
/// `currency`.
#[utoipa::path(
    get,
    path = "/v1/statements/{party}/{file}",
    params(
        ("party" = String, Path, description = "As in provider:alice"),
        ("file" = String, Path, description = "YYYY-MM.json, .csv or .html"),
        StatementQuery
    ),
    responses((status = 200, content(
        (Vec<Statement> = "application/json"),
        (String = "text/csv"),
        (String = "text/html")
    )))
)]
pub(super) async fn statement(
    State(ledger): State<Ledger>,
    Path((party, file)): Path<(String, String)>,
    ApiQuery(query): ApiQuery<StatementQuery>,
) -> ApiResult<Response> {
    let (period, form) = file.rsplit_once('.').unwrap_or((&file, "json"));
    let period = parse_period(period)?;
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

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StatementQuery {
    /// Needed for other forms than JSON if there are several.
    currency: Option<Currency>,
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportQuery {
    scheme: Scheme,
    /// Day of the payments, `YYYY-MM-DD`.
    date: String,
    /// Leave out payouts to parties without an account, instead of refusing.
    #[serde(default)]
    skip_missing: bool,
}

/// The bank file of a closed month
///
/// Zengin (JIS X 0201 in records of 120 bytes) or SEPA (pain.001, pain.008).
#[utoipa::path(
    get,
    path = "/v1/exports/{period}/{direction}",
    params(("period" = Period, Path, description = "The month"), ("direction" = Direction, Path, description = "Which way the money goes"), ExportQuery),
    responses((status = 200, content((Vec<u8> = "application/octet-stream"), (String = "application/xml"))))
)]
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
    let period = parse_period(&period)?;
    let ExportQuery { scheme, date, skip_missing } = query;
    let file = ledger.export(&ExportRequest { period, direction, scheme, date, skip_missing }).await?;
    let media_type = match scheme {
        Scheme::Zengin => "application/octet-stream",
        Scheme::Sepa => "application/xml",
    };
    Ok(text(media_type, file))
}

/// Book what a bank's result file of debits (Zengin, kind 91) says was paid
#[utoipa::path(
    post,
    path = "/v1/imports/debit-results",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ImportReport))
)]
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
