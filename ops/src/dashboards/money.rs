//! Dashboards of who pays whom, and of clients away from home.

use super::panel::{Dashboard, Limits, Unit, lines, quantiles, query, rate, row, stat, sum};

pub fn billing() -> Dashboard {
    Dashboard {
        uid: "dozo-billing",
        title: "Dozo / Billing",
        description: "From a delivery's end to its booking, the books themselves, and closing months.",
        rows: vec![
            row(
                "Are deliveries booked, once each?",
                vec![
                    stat(
                        "Books off balance by",
                        Unit::Number,
                        "Minor units by which debits and credits differ; anything but 0 is an alarm.",
                        "max(abs(dozo_billing_ledger_imbalance_minor_units{}))",
                    )
                    .limits(Limits::Above(1.0, 1.0))
                    .width(6),
                    stat(
                        "Records that wait",
                        Unit::Number,
                        "Delivery records at nodes that the billing servers have not booked.",
                        "sum(dozo_node_outbox_pending_records{})",
                    )
                    .width(6),
                    stat(
                        "Waits the longest",
                        Unit::Seconds,
                        "How long ago the oldest delivery ended that is not booked.",
                        "max(dozo_node_outbox_oldest_age_seconds{})",
                    )
                    .limits(Limits::Above(60.0, 300.0))
                    .width(6),
                    stat(
                        "Records for an operator",
                        Unit::Number,
                        "Records that could not be rated, as no tariff or no client fits.",
                        "sum(dozo_billing_exceptions{})",
                    )
                    .limits(Limits::Above(1.0, 100.0))
                    .width(6),
                    lines(
                        "Records",
                        Unit::PerSecond,
                        "Delivery records received, by what became of them. Duplicates are sent again, not booked again.",
                        vec![query(
                            rate("dozo_billing_records_total{}", "fee, result"),
                            "{{fee}} {{result}}",
                        )],
                    ),
                    lines(
                        "Batches",
                        Unit::PerSecond,
                        "A gap is asked for again; a fork means that a node contradicts what it sent before.",
                        vec![query(
                            rate("dozo_billing_batches_total{}", "fee, outcome"),
                            "{{fee}} {{outcome}}",
                        )],
                    ),
                    lines(
                        "From delivery to booking",
                        Unit::Seconds,
                        "Of the oldest delivery in each batch; 60 s are promised.",
                        quantiles(&[0.5, 0.99], "dozo_billing_record_lag_seconds{}", "fee"),
                    )
                    .limits(Limits::Above(30.0, 60.0)),
                    lines(
                        "Time of a batch, p99",
                        Unit::Seconds,
                        "From its arrival at the writer to its commit.",
                        quantiles(&[0.99], "dozo_billing_batch_duration_seconds{}", "fee"),
                    ),
                    lines(
                        "Records that wait, by node",
                        Unit::Number,
                        "Not booked yet.",
                        vec![query(
                            "sum by (instance, fee) (dozo_node_outbox_pending_records{})",
                            "{{instance}} {{fee}}",
                        )],
                    ),
                    lines(
                        "Oldest delivery not booked, by node",
                        Unit::Seconds,
                        "Grows while a billing server is away; nodes keep their records until it is back.",
                        vec![query(
                            "max by (instance, fee) (dozo_node_outbox_oldest_age_seconds{})",
                            "{{instance}} {{fee}}",
                        )],
                    )
                    .limits(Limits::Above(60.0, 300.0)),
                    lines(
                        "Stopped",
                        Unit::YesNo,
                        "1 once a billing server contradicted a node's records: nothing more is sent until an operator looked.",
                        vec![query(
                            "max by (instance, fee) (dozo_node_outbox_stopped{})",
                            "{{instance}} {{fee}}",
                        )],
                    ),
                    lines(
                        "Forbidden calls",
                        Unit::PerSecond,
                        "By somebody who is known and may not make them.",
                        vec![query(rate("dozo_billing_calls_forbidden_total{}", "fee"), "{{fee}}")],
                    ),
                    lines(
                        "Records for an operator, by fee",
                        Unit::Number,
                        "Could not be rated and wait.",
                        vec![query("sum by (fee) (dozo_billing_exceptions{})", "{{fee}}")],
                    ),
                ],
            ),
            row(
                "Books",
                vec![
                    lines(
                        "Accounts",
                        Unit::Number,
                        "Sum of the accounts of one kind, in minor units; what others owe is positive.",
                        vec![query(
                            "sum by (fee, account, currency) (dozo_billing_balance_minor_units{})",
                            "{{fee}} {{account}} {{currency}}",
                        )],
                    )
                    .width(12),
                    lines(
                        "Off balance by",
                        Unit::Number,
                        "Debits less credits; a straight line at zero.",
                        vec![query("max by (fee) (dozo_billing_ledger_imbalance_minor_units{})", "{{fee}}")],
                    )
                    .width(12),
                ],
            ),
            row(
                "Months",
                vec![
                    lines(
                        "Invoices",
                        Unit::Number,
                        "Issued, credit notes among them.",
                        vec![query(sum("dozo_billing_invoices{}", "fee"), "{{fee}}")],
                    )
                    .width(12),
                    lines(
                        "Since the last close",
                        Unit::Seconds,
                        "A month is closed within its first days; there is nothing before the first close.",
                        vec![query(
                            "time() - max by (fee) (dozo_billing_last_close_timestamp_seconds{} > 0)",
                            "{{fee}}",
                        )],
                    )
                    .width(12),
                ],
            ),
        ],
    }
}

pub fn mobile() -> Dashboard {
    Dashboard {
        uid: "dozo-mobile-access",
        title: "Dozo / Clients away from home",
        description: "Cards heard and answered, homes asked, and deliveries by sites that are not the client's.",
        rows: vec![
            row(
                "Admission",
                vec![
                    lines(
                        "Heard",
                        Unit::PerSecond,
                        "Datagrams of clients that look for a site, by what became of them.",
                        vec![query(rate("dozo_mobile_access_heard_total{}", "result"), "{{result}}")],
                    ),
                    lines(
                        "Questions",
                        Unit::PerSecond,
                        "Challenges and answers, by result: an error code, or ok.",
                        vec![query(
                            rate("dozo_mobile_access_requests_total{}", "op, result"),
                            "{{op}} {{result}}",
                        )],
                    ),
                    lines(
                        "Home's answer",
                        Unit::Seconds,
                        "Time to an answer of a home site's gateway.",
                        quantiles(&[0.5, 0.99], "dozo_mobile_access_home_seconds{}", ""),
                    ),
                    lines(
                        "Cards at home",
                        Unit::PerSecond,
                        "Answers of cards as the home's gateways judged them.",
                        vec![query(rate("dozo_gateway_authentications_total{}", "result"), "{{result}}")],
                    ),
                    lines(
                        "Calls of mobile access",
                        Unit::PerSecond,
                        "To homes' gateways and to search, by outcome.",
                        vec![query(
                            rate(
                                "dozo_rpc_client_requests_total{job=\"mobile-access\"}",
                                "peer_role, outcome",
                            ),
                            "{{peer_role}} {{outcome}}",
                        )],
                    ),
                ],
            ),
            row(
                "Deliveries",
                vec![
                    lines(
                        "To visitors",
                        Unit::PerSecond,
                        "Deliveries to clients of other sites, by whether their home confirmed them or was away.",
                        vec![query(rate("dozo_gateway_visited_deliveries_total{}", "home"), "{{home}}")],
                    )
                    .stacked(),
                    lines(
                        "Share of all deliveries",
                        Unit::Ratio,
                        "How many of the deliveries of a site are to visitors.",
                        vec![query(
                            "sum by (site) (rate(dozo_gateway_visited_deliveries_total{}[$__rate_interval])) \
                             / (sum by (site) (rate(dozo_gateway_deliveries_total{}[$__rate_interval])) > 0)",
                            "{{site}}",
                        )],
                    ),
                    lines(
                        "Contents kept for visitors",
                        Unit::Bytes,
                        "What nodes keep for a time beside their own clients' contents.",
                        vec![query(sum("dozo_node_temporary_bytes{}", "site"), "{{site}}")],
                    ),
                ],
            ),
        ],
    }
}
