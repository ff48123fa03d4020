//! One run against another, or pairs of runs that took turns: ratios with intervals, and a verdict.
//!
//! The estimate is the mean over pairs of the logarithm of after / before: what slows both runs of a pair falls out.
//! Its interval is the wider of two:
//! - from blocks of seconds within the runs: what one pair can know;
//! - from [`PAIRS_FOR_SPREAD`] pairs on, from drawing whole pairs: it also sees what differs from run to run.
//!
//! Fewer pairs cannot see that runs differ by themselves. The margin has to cover that: for a verdict of better or worse
//! the whole interval must then lie beyond it.

use serde::{Deserialize, Serialize};

use super::bootstrap::{RESAMPLES, block_seconds, interval, redraw, student_t95};
use super::rank::mann_whitney_p;
use super::sample::Sample;
use super::{Figures, Metric, StatisticsError};
use crate::content::Choices;

/// Differences up to this share are no difference: what one machine shows from one hour to the next. Half of what has
/// to be found (5 %) and a little.
pub const MARGIN: f64 = 0.03;
/// Fewer pairs do not tell how much runs differ: Student's t for three pairs is 4.3.
const PAIRS_FOR_SPREAD: usize = 4;
/// Of the normal distribution, one-sided 80 %: how often the least detectable effect would be found.
const Z80: f64 = 0.841_621;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The interval excludes 1, and the estimate lies beyond the margin on the good side; with fewer than
    /// four pairs, the whole interval lies beyond the margin.
    Better,
    /// As better, on the bad side.
    Worse,
    /// The whole interval lies within the margin.
    Same,
    /// Neither was shown: more pairs, or longer runs, would tell.
    Undecided,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::Undecided => "undecided",
        }
    }
}

/// How a comparison is made.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// See [`MARGIN`].
    pub margin: f64,
    pub resamples: usize,
    pub seed: u64,
}

impl Default for Method {
    fn default() -> Self {
        Self { margin: MARGIN, resamples: RESAMPLES, seed: 1 }
    }
}

/// One metric of two things that were measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Contrast {
    pub metric: Metric,
    /// Geometric means over the pairs: requests a second, or microseconds.
    pub before: f64,
    pub after: f64,
    /// After by before.
    pub ratio: f64,
    /// Where the ratio lies with 95 % confidence; absent if nothing can be said.
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// The least change, as a share, that a comparison like this one finds four times of five.
    pub detectable: Option<f64>,
    /// Probability by the U test that blocks so different come from one distribution.
    pub mann_whitney_p: f64,
    pub verdict: Verdict,
}

/// Compares pairs of (before, after), for each metric of [`Metric::ALL`] that every run has requests enough for.
pub fn contrast(pairs: &[(Sample, Sample)], method: Method) -> Result<Vec<Contrast>, StatisticsError> {
    let mut choices = Choices::new(method.seed, 0x7061_6972);
    let mut counts = Vec::new();
    let drawn: Vec<Vec<(Figures, Figures)>> = pairs
        .iter()
        .map(|(before, after)| {
            let mut draw = |sample| redraw(sample, &mut choices, &mut counts);
            (0..method.resamples).map(|_| (draw(before), draw(after))).collect()
        })
        .collect();
    let measured: Vec<(Figures, Figures)> =
        pairs.iter().map(|(before, after)| (before.figures(), after.figures())).collect();
    if measured.is_empty() {
        return Err(StatisticsError::NoPairs);
    }
    let one = |metric: Metric| {
        let by_pair: Vec<f64> = measured.iter().map(|pair| log_ratio(*pair, metric)).collect();
        let log = mean(by_pair.iter().copied());
        let within =
            (0..method.resamples).map(|nth| mean(drawn.iter().map(|draws| log_ratio(draws[nth], metric))));
        let blocks: usize = pairs.iter().map(|(a, b)| blocks(a).min(blocks(b))).sum();
        let (mut low, mut high) = interval(log, within.collect(), blocks);
        let mut units = blocks;
        let spread_known = by_pair.len() >= PAIRS_FOR_SPREAD;
        if spread_known {
            let mut pick = |_| by_pair[choices.below(by_pair.len() as u64) as usize];
            let redrawn = (0..method.resamples).map(|_| mean((0..by_pair.len()).map(&mut pick)));
            let (pairs_low, pairs_high) = interval(log, redrawn.collect(), by_pair.len());
            if pairs_high - pairs_low > high - low {
                units = by_pair.len();
            }
            (low, high) = (low.min(pairs_low), high.max(pairs_high));
        }
        let t = student_t95(units.saturating_sub(1).max(1));
        let beyond = if spread_known { 0.0 } else { method.margin.ln_1p() };
        let detectable = (beyond + (high - low) / 2.0 * (1.0 + Z80 / t)).exp() - 1.0;
        let (before_blocks, after_blocks) = block_values(pairs, metric);
        let finite = |value: f64| value.is_finite().then_some(value);
        Contrast {
            metric,
            before: mean(measured.iter().map(|(before, _)| before.of(metric).ln())).exp(),
            after: mean(measured.iter().map(|(_, after)| after.of(metric).ln())).exp(),
            ratio: log.exp(),
            low: finite(low.exp()),
            high: finite(high.exp()),
            detectable: finite(detectable.max(method.margin)),
            mann_whitney_p: mann_whitney_p(&before_blocks, &after_blocks),
            verdict: judge(metric, log, (low, high), method.margin, spread_known),
        }
    };
    let fewest =
        pairs.iter().map(|(before, after)| before.requests().min(after.requests())).min().unwrap_or(0);
    Ok(Metric::ALL.into_iter().filter(|metric| fewest >= requests_min(*metric)).map(one).collect())
}

/// Fewer requests leave fewer than ten beyond the quantile, and these are chance.
fn requests_min(metric: Metric) -> u64 {
    match metric {
        Metric::Throughput | Metric::Mean | Metric::P50 => 1,
        Metric::P99 => 1_000,
        Metric::P999 => 10_000,
    }
}

fn judge(metric: Metric, log: f64, (low, high): (f64, f64), margin: f64, spread_known: bool) -> Verdict {
    let margin = margin.ln_1p();
    if low > -margin && high < margin {
        return Verdict::Same;
    }
    let sure = if spread_known { 0.0 } else { margin };
    let more = low > sure && log > margin;
    let less = high < -sure && log < -margin;
    match (more, less) {
        (true, _) if metric.more_is_better() => Verdict::Better,
        (true, _) => Verdict::Worse,
        (_, true) if metric.more_is_better() => Verdict::Worse,
        (_, true) => Verdict::Better,
        _ => Verdict::Undecided,
    }
}

fn log_ratio((before, after): (Figures, Figures), metric: Metric) -> f64 {
    (after.of(metric) / before.of(metric)).ln()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

fn blocks(sample: &Sample) -> usize {
    sample.len() / block_seconds(sample.len())
}

/// The metric of every block of every run, before and after. Blocks, because single seconds hang together.
fn block_values(pairs: &[(Sample, Sample)], metric: Metric) -> (Vec<f64>, Vec<f64>) {
    let mut counts = Vec::new();
    let mut of = |sample: &Sample| -> Vec<f64> {
        let block = block_seconds(sample.len());
        let value = |start| sample.figures_of(start..start + block, &mut counts).of(metric);
        let values = (0..blocks(sample)).map(|nth| nth * block).map(value);
        values.filter(|value| value.is_finite()).collect()
    };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for pair in pairs {
        before.extend(of(&pair.0));
        after.extend(of(&pair.1));
    }
    (before, after)
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Machine;
    use super::*;
    use crate::latency::Buckets;
    use crate::load::{Stage, drive};
    use crate::plan::Plan;
    use crate::testing::{Server, Work, closed_loop};
    use std::collections::BTreeMap;
    use std::time::Duration;

    const RUN_SECONDS: usize = 30;
    const PAIRS: usize = 15;

    /// Pairs that take turns, A B B A; `slower`: what B's answers take longer by, as a factor.
    fn interleaved(seed: u64, pairs: usize, slower: f64) -> Vec<(Sample, Sample)> {
        let mut machine = Machine::new(seed);
        let pair = |nth: usize| {
            if nth.is_multiple_of(2) {
                let before = machine.run(RUN_SECONDS, 1.0);
                (before, machine.run(RUN_SECONDS, slower))
            } else {
                let after = machine.run(RUN_SECONDS, slower);
                (machine.run(RUN_SECONDS, 1.0), after)
            }
        };
        (0..pairs).map(pair).collect()
    }

    /// How often each verdict is given in so many comparisons.
    fn verdicts(comparisons: u64, pairs: usize, slower: f64) -> BTreeMap<(Metric, Verdict), u64> {
        let mut count = BTreeMap::new();
        for seed in 0..comparisons {
            let method = Method { resamples: 80, seed, ..Method::default() };
            for found in contrast(&interleaved(seed, pairs, slower), method).unwrap() {
                *count.entry((found.metric, found.verdict)).or_default() += 1;
            }
        }
        println!("{pairs} pairs, slower by {slower}: {count:?}");
        count
    }

    fn share(count: &BTreeMap<(Metric, Verdict), u64>, metric: Metric, verdict: Verdict) -> f64 {
        let total: u64 = count.iter().filter(|((m, _), _)| *m == metric).map(|(_, count)| count).sum();
        count.get(&(metric, verdict)).copied().unwrap_or(0) as f64 / total as f64
    }

    const TOLD: [Metric; 4] = [Metric::Throughput, Metric::Mean, Metric::P50, Metric::P99];

    #[test]
    fn what_is_the_same_is_called_the_same() {
        let count = verdicts(40, PAIRS, 1.0);
        for metric in TOLD {
            assert!(share(&count, metric, Verdict::Same) >= 0.95, "{metric:?}: {count:?}");
            assert_eq!(share(&count, metric, Verdict::Worse), 0.0, "{metric:?}: {count:?}");
            assert_eq!(share(&count, metric, Verdict::Better), 0.0, "{metric:?}: {count:?}");
        }
    }

    #[test]
    fn what_is_slower_by_5_percent_is_called_worse() {
        let count = verdicts(30, PAIRS, 1.05);
        for metric in TOLD {
            assert!(share(&count, metric, Verdict::Worse) >= 0.95, "{metric:?}: {count:?}");
        }
        let faster = verdicts(10, PAIRS, 1.0 / 1.05);
        assert!(share(&faster, Metric::Throughput, Verdict::Better) >= 0.9, "{faster:?}");
    }

    /// With little to go by, the answer is that nothing is known, not a wrong one.
    #[test]
    fn few_pairs_are_undecided_rather_than_wrong() {
        for pairs in [1, 5] {
            let count = verdicts(40, pairs, 1.0);
            for metric in TOLD {
                let wrong = share(&count, metric, Verdict::Worse) + share(&count, metric, Verdict::Better);
                assert!(wrong <= 0.05, "{pairs} pairs, {metric:?}: {count:?}");
            }
        }
    }

    #[test]
    fn the_least_detectable_effect_shrinks_with_pairs_and_is_told() {
        let detectable = |pairs| {
            let found = contrast(&interleaved(3, pairs, 1.0), Method::default()).unwrap();
            found[Metric::Throughput as usize].detectable.unwrap()
        };
        let (few, many) = (detectable(4), detectable(16));
        assert!(many < few && (MARGIN..0.05).contains(&many), "{few} with few, {many} with many");
    }

    /// A server of which each answer takes so long, under a closed loop of a few connections.
    async fn measured(answer_time: Duration) -> Sample {
        let plan = Plan { warmup: Duration::from_secs(1), ..closed_loop(4, Duration::from_secs(6)) };
        let target = Server::start(Work { answer_time, at_once: usize::MAX }).await;
        let load = drive(&plan, &target, &Stage::default()).await.unwrap();
        let seconds = load.tally.timeline.finish();
        let of = |second| seconds.iter().filter(move |((at, _), _)| *at == second).map(|(_, s)| &s.response);
        let merged = |second| {
            of(second).fold(Buckets::default(), |mut sum, part| {
                sum.merge(part);
                sum
            })
        };
        Sample::from_seconds((1..7).map(merged)).unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_was_made_slower_is_called_worse() {
        let (quick, slow) =
            (measured(Duration::from_millis(1)).await, measured(Duration::from_millis(60)).await);
        let found = contrast(&[(quick.clone(), slow.clone())], Method::default()).unwrap();
        let back = contrast(&[(slow, quick)], Method::default()).unwrap();
        for metric in [Metric::Throughput, Metric::Mean, Metric::P50] {
            let verdict = |found: &[Contrast]| found[metric as usize].verdict;
            assert_eq!((verdict(&found), verdict(&back)), (Verdict::Worse, Verdict::Better), "{found:?}");
        }
    }

    #[test]
    fn verdicts_need_both_certainty_and_size() {
        let judge = |metric, log, low, high| judge(metric, log, (low, high), 0.03, true);
        assert_eq!(judge(Metric::P99, 0.01, 0.005, 0.015), Verdict::Same, "sure, and too small to matter");
        assert_eq!(judge(Metric::P99, 0.05, -0.01, 0.11), Verdict::Undecided, "large, and not sure");
        assert_eq!(judge(Metric::P99, 0.05, 0.01, 0.09), Verdict::Worse);
        assert_eq!(judge(Metric::Throughput, 0.05, 0.01, 0.09), Verdict::Better);
        assert_eq!(judge(Metric::Throughput, -0.05, -0.09, -0.01), Verdict::Worse);
        let nothing = judge(Metric::P99, f64::NAN, f64::NEG_INFINITY, f64::INFINITY);
        assert_eq!(nothing, Verdict::Undecided);
    }
}
