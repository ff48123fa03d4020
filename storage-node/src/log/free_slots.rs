//! The slots that are free: those whose space was written before come first, since appends to it cost half.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The appender takes from it, the compactor gives to it, the prefiller turns slots of the second kind into ones of the
/// first.
pub(super) struct FreeSlots(Mutex<State>);

#[derive(Default)]
struct State {
    /// Their space was written before.
    written: VecDeque<u32>,
    /// Their space is still to be found by the file system, block by block.
    blank: VecDeque<u32>,
}

impl FreeSlots {
    pub fn new(slots: Vec<u32>, is_written: impl Fn(u32) -> bool) -> Self {
        let (written, blank) = slots.into_iter().partition(|slot| is_written(*slot));
        Self(Mutex::new(State { written, blank }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn len(&self) -> usize {
        let state = self.state();
        state.written.len() + state.blank.len()
    }

    pub fn written_len(&self) -> usize {
        self.state().written.len()
    }

    pub fn take(&self) -> Option<u32> {
        let mut state = self.state();
        state.written.pop_front().or_else(|| state.blank.pop_front())
    }

    /// Takes one whose space was not written before, if the others are enough by themselves.
    pub fn take_blank(&self, others_min: usize) -> Option<u32> {
        let mut state = self.state();
        if state.written.len() + state.blank.len() <= others_min {
            return None;
        }
        state.blank.pop_front()
    }

    pub fn give(&self, slot: u32, is_written: bool) {
        let mut state = self.state();
        if is_written { state.written.push_back(slot) } else { state.blank.push_front(slot) }
    }
}
