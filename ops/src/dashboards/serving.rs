//! Dashboards of what clients get: the overview, gateways, and the path of a miss.

use super::panel::{
    Dashboard, Limits, Unit, bars, heatmap, lines, quantile, quantiles, query, rate, row, stat, states, sum,
    table,
};

/// Share of the delivered bytes that the site had already.
pub const HIT_RATIO: &str = "sum(rate(dozo_gateway_sent_bytes_total{source=\"hit\"}[$__rate_interval])) \
    / (sum(rate(dozo_gateway_sent_bytes_total{}[$__rate_interval])) > 0)";

/// Share of the requests that were not answered with a failure of ours.
pub const AVAILABILITY: &str = "1 - (sum(rate(dozo_gateway_requests_total{code=~\"5..\"}[$__rate_interval])) or vector(0)) \
    / (sum(rate(dozo_gateway_requests_total{}[$__rate_interval])) > 0)";

/// Processor time in processors, by label.
pub fn processors(by: &str) -> String {
    rate("process_cpu_seconds_total{}", by)
}

pub fn overview() -> Dashboard {
    Dashboard {
        uid: "dozo-overview",
        title: "Dozo / Overview",
        description: "Whether users are served, and where to look if they are not.",
        rows: vec![
            row(
                "Are users served?",
                vec![
                    stat(
                        "Availability",
                        Unit::Ratio,
                        "Share of requests at gateways that were not answered with 5xx. The promise is 99.9 % over 30 days.",
                        AVAILABILITY,
                    )
                    .limits(Limits::Below(0.999, 0.99)),
                    stat(
                        "Error budget left",
                        Unit::Ratio,
                        "What is left of the failures that 30 days may have; below zero the promise is broken.",
                        "1 - (sum(instance:dozo_gateway_failures:rate30d{}) \
                         / (sum(instance:dozo_gateway_requests:rate30d{}) > 0)) / 0.001",
                    )
                    .limits(Limits::Below(0.5, 0.1)),
                    stat(
                        "First byte, p99",
                        Unit::Seconds,
                        "99 of 100 deliveries had their first byte within this time, wherever the bytes came from.",
                        quantile(0.99, "dozo_gateway_time_to_first_byte_seconds{}", ""),
                    )
                    .limits(Limits::Above(0.25, 1.0)),
                    stat(
                        "Sent to clients",
                        Unit::BytesPerSecond,
                        "Content bytes that leave all gateways in a second.",
                        rate("dozo_gateway_sent_bytes_total{}", ""),
                    ),
                    stat(
                        "Hit ratio",
                        Unit::Ratio,
                        "Share of the delivered bytes that the site had already.",
                        HIT_RATIO,
                    )
                    .limits(Limits::Below(0.8, 0.5)),
                    stat(
                        "Alerts",
                        Unit::Number,
                        "Alerts that fire and want somebody.",
                        "count(ALERTS{alertstate=\"firing\", severity=~\"page|ticket\"}) or vector(0)",
                    )
                    .limits(Limits::Above(1.0, 5.0)),
                    stat(
                        "Sites",
                        Unit::Number,
                        "Sites with a gateway that answers Prometheus.",
                        "count(count by (site) (dozo_gateway_map_epoch{}))",
                    ),
                    stat(
                        "Nodes active",
                        Unit::Number,
                        "Storage nodes that serve their shard, as gateways see them.",
                        "sum(max by (site) (dozo_gateway_nodes{state=\"active\"}))",
                    ),
                    stat(
                        "Nodes draining",
                        Unit::Number,
                        "Storage nodes whose contents move away.",
                        "sum(max by (site) (dozo_gateway_nodes{state=\"draining\"}))",
                    ),
                    stat(
                        "Nodes away",
                        Unit::Number,
                        "Storage nodes whose shard another node serves, or nobody.",
                        "sum(max by (site) (dozo_gateway_nodes{state=\"away\"}))",
                    )
                    .limits(Limits::Above(1.0, 2.0)),
                    stat(
                        "Servers that do not answer",
                        Unit::Number,
                        "Servers that search names and Prometheus does not reach.",
                        "count(up{} == 0) or vector(0)",
                    )
                    .limits(Limits::Above(1.0, 2.0)),
                    stat(
                        "Books off balance by",
                        Unit::Number,
                        "Minor units by which debits and credits of the billing servers differ; anything but 0 is an alarm.",
                        "max(abs(dozo_billing_ledger_imbalance_minor_units{}))",
                    )
                    .limits(Limits::Above(1.0, 1.0)),
                ],
            ),
            row(
                "Alerts",
                vec![table(
                    "Alerts that fire",
                    "alertname",
                    "Each alert has a runbook of its name under ops/runbooks.",
                    vec![query(
                        "count by (alertname, severity, job, site, instance) (ALERTS{alertstate=\"firing\", severity=~\"page|ticket\"})",
                        "{{alertname}} {{severity}} {{job}} {{site}} {{instance}}",
                    )],
                )],
            ),
            row(
                "Traffic",
                vec![
                    lines(
                        "Requests by operation",
                        Unit::PerSecond,
                        "Requests at gateways in a second.",
                        vec![query(rate("dozo_gateway_requests_total{}", "op"), "{{op}}")],
                    )
                    .stacked(),
                    lines(
                        "Requests by status",
                        Unit::PerSecond,
                        "HTTP status of the answers; 5xx counts against availability.",
                        vec![query(rate("dozo_gateway_requests_total{}", "code"), "{{code}}")],
                    )
                    .stacked(),
                    lines(
                        "Bytes",
                        Unit::BytesPerSecond,
                        "Content bytes from clients, and to them as negative values.",
                        vec![
                            query(rate("dozo_gateway_received_bytes_total{}", ""), "received"),
                            query(format!("-{}", rate("dozo_gateway_sent_bytes_total{}", "")), "sent"),
                        ],
                    ),
                ],
            ),
            row(
                "Latency",
                vec![
                    heatmap(
                        "GET, to the head of the answer",
                        Unit::Seconds,
                        "How many deliveries took how long until their answer began.",
                        "dozo_gateway_request_duration_seconds{op=\"get\"}",
                    ),
                    lines(
                        "First byte",
                        Unit::Seconds,
                        "Time from a request to its first byte, over all sources.",
                        quantiles(&[0.5, 0.9, 0.99, 0.999], "dozo_gateway_time_to_first_byte_seconds{}", ""),
                    )
                    .width(12),
                ],
            ),
            row(
                "Saturation",
                vec![
                    lines(
                        "Requests in flight",
                        Unit::Number,
                        "Requests that gateways are answering.",
                        vec![query("sum by (instance) (dozo_gateway_inflight_requests{})", "{{instance}}")],
                    ),
                    lines(
                        "Disk used",
                        Unit::Ratio,
                        "Share of the capacity of a site's nodes that is taken.",
                        vec![query(
                            "sum by (site) (dozo_node_used_bytes{}) / sum by (site) (dozo_node_capacity_bytes{})",
                            "{{site}}",
                        )],
                    )
                    .limits(Limits::Above(0.8, 0.9))
                    .max(1.0),
                    lines(
                        "Processors by role",
                        Unit::Number,
                        "Processors that the servers of a role keep busy.",
                        vec![query(processors("job"), "{{job}}")],
                    )
                    .stacked(),
                ],
            ),
            row(
                "Money",
                vec![
                    lines(
                        "Deliveries booked",
                        Unit::PerSecond,
                        "Delivery records that the billing servers booked in a second.",
                        vec![query(rate("dozo_billing_records_total{result=\"booked\"}", "fee"), "{{fee}}")],
                    )
                    .width(12),
                    lines(
                        "Records that wait to be booked",
                        Unit::Number,
                        "Delivery records at nodes that the billing server has not confirmed.",
                        vec![query("sum by (fee) (dozo_node_outbox_pending_records{})", "{{fee}}")],
                    )
                    .width(12),
                ],
            ),
        ],
    }
}

pub fn gateway() -> Dashboard {
    Dashboard {
        uid: "dozo-gateway",
        title: "Dozo / Gateways",
        description: "Requests, errors and times of gateways, and how they see the nodes behind them.",
        rows: vec![
            row(
                "Requests",
                vec![
                    lines(
                        "Requests",
                        Unit::PerSecond,
                        "Requests answered, by operation.",
                        vec![query(rate("dozo_gateway_requests_total{}", "op"), "{{op}}")],
                    )
                    .stacked(),
                    lines(
                        "Refused and failed",
                        Unit::PerSecond,
                        "Answers other than success, by operation and status: 429 and 503 say that there is too much to do.",
                        vec![query(
                            rate("dozo_gateway_requests_total{code=~\"[45]..\"}", "op, code"),
                            "{{op}} {{code}}",
                        )],
                    ),
                    lines(
                        "Time to the answer, p99",
                        Unit::Seconds,
                        "Until the head of the answer; of a PUT all of its bytes are in that time.",
                        quantiles(&[0.99], "dozo_gateway_request_duration_seconds{}", "op"),
                    ),
                    lines(
                        "First byte by source, p99",
                        Unit::Seconds,
                        "Time to the first byte, by where the site had the bytes from.",
                        quantiles(&[0.99], "dozo_gateway_time_to_first_byte_seconds{}", "source"),
                    )
                    .limits(Limits::Above(0.1, 1.0)),
                    lines(
                        "Deliveries by source",
                        Unit::PerSecond,
                        "Deliveries begun, by where the site had the bytes from.",
                        vec![query(rate("dozo_gateway_deliveries_total{}", "source"), "{{source}}")],
                    )
                    .stacked(),
                    lines(
                        "Bytes by source",
                        Unit::BytesPerSecond,
                        "Content bytes sent to clients.",
                        vec![query(rate("dozo_gateway_sent_bytes_total{}", "source"), "{{source}}")],
                    )
                    .stacked(),
                ],
            ),
            row(
                "Load",
                vec![
                    lines(
                        "Requests in flight",
                        Unit::Number,
                        "Requests that are being answered.",
                        vec![query("sum by (instance) (dozo_gateway_inflight_requests{})", "{{instance}}")],
                    ),
                    lines(
                        "Hot chunks in memory",
                        Unit::Ratio,
                        "Share of chunks that needed no storage node.",
                        vec![query(
                            "sum by (instance) (rate(dozo_gateway_cache_hits_total{}[$__rate_interval])) / \
                             (sum by (instance) (rate(dozo_gateway_cache_hits_total{}[$__rate_interval])) + \
                             sum by (instance) (rate(dozo_gateway_cache_misses_total{}[$__rate_interval])) > 0)",
                            "{{instance}}",
                        )],
                    )
                    .max(1.0),
                    bars(
                        "Heaviest clients",
                        Unit::Bytes,
                        "Content bytes sent since gateways started; exact figures are in the bills.",
                        query(
                            "topk(10, sum by (client) (dozo_gateway_top_client_sent_bytes{}))",
                            "{{client}}",
                        ),
                    ),
                    heatmap(
                        "Lengths of delivered contents",
                        Unit::Bytes,
                        "How long the contents are that clients ask for.",
                        "dozo_gateway_content_size_bytes{op=\"get\"}",
                    ),
                    heatmap(
                        "Lengths of published contents",
                        Unit::Bytes,
                        "How long the contents are that clients publish.",
                        "dozo_gateway_content_size_bytes{op=\"put\"}",
                    ),
                ],
            ),
            row(
                "Nodes, as gateways see them",
                vec![
                    lines(
                        "Nodes by state",
                        Unit::Number,
                        "As the map has them; away are those whose shard another serves, or nobody.",
                        vec![query(
                            "sum by (state) (max by (site, state) (dozo_gateway_nodes{}))",
                            "{{state}}",
                        )],
                    ),
                    lines(
                        "Calls by outcome",
                        Unit::PerSecond,
                        "Calls of gateways to storage nodes.",
                        vec![query(
                            rate(
                                "dozo_rpc_client_requests_total{job=\"gateway\", peer_role=\"storage-node\"}",
                                "outcome",
                            ),
                            "{{outcome}}",
                        )],
                    ),
                    lines(
                        "Calls, p99",
                        Unit::Seconds,
                        "Time to the head of the answer of calls to other servers, by their role.",
                        quantiles(
                            &[0.99],
                            "dozo_rpc_client_duration_seconds{job=\"gateway\"}",
                            "peer_role",
                        ),
                    ),
                    lines(
                        "Made up for",
                        Unit::PerSecond,
                        "Calls made again, second copies asked for, chunks fetched anew: users noticed none of it.",
                        vec![
                            query(rate("dozo_gateway_node_retries_total{}", ""), "calls made again"),
                            query(rate("dozo_gateway_hedged_reads_total{}", ""), "second copies asked for"),
                            query(rate("dozo_gateway_chunks_repaired_total{}", ""), "chunks fetched anew"),
                        ],
                    ),
                    lines(
                        "Chunks stored with too few copies",
                        Unit::PerSecond,
                        "A node was away; the others make up for it once it is known to be lost.",
                        vec![query(rate("dozo_gateway_chunk_copies_short_total{}", "site"), "{{site}}")],
                    ),
                    lines(
                        "Maps that differ",
                        Unit::Number,
                        "Newest epoch of the cluster map at a gateway less the oldest: more than 0 for seconds only.",
                        vec![query(
                            "max(dozo_gateway_map_epoch{}) - min(dozo_gateway_map_epoch{})",
                            "newest less oldest",
                        )],
                    )
                    .limits(Limits::Above(1.0, 2.0)),
                    lines(
                        "Ends not yet reported",
                        Unit::Number,
                        "Deliveries that ended and whose node does not know it yet.",
                        vec![query("sum by (instance) (dozo_gateway_ends_pending{})", "{{instance}}")],
                    ),
                    lines(
                        "Ends given up",
                        Unit::PerSecond,
                        "Their deliveries are recorded as 'recovered'.",
                        vec![query(rate("dozo_gateway_ends_lost_total{}", "instance"), "{{instance}}")],
                    ),
                    lines(
                        "Cards answered",
                        Unit::PerSecond,
                        "Answers of cards of the site's clients, by result.",
                        vec![query(rate("dozo_gateway_authentications_total{}", "result"), "{{result}}")],
                    ),
                ],
            ),
            row(
                "Readiness",
                vec![
                    states(
                        "Ready",
                        Unit::YesNo,
                        "Whether each gateway calls itself ready.",
                        vec![query("min by (instance) (dozo_ready{job=\"gateway\"})", "{{instance}}")],
                    )
                    .limits(Limits::Below(1.0, 0.5)),
                ],
            ),
        ],
    }
}

pub fn miss_path() -> Dashboard {
    Dashboard {
        uid: "dozo-miss-path",
        title: "Dozo / Path of a miss",
        description: "From the question where a content is to its last byte collected: search, other sites, origins.",
        rows: vec![
            row("Search", search_panels()),
            row("Collections", collection_panels()),
            row("Sources", source_panels()),
            row("Origins", origin_panels()),
        ],
    }
}

fn search_panels() -> Vec<super::panel::Panel> {
    vec![
        lines(
            "Lookups",
            Unit::PerSecond,
            "Questions where a content is, by whether anybody holds it.",
            vec![query(rate("dozo_search_lookups_total{}", "result"), "{{result}}")],
        )
        .stacked(),
        lines(
            "Calls to search, p99",
            Unit::Seconds,
            "As those who call see it; long polls for changes count the time they wait.",
            quantiles(&[0.99], "dozo_rpc_client_duration_seconds{peer_role=\"search\"}", "job"),
        ),
        lines(
            "Named, but not there",
            Unit::PerSecond,
            "Times a holder named by search turned out not to have the content.",
            vec![query(rate("dozo_search_missing_reports_total{}", ""), "reports")],
        ),
        lines(
            "Announcements",
            Unit::PerSecond,
            "What sites and origins said they hold or no longer hold.",
            vec![query(rate("dozo_search_announcements_total{}", ""), "applied")],
        ),
        lines(
            "Announcements that wait",
            Unit::Number,
            "What nodes and origins have to say and search has not acknowledged.",
            vec![
                query("sum by (instance) (dozo_node_announcements_pending{})", "{{instance}}"),
                query("sum by (instance) (dozo_origin_announcements_pending{})", "{{instance}}"),
            ],
        ),
        lines(
            "Directory",
            Unit::Number,
            "Contents that somebody holds, and pairs of content and holder.",
            vec![
                query("max(dozo_search_contents{})", "contents"),
                query("max(dozo_search_holders{})", "holders"),
            ],
        ),
        lines(
            "Servers registered",
            Unit::Number,
            "By role, and by whether they still report.",
            vec![query("max by (role, state) (dozo_search_servers{}) > 0", "{{role}} {{state}}")],
        ),
        lines(
            "Map",
            Unit::Number,
            "Epoch of the cluster map; each change of servers or nodes raises it.",
            vec![query("max(dozo_search_map_epoch{})", "epoch")],
        ),
        lines(
            "Search's own calls",
            Unit::PerSecond,
            "Requests that search answered, by status.",
            vec![query(rate("dozo_http_requests_total{job=\"search\"}", "code"), "{{code}}")],
        ),
    ]
}

fn collection_panels() -> Vec<super::panel::Panel> {
    vec![
        lines(
            "Collections begun",
            Unit::PerSecond,
            "By where the bytes came from.",
            vec![query(rate("dozo_gateway_collections_total{}", "from"), "{{from}}")],
        )
        .stacked(),
        lines(
            "Not finished, or not by who began",
            Unit::PerSecond,
            "Failed: no source was left. Stopped: nobody waited. Followed, taken over: another gateway was at it.",
            vec![
                query(rate("dozo_gateway_collections_failed_total{}", ""), "failed"),
                query(rate("dozo_gateway_collections_stopped_total{}", ""), "stopped"),
                query(rate("dozo_gateway_collections_followed_total{}", ""), "followed"),
                query(rate("dozo_gateway_collections_taken_over_total{}", ""), "taken over"),
            ],
        ),
        lines(
            "Duration, p50 and p99",
            Unit::Seconds,
            "From a collection's begin to its last byte stored.",
            quantiles(&[0.5, 0.99], "dozo_gateway_collection_duration_seconds{}", "from"),
        ),
        lines(
            "Bytes collected, and spared",
            Unit::BytesPerSecond,
            "Spared are bytes of collected contents that the site had already.",
            vec![
                query(rate("dozo_gateway_collected_bytes_total{}", "from"), "{{from}}"),
                query(rate("dozo_gateway_collections_spared_bytes_total{}", ""), "spared"),
            ],
        ),
        lines(
            "Under way",
            Unit::Number,
            "Collections at work.",
            vec![query("sum by (instance) (dozo_gateway_collections_inflight{})", "{{instance}}")],
        ),
        lines(
            "Requests that joined one",
            Unit::PerSecond,
            "Requests for a content that was being collected: its source sends it once all the same.",
            vec![query(rate("dozo_gateway_coalesced_requests_total{}", "instance"), "{{instance}}")],
        ),
    ]
}

fn source_panels() -> Vec<super::panel::Panel> {
    vec![
        lines(
            "Why the first was the first",
            Unit::PerSecond,
            "Rankings of sources, by what decided.",
            vec![query(rate("dozo_gateway_sources_chosen_total{}", "reason"), "{{reason}}")],
        )
        .stacked(),
        lines(
            "Probes",
            Unit::PerSecond,
            "Measured round trips to sources, by outcome.",
            vec![query(rate("dozo_gateway_source_probes_total{}", "outcome"), "{{outcome}}")],
        ),
        lines(
            "Sources that failed or were late",
            Unit::PerSecond,
            "Fetches that failed, times another source was asked, chunks with other bytes than their hash says.",
            vec![
                query(rate("dozo_gateway_source_failures_total{}", ""), "failed"),
                query(rate("dozo_gateway_hedged_fetches_total{}", ""), "another asked"),
                query(rate("dozo_gateway_hash_mismatches_total{}", ""), "wrong bytes"),
            ],
        ),
        lines(
            "Round trips between sites",
            Unit::Seconds,
            "Smoothed, to the nearest gateway of the other site.",
            vec![query("min by (site, to) (dozo_gateway_site_round_trip_seconds{})", "{{site}} to {{to}}")],
        ),
        lines(
            "Offload of origins",
            Unit::Ratio,
            "Share of the delivered bytes that no origin had to send.",
            vec![query(
                "1 - sum(rate(dozo_gateway_collected_bytes_total{from=\"origin\"}[$__rate_interval])) \
                 / (sum(rate(dozo_gateway_sent_bytes_total{}[$__rate_interval])) > 0)",
                "offload",
            )],
        ),
        lines(
            "Calls between sites",
            Unit::PerSecond,
            "Calls of gateways to other sites' gateways and to origins, by outcome.",
            vec![query(
                rate(
                    "dozo_rpc_client_requests_total{job=\"gateway\", peer_role=~\"gateway|origin\"}",
                    "peer_role, outcome",
                ),
                "{{peer_role}} {{outcome}}",
            )],
        ),
    ]
}

fn origin_panels() -> Vec<super::panel::Panel> {
    vec![
        lines(
            "Sent to sites",
            Unit::BytesPerSecond,
            "Bytes of originals.",
            vec![query(rate("dozo_origin_sent_bytes_total{}", "instance"), "{{instance}}")],
        ),
        lines(
            "Reads",
            Unit::Number,
            "Reads of a source at work, and those that wait for their turn.",
            vec![
                query(sum("dozo_origin_reads_inflight{}", "bucket"), "{{bucket}} at work"),
                query(sum("dozo_origin_reads_waiting{}", "bucket"), "{{bucket}} waiting"),
            ],
        ),
        lines(
            "Refused reads",
            Unit::PerSecond,
            "Busy: too many wait. Changed: the object is another than was registered.",
            vec![query(rate("dozo_origin_refused_reads_total{}", "reason"), "{{reason}}")],
        ),
        lines(
            "Scans",
            Unit::Number,
            "Objects that the scan under way, or the last one, has listed and read.",
            vec![
                query(sum("dozo_origin_scan_listed_objects{}", "bucket"), "{{bucket}} listed"),
                query(sum("dozo_origin_scan_read_objects{}", "bucket"), "{{bucket}} read"),
            ],
        ),
        lines(
            "Read by scans",
            Unit::BytesPerSecond,
            "Bytes of sources read to be registered.",
            vec![query(rate("dozo_origin_scanned_bytes_total{}", "instance"), "{{instance}}")],
        ),
        lines(
            "Scans that failed, withdrawals held",
            Unit::Number,
            "Scans that could not be finished in five minutes; contents missing in a source that are not withdrawn, as they are too many at once.",
            vec![
                query(
                    "sum by (instance) (increase(dozo_origin_failed_scans_total{}[$__rate_interval]))",
                    "{{instance}} failed",
                ),
                query(sum("dozo_origin_withdrawals_held{}", "bucket"), "{{bucket}} held"),
            ],
        ),
        lines(
            "Originals",
            Unit::Number,
            "Contents registered.",
            vec![query(sum("dozo_origin_contents{}", "instance"), "{{instance}}")],
        ),
    ]
}
