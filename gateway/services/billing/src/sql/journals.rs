//! Journals, their postings, accounts and balances.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use common::money::Currency;
use common::time::UnixMillis;
use database::{Column, Connection, Dialect, Insert};
use sqlx::Row;

use super::{LedgerError, currency};
use crate::period::Period;

/// Accounts remembered by name; beyond this the memory is emptied and filled anew.
const ACCOUNTS_CACHED_MAX: usize = 1_000_000;

/// Digest of a journal, over the digest of the one before: the chain that seals what is booked.
pub(crate) type JournalDigest = [u8; 32];

/// What a journal books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JournalKind {
    Deliveries,
    Correction,
    Discount,
    Invoice,
    CreditNote,
    Payout,
    Payment,
}

impl JournalKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deliveries => "deliveries",
            Self::Correction => "correction",
            Self::Discount => "discount",
            Self::Invoice => "invoice",
            Self::CreditNote => "credit_note",
            Self::Payout => "payout",
            Self::Payment => "payment",
        }
    }
}

/// A journal to be booked. Its lines sum to zero; lines of zero are left out.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    pub id: i64,
    pub kind: JournalKind,
    pub period: Period,
    pub currency: Currency,
    pub reference: String,
    /// Millionths by account; debits are positive. `unbilled:CLIENT`, `receivable:CLIENT`, `payable:PARTY`,
    /// `wallet:NAME`, `tax`, `rounding`, `bank`.
    pub lines: BTreeMap<String, i64>,
}

impl Journal {
    /// Adds to a line.
    ///
    /// # Errors
    /// If the line does not fit 64 bits.
    pub fn add(&mut self, account: String, micros: i64) -> Result<(), LedgerError> {
        let line = self.lines.entry(account).or_default();
        *line = line.checked_add(micros).ok_or_else(overflow)?;
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.lines.values().all(|micros| *micros == 0)
    }

    fn parts(&self) -> impl Iterator<Item = (&str, i64)> {
        self.lines
            .iter()
            .filter(|(_, micros)| **micros != 0)
            .map(|(account, micros)| (account.as_str(), *micros))
    }
}

fn overflow() -> LedgerError {
    LedgerError::Conflict("an account is beyond 64 bits of millionths".into())
}

/// BLAKE3 (derive-key mode) over the digest before and everything that the journal says.
pub(crate) fn link<'a>(
    previous: &JournalDigest,
    head: (i64, &str, i64, &str, &str, i64),
    lines: impl Iterator<Item = (&'a str, i64)>,
) -> JournalDigest {
    let (id, kind, period, currency, reference, booked_ms) = head;
    let mut hasher = blake3::Hasher::new_derive_key("dozo billing journal v1");
    hasher.update(previous).update(&id.to_le_bytes());
    for text in [kind, currency, reference] {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    hasher.update(&period.to_le_bytes()).update(&booked_ms.to_le_bytes());
    for (account, micros) in lines {
        hasher.update(&(account.len() as u64).to_le_bytes()).update(account.as_bytes());
        hasher.update(&micros.to_le_bytes());
    }
    hasher.finalize().into()
}

/// Ids of accounts by name. Forget it when a transaction did not commit.
#[derive(Default)]
pub(crate) struct Accounts {
    ids: HashMap<Currency, HashMap<String, i64>>,
    len: usize,
    next: i64,
}

const ACCOUNTS: &[Column] = &[Column::Integer("id"), Column::Text("name"), Column::Text("currency")];
static INSERT_ACCOUNTS: LazyLock<Insert> = LazyLock::new(|| Insert::new("accounts", ACCOUNTS, ""));

impl Accounts {
    /// What is in the database, up to what is remembered.
    pub async fn read(connection: &mut Connection) -> Result<Self, LedgerError> {
        let next = sqlx::query_scalar("SELECT coalesce(max(id), 0) + 1 FROM accounts");
        let mut accounts = Self { next: next.fetch_one(&mut *connection).await?, ..Self::default() };
        let rows = sqlx::query("SELECT id, name, currency FROM accounts ORDER BY id DESC LIMIT $1")
            .bind(ACCOUNTS_CACHED_MAX as i64)
            .fetch_all(connection)
            .await?;
        for row in &rows {
            accounts.remember(currency(row, "currency")?, row.try_get(1)?, row.try_get(0)?);
        }
        Ok(accounts)
    }

    fn remember(&mut self, currency: Currency, name: String, id: i64) {
        self.ids.entry(currency).or_default().insert(name, id);
        self.len += 1;
    }

    fn known(&self, currency: Currency, name: &str) -> Option<i64> {
        self.ids.get(&currency)?.get(name).copied()
    }

    /// Makes all accounts of the journals known; those that are new are made.
    async fn make_known(
        &mut self,
        connection: &mut Connection,
        dialect: Dialect,
        journals: &[Journal],
    ) -> Result<(), LedgerError> {
        if self.len > ACCOUNTS_CACHED_MAX {
            self.ids.clear();
            self.len = 0;
        }
        let is_whole = self.len as i64 + 1 == self.next;
        let mut made: Vec<(i64, String, Currency)> = Vec::new();
        for journal in journals {
            for (name, _) in journal.parts() {
                if self.known(journal.currency, name).is_some() {
                    continue;
                }
                let stored: Option<i64> = if is_whole {
                    None
                } else {
                    sqlx::query_scalar("SELECT id FROM accounts WHERE name = $1 AND currency = $2")
                        .bind(name.to_owned())
                        .bind(journal.currency.code())
                        .fetch_optional(&mut *connection)
                        .await?
                };
                let id = stored.unwrap_or_else(|| {
                    made.push((self.next, name.to_owned(), journal.currency));
                    self.next += 1;
                    self.next - 1
                });
                self.remember(journal.currency, name.to_owned(), id);
            }
        }
        INSERT_ACCOUNTS
            .run(connection, dialect, &made, |(id, name, currency), values| {
                values.extend([(*id).into(), name.as_str().into(), currency.code().into()]);
            })
            .await?;
        Ok(())
    }
}

const JOURNALS: &[Column] = &[
    Column::Integer("id"),
    Column::Text("kind"),
    Column::Integer("period"),
    Column::Text("currency"),
    Column::Text("reference"),
    Column::Integer("booked_ms"),
    Column::Bytes("digest"),
];
static INSERT_JOURNALS: LazyLock<Insert> = LazyLock::new(|| Insert::new("journals", JOURNALS, ""));
const POSTINGS: &[Column] = &[
    Column::Integer("journal"),
    Column::Integer("line"),
    Column::Integer("account"),
    Column::Integer("amount"),
];
static INSERT_POSTINGS: LazyLock<Insert> = LazyLock::new(|| Insert::new("postings", POSTINGS, ""));
const BALANCES: &[Column] = &[Column::Integer("account"), Column::Integer("amount")];
static ADD_BALANCES: LazyLock<Insert> = LazyLock::new(|| {
    let tail = "ON CONFLICT (account) DO UPDATE SET amount = balances.amount + excluded.amount";
    Insert::new("balances", BALANCES, tail)
});

/// The newest journal: its id and digest; 0 and zeros before the first.
pub(crate) async fn newest(connection: &mut Connection) -> Result<(i64, JournalDigest), LedgerError> {
    let sql = "SELECT id, digest FROM journals ORDER BY id DESC LIMIT 1";
    let row = sqlx::query(sql).fetch_optional(connection).await?;
    row.map_or(Ok((0, [0; 32])), |row| Ok((row.try_get(0)?, super::digest(row.try_get(1)?)?)))
}

/// Books journals, of ids that follow `previous`'s, and moves the balances. Postings go first: a journal's own row
/// closes and checks it. Answers with the last digest.
pub(crate) async fn insert(
    connection: &mut Connection,
    dialect: Dialect,
    accounts: &mut Accounts,
    journals: &[Journal],
    previous: JournalDigest,
    now: UnixMillis,
) -> Result<JournalDigest, LedgerError> {
    accounts.make_known(connection, dialect, journals).await?;
    let mut postings: Vec<[i64; 4]> = Vec::new();
    let mut balances: BTreeMap<i64, i64> = BTreeMap::new();
    let (mut digest, mut digests) = (previous, Vec::with_capacity(journals.len()));
    for journal in journals {
        for (line, (name, micros)) in journal.parts().enumerate() {
            let account = accounts.known(journal.currency, name);
            let account = account.ok_or_else(|| LedgerError::corrupt("an account without a number"))?;
            let balance = balances.entry(account).or_default();
            *balance = balance.checked_add(micros).ok_or_else(overflow)?;
            postings.push([journal.id, line as i64, account, micros]);
        }
        let Journal { id, kind, period, currency, reference, .. } = journal;
        let booked_ms = now.0.cast_signed();
        let head = (*id, kind.as_str(), period.number(), currency.code(), reference.as_str(), booked_ms);
        digest = link(&digest, head, journal.parts());
        digests.push((journal, digest));
    }
    INSERT_POSTINGS
        .run(connection, dialect, &postings, |posting, values| {
            values.extend(posting.iter().map(|value| (*value).into()));
        })
        .await?;
    INSERT_JOURNALS
        .run(connection, dialect, &digests, |(journal, digest), values| {
            values.extend([
                journal.id.into(),
                journal.kind.as_str().into(),
                journal.period.number().into(),
                journal.currency.code().into(),
                journal.reference.as_str().into(),
                now.0.cast_signed().into(),
                (&digest[..]).into(),
            ]);
        })
        .await?;
    let balances: Vec<(i64, i64)> = balances.into_iter().collect();
    ADD_BALANCES
        .run(connection, dialect, &balances, |(account, micros), values| {
            values.extend([(*account).into(), (*micros).into()]);
        })
        .await?;
    Ok(digest)
}

/// The balance of an account in millionths; 0 if there is no such account. Debits are positive.
pub(crate) async fn balance(
    connection: &mut Connection,
    account: &str,
    currency: Currency,
) -> Result<i64, LedgerError> {
    let sql = "SELECT b.amount FROM balances b JOIN accounts a ON a.id = b.account \
         WHERE a.name = $1 AND a.currency = $2";
    let query = sqlx::query_scalar(sql).bind(account.to_owned()).bind(currency.code());
    Ok(query.fetch_optional(connection).await?.unwrap_or(0))
}

/// Balances of a currency's accounts from `first` to `last`, by name.
pub(crate) async fn balances(
    connection: &mut Connection,
    first: &str,
    last: &str,
    currency: Currency,
) -> Result<HashMap<String, i64>, LedgerError> {
    let sql = "SELECT a.name, b.amount FROM accounts a JOIN balances b ON b.account = a.id \
         WHERE a.name >= $1 AND a.name <= $2 AND a.currency = $3";
    let query = sqlx::query(sql).bind(first.to_owned()).bind(last.to_owned()).bind(currency.code());
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// One account as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct AccountView {
    pub account: String,
    pub currency: Currency,
    /// Millionths of the minor unit; debits are positive.
    pub balance_micros: i64,
}

/// Accounts by name after `after`, with what they come to.
pub(crate) async fn accounts(
    connection: &mut Connection,
    after: &str,
    limit: i64,
) -> Result<Vec<AccountView>, LedgerError> {
    let sql = "SELECT a.name, a.currency, coalesce(b.amount, 0) AS amount FROM accounts a \
         LEFT JOIN balances b ON b.account = a.id WHERE a.name > $1 ORDER BY a.name, a.currency LIMIT $2";
    let rows = sqlx::query(sql).bind(after.to_owned()).bind(limit).fetch_all(connection).await?;
    let view = |row: &sqlx::any::AnyRow| {
        Ok(AccountView {
            account: row.try_get(0)?,
            currency: currency(row, "currency")?,
            balance_micros: row.try_get(2)?,
        })
    };
    rows.iter().map(view).collect()
}

/// How far all balances are from zero, in micros, summed over currencies; anything but 0 is a broken ledger.
pub(crate) async fn imbalance(connection: &mut Connection) -> Result<i64, LedgerError> {
    let sums = "SELECT CAST(coalesce(sum(abs(s)), 0) AS BIGINT) FROM (SELECT sum(b.amount) AS s FROM balances b \
         JOIN accounts a ON a.id = b.account GROUP BY a.currency) AS sums";
    Ok(sqlx::query_scalar(sums).fetch_one(connection).await?)
}
