//! Talking to a gateway as a client: bearer token, streamed bodies that are sent only once the gateway asks for them, the
//! next gateway when one is not there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::client::{CallError, read_body, read_refusal};
use common::tls;
use futures_util::{StreamExt, stream};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, EXPECT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Empty, StreamBody};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::error::Failure;
use crate::visit::OpenVisit;

/// Longest time between two pieces of an answer, and to its head when nothing is uploaded.
pub const STALL_MAX: Duration = Duration::from_secs(60);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// A server that knows nothing of `Expect: 100-continue` gets the body after this time.
const CONTINUE_WAIT_MAX: Duration = Duration::from_secs(1);
/// Longest JSON answer that is read.
const ANSWER_LEN_MAX: usize = 16 << 20;

/// The body of a request.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A body without bytes.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A site's gateways as one client sees them.
pub struct GatewayClient {
    pool: Client<HttpsConnector<HttpConnector>, Body>,
    /// Base addresses, tried in order.
    bases: Vec<String>,
    credentials: Credentials,
}

/// Who asks.
enum Credentials {
    /// A client by its token.
    Token(String),
    /// A client away from home, by its card.
    Visit(Box<OpenVisit>),
}

impl Credentials {
    fn authorization(&self, base: &str, method: &Method, path: &str) -> String {
        match self {
            Self::Token(token) => format!("Bearer {token}"),
            Self::Visit(visit) => visit.authorization(base, method.as_str(), path),
        }
    }
}

impl GatewayClient {
    pub fn new(bases: Vec<String>, token: &str) -> Self {
        Self::with(bases, Credentials::Token(token.to_owned()))
    }

    /// A client at the site that it visits.
    pub fn of_visit(visit: OpenVisit) -> Self {
        Self::with(visit.bases(), Credentials::Visit(Box::new(visit)))
    }

    fn with(bases: Vec<String>, credentials: Credentials) -> Self {
        let connector = tls::connector(CONNECT_TIME_MAX);
        let pool = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Self { pool, bases, credentials }
    }

    /// Sends a request without a body. Answers other than 2xx are failures.
    pub async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, Failure> {
        let headers = HeaderMap::new();
        let sent = self.upload(method, path, &headers, async || Ok(empty()));
        match tokio::time::timeout(STALL_MAX, sent).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Timeout { url: self.bases.join(" or "), limit: STALL_MAX }.into()),
        }
    }

    /// Sends a request with a body, which `body` makes for each gateway that is tried. A gateway that cannot be
    /// connected to has taken nothing, so the next one is tried; any later error is final.
    pub async fn upload(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: impl AsyncFn() -> Result<Body, Failure>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut last = Failure::new("the site has no gateway")
            .with_next_step("`dozo status` shows the sites and their gateways");
        for base in &self.bases {
            let url = format!("{base}{path}");
            let mut request = Request::builder()
                .method(method.clone())
                .uri(&url)
                .header(AUTHORIZATION, self.credentials.authorization(base, &method, path));
            if let Some(all) = request.headers_mut() {
                all.extend(headers.clone());
            }
            let request = request
                .body(body().await?)
                .map_err(|e| Failure::usage(format!("{url} is not a valid address: {e}")))?;
            let request = if has_body(headers) { ask_first(request) } else { request };
            match self.pool.request(request).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => return Err(read_refusal(&url, response).await.into()),
                Err(error) => {
                    let next_may_help = error.is_connect();
                    last = CallError::Unreachable { url, source: error.into() }.into();
                    if !next_may_help {
                        return Err(last);
                    }
                }
            }
        }
        Err(last)
    }

    pub async fn get_json<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failure> {
        let response = self.send(Method::GET, path).await?;
        read_json(path, response).await
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_LENGTH).is_some_and(|len| len != "0")
}

/// Holds the body back until the server asks for it (`Expect: 100-continue`). A server that refuses answers instead;
/// if the body were on its way by then, the refusal would be lost with the connection.
fn ask_first(mut request: Request<Body>) -> Request<Body> {
    let asked = Arc::new(Notify::new());
    let ask = asked.clone();
    hyper::ext::on_informational(&mut request, move |answer| {
        if answer.status() == StatusCode::CONTINUE {
            ask.notify_one();
        }
    });
    request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
    request.map(|body| {
        let frames = stream::once(async move {
            // Either way the body follows.
            let _asked_or_not = tokio::time::timeout(CONTINUE_WAIT_MAX, asked.notified()).await;
            BodyStream::new(body)
        });
        StreamBody::new(frames.flatten()).boxed_unsync()
    })
}

/// Reads an answer's body as JSON.
pub async fn read_json<A: DeserializeOwned>(url: &str, response: Response<Incoming>) -> Result<A, Failure> {
    let bytes = tokio::time::timeout(STALL_MAX, read_body(url, response.into_body(), ANSWER_LEN_MAX))
        .await
        .map_err(|_| CallError::Timeout { url: url.to_owned(), limit: STALL_MAX })??;
    let read = serde_json::from_slice(&bytes);
    read.map_err(|e| CallError::Answer { url: url.to_owned(), source: e.into() }.into())
}
