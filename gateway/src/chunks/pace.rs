//! How quickly each node answers for chunks, as this gateway sees it.
//!
//! Two figures of each node, both moved a little by every answer: a mean, by which a node is told that is
//! clearly slower than others, and the 95th percentile, after which a second copy is asked for. What a node
//! did not do in time counts as if it had taken at least that long.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use common::id::NodeId;

/// A second copy is asked for after this long at the earliest, and at the latest.
const HEDGE_MIN: Duration = Duration::from_millis(20);
pub const HEDGE_MAX: Duration = Duration::from_secs(1);
/// A node without answers so far.
const P95_FIRST: f64 = 0.1;
/// The estimate stays within the hedge's bounds, so that it comes back from either end quickly.
const P95_STEP: f64 = 1.25;
const MEAN_SHARE: f64 = 0.1;
/// A mean of old answers counts half after so long: a node that was slow gets a new chance.
const MEAN_HALF_LIFE: Duration = Duration::from_secs(10);

/// The paces of all nodes.
#[derive(Default)]
pub struct Paces(RwLock<HashMap<NodeId, Arc<Pace>>>);

impl Paces {
    pub fn of(&self, node: &NodeId) -> Arc<Pace> {
        if let Some(pace) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(node) {
            return pace.clone();
        }
        self.0.write().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_default().clone()
    }
}

/// One node's pace.
pub struct Pace {
    state: Mutex<State>,
    /// Somebody waits for an answer that others have given up, to see whether the node hangs.
    pub is_watched: AtomicBool,
}

struct State {
    /// In seconds, as is `p95`.
    mean: f64,
    p95: f64,
    /// When the last answer came; `None` before the first.
    at: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        let state = State { mean: 0.0, p95: P95_FIRST, at: None };
        Self { state: Mutex::new(state), is_watched: AtomicBool::new(false) }
    }
}

impl Pace {
    /// An answer took so long, or has not come in so long.
    pub fn note(&self, took: Duration) {
        let took = took.as_secs_f64();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mean = state.mean_now();
        state.mean = if state.at.is_some() { mean + (took - mean) * MEAN_SHARE } else { took };
        // Up by 19 steps or down by one: at rest where one answer in twenty takes longer.
        let step = if took > state.p95 { P95_STEP.powf(0.95) } else { P95_STEP.powf(-0.05) };
        state.p95 = (state.p95 * step).clamp(HEDGE_MIN.as_secs_f64(), HEDGE_MAX.as_secs_f64());
        state.at = Some(Instant::now());
    }

    /// How long to wait for this node before another is asked as well.
    pub fn hedge_after(&self) -> Duration {
        Duration::from_secs_f64(self.state.lock().unwrap_or_else(PoisonError::into_inner).p95)
    }

    /// What an answer takes in the mean; `None` if nothing is known.
    pub fn mean(&self) -> Option<Duration> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.at.map(|_| Duration::from_secs_f64(state.mean_now()))
    }
}

impl State {
    fn mean_now(&self) -> f64 {
        let age = self.at.map_or(Duration::ZERO, |at| at.elapsed());
        self.mean * (-age.as_secs_f64() / MEAN_HALF_LIFE.as_secs_f64()).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hedge_comes_after_what_nineteen_in_twenty_answers_take() {
        let pace = Pace::default();
        for n in 0..4000u32 {
            // Evenly spread from 100 to 199 ms, in no order.
            pace.note(Duration::from_millis(u64::from(100 + n * 37 % 100)));
        }
        let after = pace.hedge_after().as_millis();
        assert!((180..=220).contains(&after), "{after} ms");
    }

    #[test]
    fn the_hedge_keeps_its_bounds() {
        let pace = Pace::default();
        (0..200).for_each(|_| pace.note(Duration::from_micros(300)));
        assert_eq!(pace.hedge_after(), HEDGE_MIN);
        (0..200).for_each(|_| pace.note(Duration::from_secs(10)));
        assert_eq!(pace.hedge_after(), HEDGE_MAX);
    }
}
