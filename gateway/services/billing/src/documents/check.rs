//! Whether a document's sums agree with its lines.

use common::money::{MICROS_PER_MINOR, Money};

use super::{Invoice, InvoiceKind, Statement};
use crate::period::Zone;

/// A document that does not add up: it must not leave the house.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {given}, the document's other fields make it {expected}")]
pub struct Inconsistent {
    pub field: &'static str,
    pub given: i64,
    pub expected: i128,
}

fn agree(field: &'static str, given: i64, expected: i128) -> Result<(), Inconsistent> {
    if i128::from(given) == expected { Ok(()) } else { Err(Inconsistent { field, given, expected }) }
}

impl Invoice {
    /// Net, rounding, tax and total follow from the lines. A credit note is the difference of two invoices, each of
    /// them rounded: its net may be up to a unit off its charges, its tax a unit above that of its net.
    pub fn check(&self) -> Result<(), Inconsistent> {
        let charges: i128 = self.lines.iter().map(|line| i128::from(line.amount_micros)).sum();
        agree("charges_micros", self.charges_micros, charges)?;
        let minor = i128::from(MICROS_PER_MINOR);
        let rounded = Money { micros: self.charges_micros, currency: self.currency }.round_to_minor();
        let net = i128::from(self.net_minor);
        let tax = (net * i128::from(self.tax_basis_points)).div_euclid(10_000);
        let (net_is_near, tax_is_near) = match self.kind {
            InvoiceKind::Invoice => (false, false),
            InvoiceKind::CreditNote { .. } => {
                ((net * minor - charges).abs() < minor, i128::from(self.tax_minor) == tax + 1)
            }
        };
        if !net_is_near {
            agree("net_minor", self.net_minor, rounded.into())?;
        }
        agree("rounding_micros", self.rounding_micros, net * minor - charges)?;
        if !tax_is_near {
            agree("tax_minor", self.tax_minor, tax)?;
        }
        agree("total_minor", self.total_minor, net + i128::from(self.tax_minor))
    }
}

impl Statement {
    /// Earned, balance and what is carried follow from the lines and the payout.
    pub fn check(&self) -> Result<(), Inconsistent> {
        let earned = self.lines.iter().map(|line| i128::from(line.amount_micros)).sum();
        agree("earned_micros", self.earned_micros, earned)?;
        let balance = i128::from(self.opening_micros) + earned;
        agree("balance_micros", self.balance_micros, balance)?;
        let paid = i128::from(self.payout_minor) * i128::from(MICROS_PER_MINOR);
        agree("carried_micros", self.carried_micros, balance - paid)
    }
}

/// Whether a text is a day of the calendar, `YYYY-MM-DD`.
pub fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10 && bytes[4] == b'-' && bytes[7] == b'-' && Zone::TOKYO.parse_local(text).is_ok()
}

#[cfg(test)]
mod tests {
    use common::money::Currency;
    use proptest::prelude::*;

    use super::super::samples;
    use super::*;

    #[test]
    fn sums_that_do_not_follow_are_named() {
        let sound = samples::invoice();
        assert_eq!(sound.check(), Ok(()));
        let wrong = Invoice { tax_minor: sound.tax_minor + 1, ..sound.clone() };
        let error = wrong.check().unwrap_err();
        assert_eq!(error.to_string(), "tax_minor is 22, the document's other fields make it 21");
        for (field, wrong) in [
            ("charges_micros", Invoice { charges_micros: 1, ..sound.clone() }),
            ("net_minor", Invoice { net_minor: 1, ..sound.clone() }),
            ("rounding_micros", Invoice { rounding_micros: 1, ..sound.clone() }),
            ("total_minor", Invoice { total_minor: 1, ..sound }),
        ] {
            assert_eq!(wrong.check().unwrap_err().field, field);
        }
        let sound = samples::statement();
        assert_eq!(sound.check(), Ok(()));
        for (field, wrong) in [
            ("earned_micros", Statement { earned_micros: 1, ..sound.clone() }),
            ("balance_micros", Statement { balance_micros: 1, ..sound.clone() }),
            ("carried_micros", Statement { payout_minor: 1, ..sound }),
        ] {
            assert_eq!(wrong.check().unwrap_err().field, field);
        }
    }

    #[test]
    fn days_are_checked() {
        assert!(is_date("2028-02-29"));
        for bad in ["2026-02-29", "2026-011-1", "2026-1-011", "2026-01-01T00:00", "2026-01", "", "20260-1-01"]
        {
            assert!(!is_date(bad), "{bad}");
        }
    }

    #[test]
    fn documents_are_read_back_as_they_were_written() {
        let credit = samples::credit_note();
        let json = serde_json::to_value(&credit).unwrap();
        assert_eq!(json["kind"]["credit_note"]["of"], "S-0000012");
        assert_eq!(serde_json::from_value::<Invoice>(json).unwrap(), credit);
        let json = serde_json::to_value(samples::invoice()).unwrap();
        assert_eq!((&json["kind"], &json["fee"]), (&"invoice".into(), &"service".into()));
        let statement = samples::statement();
        let json = serde_json::to_string(&statement).unwrap();
        assert_eq!(serde_json::from_str::<Statement>(&json).unwrap(), statement);
    }

    /// Issued over `before` micros, now over `after`.
    fn credited(before: i64, after: i64) -> Invoice {
        let issued = samples::invoice_of(Currency::Jpy, 1000, &[before]);
        let now = samples::invoice_of(Currency::Jpy, 1000, &[after]);
        let mut note = samples::invoice_of(Currency::Jpy, 1000, &[before - after]);
        note.kind = samples::credit_note().kind;
        note.net_minor = issued.net_minor - now.net_minor;
        note.rounding_micros = note.net_minor * MICROS_PER_MINOR - note.charges_micros;
        note.tax_minor = issued.tax_minor - now.tax_minor;
        note.total_minor = note.net_minor + note.tax_minor;
        note
    }

    #[test]
    fn a_credit_note_may_be_off_by_what_two_roundings_make() {
        // 110 yen with 11 of tax less 101 with 10: 9 with 1, where 9 yen alone had none.
        let note = credited(110_000_000, 101_000_000);
        assert_eq!((note.net_minor, note.tax_minor, note.check()), (9, 1, Ok(())));
        assert!(Invoice { kind: InvoiceKind::Invoice, ..note.clone() }.check().is_err());
        let mut wrong = note;
        wrong.tax_minor += 1;
        wrong.total_minor += 1;
        assert_eq!(wrong.check().unwrap_err().field, "tax_minor");
    }

    proptest! {
        #[test]
        fn whole_line_amounts_sum_to_the_net_and_stay_within_a_unit(
            amounts in prop::collection::vec(-9_999_999_999i64..9_999_999_999, 1..12),
        ) {
            let invoice = samples::invoice_of(Currency::Jpy, 1000, &amounts);
            prop_assert_eq!(invoice.check(), Ok(()));
            let whole = invoice.line_amounts_minor();
            prop_assert_eq!(whole.iter().sum::<i64>(), invoice.net_minor);
            for (whole, exact) in whole.iter().zip(&amounts) {
                prop_assert!((whole * MICROS_PER_MINOR - exact).abs() <= MICROS_PER_MINOR);
            }
        }

        #[test]
        fn every_difference_of_two_invoices_is_a_credit_note(
            before in 0i64..9_999_999_999, share in 0i64..=1000, cut in 0i64..=1000,
        ) {
            let mut note = credited(before, before / 1000 * share);
            prop_assert_eq!(note.check(), Ok(()));
            // The same in two lines: they sum to the net all the same.
            let first = note.lines[0].amount_micros / 1000 * cut;
            let mut second = note.lines[0].clone();
            second.amount_micros -= first;
            note.lines[0].amount_micros = first;
            note.lines.push(second);
            prop_assert_eq!(note.line_amounts_minor().iter().sum::<i64>(), note.net_minor);
        }
    }
}
