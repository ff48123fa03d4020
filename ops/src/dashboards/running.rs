//! Dashboards of load tests, of processes, and of what is promised.

use super::panel::{
    Dashboard, Limits, Panel, Query, Row, Unit, column, lines, quantile, quantiles, query, rate, row, stat,
    states, table,
};
use super::serving;

const BUSY: &str = "sum by (instance) (rate(dozo_runtime_busy_seconds_total{}[$__rate_interval])) \
    / max by (instance) (dozo_runtime_workers{})";
const FAILED_REQUESTS: &str = "dozo_gateway_requests_total{code=~\"5..\"}";

/// A load test as the load generator and the servers see it.
pub fn load_test() -> Dashboard {
    Dashboard {
        uid: "dozo-load-test",
        title: "Dozo / Load test",
        description: "What the load generator and the servers do while load is made: what is sent, what arrives, what is \
                      answered and how fast, and what is full first.",
        rows: vec![
            load_generator(),
            row(
                "Arrives and is answered",
                vec![
                    lines(
                        "Offered and answered well",
                        Unit::PerSecond,
                        "Requests that gateways took, and those that they answered without a failure or a refusal.",
                        vec![
                            query(rate("dozo_gateway_requests_total{}", ""), "offered"),
                            query(rate("dozo_gateway_requests_total{code!~\"[45]..\"}", ""), "answered well"),
                        ],
                    ),
                    lines(
                        "Refused and failed",
                        Unit::PerSecond,
                        "Other answers, by status.",
                        vec![query(
                            rate("dozo_gateway_requests_total{code=~\"[45]..\"}", "code"),
                            "{{code}}",
                        )],
                    )
                    .stacked(),
                    lines(
                        "In flight",
                        Unit::Number,
                        "Grows without end where more arrives than is answered.",
                        vec![query("sum(dozo_gateway_inflight_requests{})", "requests")],
                    ),
                ],
            ),
            row(
                "How fast",
                vec![
                    lines(
                        "Answer to GET",
                        Unit::Seconds,
                        "As gateways see it; what clients wait for besides is in the load generator's report.",
                        quantiles(
                            &[0.5, 0.9, 0.99, 0.999],
                            "dozo_gateway_request_duration_seconds{op=\"get\"}",
                            "",
                        ),
                    ),
                    lines(
                        "Answer to PUT",
                        Unit::Seconds,
                        "All bytes of the content are in that time.",
                        quantiles(
                            &[0.5, 0.9, 0.99, 0.999],
                            "dozo_gateway_request_duration_seconds{op=\"put\"}",
                            "",
                        ),
                    ),
                    lines(
                        "First byte by source, p50 and p99",
                        Unit::Seconds,
                        "Hits, and the two kinds of misses.",
                        quantiles(&[0.5, 0.99], "dozo_gateway_time_to_first_byte_seconds{}", "source"),
                    ),
                    lines(
                        "Bytes",
                        Unit::BytesPerSecond,
                        "Content bytes from and to clients.",
                        vec![
                            query(rate("dozo_gateway_received_bytes_total{}", ""), "received"),
                            query(rate("dozo_gateway_sent_bytes_total{}", ""), "sent"),
                        ],
                    ),
                    lines(
                        "Hit ratio",
                        Unit::Ratio,
                        "Share of the delivered bytes that the site had already.",
                        vec![query(serving::HIT_RATIO, "hit ratio")],
                    )
                    .max(1.0),
                    lines(
                        "Booked",
                        Unit::PerSecond,
                        "Deliveries begun, and records booked by each billing server: the lines lie on each other.",
                        vec![
                            query(rate("dozo_gateway_deliveries_total{}", ""), "deliveries"),
                            query(
                                rate("dozo_billing_records_total{result=\"booked\"}", "fee"),
                                "{{fee}} booked",
                            ),
                        ],
                    ),
                ],
            ),
            row(
                "What is full first",
                vec![
                    lines(
                        "Processors",
                        Unit::Number,
                        "Processors that each server keeps busy. Servers of one process show the same line.",
                        vec![query(serving::processors("instance"), "{{instance}}")],
                    ),
                    busy(),
                    lines(
                        "Tasks that wait for a thread",
                        Unit::Number,
                        "More than a moment of it: there are too few processors.",
                        vec![query("max by (instance) (dozo_runtime_queued_tasks{})", "{{instance}}")],
                    ),
                    lines(
                        "Commit, p99",
                        Unit::Seconds,
                        "Each first byte waits for one.",
                        quantiles(&[0.99], "dozo_node_commit_duration_seconds{}", "instance"),
                    ),
                    lines(
                        "Read from disk",
                        Unit::BytesPerSecond,
                        "Bytes of chunks read by nodes.",
                        vec![query(rate("dozo_node_disk_read_bytes_total{}", "instance"), "{{instance}}")],
                    ),
                    lines(
                        "Waiting at disks",
                        Unit::Number,
                        "Reads and writes that the device has not answered.",
                        vec![query("max by (instance) (dozo_node_disk_inflight_requests{})", "{{instance}}")],
                    ),
                ],
            ),
        ],
    }
}

/// What clients get, as they feel it; nothing of it is there unless Prometheus asks the load generator.
fn load_generator() -> Row {
    let times = |title, description, selector| {
        lines(title, Unit::Seconds, description, quantiles(&[0.5, 0.99], selector, "op"))
    };
    row(
        "The load generator (bench run --metrics-listen)",
        vec![
            lines(
                "Planned and answered",
                Unit::PerSecond,
                "What an open loop is to send, and answers that did not fail. A closed loop plans nothing.",
                vec![
                    query("sum(bench_planned_requests_per_second{})", "planned"),
                    query(rate("bench_answers_total{}", "op, source"), "{{op}} {{source}}"),
                ],
            ),
            lines(
                "Failed",
                Unit::PerSecond,
                "Requests that were refused or got no answer, by operation.",
                vec![query(rate("bench_errors_total{}", "op"), "{{op}}")],
            )
            .stacked(),
            lines(
                "Received and sent",
                Unit::BytesPerSecond,
                "Content bytes, by operation.",
                vec![query(rate("bench_content_bytes_total{}", "op"), "{{op}}")],
            ),
            times(
                "Response, p50 and p99",
                "From the intended start: what a request waited because the system was slow is in it.",
                "bench_response_time_seconds{}",
            ),
            times(
                "Service, p50 and p99",
                "From sending: far below the response time where requests wait.",
                "bench_service_time_seconds{}",
            ),
            lines(
                "Processors of the load generator",
                Unit::Number,
                "As many as it has threads: the load generator is the limit, and measures itself.",
                vec![query(rate("bench_cpu_seconds_total{}", ""), "processors")],
            ),
        ],
    )
}

fn busy() -> Panel {
    lines(
        "Threads busy",
        Unit::Ratio,
        "Share of their time that the threads of each process ran tasks.",
        vec![query(BUSY, "{{instance}}")],
    )
    .limits(Limits::Above(0.8, 0.95))
    .max(1.0)
}

pub fn runtime() -> Dashboard {
    Dashboard {
        uid: "dozo-runtime",
        title: "Dozo / Processes",
        description: "Every server as a process: versions, readiness, processors, memory, files, calls, faults.",
        rows: vec![
            row(
                "Servers",
                vec![
                    table(
                        "Servers",
                        "instance",
                        "One row a server, as it is now.",
                        vec![
                            column("Ready", Unit::YesNo, "min by (instance) (dozo_ready{})"),
                            column("Stopping", Unit::YesNo, "max by (instance) (dozo_draining{})"),
                            column(
                                "Runs for",
                                Unit::Seconds,
                                "time() - max by (instance) (dozo_start_time_seconds{})",
                            ),
                            column(
                                "Processors",
                                Unit::Number,
                                rate("process_cpu_seconds_total{}", "instance"),
                            ),
                            column(
                                "Memory",
                                Unit::Bytes,
                                "max by (instance) (process_resident_memory_bytes{})",
                            ),
                            column("Files", Unit::Number, "max by (instance) (process_open_fds{})"),
                        ],
                    )
                    .width(16),
                    table(
                        "Versions",
                        "version",
                        "How many servers of a role run which version: one line a role, unless an upgrade is under way.",
                        vec![query("count by (version, job) (dozo_build_info{})", "{{version}} {{job}}")],
                    )
                    .width(8),
                    states(
                        "Answers Prometheus",
                        Unit::YesNo,
                        "Whether each server that search names could be asked.",
                        vec![query("min by (instance) (up{})", "{{instance}}")],
                    )
                    .limits(Limits::Below(1.0, 0.5)),
                ],
            ),
            row(
                "Use",
                vec![
                    lines(
                        "Processors",
                        Unit::Number,
                        "Processors that each server keeps busy.",
                        vec![query(serving::processors("instance"), "{{instance}}")],
                    ),
                    busy(),
                    lines(
                        "Memory",
                        Unit::Bytes,
                        "In use, as the kernel counts it.",
                        vec![query("max by (instance) (process_resident_memory_bytes{})", "{{instance}}")],
                    ),
                    lines(
                        "Tasks",
                        Unit::Number,
                        "Tasks that are not finished; a line that only rises is a leak.",
                        vec![query("max by (instance) (dozo_runtime_tasks{})", "{{instance}}")],
                    ),
                    lines(
                        "Tasks that wait for a thread",
                        Unit::Number,
                        "More than a moment of it: there are too few processors.",
                        vec![query("max by (instance) (dozo_runtime_queued_tasks{})", "{{instance}}")],
                    ),
                    lines(
                        "Files",
                        Unit::Ratio,
                        "File descriptors in use, of those that the process may have.",
                        vec![query(
                            "max by (instance) (process_open_fds{}) / max by (instance) (process_max_fds{})",
                            "{{instance}}",
                        )],
                    )
                    .limits(Limits::Above(0.7, 0.9)),
                    lines(
                        "Threads",
                        Unit::Number,
                        "Of the operating system.",
                        vec![query("max by (instance) (process_threads{})", "{{instance}}")],
                    ),
                    lines(
                        "Connections",
                        Unit::Number,
                        "Open connections of the service listener.",
                        vec![query("sum by (instance) (dozo_http_connections{})", "{{instance}}")],
                    ),
                ],
            ),
            row(
                "Requests",
                vec![
                    lines(
                        "Requests by role",
                        Unit::PerSecond,
                        "Answered on the service listeners.",
                        vec![query(rate("dozo_http_requests_total{}", "job"), "{{job}}")],
                    ),
                    lines(
                        "Failed, by route",
                        Unit::PerSecond,
                        "Answers 5xx, of the ten routes with the most.",
                        vec![query(
                            format!(
                                "topk(10, {})",
                                rate("dozo_http_requests_total{code=~\"5..\"}", "job, route, code")
                            ),
                            "{{job}} {{route}} {{code}}",
                        )],
                    ),
                    lines(
                        "Time to the answer, p99",
                        Unit::Seconds,
                        "Of the ten slowest routes; long polls count the time they wait.",
                        vec![query(
                            format!(
                                "topk(10, {})",
                                quantile(0.99, "dozo_http_request_duration_seconds{}", "job, route")
                            ),
                            "{{job}} {{route}}",
                        )],
                    ),
                    lines(
                        "Calls between servers that failed",
                        Unit::PerSecond,
                        "By who was asked, and how it failed, of the ten most; refused is an answer 4xx.",
                        vec![query(
                            format!(
                                "topk(10, {} > 0)",
                                rate(
                                    "dozo_rpc_client_requests_total{outcome!=\"ok\"}",
                                    "job, peer_role, outcome"
                                )
                            ),
                            "{{job}} to {{peer_role}} {{outcome}}",
                        )],
                    )
                    .width(12),
                    lines(
                        "Calls between servers, p99",
                        Unit::Seconds,
                        "Time to the head of the answer, by who was asked.",
                        quantiles(&[0.99], "dozo_rpc_client_duration_seconds{}", "peer_role"),
                    )
                    .width(12),
                ],
            ),
            row(
                "Faults",
                vec![
                    lines(
                        "Log lines",
                        Unit::PerSecond,
                        "Warnings and errors; an error means that somebody must look.",
                        vec![query(
                            format!("{} > 0", rate("dozo_log_messages_total{}", "instance, level")),
                            "{{instance}} {{level}}",
                        )],
                    )
                    .width(12),
                    lines(
                        "Panics",
                        Unit::Number,
                        "Each is a fault of the program.",
                        vec![query(
                            "sum by (instance) (increase(dozo_panics_total{}[$__rate_interval]))",
                            "{{instance}}",
                        )],
                    )
                    .width(12),
                    lines(
                        "Configuration read again",
                        Unit::Number,
                        "While the server ran, by result.",
                        vec![query(
                            "sum by (instance, result) (increase(dozo_config_reloads_total{}[$__rate_interval]))",
                            "{{instance}} {{result}}",
                        )],
                    )
                    .width(12),
                    lines(
                        "Age of the configuration",
                        Unit::Seconds,
                        "Since it was last read without an error.",
                        vec![query(
                            "time() - max by (instance) (dozo_config_last_reload_success_timestamp_seconds{})",
                            "{{instance}}",
                        )],
                    )
                    .width(12),
                ],
            ),
        ],
    }
}

pub fn objectives() -> Dashboard {
    let windows = ["5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d"];
    Dashboard {
        uid: "dozo-slo",
        title: "Dozo / What is promised",
        description: "Each promise over 30 days: how it is kept, what of its budget is left, how fast it burns.",
        rows: vec![
            promise(
                "Availability: 99.9 % of requests are not answered with 5xx",
                ["dozo_gateway_failures", "dozo_gateway_requests"],
                0.001,
                &windows,
                query(rate(FAILED_REQUESTS, "op, code"), "{{op}} {{code}}"),
            ),
            promise(
                "Latency: 99 % of first bytes that the site had come within 100 ms",
                ["dozo_gateway_late_first_bytes", "dozo_gateway_first_bytes"],
                0.01,
                &windows,
                query(
                    quantile(0.99, "dozo_gateway_time_to_first_byte_seconds{source=\"hit\"}", "instance"),
                    "{{instance}} p99",
                ),
            ),
            row(
                "Durability and billing",
                vec![
                    stat(
                        "Damaged in 30 days",
                        Unit::Number,
                        "Chunks found damaged or missing. None may stay so.",
                        "sum(instance:dozo_node_scrub_damaged:increase30d{})",
                    )
                    .width(6),
                    stat(
                        "Oldest whole round",
                        Unit::Seconds,
                        "Every node reads all that it stores at least once in 30 days.",
                        "time() - min(dozo_node_scrub_last_completed_timestamp_seconds{} > 0)",
                    )
                    .width(6)
                    .limits(Limits::Above(1_296_000.0, 2_592_000.0)),
                    stat(
                        "Booked within 5 min",
                        Unit::Ratio,
                        "Share of the batches whose oldest delivery was booked within five minutes of its end.",
                        "sum(rate(dozo_billing_record_lag_seconds_bucket{le=\"300\"}[$__rate_interval])) \
                         / (sum(rate(dozo_billing_record_lag_seconds_count{}[$__rate_interval])) > 0)",
                    )
                    .width(6)
                    .limits(Limits::Below(0.9999, 0.999)),
                    stat(
                        "Books off balance by",
                        Unit::Number,
                        "Minor units; anything but 0 is an alarm.",
                        "max(abs(dozo_billing_ledger_imbalance_minor_units{}))",
                    )
                    .width(6)
                    .limits(Limits::Above(1.0, 1.0)),
                ],
            ),
        ],
    }
}

/// A promise that a share of events is good, of which recording rules count the `[bad, all]`.
fn promise(title: &'static str, [bad, all]: [&str; 2], budget: f64, windows: &[&str], cause: Query) -> Row {
    let ratio = |window: &str| {
        format!("sum(instance:{bad}:rate{window}{{}}) / (sum(instance:{all}:rate{window}{{}}) > 0)")
    };
    let burn = |window: &&str| query(format!("({}) / {budget}", ratio(window)), window);
    row(
        title,
        vec![
            stat("Kept", Unit::Ratio, "Share of what was good, over 30 days.", format!("1 - ({})", ratio("30d")))
                .limits(Limits::Below(1.0 - budget, 1.0 - 2.0 * budget)),
            stat(
                "Budget left",
                Unit::Ratio,
                "Of what may be bad in 30 days; below zero the promise is broken.",
                format!("1 - ({}) / {budget}", ratio("30d")),
            )
            .limits(Limits::Below(0.5, 0.1)),
            lines(
                "How fast the budget burns, by window",
                Unit::Number,
                "1 uses it up in just 30 days. Pages at 14.4 over an hour and 6 over six, tickets at 3 over a day and 1 over three.",
                windows.iter().map(burn).collect(),
            )
            .limits(Limits::Above(6.0, 14.4)),
            lines("What is bad", Unit::Number, "Where to look.", vec![cause]),
        ],
    )
}
