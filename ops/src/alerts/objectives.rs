//! What is promised over 30 days, counted over several windows, and alerts on how fast its budget burns.
//!
//! A budget that burns 14.4 times too fast for an hour has lost 2 % of a month: somebody is paged. Each alert looks at a
//! long window, so that a moment is no alarm, and at a short one, so that it ends soon after its cause. Where hardly
//! anything is asked nothing is concluded from it.
//!
//! Rules count for each server, not in shares: shares of several servers cannot be added, what they count can.

use super::{Alert, Recording, Severity};

const SHORT_WINDOWS: &[&str] = &["5m", "30m", "1h", "2h", "6h"];
const LONG_WINDOWS: &[&str] = &["1d", "3d", "30d"];
/// A target's labels: they stay on what is recorded.
const BY: &str = "sum by (job, site, instance)";
/// Requests in a second, below which nothing is concluded.
const TRAFFIC_MIN: &str = "0.1";

/// Of what is promised: which counts are recorded, `{bad}` of `{all}`.
struct Promise {
    bad: &'static str,
    all: &'static str,
    /// Share that may be bad.
    budget: &'static str,
}

const AVAILABILITY: Promise =
    Promise { bad: "dozo_gateway_failures", all: "dozo_gateway_requests", budget: "0.001" };
const LATENCY: Promise =
    Promise { bad: "dozo_gateway_late_first_bytes", all: "dozo_gateway_first_bytes", budget: "0.01" };

/// Recording rules by how often they are evaluated.
pub fn recordings() -> Vec<(&'static str, Vec<Recording>)> {
    let mut long = rules_over(LONG_WINDOWS);
    long.push(Recording {
        name: "instance:dozo_node_scrub_damaged:increase30d".to_owned(),
        expr: format!("{BY} (increase(dozo_node_scrub_damaged_total[30d]))"),
    });
    vec![("30s", rules_over(SHORT_WINDOWS)), ("2m", long)]
}

fn rules_over(windows: &[&str]) -> Vec<Recording> {
    let of_window = |window: &&str| {
        let rate = |series: &str| format!("{BY} (rate({series}[{window}]))");
        let requests = rate("dozo_gateway_requests_total");
        let hits = rate("dozo_gateway_time_to_first_byte_seconds_count{source=\"hit\"}");
        let hits_in_time = rate("dozo_gateway_time_to_first_byte_seconds_bucket{source=\"hit\", le=\"0.1\"}");
        // A server that never failed has no series of failures: zero, not nothing.
        let failures = format!("{} or 0 * {requests}", rate("dozo_gateway_requests_total{code=~\"5..\"}"));
        [
            (AVAILABILITY.all, requests),
            (AVAILABILITY.bad, failures),
            (LATENCY.all, hits.clone()),
            (LATENCY.bad, format!("{hits} - {hits_in_time}")),
        ]
        .map(|(name, expr)| Recording { name: format!("instance:{name}:rate{window}"), expr })
    };
    windows.iter().flat_map(of_window).collect()
}

/// How fast a budget is used up, over a long and a short window, before somebody is told.
struct Burn {
    /// Times as fast as would use it up exactly.
    factor: &'static str,
    long: &'static str,
    short: &'static str,
    hold: &'static str,
    severity: Severity,
    labels: &'static [(&'static str, &'static str)],
}

/// (The table of *The Site Reliability Workbook*, 2018, chapter 5.)
const BURNS: &[Burn] = &[
    Burn {
        factor: "14.4",
        long: "1h",
        short: "5m",
        hold: "2m",
        severity: Severity::Page,
        labels: &[("window", "1h")],
    },
    Burn {
        factor: "6",
        long: "6h",
        short: "30m",
        hold: "15m",
        severity: Severity::Page,
        labels: &[("window", "6h")],
    },
    Burn {
        factor: "3",
        long: "1d",
        short: "2h",
        hold: "1h",
        severity: Severity::Ticket,
        labels: &[("window", "1d")],
    },
    Burn {
        factor: "1",
        long: "3d",
        short: "6h",
        hold: "3h",
        severity: Severity::Ticket,
        labels: &[("window", "3d")],
    },
];

pub fn alerts() -> Vec<Alert> {
    let burning = |promise: &Promise, factor: &str, long: &str, short: &str| {
        let Promise { bad, all, budget } = promise;
        let counted = |what: &str, window: &str| format!("sum by (job, site) (instance:{what}:rate{window})");
        let over = |window: &str| {
            format!("{} / {} > {factor} * {budget}", counted(bad, window), counted(all, window))
        };
        format!("{} and {} and {} > {TRAFFIC_MIN}", over(long), over(short), counted(all, short))
    };
    let of = |promise: &'static Promise, name, summary, description| {
        BURNS.iter().map(move |burn| Alert {
            name,
            expr: burning(promise, burn.factor, burn.long, burn.short),
            hold: burn.hold,
            severity: burn.severity,
            summary,
            description,
            dashboard: "dozo-slo",
            labels: burn.labels,
        })
    };
    let availability = of(
        &AVAILABILITY,
        "DozoAvailabilityBurn",
        "{{ $labels.site }}: requests fail",
        "{{ $value | humanizePercentage }} of the requests at {{ $labels.site }} were answered with 5xx; 0.1 % of \
         30 days may be.",
    );
    let latency = of(
        &LATENCY,
        "DozoLatencyBurn",
        "{{ $labels.site }}: first bytes come late",
        "{{ $value | humanizePercentage }} of what {{ $labels.site }} had already came later than 100 ms; 1 % of 30 \
         days may.",
    );
    availability.chain(latency).collect()
}
