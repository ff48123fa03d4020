//! What an event did to the load, and when it was over, from the timeline.
//!
//! A second's throughput is what was answered in it. Before: the mean of up to half a minute, as far as nothing else
//! happened in it. The dip begins with the first second, within ten, that is below nine tenths of that; the load has
//! recovered with the first second after it from which three in a row are not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::latency::Latency;
use crate::report::TimelineRow;

const BEFORE_MAX_S: u64 = 30;
/// An effect that begins later is not counted as this event's.
const EFFECT_WITHIN_S: u64 = 10;
/// Share of the throughput before that counts as recovered.
const RECOVERED_SHARE: f64 = 0.9;
/// Seconds in a row that have to reach it, or as many as there are.
const STEADY_S: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// Answers a second before the event.
    pub before_per_s: f64,
    /// In the worst second, until recovery.
    pub lowest_per_s: f64,
    /// How far the worst second was below the mean before: 0 nothing, 1 nothing was answered.
    pub dip: f64,
    /// From the event until throughput was back at nine tenths of the mean before, in full seconds; `None`: not before
    /// the next event or the end.
    pub recovered_after_s: Option<u64>,
    /// Failed requests from the event until recovery.
    pub errors: u64,
    /// Answers that the mean before would have brought until recovery, and that did not come.
    pub missing: u64,
    /// Of the response time.
    pub p99_before_us: f64,
    /// With the second of recovery, in which what had waited was answered.
    pub p99_during_us: f64,
    pub p99_after_us: Option<f64>,
}

/// One second, all kinds together.
#[derive(Default)]
struct Second {
    requests: u64,
    errors: u64,
    response: Latency,
}

/// Seconds of a run that are compared.
pub struct Seconds {
    by_second: BTreeMap<u64, Second>,
    first: u64,
    /// The first that is not full any more.
    end: u64,
}

impl Seconds {
    /// `from_s..to_s` is the measured part; what is not a full second at its borders is left out.
    pub fn of(timeline: &[TimelineRow], from_s: f64, to_s: f64) -> Self {
        let (first, end) = (from_s.ceil() as u64, to_s.floor() as u64);
        let mut by_second: BTreeMap<u64, Second> = BTreeMap::new();
        for row in timeline.iter().filter(|row| (first..end).contains(&row.second)) {
            let second = by_second.entry(row.second).or_default();
            second.requests += row.requests;
            second.errors += row.errors;
            second.response.add(&row.response);
        }
        Self { by_second, first, end }
    }

    fn rate(&self, second: u64) -> f64 {
        self.by_second.get(&second).map_or(0.0, |second| second.requests as f64)
    }

    fn p99_us(&self, from: u64, to: u64) -> Option<f64> {
        let mut all = Latency::default();
        for second in self.by_second.range(from..to.max(from)).map(|(_, second)| second) {
            all.merge(&second.response);
        }
        (all.count() > 0).then(|| all.at(0.99).as_secs_f64() * 1e6)
    }

    /// What the event at `at_s` did. The events before and after it, if there are any, bound what is its own. `None`
    /// when there is no full second before or after it.
    pub fn recovery(&self, at_s: f64, previous_s: Option<f64>, next_s: Option<f64>) -> Option<Recovery> {
        let at = at_s.floor() as u64;
        let earliest =
            previous_s.map_or(self.first, |previous| (previous.floor() as u64 + 1).max(self.first));
        let begin = at.saturating_sub(BEFORE_MAX_S).max(earliest);
        let end = next_s.map_or(self.end, |next| (next.floor() as u64).min(self.end));
        if begin >= at || at >= end {
            return None;
        }
        let before_per_s = (begin..at).map(|second| self.rate(second)).sum::<f64>() / (at - begin) as f64;
        let is_well = |second: u64| self.rate(second) >= RECOVERED_SHARE * before_per_s;
        let dips = (at..end.min(at + EFFECT_WITHIN_S)).find(|second| !is_well(*second));
        let recovered = match dips {
            None => Some(at),
            Some(dips) => (dips..end).find(|from| (*from..end).take(STEADY_S).all(is_well)),
        };
        let until = recovered.unwrap_or(end);
        let lowest_per_s = (at..until.max(at + 1)).map(|second| self.rate(second)).fold(f64::MAX, f64::min);
        let short = |second: u64| (before_per_s - self.rate(second)).max(0.0);
        let missing = if dips.is_some() { (at..until).map(short).sum::<f64>() } else { 0.0 };
        let during_end = (until + 1).min(end);
        Some(Recovery {
            before_per_s,
            lowest_per_s,
            dip: if before_per_s > 0.0 { (1.0 - lowest_per_s / before_per_s).max(0.0) } else { 0.0 },
            recovered_after_s: recovered.map(|second| second - at),
            errors: self.by_second.range(at..during_end).map(|(_, second)| second.errors).sum(),
            missing: missing.round() as u64,
            p99_before_us: self.p99_us(begin, at).unwrap_or(0.0),
            p99_during_us: self.p99_us(at, during_end).unwrap_or(0.0),
            p99_after_us: self.p99_us(during_end, end),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::latency::Buckets;
    use crate::measure::Source;
    use crate::plan::Op;

    /// Rows of `(requests, errors, milliseconds)` from second 0 on.
    fn timeline(seconds: &[(u64, u64, u64)]) -> Vec<TimelineRow> {
        let row = |(second, (requests, errors, ms)): (usize, &(u64, u64, u64))| {
            let mut response = Latency::default();
            for _ in 0..*requests {
                response.record(Duration::from_millis(*ms));
            }
            TimelineRow {
                second: second as u64,
                op: Op::Get,
                source: Source::Hit,
                requests: *requests,
                bytes: 0,
                errors: *errors,
                response: response.take_buckets(),
                service: Buckets::default(),
            }
        };
        let rows = seconds.iter().enumerate().map(row);
        // Seconds without anything have no row.
        rows.filter(|row| row.requests + row.errors > 0).collect()
    }

    fn recovery(
        seconds: &[(u64, u64, u64)],
        at_s: f64,
        previous_s: Option<f64>,
        next_s: Option<f64>,
    ) -> Option<Recovery> {
        Seconds::of(&timeline(seconds), 0.0, seconds.len() as f64).recovery(at_s, previous_s, next_s)
    }

    const WELL: (u64, u64, u64) = (100, 0, 5);

    #[test]
    fn a_stall_is_found_with_its_depth_and_length() {
        let stall =
            [WELL, WELL, WELL, WELL, (40, 3, 5), (0, 0, 0), (0, 2, 0), (90, 0, 2500), WELL, WELL, WELL];
        let found = recovery(&stall, 4.3, None, None).unwrap();
        assert_eq!((found.before_per_s, found.lowest_per_s, found.dip), (100.0, 0.0, 1.0));
        assert_eq!(found.recovered_after_s, Some(3));
        assert_eq!((found.errors, found.missing), (5, 60 + 100 + 100));
        assert!(found.p99_before_us < 6e3 && found.p99_during_us > 2.4e6, "{found:?}");
        assert!(found.p99_after_us.unwrap() < 6e3);
    }

    #[test]
    fn what_changes_nothing_has_recovered_at_once() {
        let found = recovery(&[WELL, WELL, (95, 0, 5), (91, 1, 5), WELL], 2.5, None, None).unwrap();
        assert_eq!((found.recovered_after_s, found.missing, found.errors), (Some(0), 0, 0));
        assert!((found.dip - 0.05).abs() < 1e-9);
    }

    #[test]
    fn an_effect_that_begins_late_counts_and_one_good_second_is_no_recovery() {
        let late = [WELL, WELL, WELL, WELL, (10, 0, 5), WELL, (20, 0, 5), WELL, WELL, WELL];
        let found = recovery(&late, 2.0, None, None).unwrap();
        assert_eq!(found.recovered_after_s, Some(5));
        assert_eq!((found.lowest_per_s, found.missing), (10.0, 90 + 80));
        // Nothing is worse than before until the twelfth second.
        let mut much_later = vec![WELL; 20];
        much_later[14] = (0, 0, 0);
        assert_eq!(recovery(&much_later, 2.0, None, None).unwrap().recovered_after_s, Some(0));
    }

    #[test]
    fn neighbours_bound_what_is_an_events_own() {
        let paused = [WELL, WELL, WELL, (0, 0, 0), (0, 0, 0), (0, 0, 0), (200, 0, 3000), WELL, WELL];
        let pause = recovery(&paused, 3.0, None, Some(6.1)).unwrap();
        assert_eq!((pause.recovered_after_s, pause.dip), (None, 1.0));
        assert_eq!(pause.p99_after_us, None);
        // Between pause and resume there was nothing: what is back is better than before.
        let resume = recovery(&paused, 6.1, Some(3.0), None).unwrap();
        assert_eq!((resume.before_per_s, resume.recovered_after_s, resume.dip), (0.0, Some(0), 0.0));
    }

    #[test]
    fn without_seconds_to_compare_with_nothing_is_said() {
        assert_eq!(recovery(&[WELL, WELL, WELL], 0.5, None, None), None);
        assert_eq!(recovery(&[WELL, WELL, WELL], 3.5, None, None), None);
        assert_eq!(recovery(&[WELL, WELL, WELL], 2.1, Some(1.2), None), None);
    }

    #[test]
    fn the_borders_of_the_measured_part_are_not_full_seconds() {
        let seconds = [(7, 0, 5), (50, 0, 5), WELL, WELL, WELL, (30, 0, 5)];
        let found = Seconds::of(&timeline(&seconds), 1.3, 5.6).recovery(3.2, None, None).unwrap();
        assert_eq!((found.before_per_s, found.recovered_after_s), (100.0, Some(0)));
    }
}
