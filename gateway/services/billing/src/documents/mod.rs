//! The documents that people get: invoices, credit notes and payout statements. These values are their JSON form, as
//! stored; the modules below write their other forms.
//!
//! Amounts are whole minor units of the currency, or (`…_micros`) millionths of one.

pub(crate) mod amount;
mod check;
pub mod csv;
pub mod html;
#[cfg(test)]
pub(crate) mod samples;
pub mod ubl;

use common::id::ClientId;
use common::money::{Currency, MICROS_PER_MINOR};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use check::{Inconsistent, is_date};

/// Who somebody is, as on documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartyView {
    /// `client:bob`, `site:tokyo`, `billing:service`.
    pub party: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// ISO 3166 alpha-2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// In Japan T and 13 digits, elsewhere the VAT number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration_number: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InvoiceKind {
    Invoice,
    /// Takes back a part of an invoice. Its amounts are positive and mean what is credited.
    CreditNote {
        of: String,
    },
}

/// What a line sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LineKind {
    Usage,
    /// Free deliveries and tiers of a month.
    Discount,
    /// Charges that were taken back.
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

    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Usage, Self::Discount, Self::Correction].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// One line: deliveries that cost alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceLine {
    /// The month of the deliveries, `YYYY-MM`.
    pub usage_period: String,
    /// They reached the ledger after their own month was closed.
    pub late: bool,
    pub kind: LineKind,
    /// `purchase` or `reference`.
    #[serde(default)]
    pub class: Option<String>,
    /// `hit`, `peer` or `origin`.
    #[serde(default)]
    pub path: Option<String>,
    pub deliveries: i64,
    pub bytes_sent: i64,
    pub amount_micros: i64,
}

/// An invoice, a credit note, or the draft of one (without number and time).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Invoice {
    pub number: Option<String>,
    pub kind: InvoiceKind,
    /// `service` or `content`.
    pub fee: String,
    pub client: ClientId,
    pub period: String,
    pub issuer: PartyView,
    pub customer: PartyView,
    pub currency: Currency,
    /// Milliseconds since 1970.
    pub issued_ms: Option<u64>,
    /// Local dates, `YYYY-MM-DD`; the period's are inclusive.
    pub issue_date: Option<String>,
    pub due_date: Option<String>,
    pub period_begin: String,
    pub period_end: String,
    pub lines: Vec<InvoiceLine>,
    /// The lines' exact sum.
    pub charges_micros: i64,
    pub net_minor: i64,
    /// Net less charges.
    pub rounding_micros: i64,
    pub tax_basis_points: u32,
    pub tax_minor: i64,
    pub total_minor: i64,
}

/// One line of a statement: shares of deliveries of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatementLine {
    pub usage_period: String,
    pub late: bool,
    pub kind: LineKind,
    /// What the party did for it: `home`, `source`, `origin`, `search`, `billing`, `surrogate`, `mobile_access`,
    /// `provider`.
    pub part: String,
    #[serde(default)]
    pub class: Option<String>,
    #[serde(default)]
    pub path: Option<String>,
    pub deliveries: i64,
    pub amount_micros: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PayoutMethod {
    #[default]
    Bank,
    /// Credit in the system, which pays invoices.
    Wallet,
}

impl PayoutMethod {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bank => "bank",
            Self::Wallet => "wallet",
        }
    }
}

/// What a party earned in a month, and what of it is paid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Statement {
    /// Of the payout; `None` if nothing is paid out, and in a draft.
    pub number: Option<String>,
    pub fee: String,
    pub party: PartyView,
    pub issuer: PartyView,
    pub period: String,
    pub currency: Currency,
    pub issued_ms: Option<u64>,
    pub issue_date: Option<String>,
    /// Carried forward from the statement before.
    pub opening_micros: i64,
    pub lines: Vec<StatementLine>,
    /// The lines' exact sum.
    pub earned_micros: i64,
    /// Opening and earned.
    pub balance_micros: i64,
    pub payout_minor: i64,
    pub payout_method: Option<PayoutMethod>,
    /// Balance less payout; may be negative.
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
