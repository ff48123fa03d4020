//! What a run is to do: operations, sizes, pace, length, checks.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::schedule::Arrivals;
use crate::workload::trace::Trace;
use crate::workload::{Popular, Workload};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Get,
    Put,
    Head,
    /// The next piece of a download in ranges.
    Range,
    Delete,
    /// A listing, with all of its pages.
    List,
    /// A PUT in parts, with all of its requests.
    Multipart,
    /// A GET of a content that was published at another site a moment ago, and that the client's own has to collect.
    Collect,
    /// A GET at a gateway of another site, which the client visits with its card.
    Roam,
}

impl Op {
    pub const ALL: [Self; 9] = [
        Self::Get,
        Self::Put,
        Self::Head,
        Self::Range,
        Self::Delete,
        Self::List,
        Self::Multipart,
        Self::Collect,
        Self::Roam,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Head => "head",
            Self::Range => "range",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Multipart => "multipart",
            Self::Collect => "collect",
            Self::Roam => "roam",
        }
    }

    /// Whether its answers are deliveries.
    pub fn delivers(self) -> bool {
        matches!(self, Self::Get | Self::Range | Self::Collect | Self::Roam)
    }

    /// Whether it needs more than one site.
    pub fn crosses_sites(self) -> bool {
        matches!(self, Self::Collect | Self::Roam)
    }

    /// Whether it changes what is there.
    pub fn writes(self) -> bool {
        matches!(self, Self::Put | Self::Delete | Self::Multipart)
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|op| op.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not an operation: use {}", known()))
    }
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
    /// A trace's times; at 2 they pass twice as fast.
    Trace { time_scale: f64 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub workload: Workload,
    /// Requests at the times and of the objects of a trace, in place of the workload's.
    #[serde(skip)]
    pub trace: Option<Arc<Trace>>,
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

/// Ids of contents that are asked for once lie above those of popular objects, those of contents that PUTs make
/// above both, those of contents that are published to be collected above all.
const ONE_HIT_IDS: u64 = 1 << 39;
const PUT_IDS: u64 = 1 << 40;
const PUBLISHED_IDS: u64 = 1 << 63;

/// An object that is put before the run; its name is what [`std::fmt::Display`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    Popular(u64),
    /// Asked for once.
    OneHit(u64),
    Traced {
        id: u64,
        size_bytes: u64,
    },
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Popular(id) => write!(f, "o{id}"),
            Self::OneHit(nth) => write!(f, "h{nth}"),
            Self::Traced { id, size_bytes } => write!(f, "t{id}-{size_bytes}"),
        }
    }
}

impl Plan {
    /// What all keys of the run begin with: runs never meet.
    pub fn prefix(&self) -> String {
        format!("{:016x}/", self.seed)
    }

    pub fn content(&self, object: Object) -> Content {
        let id = match object {
            Object::Popular(id) => id,
            Object::OneHit(nth) => ONE_HIT_IDS + nth,
            Object::Traced { id, size_bytes } => return Content::new(self.seed, id, size_bytes),
        };
        Content::new(self.seed, id, self.workload.size.of(self.seed, id))
    }

    /// The `nth` content that `worker` puts: never the same bytes twice in one run.
    pub fn fresh(&self, worker: u64, nth: u64) -> Content {
        self.fresh_from(PUT_IDS, worker, nth)
    }

    fn fresh_from(&self, first_id: u64, worker: u64, nth: u64) -> Content {
        let id = first_id + (worker << 40) + nth;
        Content::new(self.seed, id, self.workload.size.of(self.seed, id))
    }

    /// Key and content of the `nth` that is published at another site for `worker` to collect.
    pub fn published(&self, worker: u64, nth: u64) -> (String, Content) {
        (format!("{}c{worker}-{nth}", self.prefix()), self.fresh_from(PUBLISHED_IDS, worker, nth))
    }

    pub fn popular(&self) -> Popular {
        let objects = self.workload.popular_objects().max(1);
        Popular::new(&self.workload.popularity, objects, self.seed)
    }

    /// Objects that are asked for once: as many as are told, or as the reads of an open loop will need. A closed loop's
    /// reads cannot be counted before: it has as many as there are popular ones.
    pub fn one_hit_objects(&self) -> u64 {
        /// Arrivals come by chance: a few more than expected are needed.
        const MARGIN: f64 = 1.1;
        let workload = &self.workload;
        if workload.one_hit_ratio == 0.0 || !workload.reads() || self.trace.is_some() {
            return 0;
        }
        let of_reads = workload.mix.share(|op| matches!(op, Op::Get | Op::Head | Op::Range));
        let expected = match self.pace {
            Pace::Closed | Pace::Trace { .. } => workload.objects,
            Pace::Open { rate, .. } => {
                let seconds = (self.warmup + self.duration).as_secs_f64();
                (rate * seconds * of_reads * workload.one_hit_ratio * MARGIN).ceil() as u64
            }
        };
        workload.one_hit_objects.unwrap_or(expected)
    }

    /// Every object that is to be there before the run.
    pub fn prepared(&self) -> Box<dyn Iterator<Item = Object> + Send + '_> {
        if let Some(trace) = &self.trace {
            let objects = trace.objects().into_iter();
            return Box::new(objects.map(|(id, size_bytes)| Object::Traced { id, size_bytes }));
        }
        let popular = (0..self.workload.popular_objects()).map(Object::Popular);
        Box::new(popular.chain((0..self.one_hit_objects()).map(Object::OneHit)))
    }

    /// Whether workers have something to make ready before the load begins.
    pub fn needs_time_before(&self) -> bool {
        self.ops().into_iter().any(Op::crosses_sites)
    }

    /// Operations that the run may send.
    pub fn ops(&self) -> Vec<Op> {
        match self.trace {
            Some(_) => vec![Op::Get],
            None => self.workload.mix.ops().collect(),
        }
    }
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
    use crate::workload::{Mix, Size};

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
    #[test]
    fn what_a_workload_needs_is_prepared() {
        let plan = |workload, pace| Plan {
            workload,
            trace: None,
            connections: 1,
            threads: 1,
            pace,
            in_flight_max: 1,
            warmup: Duration::from_secs(1),
            duration: Duration::from_secs(9),
            request_time_max: Duration::from_secs(1),
            verify: Verify::Off,
            seed: 1,
        };
        let gets = Workload::gets(Size::list(&[10]), 50);
        let prepared = |workload: &Workload, pace| {
            let plan = plan(workload.clone(), pace);
            (plan.workload.popular_objects(), plan.one_hit_objects(), plan.prepared().count() as u64)
        };
        assert_eq!(prepared(&gets, Pace::Closed), (50, 0, 50));
        let once = Workload { one_hit_ratio: 0.5, ..gets.clone() };
        assert_eq!(prepared(&once, Pace::Closed), (50, 50, 100));
        let open = Pace::Open { rate: 20.0, arrivals: Arrivals::Poisson };
        assert_eq!(
            prepared(&once, open),
            (50, 111, 161),
            "half of 200 arrivals, and a tenth more, rounded up"
        );
        let puts = Workload { mix: Mix::of([(Op::Put, 1.0)]), ..gets };
        assert_eq!(prepared(&puts, open), (0, 0, 0));
        assert_eq!(prepared(&Workload { dup_ratio: 0.5, ..puts }, open), (50, 0, 50));
    }
}
