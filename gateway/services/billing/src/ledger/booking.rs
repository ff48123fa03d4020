//! Booking inside one transaction: where a batch continues its chain, and what its records become in the books.

use common::api::billing::BatchAnswer;
use common::hash::RecordDigest;
use common::record::{ChainedRecord, DeliveryRecord};
use common::time::UnixMillis;
use sqlx::sqlite::SqliteConnection;

use super::{BatchReport, LedgerError};
use crate::chain::CheckedBatch;
use crate::period::Period;
use crate::rating::{Charge, RateBook, Rating};
use crate::sql::chains::{self, Head};
use crate::sql::events::{self, NewEvent};
use crate::sql::journals::{self, Accounts, Journal, Line};
use crate::sql::usage::UsageChanges;
use crate::sql::{exceptions, invoices};

/// Exceptions that one transaction rates again.
const EXCEPTIONS_PAGE: i64 = 1000;

/// One transaction's view of the ledger.
pub(super) struct Booking<'a> {
    pub connection: &'a mut SqliteConnection,
    pub rates: &'a RateBook,
    pub accounts: &'a mut Accounts,
    pub now: UnixMillis,
    pub closed: Option<Period>,
    pub next_journal: i64,
    next_event: i64,
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
        connection: &'a mut SqliteConnection,
        rates: &'a RateBook,
        accounts: &'a mut Accounts,
        now: UnixMillis,
    ) -> Result<Self, LedgerError> {
        let closed = invoices::closed_through(connection).await?;
        let next_event = events::next_id(connection).await?;
        let next_journal = journals::next_id(connection).await?;
        Ok(Self { connection, rates, accounts, now, closed, next_journal, next_event })
    }

    /// Books what of the batch is new.
    pub async fn book(&mut self, batch: &CheckedBatch) -> Result<BatchReport, LedgerError> {
        let mut report = BatchReport {
            answer: BatchAnswer::Booked { through: 0 },
            booked: 0,
            duplicates: 0,
            exceptions: 0,
            refused: 0,
        };
        match self.place(batch).await? {
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
                let new = &batch.records[known..];
                report.duplicates = known as u64;
                let through = match (new.last(), head) {
                    (None, head) => head.map_or(0, |h| h.last_seq),
                    (Some(last), head) => {
                        let head = match head {
                            Some(head) => head,
                            None => chains::begin(self.connection, &batch.node, batch.epoch).await?,
                        };
                        report.exceptions = self.append(head.chain, new).await?;
                        report.booked = new.len() as u64 - report.exceptions;
                        chains::advance(self.connection, head.chain, last).await?;
                        last.seq
                    }
                };
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
        let last = batch.records.last().map_or(0, |r| r.seq).min(last_seq);
        let stored = chains::digests(self.connection, chain, first.seq, last).await?;
        let differs = stored.iter().zip(&batch.records).position(|(stored, sent)| *stored != sent.digest);
        if let Some(index) = differs {
            let reason = format!("another record is booked as number {}", batch.records[index].seq);
            return Ok(Place::Fork { index, reason });
        }
        Ok(Place::Continues { known: stored.len(), head })
    }

    /// Rates and books records; answers how many of them are exceptions.
    async fn append(&mut self, chain: i64, links: &[ChainedRecord]) -> Result<u64, LedgerError> {
        let (mut new_events, mut new_journals) = (Vec::with_capacity(links.len()), Vec::new());
        let (mut new_exceptions, mut usage) = (Vec::new(), UsageChanges::default());
        for link in links {
            let usage_period = self.rates.usage_period(link.record.begin);
            let booked_period = self.open_period(usage_period);
            let rating = self.rates.rate(&link.record);
            usage.add(&link.record, booked_period, usage_period, &rating);
            let id = self.next_event;
            self.next_event += 1;
            let mut journal = None;
            match &rating {
                Rating::Charged(charge) => {
                    let booked = self.delivery_journal(id, &link.record, booked_period, charge);
                    journal = Some(booked.id);
                    new_journals.push(booked);
                }
                Rating::Exception(exception) => new_exceptions.push((id, exception.to_string())),
                Rating::Free | Rating::Unbilled => {}
            }
            let outcome = rating.outcome();
            new_events.push(NewEvent { id, chain, link, usage_period, booked_period, outcome, journal });
        }
        journals::insert(self.connection, self.accounts, &new_journals).await?;
        events::insert(self.connection, &new_events).await?;
        exceptions::insert(self.connection, &new_exceptions).await?;
        usage.apply(self.connection).await?;
        if let Some((event, reason)) = new_exceptions.first() {
            let count = new_exceptions.len();
            tracing::warn!(event, reason, count, "records cannot be rated now; they wait as exceptions");
        }
        Ok(new_exceptions.len() as u64)
    }

    /// The month that something of `usage` is booked in: its own, or the first that is open.
    fn open_period(&self, usage: Period) -> Period {
        self.closed.map_or(usage, |closed| usage.max(closed.next()))
    }

    /// The client owes the charge, the parties are owed their shares.
    fn delivery_journal(
        &mut self,
        event: i64,
        record: &DeliveryRecord,
        period: Period,
        charge: &Charge,
    ) -> Journal {
        let id = self.next_journal;
        self.next_journal += 1;
        let mut lines = Vec::with_capacity(charge.shares.len() + 1);
        let account = format!("unbilled:{}", record.client);
        lines.push(Line { account, role: "client", micros: charge.micros });
        lines.extend(charge.shares.iter().map(|share| Line {
            account: format!("payable:{}", share.party),
            role: share.part.as_str(),
            micros: -share.micros,
        }));
        Journal {
            id,
            kind: "delivery",
            event: Some(event),
            period,
            currency: charge.currency,
            tariff: Some(charge.tariff),
            split: Some(charge.split),
            reference: None,
            lines,
        }
    }

    /// Rates a page of open exceptions again, from after event `after`; answers where the next page begins.
    pub async fn rate_exceptions(&mut self, after: i64) -> Result<Option<i64>, LedgerError> {
        let page = exceptions::open(self.connection, after, EXCEPTIONS_PAGE).await?;
        let (mut new_journals, mut resolved) = (Vec::new(), Vec::new());
        let mut usage = UsageChanges::default();
        for event in &page {
            let rating = self.rates.rate(&event.record);
            if matches!(rating, Rating::Exception(_)) {
                continue;
            }
            let period = self.open_period(event.booked_period);
            usage.take_exception(&event.record, event.booked_period, event.usage_period);
            usage.add(&event.record, period, event.usage_period, &rating);
            let mut journal = None;
            if let Rating::Charged(charge) = &rating {
                let booked = self.delivery_journal(event.id, &event.record, period, charge);
                journal = Some(booked.id);
                new_journals.push(booked);
            }
            resolved.push((event.id, rating.outcome(), period, journal));
        }
        journals::insert(self.connection, self.accounts, &new_journals).await?;
        for (event, outcome, period, journal) in resolved {
            exceptions::resolve(self.connection, event, outcome, period, journal).await?;
        }
        usage.apply(self.connection).await?;
        Ok(page.last().map(|event| event.id))
    }
}
