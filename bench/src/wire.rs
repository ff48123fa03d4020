//! A lean HTTP/1.1 client: one keep-alive connection per worker, no pool, `TCP_NODELAY`.
//!
//! It says exactly how a request failed, and never repeats one: what is measured is what was sent.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use common::error::ErrorBody;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, RANGE};
use http::{HeaderValue, Method, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::content::Content;

/// A generated body goes out in pieces of this length.
const PIECE_LEN: u64 = 128 << 10;
/// Longest answer that is read as text.
const TEXT_LEN_MAX: usize = 4 << 20;

/// The body of a request: nothing, a text, or a content made as it goes out.
pub enum Outgoing {
    Text(Bytes),
    Content { content: Content, offset: u64 },
}

impl Outgoing {
    pub const EMPTY: Self = Self::Text(Bytes::new());

    pub fn content(content: Content) -> Self {
        Self::Content { content, offset: 0 }
    }

    fn remaining(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Content { content, offset } => content.len - offset,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut *self {
            Self::Text(text) => std::mem::take(text),
            Self::Content { content, offset } => {
                let len = PIECE_LEN.min(content.len - *offset);
                let piece = content.bytes(*offset, len as usize);
                *offset += len;
                piece
            }
        };
        Poll::Ready(if piece.is_empty() { None } else { Some(Ok(Frame::data(piece))) })
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining())
    }
}

/// Why a request gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The request was not sent.
    #[error("no connection")]
    Connect(#[source] std::io::Error),
    /// The connection broke: the request may have been carried out.
    #[error("the connection broke")]
    Transport(#[source] hyper::Error),
    /// The same, where the connection is the generator's own.
    #[error("the connection broke")]
    Broken(#[source] std::io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("answered {status}: {code}: {message}")]
    Refused { status: u16, code: String, message: String },
    #[error("the answer is longer than {TEXT_LEN_MAX} bytes or not what was expected")]
    Answer,
    /// What it needs was to be made ready before, and was not; nothing was sent.
    #[error("what it asks for could not be made ready: {code}")]
    Unready { code: String },
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
}

impl WireError {
    /// As errors are counted.
    pub fn code(&self) -> &str {
        match self {
            Self::Connect(_) => "connect",
            Self::Transport(_) | Self::Broken(_) => "transport",
            Self::Timeout(_) => "timeout",
            Self::Refused { code, .. } | Self::Unready { code } => code,
            Self::Answer => "answer",
            Self::Request(_) => "request",
        }
    }

    /// Whether the server may have carried it out without our knowing.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Transport(_) | Self::Broken(_) | Self::Timeout(_))
    }
}

/// One connection to one gateway, made when first needed and again after it broke.
pub struct Connection {
    address: SocketAddr,
    host: HeaderValue,
    authorization: HeaderValue,
    sender: Option<SendRequest<Outgoing>>,
    /// Requests sent on the present connection.
    carried: u64,
}

impl Connection {
    /// `host` is the authority of the gateway, `token` the client's bearer token.
    pub fn new(address: SocketAddr, host: &str, token: &str) -> Result<Self, http::Error> {
        let mut authorization = HeaderValue::from_str(&format!("Bearer {token}"))?;
        authorization.set_sensitive(true);
        Ok(Self { address, host: HeaderValue::from_str(host)?, authorization, sender: None, carried: 0 })
    }

    /// Whether the last request was sent on a connection that had carried others before: such a one may have been
    /// closed by the server at the same moment.
    pub fn was_reused(&self) -> bool {
        self.carried > 1
    }

    /// Gives the connection up; the next request makes a new one.
    pub fn close(&mut self) {
        self.sender = None;
    }

    async fn sender(&mut self) -> Result<&mut SendRequest<Outgoing>, WireError> {
        // Ready also waits until the answer before was read and the connection is free.
        let usable = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let stream = TcpStream::connect(self.address).await.map_err(WireError::Connect)?;
            stream.set_nodelay(true).map_err(WireError::Connect)?;
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(WireError::Transport)?;
            // How a connection ended is told to the request that was on it.
            tokio::spawn(async move { drop(connection.await) });
            self.sender = Some(sender);
            self.carried = 0;
        }
        self.carried += 1;
        self.sender.as_mut().ok_or(WireError::Answer)
    }

    /// Sends a request; `path` is percent-encoded. Answers other than 2xx and 304 are [`WireError::Refused`].
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Outgoing,
    ) -> Result<Response<Incoming>, WireError> {
        self.send_range(method, path, None, body).await
    }

    /// As [`Connection::send`], with the value of a `Range` header.
    pub async fn send_range(
        &mut self,
        method: Method,
        path: &str,
        range: Option<&HeaderValue>,
        body: Outgoing,
    ) -> Result<Response<Incoming>, WireError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host)
            .header(AUTHORIZATION, &self.authorization);
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let len = body.remaining();
        if len > 0 {
            request = request.header(CONTENT_LENGTH, len);
        }
        let request = request.body(body)?;
        let response = self.sender().await?.send_request(request).await.map_err(WireError::Transport)?;
        let status = response.status();
        if status.is_success() || status == http::StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let text = read_text(response.into_body()).await?;
        let (code, message) = match serde_json::from_slice::<ErrorBody>(&text) {
            Ok(body) => (body.code.to_string(), body.message),
            Err(_) => (format!("http_{}", status.as_u16()), String::new()),
        };
        Err(WireError::Refused { status: status.as_u16(), code, message })
    }
}

/// Reads a short answer whole.
pub async fn read_text(body: Incoming) -> Result<Bytes, WireError> {
    match http_body_util::Limited::new(body, TEXT_LEN_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(WireError::Transport(*error)),
            Err(_) => Err(WireError::Answer),
        },
    }
}
