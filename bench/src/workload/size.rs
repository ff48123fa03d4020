//! How long contents are: a law, and for each id one size drawn from it. A size depends on nothing but seed and id,
//! so no list of sizes is kept, and popular contents are not larger or smaller than others.

use std::str::FromStr;

use common::config::parse_bytes;
use serde::{Deserialize, Deserializer, Serialize};

use super::{WorkloadError, parse_law};
use crate::content::Choices;

/// A number of bytes, in files also with a unit: `"64KiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(bytes) => Ok(Self(bytes)),
            Form::Text(text) => parse_bytes(&text).map(Self).map_err(serde::de::Error::custom),
        }
    }
}

/// Lengths between two bounds, both included, each as likely as the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    pub weight: f64,
    pub min: Bytes,
    pub max: Bytes,
}

/// A point of an empirical distribution: this share of contents is no longer than this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    pub bytes: Bytes,
    /// From 0 to 1.
    pub share: f64,
}

/// A law of sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "law", rename_all = "lowercase", deny_unknown_fields)]
pub enum Size {
    Fixed {
        bytes: Bytes,
    },
    /// Each as likely as the other.
    List {
        bytes: Vec<Bytes>,
    },
    Uniform {
        min: Bytes,
        max: Bytes,
    },
    /// The logarithm is normal; what is drawn outside of the bounds is taken to them.
    LogNormal {
        median: Bytes,
        /// Standard deviation of the natural logarithm.
        sigma: f64,
        #[serde(default = "one_byte")]
        min: Bytes,
        max: Bytes,
    },
    /// A heavy tail: the share of contents longer than `x` falls with `x^-alpha`, up to `max`.
    Pareto {
        min: Bytes,
        alpha: f64,
        max: Bytes,
    },
    Buckets {
        buckets: Vec<Bucket>,
    },
    /// Straight lines between the points, the first of which has the share 0 and the last 1.
    Cdf {
        points: Vec<Point>,
    },
}

fn one_byte() -> Bytes {
    Bytes(1)
}

impl Size {
    pub fn list(sizes: &[u64]) -> Self {
        match sizes {
            [bytes] => Self::Fixed { bytes: Bytes(*bytes) },
            sizes => Self::List { bytes: sizes.iter().copied().map(Bytes).collect() },
        }
    }

    /// The size of the content with this id.
    pub fn of(&self, seed: u64, id: u64) -> u64 {
        let mut choices = Choices::new(seed ^ 0x7369_7A65, id);
        match self {
            Self::Fixed { bytes } => bytes.0,
            Self::List { bytes } => bytes[choices.below(bytes.len() as u64) as usize].0,
            Self::Uniform { min, max } => between(*min, *max, choices.unit()),
            Self::LogNormal { median, sigma, min, max } => {
                let drawn = median.0 as f64 * (sigma * normal(&mut choices)).exp();
                (drawn.round() as u64).clamp(min.0, max.0)
            }
            Self::Pareto { min, alpha, max } => {
                let (low, high) = (min.0 as f64, max.0 as f64);
                let beyond_max = (low / high).powf(*alpha);
                let drawn = low * (1.0 - choices.unit() * (1.0 - beyond_max)).powf(-1.0 / alpha);
                (drawn.floor() as u64).clamp(min.0, max.0)
            }
            Self::Buckets { buckets } => {
                let total: f64 = buckets.iter().map(|bucket| bucket.weight).sum();
                let mut at = choices.unit() * total;
                let chosen = buckets.iter().find(|bucket| {
                    at -= bucket.weight;
                    at < 0.0
                });
                chosen.or(buckets.last()).map_or(0, |bucket| between(bucket.min, bucket.max, choices.unit()))
            }
            Self::Cdf { points } => {
                let at = choices.unit();
                let after = points.partition_point(|point| point.share <= at).clamp(1, points.len() - 1);
                let (from, to) = (&points[after - 1], &points[after]);
                let part = (at - from.share) / (to.share - from.share);
                let (low, high) = (from.bytes.0 as f64, to.bytes.0 as f64);
                (low + (high - low) * part).round() as u64
            }
        }
    }

    /// Longest size that can be drawn.
    pub fn max(&self) -> u64 {
        match self {
            Self::Fixed { bytes } => bytes.0,
            Self::List { bytes } => bytes.iter().map(|bytes| bytes.0).max().unwrap_or(0),
            Self::Uniform { max, .. } | Self::LogNormal { max, .. } | Self::Pareto { max, .. } => max.0,
            Self::Buckets { buckets } => buckets.iter().map(|bucket| bucket.max.0).max().unwrap_or(0),
            Self::Cdf { points } => points.last().map_or(0, |point| point.bytes.0),
        }
    }

    pub fn check(&self) -> Result<(), WorkloadError> {
        let wrong = |what: &str| Err(WorkloadError::Size { what: what.to_owned() });
        let positive = |number: f64| number > 0.0 && number.is_finite();
        match self {
            Self::List { bytes } if bytes.is_empty() => wrong("a list names at least one size"),
            Self::Uniform { min, max } | Self::LogNormal { min, max, .. } | Self::Pareto { min, max, .. }
                if min > max =>
            {
                wrong("min is above max")
            }
            Self::LogNormal { sigma, .. } if !positive(*sigma) => wrong("sigma must be above 0"),
            Self::Pareto { alpha, .. } if !positive(*alpha) => wrong("alpha must be above 0"),
            Self::Pareto { min: Bytes(0), .. } => wrong("a Pareto law begins above 0 bytes"),
            Self::Buckets { buckets } => {
                let weights = buckets.iter().all(|b| b.weight >= 0.0 && b.weight.is_finite());
                let bounds = buckets.iter().all(|b| b.min <= b.max);
                match weights && bounds && buckets.iter().any(|b| b.weight > 0.0) {
                    true => Ok(()),
                    false => wrong("buckets have weights of 0 or more, not all 0, and min not above max"),
                }
            }
            Self::Cdf { points } => {
                let ends = points.first().is_some_and(|p| p.share == 0.0)
                    && points.last().is_some_and(|p| p.share == 1.0);
                let rises = points.windows(2).all(|p| p[0].share < p[1].share && p[0].bytes <= p[1].bytes);
                match ends && rises {
                    true => Ok(()),
                    false => wrong("the shares of a cdf rise from 0 to 1, and sizes do not fall"),
                }
            }
            _ => Ok(()),
        }
    }
}

/// `4KiB`, `4KiB,1MiB`, or a law with its numbers: `lognormal:median=26KiB,sigma=1.4,max=64MiB`.
impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = if text.contains(':') {
            parse_law(text)?
        } else {
            let sizes = text.split(',').map(|size| parse_bytes(size).map_err(|error| error.to_string()));
            Self::list(&sizes.collect::<Result<Vec<u64>, String>>()?)
        };
        size.check().map_err(|error| error.to_string())?;
        Ok(size)
    }
}

fn between(min: Bytes, max: Bytes, part: f64) -> u64 {
    let width = (max.0 - min.0) as f64 + 1.0;
    min.0 + (part * width) as u64
}

/// Mean 0, standard deviation 1 (G. Box and M. Muller, 1958).
fn normal(choices: &mut Choices) -> f64 {
    let radius = (-2.0 * (1.0 - choices.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * choices.unit()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: u64 = 20_000;

    fn sample(law: &str) -> Vec<u64> {
        let size: Size = law.parse().unwrap();
        let mut sizes: Vec<u64> = (0..COUNT).map(|id| size.of(7, id)).collect();
        sizes.sort_unstable();
        sizes
    }

    /// Kolmogorov-Smirnov: the largest distance between the sample's and the law's distribution.
    #[track_caller]
    fn follows(law: &str, share_up_to: impl Fn(f64) -> f64) {
        let sizes = sample(law);
        let distance = sizes.iter().enumerate().fold(0.0f64, |worst, (place, size)| {
            // Sizes are whole numbers: the law is looked at between them.
            let law = share_up_to(*size as f64 + 0.5);
            let above = (place + 1..sizes.len()).find(|next| sizes[*next] != *size).unwrap_or(sizes.len());
            worst.max((law - above as f64 / sizes.len() as f64).abs())
        });
        assert!(distance < 1.63 / (COUNT as f64).sqrt(), "{law}: {distance} is beyond the 1 % point");
    }

    /// The normal distribution (Abramowitz and Stegun 26.2.17; the error is below 1e-7).
    fn normal_cdf(x: f64) -> f64 {
        if x < 0.0 {
            return 1.0 - normal_cdf(-x);
        }
        let t = 1.0 / (1.0 + 0.231_641_9 * x);
        let sum = [1.330_274_429, -1.821_255_978, 1.781_477_937, -0.356_563_782, 0.319_381_530]
            .iter()
            .fold(0.0, |sum, term| (sum + term) * t);
        1.0 - (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * sum
    }

    #[test]
    fn sizes_follow_their_laws() {
        follows("uniform:min=1000,max=100999", |x| (x - 999.5) / 100_000.0);
        follows("lognormal:median=1MiB,sigma=1.4,max=1000000GiB", |x| {
            normal_cdf((x / f64::from(1 << 20)).ln() / 1.4)
        });
        follows("pareto:min=100KiB,alpha=1.2,max=1GiB", |x| {
            let beyond = |x: f64| (102_400.0 / x).powf(1.2);
            (1.0 - beyond(x)) / (1.0 - beyond(f64::from(1 << 30)))
        });
        let cdf = r#"{"law": "cdf", "points": [{"bytes": 1000, "share": 0.0}, {"bytes": 11000, "share": 0.8},
            {"bytes": "1MiB", "share": 1.0}]}"#;
        let cdf: Size = serde_json::from_str(cdf).unwrap();
        cdf.check().unwrap();
        let share = (0..COUNT).filter(|id| cdf.of(7, *id) <= 6000).count() as f64 / COUNT as f64;
        assert!((share - 0.4).abs() < 0.015, "{share}");
    }

    #[test]
    fn lists_and_buckets_are_chosen_by_their_weights() {
        // Chi-square with 3 and 2 degrees of freedom, at the 0.1 % point.
        let sizes = sample("1,10,100,1000");
        let expected = COUNT as f64 / 4.0;
        let count = |wanted: u64| sizes.iter().filter(|size| **size == wanted).count() as f64;
        let chi_square: f64 =
            [1, 10, 100, 1000].iter().map(|s| (count(*s) - expected).powi(2) / expected).sum();
        assert!(chi_square < 16.3, "{chi_square}");
        let buckets = [(0.65, 1, 9), (0.3, 10, 99), (0.05, 100, 1000)];
        let law = buckets.map(|(weight, min, max)| Bucket { weight, min: Bytes(min), max: Bytes(max) });
        let law = Size::Buckets { buckets: law.to_vec() };
        let chi_square: f64 = buckets
            .iter()
            .map(|(weight, min, max)| {
                let count = (0..COUNT).filter(|id| (*min..=*max).contains(&law.of(7, *id))).count() as f64;
                (count - weight * COUNT as f64).powi(2) / (weight * COUNT as f64)
            })
            .sum();
        assert!(chi_square < 13.8, "{chi_square}");
    }

    #[test]
    fn a_size_is_the_ids_own() {
        let size: Size = "uniform:min=0,max=1MiB".parse().unwrap();
        assert_eq!(size.of(1, 5), size.of(1, 5));
        assert_ne!((size.of(1, 5), size.of(1, 6)), (size.of(2, 5), size.of(2, 6)));
        assert!((0..1000).all(|id| size.of(1, id) <= size.max()));
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        assert_eq!("4KiB".parse::<Size>().unwrap(), Size::list(&[4096]));
        assert_eq!("4KiB, 1MiB".parse::<Size>().unwrap(), Size::list(&[4096, 1 << 20]));
        for bad in [
            "",
            "4KiB,",
            "x",
            "4 apples",
            "-1",
            "uniform:min=2,max=1",
            "uniform:min=2",
            "lognormal:median=1,sigma=0,max=3",
            "pareto:min=0,alpha=1,max=3",
            "normal:mean=3",
            "fixed:bytes=3,more=4",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
