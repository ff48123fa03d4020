//! The U test of Mann and Whitney: whether values of one set tend to lie above those of another, by ranks alone.

/// Two-sided probability that sets as different as these come from one distribution, by the normal approximation with
/// correction for ties; 1 if a set is empty. The values must not depend on each other.
pub fn mann_whitney_p(one: &[f64], other: &[f64]) -> f64 {
    let (n, m) = (one.len() as f64, other.len() as f64);
    if one.is_empty() || other.is_empty() {
        return 1.0;
    }
    let mut all: Vec<(f64, bool)> =
        one.iter().map(|v| (*v, true)).chain(other.iter().map(|v| (*v, false))).collect();
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut rank_sum, mut ties, mut below) = (0.0, 0.0, 0.0);
    for equal in all.chunk_by(|a, b| a.0 == b.0) {
        let count = equal.len() as f64;
        // Equal values share the mean of their ranks.
        rank_sum += (below + (count + 1.0) / 2.0) * equal.iter().filter(|(_, of_one)| *of_one).count() as f64;
        ties += count.powi(3) - count;
        below += count;
    }
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    let z = ((u - n * m / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    erfc(z / std::f64::consts::SQRT_2)
}

/// The complementary error function for x >= 0, right to 2e-7 (Abramowitz and Stegun 7.1.26).
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let factors = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    factors.iter().fold(0.0, |sum, factor| (sum + factor) * t) * (-x * x).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_normal_approximation() {
        // U = 0 of 5 against 5: z = (12.5 - 0.5) / sqrt(25 * 11 / 12) = 2.507.
        let p = mann_whitney_p(&[1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 7.0, 8.0, 9.0, 10.0]);
        assert!((p - 0.012_186).abs() < 1e-5, "{p}");
        let back = mann_whitney_p(&[6.0, 7.0, 8.0, 9.0, 10.0], &[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((p - back).abs() < 1e-12);
        assert_eq!(mann_whitney_p(&[1.0, 1.0], &[1.0, 1.0, 1.0]), 1.0);
        assert_eq!(mann_whitney_p(&[], &[1.0]), 1.0);
        assert!((erfc(0.0) - 1.0).abs() < 2e-7 && (erfc(1.0) - 0.157_299_2).abs() < 2e-7);
    }
}
