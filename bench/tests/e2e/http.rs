//! A small blocking HTTP/1.1 client with one connection a request. It can stop in the middle: read an answer's
//! body at its leisure, send a request's body piece by piece, and hang up.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::de::DeserializeOwned;

/// Nothing that a test waits for takes longer.
const IO_TIME_MAX: Duration = Duration::from_secs(60);

/// A client at one gateway (or an operator at any server).
#[derive(Debug, Clone)]
pub struct Client {
    pub name: String,
    /// `http://host:port`
    pub base: String,
    /// Empty: none is sent.
    pub token: String,
}

/// The head of an answer, its body still to be read.
pub struct Incoming {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
    left: Left,
}

enum Left {
    Bytes(u64),
    Chunked { in_chunk: u64, done: bool },
    UntilClose,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in the answer {} {}", self.status, self.text()))
    }

    /// The code of an error answer, which must be JSON with a message and a request id.
    pub fn code(&self) -> String {
        let body: serde_json::Value = self.json();
        assert!(body["message"].as_str().is_some_and(|m| !m.is_empty()), "no message in {body}");
        assert!(body["request_id"].as_str().is_some_and(|id| !id.is_empty()), "no request id in {body}");
        body["code"].as_str().unwrap_or_else(|| panic!("no code in {body}")).to_owned()
    }

    /// Asserts the status, showing the answer if it is another.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status,
            status,
            "{:?} {}",
            self.headers,
            self.text().chars().take(500).collect::<String>()
        );
        self
    }
}

impl Client {
    pub fn new(name: &str, base: &str, token: &str) -> Self {
        Self { name: name.to_owned(), base: base.to_owned(), token: token.to_owned() }
    }

    /// The same client at another address.
    pub fn at(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    fn connect(&self) -> Result<TcpStream> {
        let address = self.base.strip_prefix("http://").expect("http://host:port");
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_TIME_MAX))?;
        stream.set_write_timeout(Some(IO_TIME_MAX))?;
        Ok(stream)
    }

    fn send_head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<TcpStream> {
        let mut stream = self.connect()?;
        let host = self.base.strip_prefix("http://").expect("http://host:port");
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        if !self.token.is_empty() {
            head.push_str(&format!("authorization: Bearer {}\r\n", self.token));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        Ok(stream)
    }

    /// Sends a request without a body; the answer's body is read when the caller reads it.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Incoming> {
        Incoming::read(self.send_head(method, path, headers)?, method)
    }

    /// Sends a whole request, reads the whole answer.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let len = body.len().to_string();
        let mut headers = headers.to_vec();
        if !body.is_empty() || method == "PUT" || method == "POST" {
            headers.push(("content-length", &len));
        }
        let mut stream = self.send_head(method, path, &headers)?;
        // A server that refuses may answer and hang up before it has read everything.
        let sent = stream.write_all(body);
        match Incoming::read(stream, method).and_then(Incoming::finish) {
            Ok(answer) => Ok(answer),
            Err(error) => Err(sent.err().unwrap_or(error)),
        }
    }

    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_send(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {}{path}: {error}", self.base))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], &[])
    }

    #[track_caller]
    pub fn get_content(&self, name: &str) -> Answer {
        self.get(&format!("/v1/contents/{name}"))
    }

    #[track_caller]
    pub fn put_content(&self, name: &str, bytes: &[u8]) -> Answer {
        self.send("PUT", &format!("/v1/contents/{name}"), &[], bytes)
    }

    #[track_caller]
    pub fn send_json(&self, method: &str, path: &str, body: &serde_json::Value) -> Answer {
        self.send(method, path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Begins a PUT whose body follows piece by piece.
    pub fn begin_put(&self, name: &str, len: u64) -> Result<Upload> {
        let len_text = len.to_string();
        let path = format!("/v1/contents/{name}");
        Ok(Upload { stream: self.send_head("PUT", &path, &[("content-length", &len_text)])? })
    }
}

/// A PUT on its way.
pub struct Upload {
    stream: TcpStream,
}

impl Upload {
    pub fn send(&mut self, piece: &[u8]) -> Result<()> {
        self.stream.write_all(piece)
    }

    pub fn finish(self) -> Result<Answer> {
        Incoming::read(self.stream, "PUT")?.finish()
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

impl Incoming {
    fn read(stream: TcpStream, method: &str) -> Result<Self> {
        let mut stream = BufReader::with_capacity(16 << 10, stream);
        loop {
            let status_line = read_line(&mut stream)?;
            let status: u16 = status_line
                .split(' ')
                .nth(1)
                .and_then(|code| code.parse().ok())
                .ok_or_else(|| invalid(&format!("status line {status_line:?}")))?;
            let mut headers = Vec::new();
            loop {
                let line = read_line(&mut stream)?;
                if line.is_empty() {
                    break;
                }
                let (name, value) = line.split_once(':').ok_or_else(|| invalid("header without a colon"))?;
                headers.push((name.to_owned(), value.trim().to_owned()));
            }
            if status == 100 {
                continue;
            }
            let len = find(&headers, "content-length").and_then(|len| len.parse().ok());
            let left = if method == "HEAD" || status == 304 || status == 204 {
                Left::Bytes(0)
            } else if find(&headers, "transfer-encoding").is_some() {
                Left::Chunked { in_chunk: 0, done: false }
            } else {
                len.map_or(Left::UntilClose, Left::Bytes)
            };
            return Ok(Self { status, headers, stream, left });
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Reads some bytes of the body; 0 at its end. A body that breaks off is an error.
    pub fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if let Left::Chunked { in_chunk: in_chunk @ 0, done: done @ false } = &mut self.left {
            let size = read_line(&mut self.stream)?;
            let size = size.split(';').next().unwrap_or("");
            *in_chunk = u64::from_str_radix(size.trim(), 16).map_err(|_| invalid("chunk size"))?;
            if *in_chunk == 0 {
                *done = true;
                while !read_line(&mut self.stream)?.is_empty() {}
            }
        }
        let most = match &self.left {
            Left::Bytes(left) => *left,
            Left::Chunked { in_chunk, .. } => *in_chunk,
            Left::UntilClose => u64::MAX,
        };
        if most == 0 {
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let len = self.stream.read(&mut buffer[..most])?;
        match &mut self.left {
            Left::UntilClose => {}
            _ if len == 0 => return Err(Error::new(ErrorKind::UnexpectedEof, "the body breaks off")),
            Left::Bytes(left) => *left -= len as u64,
            Left::Chunked { in_chunk, .. } => {
                *in_chunk -= len as u64;
                if *in_chunk == 0 {
                    read_line(&mut self.stream)?;
                }
            }
        }
        Ok(len)
    }

    /// Reads exactly `len` bytes of the body.
    pub fn read_exact(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            let got = self.read_some(&mut bytes[filled..])?;
            if got == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the body is shorter"));
            }
            filled += got;
        }
        Ok(bytes)
    }

    pub fn finish(mut self) -> Result<Answer> {
        let mut body = Vec::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let len = self.read_some(&mut buffer)?;
            if len == 0 {
                return Ok(Answer { status: self.status, headers: self.headers, body });
            }
            body.extend_from_slice(&buffer[..len]);
        }
    }
}

fn read_line(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(Error::new(ErrorKind::UnexpectedEof, "the connection was closed before an answer"));
    }
    Ok(line.trim_end().to_owned())
}
