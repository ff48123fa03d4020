//! One connection to one server, and its protocol's requests.

use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use common::api::gateway::{ContentListing, Published};
use common::api::search::Visibility;
use common::client::encode;
use common::error::ErrorBody;
use common::hash::ContentHash;

use super::Protocol;
use super::etag::tag_of_text;
use super::http1::{Head, Http1};
use super::s3::{self, PART_LEN};
use super::signature::{Signed, Signer, UNSIGNED, timestamp};
use crate::content::Content;
use crate::visit::Pass;
use crate::wire::WireError;

/// A content goes out in pieces of this length.
const PIECE_LEN: u64 = 128 << 10;
/// Longest answer that is read as text.
const TEXT_LEN_MAX: usize = 4 << 20;
/// Names in one page of a listing.
const PAGE_MAX: u64 = 1000;

/// What the answer to a PUT tells of what was stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// What reads and listings name this version by.
    pub tag: Option<ContentHash>,
    pub len: Option<u64>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub tag: ContentHash,
    pub len: u64,
}

/// A part of a listing; `next`: go on after this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub lines: Vec<Listed>,
    pub next: Option<String>,
}

/// How requests of this connection's protocol are written.
enum Speech {
    Native {
        bucket: String,
    },
    /// Of Dozo's own API, what is open to visitors.
    Visitor {
        pass: Box<Pass>,
    },
    S3 {
        signer: Box<Signer>,
        bucket: String,
    },
    Plain,
}

/// One connection and what is said over it. Keys are of characters that need no percent-encoding.
pub struct Client {
    wire: Http1,
    speech: Speech,
    host: String,
    /// Before every key.
    prefix: String,
    /// Header lines of every request.
    fixed: Vec<u8>,
    /// The request that is being made.
    request: Vec<u8>,
}

impl Client {
    /// `host` is the server's authority.
    pub fn new(protocol: &Protocol, address: SocketAddr, host: &str) -> Self {
        let mut fixed = format!("Host: {host}\r\n");
        let (speech, prefix) = match protocol {
            Protocol::Native { token, bucket } => {
                fixed.push_str(&format!("Authorization: Bearer {token}\r\n"));
                (Speech::Native { bucket: bucket.clone() }, native_prefix(bucket))
            }
            Protocol::S3 { credentials, bucket } => {
                let signer = Box::new(Signer::new(credentials.clone()));
                (Speech::S3 { signer, bucket: bucket.clone() }, format!("/{bucket}/"))
            }
            Protocol::Plain { prefix, .. } if prefix.is_empty() => (Speech::Plain, "/".to_owned()),
            Protocol::Plain { prefix, .. } => (Speech::Plain, format!("/{prefix}/")),
        };
        Self::speaking(speech, address, host, prefix, fixed)
    }

    /// As a visitor, at the gateway of its pass; for reading what is in `bucket`.
    pub fn visiting(pass: Pass, address: SocketAddr, host: &str, bucket: &str) -> Self {
        let speech = Speech::Visitor { pass: Box::new(pass) };
        Self::speaking(speech, address, host, native_prefix(bucket), format!("Host: {host}\r\n"))
    }

    fn speaking(speech: Speech, address: SocketAddr, host: &str, prefix: String, fixed: String) -> Self {
        Self {
            wire: Http1::new(address),
            speech,
            host: host.to_owned(),
            prefix,
            fixed: fixed.into_bytes(),
            request: Vec::new(),
        }
    }

    /// Gives the connection up; the next request makes a new one.
    pub fn close(&mut self) {
        self.wire.close();
    }

    /// How a version is named, from an `ETag`: the hash itself where it is one, else the hash of the text.
    pub fn tag(&self, etag: &str) -> ContentHash {
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        match self.speech {
            Speech::Native { .. } | Speech::Visitor { .. } => {
                etag.parse().unwrap_or_else(|_| tag_of_text(etag))
            }
            Speech::S3 { .. } | Speech::Plain => tag_of_text(etag),
        }
    }

    /// Asks for a content or a part of it; its bytes come with [`Client::piece`].
    pub async fn get(&mut self, key: &str, range: Option<&Range<u64>>) -> Result<Head, WireError> {
        let path = self.begin("GET", key, "");
        if let Some(range) = range {
            write_line(&mut self.request, format_args!("Range: bytes={}-{}", range.start, range.end - 1));
        }
        self.send("GET", &path, "", 0).await?;
        self.answer(false).await
    }

    /// The next piece of a content; `None` after the last.
    pub async fn piece(&mut self) -> Result<Option<&[u8]>, WireError> {
        self.wire.piece().await
    }

    pub async fn head(&mut self, key: &str) -> Result<Head, WireError> {
        let path = self.begin("HEAD", key, "");
        self.send("HEAD", &path, "", 0).await?;
        self.answer(true).await
    }

    pub async fn put(&mut self, key: &str, content: Content) -> Result<Stored, WireError> {
        let path = self.begin("PUT", key, "");
        let head = self.upload("PUT", &path, "", content, 0..content.len).await?;
        let text = self.text().await?;
        if let Speech::Native { .. } = self.speech {
            let published: Published = serde_json::from_slice(&text).map_err(|_| WireError::Answer)?;
            return Ok(Stored { tag: Some(published.hash), len: Some(published.len) });
        }
        Ok(Stored { tag: head.etag.map(|etag| self.tag(&etag)), len: None })
    }

    pub async fn delete(&mut self, key: &str) -> Result<(), WireError> {
        let path = self.begin("DELETE", key, "");
        self.send("DELETE", &path, "", 0).await?;
        self.answer(false).await?;
        self.text().await.map(drop)
    }

    /// Drops another's content from the client's library, into which its delivery put it.
    pub async fn drop_held(&mut self, key: &str) -> Result<(), WireError> {
        let Speech::Native { bucket } = &self.speech else { return Err(WireError::Answer) };
        let path = format!("/v1/library/{bucket}/{key}");
        self.begin_at("DELETE", &path, "");
        self.send("DELETE", &path, "", 0).await?;
        self.answer(false).await?;
        self.text().await.map(drop)
    }

    /// A page of the names that begin with `prefix`, after the key `after`.
    pub async fn list(&mut self, prefix: &str, after: &str) -> Result<Page, WireError> {
        let (path, query) = match &self.speech {
            Speech::Native { bucket } => {
                let (prefix, after) = (encode(prefix), encode(after));
                let query = format!("prefix={prefix}&after={after}&limit={PAGE_MAX}");
                (format!("/v1/contents/{bucket}"), query)
            }
            Speech::S3 { bucket, .. } => (format!("/{bucket}"), s3::list_query(prefix, after, PAGE_MAX)),
            Speech::Plain | Speech::Visitor { .. } => return Err(WireError::Answer),
        };
        self.begin_at("GET", &path, &query);
        self.send("GET", &path, &query, 0).await?;
        self.answer(false).await?;
        let text = self.text().await?;
        if let Speech::S3 { .. } = self.speech {
            let listing = s3::parse_listing(&text).ok_or(WireError::Answer)?;
            let next = listing.truncated.then(|| listing.objects.last().map(|o| o.key.clone())).flatten();
            let line =
                |object: s3::Object| Listed { tag: self.tag(&object.etag), key: object.key, len: object.len };
            return Ok(Page { lines: listing.objects.into_iter().map(line).collect(), next });
        }
        let listing: ContentListing = serde_json::from_slice(&text).map_err(|_| WireError::Answer)?;
        let lines = listing.contents.into_iter();
        let lines = lines.map(|line| Listed { key: line.key, tag: line.hash, len: line.len });
        Ok(Page { lines: lines.collect(), next: listing.next })
    }

    /// Puts a content in parts.
    pub async fn put_in_parts(&mut self, key: &str, content: Content) -> Result<Stored, WireError> {
        let path = self.begin("POST", key, "uploads=");
        self.send("POST", &path, "uploads=", 0).await?;
        self.answer(false).await?;
        let text = self.text().await?;
        let upload = s3::first(&text, "UploadId").ok_or(WireError::Answer)?;
        let upload = encode(&upload).to_string();
        let mut etags = Vec::new();
        let mut start = 0;
        while start < content.len || etags.is_empty() {
            let end = content.len.min(start + PART_LEN);
            let query = format!("partNumber={}&uploadId={upload}", etags.len() + 1);
            let path = self.begin("PUT", key, &query);
            let head = self.upload("PUT", &path, &query, content, start..end).await?;
            self.text().await?;
            etags.push(head.etag.ok_or(WireError::Answer)?);
            start = end;
        }
        let (query, list) = (format!("uploadId={upload}"), s3::part_list(&etags));
        let path = self.begin("POST", key, &query);
        self.finish_head("POST", &path, &query, list.len() as u64);
        self.request.extend_from_slice(list.as_bytes());
        self.wire.ready().await?;
        self.wire.write(&self.request).await?;
        self.answer(false).await?;
        let text = self.text().await?;
        // An error may come with the status 200, when it was found after the answer had begun.
        let etag = s3::first(&text, "ETag").ok_or(WireError::Answer)?;
        Ok(Stored { tag: Some(self.tag(&etag)), len: None })
    }

    /// Makes the bucket that everything goes into; that it is there already is well. Who reads it is said to Dozo alone.
    pub async fn make_bucket(&mut self, visibility: Visibility) -> Result<(), WireError> {
        let (path, body) = match &self.speech {
            Speech::Native { bucket } => {
                let body = match visibility {
                    Visibility::Private => r#"{"visibility":"private"}"#,
                    Visibility::Public => r#"{"visibility":"public"}"#,
                };
                (format!("/v1/buckets/{bucket}"), body)
            }
            Speech::S3 { bucket, .. } => (format!("/{bucket}"), ""),
            Speech::Plain | Speech::Visitor { .. } => return Ok(()),
        };
        self.begin_at("PUT", &path, "");
        self.finish_head("PUT", &path, "", body.len() as u64);
        self.request.extend_from_slice(body.as_bytes());
        self.wire.ready().await?;
        self.wire.write(&self.request).await?;
        match self.answer(false).await {
            Err(WireError::Refused { code, .. }) if s3::is_there_already(&code) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => self.text().await.map(drop),
        }
    }

    /// The request line for a key; answers with the path.
    fn begin(&mut self, method: &str, key: &str, query: &str) -> String {
        let path = match self.speech {
            // Only a signature needs the path apart.
            Speech::S3 { .. } | Speech::Visitor { .. } => format!("{}{key}", self.prefix),
            Speech::Native { .. } | Speech::Plain => String::new(),
        };
        self.request.clear();
        for part in [method, " ", &self.prefix, key] {
            self.request.extend_from_slice(part.as_bytes());
        }
        self.end_request_line(query);
        path
    }

    fn begin_at(&mut self, method: &str, path: &str, query: &str) {
        self.request.clear();
        for part in [method, " ", path] {
            self.request.extend_from_slice(part.as_bytes());
        }
        self.end_request_line(query);
    }

    fn end_request_line(&mut self, query: &str) {
        if !query.is_empty() {
            self.request.push(b'?');
            self.request.extend_from_slice(query.as_bytes());
        }
        self.request.extend_from_slice(b" HTTP/1.1\r\n");
        self.request.extend_from_slice(&self.fixed);
    }

    /// The rest of the request's head.
    fn finish_head(&mut self, method: &str, path: &str, query: &str, len: u64) {
        if let Speech::S3 { signer, .. } = &mut self.speech {
            let date = timestamp(SystemTime::now());
            let headers =
                [("host", self.host.as_str()), ("x-amz-content-sha256", UNSIGNED), ("x-amz-date", &date)];
            let signed = Signed { method, path, query, headers: &headers, payload: UNSIGNED };
            let authorization = signer.authorization(&signed, &date);
            write_line(
                &mut self.request,
                format_args!(
                    "x-amz-content-sha256: {UNSIGNED}\r\nx-amz-date: {date}\r\nAuthorization: {authorization}"
                ),
            );
        }
        if let Speech::Visitor { pass } = &self.speech {
            let authorization = pass.authorization(method, path);
            write_line(&mut self.request, format_args!("Authorization: {authorization}"));
        }
        if len > 0 || method == "PUT" || method == "POST" {
            write_line(&mut self.request, format_args!("Content-Length: {len}"));
        }
        self.request.extend_from_slice(b"\r\n");
    }

    async fn send(&mut self, method: &str, path: &str, query: &str, len: u64) -> Result<(), WireError> {
        self.finish_head(method, path, query, len);
        self.wire.ready().await?;
        self.wire.write(&self.request).await
    }

    /// Sends a part of a content as the body, and reads the head of the answer.
    async fn upload(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        content: Content,
        range: Range<u64>,
    ) -> Result<Head, WireError> {
        self.finish_head(method, path, query, range.end - range.start);
        self.wire.ready().await?;
        let mut offset = range.start;
        loop {
            // The first piece goes out together with the head.
            let len = PIECE_LEN.min(range.end - offset) as usize;
            let from = self.request.len();
            self.request.resize(from + len, 0);
            content.fill(offset, &mut self.request[from..]);
            if let Err(error) = self.wire.write(&self.request).await {
                // A server that refuses may close before it has read all: its answer says why.
                let answer = self.answer(false).await;
                self.close();
                return Err(answer
                    .err()
                    .filter(|told| matches!(told, WireError::Refused { .. }))
                    .unwrap_or(error));
            }
            self.request.clear();
            offset += len as u64;
            if offset == range.end {
                return self.answer(false).await;
            }
        }
    }

    /// The head of an answer other than a refusal.
    async fn answer(&mut self, to_head: bool) -> Result<Head, WireError> {
        let head = self.wire.head(to_head).await?;
        if (200..300).contains(&head.status) || head.status == 304 {
            return Ok(head);
        }
        let text = self.text().await?;
        let (code, message) = match serde_json::from_slice::<ErrorBody>(&text) {
            Ok(body) => (body.code.to_string(), body.message),
            Err(_) => {
                let code = s3::first(&text, "Code").unwrap_or_else(|| format!("http_{}", head.status));
                (code, s3::first(&text, "Message").unwrap_or_default())
            }
        };
        Err(WireError::Refused { status: head.status, code, message })
    }

    /// The rest of an answer, which must be short.
    async fn text(&mut self) -> Result<Bytes, WireError> {
        let mut text = Vec::new();
        while let Some(piece) = self.wire.piece().await? {
            if text.len() + piece.len() > TEXT_LEN_MAX {
                return Err(WireError::Answer);
            }
            text.extend_from_slice(piece);
        }
        Ok(text.into())
    }
}

fn native_prefix(bucket: &str) -> String {
    format!("/v1/contents/{bucket}/")
}

fn write_line(request: &mut Vec<u8>, line: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _infallible = request.write_fmt(line);
    request.extend_from_slice(b"\r\n");
}
