//! From a month's charges to an invoice: discounts, whole minor units, tax. Pure.
//!
//! The net is the exact sum rounded half up to the minor unit, the difference goes to the rounding account; the
//! tax is the floor of net x rate, computed once per invoice. A line sums deliveries of one class and path of
//! one month. A credit note is the invoice as issued less the invoice as it would be now, less earlier credit notes:
//! so repeated corrections never drift.

use std::collections::BTreeMap;

use common::id::ClientId;
use common::money::{Currency, MICROS_PER_MINOR, Money};
use common::time::UnixMillis;

use crate::config::Fee;
use crate::documents::{Invoice, InvoiceKind, InvoiceLine, LineKind, PartyView};
use crate::period::Period;
use crate::rating::RateBook;
use crate::sql::usage::UsageLine;

/// What is taken off the charges of one month under one tariff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Discount {
    pub usage: Period,
    pub tariff: i64,
    pub micros: i64,
}

/// What a client's charges come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bill {
    pub lines: Vec<InvoiceLine>,
    pub discounts: Vec<Discount>,
    /// The lines' exact sum, discounts included.
    pub charges_micros: i64,
    pub net_minor: i64,
    pub tax_minor: i64,
}

impl Bill {
    /// `None` if the sums do not fit 64 bits. `closed`: months up to it were closed before.
    pub fn of(
        rates: &RateBook,
        charges: &[UsageLine],
        closed: Option<Period>,
        tax_basis_points: u32,
    ) -> Option<Self> {
        let is_late = |usage: Period| closed.is_some_and(|closed| usage <= closed);
        let mut shown: BTreeMap<(Period, &str, &str), InvoiceLine> = BTreeMap::new();
        let mut groups: BTreeMap<(Period, i64), (i64, i64)> = BTreeMap::new();
        for charge in charges.iter().filter(|charge| charge.deliveries != 0) {
            let UsageLine { usage, class, path, tariff, deliveries, bytes_sent, micros } = charge;
            let line = shown.entry((*usage, class, path)).or_insert_with(|| InvoiceLine {
                usage_period: usage.to_string(),
                late: is_late(*usage),
                kind: LineKind::Usage,
                class: Some(class.clone()),
                path: Some(path.clone()),
                deliveries: 0,
                bytes_sent: 0,
                amount_micros: 0,
            });
            line.deliveries += deliveries;
            line.bytes_sent = line.bytes_sent.checked_add(*bytes_sent)?;
            line.amount_micros = line.amount_micros.checked_add(*micros)?;
            let group = groups.entry((*usage, *tariff)).or_default();
            group.0 += deliveries;
            group.1 = group.1.checked_add(*micros)?;
        }
        let discount = |((usage, tariff), (deliveries, micros)): ((Period, i64), (i64, i64))| {
            let discounts = &rates.tariff(tariff)?.value.discounts;
            let micros = discounts.of(u64::try_from(deliveries).unwrap_or(0), micros);
            (micros != 0).then_some(Discount { usage, tariff, micros })
        };
        let discounts: Vec<Discount> = groups.into_iter().filter_map(discount).collect();
        let mut lines: Vec<InvoiceLine> = shown.into_values().collect();
        let mut off: BTreeMap<Period, i64> = BTreeMap::new();
        for discount in &discounts {
            *off.entry(discount.usage).or_default() += discount.micros;
        }
        lines.extend(off.into_iter().map(|(usage, micros)| InvoiceLine {
            usage_period: usage.to_string(),
            late: is_late(usage),
            kind: LineKind::Discount,
            class: None,
            path: None,
            deliveries: 0,
            bytes_sent: 0,
            amount_micros: -micros,
        }));
        let charges = lines.iter().try_fold(0i64, |sum, line| sum.checked_add(line.amount_micros))?;
        // The currency does not matter to rounding.
        let net = Money { micros: charges, currency: Currency::Jpy }.round_to_minor();
        let tax = (i128::from(net) * i128::from(tax_basis_points)).div_euclid(10_000);
        let bill = Self {
            lines,
            discounts,
            charges_micros: charges,
            net_minor: net,
            tax_minor: i64::try_from(tax).ok()?,
        };
        // The journal is in micros.
        net.checked_add(bill.tax_minor)?.checked_mul(MICROS_PER_MINOR)?;
        Some(bill)
    }
}

/// What invoices of one month have in common.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub fee: Fee,
    pub period: Period,
    pub issuer: PartyView,
    pub tax_basis_points: u32,
    pub payment_days: u32,
    pub zone: crate::period::Zone,
}

impl Header {
    /// A document of these sums; a draft without `issued` (number and time).
    pub fn document(
        &self,
        kind: InvoiceKind,
        client: &ClientId,
        customer: PartyView,
        currency: Currency,
        bill: Bill,
        issued: Option<(String, UnixMillis)>,
    ) -> Invoice {
        let date = |days| issued.as_ref().map(|(_, at)| self.zone.date(*at, days));
        let (issue_date, due_date) = (date(0), date(self.payment_days));
        let (period_begin, period_end) = self.period.days();
        Invoice {
            number: issued.as_ref().map(|(number, _)| number.clone()),
            kind,
            fee: self.fee.to_string(),
            client: client.clone(),
            period: self.period.to_string(),
            issuer: self.issuer.clone(),
            customer,
            currency,
            issued_ms: issued.as_ref().map(|(_, at)| at.0),
            issue_date,
            due_date,
            period_begin,
            period_end,
            lines: bill.lines,
            charges_micros: bill.charges_micros,
            net_minor: bill.net_minor,
            rounding_micros: bill.net_minor * MICROS_PER_MINOR - bill.charges_micros,
            tax_basis_points: self.tax_basis_points,
            tax_minor: bill.tax_minor,
            total_minor: bill.net_minor + bill.tax_minor,
        }
    }
}

/// Charges less what was taken back of them.
pub(crate) fn less(charges: &[UsageLine], corrected: &[UsageLine]) -> Vec<UsageLine> {
    let mut left = charges.to_vec();
    for taken in corrected {
        let same = |line: &&mut UsageLine| {
            (line.usage, line.tariff) == (taken.usage, taken.tariff)
                && (&line.class, &line.path) == (&taken.class, &taken.path)
        };
        if let Some(line) = left.iter_mut().find(same) {
            line.deliveries -= taken.deliveries;
            line.bytes_sent -= taken.bytes_sent;
            line.micros -= taken.micros;
        }
    }
    left
}

/// `S-0000001`: numbers of a fee's invoices and credit notes count from 1 without gaps.
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

    fn line(micros: i64) -> UsageLine {
        UsageLine {
            usage: "2026-10".parse().unwrap(),
            class: "purchase".into(),
            path: "hit".into(),
            tariff: 1,
            deliveries: 1,
            bytes_sent: 1,
            micros,
        }
    }

    fn bill(charges: &[UsageLine]) -> Bill {
        let rates = RateBook { fee: Fee::Service, tariffs: Vec::new(), splits: Vec::new() };
        Bill::of(&rates, charges, None, 1000).unwrap()
    }

    #[test]
    fn an_invoice_by_hand() {
        // 124.691 + 90.809 = 215.5 yen -> 216 net, 21.6 -> 21 tax; half a yen is rounding
        let made = bill(&[line(124_691_000), line(90_809_000)]);
        assert_eq!((made.charges_micros, made.net_minor, made.tax_minor), (215_500_000, 216, 21));
        assert_eq!((made.lines.len(), made.lines[0].deliveries), (1, 2));
        assert_eq!(bill(&[line(400_000)]).net_minor, 0);
        assert_eq!(parse_number(Fee::Service, &show_number(Fee::Service, 12)), Some(12));
        for bad in ["S-12", "C-0000012", "S-00000x2", "S--000001", ""] {
            assert_eq!(parse_number(Fee::Service, bad), None, "{bad}");
        }
    }

    #[test]
    fn what_was_taken_back_leaves_its_line() {
        let charges =
            [UsageLine { deliveries: 3, micros: 30, ..line(0) }, UsageLine { tariff: 2, ..line(5) }];
        let left = less(&charges, &[UsageLine { micros: 10, ..line(0) }]);
        assert_eq!((left[0].deliveries, left[0].micros, left[1].micros), (2, 20, 5));
    }
}
