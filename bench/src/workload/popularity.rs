//! Which objects are asked for how often. No object takes memory: a rank is drawn, and a mapping of ranks to ids that
//! is computed makes it an object.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::zipf::Zipf;
use super::{WorkloadError, parse_law};
use crate::content::{Choices, mix};

/// A law of popularity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "law", rename_all = "lowercase", deny_unknown_fields)]
pub enum Popularity {
    Uniform,
    /// Rank `k` is asked for `k^-alpha` times as often as the first.
    Zipf {
        alpha: f64,
    },
    /// A share of the objects gets a share of the requests, both from 0 to 1; within and without, evenly.
    Hotspot {
        objects: f64,
        requests: f64,
    },
    /// Zipf by age: what was put last is asked for most.
    Latest {
        alpha: f64,
    },
    /// Zipf, with a new favourite every so many seconds, for which all others step down by one rank.
    Drifting {
        alpha: f64,
        every_s: f64,
    },
}

impl Popularity {
    pub fn check(&self) -> Result<(), WorkloadError> {
        let wrong = |what: &str| Err(WorkloadError::Popularity { what: what.to_owned() });
        let alpha_is_good = |alpha: f64| (0.0..=10.0).contains(&alpha);
        let share = |share: f64| share > 0.0 && share <= 1.0;
        match self {
            Self::Zipf { alpha } | Self::Latest { alpha } | Self::Drifting { alpha, .. }
                if !alpha_is_good(*alpha) =>
            {
                wrong("alpha is from 0 to 10")
            }
            Self::Hotspot { objects, requests } if !share(*objects) || !share(*requests) => {
                wrong("the shares of a hotspot are above 0 and at most 1")
            }
            Self::Drifting { every_s, .. } if !(*every_s > 0.0 && every_s.is_finite()) => {
                wrong("every_s must be above 0")
            }
            _ => Ok(()),
        }
    }
}

/// `uniform`, or a law with its numbers: `zipf:alpha=0.9`, `hotspot:objects=0.1,requests=0.9`.
impl FromStr for Popularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let popularity: Self = parse_law(text)?;
        popularity.check().map_err(|error| error.to_string())?;
        Ok(popularity)
    }
}

/// Draws objects by a law of popularity.
#[derive(Debug, Clone)]
pub struct Popular {
    law: Popularity,
    objects: u64,
    zipf: Zipf,
    step: u64,
    first: u64,
}

impl Popular {
    /// `objects` must be above 0. Another seed makes other objects popular.
    pub fn new(law: &Popularity, objects: u64, seed: u64) -> Self {
        let alpha = match law {
            Popularity::Zipf { alpha }
            | Popularity::Latest { alpha }
            | Popularity::Drifting { alpha, .. } => *alpha,
            Popularity::Uniform | Popularity::Hotspot { .. } => 0.0,
        };
        // A step without a common divisor takes every rank to an object of its own.
        let near_golden = (objects as f64 * 0.618_033_988_75) as u64;
        let step = (near_golden.max(1)..=objects).find(|step| coprime(*step, objects)).unwrap_or(1);
        let first = mix(seed ^ 0x706F_7075) % objects;
        Self { law: law.clone(), objects, zipf: Zipf::new(objects, alpha), step, first }
    }

    /// The object at a rank, from 0.
    pub fn object_at(&self, rank: u64) -> u64 {
        let along = u128::from(rank) * u128::from(self.step) + u128::from(self.first);
        (along % u128::from(self.objects)) as u64
    }

    /// A rank, from 0: the most popular, or the youngest.
    pub fn rank(&self, choices: &mut Choices) -> u64 {
        match self.law {
            Popularity::Uniform => choices.below(self.objects),
            Popularity::Hotspot { objects, requests } => {
                let hot = ((self.objects as f64 * objects).ceil() as u64).clamp(1, self.objects);
                if hot == self.objects || choices.unit() < requests {
                    choices.below(hot)
                } else {
                    hot + choices.below(self.objects - hot)
                }
            }
            _ => self.zipf.draw(choices) - 1,
        }
    }

    /// An object, at this time since the start.
    pub fn draw(&self, choices: &mut Choices, at: Duration) -> u64 {
        let rank = self.rank(choices);
        let rank = match self.law {
            Popularity::Drifting { every_s, .. } => {
                let favourites = (at.as_secs_f64() / every_s) as u64 % self.objects;
                (rank + self.objects - favourites) % self.objects
            }
            _ => rank,
        };
        self.object_at(rank)
    }
}

fn coprime(mut a: u64, mut b: u64) -> bool {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(law: &str, objects: u64, at: Duration) -> Vec<u32> {
        let popular = Popular::new(&law.parse().unwrap(), objects, 5);
        let mut choices = Choices::new(6, 6);
        let mut counts = vec![0; objects as usize];
        for _ in 0..50_000 {
            counts[popular.draw(&mut choices, at) as usize] += 1;
        }
        counts
    }

    fn favourite(counts: &[u32]) -> usize {
        (0..counts.len()).max_by_key(|object| counts[*object]).unwrap()
    }

    #[test]
    fn every_rank_has_an_object_of_its_own() {
        for objects in [1, 2, 3, 10, 64, 1000, 9_973] {
            let popular = Popular::new(&Popularity::Uniform, objects, 3);
            let all: std::collections::HashSet<u64> =
                (0..objects).map(|rank| popular.object_at(rank)).collect();
            assert_eq!(all.len() as u64, objects);
            assert!(all.iter().all(|object| *object < objects));
        }
    }

    #[test]
    fn objects_are_drawn_by_the_law() {
        let even = counts("uniform", 20, Duration::ZERO);
        let chi_square: f64 = even.iter().map(|count| (f64::from(*count) - 2500.0).powi(2) / 2500.0).sum();
        // 19 degrees of freedom: the 0.1 % point.
        assert!(chi_square < 43.8, "{chi_square}");
        let mut hot = counts("hotspot:objects=0.1,requests=0.9", 100, Duration::ZERO);
        hot.sort_unstable();
        let in_hot: u32 = hot[90..].iter().sum();
        assert!((44_500..45_500).contains(&in_hot), "{in_hot}");
        let mut zipf = counts("zipf:alpha=1", 100, Duration::ZERO);
        zipf.sort_unstable();
        // The harmonic number of 100 is 5.187.
        assert!((f64::from(zipf[99]) - 50_000.0 / 5.187).abs() < 400.0, "{}", zipf[99]);
    }

    #[test]
    fn popularity_drifts_with_time() {
        let law = "drifting:alpha=1.2,every_s=10";
        let popular = Popular::new(&law.parse().unwrap(), 100, 5);
        for (second, first_then) in [(0, 0), (9, 0), (10, 99), (25, 98)] {
            let counts = counts(law, 100, Duration::from_secs(second));
            // The favourite at the beginning is one rank lower with each that came.
            assert_eq!(favourite(&counts) as u64, popular.object_at(first_then), "at {second} s");
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        for bad in [
            "",
            "zipf",
            "zipf:alpha=-1",
            "zipf:alpha=x",
            "hotspot:objects=0,requests=1",
            "loud:alpha=1",
            "drifting:alpha=1,every_s=0",
            "latest:alpha=11",
        ] {
            assert!(bad.parse::<Popularity>().is_err(), "{bad}");
        }
    }
}
