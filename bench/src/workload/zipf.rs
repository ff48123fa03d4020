//! Zipf's law over any number of ranks without a table: rejection-inversion after W. Hoermann and G. Derflinger,
//! "Rejection-inversion to generate variates from monotone discrete distributions", ACM TOMACS 6(3), 1996.
//!
//! A draw takes a little more than one try, whatever the number of ranks and the exponent.

use crate::content::Choices;

/// Rank `k` of `1..=ranks` comes with a probability proportional to `k^-alpha`.
#[derive(Debug, Clone, Copy)]
pub struct Zipf {
    alpha: f64,
    ranks: f64,
    /// Integrals of the hat below its first and up to its last rank.
    low: f64,
    high: f64,
    /// A draw that lies no farther than this from its rank is accepted without another look.
    surely: f64,
}

impl Zipf {
    /// `ranks` must be above 0, `alpha` not negative.
    pub fn new(ranks: u64, alpha: f64) -> Self {
        let ranks = ranks as f64;
        let mut zipf = Self { alpha, ranks, low: 0.0, high: 0.0, surely: 0.0 };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(ranks + 0.5);
        zipf.surely = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    /// A rank, from 1.
    pub fn draw(&self, choices: &mut Choices) -> u64 {
        loop {
            let area = self.high + choices.unit() * (self.low - self.high);
            let x = self.inverse(area);
            let rank = (x + 0.5).floor().clamp(1.0, self.ranks);
            if rank - x <= self.surely || area >= self.integral(rank + 0.5) - self.density(rank) {
                return rank as u64;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (-self.alpha * x.ln()).exp()
    }

    /// Of the density from 1 to `x`.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        exp_m1_over((1.0 - self.alpha) * log) * log
    }

    fn inverse(&self, area: f64) -> f64 {
        // Rounding may take it below the pole.
        let t = (area * (1.0 - self.alpha)).max(-1.0);
        (ln_1p_over(t) * area).exp()
    }
}

/// `(e^x - 1) / x`, also where `x` is next to 0.
fn exp_m1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 * (1.0 + x / 3.0) }
}

/// `ln(1 + x) / x`, also where `x` is next to 0.
fn ln_1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x * (0.5 - x / 3.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_popular_get_their_share() {
        let draws = 200_000;
        // Shares of requests, in percent, that go to the top 1 % and 10 % of 100,000 objects.
        for (alpha, top1, top10) in [
            (0.6, 15.0, 39.0),
            (0.8, 34.0, 60.0),
            (0.9, 47.0, 71.0),
            (0.99, 61.0, 80.0),
            (1.1, 75.0, 89.0),
            (1.3, 92.0, 97.0),
        ] {
            let zipf = Zipf::new(100_000, alpha);
            let mut choices = Choices::new(1, alpha.to_bits());
            let (mut in_top1, mut in_top10) = (0, 0);
            for _ in 0..draws {
                let rank = zipf.draw(&mut choices);
                in_top1 += u32::from(rank <= 1_000);
                in_top10 += u32::from(rank <= 10_000);
            }
            let percent = |count: u32| f64::from(count) * 100.0 / f64::from(draws);
            // The table is rounded to whole percents.
            for (measured, told) in [(percent(in_top1), top1), (percent(in_top10), top10)] {
                assert!((measured - told).abs() < 1.0, "alpha {alpha}: {measured:.2} % instead of {told} %");
            }
        }
    }

    #[test]
    fn ranks_are_drawn_by_the_law() {
        for alpha in [0.0, 0.5, 1.0, 1.7] {
            let (ranks, draws) = (40, 100_000);
            let zipf = Zipf::new(ranks, alpha);
            let mut choices = Choices::new(2, alpha.to_bits());
            let mut counts = vec![0u32; ranks as usize];
            for _ in 0..draws {
                counts[zipf.draw(&mut choices) as usize - 1] += 1;
            }
            let weight = |rank: usize| (rank as f64).powf(-alpha);
            let total: f64 = (1..=ranks as usize).map(weight).sum();
            let chi_square: f64 = counts
                .iter()
                .enumerate()
                .map(|(place, count)| {
                    let expected = f64::from(draws) * weight(place + 1) / total;
                    (f64::from(*count) - expected).powi(2) / expected
                })
                .sum();
            // 39 degrees of freedom: the 0.1 % point.
            assert!(chi_square < 72.1, "alpha {alpha}: {chi_square}");
        }
    }

    #[test]
    fn one_rank_and_a_billion_are_no_special_cases() {
        let mut choices = Choices::new(3, 3);
        assert_eq!(Zipf::new(1, 0.9).draw(&mut choices), 1);
        let zipf = Zipf::new(1_000_000_000, 0.9);
        assert!((0..10_000).all(|_| (1..=1_000_000_000).contains(&zipf.draw(&mut choices))));
    }
}
