//! One quantity of one server over a run, in bounded memory: what is too much is thinned out, evenly.

use super::scrape::Figure;

/// Most points of one quantity: half an hour of seconds. Beyond, every other one goes.
pub const POINTS_MAX: usize = 1800;

/// What was read at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Seconds since the start of the load.
    pub at_s: f64,
    pub value: f64,
    /// Of [`Figure::Mean`]: how many values `value` is the sum of.
    pub weight: f64,
}

#[derive(Debug, Clone)]
pub struct Track {
    figure: Figure,
    readings: Vec<Reading>,
}

impl Track {
    pub fn new(figure: Figure) -> Self {
        Self { figure, readings: Vec::new() }
    }

    /// What only grows loses nothing when readings between are left out; of a level the higher of two stays.
    pub fn push(&mut self, reading: Reading) {
        self.readings.push(reading);
        if self.readings.len() < POINTS_MAX {
            return;
        }
        let thinned = self.readings.chunks(2).filter_map(|pair| {
            let last = *pair.last()?;
            let highest = pair.iter().map(|one| one.value).fold(f64::MIN, f64::max);
            let value = if self.figure == Figure::Level { highest } else { last.value };
            Some(Reading { value, ..last })
        });
        self.readings = thinned.collect();
    }

    /// Time and figure of each interval that ends within `from_s..=to_s`.
    pub fn points(&self, from_s: f64, to_s: f64) -> Vec<(f64, f64)> {
        let within = |at: f64| (from_s..=to_s).contains(&at);
        if self.figure == Figure::Level {
            return self.readings.iter().map(|one| (one.at_s, one.value)).filter(|p| within(p.0)).collect();
        }
        let figure = |pair: &[Reading]| {
            let [before, after] = pair else { return None };
            // A server that was started again counts from 0.
            let grown = |before: f64, after: f64| if after < before { after } else { after - before };
            let value = grown(before.value, after.value);
            let by = match self.figure {
                Figure::Mean => grown(before.weight, after.weight),
                Figure::PerSecond | Figure::Level => after.at_s - before.at_s,
            };
            (by > 0.0 && within(after.at_s)).then_some((after.at_s, value / by))
        };
        self.readings.windows(2).filter_map(figure).collect()
    }

    /// How much a counter grew between two times, by the last readings up to them.
    pub fn growth(&self, from_s: f64, to_s: f64) -> f64 {
        let between =
            |pair: &[Reading]| match pair {
                [before, after] if before.at_s >= from_s && after.at_s <= to_s => {
                    if after.value < before.value { after.value } else { after.value - before.value }
                }
                _ => 0.0,
            };
        self.readings.windows(2).map(between).sum()
    }

    pub fn peak(&self, from_s: f64, to_s: f64) -> f64 {
        let within = self.readings.iter().filter(|one| (from_s..=to_s).contains(&one.at_s));
        within.map(|one| one.value).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn track(figure: Figure, values: &[(f64, f64, f64)]) -> Track {
        let mut track = Track::new(figure);
        for (at_s, value, weight) in values {
            track.push(Reading { at_s: *at_s, value: *value, weight: *weight });
        }
        track
    }

    #[test]
    fn counters_become_rates_also_over_a_restart() {
        let track = track(
            Figure::PerSecond,
            &[(0.0, 100.0, 0.0), (1.0, 150.0, 0.0), (1.5, 160.0, 0.0), (2.5, 8.0, 0.0)],
        );
        assert_eq!(track.points(0.0, 9.0), [(1.0, 50.0), (1.5, 20.0), (2.5, 8.0)]);
        assert_eq!(track.points(1.2, 2.0), [(1.5, 20.0)]);
        assert_eq!(track.growth(0.0, 9.0), 68.0);
        assert_eq!(track.growth(1.0, 9.0), 18.0);
    }

    #[test]
    fn histograms_become_means_of_what_came_in() {
        let track = track(Figure::Mean, &[(0.0, 10.0, 5.0), (1.0, 40.0, 8.0), (2.0, 40.0, 8.0)]);
        assert_eq!(track.points(0.0, 9.0), [(1.0, 10.0)]);
    }

    #[test]
    fn a_long_run_stays_small_and_keeps_its_peak() {
        let (mut level, mut counter) = (Track::new(Figure::Level), Track::new(Figure::PerSecond));
        for second in 0..100_000 {
            let value = if second == 77_777 { 500.0 } else { 1.0 };
            let at_s = f64::from(second);
            level.push(Reading { at_s, value, weight: 0.0 });
            counter.push(Reading { at_s, value: at_s * 3.0, weight: 0.0 });
        }
        assert!(level.readings.len() < POINTS_MAX && counter.readings.len() < POINTS_MAX);
        assert_eq!(level.peak(0.0, f64::MAX), 500.0);
        assert!(counter.points(0.0, f64::MAX).iter().all(|(_, rate)| *rate == 3.0));
    }
}
