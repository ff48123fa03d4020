//! Stands between the store and the S3 server: counts requests, and does to them what a test says.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Pass,
    Delay(Duration),
    /// Answered with this status, and not passed on.
    Answer(u16),
    /// The connection is cut before it is passed on.
    Cut,
    /// Passed on, and the connection is cut instead of an answer.
    Unanswered,
    /// The connection is cut in the middle of the answer.
    HalfAnswer,
    /// Neither passed on nor answered.
    Silence,
}

type Rule = Box<dyn FnMut(&Request) -> Fate + Send>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
}

struct State {
    rule: Rule,
    requests: Vec<Request>,
}

#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Serves until the runtime ends.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { rule: Box::new(|_| Fate::Pass), requests: Vec::new() };
        let proxy = Self { address, state: Arc::new(Mutex::new(state)) };
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let proxy = accepting.clone();
                tokio::spawn(async move {
                    // A connection that breaks is what this is for.
                    let _broken = proxy.serve(client, server).await;
                });
            }
        });
        proxy
    }

    /// From now on.
    pub fn rule(&self, rule: impl FnMut(&Request) -> Fate + Send + 'static) {
        self.state.lock().unwrap().rule = Box::new(rule);
    }

    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// One request, then the connection is closed.
    async fn serve(&self, mut client: TcpStream, server: SocketAddr) -> io::Result<()> {
        let (head, body) = read_request(&mut client).await?;
        let mut words = head.split_ascii_whitespace().map(str::to_owned);
        let request =
            Request { method: words.next().unwrap_or_default(), path: words.next().unwrap_or_default() };
        let fate = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(request.clone());
            (state.rule)(&request)
        };
        match fate {
            Fate::Cut => return Ok(()),
            Fate::Silence => {
                // Until the other side gives up.
                let _end = client.read(&mut [0; 64]).await;
                return Ok(());
            }
            Fate::Answer(status) => {
                let body = format!("<Error><Code>Planned{status}</Code></Error>");
                let answer = format!(
                    "HTTP/1.1 {status} Planned\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                return client.write_all(answer.as_bytes()).await;
            }
            Fate::Delay(time) => tokio::time::sleep(time).await,
            Fate::Pass | Fate::Unanswered | Fate::HalfAnswer => {}
        }
        let mut upstream = TcpStream::connect(server).await?;
        let head = head.trim_end_matches("\r\n").to_owned() + "\r\nConnection: close\r\n\r\n";
        upstream.write_all(head.as_bytes()).await?;
        upstream.write_all(&body).await?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer).await?;
        match fate {
            Fate::Unanswered => Ok(()),
            Fate::HalfAnswer => {
                let start = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |at| at + 4);
                client.write_all(&answer[..start + (answer.len() - start) / 2]).await
            }
            _ => client.write_all(&answer).await,
        }
    }
}

/// The head, and the body if it has one. A connection without a request is an error like any other.
async fn read_request(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let head_end = loop {
        if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if client.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = read.split_off(head_end);
    let head = String::from_utf8_lossy(&read).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.unwrap_or(0);
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, body))
}
