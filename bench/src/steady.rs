//! Warming up until it makes no difference: until the share of hits and the median have stopped moving, or time is up.
//!
//! Warming up is done in short loads that each end; what they measured is looked at and not told as results. What they
//! delivered counts for the books like all else.

use serde::{Deserialize, Serialize};

use crate::latency::Buckets;
use crate::measure::{Source, Tally};

/// Seconds that are looked at: the later half has to be as the earlier one.
const WINDOW: usize = 8;
/// Medians of halves may differ by this share: what a steady but shared machine shows.
const MEDIAN_TOLERANCE: f64 = 0.05;
/// Shares of hits may differ by this much.
const HITS_TOLERANCE: f64 = 0.01;

/// One second of warming up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// Of the response time.
    pub p50_us: f64,
    /// Answers that came from what the gateway or its site held already, of those that tell.
    pub hit_ratio: f64,
}

/// How a run was warmed up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WarmUp {
    pub seconds: usize,
    /// Whether it ended because nothing moved any more, not because time was up.
    pub steady: bool,
    pub beats: Vec<Beat>,
}

impl WarmUp {
    pub fn to_text(&self) -> String {
        match (self.steady, self.beats.last()) {
            (true, Some(last)) => format!(
                "steady after {} s of warming up: p50 {}, {:.1} % hits",
                self.seconds,
                crate::report::show_us(last.p50_us),
                last.hit_ratio * 100.0
            ),
            _ => {
                format!("not steady after {} s of warming up, so what was measured still moves", self.seconds)
            }
        }
    }
}

/// Whether the last seconds show no more change.
pub fn is_steady(beats: &[Beat]) -> bool {
    let Some(window) = beats.len().checked_sub(WINDOW).map(|start| &beats[start..]) else { return false };
    let (earlier, later) = window.split_at(WINDOW / 2);
    let hits = |half: &[Beat]| half.iter().map(|beat| beat.hit_ratio).sum::<f64>() / half.len() as f64;
    let (was, is) = (median(earlier), median(later));
    (is - was).abs() <= MEDIAN_TOLERANCE * was && (hits(later) - hits(earlier)).abs() <= HITS_TOLERANCE
}

fn median(half: &[Beat]) -> f64 {
    let mut times: Vec<f64> = half.iter().map(|beat| beat.p50_us).collect();
    times.sort_unstable_by(f64::total_cmp);
    (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0
}

/// The seconds of a load that begin within its first `whole` ones; those without an answer are left out.
pub fn beats(tally: &Tally, whole: u64) -> Vec<Beat> {
    let seconds = tally.timeline.clone().finish();
    let beat = |second| {
        let (mut all, mut hits, mut told) = (Buckets::default(), 0, 0);
        for ((_, (_, source)), row) in seconds.iter().filter(|((at, _), _)| *at == second) {
            all.merge(&row.response);
            hits += if *source == Source::Hit { row.requests } else { 0 };
            told += if *source == Source::None { 0 } else { row.requests };
        }
        let p50_us = (all.count() > 0).then(|| all.to_latency().at(0.5).as_secs_f64() * 1e6)?;
        // Where nothing tells of hits, there is nothing to warm.
        Some(Beat { p50_us, hit_ratio: if told > 0 { hits as f64 / told as f64 } else { 1.0 } })
    };
    (0..whole).filter_map(beat).collect()
}

/// Warms up with loads by `load`, which is given the number of the load and answers with its seconds, until it is steady
/// or `max_seconds` are over.
pub async fn warm_up<E>(
    max_seconds: usize,
    mut load: impl AsyncFnMut(u64) -> Result<Vec<Beat>, E>,
) -> Result<WarmUp, E> {
    let (mut all, mut nth) = (Vec::new(), 0);
    loop {
        let more = load(nth).await?;
        let silent = more.is_empty();
        all.extend(more);
        nth += 1;
        let steady = is_steady(&all);
        if steady || silent || all.len() >= max_seconds {
            return Ok(WarmUp { seconds: all.len(), steady, beats: all });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Choices;
    use std::convert::Infallible;

    /// A cache that fills: hits rise to 95 % and times fall with them, on a machine with a little noise.
    fn filling(second: usize, time_constant_s: f64, choices: &mut Choices) -> Beat {
        let hit_ratio = 0.95 * (1.0 - (-(second as f64) / time_constant_s).exp());
        let noise = 1.0 + 0.02 * (choices.unit() - 0.5);
        Beat { p50_us: (500.0 + 4_500.0 * (1.0 - hit_ratio)) * noise, hit_ratio }
    }

    async fn warmed(time_constant_s: f64, max_seconds: usize) -> WarmUp {
        let mut choices = Choices::new(5, 5);
        let mut second = 0;
        let load = async |_| {
            let beats = (0..4).map(|_| {
                second += 1;
                filling(second, time_constant_s, &mut choices)
            });
            Ok::<_, Infallible>(beats.collect())
        };
        warm_up(max_seconds, load).await.unwrap()
    }

    #[tokio::test]
    async fn warming_up_lasts_as_long_as_things_move() {
        let (quick, slow) = (warmed(0.5, 120).await, warmed(10.0, 120).await);
        assert!(quick.steady && quick.seconds <= 12, "{}", quick.to_text());
        assert!(slow.steady && (24..60).contains(&slow.seconds), "{}", slow.to_text());
        assert!(slow.beats.last().unwrap().hit_ratio > 0.9, "it was not over yet");
    }

    #[tokio::test]
    async fn warming_up_is_bounded_and_tells_that_it_was() {
        let never = warmed(100.0, 20).await;
        assert!(!never.steady && never.seconds == 20 && never.to_text().contains("not steady"));
        let silent = warm_up(20, async |_| Ok::<_, Infallible>(Vec::new())).await.unwrap();
        assert!(!silent.steady && silent.seconds == 0);
    }

    #[test]
    fn steady_means_medians_and_hits_alike() {
        let beat = |p50_us, hit_ratio| Beat { p50_us, hit_ratio };
        let flat = vec![beat(100.0, 0.9); WINDOW];
        assert!(is_steady(&flat) && !is_steady(&flat[1..]));
        let mut falling = flat.clone();
        falling[4..].fill(beat(90.0, 0.9));
        assert!(!is_steady(&falling));
        let mut warming = flat.clone();
        warming[4..].fill(beat(100.0, 0.93));
        assert!(!is_steady(&warming));
        let mut hiccup = flat;
        hiccup[6] = beat(900.0, 0.9);
        assert!(is_steady(&hiccup), "one second makes no trend");
    }
}
