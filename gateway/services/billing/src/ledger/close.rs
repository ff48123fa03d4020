//! Month's end: invoices with gap-free numbers, and the seal.
//!
//! Closing a month closes all before it too, and invoices everything booked in them that was not invoiced. The
//! same close again changes nothing. What arrives for a closed month later is booked, and invoiced, in the
//! month that is open then.

use common::money::MICROS_PER_MINOR;
use common::time::UnixMillis;
use serde::Serialize;
use serde_json::Value;
use sqlx::sqlite::SqliteConnection;

use super::booking::Booking;
use super::{Command, Ledger, LedgerError};
use crate::config::Fee;
use crate::invoice::{Invoice, show_number};
use crate::period::{Period, Zone};
use crate::rating::RateBook;
use crate::sql::invoices::{self, InvoiceQuery, Waiting};
use crate::sql::journals::{self, Journal, Line};
use crate::sql::terms;

/// Clients whose invoices are made at once; bounds the memory of a close.
const CLIENTS_PAGE: i64 = 500;
/// Most documents in the answer to a close; `GET /v1/invoices` pages through all.
pub const DOCUMENTS_MAX: i64 = 500;

/// What to close.
#[derive(Debug, Clone)]
pub struct CloseRequest {
    pub period: Period,
    /// Only show what a close would invoice now; also for a month that is not over.
    pub dry_run: bool,
    /// Show the invoices of clients after this name.
    pub after: String,
}

/// What a close did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CloseReport {
    pub period: Period,
    pub dry_run: bool,
    pub closed: bool,
    /// Invoices of the month that were issued; 0 before the close.
    pub issued: i64,
    /// The first [`DOCUMENTS_MAX`] of them or, before the close, the drafts of as many clients.
    pub invoices: Vec<Value>,
}

impl Ledger {
    /// Closes a month, or shows the drafts.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] if the month is not over.
    pub async fn close(&self, request: &CloseRequest) -> Result<CloseReport, LedgerError> {
        let period = request.period;
        let mut connection = self.read().await?;
        let mut closed = invoices::closed_through(&mut connection).await?;
        let is_closed = |closed: Option<Period>| closed.is_some_and(|closed| period <= closed);
        if !is_closed(closed) && !request.dry_run {
            let zone = zone(&terms::rate_book(&mut connection, self.fee).await?, self.clock.now());
            let end = period.end(zone);
            if self.clock.now() < end {
                return Err(LedgerError::Conflict(format!(
                    "{period} is over at {end}; until then use dry_run=true to see the draft invoices"
                )));
            }
            self.ask(|reply| Command::Close(period, reply)).await?;
            closed = invoices::closed_through(&mut connection).await?;
        }
        let documents = if is_closed(closed) {
            let query = InvoiceQuery { period: Some(period), client: None, after: 0, limit: DOCUMENTS_MAX };
            invoices::documents(&mut connection, &query).await?
        } else {
            let rates = terms::rate_book(&mut connection, self.fee).await?;
            let drafts =
                drafts(&mut connection, &rates, closed, period, &request.after, DOCUMENTS_MAX).await?;
            let json = |draft| serde_json::to_value(draft).map_err(LedgerError::corrupt);
            drafts.into_iter().map(json).collect::<Result<_, _>>()?
        };
        Ok(CloseReport {
            period,
            dry_run: request.dry_run,
            closed: is_closed(closed),
            issued: invoices::count(&mut connection, period).await?,
            invoices: documents,
        })
    }
}

impl Booking<'_> {
    /// Issues the invoices and seals the month.
    pub(super) async fn close(&mut self, period: Period) -> Result<(), LedgerError> {
        if self.closed.is_some_and(|closed| period <= closed) {
            return Ok(()); // another close came first
        }
        let mut number = invoices::next_number(self.connection).await?;
        let mut after = String::new();
        loop {
            let page = drafts(self.connection, self.rates, self.closed, period, &after, CLIENTS_PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.client.to_string();
            for draft in page {
                self.issue(number, draft).await?;
                number += 1;
            }
        }
        invoices::close_period(self.connection, period, self.now).await?;
        tracing::info!(fee = %self.rates.fee, %period, invoices = number - 1, "period closed");
        Ok(())
    }

    async fn issue(&mut self, number: i64, draft: Invoice) -> Result<(), LedgerError> {
        let shown = show_number(self.rates.fee, number);
        let invoice = Invoice { number: Some(shown.clone()), issued_ms: Some(self.now), ..draft };
        let id = self.next_journal;
        self.next_journal += 1;
        let client = &invoice.client;
        let lines = [
            (format!("receivable:{client}"), "client", invoice.total_minor * MICROS_PER_MINOR),
            (format!("unbilled:{client}"), "client", -invoice.charges_micros),
            ("tax".to_owned(), "tax", -invoice.tax_minor * MICROS_PER_MINOR),
            ("rounding".to_owned(), "rounding", -invoice.rounding_micros),
        ];
        let lines = lines.into_iter().filter(|(_, _, micros)| *micros != 0);
        let journal = Journal {
            id,
            kind: "invoice",
            event: None,
            period: invoice.period,
            currency: invoice.currency,
            tariff: None,
            split: None,
            reference: Some(shown),
            lines: lines.map(|(account, role, micros)| Line { account, role, micros }).collect(),
        };
        journals::insert(self.connection, self.accounts, &[journal]).await?;
        let first = self.closed.map(Period::next);
        invoices::insert(self.connection, number, first, id, &invoice).await
    }
}

/// Draft invoices of up to `clients` clients after `after`, by name.
async fn drafts(
    connection: &mut SqliteConnection,
    rates: &RateBook,
    closed: Option<Period>,
    period: Period,
    after: &str,
    clients: i64,
) -> Result<Vec<Invoice>, LedgerError> {
    let waiting = invoices::waiting(connection, closed, period, after, clients).await?;
    let tax = tax_basis_points(rates, period);
    waiting.into_iter().map(|waiting| draft(rates.fee, period, tax, waiting)).collect()
}

fn draft(fee: Fee, period: Period, tax: u32, waiting: Waiting) -> Result<Invoice, LedgerError> {
    let Waiting { client, currency, lines } = waiting;
    let overflow = format!("the invoice of {client} for {period} is beyond 64 bits");
    Invoice::draft(fee, period, client, currency, tax, lines).ok_or(LedgerError::Conflict(overflow))
}

/// The zone months end in.
fn zone(rates: &RateBook, now: UnixMillis) -> Zone {
    rates.zone_at(now)
}

/// The rate at the month's last instant.
fn tax_basis_points(rates: &RateBook, period: Period) -> u32 {
    let newest = rates.tariffs.last();
    let zone = newest.map_or(Zone::TOKYO, |v| v.value.zone);
    let last = UnixMillis(period.end(zone).0.saturating_sub(1));
    // Something was charged, so a tariff holds at some time of the month or before.
    rates.tariff_at(last).or(newest).map_or(0, |v| v.value.tax_basis_points)
}
