//! Month's end: invoices with gap-free numbers, payout statements, and the seal.
//!
//! Closing a month closes all before it too, and invoices everything booked in them that was not invoiced. The
//! same close again changes nothing. What arrives for a closed month later is booked, and invoiced, in the
//! month that is open then.
//!
//! A month may be closed when every node's log has passed its end on this server, or when the grace is over: the nodes
//! that have not are then named in the report and kept with the month.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::api::billing::ChainView;
use common::id::ClientId;
use common::money::MICROS_PER_MINOR;
use common::time::UnixMillis;
use database::Connection;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::booking::{Booking, earned};
use super::{Command, Ledger, LedgerError};
use crate::documents::{Invoice, InvoiceKind, LineKind};
use crate::invoicing::{Bill, Discount, Header, show_number};
use crate::period::Period;
use crate::rating::{Charge, RateBook, Rating};
use crate::sql::clients::Charges;
use crate::sql::earnings::{Earned, EarningChanges};
use crate::sql::events::{Booked, StoredEvent};
use crate::sql::invoices::{self, InvoiceQuery, NewInvoice};
use crate::sql::journals::JournalKind;
use crate::sql::usage::{self, Waiting};
use crate::sql::{chains, periods, terms};

/// Clients whose invoices are made at once; bounds the memory of a close.
const CLIENTS_PAGE: i64 = 500;
/// Most documents in the answer to a close; `GET /v1/invoices` pages through all.
pub const DOCUMENTS_MAX: i64 = 500;
/// Events that are read at once for a discount.
const EVENTS_PAGE: i64 = 1000;

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
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CloseReport {
    pub period: Period,
    pub dry_run: bool,
    pub closed: bool,
    /// Nodes whose log is not known to have passed the month's end; of a closed month, when it was closed.
    pub missing: Vec<String>,
    /// Invoices of the month that were issued; 0 before the close.
    pub issued: i64,
    /// Digest that seals the closed month.
    pub seal: Option<String>,
    /// The first [`DOCUMENTS_MAX`] of them or, before the close, the drafts of as many clients.
    pub invoices: Vec<Value>,
}

impl Ledger {
    /// Closes a month, or shows the drafts.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] if the month is not over, or nodes have not passed its end and the grace is not over.
    pub async fn close(&self, request: &CloseRequest) -> Result<CloseReport, LedgerError> {
        let period = request.period;
        self.sum_up().await?;
        let mut connection = self.read().await?;
        let mut closed = periods::closed_through(&mut connection).await?;
        let is_closed = |closed: Option<Period>| closed.is_some_and(|closed| period <= closed);
        let rates = terms::rate_book(&mut connection, self.fee).await?;
        let end = period.end(rates.zone_at(self.clock.now()));
        let mut missing = missing(&chains::all(&mut connection).await?, end);
        if !is_closed(closed) && !request.dry_run {
            self.check_may_close(period, end, &missing)?;
            self.ask(|reply| Command::Close { period, missing: missing.clone(), reply }).await?;
            closed = periods::closed_through(&mut connection).await?;
        }
        let mut seal = None;
        let documents = if is_closed(closed) {
            let all = periods::all(&mut connection).await?;
            if let Some(sealed) = all.into_iter().find(|closed| closed.period >= period) {
                (missing, seal) = (sealed.missing, Some(sealed.seal));
            }
            let query = InvoiceQuery { period: Some(period), client: None, after: 0, limit: DOCUMENTS_MAX };
            invoices::documents(&mut connection, &query).await?
        } else {
            let after = request.after.as_str();
            let waiting = usage::waiting(&mut connection, closed, period, after, DOCUMENTS_MAX).await?;
            let mut drafts = Vec::with_capacity(waiting.len());
            for waiting in waiting {
                let bill = bill(&rates, &waiting, closed, period)?;
                let header = header(&mut connection, &rates, period, self.clock.now()).await?;
                let customer = terms::party_view(&mut connection, "client", &waiting.client, end).await?;
                let Waiting { client, currency, .. } = waiting;
                let kind = InvoiceKind::Invoice;
                let draft = header.document(kind, &client, customer, currency, bill, None);
                drafts.push(serde_json::to_value(draft).map_err(LedgerError::corrupt)?);
            }
            drafts
        };
        Ok(CloseReport {
            period,
            dry_run: request.dry_run,
            closed: is_closed(closed),
            missing,
            issued: invoices::count(&mut connection, period).await?,
            seal,
            invoices: documents,
        })
    }

    fn check_may_close(
        &self,
        period: Period,
        end: UnixMillis,
        missing: &[String],
    ) -> Result<(), LedgerError> {
        let now = self.clock.now();
        if now < end {
            return Err(LedgerError::Conflict(format!(
                "{period} is over at {end}; until then use dry_run=true to see the draft invoices"
            )));
        }
        let grace_ends = UnixMillis(end.0 + self.close_grace_ms);
        if now < grace_ends && !missing.is_empty() {
            return Err(LedgerError::Conflict(format!(
                "the logs of {} have not passed the end of {period} here; see that these nodes run and reach this \
                 server, or close it after {grace_ends} without them",
                missing.join(", ")
            )));
        }
        Ok(())
    }
}

/// Nodes whose newest chain has not passed `end`: something that began before it may still come.
fn missing(chains: &[ChainView], end: UnixMillis) -> Vec<String> {
    let mut newest: BTreeMap<String, UnixMillis> = BTreeMap::new();
    for chain in chains {
        // By node and epoch: the greatest epoch comes last.
        newest.insert(chain.node.to_string(), chain.passed_ms);
    }
    newest.into_iter().filter(|(_, passed)| *passed < end).map(|(node, _)| node).collect()
}

/// What invoices of a month have in common.
pub(super) async fn header(
    connection: &mut Connection,
    rates: &RateBook,
    period: Period,
    now: UnixMillis,
) -> Result<Header, LedgerError> {
    let tariff = rates.tariff_of(period);
    Ok(Header {
        fee: rates.fee,
        period,
        issuer: terms::party(connection, &format!("billing:{}", rates.fee), now).await?,
        tax_basis_points: tariff.map_or(0, |tariff| tariff.tax_basis_points),
        payment_days: tariff.map_or(0, |tariff| tariff.payment_days),
        zone: rates.zone_at(now),
    })
}

fn bill(
    rates: &RateBook,
    waiting: &Waiting,
    closed: Option<Period>,
    period: Period,
) -> Result<Bill, LedgerError> {
    let tax = rates.tariff_of(period).map_or(0, |tariff| tariff.tax_basis_points);
    Bill::of(rates, &waiting.lines, closed, tax).ok_or_else(|| {
        LedgerError::Conflict(format!("the invoice of {} for {period} is beyond 64 bits", waiting.client))
    })
}

impl Booking<'_> {
    pub(super) async fn header(&mut self, period: Period) -> Result<Header, LedgerError> {
        header(self.connection, self.rates, period, self.now).await
    }

    /// Issues the invoices and statements and seals the month.
    pub(super) async fn close(&mut self, period: Period, missing: &[String]) -> Result<(), LedgerError> {
        if self.closed.is_some_and(|closed| period <= closed) {
            return Ok(()); // another close came first
        }
        usage::sum_up(self.connection).await?;
        let mut number = invoices::next_number(self.connection).await?;
        let header = self.header(period).await?;
        let mut after = String::new();
        loop {
            let page = usage::waiting(self.connection, self.closed, period, &after, CLIENTS_PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.client.to_string();
            let clients: Vec<&ClientId> = page.iter().map(|waiting| &waiting.client).collect();
            let customers = terms::customers(self.connection, &clients, self.now).await?;
            let mut credits = HashMap::new();
            for currency in page.iter().map(|waiting| waiting.currency).collect::<BTreeSet<_>>() {
                credits.insert(currency, self.credits(&clients, currency).await?);
            }
            for waiting in &page {
                let bill = bill(self.rates, waiting, self.closed, period)?;
                if bill.lines.is_empty() {
                    continue; // all of it was taken back
                }
                for discount in &bill.discounts {
                    self.book_discount(waiting, *discount, period).await?;
                }
                let Waiting { client, currency, .. } = waiting;
                let customer = customers.get(client).cloned();
                let customer = customer.unwrap_or_else(|| terms::unknown_customer(client));
                let shown = show_number(self.rates.fee, number);
                let (kind, issued) = (InvoiceKind::Invoice, Some((shown, self.now)));
                let invoice = header.document(kind, client, customer, *currency, bill, issued);
                self.issue(number, None, period, &invoice)?;
                let credits = credits.get(currency);
                self.pay_from_wallet(number, &invoice, period, credits.unwrap_or(&HashMap::new()))?;
                number += 1;
            }
            self.write().await?;
        }
        let statements = self.issue_statements(period).await?;
        self.write().await?;
        let journals = self.newest_journal();
        let seal = periods::seal(self.connection, period, journals).await?;
        periods::close(self.connection, period, self.now, journals, missing, seal).await?;
        tracing::info!(fee = %self.rates.fee, %period, invoices = number - 1, statements, "period closed");
        Ok(())
    }

    /// Books an invoice, or a credit note, which is its mirror.
    pub(super) fn issue(
        &mut self,
        number: i64,
        credits: Option<i64>,
        period: Period,
        invoice: &Invoice,
    ) -> Result<(), LedgerError> {
        let (kind, sign) = match invoice.kind {
            InvoiceKind::Invoice => (JournalKind::Invoice, 1),
            InvoiceKind::CreditNote { .. } => (JournalKind::CreditNote, -1),
        };
        let client = &invoice.client;
        let reference = show_number(self.rates.fee, number);
        let mut journal = Self::journal(kind, period, invoice.currency, &reference);
        journal.add(format!("receivable:{client}"), sign * invoice.total_minor * MICROS_PER_MINOR)?;
        journal.add(format!("unbilled:{client}"), -sign * invoice.charges_micros)?;
        journal.add("tax".to_owned(), -sign * invoice.tax_minor * MICROS_PER_MINOR)?;
        journal.add("rounding".to_owned(), -sign * invoice.rounding_micros)?;
        let journal = self.post(journal);
        let first_period = self.closed.map_or(0, |closed| closed.next().number());
        let (client, currency, total_minor) = (client.clone(), invoice.currency, invoice.total_minor);
        let document = serde_json::to_string(invoice).map_err(LedgerError::corrupt)?;
        self.add_invoice(NewInvoice {
            number,
            credits,
            period,
            first_period,
            client,
            currency,
            total_minor,
            journal,
            document,
        });
        Ok(())
    }

    /// Takes a discount off what the client owes, and off what the parties are owed: by their shares of the charges.
    async fn book_discount(
        &mut self,
        waiting: &Waiting,
        discount: Discount,
        period: Period,
    ) -> Result<(), LedgerError> {
        let mut shares: BTreeMap<(String, &'static str), i64> = BTreeMap::new();
        let first = self.closed.map_or(0, |closed| closed.next().number());
        let Waiting { client, currency, .. } = waiting;
        let charges = Charges { client, currency: *currency, booked: (first, period.number()) };
        let mut after = 0;
        loop {
            let page = charges.page(self.connection, after, EVENTS_PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for event in &page {
                let is_under = |booked: &Booked| booked.tariff == discount.tariff;
                if event.usage_period != discount.usage || !event.charge.as_ref().is_some_and(is_under) {
                    continue;
                }
                let Some(charge) = self.charge_of(event)? else { continue };
                for share in charge.shares {
                    *shares.entry((share.party, share.part.as_str())).or_default() += share.micros;
                }
            }
        }
        let reference = format!("{} {}", waiting.client, discount.usage);
        let weights: Vec<((String, &'static str), i64)> = shares.into_iter().collect();
        self.spread_discount(waiting, discount.usage, period, &reference, &weights, discount.micros).await
    }

    /// Books `micros` less (or, if negative, more) for the client, spread over the parties by `weights`.
    pub(super) async fn spread_discount(
        &mut self,
        waiting: &Waiting,
        usage: Period,
        period: Period,
        reference: &str,
        weights: &[((String, &'static str), i64)],
        micros: i64,
    ) -> Result<(), LedgerError> {
        let Waiting { client, currency, .. } = waiting;
        let by_weight: Vec<i64> = weights.iter().map(|(_, weight)| *weight).collect();
        let parts = common::money::split_by_weight(micros, &by_weight);
        let mut journal = Self::journal(JournalKind::Discount, period, *currency, reference);
        journal.add(format!("unbilled:{client}"), -micros)?;
        let mut earnings = EarningChanges::default();
        for (((party, part), _), off) in weights.iter().zip(parts) {
            journal.add(format!("payable:{party}"), off)?;
            let kind = LineKind::Discount;
            let earned =
                Earned { booked: period, usage, kind, part, class: "", path: "", currency: *currency };
            earnings.add(party, earned, 0, -off);
        }
        self.post(journal);
        earnings.apply(self.connection, self.dialect).await
    }

    /// A charge as it was booked, with its shares, computed again under its own versions.
    pub(super) fn charge_of(&self, event: &StoredEvent) -> Result<Option<Charge>, LedgerError> {
        let Some(booked) = event.charge else { return Ok(None) };
        match self.rates.rate_again(&event.record, booked.tariff, booked.split) {
            Some(Rating::Charged(charge)) if charge.micros == booked.micros => Ok(Some(charge)),
            _ => Err(LedgerError::corrupt(format!("event {} is not charged as it is rated", event.id))),
        }
    }

    /// Counts shares that are taken back.
    pub(super) fn take_back(
        earnings: &mut EarningChanges,
        event: &StoredEvent,
        charge: &Charge,
        booked: Period,
    ) {
        let kind = LineKind::Correction;
        let of_record = earned(&event.record, booked, event.usage_period, kind, charge.currency);
        for share in &charge.shares {
            let earned = Earned { part: share.part.as_str(), ..of_record };
            earnings.add(&share.party, earned, 1, -share.micros);
        }
    }
}
