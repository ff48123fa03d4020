//! How often one address, and all together, may ask.
//!
//! Who has asked nothing for a while has its whole burst again, so nothing is kept of it; what is kept is bounded. When that
//! is full (somebody asks in the names of many) newcomers count only in the sum.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Addresses that are kept apart at the same time.
const SOURCES_MAX: usize = 10_000;

/// So many at once, then so many a second.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub per_s: u32,
    pub burst: u32,
}

impl Rate {
    /// Takes one, if there is room: moves `used` to when that one is used up.
    fn take(self, used: &mut Instant, now: Instant) -> bool {
        let one = Duration::from_secs(1) / self.per_s;
        let next = (*used).max(now) + one;
        let has_room = next <= now + one * self.burst;
        if has_room {
            *used = next;
        }
        has_room
    }
}

pub struct Rates {
    each: Rate,
    all: Rate,
    used: Mutex<Used>,
}

struct Used {
    all: Instant,
    sources: HashMap<IpAddr, Instant>,
}

impl Rates {
    pub fn new(each: Rate, all: Rate) -> Self {
        let used = Used { all: Instant::now(), sources: HashMap::new() };
        Self { each, all, used: Mutex::new(used) }
    }

    /// Counts a question; false when it is one too many.
    pub fn admit(&self, source: IpAddr) -> bool {
        let (now, source) = (Instant::now(), network(source));
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.sources.len() >= SOURCES_MAX && !used.sources.contains_key(&source) {
            used.sources.retain(|_, until| *until > now);
        }
        if used.sources.len() < SOURCES_MAX || used.sources.contains_key(&source) {
            let until = used.sources.entry(source).or_insert(now);
            if !self.each.take(until, now) {
                return false;
            }
        }
        self.all.take(&mut used.all, now)
    }
}

/// One machine has a whole /64 of IPv6 to ask from.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates() -> Rates {
        Rates::new(Rate { per_s: 10, burst: 5 }, Rate { per_s: 100, burst: 8 })
    }

    fn admitted(rates: &Rates, source: &str, times: usize) -> usize {
        let source = source.parse().unwrap();
        (0..times).filter(|_| rates.admit(source)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_and_all_together_are_bounded() {
        let rates = rates();
        assert_eq!(admitted(&rates, "192.0.2.1", 20), 5);
        assert_eq!(admitted(&rates, "192.0.2.2", 20), 3, "the sum is bounded, too");
        tokio::time::advance(Duration::from_millis(201)).await;
        assert_eq!(admitted(&rates, "192.0.2.1", 20), 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(admitted(&rates, "192.0.2.1", 20), 5, "idle time is not saved up");
        assert_eq!(admitted(&rates, "::ffff:192.0.2.1", 20), 0, "the same machine");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(admitted(&rates, "2001:db8::1", 3) + admitted(&rates, "2001:db8::2", 3), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_of_addresses_is_bounded() {
        let rates = Rates::new(Rate { per_s: 1, burst: 1 }, Rate { per_s: 1_000_000, burst: 1_000_000 });
        for n in 0..SOURCES_MAX as u32 + 10 {
            assert!(rates.admit(IpAddr::from(n.to_be_bytes())));
        }
        assert_eq!(rates.used.lock().unwrap().sources.len(), SOURCES_MAX);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(rates.admit("10.0.0.1".parse().unwrap()));
        assert_eq!(rates.used.lock().unwrap().sources.len(), 1);
    }
}
