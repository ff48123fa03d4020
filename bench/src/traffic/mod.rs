//! What a way of delivering costs the network: one trace of requests, replayed over models.

pub mod topology;
pub mod trace;
