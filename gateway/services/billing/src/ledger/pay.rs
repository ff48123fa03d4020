//! Money that came in for an invoice.

use common::money::MICROS_PER_MINOR;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::booking::Booking;
use super::{Command, Ledger, LedgerError};
use crate::invoicing::{parse_number, show_number};
use crate::sql::invoices;
use crate::sql::journals::JournalKind;
use crate::sql::payments::{self, NewPayment};
use crate::sql::requests::RequestKey;

/// A payment. `POST /v1/payments`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PaymentRequest {
    /// Number of the invoice.
    pub invoice: String,
    /// Whole minor units of the invoice's currency.
    pub minor: i64,
    /// The bank's or the operator's; each counts once.
    pub reference: String,
}

/// What is left after a payment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PaymentReport {
    pub invoice: String,
    /// Whole minor units.
    pub open_minor: i64,
}

impl Ledger {
    /// Books a payment; the same reference again changes nothing.
    ///
    /// # Errors
    /// If there is no such invoice, less is owed, or the reference was used for something else.
    pub async fn pay(
        &self,
        request: PaymentRequest,
        key: Option<RequestKey>,
    ) -> Result<PaymentReport, LedgerError> {
        if request.reference.is_empty() || request.reference.chars().count() > 100 {
            return Err(LedgerError::Invalid("reference must have 1 to 100 characters".into()));
        }
        if request.reference.starts_with("wallet ") {
            return Err(LedgerError::Invalid(
                "references that begin with \"wallet \" are this server's".into(),
            ));
        }
        let answer = self.ask(|reply| Command::Pay { request, key, reply }).await?;
        serde_json::from_value(answer).map_err(LedgerError::corrupt)
    }
}

impl Booking<'_> {
    pub(super) async fn pay(&mut self, request: &PaymentRequest) -> Result<PaymentReport, LedgerError> {
        let PaymentRequest { invoice, minor, reference } = request;
        let fee = self.rates.fee;
        let none = || LedgerError::NotFound(format!("there is no invoice {invoice} of this server"));
        let number = parse_number(fee, invoice).ok_or_else(none)?;
        let issued = invoices::find(self.connection, number).await?.ok_or_else(none)?;
        if let Some(known) = payments::find(self.connection, reference).await? {
            if known != (number, *minor) {
                let (number, minor) = known;
                let other = show_number(fee, number);
                return Err(LedgerError::Conflict(format!(
                    "the reference {reference} is of a payment of {minor} for {other}"
                )));
            }
            return Ok(PaymentReport { invoice: invoice.clone(), open_minor: issued.open_minor });
        }
        if issued.is_credit_note || *minor < 1 || *minor > issued.open_minor {
            let open = if issued.is_credit_note { 0 } else { issued.open_minor };
            return Err(LedgerError::Conflict(format!(
                "{minor} cannot be paid for {invoice}: 1 to {open} are owed"
            )));
        }
        let period = self.present_period();
        let mut journal = Self::journal(JournalKind::Payment, period, issued.currency, reference);
        journal.add("bank".to_owned(), minor * MICROS_PER_MINOR)?;
        journal.add(format!("receivable:{}", issued.client), -minor * MICROS_PER_MINOR)?;
        let journal = self.post(journal).unwrap_or(0);
        let (reference, paid) = (reference.clone(), self.now);
        self.add_payment(NewPayment { reference, invoice: number, minor: *minor, paid, journal });
        Ok(PaymentReport { invoice: invoice.clone(), open_minor: issued.open_minor - minor })
    }
}
