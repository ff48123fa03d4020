//! What a month comes to on paper: invoices, credit notes and payout statements, as values and as files.
//!
//! The values are the JSON documents: the ledger fills and stores them. [`csv`], [`html`] and [`ubl`] turn them
//! into bytes and read nothing else, so that a document once issued always comes out the same.
//!
//! Amounts named `_micros` are millionths of the currency's minor unit, amounts named `_minor` whole minor units.
//! Dates are local days, `YYYY-MM-DD`.

pub(crate) mod amount;
mod check;
pub mod csv;
pub mod html;
#[cfg(test)]
pub(crate) mod samples;
pub mod ubl;

use common::money::{Currency, MICROS_PER_MINOR};
use serde::{Deserialize, Serialize};

pub use check::{Inconsistent, is_date};

use crate::config::Fee;

/// A party as it was on the document's day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartyView {
    /// `client:bob`.
    pub party: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// ISO 3166, two letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// T and 13 digits in Japan, a VAT number with its country elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration_number: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// Whether a document asks for money or gives some back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum InvoiceKind {
    Invoice,
    /// `of` is the number of the invoice that it corrects. Positive amounts are credited.
    CreditNote {
        of: String,
    },
}

/// Why a line is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineKind {
    Usage,
    Discount,
    Correction,
}

impl LineKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Discount => "discount",
            Self::Correction => "correction",
        }
    }
}

/// One line: deliveries that cost alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvoiceLine {
    /// The month of the deliveries, `YYYY-MM`.
    pub usage_period: String,
    /// They reached the ledger after their own month was closed.
    pub late: bool,
    pub kind: LineKind,
    /// `purchase` or `reference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// `hit`, `peer` or `origin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub deliveries: i64,
    pub bytes_sent: i64,
    pub amount_micros: i64,
}

/// An invoice, a credit note, or the draft of one (without number and time).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoice {
    /// `None`: a draft.
    pub number: Option<String>,
    #[serde(flatten)]
    pub kind: InvoiceKind,
    pub fee: Fee,
    /// The month, `YYYY-MM`.
    pub period: String,
    pub issuer: PartyView,
    pub customer: PartyView,
    pub currency: Currency,
    /// Milliseconds since 1970.
    pub issued_ms: Option<u64>,
    pub issue_date: Option<String>,
    pub due_date: Option<String>,
    /// First day of the month.
    pub period_begin: String,
    /// Last day of the month.
    pub period_end: String,
    pub lines: Vec<InvoiceLine>,
    /// The lines' exact sum.
    pub charges_micros: i64,
    /// The charges, rounded half up.
    pub net_minor: i64,
    /// Net less charges.
    pub rounding_micros: i64,
    pub tax_basis_points: u32,
    /// Floor of net x rate, once for the document.
    pub tax_minor: i64,
    pub total_minor: i64,
}

/// How a payout reaches its party.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PayoutMethod {
    Bank,
    /// Credit in this system.
    Wallet,
}

/// One line of a statement: shares earned alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementLine {
    /// The month of the deliveries, `YYYY-MM`.
    pub usage_period: String,
    /// They reached the ledger after their own month was closed.
    pub late: bool,
    pub kind: LineKind,
    /// What the party did: `home`, `source`, `origin`, `search`, `billing`, `surrogate`, `mobile_access` or
    /// `provider`.
    pub part: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub deliveries: i64,
    pub amount_micros: i64,
}

/// What a party earned in a month, and what of it is paid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// `None`: a draft.
    pub number: Option<String>,
    pub fee: Fee,
    /// Who is paid.
    pub party: PartyView,
    /// Who pays.
    pub issuer: PartyView,
    /// The month, `YYYY-MM`.
    pub period: String,
    pub currency: Currency,
    /// Milliseconds since 1970.
    pub issued_ms: Option<u64>,
    pub issue_date: Option<String>,
    /// Left over from the month before; negative if too much was paid.
    pub opening_micros: i64,
    pub lines: Vec<StatementLine>,
    /// The lines' exact sum.
    pub earned_micros: i64,
    /// Opening and earned.
    pub balance_micros: i64,
    pub payout_minor: i64,
    /// `None`: nothing is paid out.
    pub payout_method: Option<PayoutMethod>,
    /// The balance less the payout.
    pub carried_micros: i64,
}

impl Invoice {
    /// The lines' amounts in whole minor units, for formats that know no smaller ones. Each is within one unit of
    /// its exact amount and they sum to the net: all are rounded down, and what is missing goes, one unit
    /// each, to the lines with the largest remainders (of equal ones, the earlier).
    pub fn line_amounts_minor(&self) -> Vec<i64> {
        let mut amounts: Vec<i64> =
            self.lines.iter().map(|line| line.amount_micros.div_euclid(MICROS_PER_MINOR)).collect();
        let mut order: Vec<usize> = (0..amounts.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(self.lines[*i].amount_micros.rem_euclid(MICROS_PER_MINOR)));
        let down: i128 = amounts.iter().map(|amount| i128::from(*amount)).sum();
        let missing = usize::try_from(i128::from(self.net_minor) - down).unwrap_or(0);
        for index in order.into_iter().take(missing) {
            amounts[index] += 1;
        }
        amounts
    }
}
