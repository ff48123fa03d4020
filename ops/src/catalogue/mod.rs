//! What Dozo tells the outside, in tables: metrics, error codes, routes, invariants. Each is made of what the program
//! itself goes by, printed by `dozo catalogue`, and kept under ops/reference, where a test sees that it is up to date.

mod config;
mod errors;
mod invariants;
mod metrics;
mod routes;

pub use config::config;
pub use errors::errors;
pub use invariants::{INVARIANTS, Invariant, invariants};
pub use metrics::metrics;
pub use routes::{Caller, Listener, ROUTES, Route, routes};

/// A cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
