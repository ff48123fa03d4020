//! Metrics of the load generator, which is no server: it shows them while it sends, and Prometheus asks for them as a job of
//! its own. Dashboards are checked against this table as against that of the servers.

use super::metrics::{Emitter, Kind, Label, Metric, Values, Watched};

const OP: Label = Label { name: "op", values: Values::Any("operations of the mix") };
/// Where the bytes came from, as the answer says it; `-`: it was no delivery.
const SOURCE: Label = Label { name: "source", values: Values::Of(&["hit", "peer", "origin", "-"]) };

const fn metric(name: &'static str, kind: Kind, labels: &'static [Label], help: &'static str) -> Metric {
    Metric { name, kind, labels, help, emitter: Emitter::LoadGenerator, watched: Watched::Shown }
}

pub const ANSWERS: Metric = metric(
    "bench_answers_total",
    Kind::Counter,
    &[OP, SOURCE],
    "Requests that were answered well, by where the bytes came from.",
);
pub const BYTES: Metric =
    metric("bench_content_bytes_total", Kind::Counter, &[OP, SOURCE], "Content bytes of those answers.");
pub const ERRORS: Metric =
    metric("bench_errors_total", Kind::Counter, &[OP], "Requests that failed or were refused.");
pub const RESPONSE_TIME: Metric = metric(
    "bench_response_time_seconds",
    Kind::Histogram,
    &[OP],
    "From the intended start of a request to its last byte.",
);
pub const SERVICE_TIME: Metric =
    metric("bench_service_time_seconds", Kind::Histogram, &[OP], "From sending a request to its last byte.");
pub const PLANNED: Metric = metric(
    "bench_planned_requests_per_second",
    Kind::Gauge,
    &[],
    "Requests a second that an open loop is to send; 0 where the rate is not constant.",
);
pub const CPU: Metric =
    metric("bench_cpu_seconds_total", Kind::Counter, &[], "Processor time of the load generator.");

pub const ALL: &[Metric] = &[ANSWERS, BYTES, ERRORS, RESPONSE_TIME, SERVICE_TIME, PLANNED, CPU];
