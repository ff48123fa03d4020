//! The highest rate at which a system keeps its promises, found by going up until they break, and halving what lies
//! between.
//!
//! In an open loop, as users are: they do not wait for each other. A rate counts as kept if every promise holds, if
//! nothing is dropped, and if those who wait at the end are served soon, so that the queue does not grow. What is found
//! is measured again, above and below; then the system is overloaded, and the rate below tried once more: a system that
//! does not come back has a second, lower limit.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::generator::Generator;
use crate::load::Load;
use crate::plan::Plan;
use crate::report::{Host, show_us};
use crate::slo::{Slo, SloResult};

/// Name and version of the JSON form.
pub const SCHEMA: &str = "dozo.bench.saturate/1";
/// Going up, each rate is this many times the one before.
const RAMP: f64 = 1.5;
/// The time to serve those who still wait at the end, as a share of the time that was measured.
const BACKLOG_SHARE_MAX: f64 = 0.05;
/// Requests that may fail where no promise says how many.
const ERROR_SHARE_MAX: f64 = 0.001;
/// To see whether a system comes back, it gets this many times the rate that was too much.
const OVERLOAD: f64 = 1.5;
/// With fewer requests in a step fewer than ten lie beyond its p99, and these are chance.
const REQUESTS_MIN: u64 = 1000;
/// Rates tried below one that did not hold when it was repeated.
const STEPS_DOWN_MAX: usize = 6;

/// How a search is made.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Search {
    /// Requests a second: the first rate, and one that is not passed.
    pub from: f64,
    pub to: f64,
    /// The search ends when the kept and the broken rate are this close, as a share.
    pub resolution: f64,
    /// How often what was found is measured again.
    pub repeats: usize,
}

/// Why a rate was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Ramp,
    Bisect,
    Repeat,
    Overload,
    /// The rate that was kept, after overload.
    Recovery,
}

/// One rate, measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    pub phase: Phase,
    /// Requests a second that were to start, and those that were answered.
    pub rate: f64,
    pub requests: u64,
    pub answered_per_s: f64,
    /// Of the response time.
    pub p50_us: f64,
    pub p99_us: f64,
    pub slos: Vec<SloResult>,
    pub kept: bool,
    /// What broke, in words.
    pub broke: Vec<String>,
    /// The load generator was the limit.
    pub generator: Vec<String>,
}

impl Step {
    pub fn of(phase: Phase, rate: f64, plan: &Plan, load: &Load, slos: &[Slo]) -> Self {
        let slos: Vec<SloResult> = slos.iter().map(|slo| slo.judge(&load.tally, load.elapsed)).collect();
        let total = load.tally.total(None);
        let times = total.response.summary();
        let Generator { faults: generator, overrun, .. } = load.generator();
        let mut broke: Vec<String> = slos
            .iter()
            .filter(|s| !s.kept)
            .map(|s| format!("{} (measured {:.6})", s.slo, s.measured))
            .collect();
        broke.extend(overrun);
        let errors = load.tally.error_count(None);
        if errors as f64 > ERROR_SHARE_MAX * (errors + total.requests) as f64 {
            broke.push(format!("{errors} requests failed"));
        }
        if load.tally.wrong > 0 {
            broke.push(format!("{} answers were wrong", load.tally.wrong));
        }
        let backlog = load.elapsed.saturating_sub(plan.duration);
        if backlog > plan.duration.mul_f64(BACKLOG_SHARE_MAX) {
            broke.push(format!("the queue grew: those who waited at the end took {backlog:.1?}"));
        }
        Self {
            phase,
            rate,
            requests: total.requests,
            answered_per_s: total.requests as f64 / load.elapsed.as_secs_f64(),
            p50_us: times.p50_us,
            p99_us: times.p99_us,
            slos,
            kept: broke.is_empty(),
            broke,
            generator,
        }
    }
}

impl Step {
    /// Something else that did not hold.
    pub fn breaks(&mut self, what: String) {
        self.kept = false;
        self.broke.push(what);
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saturation {
    pub schema: String,
    pub host: Host,
    pub search: Search,
    /// Of one step.
    pub step_s: f64,
    pub slos: Vec<String>,
    pub steps: Vec<Step>,
    /// The highest rate that was kept each time; `None` if none was.
    pub rate: Option<f64>,
    /// The lowest rate above it that was not kept; `None` if the search ended at its upper end.
    pub broken_at: Option<f64>,
    /// Runs in which `rate` was kept, all of them, before overload.
    pub kept_runs: usize,
    /// Whether `rate` was kept again after overload; `None` if there was no overload.
    pub recovers: Option<bool>,
    /// The rate from which the p99 grows faster than the rate; `None` with too few rates.
    pub knee: Option<f64>,
    /// Why no verdict can be given: the load generator was the limit.
    pub refused: Option<String>,
}

/// Finds the highest rate. `measure` drives the system at a rate.
pub async fn saturate<E>(
    search: Search,
    step: Duration,
    slos: &[Slo],
    mut measure: impl AsyncFnMut(Phase, f64) -> Result<Step, E>,
) -> Result<Saturation, E> {
    let mut steps: Vec<Step> = Vec::new();
    let mut kept = async |phase, rate, steps: &mut Vec<Step>| {
        let step = measure(phase, rate).await?;
        let kept = step.kept;
        steps.push(step);
        Ok::<bool, E>(kept)
    };
    let (mut low, mut high) = (None, None);
    let mut rate = search.from.min(search.to);
    while high.is_none() {
        if kept(Phase::Ramp, rate, &mut steps).await? {
            low = Some(rate);
            if rate >= search.to {
                break;
            }
            rate = (rate * RAMP).min(search.to);
        } else {
            high = Some(rate);
        }
    }
    // The first rate was too much: down, until one is kept or it is nearly nothing.
    while low.is_none() && rate > search.from / 1000.0 {
        rate /= 2.0;
        if kept(Phase::Ramp, rate, &mut steps).await? {
            low = Some(rate);
        } else {
            high = Some(rate);
        }
    }
    while let (Some(below), Some(above)) = (low, high)
        && above / below > 1.0 + search.resolution
    {
        // Rates are compared by ratio, so the middle is geometric.
        let middle = f64::sqrt(below * above);
        if kept(Phase::Bisect, middle, &mut steps).await? {
            low = Some(middle);
        } else {
            high = Some(middle);
        }
    }
    let mut kept_runs = 0;
    for _ in 0..STEPS_DOWN_MAX {
        let Some(below) = low else { break };
        kept_runs = 0;
        while kept_runs < search.repeats && kept(Phase::Repeat, below, &mut steps).await? {
            kept_runs += 1;
        }
        if kept_runs == search.repeats {
            // The one of the search counts as well.
            kept_runs += 1;
            break;
        }
        (low, high) = (Some(below / (1.0 + search.resolution)), Some(below));
    }
    if kept_runs <= search.repeats.saturating_sub(1) {
        low = None;
    }
    let mut recovers = None;
    if let (Some(below), Some(above)) = (low, high) {
        kept(Phase::Overload, above * OVERLOAD, &mut steps).await?;
        recovers = Some(kept(Phase::Recovery, below, &mut steps).await?);
    }
    let refused = high.and_then(|high| {
        // Only the step that set the limit: below it the promises were kept whatever the generator did.
        let limit = steps.iter().find(|step| !step.kept && step.rate == high)?;
        (!limit.generator.is_empty()).then(|| limit.generator.join("; "))
    });
    Ok(Saturation {
        schema: SCHEMA.into(),
        host: Host::here(),
        search,
        step_s: step.as_secs_f64(),
        slos: slos.iter().map(ToString::to_string).collect(),
        knee: knee(&steps),
        steps,
        rate: low,
        broken_at: high,
        kept_runs,
        recovers,
        refused,
    })
}

/// Where the curve of p99 over rate bends: the point farthest below the straight line from its first point to its last
/// (V. Satopaa et al., Finding a "kneedle" in a haystack, 2011).
fn knee(steps: &[Step]) -> Option<f64> {
    let searched =
        steps.iter().filter(|step| matches!(step.phase, Phase::Ramp | Phase::Bisect | Phase::Overload));
    let mut points: Vec<(f64, f64)> = searched.map(|step| (step.rate, step.p99_us)).collect();
    points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (first, last) = (*points.first()?, *points.last()?);
    if points.len() < 4 || last.1 <= first.1 {
        return None;
    }
    let below = |(rate, p99): (f64, f64)| {
        (rate - first.0) / (last.0 - first.0) - (p99 - first.1) / (last.1 - first.1)
    };
    points.into_iter().max_by(|a, b| below(*a).total_cmp(&below(*b))).map(|(rate, _)| rate)
}

impl Saturation {
    /// Whether a rate was found that is kept, comes back after overload, and is the system's own limit.
    pub fn passed(&self) -> bool {
        self.rate.is_some() && self.refused.is_none() && self.recovers != Some(false)
    }

    pub fn to_text(&self) -> String {
        let mut text =
            format!("{:<9} {:>10} {:>12} {:>10} {:>10}  result\n", "phase", "rate", "answered", "p50", "p99");
        for step in &self.steps {
            let phase = serde_json::to_value(step.phase).unwrap_or_default();
            let result =
                if step.kept { "kept".to_owned() } else { format!("broken: {}", step.broke.join("; ")) };
            // Writing to a String cannot fail.
            let _infallible = writeln!(
                text,
                "{:<9} {:>8.0}/s {:>10.0}/s {:>10} {:>10}  {result}",
                phase.as_str().unwrap_or_default(),
                step.rate,
                step.answered_per_s,
                show_us(step.p50_us),
                show_us(step.p99_us),
            );
        }
        text.push_str(&self.sentence());
        text
    }

    /// The result in words, with how sure it is.
    pub fn sentence(&self) -> String {
        let promise = self.slos.join(" and ");
        if let Some(why) = &self.refused {
            return format!("no verdict: the load generator was the limit: {why}");
        }
        let Some(rate) = self.rate else {
            return format!("no rate was found at which {promise} is kept each time");
        };
        // If a run were kept with a chance below this, so many in a row would be seen less than once in twenty.
        let chance = 0.05f64.powf(1.0 / self.kept_runs as f64);
        let mut text = format!(
            "{promise} is kept at {rate:.0}/s: in {0} runs of {0} of {1:.0} s each (so in at least {2:.0} % of such runs, \
             with 95 % confidence)",
            self.kept_runs,
            self.step_s,
            chance * 100.0
        );
        match self.broken_at {
            Some(above) => text.push_str(&format!(", and broken at {above:.0}/s")),
            None => text.push_str(", the highest rate that was tried"),
        }
        let fewest = self.steps.iter().filter(|step| step.rate == rate).map(|step| step.requests).min();
        if let Some(fewest) = fewest.filter(|fewest| *fewest < REQUESTS_MIN) {
            text.push_str(&format!("; each time with {fewest} requests only, so use a longer --duration"));
        }
        match self.recovers {
            Some(true) => text.push_str("; kept again after overload"),
            Some(false) => text.push_str("; NOT kept again right after overload: the system comes back late"),
            None => {}
        }
        if let Some(knee) = self.knee {
            text.push_str(&format!("; the knee lies near {knee:.0}/s"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Stage, drive};
    use crate::plan::Pace;
    use crate::schedule::Arrivals;
    use crate::testing::{Server, Work, closed_loop};
    use std::cell::Cell;
    use std::convert::Infallible;

    const SEARCH: Search = Search { from: 100.0, to: 100_000.0, resolution: 0.05, repeats: 3 };

    /// A queue of one server, as the books have it: the p99 goes up as the rate nears capacity.
    fn modelled(phase: Phase, rate: f64, capacity: f64) -> Step {
        let p99_us = if rate < capacity { 4_600.0 / (1.0 - rate / capacity) } else { 1e7 };
        let kept = p99_us < 50_000.0;
        Step {
            phase,
            rate,
            requests: (rate * 5.0) as u64,
            answered_per_s: rate.min(capacity),
            p50_us: p99_us / 6.6,
            p99_us,
            slos: Vec::new(),
            kept,
            broke: Vec::new(),
            generator: Vec::new(),
        }
    }

    async fn search(mut step: impl FnMut(Phase, f64) -> Step) -> Saturation {
        let slos = ["get.p99<50ms".parse().unwrap()];
        let measure = async |phase, rate| Ok::<Step, Infallible>(step(phase, rate));
        saturate(SEARCH, Duration::from_secs(5), &slos, measure).await.unwrap()
    }

    #[tokio::test]
    async fn the_limit_is_found_from_below_and_from_above() {
        // 4.6 / (1 - r) = 50 at r = 0.908.
        for capacity in [10.0, 1_000.0, 20_000.0] {
            let found = search(|phase, rate| modelled(phase, rate, capacity)).await;
            let (rate, broken) = (found.rate.unwrap(), found.broken_at.unwrap());
            assert!(rate <= 0.908 * capacity && broken >= 0.908 * capacity, "{}", found.to_text());
            assert!(broken / rate <= 1.051 && found.kept_runs == 4 && found.passed());
            let knee = found.knee.unwrap();
            assert!((0.3 * capacity..capacity).contains(&knee), "{}", found.to_text());
        }
        let found = search(|phase, rate| modelled(phase, rate, 1e9)).await;
        assert_eq!((found.rate, found.broken_at, found.recovers), (Some(100_000.0), None, None));
        assert!(found.sentence().contains("the highest rate that was tried"));
        let found = search(|phase, rate| modelled(phase, rate, 1e-9)).await;
        assert!(found.rate.is_none() && !found.passed());
    }

    #[tokio::test]
    async fn a_system_that_does_not_come_back_is_told() {
        let overloaded = Cell::new(false);
        let found = search(|phase, rate| {
            overloaded.set(overloaded.get() || phase == Phase::Overload);
            modelled(phase, rate, if overloaded.get() { 500.0 } else { 1_000.0 })
        })
        .await;
        assert!(found.recovers == Some(false) && !found.passed(), "{}", found.to_text());
        assert!(found.sentence().contains("NOT kept again"));
    }

    #[tokio::test]
    async fn a_rate_that_holds_by_luck_is_given_up() {
        let mut repeats = 0;
        let found = search(|phase, rate| {
            repeats += usize::from(phase == Phase::Repeat);
            let unlucky = phase == Phase::Repeat && repeats == 2;
            Step { kept: !unlucky && rate < 900.0, ..modelled(phase, rate, 1_000.0) }
        })
        .await;
        let rate = found.rate.unwrap();
        assert!((800.0..900.0).contains(&rate), "{}", found.to_text());
        assert!(found.broken_at.unwrap() / rate < 1.051);
    }

    #[tokio::test]
    async fn no_verdict_rests_on_a_generator_that_was_the_limit() {
        let found = search(|phase, rate| {
            let step = modelled(phase, rate, 1_000.0);
            let generator = if step.kept { Vec::new() } else { vec!["the pacer was late".to_owned()] };
            Step { generator, ..step }
        })
        .await;
        assert!(!found.passed() && found.sentence().contains("the pacer was late"));
    }

    /// Four places of at least 10 ms: 400 requests a second, and no more on any machine. A busy machine does fewer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_limit_of_a_real_server_is_found() {
        let target = Server::start(Work { answer_time: Duration::from_millis(10), at_once: 4 }).await;
        let slos: Vec<Slo> = vec!["get.p99<150ms".parse().unwrap()];
        let step = Duration::from_millis(1500);
        let search = Search { from: 50.0, to: 10_000.0, resolution: 0.1, repeats: 1 };
        let measure = async |phase, rate| {
            let pace = Pace::Open { rate, arrivals: Arrivals::Constant };
            let plan = Plan { pace, ..closed_loop(32, step) };
            let load = drive(&plan, &target, &Stage::default()).await?;
            Ok::<Step, crate::load::LoadError>(Step::of(phase, rate, &plan, &load, &slos))
        };
        let found = saturate(search, step, &slos, measure).await.unwrap();
        let rate = found.rate.unwrap();
        // What waits at the end may take 5 % longer and more, so a little above capacity still counts as kept.
        assert!((50.0..450.0).contains(&rate), "{}", found.to_text());
        assert!(found.broken_at.unwrap() < 700.0, "{}", found.to_text());
        assert!(
            found.sentence().contains("requests only, so use a longer --duration"),
            "{}",
            found.sentence()
        );
        assert!(found.steps.iter().any(|step| step.phase == Phase::Recovery));
    }
}
