//! When requests are meant to start, in an open loop: decided before the run and by nothing that the system does.

use std::time::Duration;

use crate::content::Choices;

/// How arrivals are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Independent of each other, as from many users.
    Poisson,
    /// Evenly spaced.
    Constant,
}

/// Intended starts, as times since the beginning of the run; never ends.
#[derive(Debug, Clone)]
pub struct Schedule {
    arrivals: Arrivals,
    /// Requests a second.
    rate: f64,
    choices: Choices,
    count: u64,
    /// Seconds.
    at: f64,
}

impl Schedule {
    /// `rate` is in requests a second and must be above 0.
    pub fn new(arrivals: Arrivals, rate: f64, seed: u64) -> Self {
        Self { arrivals, rate, choices: Choices::new(seed, 0x7363_6865), count: 0, at: 0.0 }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.at = match self.arrivals {
            // From the count, not by adding up: no rounding drift.
            Arrivals::Constant => self.count as f64 / self.rate,
            Arrivals::Poisson => self.at - (1.0 - self.choices.unit()).ln() / self.rate,
        };
        self.count += 1;
        Some(Duration::from_secs_f64(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(arrivals: Arrivals, rate: f64, count: usize) -> Vec<f64> {
        let times: Vec<Duration> = Schedule::new(arrivals, rate, 11).take(count + 1).collect();
        times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }

    #[test]
    fn constant_arrivals_keep_their_distance() {
        assert!(gaps(Arrivals::Constant, 250.0, 10_000).iter().all(|gap| (gap - 0.004).abs() < 1e-6));
    }

    #[test]
    fn poisson_gaps_are_exponential() {
        let (rate, count) = (2_000.0, 20_000);
        let mut gaps = gaps(Arrivals::Poisson, rate, count);
        gaps.sort_by(f64::total_cmp);
        // Kolmogorov-Smirnov: the largest distance between the sample's and the law's distribution.
        let distance = gaps.iter().enumerate().fold(0.0f64, |worst, (i, gap)| {
            let law = 1.0 - (-rate * gap).exp();
            let below = i as f64 / count as f64;
            worst.max((law - below).abs()).max((law - below - 1.0 / count as f64).abs())
        });
        assert!(distance < 1.63 / (count as f64).sqrt(), "{distance} is beyond the 1 % point");
    }

    #[test]
    fn poisson_gaps_do_not_depend_on_the_gap_before() {
        let gaps = gaps(Arrivals::Poisson, 1.0, 20_000);
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance: f64 = gaps.iter().map(|g| (g - mean).powi(2)).sum();
        let covariance: f64 = gaps.windows(2).map(|g| (g[0] - mean) * (g[1] - mean)).sum();
        assert!((covariance / variance).abs() < 0.03, "autocorrelation {}", covariance / variance);
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule() {
        let take = |seed| Schedule::new(Arrivals::Poisson, 100.0, seed).take(50).collect::<Vec<_>>();
        assert_eq!(take(5), take(5));
        assert_ne!(take(5), take(6));
    }
}
