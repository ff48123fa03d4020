//! Corrections: a charge is taken back by a reversing journal, once, under the versions it was charged under. If it was
//! invoiced, a credit note follows in the same transaction.

use std::collections::BTreeMap;

use common::id::NodeId;
use common::money::Currency;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::booking::{Booking, add_charge};
use super::{Command, Ledger, LedgerError};
use crate::documents::{Invoice, InvoiceKind, InvoiceLine, LineKind};
use crate::invoicing::{Bill, Header, less, show_number};
use crate::period::Period;
use crate::rating::Charge;
use crate::sql::corrections::{self, Correction};
use crate::sql::earnings::EarningChanges;
use crate::sql::events::{StoredEvent, class_text, path_text};
use crate::sql::invoices::{self, Issued};
use crate::sql::journals::{Journal, JournalKind};
use crate::sql::requests::RequestKey;
use crate::sql::usage::{Counted, UsageChanges, Waiting};
use crate::sql::{terms, usage};

/// Most charges in one request.
const DELIVERIES_MAX: usize = 1000;

/// A delivery by the number of its record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeliveryNumber {
    pub node: NodeId,
    pub epoch: u64,
    pub seq: u64,
}

/// Charges to be taken back. `POST /v1/corrections`
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CorrectionRequest {
    pub deliveries: Vec<DeliveryNumber>,
    /// For the books and the client.
    pub reason: String,
}

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CorrectionReport {
    pub corrected: usize,
    /// Credit notes for those that were invoiced.
    pub credit_notes: Vec<Invoice>,
}

impl Ledger {
    /// Takes charges back: all or, with an error, none.
    ///
    /// # Errors
    /// If a delivery is not booked, was not charged or was corrected before.
    pub async fn correct(
        &self,
        request: CorrectionRequest,
        key: Option<RequestKey>,
    ) -> Result<CorrectionReport, LedgerError> {
        if request.deliveries.is_empty() || request.deliveries.len() > DELIVERIES_MAX {
            let len = request.deliveries.len();
            return Err(LedgerError::Invalid(format!(
                "{len} deliveries are named; 1 to {DELIVERIES_MAX} are taken at once"
            )));
        }
        if request.reason.is_empty() || request.reason.chars().count() > 200 {
            return Err(LedgerError::Invalid("reason must have 1 to 200 characters".into()));
        }
        let answer = self.ask(|reply| Command::Correct { request, key, reply }).await?;
        serde_json::from_value(answer).map_err(LedgerError::corrupt)
    }
}

/// A charge that is taken back, and the invoice it is on.
struct Taken {
    event: StoredEvent,
    charge: Charge,
    invoice: Option<i64>,
    journal: i64,
}

impl Booking<'_> {
    pub(super) async fn correct(
        &mut self,
        request: &CorrectionRequest,
    ) -> Result<CorrectionReport, LedgerError> {
        usage::sum_up(self.connection).await?;
        let (mut found, mut invoiced) = (Vec::new(), BTreeMap::new());
        for number in &request.deliveries {
            let event = self.correctable(number).await?;
            if found.iter().any(|(other, _, _): &(StoredEvent, Charge, Option<i64>)| other.id == event.id) {
                return Err(LedgerError::Invalid(format!("record {} is named twice", number.seq)));
            }
            let charge = self.charge_of(&event)?.ok_or_else(|| not_charged(number))?;
            let mut on = None;
            if self.closed.is_some_and(|closed| event.booked_period <= closed) {
                let client = &event.record.client;
                let (currency, booked) = (charge.currency, event.booked_period);
                let invoice = invoices::of_charge(self.connection, client, currency, booked).await?;
                let invoice =
                    invoice.ok_or_else(|| LedgerError::corrupt("a closed charge without invoice"))?;
                on = Some(invoice.number);
                invoiced.insert(invoice.number, invoice);
            }
            found.push((event, charge, on));
        }
        let taken = self.reverse(found).await?;
        let mut report = CorrectionReport { corrected: taken.len(), credit_notes: Vec::new() };
        let mut notes: BTreeMap<i64, i64> = BTreeMap::new();
        let mut next = invoices::next_number(self.connection).await?;
        for number in invoiced.keys() {
            notes.insert(*number, next);
            next += 1;
        }
        for taken in &taken {
            let credit_note = taken.invoice.and_then(|invoice| notes.get(&invoice)).copied();
            let (event, journal, invoice) = (taken.event.id, taken.journal, taken.invoice);
            let correction = Correction { event, journal, invoice, credit_note };
            corrections::insert(self.connection, correction, &request.reason, self.now).await?;
        }
        for (number, invoice) in invoiced {
            let of_it: Vec<&Taken> = taken.iter().filter(|t| t.invoice == Some(number)).collect();
            let note = notes.get(&number).copied().unwrap_or(0);
            report.credit_notes.push(self.credit(note, &invoice, &of_it).await?);
        }
        Ok(report)
    }

    async fn correctable(&mut self, number: &DeliveryNumber) -> Result<StoredEvent, LedgerError> {
        let DeliveryNumber { node, epoch, seq } = number;
        let event = corrections::event(self.connection, node, *epoch, *seq).await?;
        let event = event.ok_or_else(|| {
            LedgerError::NotFound(format!("record {seq} of {node} in epoch {epoch} is not booked here"))
        })?;
        if event.charge.is_none() {
            return Err(not_charged(number));
        }
        if let Some(reason) = &event.corrected {
            return Err(LedgerError::Conflict(format!(
                "record {seq} of {node} in epoch {epoch} was corrected before: {reason}"
            )));
        }
        Ok(event)
    }

    /// Books the reversing journals, one for each month and currency.
    async fn reverse(
        &mut self,
        found: Vec<(StoredEvent, Charge, Option<i64>)>,
    ) -> Result<Vec<Taken>, LedgerError> {
        let mut journals: BTreeMap<(Period, Currency), Journal> = BTreeMap::new();
        let (mut usage, mut earnings) = (UsageChanges::default(), EarningChanges::default());
        let present = self.present_period();
        let booked_in = |event: &StoredEvent, invoice: Option<i64>| {
            if invoice.is_some() { present } else { event.booked_period }
        };
        for (event, charge, invoice) in &found {
            let booked = booked_in(event, *invoice);
            let kind = JournalKind::Correction;
            let journal = journals
                .entry((booked, charge.currency))
                .or_insert_with(|| Self::journal(kind, booked, charge.currency, ""));
            add_charge(journal, &event.record, charge, -1)?;
            Self::take_back(&mut earnings, event, charge, booked);
            let counted = Counted {
                booked,
                usage: event.usage_period,
                outcome: if invoice.is_some() { "credited" } else { "corrected" },
                charge: Some((charge.currency, charge.micros, charge.tariff)),
            };
            usage.add(&event.record, counted, 1);
            if invoice.is_none() {
                usage.add(&event.record, Counted { outcome: "charged", ..counted }, -1);
            }
        }
        let mut posted = BTreeMap::new();
        for (key, journal) in journals {
            posted.insert(key, self.post(journal).unwrap_or(0));
        }
        usage.apply(self.connection, self.dialect).await?;
        earnings.apply(self.connection, self.dialect).await?;
        let taken = found.into_iter().map(|(event, charge, invoice)| {
            let key = (booked_in(&event, invoice), charge.currency);
            Taken { journal: posted.get(&key).copied().unwrap_or(0), event, charge, invoice }
        });
        Ok(taken.collect())
    }

    /// Issues the credit note of what was taken back of an invoice; the corrections are stored already.
    async fn credit(
        &mut self,
        number: i64,
        invoice: &Issued,
        taken: &[&Taken],
    ) -> Result<Invoice, LedgerError> {
        let document = invoices::document(self.connection, invoice.number, None).await?;
        let document: Invoice = document
            .and_then(|document| serde_json::from_value(document).ok())
            .ok_or_else(|| LedgerError::corrupt(format!("invoice {}", invoice.number)))?;
        let charges = usage::charges_of(self.connection, invoice).await?;
        let corrected = corrections::of_invoice(self.connection, invoice.number).await?;
        let overflow = || LedgerError::Conflict("the credit note is beyond 64 bits".into());
        let tax = document.tax_basis_points;
        let now = Bill::of(self.rates, &less(&charges, &corrected), None, tax).ok_or_else(overflow)?;
        let earlier = invoices::credit_notes(self.connection, invoice.number).await?;
        let sum = |of: fn(&Invoice) -> i64| earlier.iter().map(of).sum::<i64>();
        let mut bill = Bill {
            lines: credited_lines(taken),
            discounts: Vec::new(),
            charges_micros: document.charges_micros - now.charges_micros - sum(|note| note.charges_micros),
            net_minor: document.net_minor - now.net_minor - sum(|note| note.net_minor),
            tax_minor: document.tax_minor - now.tax_minor - sum(|note| note.tax_minor),
        };
        let period = self.present_period();
        let charged: i64 = taken.iter().map(|taken| taken.charge.micros).sum();
        let undone = charged - bill.charges_micros;
        if undone != 0 {
            let waiting =
                Waiting { client: invoice.client.clone(), currency: invoice.currency, lines: Vec::new() };
            let (usage, reference) = (invoice.period, show_number(self.rates.fee, number));
            self.spread_discount(&waiting, usage, period, &reference, &shares(taken), -undone).await?;
            bill.lines.push(discount_line(usage, -undone));
        }
        let (of, issued) = (show_number(self.rates.fee, invoice.number), show_number(self.rates.fee, number));
        let header = self.header(period).await?;
        let header = Header { tax_basis_points: tax, ..header };
        let customer = terms::party_view(self.connection, "client", &invoice.client, self.now).await?;
        let (kind, issued) = (InvoiceKind::CreditNote { of }, Some((issued, self.now)));
        let note = header.document(kind, &invoice.client, customer, invoice.currency, bill, issued);
        self.issue(number, Some(invoice.number), period, &note)?;
        Ok(note)
    }
}

/// Sums of the shares of charges, by party and part.
fn shares(taken: &[&Taken]) -> Vec<((String, &'static str), i64)> {
    let mut shares: BTreeMap<(String, &'static str), i64> = BTreeMap::new();
    for share in taken.iter().flat_map(|taken| &taken.charge.shares) {
        *shares.entry((share.party.clone(), share.part.as_str())).or_default() += share.micros;
    }
    shares.into_iter().collect()
}

fn discount_line(usage: Period, micros: i64) -> InvoiceLine {
    InvoiceLine {
        usage_period: usage.to_string(),
        late: false,
        kind: LineKind::Discount,
        class: None,
        path: None,
        deliveries: 0,
        bytes_sent: 0,
        amount_micros: micros,
    }
}

/// What a credit note takes back, summed as on invoices.
fn credited_lines(taken: &[&Taken]) -> Vec<InvoiceLine> {
    let mut lines: BTreeMap<(Period, &str, &str), InvoiceLine> = BTreeMap::new();
    for Taken { event, charge, .. } in taken {
        let (class, path) = (class_text(event.record.class), path_text(event.record.path));
        let line = lines.entry((event.usage_period, class, path)).or_insert_with(|| InvoiceLine {
            usage_period: event.usage_period.to_string(),
            late: false,
            kind: LineKind::Correction,
            class: Some(class.to_owned()),
            path: Some(path.to_owned()),
            deliveries: 0,
            bytes_sent: 0,
            amount_micros: 0,
        });
        line.deliveries += 1;
        line.bytes_sent += event.record.bytes_sent.cast_signed();
        line.amount_micros += charge.micros;
    }
    lines.into_values().collect()
}

fn not_charged(number: &DeliveryNumber) -> LedgerError {
    let DeliveryNumber { node, epoch, seq } = number;
    LedgerError::Conflict(format!("record {seq} of {node} in epoch {epoch} was not charged"))
}
