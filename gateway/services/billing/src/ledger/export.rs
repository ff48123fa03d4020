//! Bank files of a closed month: payouts to be made, invoices to be collected, and what came of the collection.

use common::money::Currency;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::pay::PaymentRequest;
use super::{Ledger, LedgerError};
use crate::bank::zengin::{DebitOutcome, LineEnd, read_debit_results};
use crate::bank::{BankAccount, BankFileError, Order, SepaAccount, ZenginAccount, sepa, zengin};
use crate::documents::PayoutMethod;
use crate::invoicing::show_number;
use crate::period::Period;
use crate::sql::{invoices, periods, statements, terms};

/// Statements that are read at once.
const PAGE: i64 = 1000;
/// Names that an error lists.
const NAMES_MAX: usize = 10;

/// Which banks' format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Japan: kinds 21 and 91, in yen.
    Zengin,
    /// Euro area: pain.001 and pain.008, in euro.
    Sepa,
}

impl Scheme {
    fn currency(self) -> Currency {
        match self {
            Self::Zengin => Currency::Jpy,
            Self::Sepa => Currency::Eur,
        }
    }
}

/// Which way the money goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Direction {
    /// To parties.
    Payouts,
    /// From clients.
    Debits,
}

/// What a bank file is to be of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRequest {
    pub period: Period,
    pub direction: Direction,
    pub scheme: Scheme,
    /// Day of the payments, `YYYY-MM-DD`.
    pub date: String,
    /// Leave out payouts to parties without an account of the scheme, instead of refusing.
    pub skip_missing: bool,
}

/// What came of a collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ImportReport {
    /// Invoices that are paid by it, also those that were booked before.
    pub paid: Vec<String>,
    /// Invoices that were not paid, with the bank's reason.
    pub unpaid: Vec<(String, DebitOutcome)>,
    /// Results that cannot be booked, with the reason.
    pub refused: Vec<(String, String)>,
}

impl From<BankFileError> for LedgerError {
    fn from(error: BankFileError) -> Self {
        Self::Conflict(error.to_string())
    }
}

impl Ledger {
    /// A bank file of a closed month. The same request gives the same orders again: a bank knows a file by its identifier.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] if the month is not closed, there is nothing to pay, or an account is missing.
    pub async fn export(&self, request: &ExportRequest) -> Result<Vec<u8>, LedgerError> {
        let ExportRequest { period, direction, scheme, date, .. } = request;
        let mut connection = self.read().await?;
        let closed = periods::closed_through(&mut connection).await?;
        if closed.is_none_or(|closed| *period > closed) {
            return Err(LedgerError::Conflict(format!("{period} is not closed; close it first")));
        }
        drop(connection);
        let orders = match direction {
            Direction::Payouts => self.payouts(request).await?,
            Direction::Debits => self.debits(request).await?,
        };
        let issuer = format!("billing:{}", self.fee);
        let own = self.account(&issuer, *scheme).await?.ok_or_else(|| {
            LedgerError::Conflict(format!(
                "party {issuer} has no bank account of this scheme; put one with the party"
            ))
        })?;
        match own {
            BankAccount::Zengin(own) => {
                let orders: Vec<Order<ZenginAccount>> =
                    orders.into_iter().filter_map(Order::zengin).collect();
                let write = match direction {
                    Direction::Payouts => zengin::transfers,
                    Direction::Debits => zengin::debits,
                };
                Ok(write(&own, date, &orders, LineEnd::CrLf)?)
            }
            BankAccount::Sepa(own) => {
                let orders: Vec<Order<SepaAccount>> = orders.into_iter().filter_map(Order::sepa).collect();
                let (write, kind): (fn(_, &_, &[_]) -> _, _) = match direction {
                    Direction::Payouts => (sepa::credit_transfers, "payouts"),
                    Direction::Debits => (sepa::direct_debits, "debits"),
                };
                let id = format!("{}-{period}-{kind}", self.fee);
                let message = sepa::Message { id: &id, created: self.clock.now(), date };
                Ok(write(message, &own, &orders)?)
            }
        }
    }

    /// The party's account, if it has one of the scheme.
    async fn account(&self, party: &str, scheme: Scheme) -> Result<Option<BankAccount>, LedgerError> {
        let mut connection = self.read().await?;
        let party = terms::party_document(&mut connection, party, self.clock.now()).await?;
        let is_wanted = |account: &BankAccount| match account {
            BankAccount::Zengin(_) => scheme == Scheme::Zengin,
            BankAccount::Sepa(_) => scheme == Scheme::Sepa,
        };
        Ok(party.and_then(|party| party.bank).filter(is_wanted))
    }

    async fn payouts(&self, request: &ExportRequest) -> Result<Vec<Order<BankAccount>>, LedgerError> {
        let (mut orders, mut missing, mut after) = (Vec::new(), Vec::new(), String::new());
        loop {
            let mut connection = self.read().await?;
            let page = statements::of_period(&mut connection, request.period, &after, PAGE).await?;
            drop(connection);
            let Some(last) = page.last() else { break };
            after.clone_from(&last.party.party);
            for statement in page {
                let is_ours = statement.payout_method == Some(PayoutMethod::Bank)
                    && statement.currency == request.scheme.currency();
                let Some(reference) = statement.number.filter(|_| is_ours) else { continue };
                let party = statement.party.party;
                match self.account(&party, request.scheme).await? {
                    None => missing.push(party),
                    Some(account) => orders.push(Order {
                        reference,
                        account,
                        currency: statement.currency,
                        amount_minor: statement.payout_minor,
                    }),
                }
            }
        }
        if !missing.is_empty() && !request.skip_missing {
            let shown = missing.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ");
            return Err(LedgerError::Conflict(format!(
                "{} parties have no bank account of this scheme ({shown}); put accounts with the parties, or leave \
                 them out with skip_missing=true",
                missing.len()
            )));
        }
        Ok(orders)
    }

    /// Clients without an account pay by themselves.
    async fn debits(&self, request: &ExportRequest) -> Result<Vec<Order<BankAccount>>, LedgerError> {
        let mut connection = self.read().await?;
        let owed = invoices::owed(&mut connection, request.period).await?;
        drop(connection);
        let mut orders = Vec::new();
        for invoice in owed.into_iter().filter(|invoice| invoice.currency == request.scheme.currency()) {
            let party = format!("client:{}", invoice.client);
            if let Some(account) = self.account(&party, request.scheme).await? {
                orders.push(Order {
                    reference: show_number(self.fee, invoice.number),
                    account,
                    currency: invoice.currency,
                    amount_minor: invoice.open_minor,
                });
            }
        }
        Ok(orders)
    }

    /// Books what a bank's result file of a collection says was paid. The same file again changes nothing.
    ///
    /// # Errors
    /// [`LedgerError::Invalid`] if it is not a result file of this server's consignor code; nothing is booked then.
    pub async fn import_debit_results(&self, file: &[u8]) -> Result<ImportReport, LedgerError> {
        let issuer = format!("billing:{}", self.fee);
        let code = match self.account(&issuer, Scheme::Zengin).await? {
            Some(BankAccount::Zengin(account)) => account.consignor_code,
            _ => None,
        };
        let code = code.ok_or_else(|| {
            LedgerError::Conflict(format!("party {issuer} has no consignor code; put one with its account"))
        })?;
        let results =
            read_debit_results(file, &code).map_err(|error| LedgerError::Invalid(error.to_string()))?;
        let mut report = ImportReport { paid: Vec::new(), unpaid: Vec::new(), refused: Vec::new() };
        for result in results.results {
            let invoice = result.reference;
            if result.outcome != DebitOutcome::Paid {
                report.unpaid.push((invoice, result.outcome));
                continue;
            }
            let reference = format!("debit {} {invoice}", results.day);
            let payment = PaymentRequest { invoice: invoice.clone(), minor: result.amount_minor, reference };
            match self.pay(payment, None).await {
                Ok(_) => report.paid.push(invoice),
                Err(LedgerError::Conflict(reason) | LedgerError::NotFound(reason)) => {
                    tracing::warn!(invoice, reason, "a result of the bank cannot be booked");
                    report.refused.push((invoice, reason));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(report)
    }
}

impl Order<BankAccount> {
    fn zengin(self) -> Option<Order<ZenginAccount>> {
        let Self { reference, account, currency, amount_minor } = self;
        match account {
            BankAccount::Zengin(account) => Some(Order { reference, account, currency, amount_minor }),
            BankAccount::Sepa(_) => None,
        }
    }

    fn sepa(self) -> Option<Order<SepaAccount>> {
        let Self { reference, account, currency, amount_minor } = self;
        match account {
            BankAccount::Sepa(account) => Some(Order { reference, account, currency, amount_minor }),
            BankAccount::Zengin(_) => None,
        }
    }
}
