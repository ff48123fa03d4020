//! Hears mobile access requests and answers where this server is.

use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::time::Duration;

use common::api::mobile_access::{AccessAnswer, AccessRequest, REQUEST_LEN};
use common::id::ServerName;
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use crate::metrics::Metrics;
use crate::rates::{Rate, Rates};

const EACH: Rate = Rate { per_s: 10, burst: 20 };
const ALL: Rate = Rate { per_s: 500, burst: 500 };

/// A socket that shares its address with other servers of this machine: each of them hears a broadcast.
pub fn bind(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// What is said to who asks.
pub struct Hearing {
    pub name: ServerName,
    /// Where the service listens.
    pub listen: SocketAddr,
    pub advertise: Option<String>,
    pub metrics: Metrics,
}

impl Hearing {
    /// Answers, for ever.
    pub async fn run(self, socket: UdpSocket) {
        let rates = Rates::new(EACH, ALL);
        // One byte more than a request has, so that a longer datagram is seen to be none.
        let mut buffer = [0u8; REQUEST_LEN + 1];
        loop {
            let (len, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::warn!(%error, "receiving a datagram");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(request) = AccessRequest::decode(&buffer[..len]) else {
                self.metrics.heard_malformed.increment(1);
                continue;
            };
            if !rates.admit(from.ip()) {
                self.metrics.heard_limited.increment(1);
                continue;
            }
            tracing::debug!(client = %request.client, home = %request.home, card = request.card.short(), %from, "a client asks who is here");
            let answer =
                AccessAnswer { nonce: request.nonce, name: self.name.clone(), http: self.address_for(from) };
            match socket.send_to(&answer.encode(), from).await {
                Ok(_) => self.metrics.heard_answered.increment(1),
                Err(error) => tracing::debug!(%error, %from, "answering a datagram"),
            }
        }
    }

    /// Where `from` reaches this server: a server that listens on every address is reached at the one that leads there.
    fn address_for(&self, from: SocketAddr) -> String {
        if let Some(address) = &self.advertise {
            return address.clone();
        }
        let mut listen = self.listen;
        if listen.ip().is_unspecified()
            && let Ok(local) = local_address_towards(from)
        {
            listen.set_ip(local.ip());
        }
        format!("{}://{listen}", common::tls::scheme())
    }
}

/// Nothing is sent for this: the system only looks up the way.
fn local_address_towards(from: SocketAddr) -> std::io::Result<SocketAddr> {
    let any: SocketAddr = if from.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = StdSocket::bind(any)?;
    socket.connect(from)?;
    socket.local_addr()
}

#[cfg(test)]
mod tests {
    use common::card::PublicKey;
    use common::id::{ClientId, SiteId};
    use common::telemetry::MetricsRegistry;
    use common::visit::Nonce;

    use super::*;

    fn request() -> AccessRequest {
        AccessRequest {
            client: ClientId::new("carol").unwrap(),
            home: SiteId::new("osaka").unwrap(),
            card: PublicKey::from_bytes([1; 32]),
            nonce: Nonce::generate(),
        }
    }

    fn hearing(name: &str, listen: &str) -> Hearing {
        Hearing {
            name: ServerName::new(name).unwrap(),
            listen: listen.parse().unwrap(),
            advertise: None,
            metrics: Metrics::new(&MetricsRegistry::new()),
        }
    }

    async fn answer(socket: &UdpSocket) -> AccessAnswer {
        let mut buffer = [0u8; 2 * REQUEST_LEN];
        let received = tokio::time::timeout(Duration::from_secs(10), socket.recv_from(&mut buffer)).await;
        let (len, _) = received.unwrap().unwrap();
        assert!(len <= REQUEST_LEN, "no more goes out than came in");
        AccessAnswer::decode(&buffer[..len]).unwrap()
    }

    #[tokio::test]
    async fn everybody_who_hears_a_broadcast_answers_and_nobody_answers_anything_else() {
        let loopback: SocketAddr = ([127, 255, 255, 255], 0).into();
        let first = bind(loopback).unwrap();
        let address = first.local_addr().unwrap();
        let second = bind(address).unwrap();
        tokio::spawn(hearing("m1", "127.0.0.1:81").run(first));
        tokio::spawn(hearing("m2", "0.0.0.0:82").run(second));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.set_broadcast(true).unwrap();
        let asked = request();
        let mut longer = asked.encode();
        longer.push(0);
        for junk in [&b"hello"[..], &asked.encode()[..REQUEST_LEN - 1], &longer] {
            client.send_to(junk, address).await.unwrap();
        }
        client.send_to(&asked.encode(), address).await.unwrap();
        let mut answers = [answer(&client).await, answer(&client).await];
        answers.sort_by_key(|answer| answer.name.to_string());
        assert!(answers.iter().all(|answer| answer.nonce == asked.nonce));
        assert_eq!((answers[0].name.as_str(), &*answers[0].http), ("m1", "http://127.0.0.1:81"));
        assert_eq!((answers[1].name.as_str(), &*answers[1].http), ("m2", "http://127.0.0.1:82"));
    }

    #[tokio::test]
    async fn who_asks_too_often_is_not_answered() {
        let socket = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(hearing("m1", "127.0.0.1:81").run(socket));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..3 * EACH.burst {
            client.send_to(&request().encode(), address).await.unwrap();
        }
        let mut answered = 0;
        let mut buffer = [0u8; 2 * REQUEST_LEN];
        let quiet = Duration::from_millis(300);
        while tokio::time::timeout(quiet, client.recv_from(&mut buffer)).await.is_ok() {
            answered += 1;
        }
        assert!((1..=EACH.burst + 5).contains(&answered), "{answered}");
    }
}
