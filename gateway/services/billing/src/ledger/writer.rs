//! The writer task: the only one that changes the database. It takes what waits in its queue; batches that wait
//! together share one transaction, and so one sync.

use std::time::Instant;

use common::time::Clock;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
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
use crate::sql::terms::Table;
use serde_json::Value;

/// Records that one transaction books at most, unless a single batch has more.
const TRANSACTION_RECORDS_MAX: usize = 8192;

/// The task's state; [`Writer::run`] it once.
pub struct Writer {
    connection: SqliteConnection,
    rates: RateBook,
    accounts: Accounts,
    queue: mpsc::Receiver<Command>,
    clock: Clock,
    metrics: Metrics,
}

type Waiting = (CheckedBatch, Reply<BatchReport>);

impl Writer {
    pub(super) fn new(
        connection: SqliteConnection,
        rates: RateBook,
        queue: mpsc::Receiver<Command>,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        Self { connection, rates, accounts: Accounts::default(), queue, clock, metrics }
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
        sql::close_writer(self.connection).await;
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
                Self::answer(reply, self.after(result));
            }
            Command::AddParty { document, reply } => {
                let result = self.add_party(&document).await;
                Self::answer(reply, self.after(result));
            }
            Command::Close(period, reply) => {
                let result = self.close(period).await;
                Self::answer(reply, self.after(result));
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
    fn after<T>(&mut self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if result.is_err() {
            self.accounts.forget();
        }
        result
    }

    async fn book(&mut self, batches: Vec<Waiting>) {
        let begin = Instant::now();
        let (batches, replies): (Vec<_>, Vec<_>) = batches.into_iter().unzip();
        let result = self.try_book(&batches).await;
        match self.after(result) {
            Ok(reports) => {
                self.metrics.batch_seconds.record(begin.elapsed().as_secs_f64());
                for (report, reply) in reports.into_iter().zip(replies) {
                    self.metrics.count(&report);
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
    async fn try_book(&mut self, batches: &[CheckedBatch]) -> Result<Vec<BatchReport>, LedgerError> {
        let now = self.clock.now();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut booking = Booking::begin(&mut transaction, &self.rates, &mut self.accounts, now).await?;
        let mut reports = Vec::with_capacity(batches.len());
        for batch in batches {
            reports.push(booking.book(batch).await?);
        }
        transaction.commit().await?;
        Ok(reports)
    }

    async fn add_version(&mut self, table: Table, document: &Value) -> Result<i64, LedgerError> {
        let (valid_from, text) = checked_version(self.rates.fee, table, document)?;
        let now = self.clock.now();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let version = sql::terms::add(&mut transaction, table, valid_from, &text, now).await?;
        transaction.commit().await?;
        self.rates = sql::terms::rate_book(&mut self.connection, self.rates.fee).await?;
        self.rate_exceptions().await?;
        Ok(version)
    }

    /// Rates the open exceptions again, a page per transaction.
    async fn rate_exceptions(&mut self) -> Result<(), LedgerError> {
        let mut after = Some(0);
        while let Some(last) = after {
            let now = self.clock.now();
            let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
            let mut booking = Booking::begin(&mut transaction, &self.rates, &mut self.accounts, now).await?;
            after = booking.rate_exceptions(last).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    async fn add_party(&mut self, document: &Value) -> Result<(), LedgerError> {
        let (party, valid_from, text) = checked_party(document)?;
        let now = self.clock.now();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        sql::terms::add_party(&mut transaction, &party.party, valid_from, &text, now).await?;
        Ok(transaction.commit().await?)
    }

    /// Invoices all that was booked up to the month's end, and seals it, in one transaction.
    async fn close(&mut self, period: Period) -> Result<(), LedgerError> {
        let now = self.clock.now();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut booking = Booking::begin(&mut transaction, &self.rates, &mut self.accounts, now).await?;
        booking.close(period).await?;
        Ok(transaction.commit().await?)
    }
}
