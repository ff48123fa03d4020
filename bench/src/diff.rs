//! Two reports of one workload on one machine: what became better, worse, or stayed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::generator::Generator;
use crate::report::Report;
use crate::statistics::contrast::{Method, Verdict};
use crate::statistics::table::{Table, TableError};

/// Name and version of the JSON form.
pub const SCHEMA: &str = "dozo.bench.diff/1";

#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    #[error(
        "the two runs differ in {0}, so their numbers cannot be compared; --force compares them all the same"
    )]
    Unlike(String),
    #[error(transparent)]
    Table(#[from] TableError),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Diff {
    pub schema: String,
    pub table: Table,
    /// What differs between the runs although it should not, with --force; what should be known in any case.
    pub notes: Vec<String>,
    /// Why no verdict can be given: the load generator held a run back.
    pub refused: Vec<String>,
    /// Checks of bytes, bookings and promises that held before and hold no more.
    pub broken: Vec<String>,
    pub worse: bool,
}

/// What has to be alike, by name: of the plan all but the seed, the time of warming up, which may be found out by each
/// run, and how long it lasts.
const MAY_DIFFER: &[&str] = &["seed", "warmup_s", "duration_s"];

/// What the runs have apart that decides over their numbers.
pub fn unlike(before: &Report, after: &Report) -> Vec<String> {
    let plan = |report: &Report| serde_json::to_value(&report.plan).unwrap_or_default();
    let (one, other) = (plan(before), plan(after));
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
    };
    let names: BTreeSet<String> = keys(&one).into_iter().chain(keys(&other)).collect();
    let fields = names.into_iter().filter(|name| !MAY_DIFFER.contains(&name.as_str()));
    let differ = fields.filter(|name| one.get(name) != other.get(name)).map(|name| {
        let show = |value: &serde_json::Value| value.get(&name).map_or("nothing".into(), ToString::to_string);
        format!("{name} ({} and {})", show(&one), show(&other))
    });
    let mut found: Vec<String> = differ.collect();
    if (before.host.cores, &before.host.cpu) != (after.host.cores, &after.host.cpu) {
        let show = |report: &Report| format!("{} cores of {}", report.host.cores, report.host.cpu);
        found.push(format!("the machine ({} and {})", show(before), show(after)));
    }
    found
}

pub fn diff(before: &Report, after: &Report, method: Method, force: bool) -> Result<Diff, DiffError> {
    let apart = unlike(before, after);
    if !apart.is_empty() && !force {
        return Err(DiffError::Unlike(apart.join(", ")));
    }
    let mut notes: Vec<String> = apart.into_iter().map(|what| format!("the runs differ in {what}")).collect();
    if before.host.kernel != after.host.kernel {
        notes.push(format!("the kernels are {} and {}", before.host.kernel, after.host.kernel));
    }
    let table = Table::of(&[(before, after)], method)?;
    let checks = |report: &Report| {
        let kept = report.slos.iter().map(|slo| (slo.slo.clone(), slo.kept));
        let bookings = report.billing.as_ref().is_none_or(|billing| billing.agrees);
        let bytes = report.wrong_answers == 0 && report.read_back.wrong == 0;
        let own = [("every byte is right".to_owned(), bytes), ("deliveries are booked".to_owned(), bookings)];
        own.into_iter().chain(kept).collect::<Vec<(String, bool)>>()
    };
    let held = checks(before);
    let broken: Vec<String> = checks(after)
        .into_iter()
        .filter(|(what, holds)| !holds && held.iter().all(|(before, held)| before != what || *held))
        .map(|(what, _)| what)
        .collect();
    let worse = table.verdict == Verdict::Worse || !broken.is_empty();
    let refusal = |(name, report): (&str, &Report)| {
        let why = report.generator.as_ref().and_then(Generator::refusal)?;
        Some(format!("{name}: {why}"))
    };
    let refused = [("before", before), ("after", after)].into_iter().filter_map(refusal).collect();
    Ok(Diff { schema: SCHEMA.into(), table, notes, refused, broken, worse })
}

impl Diff {
    /// Whether a verdict can be given, and it is not worse.
    pub fn passed(&self) -> bool {
        !self.worse && self.refused.is_empty()
    }

    pub fn to_text(&self) -> String {
        let mut text = self.table.to_text("before", "after");
        for note in &self.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        for check in &self.broken {
            text.push_str(&format!("FAIL it held before: {check}\n"));
        }
        if self.refused.is_empty() {
            text.push_str(&self.table.sentence());
        } else {
            text.push_str(&format!("no verdict: {}", self.refused.join("; ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::output;
    use crate::testing::Work;
    use std::time::Duration;

    async fn report(answer_time: Duration) -> Report {
        crate::testing::report(Work { answer_time, at_once: usize::MAX }, 2, Duration::from_secs(6)).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reports_are_read_back_and_compared_only_with_their_like() {
        let (quick, slow) = (report(Duration::from_millis(1)).await, report(Duration::from_millis(60)).await);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("before.json");
        std::fs::write(&path, serde_json::to_vec(&quick).unwrap()).unwrap();
        let before = output::read(&path).unwrap();
        let found = diff(&before, &slow, Method::default(), false).unwrap();
        assert!(found.worse, "{}", found.to_text());
        assert!(found.to_text().contains("worse: get throughput"), "{}", found.to_text());
        let same = diff(&before, &quick, Method::default(), false).unwrap();
        assert!(!same.worse, "{}", same.to_text());
        let back: Diff = serde_json::from_str(&serde_json::to_string(&found).unwrap()).unwrap();
        assert!(back.worse && back.table.lines.len() == found.table.lines.len());

        let mut other = slow.clone();
        other.plan.connections = 7;
        other.host.cores += 1;
        let refused = diff(&before, &other, Method::default(), false).unwrap_err().to_string();
        assert!(refused.contains("connections (2 and 7)") && refused.contains("the machine"), "{refused}");
        assert!(diff(&before, &other, Method::default(), true).unwrap().notes.len() == 2);

        let mut held_back = quick.clone();
        held_back.generator.as_mut().unwrap().faults.push("the pacer was late".into());
        let refused = diff(&before, &held_back, Method::default(), false).unwrap();
        assert!(!refused.passed() && refused.to_text().contains("no verdict: after: the pacer was late"));

        let mut wrong = quick.clone();
        wrong.wrong_answers = 1;
        assert_eq!(diff(&before, &wrong, Method::default(), false).unwrap().broken, ["every byte is right"]);
        std::fs::write(&path, r#"{"schema": "dozo.bench.run/1"}"#).unwrap();
        assert!(output::read(&path).unwrap_err().to_string().contains("dozo.bench.run/1"));
    }
}
