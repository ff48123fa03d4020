//! A client's own invoices, `GET /v1/invoices[/{file}|/{number}/deliveries]`, and as a provider its own statements,
//! `GET /v1/statements[/{file}]`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use common::api::extract::ApiQuery;
use common::client::encode;
use common::error::{ApiError, ApiResult, ErrorCode};
use http::HeaderMap;
use serde::Deserialize;

use super::counted;
use crate::books::Fee;
use crate::metrics::Op;
use crate::server::Gateway;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvoicesQuery {
    fee: Fee,
    /// `YYYY-MM`
    period: Option<String>,
    /// Number after which the page begins.
    after: Option<String>,
    limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeliveriesQuery {
    after: Option<String>,
    limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatementsQuery {
    fee: Fee,
    /// Month after which the page begins.
    after: Option<String>,
    limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatementQuery {
    fee: Fee,
    currency: Option<String>,
}

/// A path with its query, percent-encoded.
struct Question(String);

impl Question {
    /// About this client or party alone.
    fn about(path: impl std::fmt::Display, key: &str, name: &str) -> Self {
        Self(format!("{path}?{key}={}", encode(name)))
    }

    fn with(mut self, key: &str, value: Option<impl std::fmt::Display>) -> Self {
        if let Some(value) = value {
            self.0.push_str(&format!("&{key}={}", encode(&value.to_string())));
        }
        self
    }
}

/// Answers a client with what a billing server has for it.
async fn own(
    gateway: &Gateway,
    headers: &HeaderMap,
    question: impl FnOnce(&str) -> ApiResult<(Fee, Question)>,
) -> Response {
    counted(gateway, Op::Usage, async {
        let client = gateway.authenticate(headers).await?;
        gateway.check_home(&client)?;
        let (fee, Question(path)) = question(client.client.as_str())?;
        gateway.booked(fee, &path).await
    })
    .await
}

/// The party that a client is as a provider.
fn provider(client: &str) -> String {
    format!("provider:{client}")
}

pub async fn invoices(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<InvoicesQuery>, ApiError>,
    headers: HeaderMap,
) -> Response {
    own(&gateway, &headers, |client| {
        let ApiQuery(InvoicesQuery { fee, period, after, limit }) = query?;
        let question = Question::about("/v1/invoices", "client", client);
        Ok((fee, question.with("period", period).with("after", after).with("limit", limit)))
    })
    .await
}

pub async fn invoice(
    State(gateway): State<Arc<Gateway>>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Response {
    own(&gateway, &headers, |client| {
        let path = format!("/v1/invoices/{}", encode(&file));
        Ok((fee_of(&file)?, Question::about(path, "client", client)))
    })
    .await
}

pub async fn deliveries(
    State(gateway): State<Arc<Gateway>>,
    Path(number): Path<String>,
    query: Result<ApiQuery<DeliveriesQuery>, ApiError>,
    headers: HeaderMap,
) -> Response {
    own(&gateway, &headers, |client| {
        let ApiQuery(DeliveriesQuery { after, limit }) = query?;
        let path = format!("/v1/invoices/{}/deliveries", encode(&number));
        let question = Question::about(path, "client", client);
        Ok((fee_of(&number)?, question.with("after", after).with("limit", limit)))
    })
    .await
}

pub async fn statements(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<StatementsQuery>, ApiError>,
    headers: HeaderMap,
) -> Response {
    own(&gateway, &headers, |client| {
        let ApiQuery(StatementsQuery { fee, after, limit }) = query?;
        let question = Question::about("/v1/statements", "party", &provider(client));
        Ok((fee, question.with("after", after).with("limit", limit)))
    })
    .await
}

pub async fn statement(
    State(gateway): State<Arc<Gateway>>,
    Path(file): Path<String>,
    query: Result<ApiQuery<StatementQuery>, ApiError>,
    headers: HeaderMap,
) -> Response {
    own(&gateway, &headers, |client| {
        let ApiQuery(StatementQuery { fee, currency }) = query?;
        let mut path = format!("/v1/statements/{}/{}", encode(&provider(client)), encode(&file));
        if let Some(currency) = currency {
            path.push_str(&format!("?currency={}", encode(&currency)));
        }
        Ok((fee, Question(path)))
    })
    .await
}

fn fee_of(number: &str) -> ApiResult<Fee> {
    Fee::of_invoice(number).ok_or_else(|| {
        let message = "numbers of invoices begin with S- (fee for delivery) or C- (fee for use)";
        ApiError::new(ErrorCode::NotFound, message)
    })
}
