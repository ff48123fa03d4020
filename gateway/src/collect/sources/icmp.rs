//! Round trips by ICMP echo, for who wants the network measured without the server behind it. Needs no privilege where
//! ping sockets are allowed, and CAP_NET_RAW elsewhere. IPv4.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::Mutex;

const LIMIT: Duration = Duration::from_secs(1);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Type, code, checksum, identifier, sequence number, and a nonce by which the reply is known.
const PACKET_LEN: usize = 8 + 16;

/// No socket for ICMP.
#[derive(Debug, thiserror::Error)]
#[error("neither a ping socket nor a raw socket can be opened")]
pub struct IcmpError(#[from] io::Error);

/// Opens a socket for each echo: a few a second, and none takes another's reply.
pub struct Icmp {
    kind: Type,
    /// A raw socket gets every reply that comes to this machine; one echo at a time keeps that cheap.
    raw_turn: Mutex<()>,
}

impl Icmp {
    pub fn open() -> Result<Self, IcmpError> {
        let kinds = [Type::DGRAM, Type::RAW];
        let mut last = io::Error::from(io::ErrorKind::Unsupported);
        for kind in kinds {
            match socket(kind) {
                Ok(_) => return Ok(Self { kind, raw_turn: Mutex::default() }),
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    /// The round trip to the host of a URL with a port; `None` if it has no IPv4 address or sends no reply.
    pub async fn round_trip(&self, address: &str) -> Option<Duration> {
        let host = address.split_once("://").map_or(address, |(_, host)| host);
        let found = tokio::net::lookup_host(host).await.ok()?;
        let ip = found.into_iter().find_map(|at| match at {
            SocketAddr::V4(v4) => Some(*v4.ip()),
            SocketAddr::V6(_) => None,
        })?;
        let _turn = match self.kind {
            Type::RAW => Some(self.raw_turn.lock().await),
            _ => None,
        };
        tokio::time::timeout(LIMIT, self.echo(ip)).await.ok()?.ok()
    }

    async fn echo(&self, ip: Ipv4Addr) -> io::Result<Duration> {
        let socket = UdpSocket::from_std(socket(self.kind)?.into())?;
        let packet = request();
        let begun = Instant::now();
        socket.send_to(&packet, SocketAddrV4::new(ip, 0)).await?;
        let mut buffer = [0u8; 256];
        loop {
            let (len, _) = socket.recv_from(&mut buffer).await?;
            let received = &buffer[..len];
            // A raw socket gives the IP header too, whose length is in its first byte.
            let header =
                if self.kind == Type::RAW { usize::from(received.first().unwrap_or(&0) & 15) * 4 } else { 0 };
            let reply = received.get(header..).unwrap_or(&[]);
            if reply.first() == Some(&ECHO_REPLY) && reply.get(8..PACKET_LEN) == Some(&packet[8..]) {
                return Ok(begun.elapsed());
            }
        }
    }
}

fn socket(kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::ICMPV4))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn request() -> [u8; PACKET_LEN] {
    let mut packet = [0u8; PACKET_LEN];
    common::auth::fill_random(&mut packet[4..]);
    packet[0] = ECHO_REQUEST;
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The Internet checksum (RFC 1071) of a packet of even length.
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_sums_up_to_nothing() {
        assert_eq!(checksum(&request()), 0);
        assert_eq!(checksum(&[8, 0, 0, 0, 0, 1, 0, 1]), !(0x0800 + 1 + 1));
    }

    /// Sandboxes allow neither kind of socket; then there is nothing to measure with.
    #[tokio::test]
    async fn loopback_answers_at_once() {
        match Icmp::open() {
            Ok(icmp) => {
                let round_trip = icmp.round_trip("http://127.0.0.1:80").await;
                assert!(round_trip.is_some_and(|r| r < Duration::from_millis(500)), "{round_trip:?}");
            }
            Err(error) => assert!(!error.0.to_string().is_empty()),
        }
    }
}
