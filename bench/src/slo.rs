//! Promises that a run is held to, written `get.p99<50ms`, `put.rate>500` or `all.errors<1`.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::measure::Tally;
use crate::plan::{Op, parse_duration};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Metric {
    /// Of the response time.
    Quantile(f64),
    Mean,
    Max,
    /// Requests a second.
    Rate,
    Errors,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Slo {
    text: String,
    op: Option<Op>,
    metric: Metric,
    /// Seconds, requests a second, or a count.
    bound: f64,
    below: bool,
}

/// How a promise was kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SloResult {
    pub slo: String,
    /// Seconds, requests a second, or a count.
    pub measured: f64,
    pub kept: bool,
}

impl std::fmt::Display for Slo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is not a promise: write OP.METRIC<BOUND, OP get, put, head, range, delete, list, multipart or all, METRIC p50 to p99.99, mean, max, rate or errors, as in get.p99<50ms"
            )
        };
        let at = text.find(['<', '>']).ok_or_else(form)?;
        let (what, bound) = (text[..at].trim(), text[at + 1..].trim());
        let (op, metric) = what.split_once('.').ok_or_else(form)?;
        let op = match op {
            "all" => None,
            op => Some(op.parse().map_err(|_| form())?),
        };
        let metric = match metric {
            "mean" => Metric::Mean,
            "max" => Metric::Max,
            "rate" => Metric::Rate,
            "errors" => Metric::Errors,
            quantile => {
                let percent = quantile.strip_prefix('p').and_then(|q| q.parse::<f64>().ok());
                let percent = percent.filter(|p| (0.0..=100.0).contains(p)).ok_or_else(form)?;
                Metric::Quantile(percent / 100.0)
            }
        };
        let bound = match metric {
            Metric::Rate | Metric::Errors => bound.parse().map_err(|_| form())?,
            _ => parse_duration(bound)?.as_secs_f64(),
        };
        Ok(Self { text: text.to_owned(), op, metric, bound, below: text[at..].starts_with('<') })
    }
}

impl Slo {
    pub fn judge(&self, tally: &Tally, elapsed: Duration) -> SloResult {
        let total = tally.total(self.op);
        let measured = match self.metric {
            Metric::Quantile(quantile) => total.response.at(quantile).as_secs_f64(),
            Metric::Mean => total.response.summary().mean_us / 1e6,
            Metric::Max => total.response.at(1.0).as_secs_f64(),
            Metric::Rate => total.requests as f64 / elapsed.as_secs_f64(),
            Metric::Errors => tally.error_count(self.op) as f64,
        };
        // Without a request nothing was shown, except that there was no error.
        let shown = total.requests > 0 || self.metric == Metric::Errors;
        let kept = shown && if self.below { measured < self.bound } else { measured > self.bound };
        SloResult { slo: self.text.clone(), measured, kept }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Kind, SizeClass, Source, Times};

    #[test]
    fn a_promise_is_judged_on_response_time() {
        let mut tally = Tally::default();
        for ms in 1..=100 {
            let times = Times { response: Duration::from_millis(ms), service: Duration::from_millis(1) };
            let kind = Kind { op: Op::Get, source: Source::Hit, size: SizeClass::of(4096) };
            tally.record(kind, 4096, times, Duration::from_millis(ms), true);
        }
        tally.error(Op::Put, "node_full", Duration::ZERO);
        let kept = |text: &str| text.parse::<Slo>().unwrap().judge(&tally, Duration::from_secs(10)).kept;
        assert!(kept("get.p50<60ms") && !kept("get.p99<50ms") && kept("get.p99>50ms"));
        assert!(kept("get.rate>9.5") && !kept("get.rate>11"));
        assert!(kept("get.errors<1") && !kept("all.errors<1"));
        assert!(kept("all.max<102ms") && kept("all.mean<60ms"));
        assert!(!kept("put.p99<50ms"), "no PUT succeeded, so nothing was shown");
        for bad in ["", "get.p99", "p99<1s", "get.p101<1s", "get.x<1s", "grow.p99<1s", "get.p99<fast"] {
            assert!(bad.parse::<Slo>().is_err(), "{bad}");
        }
    }
}
