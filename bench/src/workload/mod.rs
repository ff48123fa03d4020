//! What clients ask for: which operations, of which sizes, how popular the objects are, and how much of what is put the
//! site has already.
//!
//! A workload is a TOML file, a preset or a few flags. Nothing in it takes memory per object: sizes are drawn from the
//! id ([`size`]), popularity from a rank ([`popularity`], [`zipf`]), and contents are made from the id.
//!
//! ```toml
//! objects = 20000
//! one_hit_ratio = 0.1
//! [mix]
//! get = 95
//! put = 5
//! [size]
//! law = "lognormal"
//! median = "26KiB"
//! sigma = 1.4
//! max = "16MiB"
//! [popularity]
//! law = "zipf"
//! alpha = 0.9
//! ```
//!
//! Two operations of a mix need a system of several sites. `collect` is a GET of a content that was published at another
//! site a moment before, so that the client's own must fetch it; its size is drawn as any other's. `roam` is a GET of one
//! of the objects, by their popularity, at a gateway of a site that the client visits. What they need is made ready
//! before they are due, outside of every operation's time: a content is published after each `collect` for the next, and a
//! visit is opened before the load.

pub mod popularity;
pub mod presets;
pub mod size;
pub mod trace;
pub mod zipf;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::content::Choices;
use crate::plan::Op;
pub use popularity::{Popular, Popularity};
pub use size::{Bytes, Size};

/// A workload that cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("{path} cannot be read", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a workload", path = .path.display())]
    Form { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the sizes cannot be drawn: {what}")]
    Size { what: String },
    #[error("the popularity cannot be drawn: {what}")]
    Popularity { what: String },
    #[error("the mix has no operation: give at least one a weight above 0, as in get=80,put=20")]
    Mix,
    #[error("{what} is {value}, but a share is from 0 to 1")]
    Share { what: &'static str, value: f64 },
    #[error("there are no objects to ask for: objects must be above 0")]
    Objects,
}

/// How often each operation is chosen, in proportion to each other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mix(BTreeMap<Op, f64>);

impl Mix {
    pub fn of(weights: impl IntoIterator<Item = (Op, f64)>) -> Self {
        Self(weights.into_iter().filter(|(_, weight)| *weight > 0.0).collect())
    }

    /// GET and PUT, with this share of GETs.
    pub fn reads_and_writes(get_share: f64) -> Self {
        Self::of([(Op::Get, get_share), (Op::Put, 1.0 - get_share)])
    }

    pub fn has(&self, op: Op) -> bool {
        self.0.get(&op).is_some_and(|weight| *weight > 0.0)
    }

    pub fn ops(&self) -> impl Iterator<Item = Op> + '_ {
        self.0.keys().copied().filter(|op| self.has(*op))
    }

    /// Part of all requests that these operations are, 0 to 1.
    pub fn share(&self, wanted: impl Fn(Op) -> bool) -> f64 {
        let of = |(op, weight): (&Op, &f64)| if wanted(*op) { *weight } else { 0.0 };
        self.0.iter().map(of).sum::<f64>() / self.0.values().sum::<f64>()
    }

    pub fn draw(&self, choices: &mut Choices) -> Op {
        let mut last = Op::Get;
        let mut at = choices.unit() * self.0.values().sum::<f64>();
        for (op, weight) in &self.0 {
            last = *op;
            at -= weight;
            if at < 0.0 {
                break;
            }
        }
        last
    }
}

/// `get=80,put=20`
impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = BTreeMap::new();
        for part in text.split(',') {
            let (op, weight) =
                part.split_once('=').ok_or_else(|| format!("{part:?} is not of the form get=80"))?;
            let op: Op = op.trim().parse()?;
            let weight: f64 = weight.trim().parse().map_err(|_| format!("{weight:?} is not a number"))?;
            weights.insert(op, weight);
        }
        let mix = Self(weights);
        mix.check().map_err(|error| error.to_string())?;
        Ok(mix)
    }
}

impl Mix {
    fn check(&self) -> Result<(), WorkloadError> {
        let good = self.0.values().all(|weight| *weight >= 0.0 && weight.is_finite());
        if good && self.ops().next().is_some() { Ok(()) } else { Err(WorkloadError::Mix) }
    }
}

/// What clients ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    pub mix: Mix,
    pub size: Size,
    #[serde(default = "uniform")]
    pub popularity: Popularity,
    /// Objects that are put before the run, and that reads choose from.
    pub objects: u64,
    /// Share of reads, 0 to 1, that ask for an object that nobody asked for before and nobody will again.
    #[serde(default)]
    pub one_hit_ratio: f64,
    /// Objects put before the run for these reads; by default as many as the run is expected to need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_hit_objects: Option<u64>,
    /// Share of PUTs, 0 to 1, whose bytes the site has already.
    #[serde(default)]
    pub dup_ratio: f64,
    /// Length of the pieces that a download in ranges asks for, one after the other.
    #[serde(default = "one_mebibyte")]
    pub range: Bytes,
}

fn uniform() -> Popularity {
    Popularity::Uniform
}

fn one_mebibyte() -> Bytes {
    Bytes(1 << 20)
}

impl Workload {
    /// Uniform GETs alone.
    pub fn gets(size: Size, objects: u64) -> Self {
        Self {
            mix: Mix::of([(Op::Get, 1.0)]),
            size,
            popularity: uniform(),
            objects,
            one_hit_ratio: 0.0,
            one_hit_objects: None,
            dup_ratio: 0.0,
            range: one_mebibyte(),
        }
    }

    pub fn read(path: &Path) -> Result<Self, WorkloadError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| WorkloadError::Read { path: path.to_owned(), source })?;
        let form = |source| WorkloadError::Form { path: path.to_owned(), source: Box::new(source) };
        toml::from_str(&text).map_err(form)
    }

    pub fn check(&self) -> Result<(), WorkloadError> {
        self.mix.check()?;
        self.size.check()?;
        self.popularity.check()?;
        for (what, value) in [("one_hit_ratio", self.one_hit_ratio), ("dup_ratio", self.dup_ratio)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(WorkloadError::Share { what, value });
            }
        }
        if self.objects == 0 || self.range.0 == 0 { Err(WorkloadError::Objects) } else { Ok(()) }
    }

    /// Whether objects are read that have to be there before.
    pub fn reads(&self) -> bool {
        [Op::Get, Op::Head, Op::Range, Op::Roam].iter().any(|op| self.mix.has(*op))
    }

    /// Objects that reads choose from and that are put before the run. A workload that only writes needs none, except as
    /// the bytes that the site has already.
    pub fn popular_objects(&self) -> u64 {
        /// Enough that duplicates are not one single content.
        const ORIGINALS_MAX: u64 = 64;
        match (self.reads(), self.dup_ratio > 0.0) {
            (true, _) => self.objects,
            (false, true) => self.objects.min(ORIGINALS_MAX),
            (false, false) => 0,
        }
    }
}

/// Reads `law:key=value,key=value` as the law's fields.
fn parse_law<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let (law, fields) = text.split_once(':').unwrap_or((text, ""));
    let mut table = serde_json::Map::from_iter([("law".to_owned(), law.trim().into())]);
    for field in fields.split(',').filter(|field| !field.trim().is_empty()) {
        let (key, value) =
            field.split_once('=').ok_or_else(|| format!("{field:?} is not of the form key=value"))?;
        let value = value.trim();
        let value = match (value.parse::<u64>(), value.parse::<f64>()) {
            (Ok(whole), _) => whole.into(),
            (_, Ok(number)) => number.into(),
            _ => value.into(),
        };
        table.insert(key.trim().to_owned(), value);
    }
    serde_json::from_value(table.into()).map_err(|error| format!("{text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_it_all() {
        let text = r#"
            objects = 20000
            one_hit_ratio = 0.25
            dup_ratio = 0.5
            range = "4MiB"
            [mix]
            get = 80
            list = 0
            put = 20
            [size]
            law = "lognormal"
            median = "26KiB"
            sigma = 1.4
            max = "16MiB"
            [popularity]
            law = "zipf"
            alpha = 0.9
        "#;
        let workload: Workload = toml::from_str(text).unwrap();
        workload.check().unwrap();
        assert_eq!(workload.mix.ops().collect::<Vec<_>>(), [Op::Get, Op::Put]);
        assert_eq!(workload.popularity, Popularity::Zipf { alpha: 0.9 });
        assert_eq!((workload.range, workload.size.max()), (Bytes(4 << 20), 16 << 20));
        let json = serde_json::to_string(&workload).unwrap();
        assert_eq!(serde_json::from_str::<Workload>(&json).unwrap(), workload, "a report tells it all");
        assert!(toml::from_str::<Workload>(&format!("colour = 1\n{text}")).is_err());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.toml");
        assert!(Workload::read(&path).unwrap_err().to_string().contains("none.toml"));
    }

    #[test]
    fn what_cannot_be_driven_is_refused() {
        let good = Workload::gets(Size::list(&[1]), 5);
        good.check().unwrap();
        for bad in [
            Workload { objects: 0, ..good.clone() },
            Workload { dup_ratio: 1.5, ..good.clone() },
            Workload { one_hit_ratio: -0.1, ..good.clone() },
            Workload { one_hit_ratio: f64::NAN, ..good.clone() },
            Workload { mix: Mix::default(), ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        for bad in ["", "get", "get=x", "grow=3", "get=0", "get=-1,put=2"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn operations_are_chosen_by_their_weights() {
        let mix: Mix = "get=70,head=20,put=10,delete=0".parse().unwrap();
        let mut choices = Choices::new(1, 1);
        let mut counts = BTreeMap::new();
        let draws = 100_000;
        for _ in 0..draws {
            *counts.entry(mix.draw(&mut choices)).or_insert(0u32) += 1;
        }
        assert!(!counts.contains_key(&Op::Delete));
        // Chi-square with 2 degrees of freedom, at the 0.1 % point.
        let chi_square: f64 = [(Op::Get, 0.7), (Op::Head, 0.2), (Op::Put, 0.1)]
            .iter()
            .map(|(op, share)| {
                let expected = share * f64::from(draws);
                (f64::from(counts[op]) - expected).powi(2) / expected
            })
            .sum();
        assert!(chi_square < 13.8, "{chi_square}");
        assert!((mix.share(|op| op == Op::Put) - 0.1).abs() < 1e-9);
    }
}
