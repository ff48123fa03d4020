//! The open loop's clock: lets arrivals into a queue at their intended times, whatever becomes of those before.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::latency::Latency;

/// Times of a run.
#[derive(Clone, Copy)]
pub struct Span {
    pub start: Instant,
    pub measured_from: Instant,
    pub end: Instant,
}

/// A request that is to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// When it was meant to start.
    pub intended: Instant,
    /// Its number in the schedule, from 0.
    pub nth: u64,
}

/// Arrivals that wait for a connection.
pub struct Queue {
    waiting: Mutex<VecDeque<Arrival>>,
    /// One permit for each waiting arrival; closed when there will be no more.
    ready: Semaphore,
    /// Waiting or being served.
    outstanding: AtomicU64,
    dropped: AtomicU64,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            ready: Semaphore::new(0),
            outstanding: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Arrival>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, arrival: Arrival, max: u64) {
        if self.outstanding.load(Ordering::Relaxed) >= max {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        self.waiting().push_back(arrival);
        self.ready.add_permits(1);
    }

    /// An arrival has been served.
    pub fn served(&self) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
    }

    /// Arrivals that were never sent: beyond the cap, or still waiting when every worker has ended.
    pub fn never_sent(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed) + self.waiting().len() as u64
    }

    /// There will be no more arrivals: those that wait are still handed out.
    pub fn close(&self) {
        self.ready.close();
    }

    /// The next arrival; `None` when all are served.
    pub async fn next(&self) -> Option<Arrival> {
        if let Ok(permit) = self.ready.acquire().await {
            permit.forget();
        }
        self.waiting().pop_front()
    }
}

/// Lets arrivals into the queue at their intended times, until the end or until the queue is closed; runs on a thread of
/// its own.
pub fn pace(
    queue: &Queue,
    schedule: impl Iterator<Item = Duration>,
    in_flight_max: u64,
    span: Span,
) -> Latency {
    let mut lag = Latency::default();
    for (nth, offset) in (0..).zip(schedule) {
        let intended = span.start + offset;
        if intended >= span.end {
            break;
        }
        let now = Instant::now();
        if intended > now {
            std::thread::sleep(intended - now);
        }
        if queue.ready.is_closed() {
            break;
        }
        lag.record(intended.elapsed());
        queue.push(Arrival { intended, nth }, in_flight_max);
    }
    queue.ready.close();
    lag
}
