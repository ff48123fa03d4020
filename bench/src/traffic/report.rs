//! The result, as a table for people and as JSON.

use std::fmt::Write as _;

use common::config::show_bytes;
use serde::Serialize;

use crate::traffic::model::{Model, Outcome, Rules, replay};
use crate::traffic::sweep::{Sweep, SweepPoint};
use crate::traffic::topology::{Topology, TopologyFile};
use crate::traffic::trace::{Trace, TraceParameters};

/// Links that the table shows; JSON has all.
const LINKS_SHOWN: usize = 12;

#[derive(Debug, Serialize)]
pub struct TrafficReport {
    pub schema: &'static str,
    pub trace: TraceParameters,
    pub rules: Rules,
    pub topology: TopologyFile,
    pub models: Vec<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Sweep>,
}

impl TrafficReport {
    pub fn of(trace: &Trace, rules: Rules, topology: &Topology, sweep: Option<Sweep>) -> Self {
        Self {
            schema: "dozo.bench.traffic/1",
            trace: trace.parameters.clone(),
            rules,
            topology: topology.file().clone(),
            models: Model::ALL.map(|model| replay(model, rules, trace, topology)).to_vec(),
            sweep,
        }
    }

    /// One model's outcome.
    pub fn model(&self, model: Model) -> Option<&Outcome> {
        self.models.iter().find(|outcome| outcome.model == model)
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _always_ok = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let trace = &self.trace;
        writeln!(
            text,
            "{} requests of {} clients for {} contents in {} h; clients on {:.0} % of the time, Zipf alpha {}, seed {}",
            trace.requests,
            trace.clients,
            trace.contents,
            trace.duration_s / 3600,
            trace.availability * 100.0,
            trace.zipf_alpha,
            trace.seed
        )?;
        writeln!(text, "{} sites, {} links\n", self.topology.sites.len(), self.topology.links.len())?;
        writeln!(
            text,
            "{:<14} {:>12} {:>9} {:>9} {:>12} {:>12} {:>7} {:>7} {:>7} {:>10}",
            "model",
            "bytes x hops",
            "relative",
            "hops/byte",
            "from origin",
            "from peers",
            "local",
            "peer",
            "origin",
            "none runs"
        )?;
        let server = self.model(Model::ClientServer).map_or(0, |outcome| outcome.byte_hops);
        for outcome in &self.models {
            let share =
                |count: u64| format!("{:.1}%", 100.0 * count as f64 / (outcome.requests as f64).max(1.0));
            writeln!(
                text,
                "{:<14} {:>12} {:>8.1}% {:>9.2} {:>12} {:>12} {:>7} {:>7} {:>7} {:>10}",
                outcome.model.as_str(),
                show_bytes(outcome.byte_hops),
                100.0 * outcome.byte_hops as f64 / (server as f64).max(1.0),
                outcome.hops_per_byte(),
                show_bytes(outcome.origin_bytes),
                show_bytes(outcome.peer_bytes),
                share(outcome.local),
                share(outcome.from_peer),
                share(outcome.from_origin),
                share(outcome.no_running_holder),
            )?;
        }
        if self.rules.dedup {
            let saved = self.model(Model::Sites).map_or(0, |outcome| outcome.saved_bytes);
            writeln!(text, "\nsites had {} of what they would have collected", show_bytes(saved))?;
        }
        self.write_links(text)?;
        if let Some(sweep) = &self.sweep {
            write_points(text, "clients on", &sweep.availability, |value| format!("{:.0} %", value * 100.0))?;
            write_points(text, "Zipf alpha", &sweep.zipf_alpha, |value| format!("{value:.1}"))?;
        }
        Ok(())
    }

    fn write_links(&self, text: &mut String) -> std::fmt::Result {
        let mut links: Vec<usize> = (0..self.topology.links.len()).collect();
        let most = |link: &usize| self.models.iter().map(|outcome| outcome.link_bytes[*link]).max();
        links.sort_by_key(|link| std::cmp::Reverse(most(link)));
        write!(text, "\n{:<28} {:>4}", "busiest links", "hops")?;
        self.models.iter().try_for_each(|outcome| write!(text, " {:>14}", outcome.model.as_str()))?;
        writeln!(text)?;
        for link in links.iter().take(LINKS_SHOWN) {
            let entry = &self.topology.links[*link];
            write!(text, "{:<28} {:>4}", entry.between.join(" - "), entry.hops)?;
            self.models
                .iter()
                .try_for_each(|outcome| write!(text, " {:>14}", show_bytes(outcome.link_bytes[*link])))?;
            writeln!(text)?;
        }
        write!(text, "{:<28} {:>4}", "all clients' access links", self.topology.access_hops)?;
        self.models
            .iter()
            .try_for_each(|outcome| write!(text, " {:>14}", show_bytes(outcome.access_bytes)))?;
        writeln!(text)
    }
}

fn write_points(
    text: &mut String,
    name: &str,
    points: &[SweepPoint],
    show: impl Fn(f64) -> String,
) -> std::fmt::Result {
    write!(text, "\n{name:<14}")?;
    Model::ALL.iter().try_for_each(|model| write!(text, " {:>14}", model.as_str()))?;
    writeln!(text, "   (bytes x hops, relative to client-server) {:>10}", "none runs")?;
    for point in points {
        write!(text, "{:<14}", show(point.value))?;
        Model::ALL.iter().try_for_each(|model| write!(text, " {:>13.1}%", 100.0 * point.relative(*model)))?;
        let missed = point.outcomes.iter().map(|outcome| outcome.no_running_holder).max().unwrap_or(0);
        let requests = point.outcomes.first().map_or(0, |outcome| outcome.requests);
        writeln!(text, "{:>55.1}%", 100.0 * missed as f64 / (requests as f64).max(1.0))?;
    }
    Ok(())
}
