//! The arguments of sub-commands, and what each does with them.

pub mod diff;
pub mod observe;
pub mod report;
