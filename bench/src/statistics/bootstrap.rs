//! Intervals by resampling: a run is drawn again and again from blocks of its own seconds, and the spread of what
//! comes out is the uncertainty of what was measured. The same seed gives the same intervals.

use super::sample::Sample;
use super::{Estimate, Figures, Metric};
use crate::content::Choices;

/// Draws for one interval: the ends of a 95 % interval then vary by a few per cent of its width.
pub const RESAMPLES: usize = 1000;
/// Blocks are this long in a run that has enough seconds: longer than what slows seconds in a row on a shared machine.
const BLOCK_SECONDS_MAX: usize = 10;
/// A run should have so many blocks before blocks grow.
const BLOCKS: usize = 6;
/// Of the normal distribution, two-sided 95 %.
pub(super) const Z95: f64 = 1.959_964;

/// Length of the blocks, in seconds, for a run of so many.
pub fn block_seconds(seconds: usize) -> usize {
    (seconds / BLOCKS).clamp(2, BLOCK_SECONDS_MAX)
}

/// The run as it might have been as well: as many seconds, in blocks drawn with replacement from the run gone round.
pub(super) fn redraw(sample: &Sample, choices: &mut Choices, counts: &mut Vec<u64>) -> Figures {
    let (seconds, block) = (sample.len(), block_seconds(sample.len()));
    let mut chosen = Vec::with_capacity(seconds + block);
    while chosen.len() < seconds {
        let start = choices.below(seconds as u64) as usize;
        chosen.extend((start..start + block).map(|second| second % seconds));
    }
    chosen.truncate(seconds);
    sample.figures_of(chosen.into_iter(), counts)
}

/// What was measured, with intervals, in the order of [`Metric::ALL`].
pub fn estimates(sample: &Sample, resamples: usize, seed: u64) -> Vec<(Metric, Estimate)> {
    let (mut choices, mut counts) = (Choices::new(seed, 0x626f_6f74), Vec::new());
    let drawn: Vec<Figures> = (0..resamples).map(|_| redraw(sample, &mut choices, &mut counts)).collect();
    let measured = sample.figures();
    let blocks = sample.len() / block_seconds(sample.len());
    let estimate = |metric| {
        let value = measured.of(metric);
        // Ratios, so that no end of an interval lies below 0.
        let logs = drawn.iter().map(|figures| (figures.of(metric) / value).ln()).collect();
        let (low, high) = interval(0.0, logs, blocks);
        (metric, Estimate { value, low: value * low.exp(), high: value * high.exp() })
    };
    Metric::ALL.into_iter().map(estimate).collect()
}

/// The 95 % percentile interval of `drawn` about `value`, widened for being drawn from only `units` blocks or pairs:
/// by Student's t in place of the normal distribution, and by the bootstrap's bias.
pub(super) fn interval(value: f64, mut drawn: Vec<f64>, units: usize) -> (f64, f64) {
    drawn.retain(|drawn| drawn.is_finite());
    if drawn.is_empty() || units < 2 {
        return (f64::NEG_INFINITY, f64::INFINITY);
    }
    drawn.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| drawn[((drawn.len() - 1) as f64 * share).round() as usize];
    let few = units as f64 / (units - 1) as f64;
    let wider = few.sqrt() * student_t95(units - 1) / Z95;
    (value - (value - at(0.025)) * wider, value + (at(0.975) - value) * wider)
}

/// Student's t, two-sided 95 %.
pub(super) fn student_t95(degrees: usize) -> f64 {
    const FEW: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    if let Some(t) = degrees.checked_sub(1).and_then(|row| FEW.get(row)) {
        return *t;
    }
    // Cornish and Fisher's expansion: right to three digits from here on.
    let (z, n) = (Z95, degrees as f64);
    let terms = [
        z.powi(3) + z,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 24.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 96.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| (sum + term / 4.0) / n) + z
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Machine;
    use super::*;

    #[test]
    fn blocks_are_longer_in_longer_runs() {
        assert_eq!([4, 10, 18, 30, 300].map(block_seconds), [2, 2, 3, 5, 10]);
    }

    #[test]
    fn students_t_is_as_in_the_tables() {
        for (degrees, t) in [(1, 12.706), (10, 2.228), (11, 2.201), (30, 2.042), (120, 1.980)] {
            assert!((student_t95(degrees) - t).abs() < 0.001, "{degrees}: {}", student_t95(degrees));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_intervals() {
        let sample = Machine::new(1).run(30, 1.0);
        assert_eq!(estimates(&sample, 50, 7), estimates(&sample, 50, 7));
        assert_ne!(estimates(&sample, 50, 7), estimates(&sample, 50, 8));
    }

    /// Seconds that depend on each other say less than as many that do not; an interval from single seconds would
    /// miss the truth most of the time here.
    #[test]
    fn intervals_hold_the_truth_although_seconds_hang_together() {
        let runs = 150;
        let held = (0..runs).filter(|run| {
            let sample = Machine::without_runs(*run).run(60, 1.0);
            let (_, throughput) = estimates(&sample, 100, *run)[0];
            (throughput.low..throughput.high).contains(&Machine::REQUESTS_PER_S)
        });
        let held = held.count();
        assert!(held * 100 >= runs as usize * 85, "{held} of {runs} intervals hold the truth");
    }
}
