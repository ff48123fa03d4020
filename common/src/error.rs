//! The closed list of error codes, and the one JSON shape in which every server answers an error.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident => $text:literal, $status:ident;)*) => {
        /// Every code that an answer may carry. Programs match on these; the message is for people.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $variant,)*
        }

        impl ErrorCode {
            pub const ALL: &'static [ErrorCode] = &[$(Self::$variant,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            /// What it means, in a sentence or two.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)* }
            }
        }
    };
}

codes! {
    /// A name, header, parameter or body does not have its form.
    InvalidRequest => "invalid_request", BAD_REQUEST;
    /// The name of a bucket, client, site, server or content does not have its form.
    InvalidName => "invalid_name", BAD_REQUEST;
    /// The Range header does not have its form.
    InvalidRange => "invalid_range", BAD_REQUEST;
    /// The bytes received do not have the hash or length that was promised.
    ContentMismatch => "content_mismatch", BAD_REQUEST;
    /// The call carries no token, or one that nobody gave out.
    Unauthenticated => "unauthenticated", UNAUTHORIZED;
    /// Who calls is known, and may not do this.
    Forbidden => "forbidden", FORBIDDEN;
    /// The home site knows no such card of such a client. Said alike whether or not there is that client: only the
    /// holder of a known card learns more.
    CardUnknown => "card_unknown", UNAUTHORIZED;
    /// The card was disabled, as lost or replaced.
    CardDisabled => "card_disabled", FORBIDDEN;
    /// The operator disabled the client.
    ClientDisabled => "client_disabled", FORBIDDEN;
    /// A challenge that the home site did not make, or not for this.
    ChallengeInvalid => "challenge_invalid", UNAUTHORIZED;
    /// The challenge was answered too late; ask for another.
    ChallengeExpired => "challenge_expired", UNAUTHORIZED;
    /// The challenge was answered before; each is good once.
    ChallengeReplayed => "challenge_replayed", UNAUTHORIZED;
    /// The signature is not that of the card, or of the session, over what was sent.
    SignatureInvalid => "signature_invalid", UNAUTHORIZED;
    /// A visitor token that no home site made, or that is for another site.
    VisitInvalid => "visit_invalid", UNAUTHORIZED;
    /// The visitor token is over; show the card again.
    VisitExpired => "visit_expired", UNAUTHORIZED;
    /// A visitor's signed request came again, or too late.
    RequestReplayed => "request_replayed", UNAUTHORIZED;
    /// Nobody holds a content of this name, or the asking client may not see it.
    ContentNotFound => "content_not_found", NOT_FOUND;
    /// There is no such bucket, or the asking client may not see it.
    BucketNotFound => "bucket_not_found", NOT_FOUND;
    /// The directory has no such client.
    ClientNotFound => "client_not_found", NOT_FOUND;
    /// The node does not have the chunk.
    ChunkNotFound => "chunk_not_found", NOT_FOUND;
    /// The map has no such site.
    SiteNotFound => "site_not_found", NOT_FOUND;
    /// There is nothing at this path.
    NotFound => "not_found", NOT_FOUND;
    /// The path does not take this method.
    MethodNotAllowed => "method_not_allowed", METHOD_NOT_ALLOWED;
    /// The thing exists with other properties, or was changed by somebody else meanwhile.
    Conflict => "conflict", CONFLICT;
    /// A condition of the request, as If-Match, does not hold.
    PreconditionFailed => "precondition_failed", PRECONDITION_FAILED;
    /// The body, or what it says, is longer than is taken at once.
    TooLarge => "too_large", PAYLOAD_TOO_LARGE;
    /// The range begins behind the end of the content.
    RangeNotSatisfiable => "range_not_satisfiable", RANGE_NOT_SATISFIABLE;
    /// This node does not own the slot under its map; refresh the map and ask the owner.
    WrongNode => "wrong_node", MISDIRECTED_REQUEST;
    /// The client belongs to another site, and what it asks can be done only there.
    WrongSite => "wrong_site", MISDIRECTED_REQUEST;
    /// The client's rate is used up; ask again after the time in Retry-After.
    TooManyRequests => "too_many_requests", TOO_MANY_REQUESTS;
    /// The server failed; the request id leads to the cause in its log.
    Internal => "internal", INTERNAL_SERVER_ERROR;
    /// Stored bytes are damaged and no good copy was found.
    Damaged => "damaged", INTERNAL_SERVER_ERROR;
    /// A server that is needed for this request does not answer.
    Unavailable => "unavailable", SERVICE_UNAVAILABLE;
    /// Search does not answer, and what it knows is needed.
    SearchUnavailable => "search_unavailable", SERVICE_UNAVAILABLE;
    /// The storage node that must answer does not.
    NodeUnavailable => "node_unavailable", SERVICE_UNAVAILABLE;
    /// No site or origin that holds the content answers.
    SourceUnavailable => "source_unavailable", SERVICE_UNAVAILABLE;
    /// The origin reads as much at once as it may, and as many wait as may; ask again in a moment.
    OriginBusy => "origin_busy", SERVICE_UNAVAILABLE;
    /// The original is no longer what was registered; it is read again, and its new version is announced.
    OriginalChanged => "original_changed", SERVICE_UNAVAILABLE;
    /// The billing server does not answer.
    BillingUnavailable => "billing_unavailable", SERVICE_UNAVAILABLE;
    /// No gateway of a roaming client's home site answers.
    HomeUnreachable => "home_unreachable", SERVICE_UNAVAILABLE;
    /// The server is stopping; ask another.
    Draining => "draining", SERVICE_UNAVAILABLE;
    /// The slot is moving to another node; ask again in a moment.
    SlotMoving => "slot_moving", SERVICE_UNAVAILABLE;
    /// The storage nodes have no room for this; add one, or remove contents.
    NodeFull => "node_full", INSUFFICIENT_STORAGE;
    /// The client would hold more than its quota allows.
    QuotaExceeded => "quota_exceeded", INSUFFICIENT_STORAGE;
}

impl ErrorCode {
    /// Whether the same request may succeed if it is sent again, perhaps elsewhere.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::WrongNode
                | Self::Unavailable
                | Self::SearchUnavailable
                | Self::NodeUnavailable
                | Self::SourceUnavailable
                | Self::OriginBusy
                | Self::OriginalChanged
                | Self::BillingUnavailable
                | Self::HomeUnreachable
                | Self::Draining
                | Self::SlotMoving
                | Self::TooManyRequests
        )
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as it is answered: a code, and a message that names the thing, the bound and the next step.
///
/// What only the operator may know (addresses, causes) goes to the log through
/// [`ApiError::with_cause`], never to the client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: String,
    /// For the log alone.
    pub cause: Option<String>,
}

pub type ApiResult<T> = Result<T, ApiError>;

/// The JSON body of an error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    pub code: ErrorCode,
    pub message: String,
    #[serde(default)]
    pub request_id: String,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None }
    }

    pub fn with_cause(mut self, cause: &dyn std::error::Error) -> Self {
        self.cause = Some(chain(cause));
        self
    }

    /// An error whose cause is the operator's business; the client learns only that it happened.
    /// As a part of an answer, where the answer's own request id tells where to look.
    pub fn to_body(&self) -> ErrorBody {
        ErrorBody { code: self.code, message: self.message.clone(), request_id: String::new() }
    }

    pub fn internal(cause: &dyn std::error::Error) -> Self {
        Self::new(ErrorCode::Internal, "the server failed; the request id leads to the cause in its log")
            .with_cause(cause)
    }
}

impl From<crate::id::InvalidId> for ApiError {
    fn from(error: crate::id::InvalidId) -> Self {
        Self::new(ErrorCode::InvalidName, error.to_string())
    }
}

/// The server's middleware adds the request id to the body and logs the cause.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { code: self.code, message: self.message.clone(), request_id: String::new() };
        let mut response = (self.code.status(), Json(body)).into_response();
        let is_over_soon = [ErrorCode::TooManyRequests, ErrorCode::OriginBusy, ErrorCode::OriginalChanged];
        if is_over_soon.contains(&self.code) {
            // Rates are of requests a second, and an origin's reads take less: there is room again within one.
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// An error and its sources in one line, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_stay_the_same_in_json() {
        let texts: std::collections::HashSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
            assert!(code.status().is_client_error() || code.status().is_server_error());
        }
    }
}
