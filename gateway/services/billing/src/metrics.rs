//! What a billing server counts.

use common::api::billing::BatchAnswer;
use common::catalogue::metrics::{
    BILLING_BALANCES, BILLING_BATCH_DURATION, BILLING_BATCHES, BILLING_CALLS_FORBIDDEN, BILLING_EXCEPTIONS,
    BILLING_IMBALANCE, BILLING_INVOICES, BILLING_LAST_CLOSE, BILLING_RECORD_LAG, BILLING_RECORDS,
};
use common::money::MICROS_PER_MINOR;
use common::telemetry::MetricsRegistry;
use metrics::{Counter, Gauge, Histogram};

use crate::config::Fee;
use crate::ledger::BatchReport;
use crate::sql::figures::Figures;

/// Handles, made once.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: MetricsRegistry,
    fee: &'static str,
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
    /// Seconds from the end of a batch's oldest delivery to its booking.
    record_lag_seconds: Histogram,
    imbalance: Gauge,
    exceptions: Gauge,
    invoices: Gauge,
    last_close: Gauge,
}

impl Metrics {
    pub fn new(registry: &MetricsRegistry, fee: Fee) -> Self {
        let fee = fee.as_str();
        let records = |result| registry.counter(&BILLING_RECORDS, &[fee, result]);
        let batches = |outcome| registry.counter(&BILLING_BATCHES, &[fee, outcome]);
        Self {
            registry: registry.clone(),
            fee,
            booked: records("booked"),
            duplicate: records("duplicate"),
            exception: records("exception"),
            refused: records("refused"),
            batches_booked: batches("booked"),
            batches_gap: batches("gap"),
            batches_fork: batches("fork"),
            batches_failed: batches("failed"),
            calls_forbidden: registry.counter(&BILLING_CALLS_FORBIDDEN, &[fee]),
            batch_seconds: registry.histogram(&BILLING_BATCH_DURATION, &[fee]),
            record_lag_seconds: registry.histogram(&BILLING_RECORD_LAG, &[fee]),
            imbalance: registry.gauge(&BILLING_IMBALANCE, &[fee]),
            exceptions: registry.gauge(&BILLING_EXCEPTIONS, &[fee]),
            invoices: registry.gauge(&BILLING_INVOICES, &[fee]),
            last_close: registry.gauge(&BILLING_LAST_CLOSE, &[fee]),
        }
    }

    /// Shows the books as they are.
    pub fn show(&self, figures: &Figures) {
        // A fraction of a minor unit is an imbalance too.
        let minor = |micros: i64| micros as f64 / MICROS_PER_MINOR as f64;
        self.imbalance.set(minor(figures.imbalance_micros));
        for (kind, currency, micros) in &figures.balances {
            let labels = [self.fee, kind, currency.code()];
            self.registry.gauge(&BILLING_BALANCES, &labels).set(minor(*micros));
        }
        self.exceptions.set(figures.exceptions as f64);
        self.invoices.set(figures.invoices as f64);
        self.last_close.set(figures.last_close_ms as f64 / 1000.0);
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

    /// A batch is booked, the oldest of whose deliveries ended so many seconds ago.
    pub fn lag(&self, seconds: f64) {
        self.record_lag_seconds.record(seconds);
    }

    pub fn count_failed(&self) {
        self.batches_failed.increment(1);
    }
}
