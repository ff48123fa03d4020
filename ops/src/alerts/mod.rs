//! What Prometheus records and when it alerts, and the rules file that Prometheus loads.
//!
//! | looking for | module |
//! |---|---|
//! | the alerts | [`list`] |
//! | recording rules, and alerts on promises | [`objectives`] |
//!
//! `ops/prometheus/rules/dozo.yml` is committed, so who uses Prometheus needs nothing of this. A test compares it with
//! what is generated here; `DOZO_REWRITE_FIXTURES=1 cargo test --workspace --lib alerts` writes it anew. Each alert has
//! a runbook of its name in `ops/runbooks`.

#[cfg(test)]
mod lint;
pub mod list;
pub mod objectives;

use std::fmt::Write;

use crate::dashboards::GeneratedFile;

/// Who is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Somebody, now.
    Page,
    /// Somebody, on the next working day.
    Ticket,
    /// Nobody: the alert is always there, and its absence tells that alerting does not work.
    None,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Ticket => "ticket",
            Self::None => "none",
        }
    }
}

/// A rule; several may have one name, with different severities.
#[derive(Debug, Clone)]
pub struct Alert {
    pub name: &'static str,
    pub expr: String,
    /// How long it must hold before anybody is told, as Prometheus writes durations.
    pub hold: &'static str,
    pub severity: Severity,
    /// One line; `{{ $labels.site }}` and the like are replaced.
    pub summary: &'static str,
    /// What is so, with its value, and what it means.
    pub description: &'static str,
    /// Dashboard to look at.
    pub dashboard: &'static str,
    /// Labels beside `severity`, in the order of names.
    pub labels: &'static [(&'static str, &'static str)],
}

#[derive(Debug, Clone)]
pub struct Recording {
    pub name: String,
    pub expr: String,
}

/// Recorded names.
pub fn recorded_names() -> Vec<String> {
    objectives::recordings().into_iter().flat_map(|(_, rules)| rules).map(|rule| rule.name).collect()
}

/// All alerts, those on promises first.
pub fn all() -> Vec<Alert> {
    objectives::alerts().into_iter().chain(list::alerts()).collect()
}

/// The queries of all rules.
pub fn expressions() -> Vec<String> {
    let recordings = objectives::recordings().into_iter().flat_map(|(_, rules)| rules);
    recordings.map(|rule| rule.expr).chain(all().into_iter().map(|alert| alert.expr)).collect()
}

/// The rules as Prometheus loads them.
pub fn file() -> GeneratedFile {
    let mut text = String::from(
        "# Generated from ops/src/alerts; a test compares. How to change it is told there.\ngroups:\n",
    );
    for (interval, rules) in objectives::recordings() {
        let _infallible =
            write!(text, "  - name: dozo-recorded-{interval}\n    interval: {interval}\n    rules:\n");
        for Recording { name, expr } in rules {
            let _infallible = write!(text, "      - record: {name}\n        expr: {}\n", quoted(&expr));
        }
    }
    text.push_str("  - name: dozo-alerts\n    rules:\n");
    for alert in all() {
        push_alert(&mut text, &alert);
    }
    GeneratedFile { path: "prometheus/rules/dozo.yml".to_owned(), text }
}

fn push_alert(text: &mut String, alert: &Alert) {
    let Alert { name, expr, hold, severity, summary, description, dashboard, labels } = alert;
    let _infallible = write!(
        text,
        "      - alert: {name}\n        expr: {}\n        for: {hold}\n        labels:\n          severity: {}\n",
        quoted(expr),
        severity.as_str()
    );
    for (label, value) in *labels {
        let _infallible = writeln!(text, "          {label}: {}", quoted(value));
    }
    let annotations = [
        ("summary", (*summary).to_owned()),
        ("description", (*description).to_owned()),
        ("runbook_url", format!("ops/runbooks/{name}.md")),
        ("dashboard_url", format!("/d/{dashboard}")),
    ];
    text.push_str("        annotations:\n");
    for (annotation, value) in annotations {
        let _infallible = writeln!(text, "          {annotation}: {}", quoted(&value));
    }
}

/// A string in YAML's single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
