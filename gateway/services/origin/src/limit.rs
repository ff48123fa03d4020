//! Bounds how many reads go on at a time, and how many wait for their turn.
//!
//! Fair between keys: who waits for different keys is served in turns, first come first served within a key. A
//! content that everybody wants so never keeps another from being read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// As many are waiting as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{inflight} reads are under way and {waiting} wait")]
pub struct Busy {
    pub inflight: usize,
    pub waiting: usize,
}

/// Cheap to clone; clones share the bound.
#[derive(Clone)]
pub struct Limit {
    shared: Arc<Shared>,
}

struct Shared {
    inflight_max: usize,
    waiting_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    inflight: usize,
    waiting: usize,
    /// Keys that somebody waits for, in the order of their next turn; none is there twice, none is empty.
    turns: VecDeque<(Arc<str>, VecDeque<oneshot::Sender<Permit>>)>,
}

/// The right to read; given on when it is dropped.
pub struct Permit {
    shared: Option<Arc<Shared>>,
}

impl Limit {
    /// `inflight_max` is at least 1.
    pub fn new(inflight_max: usize, waiting_max: usize) -> Self {
        let inflight_max = inflight_max.max(1);
        Self { shared: Arc::new(Shared { inflight_max, waiting_max, state: Mutex::default() }) }
    }

    /// Waits for the key's turn. Cancel safe: who no longer waits is passed over.
    pub async fn acquire(&self, key: &str) -> Result<Permit, Busy> {
        let turn = {
            let mut state = self.shared.lock();
            if state.inflight < self.shared.inflight_max {
                state.inflight += 1;
                return Ok(self.permit());
            }
            if state.waiting >= self.shared.waiting_max {
                state.forget_cancelled();
            }
            if state.waiting >= self.shared.waiting_max {
                return Err(Busy { inflight: state.inflight, waiting: state.waiting });
            }
            let (sender, turn) = oneshot::channel();
            state.waiting += 1;
            match state.turns.iter_mut().find(|(waiting_for, _)| **waiting_for == *key) {
                Some((_, waiting)) => waiting.push_back(sender),
                None => state.turns.push_back((key.into(), VecDeque::from([sender]))),
            }
            turn
        };
        // Senders are dropped only with the limit itself, which this call holds.
        turn.await.map_err(|_| Busy { inflight: self.shared.inflight_max, waiting: 0 })
    }

    /// Reads under way, and waiting.
    pub fn load(&self) -> (usize, usize) {
        let mut state = self.shared.lock();
        state.forget_cancelled();
        (state.inflight, state.waiting)
    }

    fn permit(&self) -> Permit {
        Permit { shared: Some(self.shared.clone()) }
    }
}

impl State {
    fn forget_cancelled(&mut self) {
        for (_, waiting) in &mut self.turns {
            waiting.retain(|sender| !sender.is_closed());
        }
        self.turns.retain(|(_, waiting)| !waiting.is_empty());
        self.waiting = self.turns.iter().map(|(_, waiting)| waiting.len()).sum();
    }

    fn next(&mut self) -> Option<oneshot::Sender<Permit>> {
        let (key, mut waiting) = self.turns.pop_front()?;
        let sender = waiting.pop_front()?;
        self.waiting -= 1;
        if !waiting.is_empty() {
            self.turns.push_back((key, waiting));
        }
        Some(sender)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        loop {
            // The lock is not held while a permit is handed over: one that comes back is dropped here.
            let next = {
                let mut state = shared.lock();
                let next = state.next();
                if next.is_none() {
                    state.inflight -= 1;
                }
                next
            };
            let Some(sender) = next else { return };
            match sender.send(Permit { shared: Some(shared.clone()) }) {
                Ok(()) => return,
                // Nobody waits any more; the right is still ours to give on.
                Err(mut returned) => drop(returned.shared.take()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn no_more_than_the_bound_are_under_way_and_no_more_than_the_queue_wait() {
        let limit = Limit::new(2, 3);
        let held = [limit.acquire("a").await.unwrap(), limit.acquire("a").await.unwrap()];
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let limit = limit.clone();
                tokio::spawn(async move { limit.acquire("a").await.map(drop) })
            })
            .collect();
        while limit.load() != (2, 3) {
            tokio::task::yield_now().await;
        }
        let busy = limit.acquire("b").await.err().unwrap();
        assert_eq!(busy, Busy { inflight: 2, waiting: 3 });
        drop(held);
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        assert_eq!(limit.load(), (0, 0));
    }

    #[tokio::test]
    async fn keys_take_turns_however_many_wait_for_one() {
        let limit = Limit::new(1, 100);
        let held = limit.acquire("x").await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for key in ["a", "a", "a", "a", "b", "c", "b"] {
            let (limit, order) = (limit.clone(), order.clone());
            let before = limit.load().1;
            let probe = limit.clone();
            tasks.push(tokio::spawn(async move {
                let permit = limit.acquire(key).await.unwrap();
                order.lock().unwrap().push(key);
                drop(permit);
            }));
            while probe.load().1 == before {
                tokio::task::yield_now().await;
            }
        }
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["a", "b", "c", "a", "b", "a", "a"]);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_is_passed_over_and_takes_no_place() {
        let limit = Limit::new(1, 1);
        let held = limit.acquire("a").await.unwrap();
        {
            let mut gives_up = Box::pin(limit.acquire("a"));
            assert!(futures_util::poll!(&mut gives_up).is_pending());
        }
        let mut waits = Box::pin(limit.acquire("b"));
        assert!(futures_util::poll!(&mut waits).is_pending(), "the place is free again");
        drop(held);
        drop(waits.await.unwrap());
        assert_eq!(limit.load(), (0, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_bound_holds_when_many_come_and_go() {
        let limit = Limit::new(3, 1000);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..300)
            .map(|i| {
                let (limit, now, most) = (limit.clone(), now.clone(), most.clone());
                tokio::spawn(async move {
                    let permit = limit.acquire(&(i % 7).to_string()).await.unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert_eq!(limit.load(), (0, 0));
    }
}
