//! Finding mobile access: asks everybody near, by UDP broadcast on loopback and on every network that this machine is in.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use common::api::mobile_access::{AccessAnswer, AccessRequest, REQUEST_LEN};
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::error::Failure;

/// A datagram may be lost, so the question is repeated.
const REPEAT: Duration = Duration::from_millis(400);

/// Broadcast addresses of this machine's networks, loopback first.
pub fn addresses(port: u16) -> Vec<SocketAddr> {
    let loopback = Ipv4Addr::new(127, 255, 255, 255);
    let mut all = vec![loopback];
    all.extend(interface_broadcasts().into_iter().filter(|address| !address.is_loopback()));
    all.dedup();
    all.into_iter().map(|address| SocketAddrV4::new(address, port).into()).collect()
}

/// Broadcast addresses of the interfaces that are up.
fn interface_broadcasts() -> Vec<Ipv4Addr> {
    const WANTED: libc::c_int = libc::IFF_UP | libc::IFF_BROADCAST;
    let (mut list, mut found) = (std::ptr::null_mut::<libc::ifaddrs>(), Vec::new());
    // SAFETY: `list` is a place for the pointer that the call gives back.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return found;
    }
    let mut next = list;
    // SAFETY: entries are read until the list ends, before it is freed; each is a valid `ifaddrs`.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        if entry.ifa_flags as libc::c_int & WANTED != WANTED
            || entry.ifa_addr.is_null()
            || entry.ifa_ifu.is_null()
        {
            continue;
        }
        // SAFETY: it is not null, and every socket address begins with its family.
        if i32::from(unsafe { (*entry.ifa_addr).sa_family }) == libc::AF_INET {
            // SAFETY: an interface with IPv4 that broadcasts has an IPv4 broadcast address; it need not be aligned.
            let address = unsafe { entry.ifa_ifu.cast::<libc::sockaddr_in>().read_unaligned() };
            found.push(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)));
        }
    }
    // SAFETY: the list came from `getifaddrs` and is not used any more.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// A question that is being asked.
pub struct Asking {
    socket: UdpSocket,
    request: AccessRequest,
    addresses: Vec<SocketAddr>,
    heard: Vec<AccessAnswer>,
    repeat: tokio::time::Interval,
}

impl Asking {
    pub async fn begin(request: AccessRequest, addresses: Vec<SocketAddr>) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::new(format!("opening a socket for broadcasts: {e}"));
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.map_err(failed)?;
        socket.set_broadcast(true).map_err(failed)?;
        let mut repeat = interval(REPEAT);
        repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { socket, request, addresses, heard: Vec::new(), repeat })
    }

    /// The next server that answers, in the order in which they do, so the nearest first; `None` when nobody else has
    /// by `deadline`.
    pub async fn next(&mut self, deadline: Instant) -> Option<AccessAnswer> {
        let mut buffer = [0u8; REQUEST_LEN + 1];
        loop {
            let received = tokio::select! {
                () = tokio::time::sleep_until(deadline) => return None,
                _ = self.repeat.tick() => {
                    self.ask().await;
                    continue;
                }
                received = self.socket.recv_from(&mut buffer) => received,
            };
            let Ok((len, _)) = received else { continue };
            let Ok(answer) = AccessAnswer::decode(&buffer[..len]) else { continue };
            if answer.nonce == self.request.nonce && !self.heard.contains(&answer) {
                self.heard.push(answer.clone());
                return Some(answer);
            }
        }
    }

    async fn ask(&self) {
        let request = self.request.encode();
        for address in &self.addresses {
            // A network that cannot be asked has nobody who answers; that is told if nobody does anywhere.
            if let Err(error) = self.socket.send_to(&request, address).await {
                tracing::debug!(%error, %address, "broadcasting the mobile access request");
            }
        }
    }

    pub fn nobody(&self) -> Failure {
        let asked: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        Failure::new(format!("no mobile access server answered; asked were {}", asked.join(", "))).with_next_step(
            "name one, with --mobile-access HOST:PORT, or another address to ask, with --address HOST:PORT",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_asked_first_and_once() {
        let all = addresses(8004);
        assert_eq!(all[0], "127.255.255.255:8004".parse().unwrap());
        assert_eq!(all.iter().filter(|address| address.ip().is_loopback()).count(), 1);
    }
}
