//! Figures of sources. A series for each site would be too many where sites are thousands: the first
//! [`SITES_SHOWN`] that are candidates have one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use common::catalogue::metrics::{
    GATEWAY_SITE_ROUND_TRIP, GATEWAY_SOURCE_FAILURES, GATEWAY_SOURCE_PROBES, GATEWAY_SOURCES_CHOSEN,
};
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
    pub fn new(registry: &MetricsRegistry) -> Self {
        let probes = |outcome| registry.counter(&GATEWAY_SOURCE_PROBES, &[outcome]);
        Self {
            registry: registry.clone(),
            chosen: Reason::ALL.map(|reason| registry.counter(&GATEWAY_SOURCES_CHOSEN, &[reason.as_str()])),
            probes_answered: probes("answered"),
            probes_failed: probes("failed"),
            failures: registry.counter(&GATEWAY_SOURCE_FAILURES, &[]),
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
        let make = || self.registry.gauge(&GATEWAY_SITE_ROUND_TRIP, &[site.as_str()]);
        shown.entry(site.clone()).or_insert_with(make).set(seconds);
    }
}
