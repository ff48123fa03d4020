//! Journals, their postings, accounts and balances.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use common::money::Currency;
use sqlx::sqlite::SqliteConnection;

use super::LedgerError;
use super::rows::{Bound, Insert};
use crate::period::Period;

/// Accounts remembered by name; beyond this the memory is emptied and filled anew.
const ACCOUNTS_CACHED_MAX: usize = 200_000;

/// One posting; debits are positive.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// `unbilled:CLIENT`, `receivable:CLIENT`, `payable:PARTY`, `tax`, `rounding`.
    pub account: String,
    /// What the party did.
    pub role: &'static str,
    pub micros: i64,
}

/// A journal to be booked. Its lines sum to zero.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    pub id: i64,
    pub kind: &'static str,
    pub event: Option<i64>,
    pub period: Period,
    pub currency: Currency,
    pub tariff: Option<i64>,
    pub split: Option<i64>,
    pub reference: Option<String>,
    pub lines: Vec<Line>,
}

/// Ids of accounts that were used lately. Forget it when a transaction did not commit.
#[derive(Default)]
pub(crate) struct Accounts {
    ids: HashMap<Currency, HashMap<String, i64>>,
}

impl Accounts {
    pub fn forget(&mut self) {
        self.ids.clear();
    }

    async fn id(
        &mut self,
        connection: &mut SqliteConnection,
        name: &str,
        currency: Currency,
    ) -> Result<i64, LedgerError> {
        let known = self.ids.entry(currency).or_default();
        if let Some(id) = known.get(name) {
            return Ok(*id);
        }
        if known.len() >= ACCOUNTS_CACHED_MAX {
            known.clear();
        }
        let id = sqlx::query_scalar(
            "INSERT INTO accounts (name, currency) VALUES (?, ?) \
             ON CONFLICT (name, currency) DO UPDATE SET name = excluded.name RETURNING id",
        )
        .bind(name)
        .bind(currency.code())
        .fetch_one(connection)
        .await?;
        known.insert(name.to_owned(), id);
        Ok(id)
    }
}

static INSERT_JOURNALS: LazyLock<Insert> = LazyLock::new(|| {
    let head = "INSERT INTO journals (id, kind, event, period, currency, tariff, split, reference)";
    Insert::new(head, 8, "")
});
static INSERT_POSTINGS: LazyLock<Insert> =
    LazyLock::new(|| Insert::new("INSERT INTO postings (journal, line, account, role, amount)", 5, ""));
static ADD_BALANCES: LazyLock<Insert> = LazyLock::new(|| {
    let tail = "ON CONFLICT (account) DO UPDATE SET amount = amount + excluded.amount";
    Insert::new("INSERT INTO balances (account, amount)", 2, tail)
});

/// The first free id.
pub(crate) async fn next_id(connection: &mut SqliteConnection) -> Result<i64, LedgerError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(id), 0) + 1 FROM journals").fetch_one(connection).await?)
}

/// Books journals and moves the balances. Postings go first: a journal's own row closes and checks it.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    accounts: &mut Accounts,
    journals: &[Journal],
) -> Result<(), LedgerError> {
    struct Posting {
        journal: i64,
        line: i64,
        account: i64,
        role: &'static str,
        micros: i64,
    }
    let mut postings = Vec::with_capacity(journals.len() * 6);
    let mut balances: BTreeMap<i64, i64> = BTreeMap::new();
    for journal in journals {
        for (line, part) in journal.lines.iter().enumerate() {
            let account = accounts.id(connection, &part.account, journal.currency).await?;
            let balance = balances.entry(account).or_default();
            let sum = balance.checked_add(part.micros);
            *balance = sum.ok_or_else(|| LedgerError::Conflict("an account overflows".into()))?;
            let posting = Posting {
                journal: journal.id,
                line: line as i64,
                account,
                role: part.role,
                micros: part.micros,
            };
            postings.push(posting);
        }
    }
    let bind = |query: Bound, posting: &Posting| {
        let query = query.bind(posting.journal).bind(posting.line).bind(posting.account);
        query.bind(posting.role).bind(posting.micros)
    };
    INSERT_POSTINGS.run(connection, &postings, bind).await?;
    let bind = |query: Bound, journal: &Journal| {
        let query = query.bind(journal.id).bind(journal.kind).bind(journal.event);
        let query = query.bind(journal.period.number()).bind(journal.currency.code());
        query.bind(journal.tariff).bind(journal.split).bind(journal.reference.clone())
    };
    INSERT_JOURNALS.run(connection, journals, bind).await?;
    let balances: Vec<(i64, i64)> = balances.into_iter().collect();
    ADD_BALANCES.run(connection, &balances, |q, (account, micros)| q.bind(*account).bind(*micros)).await?;
    Ok(())
}

/// How far all balances are from zero, in micros, summed over currencies; anything but 0 is a broken ledger.
pub(crate) async fn imbalance(connection: &mut SqliteConnection) -> Result<i64, LedgerError> {
    let sums = "SELECT coalesce(sum(abs(s)), 0) FROM (SELECT sum(b.amount) AS s FROM balances b \
         JOIN accounts a ON a.id = b.account GROUP BY a.currency)";
    Ok(sqlx::query_scalar(sums).fetch_one(connection).await?)
}
