//! Booking inside one transaction: where a batch continues its chain, and what its records become in the books.
//!
//! Records are gathered and written together: one journal for each month and currency sums their charges, and each
//! event says what it was charged and in which journal.

use std::collections::{BTreeMap, HashSet};

use common::api::billing::BatchAnswer;
use common::hash::RecordDigest;
use common::money::Currency;
use common::record::{ChainedRecord, DeliveryRecord};
use common::time::UnixMillis;
use database::{Connection, Dialect};

use super::{BatchReport, LedgerError};
use crate::chain::CheckedBatch;
use crate::documents::LineKind;
use crate::period::Period;
use crate::rating::{Charge, RateBook, Rating};
use crate::sql::chains::{self, Head};
use crate::sql::clients;
use crate::sql::earnings::{Earned, EarningChanges};
use crate::sql::events::{self, Booked, NewEvent, class_text, path_text};
use crate::sql::exceptions::{self, Resolved};
use crate::sql::invoices::{self, NewInvoice};
use crate::sql::journals::{self, Accounts, Journal, JournalDigest, JournalKind};
use crate::sql::payments::{self, NewPayment};
use crate::sql::usage::{self, Counted, UsageChanges};
use crate::sql::{self, Newest};

/// Exceptions that one transaction rates again.
const EXCEPTIONS_PAGE: i64 = 1000;

/// One transaction's view of the ledger. What it takes is in the database after [`Booking::write`].
pub(super) struct Booking<'a> {
    pub connection: &'a mut Connection,
    pub dialect: Dialect,
    pub rates: &'a RateBook,
    pub accounts: &'a mut Accounts,
    pub now: UnixMillis,
    pub closed: Option<Period>,
    next_journal: i64,
    journal_digest: JournalDigest,
    next_event: i64,
    sum_after: i64,
    gathered: Gathered,
}

/// What is to be written together.
#[derive(Default)]
struct Gathered {
    events: Vec<NewEvent>,
    exceptions: Vec<(i64, String)>,
    journals: BTreeMap<(Period, Currency), Journal>,
    earnings: EarningChanges,
    /// Other journals than of deliveries, and what they are of.
    posted: Vec<Journal>,
    invoices: Vec<NewInvoice>,
    payments: Vec<NewPayment>,
    /// Chains with events among these.
    chains: HashSet<i64>,
}

/// Where a batch meets its chain.
enum Place {
    /// The first `known` records are booked already, the rest continues the chain; `None`: it is new.
    Continues {
        known: usize,
        head: Option<Head>,
    },
    Gap {
        expected: u64,
    },
    /// The record at `index` contradicts the books.
    Fork {
        index: usize,
        reason: String,
    },
}

impl<'a> Booking<'a> {
    pub async fn begin(
        connection: &'a mut Connection,
        dialect: Dialect,
        rates: &'a RateBook,
        accounts: &'a mut Accounts,
        now: UnixMillis,
        sum_after: i64,
    ) -> Result<Self, LedgerError> {
        let Newest { closed, event, journal, journal_digest } = sql::newest(connection).await?;
        let (next_journal, next_event, gathered) = (journal + 1, event + 1, Gathered::default());
        Ok(Self {
            connection,
            dialect,
            rates,
            accounts,
            now,
            closed,
            next_journal,
            journal_digest,
            next_event,
            sum_after,
            gathered,
        })
    }

    /// Takes what of the batch is new.
    pub async fn book(&mut self, batch: CheckedBatch) -> Result<BatchReport, LedgerError> {
        let mut report = BatchReport {
            answer: BatchAnswer::Booked { through: 0 },
            booked: 0,
            duplicates: 0,
            exceptions: 0,
            refused: 0,
        };
        match self.place(&batch).await? {
            Place::Gap { expected } => report.answer = BatchAnswer::Gap { expected },
            Place::Fork { index, reason } => {
                let record = &batch.records[index];
                tracing::error!(node = %batch.node, epoch = batch.epoch, seq = record.seq, reason,
                    "a record contradicts the books; it is quarantined, nothing of its batch is booked");
                let (node, epoch) = (&batch.node, batch.epoch);
                chains::quarantine(self.connection, node, epoch, record, &reason, self.now).await?;
                report.refused = batch.records.len() as u64;
                report.answer = BatchAnswer::Fork { seq: record.seq, reason };
            }
            Place::Continues { known, head } => {
                // A mark comes with the last record, for whoever has lost it.
                let is_mark = batch.passed.is_some() && known == batch.records.len();
                report.duplicates = if is_mark { 0 } else { known as u64 };
                let CheckedBatch { node, epoch, mut records, passed, .. } = batch;
                let new = records.split_off(known);
                let is_new = !new.is_empty() || passed.is_some();
                let head = match head {
                    None if is_new => Some(chains::begin(self.connection, &node, epoch).await?),
                    head => head,
                };
                let mut through = head.map_or(0, |head| head.last_seq);
                if let (Some(head), Some(last)) = (head, new.last()) {
                    through = last.seq;
                    chains::advance(self.connection, head.chain, last).await?;
                    let len = new.len() as u64;
                    report.exceptions = self.gather(head.chain, new)?;
                    report.booked = len - report.exceptions;
                }
                if let (Some(head), Some(passed)) = (head, passed) {
                    chains::pass(self.connection, head.chain, passed).await?;
                }
                report.answer = BatchAnswer::Booked { through };
            }
        }
        Ok(report)
    }

    async fn place(&mut self, batch: &CheckedBatch) -> Result<Place, LedgerError> {
        let head = chains::head(self.connection, &batch.node, batch.epoch).await?;
        let Some(first) = batch.first() else { return Ok(Place::Continues { known: 0, head }) };
        let (last_seq, last_digest) = match head {
            Some(head) => (head.last_seq, head.last_digest),
            None => {
                let newest = chains::greatest_epoch(self.connection, &batch.node).await?;
                if let Some(newest) = newest.filter(|newest| *newest > batch.epoch) {
                    let reason = format!("epoch {} begins after epoch {newest}", batch.epoch);
                    return Ok(Place::Fork { index: 0, reason });
                }
                (0, RecordDigest::ZERO)
            }
        };
        if first.seq > last_seq + 1 {
            return Ok(Place::Gap { expected: last_seq + 1 });
        }
        if let Some(fault) = &batch.fault {
            return Ok(Place::Fork { index: fault.index, reason: fault.reason.clone() });
        }
        if first.seq == last_seq + 1 {
            if first.previous != last_digest {
                let reason = format!("record {} is not linked to the record booked before it", first.seq);
                return Ok(Place::Fork { index: 0, reason });
            }
            return Ok(Place::Continues { known: 0, head });
        }
        // Equal digests mean equal facts and equal predecessors, so what follows the last known one is linked.
        let chain = head.map_or(0, |h| h.chain);
        if self.gathered.chains.contains(&chain) {
            self.write().await?;
        }
        let last = batch.records.last().map_or(0, |r| r.seq).min(last_seq);
        let stored = chains::digests(self.connection, chain, first.seq, last).await?;
        let differs = stored.iter().zip(&batch.records).position(|(stored, sent)| *stored != sent.digest);
        if let Some(index) = differs {
            let reason = format!("another record is booked as number {}", batch.records[index].seq);
            return Ok(Place::Fork { index, reason });
        }
        Ok(Place::Continues { known: stored.len(), head })
    }

    /// Rates records and gathers what they become; answers how many of them are exceptions.
    fn gather(&mut self, chain: i64, links: Vec<ChainedRecord>) -> Result<u64, LedgerError> {
        let mut exceptions = 0;
        self.gathered.chains.insert(chain);
        for link in links {
            let usage_period = self.rates.usage_period(link.record.begin);
            let booked_period = self.open_period(usage_period);
            let rating = self.rates.rate(&link.record);
            let id = self.next_event;
            self.next_event += 1;
            let charge = self.charge(&link.record, booked_period, usage_period, &rating)?;
            if let Rating::Exception(exception) = &rating {
                if exceptions == 0 {
                    tracing::warn!(event = id, reason = %exception, "a record cannot be rated now; it waits as exception");
                }
                exceptions += 1;
                self.gathered.exceptions.push((id, exception.to_string()));
            }
            let outcome = rating.outcome();
            let event = NewEvent { id, chain, link, usage_period, booked_period, outcome, charge };
            self.gathered.events.push(event);
        }
        Ok(exceptions)
    }

    /// Adds the charge of a rated record to its journal.
    fn charge(
        &mut self,
        record: &DeliveryRecord,
        booked: Period,
        usage: Period,
        rating: &Rating,
    ) -> Result<Option<Booked>, LedgerError> {
        let Rating::Charged(charge) = rating else { return Ok(None) };
        let next = &mut self.next_journal;
        let journal = self.gathered.journals.entry((booked, charge.currency)).or_insert_with(|| {
            *next += 1;
            Journal {
                id: *next - 1,
                kind: JournalKind::Deliveries,
                period: booked,
                currency: charge.currency,
                reference: String::new(),
                lines: BTreeMap::new(),
            }
        });
        // The client owes the charge, the parties are owed their shares.
        add_charge(journal, record, charge, 1)?;
        let earned = earned(record, booked, usage, LineKind::Usage, charge.currency);
        for share in &charge.shares {
            let earned = Earned { part: share.part.as_str(), ..earned };
            self.gathered.earnings.add(&share.party, earned, 1, share.micros);
        }
        let Charge { currency, micros, tariff, split, .. } = *charge;
        Ok(Some(Booked { tariff, split, currency, micros, journal: journal.id }))
    }

    /// Writes what is gathered.
    pub async fn write(&mut self) -> Result<(), LedgerError> {
        let gathered = std::mem::take(&mut self.gathered);
        let mut journals = gathered.posted;
        journals.extend(gathered.journals.into_values());
        journals.sort_by_key(|journal| journal.id);
        self.insert(&journals).await?;
        let (connection, dialect) = (&mut *self.connection, self.dialect);
        invoices::insert(connection, dialect, &gathered.invoices).await?;
        payments::insert(connection, dialect, &gathered.payments).await?;
        events::insert(connection, dialect, &gathered.events).await?;
        exceptions::insert(connection, dialect, &gathered.exceptions).await?;
        gathered.earnings.apply(connection, dialect).await?;
        if let (Some(first), Some(last)) = (gathered.events.first(), gathered.events.last())
            && (first.id - 1) / self.sum_after < last.id / self.sum_after
        {
            clients::add_run(connection).await?;
            usage::sum_up(connection).await?;
        }
        Ok(())
    }

    async fn insert(&mut self, journals: &[Journal]) -> Result<(), LedgerError> {
        let (dialect, digest) = (self.dialect, self.journal_digest);
        self.journal_digest =
            journals::insert(self.connection, dialect, self.accounts, journals, digest, self.now).await?;
        Ok(())
    }

    /// Takes a journal to be written; answers with its id, or `None` if it says nothing.
    pub fn post(&mut self, mut journal: Journal) -> Option<i64> {
        if journal.is_empty() {
            return None;
        }
        journal.id = self.next_journal;
        self.next_journal += 1;
        let id = journal.id;
        self.gathered.posted.push(journal);
        Some(id)
    }

    /// Takes an invoice to be written.
    pub fn add_invoice(&mut self, invoice: NewInvoice) {
        self.gathered.invoices.push(invoice);
    }

    /// Takes a payment to be written.
    pub fn add_payment(&mut self, payment: NewPayment) {
        self.gathered.payments.push(payment);
    }

    /// An empty journal for [`Self::post`].
    pub fn journal(kind: JournalKind, period: Period, currency: Currency, reference: &str) -> Journal {
        Journal { id: 0, kind, period, currency, reference: reference.to_owned(), lines: BTreeMap::new() }
    }

    /// The newest journal, written or to be written.
    pub fn newest_journal(&self) -> i64 {
        self.next_journal - 1
    }

    /// The month that something of `usage` is booked in: its own, or the first that is open.
    pub fn open_period(&self, usage: Period) -> Period {
        self.closed.map_or(usage, |closed| usage.max(closed.next()))
    }

    /// The month that is open now.
    pub fn present_period(&self) -> Period {
        self.open_period(self.rates.usage_period(self.now))
    }

    /// Rates a page of open exceptions again, from after event `after`; answers where the next page begins.
    pub async fn rate_exceptions(&mut self, after: i64) -> Result<Option<i64>, LedgerError> {
        let page = exceptions::open(self.connection, after, EXCEPTIONS_PAGE).await?;
        let (mut sums, mut resolved) = (UsageChanges::default(), Vec::new());
        for event in &page {
            let rating = self.rates.rate(&event.record);
            if matches!(rating, Rating::Exception(_)) {
                continue;
            }
            let (booked, usage) = (event.booked_period, event.usage_period);
            let waited = Counted { booked, usage, outcome: "exception", charge: None };
            sums.add(&event.record, waited, -1);
            let (period, outcome) = (self.open_period(booked), rating.outcome());
            let charge = self.charge(&event.record, period, usage, &rating)?;
            let charged = charge.map(|charge| (charge.currency, charge.micros, charge.tariff));
            sums.add(&event.record, Counted { booked: period, usage, outcome, charge: charged }, 1);
            resolved.push(Resolved { event: event.id, outcome, period, charge });
        }
        usage::sum_up(self.connection).await?;
        sums.apply(self.connection, self.dialect).await?;
        self.write().await?;
        for resolved in &resolved {
            exceptions::resolve(self.connection, resolved).await?;
        }
        Ok(page.last().map(|event| event.id))
    }
}

/// Adds a charge and its shares to a journal, or (`sign` -1) takes them back.
pub(super) fn add_charge(
    journal: &mut Journal,
    record: &DeliveryRecord,
    charge: &Charge,
    sign: i64,
) -> Result<(), LedgerError> {
    journal.add(format!("unbilled:{}", record.client), sign * charge.micros)?;
    for share in &charge.shares {
        journal.add(format!("payable:{}", share.party), -sign * share.micros)?;
    }
    Ok(())
}

/// Where the shares of a record belong; the part is to be filled in.
pub(super) fn earned(
    record: &DeliveryRecord,
    booked: Period,
    usage: Period,
    kind: LineKind,
    currency: Currency,
) -> Earned {
    let (class, path) = (class_text(record.class), path_text(record.path));
    Earned { booked, usage, kind, part: "", class, path, currency }
}
