//! Invoices of a month: what a client's charges come to in whole minor units, with tax.
//!
//! The net is the exact sum rounded half up to the minor unit, the difference goes to the rounding account; the
//! tax is the floor of net x rate, computed once per invoice. A line sums deliveries of one class and path of
//! one month; `GET /v1/invoices/{number}/deliveries` lists them.

use common::id::ClientId;
use common::money::{Currency, MICROS_PER_MINOR, Money};
use common::time::UnixMillis;
use serde::Serialize;

use crate::config::Fee;
use crate::period::Period;

/// One line: deliveries that cost alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InvoiceLine {
    /// The month of the deliveries.
    pub usage_period: Period,
    /// They reached the ledger after their own month was closed.
    pub late: bool,
    pub class: String,
    pub path: String,
    pub deliveries: i64,
    pub bytes_sent: i64,
    /// Millionths of the minor unit.
    pub amount_micros: i64,
}

/// An invoice, or the draft of one (without number and time).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Invoice {
    pub number: Option<String>,
    pub fee: Fee,
    pub period: Period,
    pub client: ClientId,
    pub currency: Currency,
    /// Milliseconds since 1970.
    pub issued_ms: Option<UnixMillis>,
    pub lines: Vec<InvoiceLine>,
    /// The lines' exact sum, in millionths of the minor unit.
    pub charges_micros: i64,
    /// Whole minor units.
    pub net_minor: i64,
    /// Net less charges.
    pub rounding_micros: i64,
    pub tax_basis_points: u32,
    pub tax_minor: i64,
    pub total_minor: i64,
}

impl Invoice {
    /// A draft from its lines; `None` if the sums do not fit.
    pub(crate) fn draft(
        fee: Fee,
        period: Period,
        client: ClientId,
        currency: Currency,
        tax_basis_points: u32,
        lines: Vec<InvoiceLine>,
    ) -> Option<Self> {
        let charges = lines.iter().try_fold(0i64, |sum, line| sum.checked_add(line.amount_micros))?;
        let net = Money { micros: charges, currency }.round_to_minor();
        let tax = (i128::from(net) * i128::from(tax_basis_points)).div_euclid(10_000);
        let tax = i64::try_from(tax).ok()?;
        let total = net.checked_add(tax)?;
        // The journal is in micros.
        total.checked_mul(MICROS_PER_MINOR)?;
        Some(Self {
            number: None,
            fee,
            period,
            client,
            currency,
            issued_ms: None,
            lines,
            charges_micros: charges,
            net_minor: net,
            rounding_micros: net.checked_mul(MICROS_PER_MINOR)? - charges,
            tax_basis_points,
            tax_minor: tax,
            total_minor: total,
        })
    }
}

/// `S-0000001`: numbers of a fee's invoices count from 1 without gaps.
pub(crate) fn show_number(fee: Fee, number: i64) -> String {
    format!("{}{number:07}", fee.invoice_prefix())
}

pub(crate) fn parse_number(fee: Fee, text: &str) -> Option<i64> {
    let number = text.strip_prefix(fee.invoice_prefix())?.parse().ok().filter(|number| *number > 0)?;
    (show_number(fee, number) == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invoice_by_hand() {
        let period: Period = "2026-10".parse().unwrap();
        let line = |micros| InvoiceLine {
            usage_period: period,
            late: false,
            class: "purchase".into(),
            path: "hit".into(),
            deliveries: 1,
            bytes_sent: 1,
            amount_micros: micros,
        };
        let client = ClientId::new("bob").unwrap();
        let draft =
            |lines| Invoice::draft(Fee::Service, period, client.clone(), Currency::Jpy, 1000, lines).unwrap();
        // 124.691 + 90.809 = 215.5 yen -> 216 net, 21.6 -> 21 tax, 237 in all; half a yen is rounding
        let invoice = draft(vec![line(124_691_000), line(90_809_000)]);
        assert_eq!((invoice.net_minor, invoice.tax_minor, invoice.total_minor), (216, 21, 237));
        assert_eq!(invoice.rounding_micros, 500_000);
        let invoice = draft(vec![line(400_000)]);
        assert_eq!((invoice.net_minor, invoice.rounding_micros, invoice.total_minor), (0, -400_000, 0));
        assert_eq!(parse_number(Fee::Service, &show_number(Fee::Service, 12)), Some(12));
        for bad in ["S-12", "C-0000012", "S-00000x2", "S--000001", ""] {
            assert_eq!(parse_number(Fee::Service, bad), None, "{bad}");
        }
    }
}
