//! A report as CSV: one line for each second, operation and source.

use std::fmt::Write as _;

use super::Report;
use super::escape::csv;
use super::overview::Quantiles;

const HEAD: &str = "second,measured,op,source,requests,bytes,errors,\
response_mean_us,response_p50_us,response_p99_us,response_p999_us,response_max_us,\
service_mean_us,service_p50_us,service_p99_us,service_p999_us,service_max_us";

impl Report {
    pub fn to_csv(&self) -> String {
        let warmup_s = self.plan.warmup.as_secs_f64();
        let mut out = format!("{HEAD}\n");
        for row in &self.timeline {
            let (op, source) = (csv(row.op.as_str()), csv(row.source.as_str()));
            // Writing to a String cannot fail.
            let _infallible = write!(
                out,
                "{},{},{op},{source},{},{},{}",
                row.second,
                u8::from(row.second as f64 >= warmup_s),
                row.requests,
                row.bytes,
                row.errors
            );
            for times in [&row.response, &row.service] {
                match Quantiles::of(&times.to_latency()) {
                    Some(q) => {
                        for seconds in [q.mean, q.p50, q.p99, q.p999, q.max] {
                            let _infallible = write!(out, ",{:.1}", seconds * 1e6);
                        }
                    }
                    None => out.push_str(",,,,,"),
                }
            }
            out.push('\n');
        }
        out
    }
}
