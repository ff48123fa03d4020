//! The HTTP client that servers, the command line and the bench harness share: pooled keep-alive connections
//! with `TCP_NODELAY`, a time limit on every call, and errors that tell "not reached" from "refused".

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::form::{Compact, Form, FormError};
use crate::auth::{ClusterSecret, Role};
use crate::error::{ApiError, ErrorBody, ErrorCode};
use crate::measure::CallMetrics;
use crate::time::Clock;
use crate::tls;
use crate::trace;

/// What is read of an answer before its reader takes it: as much waits in memory for every one that is slow.
const BUFFER_BYTES_MAX: usize = 128 << 10;
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// Longest JSON answer that is read.
const ANSWER_LEN_MAX: usize = 64 << 20;

/// Why a call gave no answer of its type.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answered: the call may or may not have been carried out.
    #[error("{url} is not reached")]
    Unreachable { url: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{url} did not answer within {limit:?}")]
    Timeout { url: String, limit: Duration },
    /// The other server answered with an error.
    #[error("{url} answered {}: {}", .body.code, .body.message)]
    Refused { url: String, body: ErrorBody },
    #[error("the answer of {url} cannot be read")]
    Answer { url: String, source: Box<dyn std::error::Error + Send + Sync> },
}

impl CallError {
    /// The code that the other server answered with.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { body, .. } => Some(body.code),
            _ => None,
        }
    }

    /// Whether asking again, or another server, may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => true,
            Self::Refused { body, .. } => body.code.is_retryable(),
            Self::Answer { .. } => false,
        }
    }

    /// The error to answer with when this call was needed: what the other server refused is passed on, the
    /// rest becomes `unavailable`.
    pub fn to_api(&self, unavailable: ErrorCode, message: &str) -> ApiError {
        match self {
            Self::Refused { body, .. } if body.code != ErrorCode::Internal => {
                ApiError::new(body.code, &body.message)
            }
            other => ApiError::new(unavailable, message).with_cause(other),
        }
    }
}

/// A pooled HTTP/1.1 client. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    pool: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Default for HttpClient {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpClient {
    pub fn new() -> Self {
        let pool = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(256)
            .http1_max_buf_size(BUFFER_BYTES_MAX)
            .build(tls::connector(CONNECT_TIME_MAX));
        Self { pool }
    }

    /// Sends a request, as part of the trace at hand; the answer's body is still to be read. `limit` bounds the time to
    /// the answer's head.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        limit: Duration,
    ) -> Result<Response<Incoming>, CallError> {
        if let Some(trace) = trace::current() {
            trace.inject(request.headers_mut());
        }
        let url = request.uri().clone();
        match tokio::time::timeout(limit, self.pool.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(CallError::Unreachable { url: url.to_string(), source: error.into() }),
            Err(_) => Err(CallError::Timeout { url: url.to_string(), limit }),
        }
    }
}

/// Reads a body of at most `max` bytes.
pub async fn read_body(url: &str, body: Incoming, max: usize) -> Result<Bytes, CallError> {
    match Limited::new(body, max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(source) if source.is::<LengthLimitError>() => {
            Err(CallError::Answer { url: url.to_owned(), source })
        }
        Err(source) => Err(CallError::Unreachable { url: url.to_owned(), source }),
    }
}

/// Reads an error answer; what is not our JSON becomes an internal error with the status in it.
pub async fn read_refusal(url: &str, response: Response<Incoming>) -> CallError {
    let status = response.status();
    let bytes = match read_body(url, response.into_body(), 1 << 20).await {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| ErrorBody {
        code: ErrorCode::Internal,
        message: format!("HTTP status {status}"),
        request_id: String::new(),
    });
    CallError::Refused { url: url.to_owned(), body }
}

/// A client that signs its calls as one server of the cluster. The typed clients of [`crate::api`] wrap it.
#[derive(Clone)]
pub struct ServerClient {
    pub http: HttpClient,
    secret: ClusterSecret,
    /// Name of the caller in the other server's log, as in `gateway/tokyo.g1`.
    caller: std::sync::Arc<str>,
    clock: Clock,
    metrics: Option<CallMetrics>,
}

/// One call between servers.
pub struct Call<'a> {
    pub method: Method,
    /// Base address of the server, `http://host:port`.
    pub base: &'a str,
    pub audience: Role,
    /// Path with query, percent-encoded.
    pub path: &'a str,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub limit: Duration,
}

impl ServerClient {
    pub fn new(http: HttpClient, secret: ClusterSecret, caller: &str, clock: Clock) -> Self {
        Self { http, secret, caller: caller.into(), clock, metrics: None }
    }

    /// Counts and times its calls from now on.
    pub fn measured(self, metrics: CallMetrics) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// Sends a signed call. Answers other than 2xx come back as [`CallError::Refused`].
    pub async fn call(&self, call: Call<'_>) -> Result<Response<Incoming>, CallError> {
        let (audience, begin) = (call.audience, Instant::now());
        // Boxed: what may call another server is far more often passed through than calling. Unboxed, the ten kilobytes of
        // a call are a part of every future around it, and moved with each of them.
        let answer = Box::pin(self.call_unmeasured(call)).await;
        if let Some(metrics) = &self.metrics {
            metrics.count(audience, begin, &answer);
        }
        answer
    }

    async fn call_unmeasured(&self, call: Call<'_>) -> Result<Response<Incoming>, CallError> {
        let url = format!("{}{}", call.base, call.path);
        let response = self.send(call).await?;
        if response.status().is_success() { Ok(response) } else { Err(read_refusal(&url, response).await) }
    }

    /// Sends a signed call; whatever is answered comes back.
    pub async fn send(&self, call: Call<'_>) -> Result<Response<Incoming>, CallError> {
        let url = format!("{}{}", call.base, call.path);
        let token =
            self.secret.sign(&self.caller, call.audience, call.method.as_str(), call.path, self.clock.now());
        let mut request = Request::builder().method(call.method).uri(&url).header(AUTHORIZATION, token);
        if let Some(headers) = request.headers_mut() {
            headers.extend(call.headers);
        }
        let request = request
            .body(Full::new(call.body))
            .map_err(|error| CallError::Unreachable { url: url.clone(), source: error.into() })?;
        self.http.send(request, call.limit).await
    }

    pub async fn get_json<A: DeserializeOwned>(
        &self,
        base: &str,
        audience: Role,
        path: &str,
        limit: Duration,
    ) -> Result<A, CallError> {
        let call = Call {
            method: Method::GET,
            base,
            audience,
            path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            limit,
        };
        self.json(call).await
    }

    pub async fn send_json<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        base: &str,
        audience: Role,
        path: &str,
        question: &Q,
        limit: Duration,
    ) -> Result<A, CallError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        let body = serde_json::to_vec(question)
            .map_err(|error| CallError::Answer { url: format!("{base}{path}"), source: error.into() })?;
        self.json(Call { method, base, audience, path, headers, body: body.into(), limit }).await
    }

    /// Asks compactly, and reads the answer in the form that it comes in. Who does not read the question so, since it has
    /// another version, is asked in JSON: a call must be safe to repeat.
    pub async fn ask<Q: Compact + Serialize, A: DeserializeOwned>(
        &self,
        base: &str,
        audience: Role,
        path: &str,
        question: &Q,
        limit: Duration,
    ) -> Result<A, CallError> {
        match self.ask_in(Form::Compact, base, audience, path, question, limit).await {
            Err(refused) if refused.code() == Some(ErrorCode::InvalidRequest) => {
                self.ask_in(Form::Json, base, audience, path, question, limit).await
            }
            answer => answer,
        }
    }

    async fn ask_in<Q: Compact + Serialize, A: DeserializeOwned>(
        &self,
        form: Form,
        base: &str,
        audience: Role,
        path: &str,
        question: &Q,
        limit: Duration,
    ) -> Result<A, CallError> {
        let unreadable =
            |error: FormError| CallError::Answer { url: format!("{base}{path}"), source: error.into() };
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, form.content_type())]);
        let body = form.write::<Q, _>(question).map_err(unreadable)?.into();
        let call = Call { method: Method::POST, base, audience, path, headers, body, limit };
        let (form, bytes) = Box::pin(self.read(call)).await?;
        form.read::<Q, A>(&bytes).map_err(unreadable)
    }

    /// Sends a call and reads its answer.
    pub async fn bytes(&self, call: Call<'_>) -> Result<Bytes, CallError> {
        let (_, bytes) = Box::pin(self.read(call)).await?;
        Ok(bytes)
    }

    async fn read(&self, call: Call<'_>) -> Result<(Form, Bytes), CallError> {
        let url = format!("{}{}", call.base, call.path);
        let limit = call.limit;
        let response = self.call(call).await?;
        let form = Form::of(response.headers());
        let read = read_body(&url, response.into_body(), ANSWER_LEN_MAX);
        let bytes =
            tokio::time::timeout(limit, read).await.map_err(|_| CallError::Timeout { url, limit })??;
        Ok((form, bytes))
    }

    /// Sends a call and reads its answer as JSON.
    pub async fn json<A: DeserializeOwned>(&self, call: Call<'_>) -> Result<A, CallError> {
        let url = format!("{}{}", call.base, call.path);
        let bytes = self.bytes(call).await?;
        // An empty body stands for `()`.
        let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(text).map_err(|error| CallError::Answer { url, source: error.into() })
    }
}

/// Percent-encodes one query value or path segment.
pub fn encode(text: &str) -> percent_encoding::PercentEncode<'_> {
    const KEEP: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    percent_encoding::utf8_percent_encode(text, KEEP)
}
