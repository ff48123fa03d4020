//! What every server tells, written down once: names that dashboards, alerts and scripts rely on.

pub mod metrics;
