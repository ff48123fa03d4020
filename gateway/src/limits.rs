//! What each client may take of this gateway in a second: requests beyond it are refused, bytes are slowed down.
//!
//! Each gateway counts for itself. A client that has taken nothing for a moment has its whole rate again, so nothing is
//! kept of it; what is kept grows with the clients that are limited and active at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::api::search::ClientRecord;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::ClientId;
use tokio::time::Instant;

/// So much of its rate a client may take at once.
const BURST: Duration = Duration::from_secs(1);
/// Clients that are kept before idle ones are looked for.
const SWEEP_MIN: usize = 1024;
/// A slowed answer goes out in so many pieces a second, if they are not too small.
const PIECES_PER_S: u64 = 20;
const PIECE_LEN_MIN: u64 = 4096;

/// When a client has used up what it took, of requests and of bytes.
#[derive(Debug)]
struct Used {
    requests: Instant,
    bytes: Instant,
}

type Meter = Arc<Mutex<Used>>;

fn used(meter: &Meter) -> MutexGuard<'_, Used> {
    meter.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Meters {
    clients: HashMap<ClientId, Meter>,
    /// Idle ones are looked for when there are so many.
    sweep_at: usize,
}

/// The clients that are limited.
#[derive(Debug, Default)]
pub struct Limits {
    meters: Mutex<Meters>,
}

impl Limits {
    fn meter(&self, client: &ClientId) -> Meter {
        let now = Instant::now();
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if meters.clients.len() >= meters.sweep_at.max(SWEEP_MIN) {
            meters.clients.retain(|_, meter| {
                let used = used(meter);
                Arc::strong_count(meter) > 1 || used.requests > now || used.bytes > now
            });
            meters.sweep_at = meters.clients.len() * 2;
        }
        let idle = || Arc::new(Mutex::new(Used { requests: now, bytes: now }));
        meters.clients.entry(client.clone()).or_insert_with(idle).clone()
    }

    /// Counts a request; `TooManyRequests` when it is one more than the client's rate has room for.
    pub fn admit(&self, client: &ClientRecord) -> ApiResult<()> {
        let Some(rate) = client.limits.requests_per_s.filter(|rate| *rate > 0) else { return Ok(()) };
        let meter = self.meter(&client.client);
        let (now, mut used) = (Instant::now(), used(&meter));
        let next = used.requests.max(now) + BURST.div_f64(rate as f64);
        if next > now + BURST {
            return Err(ApiError::new(
                ErrorCode::TooManyRequests,
                format!(
                    "client {} may ask {rate} times a second; try again in a second, or ask the operator for more",
                    client.client
                ),
            ));
        }
        used.requests = next;
        Ok(())
    }

    /// The pace of the client's bytes, over all its requests together.
    pub fn pace(&self, client: &ClientRecord) -> Pace {
        let rate = client.limits.bytes_per_s.filter(|rate| *rate > 0);
        Pace { meter: rate.map(|rate| (rate, self.meter(&client.client))) }
    }
}

/// Slows bytes down to a client's rate; the default does not.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    meter: Option<(u64, Meter)>,
}

impl Pace {
    /// How much of `len` bytes may go at once, so that a slow answer does not stand still.
    pub fn portion(&self, len: usize) -> usize {
        let Some((rate, _)) = &self.meter else { return len };
        let most = (rate / PIECES_PER_S).max(PIECE_LEN_MIN);
        usize::try_from(most).map_or(len, |most| len.min(most))
    }

    /// Waits until `len` more bytes are within the rate. Who asks first goes first.
    pub async fn take(&self, len: usize) {
        let Some((rate, meter)) = &self.meter else { return };
        let until = {
            let mut used = used(meter);
            used.bytes = used.bytes.max(Instant::now()) + Duration::from_secs_f64(len as f64 / *rate as f64);
            used.bytes
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use common::api::search::ClientLimits;
    use common::id::SiteId;
    use common::time::UnixMillis;

    use super::*;

    fn client(name: &str, requests_per_s: Option<u64>, bytes_per_s: Option<u64>) -> ClientRecord {
        ClientRecord {
            client: ClientId::new(name).unwrap(),
            site: SiteId::new("tokyo").unwrap(),
            disabled: false,
            created: UnixMillis(0),
            limits: ClientLimits { requests_per_s, bytes_per_s, ..ClientLimits::default() },
        }
    }

    fn admitted(limits: &Limits, client: &ClientRecord, times: usize) -> usize {
        (0..times).filter(|_| limits.admit(client).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_has_room_for_as_many_requests_as_the_rate_says() {
        let (limits, bob) = (Limits::default(), client("bob", Some(10), None));
        assert_eq!(admitted(&limits, &bob, 25), 10);
        let refused = limits.admit(&bob).unwrap_err();
        assert_eq!(refused.code, ErrorCode::TooManyRequests);
        tokio::time::advance(Duration::from_millis(501)).await;
        assert_eq!(admitted(&limits, &bob, 25), 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(admitted(&limits, &bob, 25), 10, "idle time is not saved up");
        assert_eq!(admitted(&limits, &client("carol", Some(1), None), 5), 1, "each client for itself");
        assert_eq!(admitted(&limits, &client("alice", None, None), 1000), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_all_requests_of_a_client_keep_to_its_rate() {
        let (limits, bob) = (Limits::default(), client("bob", None, Some(100_000)));
        let started = Instant::now();
        let send = async |pace: Pace| {
            let mut left = 100_000;
            while left > 0 {
                let piece = pace.portion(left);
                assert!(piece <= 5000);
                pace.take(piece).await;
                left -= piece;
            }
        };
        tokio::join!(send(limits.pace(&bob)), send(limits.pace(&bob)));
        let took = started.elapsed();
        assert!((1.99..2.01).contains(&took.as_secs_f64()), "{took:?}");
        let (free, started) = (limits.pace(&client("alice", None, None)), Instant::now());
        assert_eq!(free.portion(1 << 20), 1 << 20);
        free.take(1 << 30).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_of_clients_that_are_idle() {
        let limits = Limits::default();
        let kept = |limits: &Limits| limits.meters.lock().unwrap().clients.len();
        let pace = limits.pace(&client("client-0", None, Some(1)));
        for n in 1..SWEEP_MIN {
            limits.admit(&client(&format!("client-{n}"), Some(1), None)).unwrap();
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        limits.admit(&client("newcomer", Some(1), None)).unwrap();
        assert_eq!(kept(&limits), 2, "who is being sent something, and the newcomer");
        drop(pace);
    }
}
