//! The operator's calls to any server: JSON with the operator's token.

use std::time::Duration;

use bytes::Bytes;
use common::client::{CallError, HttpClient, read_body, read_refusal};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde::de::DeserializeOwned;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_LEN_MAX: usize = 16 << 20;

#[derive(Clone)]
pub struct Operator {
    http: HttpClient,
    token: String,
}

impl Operator {
    pub fn new(token: &str) -> Self {
        Self { http: HttpClient::new(), token: token.to_owned() }
    }

    /// Reads JSON. Answers other than 2xx are [`CallError::Refused`].
    pub async fn get<A: DeserializeOwned>(&self, url: &str) -> Result<A, CallError> {
        let text = self.call(Method::GET, url, Bytes::new()).await?;
        let unreadable =
            |error: serde_json::Error| CallError::Answer { url: url.to_owned(), source: error.into() };
        serde_json::from_slice(&text).map_err(unreadable)
    }

    /// Sends JSON; what the answer says does not matter.
    pub async fn post(&self, url: &str, body: &serde_json::Value) -> Result<(), CallError> {
        self.call(Method::POST, url, body.to_string().into()).await.map(drop)
    }

    /// Whether a server answers well; not reached is no.
    pub async fn answers(&self, url: &str) -> bool {
        self.call(Method::GET, url, Bytes::new()).await.is_ok()
    }

    /// Whether a node has a chunk.
    pub async fn has_chunk(&self, node: &str, hash: &common::hash::ChunkHash) -> Result<bool, CallError> {
        let url = format!("{node}/v1/chunks/{hash}");
        let request = self.request(Method::HEAD, &url, Bytes::new())?;
        Ok(self.http.send(request, ANSWER_TIME_MAX).await?.status() == StatusCode::OK)
    }

    fn request(&self, method: Method, url: &str, body: Bytes) -> Result<Request<Full<Bytes>>, CallError> {
        Request::builder()
            .method(method)
            .uri(url)
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| CallError::Unreachable { url: url.to_owned(), source: error.into() })
    }

    async fn call(&self, method: Method, url: &str, body: Bytes) -> Result<Bytes, CallError> {
        let response = self.http.send(self.request(method, url, body)?, ANSWER_TIME_MAX).await?;
        if !response.status().is_success() {
            return Err(read_refusal(url, response).await);
        }
        read_body(url, response.into_body(), ANSWER_LEN_MAX).await
    }
}
