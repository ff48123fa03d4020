//! The dashboards for Grafana: what each shows, and the JSON that Grafana loads.
//!
//! | looking for | module |
//! |---|---|
//! | what a panel is | [`panel`] |
//! | the twelve dashboards | `serving`, `nodes`, `money`, `running` |
//! | their JSON | `grafana` |
//!
//! The JSON is committed under `ops/grafana/dashboards`, so who uses Grafana needs nothing of this. A test compares it
//! with what is generated here; `DOZO_REWRITE_FIXTURES=1 cargo test --workspace --lib dashboards` writes it anew.

mod grafana;
#[cfg(test)]
mod lint;
mod money;
mod nodes;
pub mod panel;
mod running;
mod serving;

use panel::Dashboard;

/// A file that is generated and committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Relative to the folder `ops`.
    pub path: String,
    pub text: String,
}

/// Every dashboard, the most looked at first.
pub fn all() -> Vec<Dashboard> {
    vec![
        serving::overview(),
        serving::gateway(),
        nodes::storage_nodes(),
        nodes::topology_change(),
        nodes::disk(),
        serving::miss_path(),
        nodes::capacity(),
        money::billing(),
        money::mobile(),
        running::load_test(),
        running::runtime(),
        running::objectives(),
    ]
}

/// The dashboards as files.
pub fn files() -> Vec<GeneratedFile> {
    let file = |dashboard: &Dashboard| GeneratedFile {
        path: format!("grafana/dashboards/{}.json", dashboard.uid),
        text: format!("{:#}\n", grafana::dashboard(dashboard)),
    };
    all().iter().map(file).collect()
}
