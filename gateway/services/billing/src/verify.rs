//! Recomputing the whole ledger: what must hold, checked from the rows themselves, with nothing believed.

use common::hash::RecordDigest;
use common::record::ChainedRecord;
use futures_util::TryStreamExt;
use serde::Serialize;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use crate::config::Fee;
use crate::rating::{RateBook, Rating};
use crate::sql::LedgerError;
use crate::sql::events::{StoredEvent, select};
use crate::sql::terms;

/// Findings that are told in full; the rest is only counted.
const FINDINGS_MAX: usize = 100;

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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

/// Checks that journals balance, balances are the postings' sums, chains are contiguous and linked, stored
/// charges are what rating gives, and usage is what the events sum to. Memory is bounded; time grows with the
/// ledger. The reading transaction sees one moment of it.
pub(crate) async fn verify(connection: &mut SqliteConnection, fee: Fee) -> Result<VerifyReport, LedgerError> {
    let mut transaction = sqlx::Connection::begin(connection).await?;
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
    check_events(&mut transaction, &rates, &mut report).await?;
    check_heads(&mut transaction, &mut report).await?;
    transaction.rollback().await?;
    Ok(report)
}

/// Checks that are one statement each: it selects the faults, as text.
const BOOKS: [&str; 7] = [
    "SELECT 'journal ' || j.id || ' is not the journal of its event ' || j.event FROM journals j \
     LEFT JOIN events e ON e.id = j.event LEFT JOIN exceptions x ON x.event = j.event \
     WHERE j.event IS NOT NULL AND coalesce(e.journal, x.journal) IS NOT j.id",
    "SELECT 'journal ' || p.journal || ' sums to ' || sum(p.amount) || ' ' || a.currency FROM postings p \
     JOIN accounts a ON a.id = p.account GROUP BY p.journal, a.currency HAVING sum(p.amount) <> 0",
    "SELECT 'account ' || a.name || ' has balance ' || coalesce(b.amount, 0) || ', its postings sum to ' || \
     coalesce(p.total, 0) FROM accounts a LEFT JOIN balances b ON b.account = a.id \
     LEFT JOIN (SELECT account, sum(amount) AS total FROM postings GROUP BY account) p ON p.account = a.id \
     WHERE coalesce(b.amount, 0) <> coalesce(p.total, 0)",
    "SELECT 'journal ' || id || ' follows a gap' FROM (SELECT id, lag(id, 1, 0) OVER (ORDER BY id) AS before \
     FROM journals) WHERE id <> before + 1",
    "SELECT 'invoice ' || number || ' follows a gap' FROM (SELECT number, lag(number, 1, 0) OVER \
     (ORDER BY number) AS before FROM invoices) WHERE number <> before + 1",
    "SELECT 'event ' || event || ' has ' || count(*) || ' journals' FROM journals WHERE event IS NOT NULL \
     GROUP BY event HAVING count(*) > 1",
    "SELECT 'usage of ' || client || ' ' || usage_period || ' ' || outcome || ' counts ' || u || ', the events ' \
     || e FROM (SELECT client, usage_period, outcome, sum(u) AS u, sum(e) AS e FROM ( \
     SELECT client, usage_period, outcome, deliveries AS u, 0 AS e FROM usage UNION ALL \
     SELECT e.client, e.usage_period, coalesce(x.resolved_outcome, e.outcome), 0, 1 FROM events e \
     LEFT JOIN exceptions x ON x.event = e.id) GROUP BY 1, 2, 3) WHERE u <> e",
];

async fn check_books(
    connection: &mut SqliteConnection,
    report: &mut VerifyReport,
) -> Result<(), LedgerError> {
    for check in BOOKS {
        let mut faults = sqlx::query_scalar::<_, String>(check).fetch(&mut *connection);
        while let Some(finding) = faults.try_next().await? {
            report.fault(finding);
        }
    }
    Ok(())
}

/// Walks every chain: contiguous, linked, untouched; and rates every record again.
async fn check_events(
    connection: &mut SqliteConnection,
    rates: &RateBook,
    report: &mut VerifyReport,
) -> Result<(), LedgerError> {
    let mut page_after = (0i64, 0i64);
    let mut previous = RecordDigest::ZERO;
    loop {
        let conditions = "WHERE (e.chain, e.seq) > (?, ?) ORDER BY e.chain, e.seq LIMIT 1000";
        let rows = sqlx::query(select(conditions))
            .bind(page_after.0)
            .bind(page_after.1)
            .fetch_all(&mut *connection)
            .await?;
        let Some(_) = rows.last() else { return Ok(()) };
        for row in &rows {
            let event = StoredEvent::from_row(row)?;
            let place = format!("record {} of {} in epoch {}", event.seq, event.node, event.epoch);
            if event.chain != page_after.0 {
                report.chains += 1;
                page_after = (event.chain, 0);
                previous = RecordDigest::ZERO;
            }
            let last = page_after.1.cast_unsigned();
            let (node, epoch, booked) = (event.node.clone(), event.epoch, event.digest);
            let link = ChainedRecord::append(&node, epoch, last, previous, event.record.clone());
            if link.seq != event.seq {
                report.fault(format!("{place} follows record {last}"));
            } else if link.digest != booked {
                report.fault(format!("{place} does not have the digest that its facts and its link give"));
            }
            check_rating(connection, rates, &event, &place, report).await?;
            previous = booked;
            page_after.1 = event.seq.cast_signed();
            report.records += 1;
        }
    }
}

/// Whether the booked postings are what rating gives under the versions that the journal names.
async fn check_rating(
    connection: &mut SqliteConnection,
    rates: &RateBook,
    event: &StoredEvent,
    place: &str,
    report: &mut VerifyReport,
) -> Result<(), LedgerError> {
    let Some(journal) = event.journal else {
        if event.outcome == "charged" {
            report.fault(format!("{place} is charged without a journal"));
        }
        return Ok(());
    };
    let versions = event.tariff.zip(event.split);
    let rating = versions.and_then(|(tariff, split)| rates.rate_again(&event.record, tariff, split));
    let Some(Rating::Charged(charge)) = rating else {
        report.fault(format!("{place} is charged, rating gives {rating:?}"));
        return Ok(());
    };
    let mut expected = vec![(format!("unbilled:{}", event.record.client), charge.micros)];
    expected.extend(charge.shares.iter().map(|s| (format!("payable:{}", s.party), -s.micros)));
    let sql = "SELECT a.name, p.amount FROM postings p JOIN accounts a ON a.id = p.account \
         WHERE p.journal = ? AND a.currency = ? ORDER BY p.line";
    let rows = sqlx::query(sql).bind(journal).bind(charge.currency.code()).fetch_all(connection).await?;
    let booked: Result<Vec<(String, i64)>, sqlx::Error> =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect();
    let booked = booked?;
    if booked != expected {
        report.fault(format!("{place} is booked as {booked:?}, rating gives {expected:?}"));
    }
    Ok(())
}

/// Each chain's head is its last event.
async fn check_heads(
    connection: &mut SqliteConnection,
    report: &mut VerifyReport,
) -> Result<(), LedgerError> {
    let sql = "SELECT 'the head of ' || c.node || ' in epoch ' || c.epoch || ' is not its last record' \
         FROM chains c LEFT JOIN events e ON e.chain = c.id AND e.seq = c.last_seq \
         WHERE e.digest IS NULL OR e.digest <> c.last_digest \
         OR EXISTS (SELECT 1 FROM events f WHERE f.chain = c.id AND f.seq > c.last_seq)";
    let mut faults = sqlx::query_scalar::<_, String>(sql).fetch(&mut *connection);
    while let Some(finding) = faults.try_next().await? {
        report.fault(finding);
    }
    Ok(())
}
