//! What a load has done so far, for those who look on while it runs. The generator's threads tell each second when it is
//! over; nothing here waits for a reader.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::latency::Latency;
use crate::timeline::{Lane, Second};

/// Seconds that are kept one by one.
const RECENT_MAX: usize = 120;

/// Answers of one kind, or of one second.
#[derive(Clone, Default)]
pub struct Done {
    pub requests: u64,
    pub bytes: u64,
    pub errors: u64,
    /// From the intended start.
    pub response: Latency,
    /// From sending.
    pub service: Latency,
}

impl Done {
    fn add(&mut self, part: &Second) {
        self.requests += part.requests;
        self.bytes += part.bytes;
        self.errors += part.errors;
        self.response.add(&part.response);
        self.service.add(&part.service);
    }
}

#[derive(Clone, Default)]
pub struct Snapshot {
    /// Since the start of the load.
    pub total: BTreeMap<Lane, Done>,
    /// The last seconds in which something was answered, of all kinds together, by their number since the start.
    pub recent: BTreeMap<u64, Done>,
    /// What was done to the system, as it happened.
    pub notes: Vec<String>,
}

/// Shared by the generator's threads and by who looks on.
#[derive(Default)]
pub struct Progress {
    snapshot: Mutex<Snapshot>,
    /// What was not passed on yet to somebody who adds it to a progress elsewhere; `None` if there is nobody.
    passed_on: Option<Mutex<BTreeMap<(u64, Lane), Second>>>,
}

impl Progress {
    /// One that also keeps what is told, to be passed on.
    pub fn to_pass_on() -> Self {
        Self { passed_on: Some(Mutex::default()), ..Self::default() }
    }

    /// What was told since the last time.
    pub fn take(&self) -> Vec<(u64, Lane, Second)> {
        let Some(waiting) = &self.passed_on else { return Vec::new() };
        let waiting = std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().map(|((second, lane), part)| (second, lane, part)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part of a second: one thread's, or one connection's.
    pub fn add(&self, second: u64, lane: Lane, part: &Second) {
        if let Some(waiting) = &self.passed_on {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.entry((second, lane)).or_default().merge(part.clone());
        }
        let mut snapshot = self.lock();
        snapshot.total.entry(lane).or_default().add(part);
        snapshot.recent.entry(second).or_default().add(part);
        while snapshot.recent.len() > RECENT_MAX {
            snapshot.recent.pop_first();
        }
    }

    pub fn note(&self, what: String) {
        self.lock().notes.push(what);
    }

    /// Lets `look` see what is there; the generator's threads wait meanwhile, so it is to be quick.
    pub fn look<T>(&self, look: impl FnOnce(&Snapshot) -> T) -> T {
        look(&self.lock())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::measure::{Kind, SizeClass, Source, Times};
    use crate::plan::Op;
    use crate::timeline::Timeline;

    #[test]
    fn seconds_are_told_once_they_are_over() {
        let progress = Arc::new(Progress::to_pass_on());
        let mut timeline = Timeline::default();
        timeline.tell(Some(progress.clone()));
        let kind = Kind { op: Op::Get, source: Source::Hit, size: SizeClass::of(1) };
        let took = Duration::from_millis(3);
        for ms in [100, 200, 1100] {
            let times = Times { response: took, service: took };
            timeline.record(kind, 10, times, Duration::from_millis(ms));
        }
        let told = progress.look(|snapshot| snapshot.total.values().map(|done| done.requests).sum::<u64>());
        assert_eq!(told, 2, "the second that runs is not told yet");
        timeline.finish();
        progress.look(|snapshot| {
            let requests: Vec<u64> = snapshot.recent.values().map(|done| done.requests).collect();
            assert_eq!(requests, [2, 1]);
            let total = &snapshot.total[&(Op::Get, Source::Hit)];
            assert_eq!((total.bytes, total.response.count()), (30, 3));
        });
        let elsewhere = Progress::default();
        progress.take().iter().for_each(|(second, lane, part)| elsewhere.add(*second, *lane, part));
        assert_eq!(elsewhere.look(|snapshot| snapshot.total[&(Op::Get, Source::Hit)].requests), 3);
        assert_eq!(progress.take(), []);
        for second in 10..1000 {
            progress.add(second, (Op::Get, Source::Hit), &Second::default());
        }
        assert_eq!(progress.look(|snapshot| snapshot.recent.len()), RECENT_MAX);
    }
}
