//! What this node has to tell others: queued durably with the change it tells of, sent in order, at least once.
//! Receivers know each item by its number, so it counts once.

pub mod announcements;
pub mod billing;
pub mod home;
pub mod snapshot;
