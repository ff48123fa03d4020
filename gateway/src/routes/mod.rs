//! HTTP: which path does what, and what every request has alike (a name, a client, a counted answer).

mod authentication;
mod books;
mod buckets;
mod collecting;
mod contents;
mod library;
mod listing;
mod peer;
mod ranking;
mod temporary;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use common::auth::{Guard, require_server};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::BucketName;
use common::name::ContentName;
use http::Uri;
use percent_encoding::percent_decode_str;

use crate::metrics::Op;
use crate::server::Gateway;

/// Longest JSON body of a client or peer.
const JSON_BYTES_MAX: usize = 1 << 20;

pub fn all(gateway: Arc<Gateway>, guard: Guard) -> Router {
    let peer = Router::new()
        .route("/v1/peer/ping", get(peer::ping))
        .route("/v1/peer/holding", get(peer::holding))
        .route("/v1/peer/open", get(collecting::open))
        .route("/v1/peer/chunks/{hash}", get(peer::chunk))
        .route("/v1/peer/collection", get(collecting::collection))
        .route("/v1/peer/collection/progress", get(collecting::progress))
        .route("/v1/peer/collection/want", get(collecting::want))
        .route("/v1/peer/ranking", get(ranking::ranking))
        .route("/v1/peer/possession", post(peer::possession))
        .route("/v1/peer/ends", post(peer::ends))
        .route("/v1/peer/challenge", post(authentication::challenge))
        .route("/v1/peer/answer", post(authentication::answer))
        .route("/v1/peer/who-holds", get(peer::who_holds))
        .route("/v1/peer/usage", get(peer::usage))
        .route("/v1/peer/usages", get(peer::usages))
        .route("/v1/peer/temporary", get(temporary::all))
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .layer(from_fn_with_state(guard, require_server));
    let client = Router::new()
        .route("/v1/contents/{bucket}", get(listing::list))
        .route("/v1/contents/{bucket}/", get(listing::list))
        .route("/v1/contents/{bucket}/{*key}", any(contents::any))
        .route("/v1/search", get(listing::search))
        .route("/v1/library", get(library::list))
        .route("/v1/library/{bucket}/{*key}", get(library::row).delete(library::drop))
        .route("/v1/usage", get(library::usage))
        .route("/v1/quote/{bucket}/{*key}", get(library::quote))
        .route("/v1/invoices", get(books::invoices))
        .route("/v1/invoices/{file}", get(books::invoice))
        .route("/v1/invoices/{number}/deliveries", get(books::deliveries))
        .route("/v1/statements", get(books::statements))
        .route("/v1/statements/{file}", get(books::statement))
        .route("/v1/temporary", get(temporary::own))
        .route("/v1/buckets/{bucket}", get(buckets::get).put(buckets::put))
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX));
    peer.merge(client).with_state(gateway)
}

/// The content name in a path `/v1/WORD/BUCKET/KEY`. Decoded once, here; what is authorised is what is routed.
fn content_name(uri: &Uri) -> ApiResult<ContentName> {
    let invalid = |message: &str| ApiError::new(ErrorCode::InvalidName, message);
    let rest = uri.path().splitn(4, '/').nth(3).ok_or_else(|| invalid("the path has no bucket"))?;
    let (bucket, key) = rest.split_once('/').ok_or_else(|| invalid("the path has no key"))?;
    let decode = |text| {
        percent_decode_str(text)
            .decode_utf8()
            .map_err(|_| invalid("the name is not UTF-8 after percent-decoding"))
    };
    let bucket = BucketName::new(&decode(bucket)?)?;
    Ok(ContentName::new(&bucket, &decode(key)?)?)
}

/// Counts a request and its answer.
async fn counted<F>(gateway: &Gateway, op: Op, answer: F) -> Response
where
    F: Future<Output = ApiResult<Response>>,
{
    let _inflight = InFlight::new(&gateway.metrics.inflight);
    let begin = Instant::now();
    let response = answer.await.unwrap_or_else(IntoResponse::into_response);
    gateway.metrics.request(op, response.status().as_u16(), begin.elapsed());
    response
}

/// Counted down also when the client goes away before there is an answer.
struct InFlight<'a>(&'a metrics::Gauge);

impl<'a> InFlight<'a> {
    fn new(gauge: &'a metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_once_and_never_normalised() {
        let name = |path: &'static str| content_name(&Uri::from_static(path)).map(|n| n.as_str().to_owned());
        assert_eq!(name("/v1/contents/alice/a%20b/%E6%97%A5").unwrap(), "alice/a b/日");
        assert_eq!(name("/v1/contents/alice/../x").unwrap(), "alice/../x");
        assert_eq!(name("/v1/contents/alice/%252e").unwrap(), "alice/%2e");
        assert_eq!(name("/v1/contents/alice//x").unwrap(), "alice//x");
        assert_eq!(name("/v1/contents/alice/%ff").unwrap_err().code, ErrorCode::InvalidName);
        assert_eq!(name("/v1/contents/ALICE/x").unwrap_err().code, ErrorCode::InvalidName);
    }
}
