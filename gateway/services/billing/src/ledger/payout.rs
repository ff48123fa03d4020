//! Payout statements of a closed month, and credit in the system.

use std::collections::HashMap;

use common::id::ClientId;
use common::money::{Currency, MICROS_PER_MINOR};
use common::time::UnixMillis;
use database::Connection;

use super::booking::Booking;
use super::{Ledger, LedgerError};
use crate::config::Fee;
use crate::documents::{Invoice, PayoutMethod, Statement, StatementLine};
use crate::period::Period;
use crate::rating::RateBook;
use crate::sql::earnings::{self, Earnings, Parties};
use crate::sql::journals::{self, JournalKind};
use crate::sql::payments::NewPayment;
use crate::sql::{periods, statements, terms};
use crate::tariff::PayoutBasis;

/// Parties whose statements are made at once.
const PARTIES_PAGE: i64 = 500;

/// `SP-0000001`, `CP-0000001`: numbers of payouts count from 1 without gaps.
pub(crate) fn show_payout(fee: Fee, number: i64) -> String {
    let letter = match fee {
        Fee::Service => 'S',
        Fee::Content => 'C',
    };
    format!("{letter}P-{number:07}")
}

/// What of a balance is paid out: its whole minor units, from the minimum on.
fn payout_minor(balance_micros: i64, minimum_minor: i64) -> i64 {
    let whole = balance_micros.div_euclid(MICROS_PER_MINOR);
    if whole > 0 && whole >= minimum_minor { whole } else { 0 }
}

/// A statement of `earned` behind what was carried; a draft.
async fn draft(
    connection: &mut Connection,
    rates: &RateBook,
    closed: Option<Period>,
    period: Period,
    earned: Earnings,
    now: UnixMillis,
) -> Result<Statement, LedgerError> {
    let Earnings { party, currency, lines } = earned;
    let opening = statements::carried(connection, &party, currency).await?;
    let (issuer, view, payout) = {
        let issuer = terms::party(connection, &format!("billing:{}", rates.fee), now).await?;
        let (view, payout) = terms::payee(connection, &party, now).await?;
        (issuer, view, payout)
    };
    let of_text = |text: String| (!text.is_empty()).then_some(text);
    let mut sum = 0i64;
    let mut shown = Vec::with_capacity(lines.len());
    for line in lines {
        let overflow = || LedgerError::Conflict(format!("the statement of {party} is beyond 64 bits"));
        sum = sum.checked_add(line.micros).ok_or_else(overflow)?;
        shown.push(StatementLine {
            usage_period: line.usage.to_string(),
            late: closed.is_some_and(|closed| line.usage <= closed),
            kind: line.kind,
            part: line.part,
            class: of_text(line.class),
            path: of_text(line.path),
            deliveries: line.deliveries,
            amount_micros: line.micros,
        });
    }
    let balance = opening + sum;
    let minimum = rates.tariff_of(period).map_or(0, |tariff| tariff.payout_minimum);
    let payout_minor = payout_minor(balance, minimum);
    Ok(Statement {
        number: None,
        fee: rates.fee.to_string(),
        party: view,
        issuer,
        period: period.to_string(),
        currency,
        issued_ms: None,
        issue_date: None,
        opening_micros: opening,
        lines: shown,
        earned_micros: sum,
        balance_micros: balance,
        payout_minor,
        payout_method: (payout_minor > 0).then_some(payout),
        carried_micros: balance - payout_minor * MICROS_PER_MINOR,
    })
}

impl Ledger {
    /// A party's statements of a month, one for each currency: as issued or, while the month is open, as they would be
    /// now.
    pub async fn statements(&self, party: &str, period: Period) -> Result<Vec<Statement>, LedgerError> {
        let mut connection = self.read().await?;
        let closed = periods::closed_through(&mut connection).await?;
        if closed.is_some_and(|closed| period <= closed) {
            return statements::of_party(&mut connection, party, period).await;
        }
        let rates = terms::rate_book(&mut connection, self.fee).await?;
        let mut drafts = Vec::new();
        for earned in earnings::read(&mut connection, closed, period, Parties::One(party)).await? {
            let now = self.clock.now();
            drafts.push(draft(&mut connection, &rates, closed, period, earned, now).await?);
        }
        Ok(drafts)
    }

    /// All statements of a closed month, by party from after `after`.
    pub(crate) async fn issued_statements(
        &self,
        period: Period,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Statement>, LedgerError> {
        let mut connection = self.read().await?;
        statements::of_period(&mut connection, period, after, limit).await
    }

    /// A party's statements of the closed months after `after`, by month.
    pub(crate) async fn issued_statements_of(
        &self,
        party: &str,
        after: Option<Period>,
        limit: i64,
    ) -> Result<Vec<Statement>, LedgerError> {
        let mut connection = self.read().await?;
        statements::all_of_party(&mut connection, party, after, limit).await
    }
}

impl Booking<'_> {
    /// Issues the statements of a month; answers how many.
    pub(super) async fn issue_statements(&mut self, period: Period) -> Result<u64, LedgerError> {
        let limits = self.payout_limits(period).await?;
        let mut next = statements::next_number(self.connection).await?;
        let (mut issued, mut after) = (0, String::new());
        loop {
            let parties = Parties::Page(&after, PARTIES_PAGE);
            let page = earnings::read(self.connection, self.closed, period, parties).await?;
            let Some(last) = page.last() else { return Ok(issued) };
            // What is carried and credited is read from what is written.
            self.write().await?;
            after.clone_from(&last.party);
            for earned in page {
                let mut statement =
                    draft(self.connection, self.rates, self.closed, period, earned, self.now).await?;
                self.limit(&mut statement, &limits);
                let zone = self.rates.zone_at(self.now);
                statement.issued_ms = Some(self.now.0);
                statement.issue_date = Some(zone.date(self.now, 0));
                let (mut number, mut journal) = (None, None);
                if statement.payout_minor > 0 {
                    let shown = show_payout(self.rates.fee, next);
                    journal = self.pay_out(&statement, period, &shown)?;
                    statement.number = Some(shown);
                    number = Some(next);
                    next += 1;
                }
                statements::insert(self.connection, period, number, journal, &statement).await?;
                issued += 1;
            }
        }
    }

    /// With the basis `collected`: by currency, what came in and what is to go out by bank.
    async fn payout_limits(&mut self, period: Period) -> Result<Vec<(Currency, i64, i64)>, LedgerError> {
        let basis = self.rates.tariff_of(period).map(|tariff| tariff.payout_basis);
        if basis != Some(PayoutBasis::Collected) {
            return Ok(Vec::new());
        }
        let mut sums: Vec<(Currency, i64)> = Vec::new();
        let mut after = String::new();
        loop {
            let parties = Parties::Page(&after, PARTIES_PAGE);
            let page = earnings::read(self.connection, self.closed, period, parties).await?;
            let Some(last) = page.last() else { break };
            after.clone_from(&last.party);
            for earned in page {
                let currency = earned.currency;
                let statement =
                    draft(self.connection, self.rates, self.closed, period, earned, self.now).await?;
                if statement.payout_method == Some(PayoutMethod::Bank) {
                    match sums.iter_mut().find(|(of, _)| *of == currency) {
                        Some((_, sum)) => *sum = sum.saturating_add(statement.payout_minor),
                        None => sums.push((currency, statement.payout_minor)),
                    }
                }
            }
        }
        let mut limits = Vec::with_capacity(sums.len());
        for (currency, sum) in sums {
            let bank = journals::balance(self.connection, "bank", currency).await?;
            limits.push((currency, bank.div_euclid(MICROS_PER_MINOR).max(0), sum));
        }
        Ok(limits)
    }

    /// Cuts a payout by bank down to its part of what came in.
    fn limit(&self, statement: &mut Statement, limits: &[(Currency, i64, i64)]) {
        let limit = limits.iter().find(|(currency, ..)| *currency == statement.currency);
        let Some((_, cash, sum)) = limit.filter(|(_, cash, sum)| cash < sum) else { return };
        if statement.payout_method == Some(PayoutMethod::Bank) {
            let part = i128::from(statement.payout_minor) * i128::from(*cash) / i128::from(*sum);
            statement.payout_minor = i64::try_from(part).unwrap_or(0);
            statement.carried_micros = statement.balance_micros - statement.payout_minor * MICROS_PER_MINOR;
            if statement.payout_minor == 0 {
                statement.payout_method = None;
            }
        }
    }

    fn pay_out(
        &mut self,
        statement: &Statement,
        period: Period,
        reference: &str,
    ) -> Result<Option<i64>, LedgerError> {
        let micros = statement.payout_minor * MICROS_PER_MINOR;
        let party = &statement.party.party;
        let to = match statement.payout_method {
            Some(PayoutMethod::Wallet) => wallet(party),
            _ => "bank".to_owned(),
        };
        let mut journal = Self::journal(JournalKind::Payout, period, statement.currency, reference);
        journal.add(format!("payable:{party}"), micros)?;
        journal.add(to, -micros)?;
        Ok(self.post(journal))
    }

    /// Credit of clients, who are sorted by name, in a currency: millionths by account.
    pub(super) async fn credits(
        &mut self,
        clients: &[&ClientId],
        currency: Currency,
    ) -> Result<HashMap<String, i64>, LedgerError> {
        let (Some(first), Some(last)) = (clients.first(), clients.last()) else { return Ok(HashMap::new()) };
        let (first, last) = (wallet(&format!("client:{first}")), wallet(&format!("client:{last}")));
        let mut credits = journals::balances(self.connection, &first, &last, currency).await?;
        // What the ledger owes is negative.
        credits.values_mut().for_each(|micros| *micros = -*micros);
        Ok(credits)
    }

    /// Settles an invoice from the client's credit, as far as that goes.
    pub(super) fn pay_from_wallet(
        &mut self,
        number: i64,
        invoice: &Invoice,
        period: Period,
        credits: &HashMap<String, i64>,
    ) -> Result<(), LedgerError> {
        let account = wallet(&format!("client:{}", invoice.client));
        let credit = credits.get(&account).copied().unwrap_or(0);
        let minor = credit.div_euclid(MICROS_PER_MINOR).min(invoice.total_minor);
        if minor <= 0 {
            return Ok(());
        }
        let reference = format!("wallet {}", invoice.number.as_deref().unwrap_or_default());
        let mut journal = Self::journal(JournalKind::Payment, period, invoice.currency, &reference);
        journal.add(account, minor * MICROS_PER_MINOR)?;
        journal.add(format!("receivable:{}", invoice.client), -minor * MICROS_PER_MINOR)?;
        let (journal, paid) = (self.post(journal).unwrap_or(0), self.now);
        self.add_payment(NewPayment { reference, invoice: number, minor, paid, journal });
        Ok(())
    }
}

/// The account of a name's credit: what `provider:bob` earned pays what `client:bob` owes.
fn wallet(party: &str) -> String {
    let name = party.split_once(':').filter(|(kind, _)| matches!(*kind, "client" | "provider"));
    format!("wallet:{}", name.map_or(party, |(_, name)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_minor_units_are_paid_from_the_minimum_on() {
        assert_eq!(payout_minor(1_999_999, 0), 1);
        assert_eq!(payout_minor(999_999, 0), 0);
        assert_eq!(payout_minor(999_000_000, 1000), 0);
        assert_eq!(payout_minor(1_000_000_000, 1000), 1000);
        assert_eq!(payout_minor(-5_000_000, 0), 0);
        assert_eq!(
            (wallet("provider:bob"), wallet("site:tokyo")),
            ("wallet:bob".into(), "wallet:site:tokyo".into())
        );
    }
}
