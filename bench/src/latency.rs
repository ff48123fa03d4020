//! Distributions of times: HDR histograms of three digits that merge without loss.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Durations in nanoseconds, three digits.
#[derive(Clone)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new(3).expect("3 is a number of digits that histograms have"))
    }
}

impl Latency {
    pub fn record(&mut self, duration: Duration) {
        // `saturating_record` would clip at the present range instead of growing.
        self.0.record(duration.as_nanos() as u64).expect("a histogram that grows takes every value");
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("a histogram that grows takes every value");
    }

    pub fn add(&mut self, buckets: &Buckets) {
        for (ns, count) in &buckets.0 {
            self.0.record_n(*ns, *count).expect("a histogram that grows takes every value");
        }
    }

    /// Values up to `duration`.
    pub fn count_up_to(&self, duration: Duration) -> u64 {
        self.0.count_between(0, duration.as_nanos() as u64)
    }

    /// `quantile` from 0 to 1.
    pub fn at(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(quantile))
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    pub fn mean_s(&self) -> f64 {
        self.0.mean() / 1e9
    }

    /// The counts so far, which begin anew.
    pub fn take_buckets(&mut self) -> Buckets {
        let counts = self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()));
        let buckets = Buckets(counts.collect());
        self.0.reset();
        buckets
    }

    pub fn summary(&self) -> LatencySummary {
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| us(self.0.value_at_quantile(quantile));
        LatencySummary {
            mean_us: self.0.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: us(self.0.max()),
        }
    }
}

/// A distribution as the buckets that have counts: nanoseconds and count, ascending. Small where [`Latency`] is quick.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Buckets(Vec<(u64, u64)>);

impl Buckets {
    pub fn merge(&mut self, other: &Self) {
        let mut all: BTreeMap<u64, u64> = self.0.iter().copied().collect();
        for (ns, count) in &other.0 {
            *all.entry(*ns).or_default() += count;
        }
        self.0 = all.into_iter().collect();
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Nanoseconds and counts, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    pub fn to_latency(&self) -> Latency {
        let mut latency = Latency::default();
        latency.add(self);
        latency
    }
}

/// From values in nanoseconds with counts, in any order.
impl FromIterator<(u64, u64)> for Buckets {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(counts: I) -> Self {
        let mut all: BTreeMap<u64, u64> = BTreeMap::new();
        for (ns, count) in counts {
            *all.entry(ns).or_default() += count;
        }
        Self(all.into_iter().collect())
    }
}

/// In a report: an HDR histogram of the V2 format in base64, as HdrHistogram's own tools read and write it. The values
/// are nanoseconds.
impl Serialize for Buckets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.to_latency().0, &mut bytes).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&BASE64.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Buckets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(&text).map_err(serde::de::Error::custom)?;
        let histogram: Histogram<u64> = hdrhistogram::serialization::Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(serde::de::Error::custom)?;
        Ok(Latency(histogram).take_buckets())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub p9999_us: f64,
    pub max_us: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_survives_a_report() {
        let mut latency = Latency::default();
        for us in [1, 20, 20, 3_000, 70_000_000] {
            latency.record(Duration::from_micros(us));
        }
        let summary = latency.summary();
        let buckets = latency.take_buckets();
        assert_eq!((buckets.count(), latency.count()), (5, 0));
        let text = serde_json::to_string(&buckets).unwrap();
        let back: Buckets = serde_json::from_str(&text).unwrap();
        assert_eq!(back, buckets);
        assert_eq!(back.to_latency().summary(), summary);
        assert!(serde_json::from_str::<Buckets>("\"no histogram\"").is_err());
    }
}
