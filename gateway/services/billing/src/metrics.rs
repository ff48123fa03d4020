//! What a billing server counts.

use common::api::billing::BatchAnswer;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::config::Fee;
use crate::ledger::BatchReport;

/// Handles, made once. Outside a registry's scope they count nothing.
#[derive(Clone)]
pub(crate) struct Metrics {
    booked: Counter,
    duplicate: Counter,
    exception: Counter,
    refused: Counter,
    batches_booked: Counter,
    batches_gap: Counter,
    batches_fork: Counter,
    batches_failed: Counter,
    /// Calls by somebody who is known and may not make them, batches of another site's node among them.
    pub calls_forbidden: Counter,
    /// Seconds from a batch's arrival at the writer to its commit.
    pub batch_seconds: Histogram,
    /// Distance of the books from balance; anything but zero is an alarm.
    pub imbalance: Gauge,
}

impl Metrics {
    pub fn new(fee: Fee) -> Self {
        let fee = fee.as_str();
        let records = |result| counter!("dozo_billing_records_total", "fee" => fee, "result" => result);
        let batches = |outcome| counter!("dozo_billing_batches_total", "fee" => fee, "outcome" => outcome);
        Self {
            booked: records("booked"),
            duplicate: records("duplicate"),
            exception: records("exception"),
            refused: records("refused"),
            batches_booked: batches("booked"),
            batches_gap: batches("gap"),
            batches_fork: batches("fork"),
            batches_failed: batches("failed"),
            calls_forbidden: counter!("dozo_billing_calls_forbidden_total", "fee" => fee),
            batch_seconds: histogram!("dozo_billing_batch_duration_seconds", "fee" => fee),
            imbalance: gauge!("dozo_billing_ledger_imbalance_minor_units", "fee" => fee),
        }
    }

    /// Counts what a committed transaction did with one batch.
    pub fn count(&self, report: &BatchReport) {
        self.booked.increment(report.booked);
        self.duplicate.increment(report.duplicates);
        self.exception.increment(report.exceptions);
        self.refused.increment(report.refused);
        match report.answer {
            BatchAnswer::Booked { .. } => self.batches_booked.increment(1),
            BatchAnswer::Gap { .. } => self.batches_gap.increment(1),
            BatchAnswer::Fork { .. } => self.batches_fork.increment(1),
        }
    }

    pub fn count_failed(&self) {
        self.batches_failed.increment(1);
    }
}
