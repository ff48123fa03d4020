//! What a client may see of the billing servers' books: its own invoices and the deliveries behind them, and as a provider
//! its own statements. The servers answer only what is that client's; their answers are passed on as they are.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use common::api::billing::BillingClient;
use common::auth::Role;
use common::error::{ApiError, ApiResult, ErrorCode};
use http::header::CONTENT_TYPE;
use serde::Deserialize;

use crate::server::Gateway;

/// Which of the two fees, and so which server's books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fee {
    /// For delivery.
    Service,
    /// For use of the content.
    Content,
}

impl Fee {
    /// The fee that an invoice of this number is of.
    pub fn of_invoice(number: &str) -> Option<Self> {
        match number.split_once('-') {
            Some(("S", _)) => Some(Self::Service),
            Some(("C", _)) => Some(Self::Content),
            _ => None,
        }
    }
}

impl Gateway {
    /// The client of a billing server.
    ///
    /// # Errors
    /// `billing_unavailable` while the map has none.
    pub fn billing(&self, role: Role) -> ApiResult<BillingClient> {
        let map = self.site.map();
        let entry = match role {
            Role::ServiceBilling => map.service_billing.as_ref(),
            _ => map.content_billing.as_ref(),
        };
        let entry = entry.ok_or_else(|| ApiError::new(ErrorCode::BillingUnavailable, unavailable(role)))?;
        Ok(BillingClient::new(self.server.clone(), &entry.http, role))
    }

    /// What a billing server has under `path`, which names the client or provider that asks.
    pub async fn booked(&self, fee: Fee, path: &str) -> ApiResult<Response> {
        let role = match fee {
            Fee::Service => Role::ServiceBilling,
            Fee::Content => Role::ContentBilling,
        };
        let found = self.billing(role)?.open(path).await;
        let found = found.map_err(|error| error.to_api(ErrorCode::BillingUnavailable, &unavailable(role)))?;
        let media_type = found.headers().get(CONTENT_TYPE).cloned();
        let mut response = Body::new(found.into_body()).into_response();
        response.headers_mut().extend(media_type.map(|media_type| (CONTENT_TYPE, media_type)));
        Ok(response)
    }
}

/// What is said while a billing server does not answer.
pub fn unavailable(role: Role) -> String {
    format!("{role} does not answer; ask again later")
}
