//! A report's timeline condensed for reading: seconds of all kinds together, in as many pieces as fit into a picture.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Report, TimelineRow};
use crate::latency::Latency;
use crate::plan::Op;

/// Pieces of time in one picture.
const PIECES_MAX: u64 = 400;

/// Times in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quantiles {
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Quantiles {
    pub fn of(latency: &Latency) -> Option<Self> {
        let at = |quantile| latency.at(quantile).as_secs_f64();
        let mean = latency.mean_s();
        (latency.count() > 0).then(|| Self {
            mean,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        })
    }
}

/// One second, or several in a long run.
#[derive(Debug, Clone, Default)]
pub struct Piece {
    /// Since the start of the load.
    pub at_s: f64,
    pub requests_per_s: BTreeMap<Op, f64>,
    pub bytes_per_s: f64,
    pub errors_per_s: f64,
    pub response: Option<Quantiles>,
    pub service: Option<Quantiles>,
    /// Nanoseconds of response time, and how many answers.
    pub times: Vec<(u64, u64)>,
}

pub struct Overview {
    pub pieces: Vec<Piece>,
    /// Length of a piece.
    pub piece_s: u64,
    pub warmup_s: f64,
    /// When arrivals ended.
    pub arrivals_end_s: f64,
    /// When the last answer was there.
    pub end_s: f64,
}

impl Overview {
    pub fn of(report: &Report) -> Self {
        let warmup_s = report.plan.warmup.as_secs_f64();
        let arrivals_end_s = warmup_s + report.plan.duration.as_secs_f64();
        let end_s = arrivals_end_s.max(warmup_s + report.elapsed_s);
        // What came after the last full second is a piece of a second only.
        let seconds = (end_s.floor() as u64).max(1);
        let piece_s = seconds.div_ceil(PIECES_MAX);
        let pieces = (0..seconds.div_ceil(piece_s)).map(|piece| {
            let (from, to) = (piece * piece_s, ((piece + 1) * piece_s).min(seconds));
            Piece::of(report.timeline.iter().filter(|row| (from..to).contains(&row.second)), from, to - from)
        });
        Self { pieces: pieces.collect(), piece_s, warmup_s, arrivals_end_s, end_s }
    }

    pub fn ops(&self) -> Vec<Op> {
        let mut ops: Vec<Op> =
            self.pieces.iter().flat_map(|piece| piece.requests_per_s.keys().copied()).collect();
        ops.sort_unstable();
        ops.dedup();
        ops
    }
}

impl Piece {
    fn of<'a>(rows: impl Iterator<Item = &'a TimelineRow>, from_s: u64, seconds: u64) -> Self {
        let mut piece = Self { at_s: from_s as f64, ..Self::default() };
        let (mut response, mut service) = (Latency::default(), Latency::default());
        let mut times: BTreeMap<u64, u64> = BTreeMap::new();
        for row in rows {
            *piece.requests_per_s.entry(row.op).or_default() += row.requests as f64 / seconds as f64;
            piece.bytes_per_s += row.bytes as f64 / seconds as f64;
            piece.errors_per_s += row.errors as f64 / seconds as f64;
            response.add(&row.response);
            service.add(&row.service);
            for (ns, count) in row.response.iter() {
                *times.entry(ns).or_default() += count;
            }
        }
        (piece.response, piece.service) = (Quantiles::of(&response), Quantiles::of(&service));
        piece.times = times.into_iter().collect();
        piece
    }
}

/// Response and service times of all answers after the warm-up, of one operation or of all.
pub fn totals(report: &Report, op: Option<Op>) -> (Latency, Latency) {
    let from = report.plan.warmup.as_secs_f64().ceil() as u64;
    let (mut response, mut service) = (Latency::default(), Latency::default());
    let is_meant = |row: &&TimelineRow| row.second >= from && op.is_none_or(|op| op == row.op);
    for row in report.timeline.iter().filter(is_meant) {
        response.add(&row.response);
        service.add(&row.service);
    }
    (response, service)
}

/// The quantiles of a spectrum, as far as `count` values tell them apart: shares of values above, and times in seconds.
pub fn spectrum(latency: &Latency) -> Vec<(f64, f64)> {
    const STEPS_PER_DECADE: i32 = 12;
    let count = latency.count();
    if count == 0 {
        return Vec::new();
    }
    let last = ((count as f64).log10() * f64::from(STEPS_PER_DECADE)).floor() as i32;
    let point = |step: i32| {
        let above = 10f64.powf(-f64::from(step) / f64::from(STEPS_PER_DECADE));
        (1.0 / above, latency.at(1.0 - above).max(Duration::from_nanos(1)).as_secs_f64())
    };
    (0..=last).map(point).collect()
}
