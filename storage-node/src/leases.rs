//! Who collects which content: at most one gateway of the site at a time.
//!
//! In memory only, at the node that serves the name's slot. When that changes, or the node is started anew, the
//! collectors' next renewals bring the leases back; a second collection that began in between wastes bytes and harms
//! nothing, for holdings are right without leases.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

use common::api::collect::{CollectorAddress, LEASE_TIME, LeaseEnd, LeaseRequest};
use common::name::ContentName;
use common::time::UnixMillis;

/// Leases that are over are looked for when there are so many, and again at twice as many.
const TIDY_LEN: usize = 1024;

#[derive(Default)]
pub struct Leases(Mutex<Kept>);

struct Kept {
    by_name: HashMap<ContentName, Lease>,
    tidy_at: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { by_name: HashMap::new(), tidy_at: TIDY_LEN }
    }
}

struct Lease {
    collector: CollectorAddress,
    until: UnixMillis,
}

impl Leases {
    /// Gives or renews the lease, unless another has it. Answers who has it now.
    pub fn take(&self, request: LeaseRequest, now: UnixMillis) -> CollectorAddress {
        let LeaseRequest { name, collector, instead_of } = request;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.tidy(now);
        let lease = Lease { collector, until: UnixMillis(now.0 + LEASE_TIME.as_millis() as u64) };
        match kept.by_name.entry(name) {
            Entry::Vacant(vacant) => vacant.insert(lease).collector.clone(),
            Entry::Occupied(mut occupied) => {
                let known = occupied.get();
                let is_free = known.until <= now
                    || known.collector.http == lease.collector.http
                    || instead_of.as_ref() == Some(&known.collector.http);
                if is_free {
                    occupied.insert(lease);
                }
                occupied.get().collector.clone()
            }
        }
    }

    pub fn end(&self, end: &LeaseEnd) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.by_name.get(&end.name).is_some_and(|lease| lease.collector.http == end.http) {
            kept.by_name.remove(&end.name);
        }
    }

    pub fn is_collected(&self, name: &ContentName, now: UnixMillis) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.by_name.get(name).is_some_and(|lease| lease.until > now)
    }
}

impl Kept {
    /// Keeps memory in proportion to the leases that are not over.
    fn tidy(&mut self, now: UnixMillis) {
        if self.by_name.len() >= self.tidy_at {
            self.by_name.retain(|_, lease| lease.until > now);
            self.tidy_at = TIDY_LEN.max(2 * self.by_name.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use common::id::ServerName;

    use super::*;

    const MS: u64 = LEASE_TIME.as_millis() as u64;

    fn request(name: &str, gateway: &str, instead_of: Option<&str>) -> LeaseRequest {
        LeaseRequest {
            name: name.parse().unwrap(),
            collector: address(gateway),
            instead_of: instead_of.map(|gateway| address(gateway).http),
        }
    }

    fn address(gateway: &str) -> CollectorAddress {
        CollectorAddress { gateway: ServerName::new(gateway).unwrap(), http: format!("http://{gateway}") }
    }

    #[test]
    fn one_gateway_collects_until_it_is_silent_gives_up_or_does_not_answer() {
        let leases = Leases::default();
        let take = |gateway: &str, instead_of: Option<&str>, now: u64| {
            leases.take(request("alice/a", gateway, instead_of), UnixMillis(now)).gateway.to_string()
        };
        assert_eq!(take("g1", None, 0), "g1");
        assert_eq!(take("g2", None, 1), "g1");
        assert_eq!(take("g1", None, MS - 1), "g1", "renewed");
        assert_eq!(take("g2", None, 2 * MS - 2), "g1");
        assert_eq!(take("g2", None, 2 * MS - 1), "g2", "g1 was silent");
        assert_eq!(take("g1", Some("g3"), 2 * MS), "g2", "another's silence is of no interest");
        assert_eq!(take("g1", Some("g2"), 2 * MS), "g1");
        let name: ContentName = "alice/a".parse().unwrap();
        leases.end(&LeaseEnd { name: name.clone(), http: address("g2").http });
        assert!(leases.is_collected(&name, UnixMillis(2 * MS)));
        leases.end(&LeaseEnd { name: name.clone(), http: address("g1").http });
        assert!(!leases.is_collected(&name, UnixMillis(2 * MS)));
        assert_eq!(take("g2", None, 2 * MS), "g2");
    }

    #[test]
    fn leases_that_are_over_are_forgotten() {
        let leases = Leases::default();
        for n in 0..10 * TIDY_LEN as u64 {
            leases.take(request(&format!("alice/{n}"), "g1", None), UnixMillis(n * MS / 10));
        }
        assert!(leases.0.lock().unwrap().by_name.len() <= TIDY_LEN);
    }
}
