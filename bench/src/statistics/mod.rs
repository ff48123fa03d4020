//! What can be said of runs and of the difference between them, and how surely.
//!
//! Seconds of one run are no independent draws: a neighbour on the machine, a compaction or a warm processor slows
//! several in a row. So intervals come from a bootstrap that draws blocks of seconds, not seconds; and what differs
//! from run to run, which no run shows by itself, is learnt from pairs of runs that took turns.
//!
//! | looking for | module |
//! |---|---|
//! | the measured seconds of a run | [`sample`] |
//! | intervals, by blocks of seconds | [`bootstrap`] |
//! | two runs, or pairs of runs, against each other, and a verdict | [`contrast`] |
//! | whether one set of values lies above another, by ranks | [`rank`] |
//! | reports against each other, told as tables | [`table`] |
//! | runs of a machine whose noise is known | `simulation` |
//!
//! Sources:
//! - H. R. Künsch, The jackknife and the bootstrap for general stationary observations, Annals of Statistics 17 (1989):
//!   moving blocks.
//! - D. N. Politis, J. P. Romano, A circular block-resampling procedure for stationary data, in Exploring the Limits
//!   of Bootstrap (1992): blocks that go round the end, so that every second counts alike.
//! - T. C. Hesterberg, What teachers should know about the bootstrap, American Statistician 69 (2015): percentile
//!   intervals are too narrow for few draws, and by which factor.
//! - H. B. Mann, D. R. Whitney, On a test of whether one of two random variables is stochastically larger than the
//!   other, Annals of Mathematical Statistics 18 (1947).
//! - D. J. Schuirmann, A comparison of the two one-sided tests procedure and the power approach, Journal of
//!   Pharmacokinetics and Biopharmaceutics 15 (1987): "same" has to be shown; that no difference was found does not.

pub mod bootstrap;
pub mod contrast;
pub mod rank;
pub mod sample;
#[cfg(test)]
mod simulation;
pub mod table;

use serde::{Deserialize, Serialize};

/// What is told of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Requests a second.
    Throughput,
    /// Of the response time, as those that follow; microseconds.
    Mean,
    P50,
    P99,
    P999,
}

impl Metric {
    pub const ALL: [Self; 5] = [Self::Throughput, Self::Mean, Self::P50, Self::P99, Self::P999];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Mean => "mean",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
        }
    }

    pub fn more_is_better(self) -> bool {
        self == Self::Throughput
    }

    /// A value with its unit.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Throughput => format!("{value:.1}/s"),
            _ => crate::report::show_us(value),
        }
    }
}

/// A value for each metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures([f64; Metric::ALL.len()]);

impl Figures {
    pub fn of(&self, metric: Metric) -> f64 {
        self.0[metric as usize]
    }
}

/// A value, and where it lies with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StatisticsError {
    #[error(
        "{seconds} measured seconds say nothing: at least {min} are needed, so run with a longer --duration"
    )]
    TooShort { seconds: usize, min: usize },
    #[error("no request of the measured seconds succeeded")]
    NoRequests,
    #[error("there is no pair of runs to compare")]
    NoPairs,
}
