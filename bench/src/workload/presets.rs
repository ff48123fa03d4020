//! Workloads to begin with: five simple ones, and six after published traces.
//!
//! What a source does not say is marked as our choice; the numbers of objects are chosen so that a run on one machine
//! can be prepared, not after the traces, which have millions.
//!
//! | preset | source | taken from it | our choice |
//! |---|---|---|---|
//! | `kv-hot` | J. Yang et al., "A large scale analysis of hundreds of in-memory cache clusters at Twitter", OSDI 2020; per-cluster table of its traces (`twitter/cache-trace`, `stat/2020Mar.md`) | the median of the clusters' Zipf exponents, 1.2; values of 1 byte to 67 KB; nearly all requests are reads | lognormal values around 230 bytes |
//! | `kv-write` | the same table, clusters 40 and 41 | half of the requests are writes; Zipf 0.85 | values as above |
//! | `cdn-image` | Wikimedia's CDN, 7 days of 2019, as in the cacheMon collection of cache traces | 51 requests an object, 70 KB a request on average | lognormal with sigma 1.4; Zipf 0.9 |
//! | `cdn-photo` | Tencent's photo store, 2018, same collection | 5.4 requests an object, 25 KB a request: a long tail | lognormal with sigma 1; Zipf 0.7; a tenth of the reads asks for what is asked for once |
//! | `cdn-video` | Meta's CDN, 2025, 3 traces of 7 days, same collection | 20 MB an object, most of it asked for in ranges, 3 requests an object | ranges of 1 MiB; Zipf 0.6; a third of the reads asks for what is asked for once |
//! | `registry` | A. Anwar et al., "Improving Docker registry design based on production workload characterization", FAST 2018 (IBM's registries, 2017) | nine of ten requests are pulls; 65 % of the layers are below 1 MB and 80 % below 10 MB | HEAD before a third of them; half of what is pushed is there already; Zipf 0.9; layers up to 64 MiB |
//!
//! Size is drawn for each object whatever its rank, as L. Breslau et al. found them hardly to be correlated ("Web
//! caching and Zipf-like distributions", INFOCOM 1999).

use clap::ValueEnum;

use super::size::{Bucket, Bytes, Size};
use super::{Mix, Popularity, Workload};
use crate::plan::Op;

/// Starting points for common measurements; every flag given beside one wins over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// GET of 4 KiB over 64 connections.
    #[value(name = "get-4k")]
    Get4k,
    /// GET of 1 MiB over 16 connections.
    #[value(name = "get-1m")]
    Get1m,
    /// PUT of 4 KiB over 16 connections.
    #[value(name = "put-4k")]
    Put4k,
    /// PUT of 1 MiB over 16 connections.
    #[value(name = "put-1m")]
    Put1m,
    /// Four GETs for each PUT, 4 KiB to 4 MiB, over 32 connections.
    Mixed,
    /// Small values, a few of which are asked for most of the time (Twitter's cache clusters).
    #[value(name = "kv-hot")]
    KvHot,
    /// Small values, written as often as read (the same).
    #[value(name = "kv-write")]
    KvWrite,
    /// Images of web pages (Wikimedia's CDN).
    #[value(name = "cdn-image")]
    CdnImage,
    /// Photos with a long tail of seldom seen ones (Tencent).
    #[value(name = "cdn-photo")]
    CdnPhoto,
    /// Videos, mostly in ranges (Meta's CDN).
    #[value(name = "cdn-video")]
    CdnVideo,
    /// Layers of container images, with much that was pushed before (IBM's registries).
    Registry,
}

impl Preset {
    /// The workload and over how many connections.
    pub fn workload(self) -> (Workload, usize) {
        let fixed = |bytes: u64| Size::list(&[bytes]);
        let puts =
            |size, objects| Workload { mix: Mix::of([(Op::Put, 1.0)]), ..Workload::gets(size, objects) };
        let log_normal = |median: u64, sigma, max| Size::LogNormal {
            median: Bytes(median),
            sigma,
            min: Bytes(1),
            max: Bytes(max),
        };
        let zipf = |alpha| Popularity::Zipf { alpha };
        match self {
            Self::Get4k => (Workload::gets(fixed(4 << 10), 1000), 64),
            Self::Get1m => (Workload::gets(fixed(1 << 20), 200), 16),
            Self::Put4k => (puts(fixed(4 << 10), 1000), 16),
            Self::Put1m => (puts(fixed(1 << 20), 200), 16),
            Self::Mixed => {
                let size = Size::list(&[4 << 10, 64 << 10, 1 << 20, 4 << 20]);
                (Workload { mix: Mix::reads_and_writes(0.8), ..Workload::gets(size, 400) }, 32)
            }
            Self::KvHot => {
                let popularity = zipf(1.2);
                let mix = Mix::of([(Op::Get, 98.0), (Op::Put, 2.0)]);
                (Workload { mix, popularity, ..Workload::gets(log_normal(230, 1.6, 67_000), 20_000) }, 64)
            }
            Self::KvWrite => {
                let (mix, popularity) = (Mix::reads_and_writes(0.5), zipf(0.85));
                (Workload { mix, popularity, ..Workload::gets(log_normal(230, 1.6, 67_000), 20_000) }, 64)
            }
            // A lognormal mean is the median times exp(sigma^2 / 2): 70 KB here, 25 KB below.
            Self::CdnImage => {
                let size = log_normal(26_300, 1.4, 16 << 20);
                (Workload { popularity: zipf(0.9), ..Workload::gets(size, 10_000) }, 64)
            }
            Self::CdnPhoto => {
                let size = log_normal(15_200, 1.0, 4 << 20);
                let popularity = zipf(0.7);
                (Workload { popularity, one_hit_ratio: 0.1, ..Workload::gets(size, 20_000) }, 64)
            }
            Self::CdnVideo => {
                let workload = Workload {
                    mix: Mix::of([(Op::Range, 90.0), (Op::Get, 5.0), (Op::Head, 5.0)]),
                    popularity: zipf(0.6),
                    one_hit_ratio: 1.0 / 3.0,
                    one_hit_objects: Some(30),
                    ..Workload::gets(log_normal(12_100_000, 1.0, 256 << 20), 60)
                };
                (workload, 16)
            }
            Self::Registry => {
                let bucket = |weight, min, max| Bucket { weight, min: Bytes(min), max: Bytes(max) };
                let buckets = vec![
                    bucket(0.65, 200, 1_000_000),
                    bucket(0.15, 1_000_000, 10_000_000),
                    bucket(0.20, 10_000_000, 64 << 20),
                ];
                let workload = Workload {
                    mix: Mix::of([(Op::Get, 60.0), (Op::Head, 30.0), (Op::Put, 10.0)]),
                    popularity: zipf(0.9),
                    dup_ratio: 0.5,
                    ..Workload::gets(Size::Buckets { buckets }, 100)
                };
                (workload, 16)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(size: &Size) -> f64 {
        (0..200_000).map(|id| size.of(3, id) as f64).sum::<f64>() / 200_000.0
    }

    #[test]
    fn every_preset_can_be_driven_and_written_as_a_file() {
        for preset in Preset::value_variants() {
            let (workload, connections) = preset.workload();
            workload.check().unwrap();
            assert!(connections > 0);
            let text = toml::to_string(&workload).unwrap();
            assert_eq!(toml::from_str::<Workload>(&text).unwrap(), workload, "{text}");
        }
    }

    #[test]
    fn presets_have_the_sizes_of_their_sources() {
        for (preset, told) in [(Preset::CdnImage, 70e3), (Preset::CdnPhoto, 25e3), (Preset::CdnVideo, 20e6)] {
            let mean = mean(&preset.workload().0.size);
            assert!((mean / told - 1.0).abs() < 0.05, "{preset:?}: {mean:.0} bytes on average, not {told}");
        }
    }
}
