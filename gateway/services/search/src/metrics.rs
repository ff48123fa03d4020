//! The server's figures: handles made once.

use std::sync::Arc;

use common::auth::Role;
use common::catalogue::metrics::{
    SEARCH_ANNOUNCEMENTS, SEARCH_CONTENTS, SEARCH_HOLDERS, SEARCH_LOOKUPS, SEARCH_MAP_EPOCH,
    SEARCH_MISSING_REPORTS, SEARCH_SERVERS,
};
use common::telemetry::MetricsRegistry;
use metrics::{Counter, Gauge};
use tokio::sync::watch;

use crate::map::View;
use crate::servers::Leases;

#[derive(Clone)]
pub struct Metrics {
    /// Names that at least one site or origin holds in their newest version.
    pub contents: Gauge,
    /// Pairs of name and holder.
    pub holders: Gauge,
    pub map_epoch: Gauge,
    pub announcements: Counter,
    pub missing_reports: Counter,
    found: Counter,
    not_found: Counter,
}

impl Metrics {
    pub fn new(registry: &MetricsRegistry) -> Self {
        let lookups = |result| registry.counter(&SEARCH_LOOKUPS, &[result]);
        Self {
            contents: registry.gauge(&SEARCH_CONTENTS, &[]),
            holders: registry.gauge(&SEARCH_HOLDERS, &[]),
            map_epoch: registry.gauge(&SEARCH_MAP_EPOCH, &[]),
            announcements: registry.counter(&SEARCH_ANNOUNCEMENTS, &[]),
            missing_reports: registry.counter(&SEARCH_MISSING_REPORTS, &[]),
            found: lookups("found"),
            not_found: lookups("not_found"),
        }
    }

    /// A question where a content is was answered.
    pub fn lookup(&self, is_found: bool) {
        if is_found { &self.found } else { &self.not_found }.increment(1);
    }
}

/// Shows how many servers of each role report, and how many have fallen silent.
pub fn show_servers(registry: &MetricsRegistry, view: watch::Receiver<View>, leases: Arc<Leases>) {
    registry.computed(&SEARCH_SERVERS, move || {
        let targets = view.borrow().targets.clone();
        let mut series = Vec::new();
        for role in Role::ALL.iter().filter(|role| **role != Role::Search) {
            let of_role = targets.iter().filter(|target| target.key.role == *role);
            let (alive, silent): (Vec<_>, Vec<_>) = of_role.partition(|target| leases.has(&target.key));
            for (state, servers) in [("alive", alive), ("silent", silent)] {
                series.push((vec![role.to_string(), state.to_owned()], servers.len() as f64));
            }
        }
        series
    });
}
