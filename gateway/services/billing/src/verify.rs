//! Recomputing the whole ledger: what must hold, checked from the rows themselves, with nothing believed.

use std::collections::BTreeMap;

use common::hash::RecordDigest;
use common::record::ChainedRecord;
use database::Connection;
use futures_util::TryStreamExt;
use serde::Serialize;
use sqlx::Row;
use utoipa::ToSchema;

use crate::config::Fee;
use crate::rating::{Charge, RateBook, Rating};
use crate::sql::events::{StoredEvent, select};
use crate::sql::{LedgerError, journals, periods, terms};

/// Findings that are told in full; the rest is only counted.
const FINDINGS_MAX: usize = 100;
/// Most records of one transaction: what its writer gathers, and one batch more.
const TRANSACTION_RECORDS_MAX: i64 = 16_384;
/// Rows that are read at once.
const PAGE: i64 = 1000;

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct VerifyReport {
    pub ok: bool,
    pub records: u64,
    pub chains: u64,
    pub journals: i64,
    pub postings: i64,
    pub faults: u64,
    /// The first faults, each naming the invariant, the place and both values.
    pub findings: Vec<String>,
}

impl VerifyReport {
    fn fault(&mut self, finding: String) {
        self.ok = false;
        self.faults += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

/// Checks that journals balance and are chained, balances are the postings' sums, chains of records are contiguous and
/// linked, stored charges are what rating gives and journals are the sums of their charges, usage and earnings are what
/// the events sum to, and closed months have their seals. Memory is bounded; time grows with the ledger. The reading
/// transaction sees one moment of it.
pub(crate) async fn verify(connection: &mut Connection, fee: Fee) -> Result<VerifyReport, LedgerError> {
    // PostgreSQL shows each statement another moment unless told not to.
    let mut transaction = sqlx::Connection::begin(connection).await?;
    if transaction.backend_name() == "PostgreSQL" {
        let sql = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ";
        sqlx::query(sql).execute(&mut *transaction).await?;
    }
    let rates = terms::rate_book(&mut transaction, fee).await?;
    let mut report = VerifyReport {
        ok: true,
        records: 0,
        chains: 0,
        journals: sqlx::query_scalar("SELECT count(*) FROM journals").fetch_one(&mut *transaction).await?,
        postings: sqlx::query_scalar("SELECT count(*) FROM postings").fetch_one(&mut *transaction).await?,
        faults: 0,
        findings: Vec::new(),
    };
    check_books(&mut transaction, &mut report).await?;
    check_chains(&mut transaction, &mut report).await?;
    check_charges(&mut transaction, &rates, &mut report).await?;
    check_journals(&mut transaction, &mut report).await?;
    check_seals(&mut transaction, &mut report).await?;
    transaction.rollback().await?;
    Ok(report)
}

/// Checks that are one statement each: it selects the faults, as text.
const BOOKS: [&str; 11] = [
    "SELECT 'journal ' || p.journal || ' sums to ' || sum(p.amount) || ' ' || a.currency FROM postings p \
     JOIN accounts a ON a.id = p.account GROUP BY p.journal, a.currency HAVING sum(p.amount) <> 0",
    "SELECT 'account ' || a.name || ' has balance ' || coalesce(b.amount, 0) || ', its postings sum to ' || \
     coalesce(p.total, 0) FROM accounts a LEFT JOIN balances b ON b.account = a.id \
     LEFT JOIN (SELECT account, sum(amount) AS total FROM postings GROUP BY account) p ON p.account = a.id \
     WHERE coalesce(b.amount, 0) <> coalesce(p.total, 0)",
    "SELECT 'journal ' || id || ' follows a gap' FROM (SELECT id, lag(id, 1) OVER (ORDER BY id) AS before \
     FROM journals) AS numbered WHERE id <> coalesce(before, 0) + 1",
    "SELECT 'invoice ' || number || ' follows a gap' FROM (SELECT number, lag(number, 1) OVER \
     (ORDER BY number) AS before FROM invoices) AS numbered WHERE number <> coalesce(before, 0) + 1",
    "SELECT 'payout ' || number || ' follows a gap' FROM (SELECT number, lag(number, 1) OVER \
     (ORDER BY number) AS before FROM statements WHERE number IS NOT NULL) AS numbered \
     WHERE number <> coalesce(before, 0) + 1",
    "SELECT 'usage of ' || client || ' ' || usage_period || ' ' || outcome || ' counts ' || u || ', the events ' \
     || e FROM (SELECT client, usage_period, outcome, sum(u) AS u, sum(e) AS e FROM ( \
     SELECT client, usage_period, outcome, deliveries AS u, 0 AS e FROM usage WHERE outcome <> 'credited' UNION ALL \
     SELECT e.client, e.usage_period, CASE WHEN k.event IS NOT NULL AND k.invoice IS NULL THEN 'corrected' \
     ELSE coalesce(x.resolved_outcome, e.outcome) END, 0, 1 FROM events e \
     LEFT JOIN exceptions x ON x.event = e.id LEFT JOIN corrections k ON k.event = e.id \
     WHERE e.id <= (SELECT event FROM usage_through)) AS both_sides GROUP BY client, usage_period, outcome) AS sums WHERE u <> e",
    "SELECT 'usage of ' || client || ' comes to ' || u || ', the events to ' || e FROM ( \
     SELECT client, sum(u) AS u, sum(e) AS e FROM ( \
     SELECT client, amount AS u, 0 AS e FROM usage WHERE outcome = 'charged' UNION ALL \
     SELECT e.client, 0, coalesce(e.amount, x.amount, 0) FROM events e LEFT JOIN exceptions x ON x.event = e.id \
     LEFT JOIN corrections k ON k.event = e.id WHERE (k.event IS NULL OR k.invoice IS NOT NULL) \
     AND e.id <= (SELECT event FROM usage_through)) AS both_sides \
     GROUP BY client) AS sums WHERE u <> e",
    "SELECT 'event ' || c.event || ' of ' || c.client || ' is not its client''s, or not of its run' \
     FROM client_events c LEFT JOIN events e ON e.id = c.event AND e.client = c.client \
     WHERE e.id IS NULL OR c.event > c.run \
     OR c.event <= (SELECT coalesce(max(run), 0) FROM client_runs WHERE run < c.run)",
    "SELECT 'the runs by client have ' || entries || ' events of ' || events FROM ( \
     SELECT (SELECT count(*) FROM client_events) AS entries, \
     (SELECT count(*) FROM events WHERE id <= (SELECT coalesce(max(run), 0) FROM client_runs)) AS events) AS both_sides \
     WHERE entries <> events",
    "SELECT 'party ' || account || ' earned ' || e || ', its account says ' || p FROM ( \
     SELECT account, sum(e) AS e, sum(p) AS p FROM ( \
     SELECT 'payable:' || party AS account, amount AS e, 0 AS p FROM earnings UNION ALL \
     SELECT a.name, 0, -p.amount FROM postings p JOIN accounts a ON a.id = p.account \
     JOIN journals j ON j.id = p.journal WHERE a.name LIKE 'payable:%' AND j.kind <> 'payout') AS both_sides \
     GROUP BY account) AS sums WHERE e <> p",
    "SELECT 'the head of ' || c.node || ' in epoch ' || c.epoch || ' is not its last record' \
     FROM chains c LEFT JOIN events e ON e.chain = c.id AND e.seq = c.last_seq \
     WHERE (c.last_seq > 0 AND (e.digest IS NULL OR e.digest <> c.last_digest)) \
     OR EXISTS (SELECT 1 FROM events f WHERE f.chain = c.id AND f.seq > c.last_seq)",
];

async fn check_books(connection: &mut Connection, report: &mut VerifyReport) -> Result<(), LedgerError> {
    for check in BOOKS {
        let mut faults = sqlx::query_scalar::<_, String>(check).fetch(&mut *connection);
        while let Some(finding) = faults.try_next().await? {
            report.fault(finding);
        }
    }
    Ok(())
}

fn place(event: &StoredEvent) -> String {
    format!("record {} of {} in epoch {}", event.seq, event.node, event.epoch)
}

/// Walks every chain of records: contiguous, linked, untouched.
async fn check_chains(connection: &mut Connection, report: &mut VerifyReport) -> Result<(), LedgerError> {
    let mut page_after = (0i64, 0i64);
    let mut previous = RecordDigest::ZERO;
    loop {
        let conditions = "WHERE (e.chain, e.seq) > ($1, $2) ORDER BY e.chain, e.seq LIMIT $3";
        let rows = sqlx::query(select(conditions))
            .bind(page_after.0)
            .bind(page_after.1)
            .bind(PAGE)
            .fetch_all(&mut *connection)
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in &rows {
            let event = StoredEvent::from_row(row)?;
            if event.chain != page_after.0 {
                report.chains += 1;
                page_after = (event.chain, 0);
                previous = RecordDigest::ZERO;
            }
            let last = page_after.1.cast_unsigned();
            let link = ChainedRecord::append(&event.node, event.epoch, last, previous, event.record.clone());
            if link.seq != event.seq {
                report.fault(format!("{} follows record {last}", place(&event)));
            } else if link.digest != event.digest {
                let place = place(&event);
                report.fault(format!("{place} does not have the digest that its facts and its link give"));
            }
            previous = event.digest;
            page_after.1 = event.seq.cast_signed();
            report.records += 1;
        }
    }
}

/// What the journals of deliveries must sum to, while their events are walked.
#[derive(Default)]
struct Expected {
    journals: BTreeMap<i64, Lines>,
}

/// What one journal must book.
struct Lines {
    /// Of the first event that is in it.
    first_event: i64,
    micros: BTreeMap<String, i64>,
}

impl Expected {
    fn add(&mut self, journal: i64, event: &StoredEvent, charge: &Charge) {
        let new = || Lines { first_event: event.id, micros: BTreeMap::new() };
        let lines = &mut self.journals.entry(journal).or_insert_with(new).micros;
        *lines.entry(format!("unbilled:{}", event.record.client)).or_default() += charge.micros;
        for share in &charge.shares {
            *lines.entry(format!("payable:{}", share.party)).or_default() -= share.micros;
        }
    }

    /// Compares the journals that are complete with what is booked.
    async fn check(
        &mut self,
        connection: &mut Connection,
        is_complete: impl Fn(i64, &Lines) -> bool,
        report: &mut VerifyReport,
    ) -> Result<(), LedgerError> {
        let complete = self.journals.extract_if(.., |journal, lines| is_complete(*journal, lines));
        for (journal, Lines { micros: mut expected, .. }) in complete {
            expected.retain(|_, micros| *micros != 0);
            let booked: BTreeMap<String, i64> = lines(connection, journal).await?.into_iter().collect();
            if booked != expected {
                let differs = |(name, micros): &(&String, &i64)| expected.get(*name) != Some(*micros);
                let first = booked.iter().find(differs);
                report.fault(format!(
                    "journal {journal} is not the sum of its charges: it books {first:?}, rating gives {:?}",
                    first.and_then(|(name, _)| expected.get(name))
                ));
            }
        }
        Ok(())
    }
}

/// The postings of a journal by account.
async fn lines(connection: &mut Connection, journal: i64) -> Result<Vec<(String, i64)>, LedgerError> {
    let sql = "SELECT a.name, p.amount FROM postings p JOIN accounts a ON a.id = p.account \
         WHERE p.journal = $1 ORDER BY p.line";
    let rows = sqlx::query(sql).bind(journal).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Rates every charge again under the versions it was charged under, and sums the journals of deliveries.
async fn check_charges(
    connection: &mut Connection,
    rates: &RateBook,
    report: &mut VerifyReport,
) -> Result<(), LedgerError> {
    let arrived = "WHERE e.id > $1 AND e.journal IS NOT NULL ORDER BY e.id LIMIT $2";
    let (mut expected, mut after) = (Expected::default(), 0);
    loop {
        let query = sqlx::query(select(arrived)).bind(after).bind(PAGE);
        let rows = query.fetch_all(&mut *connection).await?;
        let Some(last) = rows.last() else { break };
        after = StoredEvent::from_row(last)?.id;
        for row in &rows {
            check_charge(&StoredEvent::from_row(row)?, rates, &mut expected, report);
        }
        // A journal is of one transaction, whose events follow each other.
        let is_complete = |_, lines: &Lines| lines.first_event + TRANSACTION_RECORDS_MAX < after;
        expected.check(connection, is_complete, report).await?;
    }
    expected.check(connection, |_, _| true, report).await?;
    // What was rated later is in journals of its own.
    let resolved = "WHERE (x.journal, x.event) > ($1, $2) ORDER BY x.journal, x.event LIMIT $3";
    let mut after = (0, 0);
    loop {
        let query = sqlx::query(select(resolved)).bind(after.0).bind(after.1).bind(PAGE);
        let rows = query.fetch_all(&mut *connection).await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let event = StoredEvent::from_row(row)?;
            after = (event.charge.map_or(after.0, |charge| charge.journal), event.id);
            check_charge(&event, rates, &mut expected, report);
        }
        expected.check(connection, |journal, _| journal < after.0, report).await?;
    }
    expected.check(connection, |_, _| true, report).await
}

fn check_charge(event: &StoredEvent, rates: &RateBook, expected: &mut Expected, report: &mut VerifyReport) {
    let Some(booked) = event.charge else { return };
    match rates.rate_again(&event.record, booked.tariff, booked.split) {
        Some(Rating::Charged(charge))
            if (charge.micros, charge.currency) == (booked.micros, booked.currency) =>
        {
            expected.add(booked.journal, event, &charge);
        }
        rating => report.fault(format!(
            "{} is charged {} {}, rating gives {rating:?}",
            place(event),
            booked.micros,
            booked.currency.code()
        )),
    }
}

/// Walks the chain of journals.
async fn check_journals(connection: &mut Connection, report: &mut VerifyReport) -> Result<(), LedgerError> {
    let (mut after, mut previous) = (0i64, [0u8; 32]);
    loop {
        let sql = "SELECT id, kind, period, currency, reference, booked_ms, digest FROM journals WHERE id > $1 \
             ORDER BY id LIMIT $2";
        let rows = sqlx::query(sql).bind(after).bind(PAGE).fetch_all(&mut *connection).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in &rows {
            after = row.try_get(0)?;
            let lines = lines(connection, after).await?;
            let (kind, currency, reference): (&str, &str, &str) =
                (row.try_get(1)?, row.try_get(3)?, row.try_get(4)?);
            let head = (after, kind, row.try_get(2)?, currency, reference, row.try_get(5)?);
            let digest = journals::link(&previous, head, lines.iter().map(|(name, n)| (name.as_str(), *n)));
            if digest[..] != *row.try_get::<&[u8], _>(6)? {
                report.fault(format!(
                    "journal {after} does not have the digest that it and the one before give"
                ));
            }
            previous = digest;
        }
    }
}

async fn check_seals(connection: &mut Connection, report: &mut VerifyReport) -> Result<(), LedgerError> {
    for closed in periods::all(connection).await? {
        let seal = periods::seal(connection, closed.period, closed.journals).await?;
        if blake3::Hash::from_bytes(seal).to_hex().as_str() != closed.seal {
            report.fault(format!("the documents or journals of {} are not what was sealed", closed.period));
        }
    }
    Ok(())
}
