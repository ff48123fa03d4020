//! The writer task: the only one that changes the database. It takes what waits in its queue; batches that wait
//! together share one transaction, and so one sync.

use std::time::Instant;

use common::time::Clock;
use database::Db;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::booking::Booking;
use super::{BatchReport, Command, LedgerError, Reply, checked_party, checked_version};
use crate::chain::CheckedBatch;
use crate::metrics::Metrics;
use crate::period::Period;
use crate::rating::RateBook;
use crate::sql;
use crate::sql::journals::Accounts;
use crate::sql::requests::{self, RequestKey};
use crate::sql::terms::Table;
use serde_json::Value;

/// Records that one transaction books at most, unless a single batch has more.
const TRANSACTION_RECORDS_MAX: usize = 8192;

/// Events that are summed, and sorted by client, together.
const SUM_AFTER: i64 = 65_536;

/// The task's state; [`Writer::run`] it once.
pub struct Writer {
    db: Db,
    rates: RateBook,
    accounts: Accounts,
    queue: mpsc::Receiver<Command>,
    clock: Clock,
    metrics: Metrics,
    sum_after: i64,
}

type Waiting = (CheckedBatch, Reply<BatchReport>);

impl Writer {
    pub(super) fn new(
        db: Db,
        rates: RateBook,
        accounts: Accounts,
        queue: mpsc::Receiver<Command>,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        Self { db, rates, accounts, queue, clock, metrics, sum_after: SUM_AFTER }
    }

    /// The same writer that sums whenever it has booked another `events`, at least 1.
    pub fn sum_after(self, events: i64) -> Self {
        Self { sum_after: events.max(1), ..self }
    }

    /// Works until every handle of the ledger is gone or `stop` is cancelled and the queue is empty.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut held = None;
        loop {
            let command = match held.take() {
                Some(command) => command,
                None => {
                    let next = tokio::select! {
                        biased;
                        command = self.queue.recv() => command,
                        () = stop.cancelled() => {
                            self.queue.close();
                            self.queue.recv().await
                        }
                    };
                    let Some(command) = next else { break };
                    command
                }
            };
            held = self.carry_out(command).await;
        }
        self.db.close().await;
    }

    /// Answers a caller that may have gone away; what it asked for is done all the same.
    fn answer<T>(reply: Reply<T>, result: Result<T, LedgerError>) {
        let _gone = reply.send(result);
    }

    /// Carries out a command and, after a batch, the batches that wait behind it. Answers with the command that
    /// was taken from the queue beyond them.
    async fn carry_out(&mut self, command: Command) -> Option<Command> {
        match command {
            Command::Book(batch, reply) => {
                let (batches, beyond) = self.gather((batch, reply));
                self.book(batches).await;
                return beyond;
            }
            Command::AddVersion { table, document, reply } => {
                let result = self.add_version(table, &document).await;
                Self::answer(reply, self.after(result).await);
            }
            Command::AddParty { document, reply } => {
                let result = self.add_party(&document).await;
                Self::answer(reply, self.after(result).await);
            }
            Command::Close { period, missing, reply } => {
                let result = self.close(period, &missing).await;
                Self::answer(reply, self.after(result).await);
            }
            Command::Correct { request, key, reply } => {
                let result = self.once(key, async |booking| booking.correct(&request).await).await;
                Self::answer(reply, self.after(result).await);
            }
            Command::SumUp(reply) => {
                let result = self.sum_up().await;
                Self::answer(reply, self.after(result).await);
            }
            Command::Pay { request, key, reply } => {
                let result = self.once(key, async |booking| booking.pay(&request).await).await;
                Self::answer(reply, self.after(result).await);
            }
        }
        None
    }

    fn gather(&mut self, first: Waiting) -> (Vec<Waiting>, Option<Command>) {
        let mut records = first.0.records.len();
        let mut batches = vec![first];
        while records < TRANSACTION_RECORDS_MAX {
            match self.queue.try_recv() {
                Ok(Command::Book(batch, reply)) => {
                    records += batch.records.len();
                    batches.push((batch, reply));
                }
                Ok(other) => return (batches, Some(other)),
                Err(_) => break, // empty now, or closed: run() sees to it
            }
        }
        (batches, None)
    }

    /// After a transaction that did not commit, remembered accounts may not exist.
    async fn after<T>(&mut self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if result.is_err() {
            let read = async { Accounts::read(&mut *self.db.read().await?).await };
            // A database that cannot be read now will fail what comes next too, which then reads again.
            self.accounts = read.await.unwrap_or_default();
        }
        result
    }

    async fn book(&mut self, batches: Vec<Waiting>) {
        let begin = Instant::now();
        let (batches, replies): (Vec<_>, Vec<_>) = batches.into_iter().unzip();
        let oldest: Vec<_> = batches.iter().map(|b| b.records.iter().map(|r| r.record.end).min()).collect();
        let result = self.try_book(batches).await;
        match self.after(result).await {
            Ok(reports) => {
                self.metrics.batch_seconds.record(begin.elapsed().as_secs_f64());
                let now = self.clock.now();
                for ((report, reply), oldest) in reports.into_iter().zip(replies).zip(oldest) {
                    self.metrics.count(&report);
                    if let Some(oldest) = oldest.filter(|_| report.booked > 0) {
                        self.metrics.lag(now.since(oldest).as_secs_f64());
                    }
                    Self::answer(reply, Ok(report));
                }
            }
            Err(error) => {
                let text = common::error::chain(&error);
                tracing::error!(error = text, "batches were not booked");
                for reply in replies {
                    self.metrics.count_failed();
                    Self::answer(reply, Err(LedgerError::NotCommitted(text.clone())));
                }
            }
        }
    }

    /// All batches in one transaction: durable when it returns, or nothing of them is booked.
    async fn try_book(&mut self, batches: Vec<CheckedBatch>) -> Result<Vec<BatchReport>, LedgerError> {
        let mut transaction = self.db.write().await?;
        let mut booking = self.booking(&mut transaction).await?;
        let mut reports = Vec::with_capacity(batches.len());
        for batch in batches {
            reports.push(booking.book(batch).await?);
        }
        booking.write().await?;
        transaction.commit().await?;
        Ok(reports)
    }

    /// The view of a transaction on the ledger.
    async fn booking<'a>(
        &'a mut self,
        connection: &'a mut database::Connection,
    ) -> Result<Booking<'a>, LedgerError> {
        let (dialect, now) = (self.db.dialect, self.clock.now());
        Booking::begin(connection, dialect, &self.rates, &mut self.accounts, now, self.sum_after).await
    }

    /// Does what a request asks in one transaction, or answers as it was answered before.
    async fn once<T: Serialize>(
        &mut self,
        key: Option<RequestKey>,
        act: impl AsyncFnOnce(&mut Booking<'_>) -> Result<T, LedgerError>,
    ) -> Result<Value, LedgerError> {
        let mut transaction = self.db.write().await?;
        if let Some(key) = &key
            && let Some(answer) = requests::find(&mut transaction, key).await?
        {
            return Ok(answer);
        }
        let mut booking = self.booking(&mut transaction).await?;
        let answer = act(&mut booking).await?;
        booking.write().await?;
        let answer = serde_json::to_value(answer).map_err(LedgerError::corrupt)?;
        if let Some(key) = &key {
            requests::keep(&mut transaction, key, &answer, self.clock.now()).await?;
        }
        transaction.commit().await?;
        Ok(answer)
    }

    async fn add_version(&mut self, table: Table, document: &Value) -> Result<i64, LedgerError> {
        let (valid_from, text) = checked_version(self.rates.fee, table, document)?;
        let now = self.clock.now();
        let mut transaction = self.db.write().await?;
        let version = sql::terms::add(&mut transaction, table, valid_from, &text, now).await?;
        transaction.commit().await?;
        self.rates = sql::terms::rate_book(&mut *self.db.read().await?, self.rates.fee).await?;
        self.rate_exceptions().await?;
        Ok(version)
    }

    /// Rates the open exceptions again, a page per transaction.
    async fn rate_exceptions(&mut self) -> Result<(), LedgerError> {
        let mut after = Some(0);
        while let Some(last) = after {
            let mut transaction = self.db.write().await?;
            let mut booking = self.booking(&mut transaction).await?;
            after = booking.rate_exceptions(last).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    async fn add_party(&mut self, document: &Value) -> Result<(), LedgerError> {
        let (party, valid_from, text) = checked_party(document)?;
        let now = self.clock.now();
        let mut transaction = self.db.write().await?;
        sql::terms::add_party(&mut transaction, &party.party, valid_from, &text, now).await?;
        Ok(transaction.commit().await?)
    }

    async fn sum_up(&self) -> Result<(), LedgerError> {
        let mut transaction = self.db.write().await?;
        sql::usage::sum_up(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Invoices all that was booked up to the month's end, and seals it, in one transaction.
    async fn close(&mut self, period: Period, missing: &[String]) -> Result<(), LedgerError> {
        let mut transaction = self.db.write().await?;
        let mut booking = self.booking(&mut transaction).await?;
        booking.close(period, missing).await?;
        Ok(transaction.commit().await?)
    }
}
