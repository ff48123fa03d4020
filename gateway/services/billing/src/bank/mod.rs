//! Money that moves through banks: accounts, orders to pay or to collect, and the files that banks take.
//!
//! [`zengin`] writes Japan's files (transfers, account debits) and reads what came of debits; [`sepa`] writes the
//! euro area's. Both take accounts and orders, check every bound before they write a byte, and read no clock: the
//! same orders give the same file.

mod account;
pub mod kana;
mod latin;
pub mod sepa;
pub mod zengin;

use std::collections::HashSet;

use common::money::Currency;

pub use account::{AccountKind, BankAccount, InvalidAccount, Mandate, SepaAccount, ZenginAccount};
pub use kana::Unwritable;
pub use latin::NotLatin;

use crate::documents::is_date;

/// One payment to make to an account, or to collect from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order<A> {
    /// Number of the statement or invoice; what came of the order is found by it.
    pub reference: String,
    pub account: A,
    pub currency: Currency,
    /// Whole minor units, more than 0.
    pub amount_minor: i64,
}

/// Why orders cannot become a bank file. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BankFileError {
    #[error("there is nothing to pay or to collect")]
    Empty,
    #[error("{count} orders are too many for one file, it holds {max}: make several")]
    Count { count: usize, max: usize },
    #[error("the orders sum to {total}, a file holds at most {max}: make several")]
    Total { total: i128, max: i64 },
    #[error("{what} {given:?} is not a day as YYYY-MM-DD")]
    Date { what: &'static str, given: String },
    #[error("{what} {given:?} is not valid: {rule}")]
    Identifier { what: &'static str, given: String, rule: &'static str },
    #[error("the ordering party's account: {0}")]
    Originator(InvalidAccount),
    #[error("the ordering party's account has no {field}: its bank gives one, store it with the party")]
    OriginatorLacks { field: &'static str },
    #[error("order {reference}: {source}")]
    Account { reference: String, source: InvalidAccount },
    #[error("order {reference}: the account has no mandate, without one nothing can be collected from it")]
    NoMandate { reference: String },
    #[error("order {reference}: a savings account cannot be debited")]
    Savings { reference: String },
    #[error("order {reference} is in {}, the file takes {} alone", .given.code(), .takes.code())]
    Currency { reference: String, given: Currency, takes: Currency },
    #[error("order {reference}: the amount {given} is not between 1 and {max} minor units")]
    Amount { reference: String, given: i64, max: i64 },
    #[error("two orders have the reference {0}")]
    Twice(String),
}

/// What a kind of file takes.
struct Bounds {
    currency: Currency,
    amount_max: i64,
    total_max: i64,
    count_max: usize,
}

/// The orders' sum, if all keep the bounds and no reference comes twice.
fn checked_total<A>(orders: &[Order<A>], bounds: &Bounds) -> Result<i64, BankFileError> {
    if orders.is_empty() {
        return Err(BankFileError::Empty);
    }
    if orders.len() > bounds.count_max {
        return Err(BankFileError::Count { count: orders.len(), max: bounds.count_max });
    }
    let mut references = HashSet::new();
    for order in orders {
        let reference = || order.reference.clone();
        if order.currency != bounds.currency {
            let (given, takes) = (order.currency, bounds.currency);
            return Err(BankFileError::Currency { reference: reference(), given, takes });
        }
        if !(1..=bounds.amount_max).contains(&order.amount_minor) {
            let (given, max) = (order.amount_minor, bounds.amount_max);
            return Err(BankFileError::Amount { reference: reference(), given, max });
        }
        if !references.insert(&order.reference) {
            return Err(BankFileError::Twice(reference()));
        }
    }
    let total: i128 = orders.iter().map(|order| i128::from(order.amount_minor)).sum();
    match i64::try_from(total) {
        Ok(total) if total <= bounds.total_max => Ok(total),
        _ => Err(BankFileError::Total { total, max: bounds.total_max }),
    }
}

fn checked_date(what: &'static str, given: &str) -> Result<(), BankFileError> {
    if is_date(given) { Ok(()) } else { Err(BankFileError::Date { what, given: given.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds(amount_max: i64, total_max: i64, count_max: usize) -> Bounds {
        Bounds { currency: Currency::Jpy, amount_max, total_max, count_max }
    }

    fn orders(amounts: &[i64]) -> Vec<Order<()>> {
        let order = |(index, amount): (usize, &i64)| Order {
            reference: format!("S-{index}"),
            account: (),
            currency: Currency::Jpy,
            amount_minor: *amount,
        };
        amounts.iter().enumerate().map(order).collect()
    }

    #[test]
    fn orders_beyond_a_bound_are_named() {
        let shown = |orders: &[Order<()>]| checked_total(orders, &bounds(9, 12, 2)).unwrap_err().to_string();
        assert_eq!(checked_total(&orders(&[9, 3]), &bounds(9, 12, 2)), Ok(12));
        assert_eq!(shown(&[]), "there is nothing to pay or to collect");
        assert_eq!(
            shown(&orders(&[1, 1, 1])),
            "3 orders are too many for one file, it holds 2: make several"
        );
        assert_eq!(shown(&orders(&[9, 4])), "the orders sum to 13, a file holds at most 12: make several");
        assert_eq!(shown(&orders(&[1, 10])), "order S-1: the amount 10 is not between 1 and 9 minor units");
        assert!(shown(&orders(&[0])).starts_with("order S-0: the amount 0"));
        let mut twice = orders(&[1, 1]);
        twice[1].reference = "S-0".into();
        assert_eq!(shown(&twice), "two orders have the reference S-0");
        twice[1].currency = Currency::Xdz;
        assert_eq!(shown(&twice), "order S-0 is in XDZ, the file takes JPY alone");
    }

    proptest! {
        #[test]
        fn a_total_is_the_sum_or_an_error(amounts in prop::collection::vec(any::<i64>(), 1..6)) {
            let sum: i128 = amounts.iter().map(|a| i128::from(*a)).sum();
            match checked_total(&orders(&amounts), &bounds(i64::MAX, i64::MAX, 9)) {
                Ok(total) => prop_assert_eq!(i128::from(total), sum),
                Err(_) => prop_assert!(amounts.iter().any(|a| *a < 1) || sum > i128::from(i64::MAX)),
            }
        }
    }
}
