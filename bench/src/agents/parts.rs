//! What one agent measured, in the form in which it travels; nothing is lost on the way but the text of a reference.

use std::collections::BTreeMap;
use std::time::Duration;

use common::id::DeliveryId;
use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::generator::ThreadTime;
use crate::latency::Buckets;
use crate::load::{Load, Publications};
use crate::measure::{Deliveries, Kind, Series, Tally};
use crate::plan::Op;
use crate::timeline::{Lane, Second, Timeline};

#[derive(Serialize, Deserialize)]
pub struct Parts {
    elapsed_s: f64,
    dropped: u64,
    lag: Buckets,
    series: Vec<(Kind, u64, u64, Buckets, Buckets)>,
    seconds: Vec<(u64, Lane, Second)>,
    errors: Vec<(Op, String, u64)>,
    whole: Vec<DeliveryId>,
    broken: Vec<DeliveryId>,
    in_part: Vec<DeliveryId>,
    unanswered: u64,
    sources: BTreeMap<String, u64>,
    classes: BTreeMap<String, u64>,
    wrong: u64,
    stale: u64,
    wrong_examples: Vec<String>,
    threads: Vec<ThreadTime>,
    written: Vec<(String, Content)>,
    unsure: Vec<String>,
    published: Vec<Publications>,
    one_hits_missing: u64,
    /// Of the agent's process, while the load was on.
    pub cpu_s: f64,
}

impl Parts {
    pub fn of(load: Load, cpu: Duration) -> Self {
        let Load { tally, elapsed, dropped, mut lag, threads, written, unsure, published, one_hits_missing } =
            load;
        let series = |(kind, mut series): (Kind, Series)| {
            let (response, service) = (series.response.take_buckets(), series.service.take_buckets());
            (kind, series.requests, series.bytes, response, service)
        };
        Self {
            elapsed_s: elapsed.as_secs_f64(),
            dropped,
            lag: lag.take_buckets(),
            series: tally.series.into_iter().map(series).collect(),
            seconds: tally
                .timeline
                .finish()
                .into_iter()
                .map(|((s, lane), second)| (s, lane, second))
                .collect(),
            errors: tally.errors.into_iter().map(|((op, code), count)| (op, code, count)).collect(),
            whole: tally.deliveries.whole.into_iter().collect(),
            broken: tally.deliveries.broken.into_iter().collect(),
            in_part: tally.deliveries.in_part.into_iter().collect(),
            unanswered: tally.deliveries.unanswered,
            sources: tally.deliveries.sources,
            classes: tally.deliveries.classes,
            wrong: tally.wrong,
            stale: tally.stale,
            wrong_examples: tally.wrong_examples,
            threads,
            written,
            unsure,
            published,
            one_hits_missing,
            cpu_s: cpu.as_secs_f64(),
        }
    }

    pub fn requests(&self) -> u64 {
        self.series.iter().map(|(_, requests, ..)| requests).sum()
    }

    /// Adds this to what other agents did.
    pub fn add_to(self, load: &mut Load) {
        let latency = |buckets: &Buckets| buckets.to_latency();
        let series = |(kind, requests, bytes, response, service): (_, _, _, Buckets, Buckets)| {
            (kind, Series { requests, bytes, response: latency(&response), service: latency(&service) })
        };
        load.tally.merge(Tally {
            series: self.series.into_iter().map(series).collect(),
            timeline: Timeline::of(
                self.seconds.into_iter().map(|(s, lane, second)| ((s, lane), second)).collect(),
            ),
            errors: self.errors.into_iter().map(|(op, code, count)| ((op, code), count)).collect(),
            deliveries: Deliveries {
                whole: self.whole.into_iter().collect(),
                broken: self.broken.into_iter().collect(),
                in_part: self.in_part.into_iter().collect(),
                unanswered: self.unanswered,
                sources: self.sources,
                classes: self.classes,
            },
            wrong: self.wrong,
            stale: self.stale,
            wrong_examples: self.wrong_examples,
        });
        load.elapsed = load.elapsed.max(Duration::try_from_secs_f64(self.elapsed_s).unwrap_or_default());
        load.dropped += self.dropped;
        load.lag.add(&self.lag);
        load.threads.extend(self.threads);
        load.written.extend(self.written);
        load.unsure.extend(self.unsure);
        load.published.extend(self.published);
        load.one_hits_missing += self.one_hits_missing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{SizeClass, Source, Times};

    fn load(ms: u64, delivery: u8) -> Load {
        let mut load = Load::none(Duration::from_secs(ms));
        let kind = Kind { op: Op::Get, source: Source::Hit, size: SizeClass::of(4096) };
        let times = Times { response: Duration::from_millis(ms), service: Duration::from_millis(1) };
        load.tally.record(kind, 4096, times, Duration::from_millis(1500), true);
        load.tally.error(Op::Put, "timeout", Duration::from_millis(2500));
        load.tally.deliveries.whole.insert(DeliveryId::from_bytes([delivery; 16]));
        load.tally.wrong("odd".into());
        load.dropped = 3;
        load.lag.record(Duration::from_micros(7));
        load.written.push((format!("w{delivery}"), Content::new(1, u64::from(delivery), 10)));
        load
    }

    #[test]
    fn results_travel_and_add_up() {
        let mut sum = Load::none(Duration::from_secs(1));
        for (ms, delivery) in [(2, 1), (40, 2)] {
            let sent = serde_json::to_string(&Parts::of(load(ms, delivery), Duration::from_secs(1))).unwrap();
            let parts: Parts = serde_json::from_str(&sent).unwrap();
            assert_eq!((parts.requests(), parts.cpu_s), (1, 1.0));
            parts.add_to(&mut sum);
        }
        assert_eq!((sum.dropped, sum.lag.count(), sum.elapsed), (6, 2, Duration::from_secs(40)));
        assert_eq!((sum.tally.wrong, sum.tally.deliveries.whole.len(), sum.written.len()), (2, 2, 2));
        assert_eq!(sum.written[1].1, Content::new(1, 2, 10));
        assert_eq!(sum.tally.error_count(Some(Op::Put)), 2);
        let total = sum.tally.total(None);
        assert_eq!((total.requests, total.response.count()), (2, 2));
        assert!(total.response.at(1.0) >= Duration::from_millis(40));
        let seconds = sum.tally.timeline.finish();
        assert_eq!(seconds[&(1, (Op::Get, Source::Hit))].requests, 2);
        assert_eq!(seconds[&(2, (Op::Put, Source::None))].errors, 2);
    }
}
