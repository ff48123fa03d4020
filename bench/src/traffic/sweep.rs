//! How the result depends on what is uncertain: the share of the time that clients are on, and the slope of
//! popularity. Everything else of the trace stays as it is.

use serde::Serialize;

use crate::traffic::model::{Model, Outcome, Rules, replay};
use crate::traffic::topology::Topology;
use crate::traffic::trace::{InvalidTrace, TraceParameters};

pub const AVAILABILITIES: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
pub const ALPHAS: [f64; 7] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2];

/// The models at one value of the parameter that is swept.
#[derive(Debug, Clone, Serialize)]
pub struct SweepPoint {
    pub value: f64,
    pub outcomes: Vec<Outcome>,
}

impl SweepPoint {
    /// A model's bytes x hops, as a share of the server's.
    pub fn relative(&self, model: Model) -> f64 {
        let of = |model| self.outcomes.iter().find(|o| o.model == model).map_or(0, |o| o.byte_hops);
        of(model) as f64 / (of(Model::ClientServer) as f64).max(1.0)
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Sweep {
    pub availability: Vec<SweepPoint>,
    pub zipf_alpha: Vec<SweepPoint>,
}

/// Replays all models with each of the values.
pub fn sweep(parameters: &TraceParameters, rules: Rules, topology: &Topology) -> Result<Sweep, InvalidTrace> {
    let point = |value: f64, parameters: TraceParameters| {
        let trace = parameters.generate(topology)?;
        let outcomes = Model::ALL.map(|model| replay(model, rules, &trace, topology)).to_vec();
        Ok(SweepPoint { value, outcomes })
    };
    let at = |availability| point(availability, TraceParameters { availability, ..parameters.clone() });
    let with = |zipf_alpha| point(zipf_alpha, TraceParameters { zipf_alpha, ..parameters.clone() });
    Ok(Sweep {
        availability: AVAILABILITIES.into_iter().map(at).collect::<Result<_, _>>()?,
        zipf_alpha: ALPHAS.into_iter().map(with).collect::<Result<_, _>>()?,
    })
}
