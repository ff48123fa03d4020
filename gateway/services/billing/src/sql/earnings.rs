//! Sums of shares by party and month: kept in the same transaction as the journals, read for statements.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use common::money::Currency;
use database::{Column, Connection, Dialect, Insert};
use sqlx::Row;

use super::LedgerError;
use crate::documents::LineKind;
use crate::period::Period;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    party: String,
    booked_period: i64,
    usage_period: i64,
    kind: &'static str,
    part: &'static str,
    class: &'static str,
    path: &'static str,
    currency: &'static str,
}

/// Where a share belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Earned {
    pub booked: Period,
    pub usage: Period,
    pub kind: LineKind,
    pub part: &'static str,
    pub class: &'static str,
    pub path: &'static str,
    pub currency: Currency,
}

/// Changes to the sums, gathered for one transaction.
#[derive(Default)]
pub(crate) struct EarningChanges {
    sums: BTreeMap<Key, (i64, i64)>,
}

const COLUMNS: &[Column] = &[
    Column::Text("party"),
    Column::Integer("booked_period"),
    Column::Integer("usage_period"),
    Column::Text("kind"),
    Column::Text("part"),
    Column::Text("class"),
    Column::Text("path"),
    Column::Text("currency"),
    Column::Integer("deliveries"),
    Column::Integer("amount"),
];
static ADD: LazyLock<Insert> = LazyLock::new(|| {
    let tail = "ON CONFLICT (party, booked_period, usage_period, kind, part, class, path, currency) \
         DO UPDATE SET deliveries = earnings.deliveries + excluded.deliveries, \
         amount = earnings.amount + excluded.amount";
    Insert::new("earnings", COLUMNS, tail)
});

impl EarningChanges {
    /// Adds the share of one delivery, or a sum of shares of `deliveries`.
    pub fn add(&mut self, party: &str, earned: Earned, deliveries: i64, micros: i64) {
        let key = Key {
            party: party.to_owned(),
            booked_period: earned.booked.number(),
            usage_period: earned.usage.number(),
            kind: earned.kind.as_str(),
            part: earned.part,
            class: earned.class,
            path: earned.path,
            currency: earned.currency.code(),
        };
        let sums = self.sums.entry(key).or_default();
        sums.0 += deliveries;
        sums.1 += micros;
    }

    pub async fn apply(&self, connection: &mut Connection, dialect: Dialect) -> Result<(), LedgerError> {
        let rows: Vec<(&Key, &(i64, i64))> = self.sums.iter().collect();
        ADD.run(connection, dialect, &rows, |(key, (deliveries, micros)), values| {
            values.extend([
                key.party.as_str().into(),
                key.booked_period.into(),
                key.usage_period.into(),
                key.kind.into(),
                key.part.into(),
                key.class.into(),
                key.path.into(),
                key.currency.into(),
                (*deliveries).into(),
                (*micros).into(),
            ]);
        })
        .await?;
        Ok(())
    }
}

/// One sum of a party's shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EarningLine {
    pub usage: Period,
    pub kind: LineKind,
    pub part: String,
    pub class: String,
    pub path: String,
    pub deliveries: i64,
    pub micros: i64,
}

/// What one party earned in one currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Earnings {
    pub party: String,
    pub currency: Currency,
    pub lines: Vec<EarningLine>,
}

/// Which parties' earnings are read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Parties<'a> {
    One(&'a str),
    /// Up to so many after this name.
    Page(&'a str, i64),
}

/// Shares booked in months after `closed` up to `through`.
pub(crate) async fn read(
    connection: &mut Connection,
    closed: Option<Period>,
    through: Period,
    parties: Parties<'_>,
) -> Result<Vec<Earnings>, LedgerError> {
    let (condition, name, limit) = match parties {
        Parties::One(party) => ("party = $3 AND $4 > 0", party, 1),
        Parties::Page(after, limit) => (
            "party IN (SELECT DISTINCT party FROM earnings WHERE booked_period > $1 \
             AND booked_period <= $2 AND party > $3 ORDER BY party LIMIT $4)",
            after,
            limit,
        ),
    };
    let sql = format!(
        "SELECT party, currency, usage_period, kind, part, class, path, \
         CAST(sum(deliveries) AS BIGINT) AS deliveries, CAST(sum(amount) AS BIGINT) AS amount FROM earnings \
         WHERE booked_period > $1 AND booked_period <= $2 AND {condition} \
         GROUP BY party, currency, usage_period, kind, part, class, path \
         ORDER BY party, currency, usage_period, kind, part, class, path"
    );
    // Made of constants alone.
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(closed.map_or(0, Period::number))
        .bind(through.number())
        .bind(name.to_owned())
        .bind(limit)
        .fetch_all(connection)
        .await?;
    let mut earnings: Vec<Earnings> = Vec::new();
    for row in &rows {
        let party: String = row.try_get(0)?;
        let currency = super::currency(row, "currency")?;
        let kind: &str = row.try_get(3)?;
        let line = EarningLine {
            usage: super::period(row, "usage_period")?,
            kind: LineKind::from_text(kind).ok_or_else(|| LedgerError::corrupt(format!("kind {kind}")))?,
            part: row.try_get(4)?,
            class: row.try_get(5)?,
            path: row.try_get(6)?,
            deliveries: row.try_get(7)?,
            micros: row.try_get(8)?,
        };
        match earnings.last_mut().filter(|last| last.party == party && last.currency == currency) {
            Some(last) => last.lines.push(line),
            None => earnings.push(Earnings { party, currency, lines: vec![line] }),
        }
    }
    Ok(earnings)
}
