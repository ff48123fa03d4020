//! For tests: reads PromQL, and compares the names in it with the catalogue of metrics.

use common::auth::Role;
use common::catalogue::metrics::{Kind, Metric, Values};
use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::{Expr, LabelModifier, VectorSelector, parse, token};

use crate::dashboards::panel::{has_site, metric_of};

/// Labels that service discovery gives each target.
const TARGET_LABELS: &[&str] = &["job", "site", "instance"];
/// What only counters, and a histogram's counts, are asked with.
const OF_COUNTERS: &[&str] = &["rate", "irate", "increase"];
const OF_GAUGES: &[&str] = &["deriv", "delta", "idelta", "predict_linear"];
/// Prometheus' own.
const UP: &str = "up";
const ALERTS: &str = "ALERTS";
const LABELS_OF_ALERTS: &[&str] = &["alertname", "alertstate", "severity", "job", "site", "instance"];

/// A selector in a query, and the functions around it, the innermost first.
pub struct Selector<'a> {
    pub vector: &'a VectorSelector,
    pub is_range: bool,
    pub functions: Vec<&'static str>,
}

impl Selector<'_> {
    pub fn series(&self) -> &str {
        self.vector.name.as_deref().expect("every selector names its metric")
    }

    pub fn matchers(&self) -> &[Matcher] {
        &self.vector.matchers.matchers
    }
}

pub fn parsed(expr: &str) -> Expr {
    parse(expr).unwrap_or_else(|error| panic!("{error}: {expr}"))
}

pub fn selectors(expr: &Expr) -> Vec<Selector<'_>> {
    let mut found = Vec::new();
    collect(expr, &mut Vec::new(), &mut found);
    found
}

fn collect<'a>(expr: &'a Expr, around: &mut Vec<&'static str>, found: &mut Vec<Selector<'a>>) {
    let selector = |vector, is_range, around: &[&'static str]| Selector {
        vector,
        is_range,
        functions: around.iter().rev().copied().collect(),
    };
    match expr {
        Expr::Aggregate(aggregate) => {
            collect(&aggregate.expr, around, found);
            if let Some(param) = &aggregate.param {
                collect(param, around, found);
            }
        }
        Expr::Unary(unary) => collect(&unary.expr, around, found),
        Expr::Paren(paren) => collect(&paren.expr, around, found),
        Expr::Subquery(subquery) => collect(&subquery.expr, around, found),
        Expr::Binary(binary) => {
            collect(&binary.lhs, around, found);
            collect(&binary.rhs, around, found);
        }
        Expr::Call(call) => {
            around.push(call.func.name);
            for argument in &call.args.args {
                collect(argument, around, found);
            }
            around.pop();
        }
        Expr::VectorSelector(vector) => found.push(selector(vector, false, around)),
        Expr::MatrixSelector(matrix) => found.push(selector(&matrix.vs, true, around)),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
    }
}

/// Labels that the result has.
pub fn labels(expr: &Expr) -> Vec<String> {
    match expr {
        Expr::Aggregate(aggregate) => match &aggregate.modifier {
            Some(LabelModifier::Include(by)) => by.labels.clone(),
            Some(LabelModifier::Exclude(_)) => panic!("say what stays: {expr}"),
            None if [token::T_TOPK, token::T_BOTTOMK].contains(&aggregate.op.id()) => labels(&aggregate.expr),
            None => Vec::new(),
        },
        Expr::Unary(unary) => labels(&unary.expr),
        Expr::Paren(paren) => labels(&paren.expr),
        Expr::Subquery(subquery) => labels(&subquery.expr),
        Expr::Binary(binary) => {
            let mut all = labels(&binary.lhs);
            all.extend(labels(&binary.rhs));
            all.sort();
            all.dedup();
            all
        }
        Expr::Call(call) => {
            let is_quantile = call.func.name == "histogram_quantile";
            let of_arguments = call.args.args.iter().flat_map(|argument| labels(argument));
            of_arguments.filter(|label| !(is_quantile && label == "le")).collect()
        }
        Expr::VectorSelector(vector) => labels_of_series(vector.name.as_deref().unwrap_or_default()),
        Expr::MatrixSelector(matrix) => labels_of_series(matrix.vs.name.as_deref().unwrap_or_default()),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => Vec::new(),
    }
}

fn labels_of_series(series: &str) -> Vec<String> {
    let mut all: Vec<&str> = match series {
        ALERTS => LABELS_OF_ALERTS.to_vec(),
        _ => TARGET_LABELS.iter().copied().filter(|label| *label != "site" || has_site(series)).collect(),
    };
    if let Some(metric) = metric_of(series) {
        all.extend(metric.labels.iter().map(|label| label.name));
    }
    if series.ends_with("_bucket") {
        all.push("le");
    }
    all.into_iter().map(str::to_owned).collect()
}

/// Compares every name in a query with the catalogue; `recorded` are the names of recording rules.
pub fn check(text: &str, recorded: &[String]) {
    let expr = parsed(text);
    check_aggregations(&expr);
    for selector in selectors(&expr) {
        let series = selector.series();
        if [UP, ALERTS].contains(&series) || recorded.iter().any(|name| name == series) {
            check_matchers(&selector, None, text);
            continue;
        }
        let metric = metric_of(series).unwrap_or_else(|| panic!("{series} is not in the catalogue: {text}"));
        check_matchers(&selector, Some(metric), text);
        let is_count = metric.kind != Kind::Gauge;
        assert!(
            metric.kind != Kind::Histogram || series != metric.name,
            "{series} has the series _bucket, _sum, _count: {text}"
        );
        let nearest = selector.functions.first().copied().unwrap_or_default();
        if is_count {
            assert!(selector.is_range && OF_COUNTERS.contains(&nearest), "{series} only grows: {text}");
        } else {
            assert!(!OF_COUNTERS.contains(&nearest), "{series} goes up and down: {text}");
        }
        assert!(is_count || !selector.is_range || nearest != "rate", "{text}");
        if selector.functions.contains(&"histogram_quantile") {
            assert!(series.ends_with("_bucket"), "a quantile of {series}: {text}");
        }
        if OF_GAUGES.contains(&nearest) {
            assert_eq!(metric.kind, Kind::Gauge, "{text}");
        }
    }
}

fn check_matchers(selector: &Selector<'_>, metric: Option<&Metric>, text: &str) {
    let series = selector.series();
    let known = labels_of_series(series);
    for matcher in selector.matchers() {
        assert!(known.contains(&matcher.name), "{series} has no label {}: {text}", matcher.name);
        let values = match matcher.name.as_str() {
            "job" => Role::ALL.iter().map(|role| role.as_str()).collect(),
            name => {
                let label = metric.and_then(|metric| metric.labels.iter().find(|label| label.name == name));
                match label.map(|label| label.values) {
                    Some(Values::Of(values)) => values.to_vec(),
                    Some(Values::Any(_)) | None => continue,
                }
            }
        };
        let wanted: Vec<&str> = match &matcher.op {
            MatchOp::Equal | MatchOp::NotEqual => vec![&matcher.value],
            MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
        };
        for value in wanted {
            let is_any = [".*", ".+"].contains(&value);
            assert!(is_any || values.contains(&value), "{series} never has {} {value}: {text}", matcher.name);
            if matcher.name == "job" && !is_any {
                let emits =
                    |role: &Role| role.as_str() == value && metric.is_none_or(|m| m.emitter.includes(*role));
                assert!(Role::ALL.iter().any(emits), "{value} does not show {series}: {text}");
            }
        }
    }
}

/// What is summed by must be there, and quantiles need the bounds.
fn check_aggregations(expr: &Expr) {
    match expr {
        Expr::Aggregate(aggregate) => {
            let known: Vec<String> =
                selectors(&aggregate.expr).iter().flat_map(|each| labels_of_series(each.series())).collect();
            if let Some(LabelModifier::Include(by)) = &aggregate.modifier {
                for label in &by.labels {
                    assert!(known.contains(label), "nothing has the label {label}: {expr}");
                }
            }
            check_aggregations(&aggregate.expr);
        }
        Expr::Unary(unary) => check_aggregations(&unary.expr),
        Expr::Paren(paren) => check_aggregations(&paren.expr),
        Expr::Subquery(subquery) => check_aggregations(&subquery.expr),
        Expr::Binary(binary) => {
            check_aggregations(&binary.lhs);
            check_aggregations(&binary.rhs);
        }
        Expr::Call(call) => {
            if call.func.name == "histogram_quantile" {
                assert!(
                    labels(&call.args.args[1]).iter().any(|label| label == "le"),
                    "a quantile without bounds: {expr}"
                );
            }
            call.args.args.iter().for_each(|argument| check_aggregations(argument));
        }
        _ => {}
    }
}

/// The metrics of the catalogue that a query reads.
pub fn metrics(text: &str) -> Vec<&'static str> {
    let expr = parsed(text);
    selectors(&expr).iter().filter_map(|each| metric_of(each.series())).map(|metric| metric.name).collect()
}
