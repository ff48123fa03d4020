//! What a report says in one sentence, and each of its checks in one: shared by every form of it.

use super::text::{show_bytes_short, show_number, show_us};
use super::{Event, Report, overview};

/// One check. `held` is `None` if it could not be made.
pub struct Check {
    pub name: String,
    pub held: Option<bool>,
    pub text: String,
}

impl Report {
    /// Of all operations, over the measured part.
    pub fn requests_per_s(&self) -> f64 {
        self.requests() as f64 / self.elapsed_s.max(1e-9)
    }

    pub fn bytes_per_s(&self) -> f64 {
        let bytes: u64 = self.results.iter().filter(|row| row.source.is_some()).map(|row| row.bytes).sum();
        bytes as f64 / self.elapsed_s.max(1e-9)
    }

    fn requests(&self) -> u64 {
        // Rows without a source sum up others.
        self.results.iter().filter(|row| row.source.is_some()).map(|row| row.requests).sum()
    }

    pub fn error_count(&self) -> u64 {
        self.errors.iter().map(|error| error.count).sum()
    }

    /// The result in one sentence.
    pub fn sentence(&self) -> String {
        let (response, _) = overview::totals(self, None);
        let summary = response.summary();
        let failed: Vec<String> = self
            .checks()
            .into_iter()
            .filter(|check| check.held == Some(false))
            .map(|check| format!("{} ({})", check.name, check.text))
            .collect();
        let verdict = if !failed.is_empty() {
            format!("failed: {}", failed.join("; "))
        } else if self.passed {
            "every check held".to_owned()
        } else {
            "failed: nothing was answered".to_owned()
        };
        format!(
            "{} requests a second ({}/s) for {:.0} s, response time p50 {}, p99 {}, p99.9 {}, {} errors; {verdict}.",
            show_number(self.requests_per_s()),
            show_bytes_short(self.bytes_per_s()),
            self.elapsed_s,
            show_us(summary.p50_us),
            show_us(summary.p99_us),
            show_us(summary.p999_us),
            self.error_count()
        )
    }

    pub fn checks(&self) -> Vec<Check> {
        let verify = serde_json::to_value(self.plan.verify).unwrap_or_default();
        let mut checks = vec![Check {
            name: "contents".into(),
            held: Some(self.wrong_answers == 0 && self.read_back.wrong == 0),
            text: format!(
                "{} wrong answers (verify {}), {} of them stale, {} put and read back",
                self.wrong_answers,
                verify.as_str().unwrap_or_default(),
                self.stale_reads,
                self.read_back.read
            ),
        }];
        checks.push(match &self.billing {
            Some(billing) => {
                Check { name: "billing".into(), held: Some(billing.agrees), text: billing.verdict.clone() }
            }
            None => Check {
                name: "billing".into(),
                held: None,
                text: if self.agents.iter().any(|agent| agent.lost.is_some()) {
                    "not compared, what the lost agents received is not known".into()
                } else {
                    "not compared, the billing servers are not known".into()
                },
            },
        });
        if let Some(warm_up) = &self.warm_up {
            let held = warm_up.steady.then_some(true);
            checks.push(Check { name: "warm-up".into(), held, text: warm_up.to_text() });
        }
        if let Some(generator) = &self.generator {
            // It fails a run only where something was promised.
            let held =
                generator.refusal().is_none().then_some(true).or((!self.slos.is_empty()).then_some(false));
            checks.push(Check { name: "generator".into(), held, text: generator.to_text() });
        }
        for slo in &self.slos {
            let text = format!("measured {:.6}", slo.measured);
            checks.push(Check { name: slo.slo.clone(), held: Some(slo.kept), text });
        }
        if !self.agents.is_empty() {
            let lost: Vec<String> = self
                .agents
                .iter()
                .filter_map(|agent| Some(format!("{}: {}", agent.address, agent.lost.as_ref()?)))
                .collect();
            let text = match lost.len() {
                0 => format!("{} agents brought their results", self.agents.len()),
                count => format!("{count} of {} lost: {}", self.agents.len(), lost.join("; ")),
            };
            checks.push(Check { name: "agents".into(), held: Some(lost.is_empty()), text });
        }
        for event in &self.events {
            if let Some(error) = &event.happened.error {
                checks.push(Check {
                    name: event.happened.what.clone(),
                    held: Some(false),
                    text: error.clone(),
                });
            }
        }
        checks
    }
}

impl Event {
    /// Its row in a table: at, event, before, dip, recovered after, errors, missing, p99 before, during, after.
    pub fn cells(&self) -> [String; 10] {
        let none = || "–".to_owned();
        let at = format!("{:.1} s", self.happened.at_s);
        let mut what = self.happened.what.clone();
        if let Some(done) = self.happened.done_after_s.filter(|done| *done >= 0.1) {
            what.push_str(&format!(" (done in {done:.1} s)"));
        }
        if let Some(error) = &self.happened.error {
            what.push_str(&format!(" (FAILED: {error})"));
        }
        let Some(recovery) = &self.recovery else {
            return [at, what, none(), none(), none(), none(), none(), none(), none(), none()];
        };
        [
            at,
            what,
            show_number(recovery.before_per_s),
            format!("{:.0} %", recovery.dip * 100.0),
            recovery.recovered_after_s.map_or_else(|| "not".to_owned(), |seconds| format!("{seconds} s")),
            recovery.errors.to_string(),
            recovery.missing.to_string(),
            show_us(recovery.p99_before_us),
            show_us(recovery.p99_during_us),
            recovery.p99_after_us.map_or_else(none, show_us),
        ]
    }
}
