//! What a gateway knows of one source: its round trip, its throughput, whether it answers, what it has to do. The time
//! comes from the caller.

use std::time::{Duration, Instant};

use common::api::peer::PeerLoad;

/// After this time the newest measurement of a round trip weighs 1 - 1/e, and what was known before the rest.
const ROUND_TRIP_MEMORY: Duration = Duration::from_secs(10);
/// A round trip that was not measured for so long is unknown again.
const ROUND_TRIP_KEPT: Duration = Duration::from_secs(180);
/// The same for the pace, in bytes: a few chunks tell little, many tell all.
const PACE_MEMORY_BYTES: f64 = (4 << 20) as f64;
/// In this time without a fetch a pace loses all but 1/e of its worth.
const PACE_FADES: Duration = Duration::from_secs(120);
/// Fetches that overlap are measured together, over at least this time unless the last of them is done before.
const BUSY_MIN: Duration = Duration::from_millis(50);
/// A load that was told longer ago is of no use.
const LOAD_KEPT: Duration = Duration::from_secs(15);

/// Time between two probes of a source that was a candidate within [`WANTED_FOR`].
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Time between two probes of the others, or longer if there are very many.
const PROBE_SELDOM: Duration = Duration::from_secs(60);
const WANTED_FOR: Duration = Duration::from_secs(600);
/// A source that failed is probed again after this time, then after twice this time, and so on.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Connections that are not used for a while are closed; a first probe brings a new one.
const CONNECTION_KEPT: Duration = Duration::from_secs(20);

/// Taken for a round trip that is not known, in seconds.
pub const ROUND_TRIP_UNKNOWN: f64 = 0.25;

/// A smoothed value and when it was last measured.
#[derive(Debug, Clone, Copy)]
struct Smoothed {
    value: f64,
    at: Instant,
}

/// One source, by its address.
#[derive(Debug, Clone)]
pub struct Link {
    /// In seconds.
    round_trip: Option<Smoothed>,
    /// In seconds for a byte: these add up, where bytes a second do not.
    pace: Option<Smoothed>,
    /// Failures since the last success.
    failures: u32,
    next_probe: Instant,
    answered: Option<Instant>,
    wanted: Option<Instant>,
    chosen: Option<Instant>,
    /// Asked for by this gateway and not here yet.
    outstanding_bytes: u64,
    told: Option<(PeerLoad, Instant)>,
    window: Window,
}

/// Fetches since the last sample of the throughput.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    bytes: u64,
    /// Time in which at least one of them was on its way.
    busy: Duration,
    last_done: Option<Instant>,
}

/// What is known of a source at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// In seconds.
    pub round_trip: Option<f64>,
    /// Time for a byte when nothing else is asked for, in seconds.
    pub pace: Option<f64>,
    /// How much that is still worth, 0 to 1.
    pub confidence: f64,
    /// Bytes that the source has still to send.
    pub load_bytes: f64,
    /// Failures since the last success.
    pub failures: u32,
    /// A collection began with it lately.
    pub in_use: bool,
}

impl Link {
    pub fn new(first_probe: Instant) -> Self {
        Self {
            round_trip: None,
            pace: None,
            failures: 0,
            next_probe: first_probe,
            answered: None,
            wanted: None,
            chosen: None,
            outstanding_bytes: 0,
            told: None,
            window: Window::default(),
        }
    }

    pub fn known(&self, now: Instant) -> Known {
        let fresh = |smoothed: &Smoothed, kept| now.saturating_duration_since(smoothed.at) <= kept;
        let told = self.told.filter(|(_, at)| now.saturating_duration_since(*at) <= LOAD_KEPT);
        // What a source tells includes what this gateway asked of it.
        let load = told.map_or(0, |(load, _)| load.outstanding_bytes).max(self.outstanding_bytes);
        let age = self.pace.map_or(f64::INFINITY, |p| now.saturating_duration_since(p.at).as_secs_f64());
        Known {
            round_trip: self.round_trip.filter(|r| fresh(r, ROUND_TRIP_KEPT)).map(|r| r.value),
            pace: self.pace.map(|p| p.value),
            confidence: (-age / PACE_FADES.as_secs_f64()).exp(),
            load_bytes: load as f64,
            failures: self.failures,
            in_use: self.chosen.is_some_and(|at| now.saturating_duration_since(at) <= PROBE_EVERY * 4),
        }
    }

    /// It is a candidate: from now on it is probed often, and soon if that was not so before.
    pub fn want(&mut self, now: Instant) {
        if !self.is_wanted(now) && self.failures == 0 {
            self.next_probe = self.next_probe.min(now);
        }
        self.wanted = Some(now);
    }

    pub fn choose(&mut self, now: Instant) {
        self.chosen = Some(now);
    }

    pub fn is_wanted(&self, now: Instant) -> bool {
        self.wanted.is_some_and(|at| now.saturating_duration_since(at) <= WANTED_FOR)
    }

    pub fn next_probe(&self) -> Instant {
        self.next_probe
    }

    /// Its connection has to be made first, which is not to be measured.
    pub fn is_cold(&self, now: Instant) -> bool {
        self.answered.is_none_or(|at| now.saturating_duration_since(at) > CONNECTION_KEPT)
    }

    /// A probe begins; `jitter` is 0 to 1.
    pub fn probing(&mut self, now: Instant, jitter: f64) {
        let every = if self.is_wanted(now) { PROBE_EVERY } else { PROBE_SELDOM };
        self.next_probe = now + every.mul_f64(0.8 + 0.4 * jitter);
    }

    pub fn answered(&mut self, now: Instant, round_trip: Duration, load: Option<PeerLoad>) {
        let sample = round_trip.as_secs_f64();
        let value = match self.round_trip {
            // What is long ago weighs little; what was before a failure, nothing.
            Some(old) if self.failures == 0 => {
                let age = now.saturating_duration_since(old.at).as_secs_f64();
                let weight = 1.0 - (-age / ROUND_TRIP_MEMORY.as_secs_f64()).exp();
                old.value + weight * (sample - old.value)
            }
            _ => sample,
        };
        self.round_trip = Some(Smoothed { value, at: now });
        self.told = load.map(|load| (load, now));
        self.answered = Some(now);
        self.failures = 0;
    }

    /// A probe or a fetch failed; `jitter` is 0 to 1.
    pub fn failed(&mut self, now: Instant, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        let doublings = (self.failures - 1).min(16);
        let pause = (RETRY_FIRST * 2u32.pow(doublings)).min(RETRY_MAX);
        self.next_probe = now + pause.mul_f64(0.8 + 0.4 * jitter);
        self.answered = None;
    }

    pub fn fetching(&mut self, bytes: u64) {
        self.outstanding_bytes += bytes;
    }

    /// A fetch of `asked` bytes that began at `begun` brought `bytes`; none if it was refused or failed.
    pub fn fetched(&mut self, now: Instant, begun: Instant, asked: u64, bytes: u64) {
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(asked);
        if bytes > 0 {
            self.failures = 0;
            // The first byte takes a round trip, which counts for itself; fetches that overlap share their time.
            let first_byte = begun + Duration::from_secs_f64(self.round_trip.map_or(0.0, |r| r.value));
            let since = self.window.last_done.map_or(first_byte, |done| done.max(first_byte));
            self.window.busy += now.saturating_duration_since(since);
            self.window.bytes += bytes;
            self.window.last_done = Some(now);
        }
        if self.window.busy >= BUSY_MIN || self.outstanding_bytes == 0 {
            self.take_window(now);
        }
    }

    fn take_window(&mut self, now: Instant) {
        let Window { bytes, busy, last_done } = std::mem::take(&mut self.window);
        self.window.last_done = last_done.filter(|_| self.outstanding_bytes > 0);
        if bytes == 0 {
            return;
        }
        let sample = busy.as_secs_f64() / bytes as f64;
        let old = self.pace.map_or_else(|| pace_expected(self.round_trip.map(|r| r.value)), |p| p.value);
        let weight = 1.0 - (-(bytes as f64) / PACE_MEMORY_BYTES).exp();
        self.pace = Some(Smoothed { value: old + weight * (sample - old), at: now });
    }
}

/// Seconds for a byte of a source from which nothing was fetched yet: what a TCP connection with a window of usual
/// size brings over this round trip.
pub fn pace_expected(round_trip: Option<f64>) -> f64 {
    const WINDOW_BYTES: f64 = (1 << 20) as f64;
    const FASTEST: f64 = 1.0 / (1u64 << 30) as f64;
    (round_trip.unwrap_or(ROUND_TRIP_UNKNOWN) / WINDOW_BYTES).max(FASTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MIB: u64 = 1 << 20;

    fn link() -> (Link, Instant) {
        let now = Instant::now();
        (Link::new(now), now)
    }

    fn round_trip_ms(link: &Link, now: Instant) -> Option<f64> {
        link.known(now).round_trip.map(|seconds| (seconds * 1e3).round())
    }

    #[test]
    fn a_round_trip_follows_a_change_within_a_few_probes_and_one_outlier_does_not_carry_it_away() {
        let (mut link, mut now) = link();
        for _ in 0..10 {
            link.answered(now, 2 * MS, None);
            now += PROBE_EVERY;
        }
        assert_eq!(round_trip_ms(&link, now), Some(2.0));
        link.answered(now, 102 * MS, None);
        assert_eq!(round_trip_ms(&link, now), Some(41.0));
        for _ in 0..3 {
            now += PROBE_EVERY;
            link.answered(now, 102 * MS, None);
        }
        assert!(round_trip_ms(&link, now).unwrap() > 85.0);
        // Measured many times at once, as on demand: that is one measurement.
        for _ in 0..10 {
            link.answered(now, 2 * MS, None);
        }
        assert!(round_trip_ms(&link, now).unwrap() > 85.0);
    }

    #[test]
    fn what_is_old_is_unknown_again() {
        let (mut link, now) = link();
        link.answered(now, 2 * MS, Some(PeerLoad { outstanding_bytes: 7 }));
        link.fetching(MIB);
        link.fetched(now + 10 * MS, now, MIB, MIB);
        let known = link.known(now + 10 * MS);
        assert_eq!((known.round_trip.is_some(), known.load_bytes, known.confidence), (true, 7.0, 1.0));
        let later = link.known(now + LOAD_KEPT * 2);
        assert_eq!((later.round_trip.is_some(), later.load_bytes), (true, 0.0));
        let much_later = link.known(now + ROUND_TRIP_KEPT * 3);
        assert_eq!(much_later.round_trip, None);
        assert!(much_later.confidence < 0.02 && much_later.pace.is_some());
    }

    /// Chunks of 1 MiB, `at_once` on their way, over 20 ms and 100 MiB/s.
    fn pace_of(at_once: u32) -> f64 {
        let (mut link, mut now) = link();
        link.answered(now, 20 * MS, None);
        for _ in 0..40 {
            (0..at_once).for_each(|_| link.fetching(MIB));
            let begun = now;
            for nth in 1..=at_once {
                now = begun + 20 * MS + 10 * MS * nth;
                link.fetched(now, begun, MIB, MIB);
            }
        }
        1.0 / link.known(now).pace.unwrap() / MIB as f64
    }

    #[test]
    fn fetches_one_after_the_other_and_many_at_once_tell_the_same_throughput() {
        for at_once in [1, 4, 16] {
            let mib_per_s = pace_of(at_once);
            assert!((99.0..101.0).contains(&mib_per_s), "{at_once} at once: {mib_per_s} MiB/s");
        }
    }

    #[test]
    fn a_small_chunk_says_little_of_the_throughput() {
        let (mut link, now) = link();
        link.answered(now, 20 * MS, None);
        let expected = pace_expected(Some(0.02));
        link.fetching(100);
        link.fetched(now + 40 * MS, now, 100, 100);
        let pace = link.known(now).pace.unwrap();
        assert!(pace > expected && pace < expected * 1.5, "{pace} after {expected}");
    }

    #[test]
    fn a_source_that_failed_is_probed_soon_then_more_and_more_seldom() {
        let (mut link, now) = link();
        link.answered(now, MS, None);
        link.probing(now, 0.5);
        assert!(link.next_probe() >= now + PROBE_SELDOM, "nobody wants it");
        link.want(now);
        assert_eq!(link.next_probe(), now);
        link.probing(now, 0.5);
        link.want(now);
        assert_eq!(link.next_probe(), now + PROBE_EVERY);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            link.failed(now, 0.5);
            pauses.push(link.next_probe() - now);
        }
        assert_eq!(pauses[0], RETRY_FIRST);
        assert!(pauses.is_sorted() && pauses.last() == Some(&RETRY_MAX), "{pauses:?}");
        assert_eq!(link.known(now).failures, 12);
        link.answered(now, 5 * MS, None);
        assert_eq!((link.known(now).failures, round_trip_ms(&link, now)), (0, Some(5.0)), "what was is past");
    }

    #[test]
    fn outstanding_bytes_are_counted_until_the_fetch_is_over_however_it_ends() {
        let (mut link, now) = link();
        link.fetching(MIB);
        link.fetching(MIB);
        assert_eq!(link.known(now).load_bytes, 2.0 * MIB as f64);
        link.fetched(now, now, MIB, 0);
        link.fetched(now, now, MIB, MIB);
        assert_eq!(link.known(now).load_bytes, 0.0);
    }
}
