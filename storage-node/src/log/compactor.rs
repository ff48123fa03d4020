//! The thread that frees segments: mostly dead ones at leisure, any that gains something when slots get few. When it
//! has nothing else to do, and nobody else has, it writes free slots ahead.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::error::chain;

use super::batch::{Message, Work};
use super::compaction::{Compaction, CompactionError};
use super::segments::Segment;
use super::{LogError, Shared, prefill};
use crate::io::BLOCK;

/// How often it looks when nobody calls it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that a compaction at leisure reads and writes a second.
const LEISURE_BYTES_PER_S: f64 = (128 << 20) as f64;
/// A segment that could not be freed is left alone for this long.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Wakes a thread, or tells it to stop.
#[derive(Default)]
pub(super) struct Alarm {
    state: Mutex<AlarmState>,
    changed: Condvar,
}

#[derive(Default)]
struct AlarmState {
    rung: bool,
    stopped: bool,
}

impl Alarm {
    pub fn ring(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).rung = true;
        self.changed.notify_all();
    }

    pub fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.changed.notify_all();
    }

    /// Waits until rung, stopped or the time is over; false once stopped.
    fn wait(&self, limit: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = |state: &mut AlarmState| !state.rung && !state.stopped;
        let (mut state, _) =
            self.changed.wait_timeout_while(state, limit, quiet).unwrap_or_else(PoisonError::into_inner);
        state.rung = false;
        !state.stopped
    }

    /// Lets time pass; false once stopped.
    fn rest(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, time, |state| !state.stopped)
            .unwrap_or_else(PoisonError::into_inner);
        !state.stopped
    }
}

/// A segment to be freed.
pub(super) struct Victim {
    pub segment: Segment,
    /// Slots are few: no time to be lost.
    pub is_pressed: bool,
}

/// The segment that is freed at the least cost, if any is worth it. One whose rows are needed cannot be; if only such
/// ones are left, what they would give is noted for the catalog, which may raise the floor.
pub(super) fn choose(shared: &Shared, is_left_alone: impl Fn(&Segment) -> bool) -> Option<Victim> {
    let segments = shared.segments.all();
    let segment_bytes = shared.superblock.segment_bytes;
    let is_pressed = shared.is_pressed();
    // What freeing a segment gains: dead chunks, rows that are not needed, and headers that gathering spares.
    let gain = |segment: &Segment| {
        let live = shared.segments.live_bytes(segment.slot);
        segment.end.saturating_sub(BLOCK as u64 + live)
    };
    let gain_min = if is_pressed { segment_bytes / 16 } else { segment_bytes / 2 };
    let (_, sealed) = segments.split_last()?;
    let worth = sealed.iter().filter(|segment| !is_left_alone(segment) && gain(segment) >= gain_min);
    let (blocked, movable): (Vec<&Segment>, Vec<&Segment>) =
        worth.partition(|segment| shared.segments.needs_rows_of(segment));
    let best = movable.into_iter().min_by_key(|segment| shared.segments.live_bytes(segment.slot));
    let blocked_bytes = if best.is_none() { blocked.into_iter().map(gain).sum() } else { 0 };
    shared.blocked_bytes.store(blocked_bytes, Ordering::Release);
    best.map(|segment| Victim { segment: *segment, is_pressed })
}

pub(super) struct Compactor {
    shared: Arc<Shared>,
    messages: Sender<Message>,
}

impl Compactor {
    pub fn new(shared: Arc<Shared>, messages: Sender<Message>) -> Self {
        Self { shared, messages }
    }

    /// Until the log is closed or its last handle is gone.
    pub fn run(self) {
        let mut failed: HashMap<u64, Instant> = HashMap::new();
        let mut appended = 0;
        while self.shared.alarm.wait(LOOK_INTERVAL) {
            failed.retain(|_, at| at.elapsed() < RETRY_AFTER);
            while let Some(victim) = choose(&self.shared, |segment| failed.contains_key(&segment.sequence)) {
                let sequence = victim.segment.sequence;
                match self.compact(&victim) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(CompactionError::Log(LogError::Stopped)) => return,
                    Err(error) => {
                        tracing::warn!(segment = sequence, error = chain(&error), "a segment is not freed");
                        failed.insert(sequence, Instant::now());
                    }
                }
            }
            if let Err(error) = prefill::ahead(&self.shared, &mut appended) {
                tracing::warn!(%error, "a free slot cannot be written ahead");
            }
        }
    }

    /// Frees the segment; false when told to stop on the way.
    fn compact(&self, victim: &Victim) -> Result<bool, CompactionError> {
        let begun = Instant::now();
        let live_bytes = self.shared.segments.live_bytes(victim.segment.slot);
        let mut compaction = Compaction::begin(&self.shared, victim.segment)?;
        loop {
            let step_begun = Instant::now();
            let step = compaction.step()?;
            if step.work.is_empty() {
                break;
            }
            for work in step.work {
                self.send(work)?;
            }
            for answer in step.answers {
                answer.blocking_recv().unwrap_or(Err(LogError::Stopped))?;
            }
            let time = Duration::from_secs_f64(step.bytes as f64 / LEISURE_BYTES_PER_S);
            let left = time.saturating_sub(step_begun.elapsed());
            if !self.shared.alarm.rest(if victim.is_pressed { Duration::ZERO } else { left }) {
                return Ok(false);
            }
        }
        compaction.finish()?;
        let metrics = &self.shared.metrics;
        metrics.compactions.increment(1);
        metrics.compacted_bytes.increment(live_bytes);
        tracing::debug!(
            segment = victim.segment.sequence,
            live_bytes,
            seconds = begun.elapsed().as_secs_f64(),
            "a segment was freed"
        );
        Ok(true)
    }

    fn send(&self, work: Work) -> Result<(), LogError> {
        self.messages.send(Message::Work(work)).map_err(|_| LogError::Stopped)
    }
}
