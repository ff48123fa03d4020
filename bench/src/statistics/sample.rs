//! The measured seconds of a run: how many requests each had, and how long they took.

use std::collections::BTreeMap;

use super::{Figures, Metric, StatisticsError};
use crate::latency::Buckets;
use crate::plan::Op;
use crate::report::Report;

/// Fewer seconds than this make no two blocks.
pub const SECONDS_MIN: usize = 4;

/// One second. The times are places in the list of the run's different times, with counts.
#[derive(Debug, Clone, Default)]
struct Second {
    requests: u64,
    sum_us: f64,
    times: Vec<(u32, u64)>,
}

/// A run, second by second.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Different response times, ascending, in microseconds.
    times_us: Vec<f64>,
    seconds: Vec<Second>,
}

impl Sample {
    /// The seconds of a report that lie wholly within its measured part. `op`: one operation, or all.
    pub fn of(report: &Report, op: Option<Op>) -> Result<Self, StatisticsError> {
        let from = report.plan.warmup.as_secs_f64().ceil() as u64;
        let to = (report.plan.warmup + report.plan.duration).as_secs();
        let mut seconds: BTreeMap<u64, Buckets> =
            (from..to).map(|second| (second, Buckets::default())).collect();
        for row in report.timeline.iter().filter(|row| op.is_none_or(|op| op == row.op)) {
            if let Some(buckets) = seconds.get_mut(&row.second) {
                buckets.merge(&row.response);
            }
        }
        Self::from_seconds(seconds.into_values())
    }

    /// From the response times of each second, in their order.
    pub fn from_seconds(seconds: impl IntoIterator<Item = Buckets>) -> Result<Self, StatisticsError> {
        let buckets: Vec<Buckets> = seconds.into_iter().collect();
        if buckets.len() < SECONDS_MIN {
            return Err(StatisticsError::TooShort { seconds: buckets.len(), min: SECONDS_MIN });
        }
        let mut times_ns: Vec<u64> = buckets.iter().flat_map(|b| b.iter().map(|(ns, _)| ns)).collect();
        times_ns.sort_unstable();
        times_ns.dedup();
        if times_ns.is_empty() {
            return Err(StatisticsError::NoRequests);
        }
        let second = |buckets: &Buckets| {
            let mut second = Second { requests: buckets.count(), ..Second::default() };
            for (ns, count) in buckets.iter() {
                second.sum_us += ns as f64 / 1e3 * count as f64;
                second.times.push((times_ns.partition_point(|time| *time < ns) as u32, count));
            }
            second
        };
        let seconds = buckets.iter().map(second).collect();
        Ok(Self { times_us: times_ns.iter().map(|ns| *ns as f64 / 1e3).collect(), seconds })
    }

    /// Seconds that were measured.
    pub fn len(&self) -> usize {
        self.seconds.len()
    }

    /// Never: a sample has [`SECONDS_MIN`] seconds at least.
    pub fn is_empty(&self) -> bool {
        self.seconds.is_empty()
    }

    pub fn requests(&self) -> u64 {
        self.seconds.iter().map(|second| second.requests).sum()
    }

    pub fn figures(&self) -> Figures {
        self.figures_of(0..self.seconds.len(), &mut Vec::new())
    }

    /// The figures of some seconds, of which each may come several times. `counts` is room that calls share. The
    /// times are not numbers if no request was answered.
    pub(super) fn figures_of(&self, chosen: impl Iterator<Item = usize>, counts: &mut Vec<u64>) -> Figures {
        counts.clear();
        counts.resize(self.times_us.len(), 0);
        let (mut number, mut requests, mut sum_us) = (0u64, 0u64, 0.0);
        for second in chosen.map(|index| &self.seconds[index]) {
            number += 1;
            requests += second.requests;
            sum_us += second.sum_us;
            for (place, count) in &second.times {
                counts[*place as usize] += count;
            }
        }
        let mut figures = Figures([f64::NAN; Metric::ALL.len()]);
        figures.0[Metric::Throughput as usize] = requests as f64 / number as f64;
        figures.0[Metric::Mean as usize] = sum_us / requests as f64;
        let ranked = [(Metric::P50, 0.5), (Metric::P99, 0.99), (Metric::P999, 0.999)];
        let mut wanted = ranked.iter().peekable();
        let mut seen = 0;
        for (time_us, count) in self.times_us.iter().zip(counts) {
            seen += *count;
            while let Some((metric, quantile)) = wanted.peek()
                && seen > 0
                && seen as f64 >= quantile * requests as f64
            {
                figures.0[*metric as usize] = *time_us;
                wanted.next();
            }
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latency;
    use std::time::Duration;

    fn second(times_us: &[u64]) -> Buckets {
        let mut latency = Latency::default();
        for us in times_us {
            latency.record(Duration::from_micros(*us));
        }
        latency.take_buckets()
    }

    #[test]
    fn figures_are_those_of_the_seconds_together() {
        let seconds = [second(&[10, 20]), second(&[30; 96]), second(&[]), second(&[40, 500])];
        let sample = Sample::from_seconds(seconds).unwrap();
        let figures = sample.figures();
        assert_eq!(figures.of(Metric::Throughput), 25.0);
        let near = |metric, us: f64| (figures.of(metric) / us - 1.0).abs() < 0.001;
        assert!(near(Metric::Mean, 34.5) && near(Metric::P50, 30.0), "{figures:?}");
        assert!(near(Metric::P99, 40.0) && near(Metric::P999, 500.0), "{figures:?}");
    }

    #[test]
    fn too_little_is_refused_and_says_what_is_needed() {
        let short = Sample::from_seconds([second(&[1]), second(&[1])]).unwrap_err();
        assert_eq!(short, StatisticsError::TooShort { seconds: 2, min: 4 });
        let empty = Sample::from_seconds(vec![Buckets::default(); 10]).unwrap_err();
        assert_eq!(empty, StatisticsError::NoRequests);
    }
}
