//! Waiting between attempts: doubling, bounded, with jitter so that many do not return at once.

use std::time::Duration;

/// Delays for the attempts of one piece of work. Reset it when an attempt succeeds.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first }
    }

    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The delay before the next attempt: between half and the whole of the current step.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        let mut byte = [0u8; 1];
        crate::auth::fill_random(&mut byte);
        step / 2 + step / 2 * u32::from(byte[0]) / 255
    }
}
