//! What a run is to do: operations, sizes, pace, length, checks.

use std::time::Duration;

use common::config::parse_bytes;
use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::schedule::Arrivals;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Get,
    Put,
}

impl Op {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
        }
    }
}

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mix {
    Get,
    Put,
    /// GET and PUT by `--get-share`.
    Mixed,
}

/// How answers are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Every byte against the generator, and the ETag against the BLAKE3 of the generator's bytes.
    Full,
    /// The ETag and the length alone: costs the load generator almost nothing.
    Etag,
    /// Only the status.
    Off,
}

/// What makes the next request start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "loop")]
pub enum Pace {
    /// The answer to the one before, on each connection.
    Closed,
    /// The schedule, whatever the system does.
    Open { rate: f64, arrivals: Arrivals },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub mix: Mix,
    /// Share of GETs when mixed, 0 to 1.
    pub get_share: f64,
    /// Object `i` has the size `sizes[i % sizes.len()]`.
    pub sizes_bytes: Vec<u64>,
    /// Objects that GETs choose from, evenly.
    pub objects: u64,
    pub connections: usize,
    /// Threads of the load generator.
    pub threads: usize,
    pub pace: Pace,
    /// Open loop: most requests waiting or being served; those beyond are counted as dropped.
    pub in_flight_max: u64,
    #[serde(rename = "warmup_s", with = "seconds")]
    pub warmup: Duration,
    #[serde(rename = "duration_s", with = "seconds")]
    pub duration: Duration,
    /// Longest time that one request may take.
    #[serde(rename = "request_time_max_s", with = "seconds")]
    pub request_time_max: Duration,
    pub verify: Verify,
    pub seed: u64,
}

/// Durations as numbers of seconds.
mod seconds {
    use super::{Deserialize, Duration};

    pub fn serialize<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64())
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
    }
}

/// Ids of contents that PUTs make lie above those of prepared objects.
const PUT_IDS: u64 = 1 << 40;

impl Plan {
    pub fn size_of(&self, object: u64) -> u64 {
        self.sizes_bytes[(object % self.sizes_bytes.len() as u64) as usize]
    }

    /// A prepared object.
    pub fn object(&self, object: u64) -> Content {
        Content::new(self.seed, object, self.size_of(object))
    }

    /// The `nth` content that `worker` puts: never the same bytes twice in one run.
    pub fn fresh(&self, worker: u64, nth: u64) -> Content {
        Content::new(self.seed, PUT_IDS + (worker << 40) + nth, self.size_of(nth))
    }

    pub fn gets(&self) -> bool {
        self.mix != Mix::Put
    }
}

/// Reads a list of sizes, `4KiB,1MiB`.
pub fn parse_sizes(text: &str) -> Result<Vec<u64>, String> {
    text.split(',').map(|size| parse_bytes(size).map_err(|error| error.to_string())).collect()
}

/// Reads a time, `500ms`, `10s`, `5m` or `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds_per_unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text:?} is not a time: use a number and us, ms, s, m or h, as in 10s")),
    };
    let number: f64 = digits.trim().parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Duration::try_from_secs_f64(number * seconds_per_unit).map_err(|error| format!("{text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_lists_with_units() {
        assert_eq!(parse_sizes("4KiB,1MiB, 64MiB").unwrap(), [4096, 1 << 20, 64 << 20]);
        assert_eq!(parse_sizes("0").unwrap(), [0]);
        for bad in ["", "4KiB,", "x", "4 apples", "-1"] {
            assert!(parse_sizes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_duration("1500ms").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(parse_duration("250us").unwrap(), Duration::from_micros(250));
        for bad in ["", "5", "s", "-1s", "5 days", "1e400s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
