//! A lean HTTP/1.1 client over one keep-alive connection: what a load generator needs and no more.
//!
//! A request is bytes that the caller made; of an answer the few headers that matter here are read, and its body in
//! pieces of the input buffer, without a copy. Nothing is ever sent twice: what is measured is what was sent.

use std::net::SocketAddr;

use common::api::gateway::{CLASS, DELIVERY, SOURCE};
use common::id::DeliveryId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::measure::Source;
use crate::wire::WireError;

/// Enough for the answer to a small request; grows for longer ones.
const INPUT_LEN: usize = 8 << 10;
/// Most bytes of a body that are read at once, and longest head of an answer.
const INPUT_LEN_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 64;

/// The head of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    /// As the `Content-Length` says; also to HEAD.
    pub len: Option<u64>,
    /// With its quotes.
    pub etag: Option<String>,
    pub content_range: Option<String>,
    pub delivery: Option<DeliveryId>,
    pub source: Source,
    /// `purchase` or `reference`.
    pub class: Option<&'static str>,
}

/// What of an answer's body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunk {
        remaining: u64,
        /// The line end of the chunk before has still to be read.
        ended: bool,
    },
    UntilClosed,
}

const NONE: Body = Body::Length(0);

/// One connection to one server, made when first needed and again after it was closed.
pub struct Http1 {
    address: SocketAddr,
    stream: Option<TcpStream>,
    input: Vec<u8>,
    /// Bytes `start..end` of `input` are received and not yet used.
    start: usize,
    end: usize,
    body: Body,
    /// The server closes the connection after this answer.
    closes: bool,
}

impl Http1 {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, input: Vec::new(), start: 0, end: 0, body: NONE, closes: false }
    }

    /// Gives the connection up; the next request makes a new one.
    pub fn close(&mut self) {
        self.stream = None;
        (self.start, self.end, self.body, self.closes) = (0, 0, NONE, false);
    }

    /// Makes the connection ready for a request: a new one if there is none, or if the server closed it.
    pub async fn ready(&mut self) -> Result<(), WireError> {
        if self.closes || self.body != NONE || self.start != self.end {
            self.close();
        }
        // Costs no system call while nothing has come in.
        if let Some(stream) = &self.stream
            && !matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        {
            self.close();
        }
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address).await.map_err(WireError::Connect)?;
            stream.set_nodelay(true).map_err(WireError::Connect)?;
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends a part of a request.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let stream = self.stream.as_mut().ok_or_else(closed)?;
        stream.write_all(bytes).await.map_err(WireError::Broken)
    }

    /// Reads the head of the answer; `to_head`: the request was HEAD, so no body follows.
    pub async fn head(&mut self, to_head: bool) -> Result<Head, WireError> {
        loop {
            if self.start < self.end
                && let Some(head) = self.parse(to_head)?
            {
                // 100 Continue and its like come before the answer.
                if head.status >= 200 {
                    return Ok(head);
                }
                continue;
            }
            self.fill(INPUT_LEN).await?;
        }
    }

    fn parse(&mut self, to_head: bool) -> Result<Option<Head>, WireError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&self.input[self.start..self.end]).map_err(|_| WireError::Answer)?;
        let httparse::Status::Complete(len) = parsed else { return Ok(None) };
        let mut head = Head { status: response.code.unwrap_or(0), ..Head::default() };
        let (mut chunked, mut closes) = (false, response.version == Some(0));
        for header in response.headers.iter() {
            let value = || std::str::from_utf8(header.value).ok();
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            let says = |word: &[u8]| header.value.to_ascii_lowercase().windows(word.len()).any(|w| w == word);
            match header.name.len() {
                4 if is("etag") => head.etag = value().map(str::to_owned),
                10 if is("connection") => closes = says(b"close") || closes && !says(b"keep-alive"),
                10 if is(CLASS.as_str()) => head.class = Some(class_of(header.value)),
                11 if is(SOURCE.as_str()) => head.source = Source::of(value()),
                13 if is(DELIVERY.as_str()) => head.delivery = value().and_then(|id| id.parse().ok()),
                13 if is("content-range") => head.content_range = value().map(str::to_owned),
                14 if is("content-length") => {
                    let len = value().and_then(|len| len.trim().parse().ok()).ok_or(WireError::Answer)?;
                    head.len = Some(len);
                }
                17 if is("transfer-encoding") => chunked = says(b"chunked"),
                _ => {}
            }
        }
        self.start += len;
        self.closes = closes;
        let bodiless = to_head || head.status < 200 || head.status == 204 || head.status == 304;
        self.body = match head.len {
            _ if bodiless => NONE,
            _ if chunked => Body::Chunk { remaining: 0, ended: false },
            Some(len) => Body::Length(len),
            None => Body::UntilClosed,
        };
        Ok(Some(head))
    }

    /// The next piece of the body; `None` after the last.
    pub async fn piece(&mut self) -> Result<Option<&[u8]>, WireError> {
        loop {
            match self.body {
                Body::Length(0) => return Ok(None),
                Body::Length(remaining) => {
                    if self.start == self.end {
                        self.fill(remaining.min(INPUT_LEN_MAX as u64) as usize).await?;
                    }
                    let len = self.available(remaining);
                    self.body = Body::Length(remaining - len as u64);
                    return Ok(Some(self.take(len)));
                }
                Body::Chunk { remaining: 0, ended } => {
                    if !self.next_chunk(ended).await? {
                        return Ok(None);
                    }
                }
                Body::Chunk { remaining, .. } => {
                    if self.start == self.end {
                        self.fill(remaining.min(INPUT_LEN_MAX as u64) as usize).await?;
                    }
                    let len = self.available(remaining);
                    self.body = Body::Chunk { remaining: remaining - len as u64, ended: true };
                    return Ok(Some(self.take(len)));
                }
                Body::UntilClosed => {
                    if self.start == self.end && self.receive(INPUT_LEN_MAX).await? == 0 {
                        self.close();
                        return Ok(None);
                    }
                    let len = self.end - self.start;
                    return Ok(Some(self.take(len)));
                }
            }
        }
    }

    /// Reads the line that begins a chunk; `false`: it was the last, and what follows it is read too.
    async fn next_chunk(&mut self, mut ended: bool) -> Result<bool, WireError> {
        if ended {
            self.line().await?;
        }
        let line = self.line().await?;
        let Ok(httparse::Status::Complete((_, len))) = httparse::parse_chunk_size(&line) else {
            return Err(WireError::Answer);
        };
        if len == 0 {
            // Trailers, and the empty line after them.
            while self.line().await?.len() > 2 {}
            self.body = NONE;
            return Ok(false);
        }
        ended = false;
        self.body = Body::Chunk { remaining: len, ended };
        Ok(true)
    }

    /// A short line with its end.
    async fn line(&mut self) -> Result<Vec<u8>, WireError> {
        loop {
            let received = &self.input[self.start..self.end];
            if let Some(at) = received.iter().position(|byte| *byte == b'\n') {
                return Ok(self.take(at + 1).to_vec());
            }
            self.fill(INPUT_LEN).await?;
        }
    }

    fn available(&self, wanted: u64) -> usize {
        wanted.min((self.end - self.start) as u64) as usize
    }

    fn take(&mut self, len: usize) -> &[u8] {
        self.start += len;
        &self.input[self.start - len..self.start]
    }

    /// Receives more; that nothing more comes is an error.
    async fn fill(&mut self, wanted: usize) -> Result<(), WireError> {
        match self.receive(wanted).await? {
            0 => Err(closed()),
            _ => Ok(()),
        }
    }

    /// Receives behind what is there; the buffer grows to what is wanted, within its bounds.
    async fn receive(&mut self, wanted: usize) -> Result<usize, WireError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let wanted = (self.end + wanted).clamp(INPUT_LEN, INPUT_LEN_MAX);
        if self.input.len() < wanted {
            self.input.resize(wanted.next_power_of_two(), 0);
        }
        if self.end == self.input.len() {
            return Err(WireError::Answer);
        }
        let stream = self.stream.as_mut().ok_or_else(closed)?;
        let received = stream.read(&mut self.input[self.end..]).await.map_err(WireError::Broken)?;
        self.end += received;
        Ok(received)
    }
}

fn closed() -> WireError {
    WireError::Broken(std::io::ErrorKind::UnexpectedEof.into())
}

fn class_of(value: &[u8]) -> &'static str {
    match value {
        b"purchase" => "purchase",
        b"reference" => "reference",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Answers each of `answers` to a request, in pieces of `step` bytes, over one connection after the other.
    fn server(answers: Vec<(Vec<u8>, bool)>, step: usize) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut stream = None;
            for (answer, close) in answers {
                let open = stream.get_or_insert_with(|| listener.accept().unwrap().0);
                open.set_nodelay(true).unwrap();
                let mut request = [0u8; 1024];
                assert!(open.read(&mut request).unwrap() > 0);
                for piece in answer.chunks(step) {
                    open.write_all(piece).unwrap();
                }
                if close {
                    stream = None;
                }
            }
        });
        address
    }

    async fn ask(http: &mut Http1, to_head: bool) -> Result<(Head, Vec<u8>), WireError> {
        http.ready().await?;
        http.write(b"GET / HTTP/1.1\r\n\r\n").await?;
        let head = http.head(to_head).await?;
        let mut body = Vec::new();
        while let Some(piece) = http.piece().await? {
            body.extend_from_slice(piece);
        }
        Ok((head, body))
    }

    #[tokio::test]
    async fn bodies_of_every_framing_are_read_however_they_are_cut() {
        let long = vec![7u8; 300_000];
        let mut counted = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nETag: \"x\"\r\n\r\n", long.len());
        counted.push_str(&String::from_utf8(long.clone()).unwrap());
        let chunked = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Partial\r\nTransfer-Encoding: Chunked\r\n\
            Content-Range: bytes 0-8/9\r\n\r\n4;x=y\r\nWiki\r\n5\r\npedia\r\n0\r\nTrailer: 1\r\n\r\n";
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 77\r\nDozo-Source: peer\r\nConnection: close\r\n\r\n";
        let closed = "HTTP/1.0 200 OK\r\n\r\nuntil the end";
        for step in [1, 7, 1 << 20] {
            let answers = vec![
                (counted.clone().into_bytes(), false),
                (chunked.into(), false),
                (head.into(), true),
                (closed.into(), true),
                (counted.clone().into_bytes(), false),
            ];
            let answers = if step == 1 { answers[1..4].to_vec() } else { answers };
            let mut http = Http1::new(server(answers, step));
            if step > 1 {
                let (told, body) = ask(&mut http, false).await.unwrap();
                assert_eq!((told.status, told.len, body == long), (200, Some(300_000), true));
                assert_eq!(told.etag.as_deref(), Some("\"x\""));
            }
            let (told, body) = ask(&mut http, false).await.unwrap();
            assert_eq!((told.status, &body[..]), (206, &b"Wikipedia"[..]));
            assert_eq!(told.content_range.as_deref(), Some("bytes 0-8/9"));
            let (told, body) = ask(&mut http, true).await.unwrap();
            assert_eq!((told.len, told.source, body.len()), (Some(77), Source::Peer, 0));
            let (_, body) = ask(&mut http, false).await.unwrap();
            assert_eq!(body, b"until the end");
            if step > 1 {
                assert_eq!(ask(&mut http, false).await.unwrap().1.len(), 300_000);
            }
        }
    }

    #[tokio::test]
    async fn what_breaks_off_and_what_is_no_answer_are_errors() {
        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec();
        let mut http = Http1::new(server(vec![(cut, true), (b"nonsense\r\n\r\n".to_vec(), false)], 100));
        let error = ask(&mut http, false).await.unwrap_err();
        assert!(matches!(error, WireError::Broken(_)) && error.is_unanswered(), "{error}");
        assert!(matches!(ask(&mut http, false).await, Err(WireError::Answer)));
    }
}
