//! Dashboards of storage: nodes, joining and draining them, their disks, and room.

use super::panel::{
    Dashboard, Limits, Panel, Unit, bars, column, heatmap, lines, quantile, quantiles, query, rate, row,
    stat, states, sum, table,
};
use super::serving;

const USED_RATIO: &str =
    "max by (instance) (dozo_node_used_bytes{}) / max by (instance) (dozo_node_capacity_bytes{})";
/// A node's state as a number; it is in one of them at a time.
const STATE: &str = "max by (instance) (dozo_node_state{state=\"joining\"}) * 1 \
    + max by (instance) (dozo_node_state{state=\"active\"}) * 2 \
    + max by (instance) (dozo_node_state{state=\"draining\"}) * 3 \
    + max by (instance) (dozo_node_state{state=\"removed\"}) * 4";
const STATES: &[(u8, &str, &str)] =
    &[(1, "joining", "blue"), (2, "active", "green"), (3, "draining", "orange"), (4, "removed", "purple")];

fn days_to_full() -> Panel {
    bars(
        "Days until full",
        Unit::Number,
        "At the growth of the last six hours; nodes that do not grow are left out.",
        query(
            "max by (instance) ((dozo_node_capacity_bytes{} - dozo_node_used_bytes{}) \
             / clamp_min(deriv(dozo_node_used_bytes{}[6h]), 1)) / 86400",
            "{{instance}}",
        ),
    )
    .limits(Limits::Below(14.0, 3.0))
}

fn states_of_nodes() -> Panel {
    states(
        "State of each node",
        Unit::Number,
        "As the map has it. A gap: the node does not answer Prometheus.",
        vec![query(STATE, "{{instance}}")],
    )
    .names(STATES)
}

pub fn storage_nodes() -> Dashboard {
    Dashboard {
        uid: "dozo-storage-nodes",
        title: "Dozo / Storage nodes",
        description: "All storage nodes beside each other: state, room, work, faults.",
        rows: vec![
            row(
                "Nodes",
                vec![
                    table(
                        "Nodes",
                        "instance",
                        "One row a node, as it is now. State: 1 joining, 2 active, 3 draining, 4 removed.",
                        vec![
                            column("State", Unit::Number, STATE),
                            column("Capacity", Unit::Bytes, "max by (instance) (dozo_node_capacity_bytes{})"),
                            column("Used", Unit::Ratio, USED_RATIO),
                            column("Chunks", Unit::Number, "max by (instance) (dozo_node_chunks{})"),
                            column(
                                "Contents over room",
                                Unit::Number,
                                "max by (instance) (dozo_node_logical_bytes{}) \
                                 / (max by (instance) (dozo_node_used_bytes{}) > 0)",
                            ),
                            column("Shards", Unit::Number, "max by (instance) (dozo_node_shards{})"),
                            column(
                                "Read, p99",
                                Unit::Seconds,
                                quantile(0.99, "dozo_node_disk_read_duration_seconds{}", "instance"),
                            ),
                            column(
                                "Disk errors",
                                Unit::PerSecond,
                                rate("dozo_node_disk_errors_total{}", "instance"),
                            ),
                            column(
                                "Last start took",
                                Unit::Seconds,
                                "max by (instance) (dozo_node_recovery_duration_seconds{})",
                            ),
                        ],
                    ),
                    states_of_nodes(),
                ],
            ),
            row(
                "Room",
                vec![
                    bars(
                        "Used",
                        Unit::Ratio,
                        "Share of each node's capacity that is taken.",
                        query(USED_RATIO, "{{instance}}"),
                    )
                    .limits(Limits::Above(0.8, 0.9))
                    .max(1.0),
                    lines(
                        "Balance",
                        Unit::Ratio,
                        "Standard deviation of how full the nodes of a site are: 0 is even.",
                        vec![query(
                            "stddev by (site) (dozo_node_used_bytes{} / dozo_node_capacity_bytes{})",
                            "{{site}}",
                        )],
                    ),
                    days_to_full(),
                ],
            ),
            row(
                "Work",
                vec![
                    lines(
                        "Requests",
                        Unit::PerSecond,
                        "Requests that nodes answered, by status.",
                        vec![query(
                            rate("dozo_http_requests_total{job=\"storage-node\"}", "code"),
                            "{{code}}",
                        )],
                    )
                    .stacked(),
                    lines(
                        "Requests by node",
                        Unit::PerSecond,
                        "Even where clients ask for many contents.",
                        vec![query(
                            rate("dozo_http_requests_total{job=\"storage-node\"}", "instance"),
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Time to the answer, p99",
                        Unit::Seconds,
                        "By route, of the ten slowest.",
                        vec![query(
                            format!(
                                "topk(10, {})",
                                quantile(
                                    0.99,
                                    "dozo_http_request_duration_seconds{job=\"storage-node\"}",
                                    "route"
                                )
                            ),
                            "{{route}}",
                        )],
                    ),
                    lines(
                        "Shards served",
                        Unit::Number,
                        "Each node's own and those that it serves in place of another.",
                        vec![query("max by (instance) (dozo_node_shards{})", "{{instance}}")],
                    ),
                    lines(
                        "Followers missing",
                        Unit::Number,
                        "Copies of shards that are not in step: one more loss would lose rows.",
                        vec![query("max by (instance) (dozo_node_followers_missing{})", "{{instance}}")],
                    )
                    .limits(Limits::Above(1.0, 2.0)),
                    lines(
                        "Deliveries open",
                        Unit::Number,
                        "Begun and not yet recorded as ended.",
                        vec![query("max by (instance) (dozo_node_deliveries_open{})", "{{instance}}")],
                    ),
                ],
            ),
            row(
                "What must not be",
                vec![
                    lines(
                        "Damaged chunks",
                        Unit::PerSecond,
                        "Reads that found other bytes than the chunk's.",
                        vec![query(rate("dozo_node_damaged_chunks_total{}", "instance"), "{{instance}}")],
                    ),
                    lines(
                        "Repaired chunks",
                        Unit::PerSecond,
                        "Damaged or missing chunks that another node had.",
                        vec![query(rate("dozo_node_repaired_chunks_total{}", "instance"), "{{instance}}")],
                    ),
                    lines(
                        "References that no holding needed",
                        Unit::PerSecond,
                        "Found and released; more than a few point to a fault.",
                        vec![query(rate("dozo_node_surplus_references_total{}", "instance"), "{{instance}}")],
                    ),
                ],
            ),
        ],
    }
}

pub fn topology_change() -> Dashboard {
    Dashboard {
        uid: "dozo-topology-change",
        title: "Dozo / A node joins or drains",
        description: "To be watched while a node is added, drained or lost: what moves, how long it takes, and whether \
                      users notice.",
        rows: vec![
            row(
                "Progress",
                vec![
                    stat(
                        "Still to move",
                        Unit::Bytes,
                        "Bytes that nodes have to send to others.",
                        "sum(dozo_node_moves_pending_bytes{})",
                    )
                    .width(6),
                    stat(
                        "Moves at",
                        Unit::BytesPerSecond,
                        "Bytes of chunks sent to other nodes in a second.",
                        rate("dozo_node_moves_bytes_total{}", ""),
                    )
                    .width(6),
                    stat(
                        "Done in",
                        Unit::Seconds,
                        "What is still to move, at the rate of now.",
                        "sum(dozo_node_moves_pending_bytes{}) \
                         / clamp_min(sum(rate(dozo_node_moves_bytes_total{}[$__rate_interval])), 1)",
                    )
                    .width(6),
                    stat(
                        "Followers missing",
                        Unit::Number,
                        "Copies of shards that are not in step yet.",
                        "sum(dozo_node_followers_missing{})",
                    )
                    .width(6)
                    .limits(Limits::Above(1.0, 4.0)),
                    states_of_nodes(),
                ],
            ),
            row(
                "Movement",
                vec![
                    lines(
                        "Still to move, by node",
                        Unit::Bytes,
                        "Falls to zero; a node that drains may leave then.",
                        vec![query("max by (instance) (dozo_node_moves_pending_bytes{})", "{{instance}}")],
                    ),
                    lines(
                        "Sent, by node",
                        Unit::BytesPerSecond,
                        "Bytes of chunks sent to other nodes.",
                        vec![query(
                            rate("dozo_node_moves_bytes_total{direction=\"out\"}", "instance"),
                            "{{instance}}",
                        )],
                    )
                    .stacked(),
                    lines(
                        "Chunks",
                        Unit::PerSecond,
                        "Sent to other nodes, and deleted here as all that are to have them do.",
                        vec![
                            query(rate("dozo_node_moves_chunks_total{}", "instance"), "{{instance}} sent"),
                            query(
                                rate("dozo_node_moves_dropped_chunks_total{}", "instance"),
                                "{{instance}} deleted",
                            ),
                        ],
                    ),
                    lines(
                        "Used, by node",
                        Unit::Ratio,
                        "A new node fills, a draining one empties.",
                        vec![query(USED_RATIO, "{{instance}}")],
                    )
                    .limits(Limits::Above(0.8, 0.9)),
                    lines(
                        "Shards, by node",
                        Unit::Number,
                        "What each node serves; a node that drains hands its own over.",
                        vec![query("max by (instance) (dozo_node_shards{})", "{{instance}}")],
                    ),
                    lines(
                        "Requests, by node",
                        Unit::PerSecond,
                        "A new node takes its share.",
                        vec![query(
                            rate("dozo_http_requests_total{job=\"storage-node\"}", "instance"),
                            "{{instance}}",
                        )],
                    )
                    .stacked(),
                ],
            ),
            row(
                "Do users notice?",
                vec![
                    lines(
                        "First byte, p99",
                        Unit::Seconds,
                        "Beside the movement above: it must stay as it was.",
                        quantiles(&[0.5, 0.99], "dozo_gateway_time_to_first_byte_seconds{}", ""),
                    ),
                    lines(
                        "Availability",
                        Unit::Ratio,
                        "Share of requests that were not answered with 5xx.",
                        vec![query(serving::AVAILABILITY, "availability")],
                    )
                    .limits(Limits::Below(0.999, 0.99)),
                    lines(
                        "Epoch of the map",
                        Unit::Number,
                        "All gateways follow search within seconds.",
                        vec![
                            query("max by (instance) (dozo_gateway_map_epoch{})", "{{instance}}"),
                            query("max by (instance) (dozo_search_map_epoch{})", "{{instance}}"),
                        ],
                    ),
                ],
            ),
        ],
    }
}

pub fn disk() -> Dashboard {
    Dashboard {
        uid: "dozo-disk",
        title: "Dozo / Disks",
        description: "Use, saturation and errors of what storage nodes store on.",
        rows: vec![
            row(
                "Use",
                vec![
                    lines(
                        "Read",
                        Unit::BytesPerSecond,
                        "Bytes of chunks read.",
                        vec![query(rate("dozo_node_disk_read_bytes_total{}", "instance"), "{{instance}}")],
                    ),
                    lines(
                        "Written",
                        Unit::BytesPerSecond,
                        "Frames of the log, and objects.",
                        vec![query(rate("dozo_node_disk_written_bytes_total{}", "instance"), "{{instance}}")],
                    ),
                    lines(
                        "Commits",
                        Unit::PerSecond,
                        "Durable group commits of the log.",
                        vec![query(rate("dozo_node_commits_total{}", "instance"), "{{instance}}")],
                    ),
                ],
            ),
            row(
                "Saturation",
                vec![
                    lines(
                        "In flight",
                        Unit::Number,
                        "Reads and writes that the device has not answered.",
                        vec![query("max by (instance) (dozo_node_disk_inflight_requests{})", "{{instance}}")],
                    ),
                    lines(
                        "Commit, p99",
                        Unit::Seconds,
                        "From a group's writing to its being durable: every PUT and every first byte waits for one.",
                        quantiles(&[0.99], "dozo_node_commit_duration_seconds{}", "instance"),
                    ),
                    lines(
                        "Read, p99",
                        Unit::Seconds,
                        "From the request of a chunk to its bytes.",
                        quantiles(&[0.99], "dozo_node_disk_read_duration_seconds{}", "instance"),
                    ),
                    lines(
                        "Entries in a commit",
                        Unit::Number,
                        "What one commit makes durable together: grows with load.",
                        quantiles(&[0.5, 0.99], "dozo_node_commit_entries{}", "instance"),
                    ),
                    lines(
                        "Errors",
                        Unit::PerSecond,
                        "Requests that the device or the object store failed.",
                        vec![query(
                            rate("dozo_node_disk_errors_total{}", "instance, operation"),
                            "{{instance}} {{operation}}",
                        )],
                    ),
                    heatmap(
                        "Time of reads",
                        Unit::Seconds,
                        "How many reads took how long.",
                        "dozo_node_disk_read_duration_seconds{}",
                    ),
                    heatmap(
                        "Time of commits",
                        Unit::Seconds,
                        "How many commits took how long.",
                        "dozo_node_commit_duration_seconds{}",
                    ),
                ],
            ),
            row(
                "Cleaning",
                vec![
                    lines(
                        "Segments freed",
                        Unit::PerSecond,
                        "Segments of the log freed by moving what was still needed.",
                        vec![query(rate("dozo_node_compactions_total{}", "instance"), "{{instance}}")],
                    )
                    .width(12),
                    lines(
                        "Moved for it",
                        Unit::BytesPerSecond,
                        "Bytes of chunks written again to free segments.",
                        vec![query(rate("dozo_node_compacted_bytes_total{}", "instance"), "{{instance}}")],
                    )
                    .width(12),
                ],
            ),
        ],
    }
}

pub fn capacity() -> Dashboard {
    Dashboard {
        uid: "dozo-capacity",
        title: "Dozo / Room and deduplication",
        description: "How much is stored, what sharing chunks saves, when room ends, and whether it is all still right.",
        rows: vec![
            row(
                "Room",
                vec![
                    lines(
                        "Contents and room",
                        Unit::Bytes,
                        "Bytes of contents, and the bytes that they take with all their copies.",
                        vec![
                            query(sum("dozo_node_logical_bytes{}", "site"), "{{site}} contents"),
                            query(sum("dozo_node_used_bytes{}", "site"), "{{site}} room"),
                        ],
                    ),
                    lines(
                        "Contents over room",
                        Unit::Number,
                        "Above 1 deduplication saves more than copies take.",
                        vec![query(
                            "sum by (site) (dozo_node_logical_bytes{}) / (sum by (site) (dozo_node_used_bytes{}) > 0)",
                            "{{site}}",
                        )],
                    ),
                    lines(
                        "Saved",
                        Unit::BytesPerSecond,
                        "Bytes of contents that needed no room, as the site had their chunks.",
                        vec![query(rate("dozo_node_dedup_saved_bytes_total{}", "site"), "{{site}}")],
                    ),
                    lines(
                        "Used, and in a week",
                        Unit::Ratio,
                        "As it is, and as it will be in seven days at the growth of the last.",
                        vec![
                            query(
                                "sum by (site) (dozo_node_used_bytes{}) / sum by (site) (dozo_node_capacity_bytes{})",
                                "{{site}}",
                            ),
                            query(
                                "sum by (site) (predict_linear(dozo_node_used_bytes{}[1d], 7 * 86400)) \
                                 / sum by (site) (dozo_node_capacity_bytes{})",
                                "{{site}} in a week",
                            ),
                        ],
                    )
                    .limits(Limits::Above(0.8, 0.9)),
                    days_to_full(),
                    lines(
                        "Chunks",
                        Unit::Number,
                        "Chunks stored, all copies counted.",
                        vec![query(sum("dozo_node_chunks{}", "site"), "{{site}}")],
                    ),
                ],
            ),
            row(
                "Kept for visitors",
                vec![
                    lines(
                        "Contents",
                        Unit::Number,
                        "Contents that nodes keep for a time, for clients of other sites.",
                        vec![query(sum("dozo_node_temporary_contents{}", "site"), "{{site}}")],
                    ),
                    lines(
                        "Bytes",
                        Unit::Bytes,
                        "Their lengths, whatever of it the site has for others too.",
                        vec![query(sum("dozo_node_temporary_bytes{}", "site"), "{{site}}")],
                    ),
                    lines(
                        "Expired",
                        Unit::PerSecond,
                        "Visitors whose time was over.",
                        vec![query(rate("dozo_node_temporary_expired_total{}", "site"), "{{site}}")],
                    ),
                ],
            ),
            row(
                "Is it all still right?",
                vec![
                    lines(
                        "Round under way",
                        Unit::Ratio,
                        "How far each node is with reading all that it stores; 1 between rounds.",
                        vec![query("max by (instance) (dozo_node_scrub_progress_ratio{})", "{{instance}}")],
                    )
                    .max(1.0),
                    lines(
                        "Since the last whole round",
                        Unit::Seconds,
                        "Each node is to read all it stores once in 30 days.",
                        vec![query(
                            "time() - max by (instance) (dozo_node_scrub_last_completed_timestamp_seconds{} > 0)",
                            "{{instance}}",
                        )],
                    )
                    .limits(Limits::Above(1_296_000.0, 2_592_000.0)),
                    lines(
                        "Compared with their hash",
                        Unit::PerSecond,
                        "Chunks that scrubs read.",
                        vec![query(rate("dozo_node_scrub_chunks_total{}", "instance"), "{{instance}}")],
                    ),
                    lines(
                        "Damaged or missing",
                        Unit::Number,
                        "Chunks that scrubs found so within each step of the graph.",
                        vec![query(
                            "sum by (instance) (increase(dozo_node_scrub_damaged_total{}[$__rate_interval]))",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Nothing refers to them",
                        Unit::Number,
                        "Chunks that scrubs found to be surplus; they are removed in time.",
                        vec![query(
                            "sum by (instance) (increase(dozo_node_scrub_surplus_total{}[$__rate_interval]))",
                            "{{instance}}",
                        )],
                    ),
                    lines(
                        "Repaired",
                        Unit::PerSecond,
                        "Damaged or missing chunks that another node had.",
                        vec![query(rate("dozo_node_repaired_chunks_total{}", "instance"), "{{instance}}")],
                    ),
                ],
            ),
        ],
    }
}
