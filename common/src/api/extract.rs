//! Axum extractors whose refusals are our errors.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::api::form::{Compact, Form, FormError};
use crate::error::{ApiError, ErrorCode};

/// Of a body that is too long, what is read before it is refused.
const DISCARDED_BYTES_MAX: usize = 64 << 20;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(5);

/// A JSON body.
pub struct ApiJson<T>(pub T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = read(request, state).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| unreadable(&error.into()))
    }
}

/// A question in the form that the caller has chosen, and this form, for the [`answer`].
pub struct ApiQuestion<Q>(pub Q, pub Form);

impl<Q: Compact + serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for ApiQuestion<Q> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let form = Form::of(request.headers());
        let bytes = read(request, state).await?;
        let question = form.read::<Q, Q>(&bytes).map_err(|error| unreadable(&error))?;
        Ok(Self(question, form))
    }
}

/// The answer to a question `Q`, in the form of the question.
pub fn answer<Q: Compact>(form: Form, body: &impl serde::Serialize) -> Result<Response, ApiError> {
    let bytes = form.write::<Q, _>(body).map_err(|error| ApiError::internal(&error))?;
    Ok(([(CONTENT_TYPE, form.content_type())], bytes).into_response())
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<bytes::Bytes, ApiError> {
    let (parts, body) = request.into_parts();
    let body = SharedBody(Arc::new(Mutex::new(body)));
    let request = Request::from_parts(parts, Body::new(body.clone()));
    match bytes::Bytes::from_request(request, state).await {
        Ok(bytes) => Ok(bytes),
        Err(rejection) if rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE => {
            body.discard().await;
            Err(ApiError::new(ErrorCode::TooLarge, rejection.body_text()))
        }
        Err(rejection) => Err(ApiError::new(ErrorCode::InvalidRequest, rejection.body_text())),
    }
}

fn unreadable(error: &FormError) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, error.to_string())
}

/// A body that can still be read when its first reader gave up.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Body>>);

impl SharedBody {
    /// Reads and forgets what is left, within bounds: a connection that is closed on unread bytes is reset, and its
    /// caller then never sees why it was refused.
    async fn discard(self) {
        let mut left = DISCARDED_BYTES_MAX;
        let read = async {
            let mut body = self;
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
                if left == 0 {
                    break;
                }
            }
        };
        // Too slow is too bad.
        let _done = tokio::time::timeout(DISCARD_TIME_MAX, read).await;
    }
}

impl HttpBody for SharedBody {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

impl<T: serde::Serialize> IntoResponse for ApiJson<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// The query part of the address.
pub struct ApiQuery<T>(pub T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.body_text()))
    }
}
