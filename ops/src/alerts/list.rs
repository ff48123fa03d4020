//! Alerts on single faults.

use super::{Alert, Severity};

const GATEWAY: &[(&str, &str)] = &[("job", "gateway")];
const NO_LABELS: &[(&str, &str)] = &[];

struct Text {
    summary: &'static str,
    description: &'static str,
}

fn text(summary: &'static str, description: &'static str) -> Text {
    Text { summary, description }
}

fn alert(
    name: &'static str,
    severity: Severity,
    hold: &'static str,
    dashboard: &'static str,
    expr: &str,
    text: Text,
) -> Alert {
    let Text { summary, description } = text;
    Alert { name, expr: expr.to_owned(), hold, severity, summary, description, dashboard, labels: NO_LABELS }
}

pub fn alerts() -> Vec<Alert> {
    [servers(), nodes(), search_and_sources(), billing(), processes()].concat()
}

/// Servers that are away, not ready, or asked too much.
fn servers() -> Vec<Alert> {
    let missing = || {
        text(
            "{{ $labels.instance }} does not answer",
            "{{ $labels.job }} {{ $labels.instance }} has not answered Prometheus since the alert began to hold.",
        )
    };
    vec![
        alert(
            "DozoServerMissing",
            Severity::Page,
            "2m",
            "dozo-runtime",
            "up{job=~\"gateway|search\"} == 0",
            missing(),
        ),
        alert(
            "DozoServerMissing",
            Severity::Ticket,
            "5m",
            "dozo-runtime",
            "up{job=~\"storage-node|origin|service-billing|content-billing|mobile-access\"} == 0",
            missing(),
        ),
        Alert {
            labels: GATEWAY,
            ..alert(
                "DozoNoGateway",
                Severity::Page,
                "2m",
                "dozo-overview",
                "absent(up{job=\"gateway\"} == 1)",
                text(
                    "no gateway answers",
                    "No gateway of any site answers Prometheus: nobody is served, or search names none.",
                ),
            )
        },
        alert(
            "DozoServerNotReady",
            Severity::Ticket,
            "5m",
            "dozo-runtime",
            "dozo_ready == 0 unless dozo_draining == 1",
            text(
                "{{ $labels.instance }} is not ready",
                "{{ $labels.job }} {{ $labels.instance }} runs and does not call itself ready, and nobody stops it.",
            ),
        ),
        alert(
            "DozoServerFlapping",
            Severity::Ticket,
            "0m",
            "dozo-runtime",
            "changes(dozo_start_time_seconds[15m]) > 2",
            text(
                "{{ $labels.instance }} starts again and again",
                "{{ $labels.job }} {{ $labels.instance }} was started {{ $value }} times in 15 minutes.",
            ),
        ),
        alert(
            "DozoOverload",
            Severity::Page,
            "5m",
            "dozo-gateway",
            "sum by (job, site) (rate(dozo_gateway_requests_total{code=\"503\"}[5m])) \
             / sum by (job, site) (rate(dozo_gateway_requests_total[5m])) > 0.01 \
             and sum by (job, site) (rate(dozo_gateway_requests_total[5m])) > 0.1",
            text(
                "{{ $labels.site }} sends clients away",
                "{{ $value | humanizePercentage }} of the requests at {{ $labels.site }} are answered with 503.",
            ),
        ),
    ]
}

/// Storage nodes: who is away, what is damaged, where room ends.
fn nodes() -> Vec<Alert> {
    let away = |severity, hold, more_than| {
        alert(
            "DozoNodeAway",
            severity,
            hold,
            "dozo-topology-change",
            &format!("max by (job, site) (dozo_gateway_nodes{{state=\"away\"}}) > {more_than}"),
            text(
                "{{ $labels.site }}: {{ $value }} storage nodes are away",
                "At {{ $labels.site }} {{ $value }} nodes are lost or silent; others serve their shards, or nobody.",
            ),
        )
    };
    let fills = || {
        text(
            "{{ $labels.instance }} fills up",
            "{{ $value | humanizePercentage }} of {{ $labels.instance }} is taken, and it fills at the present rate.",
        )
    };
    let used = "dozo_node_used_bytes / dozo_node_capacity_bytes";
    vec![
        away(Severity::Ticket, "3m", 0),
        away(Severity::Page, "3m", 1),
        alert(
            "DozoFollowersMissing",
            Severity::Ticket,
            "30m",
            "dozo-topology-change",
            "dozo_node_followers_missing > 0",
            text(
                "{{ $labels.instance }}: {{ $value }} copies of its shards are missing",
                "Shards that {{ $labels.instance }} serves lack {{ $value }} copies; one more loss can lose rows.",
            ),
        ),
        alert(
            "DozoDiskWillFill",
            Severity::Ticket,
            "1h",
            "dozo-capacity",
            &format!(
                "{used} > 0.85 and predict_linear(dozo_node_used_bytes[6h], 24 * 3600) > dozo_node_capacity_bytes"
            ),
            fills(),
        ),
        alert(
            "DozoDiskWillFill",
            Severity::Page,
            "15m",
            "dozo-capacity",
            &format!(
                "{used} > 0.95 and predict_linear(dozo_node_used_bytes[1h], 4 * 3600) > dozo_node_capacity_bytes"
            ),
            fills(),
        ),
        alert(
            "DozoDiskErrors",
            Severity::Ticket,
            "0m",
            "dozo-disk",
            "sum by (job, site, instance, operation) (increase(dozo_node_disk_errors_total[10m])) > 0",
            text(
                "{{ $labels.instance }}: the disk fails {{ $labels.operation }}s",
                "{{ $value | humanize }} requests to {{ $labels.operation }} failed at {{ $labels.instance }} in ten \
                 minutes.",
            ),
        ),
        alert(
            "DozoDamagedChunks",
            Severity::Page,
            "0m",
            "dozo-capacity",
            "sum by (job, site, instance) (increase(dozo_node_damaged_chunks_total[1h])) > 0 \
             or sum by (job, site, instance) (increase(dozo_node_scrub_damaged_total[1h])) > 0",
            text(
                "{{ $labels.instance }} has damaged chunks",
                "{{ $value | humanize }} times in an hour chunks of {{ $labels.instance }} were damaged or missing; \
                 they are fetched from other holders where there are any.",
            ),
        ),
        alert(
            "DozoScrubStale",
            Severity::Ticket,
            "1h",
            "dozo-capacity",
            "time() - (dozo_node_scrub_last_completed_timestamp_seconds > 0) > 30 * 86400",
            text(
                "{{ $labels.instance }} has not read all it stores in 30 days",
                "The last whole round of {{ $labels.instance }} ended {{ $value | humanizeDuration }} ago.",
            ),
        ),
        alert(
            "DozoDrainStuck",
            Severity::Ticket,
            "30m",
            "dozo-topology-change",
            "delta(dozo_node_moves_pending_bytes[30m]) >= 0 and dozo_node_moves_pending_bytes > 0 \
             and on (job, site, instance) dozo_node_state{state=\"draining\"} == 1",
            text(
                "{{ $labels.instance }} drains and nothing moves",
                "What {{ $labels.instance }} has still to move has not become less in 30 minutes.",
            ),
        ),
        alert(
            "DozoMapsDiffer",
            Severity::Page,
            "5m",
            "dozo-gateway",
            "dozo_gateway_map_epoch < on () group_left () max(dozo_search_map_epoch offset 2m)",
            text(
                "{{ $labels.instance }} has an old cluster map",
                "{{ $labels.instance }} is at epoch {{ $value }}, older than search's two minutes ago: it may ask the \
                 wrong nodes.",
            ),
        ),
        alert(
            "DozoDeliveryEndsLost",
            Severity::Ticket,
            "0m",
            "dozo-gateway",
            "sum by (job, site, instance) (increase(dozo_gateway_ends_lost_total[15m])) > 0",
            text(
                "{{ $labels.instance }} gave up ends of deliveries",
                "{{ $value | humanize }} deliveries of {{ $labels.instance }} are recorded as recovered: with fewer \
                 bytes than were sent, perhaps.",
            ),
        ),
    ]
}

/// Search, other sites, origins.
fn search_and_sources() -> Vec<Alert> {
    let offload = "1 - sum by (job, site) (rate(dozo_gateway_collected_bytes_total{from=\"origin\"}[1h])) \
                   / (sum by (job, site) (rate(dozo_gateway_sent_bytes_total[1h])) > 10000)";
    let before = offload.replace("[1h]", "[1h] offset 1w");
    vec![
        alert(
            "DozoSearchStale",
            Severity::Ticket,
            "15m",
            "dozo-miss-path",
            "sum by (job) (rate(dozo_search_missing_reports_total[15m])) \
             / sum by (job) (rate(dozo_search_lookups_total[15m])) > 0.01",
            text(
                "search names holders that have nothing",
                "For {{ $value | humanizePercentage }} of the lookups a holder turned out not to have the content.",
            ),
        ),
        alert(
            "DozoAnnouncementsWait",
            Severity::Ticket,
            "5m",
            "dozo-miss-path",
            "min_over_time(dozo_node_announcements_pending[10m]) > 0 \
             or min_over_time(dozo_origin_announcements_pending[10m]) > 0",
            text(
                "{{ $labels.instance }} cannot tell search what it holds",
                "At least {{ $value }} announcements of {{ $labels.instance }} have waited for ten minutes: others do \
                 not find these contents.",
            ),
        ),
        alert(
            "DozoCollectionsFail",
            Severity::Ticket,
            "10m",
            "dozo-miss-path",
            "sum by (job, site) (rate(dozo_gateway_collections_failed_total[10m])) \
             / sum by (job, site) (rate(dozo_gateway_collections_total[10m])) > 0.05",
            text(
                "{{ $labels.site }} cannot collect what it lacks",
                "{{ $value | humanizePercentage }} of the collections of {{ $labels.site }} found no source to finish \
                 with.",
            ),
        ),
        alert(
            "DozoWrongBytes",
            Severity::Ticket,
            "0m",
            "dozo-miss-path",
            "sum by (job, site) (increase(dozo_gateway_hash_mismatches_total[1h])) > 0",
            text(
                "{{ $labels.site }} was sent wrong bytes",
                "{{ $value | humanize }} chunks that {{ $labels.site }} collected in an hour did not have their hash; \
                 none was stored or delivered.",
            ),
        ),
        alert(
            "DozoOriginOffloadDrop",
            Severity::Ticket,
            "30m",
            "dozo-miss-path",
            &format!("{offload} < 0.5 * ({before})"),
            text(
                "{{ $labels.site }} fetches more from origins than a week ago",
                "Of the bytes that {{ $labels.site }} delivers {{ $value | humanizePercentage }} need no origin, less \
                 than half of what it was a week ago.",
            ),
        ),
        alert(
            "DozoOriginScanFails",
            Severity::Ticket,
            "0m",
            "dozo-miss-path",
            "sum by (job, instance) (increase(dozo_origin_failed_scans_total[1h])) > 0",
            text(
                "{{ $labels.instance }} cannot read a source",
                "{{ $value | humanize }} scans of {{ $labels.instance }} failed in an hour: what is new there is not \
                 registered.",
            ),
        ),
        alert(
            "DozoWithdrawalsHeld",
            Severity::Ticket,
            "0m",
            "dozo-miss-path",
            "sum by (job, instance, bucket) (dozo_origin_withdrawals_held) > 0",
            text(
                "{{ $labels.bucket }}: {{ $value }} contents are gone from the source",
                "{{ $value }} contents of {{ $labels.bucket }} are missing in the source and not withdrawn, as they \
                 are too many at once to be believed.",
            ),
        ),
        alert(
            "DozoHomesUnreachable",
            Severity::Page,
            "10m",
            "dozo-mobile-access",
            "sum by (job, instance) (rate(dozo_mobile_access_requests_total{result=\"home_unreachable\"}[10m])) \
             / sum by (job, instance) (rate(dozo_mobile_access_requests_total[10m])) > 0.05",
            text(
                "clients away from home are turned away",
                "For {{ $value | humanizePercentage }} of the questions at {{ $labels.instance }} no gateway of the \
                 client's home answered.",
            ),
        ),
    ]
}

fn billing() -> Vec<Alert> {
    vec![
        alert(
            "DozoBooksOffBalance",
            Severity::Page,
            "1m",
            "dozo-billing",
            "dozo_billing_ledger_imbalance_minor_units != 0",
            text(
                "the books of the {{ $labels.fee }} fee do not balance",
                "Debits and credits of the {{ $labels.fee }} fee differ by {{ $value }} minor units.",
            ),
        ),
        alert(
            "DozoBillingStopped",
            Severity::Page,
            "0m",
            "dozo-billing",
            "dozo_node_outbox_stopped == 1",
            text(
                "{{ $labels.instance }} no longer sends records of the {{ $labels.fee }} fee",
                "The billing server contradicted the records of {{ $labels.instance }}: nothing more is booked of it \
                 until an operator looked.",
            ),
        ),
        alert(
            "DozoBillingLate",
            Severity::Page,
            "5m",
            "dozo-billing",
            "dozo_node_outbox_oldest_age_seconds > 300",
            text(
                "deliveries of {{ $labels.instance }} are not booked",
                "The oldest delivery of {{ $labels.instance }} that the {{ $labels.fee }} fee is not booked for ended \
                 {{ $value | humanizeDuration }} ago.",
            ),
        ),
        alert(
            "DozoBillingExceptions",
            Severity::Ticket,
            "1h",
            "dozo-billing",
            "dozo_billing_exceptions > 0",
            text(
                "{{ $value }} records of the {{ $labels.fee }} fee could not be rated",
                "{{ $value }} delivery records wait for an operator: no tariff, split or client fits them.",
            ),
        ),
        alert(
            "DozoBillingForbidden",
            Severity::Ticket,
            "0m",
            "dozo-billing",
            "sum by (job, instance, fee) (increase(dozo_billing_calls_forbidden_total[1h])) > 0",
            text(
                "somebody asked {{ $labels.instance }} for what it may not",
                "{{ $value | humanize }} calls in an hour by callers who are known and may not make them.",
            ),
        ),
        alert(
            "DozoBillingCloseMissed",
            Severity::Ticket,
            "1h",
            "dozo-billing",
            "time() - (dozo_billing_last_close_timestamp_seconds > 0) > 36 * 86400",
            text(
                "the last month of the {{ $labels.fee }} fee is not closed",
                "A month was last closed {{ $value | humanizeDuration }} ago; invoices of the last one are due.",
            ),
        ),
    ]
}

/// What any process can have.
fn processes() -> Vec<Alert> {
    vec![
        Alert {
            labels: GATEWAY,
            ..alert(
                "DozoVersionSkew",
                Severity::Ticket,
                "2h",
                "dozo-runtime",
                "count(count by (version) (dozo_build_info)) > 1",
                text(
                    "{{ $value }} versions run at once",
                    "An upgrade was begun and not finished: servers of {{ $value }} versions run.",
                ),
            )
        },
        alert(
            "DozoConfigReloadFailed",
            Severity::Ticket,
            "0m",
            "dozo-runtime",
            "sum by (job, site, instance) (increase(dozo_config_reloads_total{result=\"error\"}[15m])) > 0",
            text(
                "{{ $labels.instance }} could not read its configuration again",
                "{{ $labels.instance }} goes on with the settings it had; it would not start with what the file says.",
            ),
        ),
        alert(
            "DozoPanics",
            Severity::Ticket,
            "0m",
            "dozo-runtime",
            "sum by (job, site, instance) (increase(dozo_panics_total[15m])) > 0",
            text(
                "{{ $labels.instance }} panicked",
                "{{ $value | humanize }} panics of {{ $labels.instance }} in 15 minutes: a fault of the program.",
            ),
        ),
        alert(
            "DozoErrorsLogged",
            Severity::Ticket,
            "0m",
            "dozo-runtime",
            "sum by (job, site, instance) (increase(dozo_log_messages_total{level=\"error\"}[15m])) > 0",
            text(
                "{{ $labels.instance }} logs errors",
                "{{ $value | humanize }} errors in 15 minutes; each says what somebody must look at.",
            ),
        ),
        alert(
            "DozoFilesNearLimit",
            Severity::Ticket,
            "10m",
            "dozo-runtime",
            "process_open_fds / process_max_fds > 0.9",
            text(
                "{{ $labels.instance }} is about to run out of file descriptors",
                "{{ $value | humanizePercentage }} of the file descriptors of {{ $labels.instance }} are in use.",
            ),
        ),
        Alert {
            labels: GATEWAY,
            ..alert(
                "DozoWatchdog",
                Severity::None,
                "0m",
                "dozo-overview",
                "vector(1)",
                text(
                    "alerting works",
                    "Always there. Let something outside wake somebody when it is not: then Prometheus or Alertmanager \
                     is down.",
                ),
            )
        },
    ]
}
