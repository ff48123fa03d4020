//! What a dashboard consists of, without anything of Grafana's form.
//!
//! Queries are PromQL in which every metric is written with braces, `dozo_ready{}`: the selection of targets by the
//! dashboard's variables is put into them ([`with_targets`]), so that no query can forget it.

use common::auth::Role;
use common::catalogue::load;
use common::catalogue::metrics::{self, Emitter, Metric};

/// Width of a dashboard, in Grafana's columns.
pub const COLUMNS: u32 = 24;
/// Roles whose servers belong to a site.
const ROLES_OF_SITES: &[Role] = &[Role::Gateway, Role::StorageNode];

pub struct Dashboard {
    /// Also the file's name; links to it stay valid as long as it stays the same.
    pub uid: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub title: &'static str,
    pub panels: Vec<Panel>,
}

pub fn row(title: &'static str, panels: Vec<Panel>) -> Row {
    Row { title, panels }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Stat,
    TimeSeries,
    Heatmap,
    /// One row for each value of the label that the queries have in common.
    Table {
        by: &'static str,
    },
    StateTimeline,
    BarGauge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Number,
    Ratio,
    Seconds,
    Bytes,
    BytesPerSecond,
    PerSecond,
    YesNo,
}

impl Unit {
    /// As Grafana names it.
    pub fn id(self) -> &'static str {
        match self {
            Self::Number => "short",
            Self::Ratio => "percentunit",
            Self::Seconds => "s",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "binBps",
            Self::PerSecond => "cps",
            Self::YesNo => "bool_yes_no",
        }
    }
}

pub struct Query {
    pub expr: String,
    /// With labels as `{{label}}`.
    pub legend: String,
    /// Of a table's column; that of the panel otherwise.
    pub unit: Option<Unit>,
}

pub fn query(expr: impl Into<String>, legend: &str) -> Query {
    Query { expr: expr.into(), legend: legend.to_owned(), unit: None }
}

/// A column of a table.
pub fn column(title: &str, unit: Unit, expr: impl Into<String>) -> Query {
    Query { expr: expr.into(), legend: title.to_owned(), unit: Some(unit) }
}

/// From which value on a panel is amber, and red.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limits {
    None,
    /// High values are bad.
    Above(f64, f64),
    /// Low values are bad.
    Below(f64, f64),
}

pub struct Panel {
    pub title: &'static str,
    pub description: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub queries: Vec<Query>,
    pub width: u32,
    pub height: u32,
    pub limits: Limits,
    pub is_stacked: bool,
    pub max: Option<f64>,
    /// What values stand for, and in which colour they are shown.
    pub names: &'static [(u8, &'static str, &'static str)],
}

impl Panel {
    fn new(
        kind: Kind,
        (width, height): (u32, u32),
        title: &'static str,
        unit: Unit,
        description: &'static str,
        queries: Vec<Query>,
    ) -> Self {
        let (limits, is_stacked, max, names) = (Limits::None, false, None, &[]);
        Self { title, description, kind, unit, queries, width, height, limits, is_stacked, max, names }
    }

    pub fn width(self, width: u32) -> Self {
        Self { width, ..self }
    }

    pub fn height(self, height: u32) -> Self {
        Self { height, ..self }
    }

    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    pub fn stacked(self) -> Self {
        Self { is_stacked: true, ..self }
    }

    pub fn names(self, names: &'static [(u8, &'static str, &'static str)]) -> Self {
        Self { names, ..self }
    }

    /// The largest value that there can be.
    pub fn max(self, max: f64) -> Self {
        Self { max: Some(max), ..self }
    }
}

/// One number, as it is now.
pub fn stat(title: &'static str, unit: Unit, description: &'static str, expr: impl Into<String>) -> Panel {
    Panel::new(Kind::Stat, (4, 4), title, unit, description, vec![query(expr, title)])
}

pub fn lines(title: &'static str, unit: Unit, description: &'static str, queries: Vec<Query>) -> Panel {
    Panel::new(Kind::TimeSeries, (8, 8), title, unit, description, queries)
}

/// How often each of a histogram's steps was met over time.
pub fn heatmap(title: &'static str, unit: Unit, description: &'static str, selector: &str) -> Panel {
    let expr = format!("sum by (le) (rate({}[$__rate_interval]))", part(selector, "_bucket"));
    Panel::new(Kind::Heatmap, (12, 8), title, unit, description, vec![query(expr, "{{le}}")])
}

pub fn table(title: &'static str, by: &'static str, description: &'static str, columns: Vec<Query>) -> Panel {
    Panel::new(Kind::Table { by }, (COLUMNS, 9), title, Unit::Number, description, columns)
}

pub fn states(title: &'static str, unit: Unit, description: &'static str, queries: Vec<Query>) -> Panel {
    Panel::new(Kind::StateTimeline, (COLUMNS, 7), title, unit, description, queries)
}

pub fn bars(title: &'static str, unit: Unit, description: &'static str, one: Query) -> Panel {
    Panel::new(Kind::BarGauge, (8, 8), title, unit, description, vec![one])
}

/// What a counter grows by in a second, in sum by labels (as in `instance, op`; empty: in all). `selector` has braces.
pub fn rate(selector: &str, by: &str) -> String {
    sum(&format!("rate({selector}[$__rate_interval])"), by)
}

/// The sum by labels; empty: of all.
pub fn sum(expr: &str, by: &str) -> String {
    if by.is_empty() { format!("sum({expr})") } else { format!("sum by ({by}) ({expr})") }
}

/// A quantile of a histogram by labels; `selector` names the histogram, with braces.
pub fn quantile(q: f64, selector: &str, by: &str) -> String {
    let by = if by.is_empty() { "le".to_owned() } else { format!("{by}, le") };
    format!("histogram_quantile({q}, {})", rate(&part(selector, "_bucket"), &by))
}

/// Median and tail of a histogram; `by` is one label, or none.
pub fn quantiles(qs: &[f64], selector: &str, by: &str) -> Vec<Query> {
    let legend = |q: f64| {
        let q = format!("p{}", (q * 1000.0).round() / 10.0);
        if by.is_empty() { q } else { format!("{{{{{by}}}}} {q}") }
    };
    qs.iter().map(|q| query(quantile(*q, selector, by), &legend(*q))).collect()
}

/// Of a histogram one of the three series that it consists of.
fn part(selector: &str, suffix: &str) -> String {
    selector.replacen('{', &format!("{suffix}{{"), 1)
}

/// The metric that a series belongs to: a histogram's `_bucket`, `_sum` and `_count` are its.
pub fn metric_of(series: &str) -> Option<&'static Metric> {
    let find = |name: &str| metrics::ALL.iter().chain(load::ALL).find(|metric| metric.name == name);
    let of_histogram = || {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| series.strip_suffix(suffix))?;
        find(base).filter(|metric| metric.kind == metrics::Kind::Histogram)
    };
    find(series).or_else(of_histogram)
}

/// Whether targets that show this series belong to sites. What is not a metric of the catalogue may be anybody's.
pub fn has_site(series: &str) -> bool {
    let is_of_sites = |metric: &Metric| ROLES_OF_SITES.iter().any(|role| metric.emitter.includes(*role));
    metric_of(series).is_none_or(is_of_sites)
}

/// Whether servers show this series, among which a dashboard's variables choose; the load generator is none of them.
pub fn is_of_servers(series: &str) -> bool {
    metric_of(series).is_none_or(|metric| metric.emitter != Emitter::LoadGenerator)
}

/// The query with the dashboard's choice of targets in each selector.
pub fn with_targets(expr: &str) -> String {
    let mut out = String::with_capacity(expr.len() * 2);
    let mut rest = expr;
    while let Some(at) = rest.find('{') {
        let (before, inside) = rest.split_at(at);
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let series = &before[before.rfind(|c| !is_of_name(c)).map_or(0, |i| i + 1)..];
        out.push_str(before);
        out.push('{');
        let inside = &inside[1..];
        if is_of_servers(series) {
            out.push_str("job=~\"$job\", ");
            if has_site(series) {
                out.push_str("site=~\"$site\", ");
            }
            out.push_str("instance=~\"$instance\"");
            if !inside.starts_with('}') {
                out.push_str(", ");
            }
        }
        // Values of labels may have braces.
        let end = inside.find('}').map_or(inside.len(), |end| end + 1);
        out.push_str(&inside[..end]);
        rest = &inside[end..];
    }
    out.push_str(rest);
    out
}
