//! Runs on a machine that others use too, made from a seed: what the tests of honesty judge.

use super::sample::Sample;
use crate::content::Choices;
use crate::latency::Buckets;

/// A machine whose speed wanders, from second to second and from run to run.
pub struct Machine {
    choices: Choices,
    /// Logarithm of how slow the machine is at present.
    slowness: f64,
    runs_deviation: f64,
}

impl Machine {
    /// Of a machine at its usual speed.
    pub const REQUESTS_PER_S: f64 = 200.0;
    const MEDIAN_US: f64 = 2000.0;
    /// How much a second resembles the one before.
    const CORRELATION: f64 = 0.7;
    /// Standard deviation of the seconds' slowness.
    const SECONDS_DEVIATION: f64 = 0.03;
    /// Standard deviation of what differs from run to run: memory layout, order of connections.
    const RUNS_DEVIATION: f64 = 0.005;
    /// Different times in one second.
    const TIMES: usize = 20;

    pub fn new(seed: u64) -> Self {
        Self { choices: Choices::new(seed, 0x6d61_6368), slowness: 0.0, runs_deviation: Self::RUNS_DEVIATION }
    }

    /// Where no run differs from another but by its seconds.
    pub fn without_runs(seed: u64) -> Self {
        Self { runs_deviation: 0.0, ..Self::new(seed) }
    }

    /// A normal draw: twelve uniform ones come near enough.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.choices.unit()).sum::<f64>() - 6.0
    }

    /// A closed loop of so many seconds, in which the work takes `slower` times as long as usual.
    pub fn run(&mut self, seconds: usize, slower: f64) -> Sample {
        let of_run = self.runs_deviation * self.normal();
        let seconds: Vec<Buckets> = (0..seconds)
            .map(|_| {
                let new = Self::SECONDS_DEVIATION * (1.0 - Self::CORRELATION.powi(2)).sqrt() * self.normal();
                self.slowness = Self::CORRELATION * self.slowness + new;
                let factor = slower * (self.slowness + of_run).exp();
                self.second(factor)
            })
            .collect();
        Sample::from_seconds(seconds).expect("every second has requests")
    }

    fn second(&self, factor: f64) -> Buckets {
        // A long tail to the right, as times have; the same ranks each second.
        let time_ns = |nth: usize| {
            let rank = (nth as f64 + 0.5) / Self::TIMES as f64;
            (Self::MEDIAN_US * 1e3 * factor * (rank / (1.0 - rank)).sqrt()) as u64
        };
        let requests = (Self::REQUESTS_PER_S / factor).round() as usize;
        let count = |nth: usize| (requests * (nth + 1) / Self::TIMES - requests * nth / Self::TIMES) as u64;
        (0..Self::TIMES).map(|nth| (time_ns(nth), count(nth))).collect()
    }
}
