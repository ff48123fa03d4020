//! What every server tells, and the load generator beside them, written down once: names that dashboards, alerts and scripts
//! rely on.

pub mod load;
pub mod metrics;
