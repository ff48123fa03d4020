//! How long a run warms up: a time, or until it makes no difference.

use std::str::FromStr;
use std::time::Duration;

use bench::plan::parse_duration;

/// Warming up by itself ends after this.
const SECONDS_MAX: usize = 60;
/// What comes after it: connections are made anew.
const AFTER_AUTO: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub enum Warmup {
    Time(Duration),
    Auto,
}

impl FromStr for Warmup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => parse_duration(text).map(Self::Time),
        }
    }
}

impl Warmup {
    /// The part that is planned.
    pub fn plan(self) -> Duration {
        match self {
            Self::Time(time) => time,
            Self::Auto => AFTER_AUTO,
        }
    }

    pub fn seconds_max(self) -> Option<usize> {
        matches!(self, Self::Auto).then_some(SECONDS_MAX)
    }
}
