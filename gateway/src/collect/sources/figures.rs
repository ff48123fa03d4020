//! Figures of sources. A series for each site would be too many where sites are thousands: the first
//! [`SITES_SHOWN`] that are candidates have one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use common::id::SiteId;
use common::telemetry::MetricsRegistry;
use metrics::{Counter, Gauge};

use super::order::Reason;

/// Sites with a figure of their own.
const SITES_SHOWN: usize = 64;

pub struct SourceFigures {
    registry: MetricsRegistry,
    chosen: [Counter; Reason::ALL.len()],
    pub probes_answered: Counter,
    pub probes_failed: Counter,
    pub failures: Counter,
    round_trips: Mutex<HashMap<SiteId, Gauge>>,
}

impl SourceFigures {
    /// To be called in the registry's scope.
    pub fn new(registry: &MetricsRegistry) -> Self {
        metrics::describe_counter!(
            "dozo_gateway_sources_chosen_total",
            "Rankings, by why their first source was the first."
        );
        metrics::describe_counter!(
            "dozo_gateway_source_probes_total",
            "Measured round trips to sources, by outcome."
        );
        metrics::describe_counter!("dozo_gateway_source_failures_total", "Fetches that a source failed.");
        metrics::describe_gauge!(
            "dozo_gateway_site_round_trip_seconds",
            "Smoothed round trip to the nearest gateway of a site."
        );
        let probes = |outcome| metrics::counter!("dozo_gateway_source_probes_total", "outcome" => outcome);
        Self {
            registry: registry.clone(),
            chosen: Reason::ALL.map(
                |reason| metrics::counter!("dozo_gateway_sources_chosen_total", "reason" => reason.as_str()),
            ),
            probes_answered: probes("answered"),
            probes_failed: probes("failed"),
            failures: metrics::counter!("dozo_gateway_source_failures_total"),
            round_trips: Mutex::default(),
        }
    }

    pub(super) fn chosen(&self, reason: Reason) {
        let place = Reason::ALL.iter().position(|each| *each == reason);
        self.chosen[place.unwrap_or(0)].increment(1);
    }

    pub(super) fn round_trip(&self, site: &SiteId, seconds: f64) {
        let mut shown = self.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
        if !shown.contains_key(site) && shown.len() >= SITES_SHOWN {
            return;
        }
        let make = || metrics::gauge!("dozo_gateway_site_round_trip_seconds", "site" => site.to_string());
        shown.entry(site.clone()).or_insert_with(|| self.registry.scope(make)).set(seconds);
    }
}
