//! The arguments of sub-commands, and what each does with them.

pub mod canonical;
pub mod compare;
pub mod diff;
pub mod explain;
pub mod observe;
pub mod report;
pub mod saturate;
pub mod warmup;
