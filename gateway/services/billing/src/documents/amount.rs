//! Amounts as plain decimals of the major unit, for machines.

use common::money::{Currency, Money};

/// Of millionths of the minor unit, with the digits that it needs.
pub(crate) fn exact(micros: i64, currency: Currency) -> String {
    Money { micros, currency }.decimal()
}

/// Of whole minor units, with the currency's digits.
pub(crate) fn whole(minor: i64, currency: Currency) -> String {
    let scale = 10u64.pow(currency.exponent());
    let sign = if minor < 0 { "-" } else { "" };
    let (units, rest) = (minor.unsigned_abs() / scale, minor.unsigned_abs() % scale);
    match currency.exponent() as usize {
        0 => format!("{sign}{units}"),
        digits => format!("{sign}{units}.{rest:0digits$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_digits_of_their_currency() {
        assert_eq!((whole(-5, Currency::Eur), whole(1_234, Currency::Usd)), ("-0.05".into(), "12.34".into()));
        assert_eq!(whole(i64::MIN, Currency::Jpy), i64::MIN.to_string());
        assert_eq!(exact(-5_433_000, Currency::Jpy), "-5.433");
        assert_eq!(exact(5_000_000, Currency::Eur), "0.05");
    }
}
