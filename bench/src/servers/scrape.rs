//! Which of the servers' metrics a run looks at, and how they are read from what `/metrics` answers.

use common::catalogue::metrics::{self as catalogue, Metric};

use super::Unit;

/// How a figure comes from what is scraped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// A counter's growth in a second.
    PerSecond,
    /// A gauge as it is.
    Level,
    /// What a histogram took in since the scrape before: sum by count.
    Mean,
}

/// A metric that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub metric: &'static Metric,
    /// Label whose values are told apart; all others are added up.
    pub by: Option<&'static str>,
    pub figure: Figure,
    pub unit: Unit,
}

const fn wanted(metric: &'static Metric, by: Option<&'static str>, figure: Figure, unit: Unit) -> Wanted {
    Wanted { metric, by, figure, unit }
}

/// What tells in a few lines what the servers did and where work waited.
pub const WANTED: &[Wanted] = &[
    wanted(&catalogue::HTTP_REQUESTS, None, Figure::PerSecond, Unit::PerSecond),
    wanted(&catalogue::GATEWAY_DELIVERIES, Some("source"), Figure::PerSecond, Unit::PerSecond),
    wanted(&catalogue::GATEWAY_CACHE_HITS, None, Figure::PerSecond, Unit::PerSecond),
    wanted(&catalogue::GATEWAY_CACHE_MISSES, None, Figure::PerSecond, Unit::PerSecond),
    wanted(&catalogue::GATEWAY_INFLIGHT, None, Figure::Level, Unit::Count),
    wanted(&catalogue::GATEWAY_ENDS_PENDING, None, Figure::Level, Unit::Count),
    wanted(&catalogue::GATEWAY_NODE_RETRIES, None, Figure::PerSecond, Unit::PerSecond),
    wanted(&catalogue::GATEWAY_HEDGED_READS, None, Figure::PerSecond, Unit::PerSecond),
    wanted(&catalogue::NODE_COMMITS, None, Figure::PerSecond, Unit::PerSecond),
    wanted(&catalogue::NODE_COMMIT_ENTRIES, None, Figure::Mean, Unit::Count),
    wanted(&catalogue::NODE_COMMIT_DURATION, None, Figure::Mean, Unit::Seconds),
    wanted(&catalogue::NODE_READ_BYTES, None, Figure::PerSecond, Unit::BytesPerSecond),
    wanted(&catalogue::NODE_WRITTEN_BYTES, None, Figure::PerSecond, Unit::BytesPerSecond),
    wanted(&catalogue::NODE_DISK_INFLIGHT, None, Figure::Level, Unit::Count),
    wanted(&catalogue::NODE_MOVES_PENDING, None, Figure::Level, Unit::Bytes),
    wanted(&catalogue::NODE_OUTBOX_PENDING, Some("fee"), Figure::Level, Unit::Count),
    wanted(&catalogue::NODE_OUTBOX_AGE, Some("fee"), Figure::Level, Unit::Seconds),
    wanted(&catalogue::SEARCH_LOOKUPS, None, Figure::PerSecond, Unit::PerSecond),
    wanted(&catalogue::BILLING_RECORDS, Some("result"), Figure::PerSecond, Unit::PerSecond),
    wanted(&catalogue::BILLING_RECORD_LAG, None, Figure::Mean, Unit::Seconds),
    wanted(&catalogue::RUNTIME_QUEUE, None, Figure::Level, Unit::Count),
];

/// A value of a wanted metric, by its place in the list and its label. For [`Figure::Mean`] `weight` is the count and
/// `value` the sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Scraped {
    pub wanted: usize,
    pub label: String,
    pub value: f64,
    pub weight: f64,
}

/// Finds what is wanted in the text form of Prometheus.
pub fn read(text: &str) -> Vec<Scraped> {
    let mut found: Vec<Scraped> = Vec::new();
    for line in text.lines() {
        let Some((name, labels, value)) = sample(line) else { continue };
        for (index, wanted) in WANTED.iter().enumerate() {
            let Some(end) = name.strip_prefix(wanted.metric.name) else { continue };
            let (value, weight) = match (wanted.figure, end) {
                (Figure::Mean, "_sum") => (value, 0.0),
                (Figure::Mean, "_count") => (0.0, value),
                (Figure::PerSecond | Figure::Level, "") => (value, 0.0),
                _ => continue,
            };
            let label = wanted.by.and_then(|by| label(labels, by)).unwrap_or_default();
            match found.iter_mut().find(|one| one.wanted == index && one.label == label) {
                Some(one) => {
                    one.value += value;
                    one.weight += weight;
                }
                None => found.push(Scraped { wanted: index, label: label.to_owned(), value, weight }),
            }
        }
    }
    found
}

/// Name, labels and value of a line.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let (head, value) = line.rsplit_once(' ')?;
    let (name, labels) = head.split_once('{').unwrap_or((head, ""));
    let value = value.parse::<f64>().ok().filter(|value| value.is_finite())?;
    Some((name, labels.trim_end_matches('}'), value))
}

/// A label's value; those that are wanted have no quotes in them.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|one| one.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_found_and_added_up() {
        let text = r#"# HELP dozo_gateway_deliveries_total Deliveries begun.
# TYPE dozo_gateway_deliveries_total counter
dozo_gateway_deliveries_total{source="hit"} 12
dozo_gateway_deliveries_total{source="peer"} 3
dozo_http_requests_total{route="/v1/contents/{name}",code="200"} 10
dozo_http_requests_total{route="other, \"x\"",code="404"} 2
dozo_node_commit_entries_bucket{le="1"} 5
dozo_node_commit_entries_sum 40
dozo_node_commit_entries_count 8
dozo_gateway_inflight_requests NaN
something_else 1
"#;
        let found = read(text);
        let value = |name: &str, label: &str| {
            let one = found.iter().find(|one| WANTED[one.wanted].metric.name == name && one.label == label);
            one.map(|one| (one.value, one.weight))
        };
        assert_eq!(value("dozo_gateway_deliveries_total", "hit"), Some((12.0, 0.0)));
        assert_eq!(value("dozo_gateway_deliveries_total", "peer"), Some((3.0, 0.0)));
        assert_eq!(value("dozo_http_requests_total", ""), Some((12.0, 0.0)));
        assert_eq!(value("dozo_node_commit_entries", ""), Some((40.0, 8.0)));
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn figures_fit_the_kinds_of_their_metrics() {
        for wanted in WANTED {
            let fitting = match wanted.metric.kind {
                catalogue::Kind::Counter => Figure::PerSecond,
                catalogue::Kind::Gauge => Figure::Level,
                catalogue::Kind::Histogram => Figure::Mean,
            };
            assert_eq!(wanted.figure, fitting, "{}", wanted.metric.name);
            let has = |by: &str| wanted.metric.labels.iter().any(|label| label.name == by);
            assert!(wanted.by.is_none_or(has), "{}", wanted.metric.name);
        }
    }
}
