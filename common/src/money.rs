//! Money: whole millionths of a currency's minor unit, with the currency. Never a float.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Currencies that tariffs may be in: of ISO 4217, and the in-system one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum Currency {
    Jpy,
    Eur,
    Usd,
    /// Wallet credit: money of this system alone. No bank and no tax office takes it.
    Xdz,
}

impl Currency {
    pub const ALL: [Self; 4] = [Self::Jpy, Self::Eur, Self::Usd, Self::Xdz];

    /// Decimal digits of the minor unit (ISO 4217 exponent).
    pub fn exponent(self) -> u32 {
        match self {
            Self::Jpy | Self::Xdz => 0,
            Self::Eur | Self::Usd => 2,
        }
    }

    pub fn code(self) -> &'static str {
        match self {
            Self::Jpy => "JPY",
            Self::Eur => "EUR",
            Self::Usd => "USD",
            Self::Xdz => "XDZ",
        }
    }
}

impl std::str::FromStr for Currency {
    type Err = UnknownCurrency;
    fn from_str(text: &str) -> Result<Self, UnknownCurrency> {
        Self::ALL.into_iter().find(|c| c.code() == text).ok_or_else(|| UnknownCurrency(text.to_owned()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("currency {0:?} is not known: use JPY, EUR, USD or XDZ")]
pub struct UnknownCurrency(pub String);

/// Millionths of the minor unit: 1 yen = 1,000,000; 1 euro = 100,000,000.
pub const MICROS_PER_MINOR: i64 = 1_000_000;

/// An amount in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Money {
    pub micros: i64,
    pub currency: Currency,
}

/// An amount beyond what 64 bits hold, or a sum of two currencies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    #[error("the amount does not fit 64 bits of millionths")]
    Overflow,
    #[error("{} and {} cannot be added", .0.code(), .1.code())]
    Currencies(Currency, Currency),
}

impl Money {
    pub fn zero(currency: Currency) -> Self {
        Self { micros: 0, currency }
    }

    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::Currencies(self.currency, other.currency));
        }
        let micros = self.micros.checked_add(other.micros).ok_or(MoneyError::Overflow)?;
        Ok(Self { micros, ..self })
    }

    /// Whole minor units, half up (away from zero at the half).
    pub fn round_to_minor(self) -> i64 {
        let half = MICROS_PER_MINOR / 2;
        let quotient = self.micros / MICROS_PER_MINOR;
        let rest = self.micros % MICROS_PER_MINOR;
        if rest >= half {
            quotient + 1
        } else if rest <= -half {
            quotient - 1
        } else {
            quotient
        }
    }

    /// A plain decimal number of the major unit: exact, with at least the currency's own digits.
    pub fn decimal(self) -> String {
        let scale = i128::from(MICROS_PER_MINOR) * 10i128.pow(self.currency.exponent());
        let digits = 6 + self.currency.exponent() as usize;
        let magnitude = i128::from(self.micros).abs();
        let sign = if self.micros < 0 { "-" } else { "" };
        let fraction = format!("{:0digits$}", magnitude % scale);
        let keep = fraction.trim_end_matches('0').len().max(self.currency.exponent() as usize);
        let point = if keep > 0 { "." } else { "" };
        format!("{sign}{}{point}{}", magnitude / scale, &fraction[..keep])
    }
}

/// Splits `total` by weights with the largest remainder method: shares are whole, each within one unit of
/// exact, and they sum to `total`. Ties go to the earlier rule. Weights must not all be zero.
pub fn split_largest_remainder(total: i64, weights: &[u32]) -> Vec<i64> {
    let weights: Vec<i64> = weights.iter().map(|w| i64::from(*w)).collect();
    split_by_weight(total, &weights)
}

/// The same by weights that are amounts themselves. Negative ones count as 0.
pub fn split_by_weight(total: i64, weights: &[i64]) -> Vec<i64> {
    let weights: Vec<i128> = weights.iter().map(|w| i128::from(*w).max(0)).collect();
    let sum: i128 = weights.iter().sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let sign = if total < 0 { -1 } else { 1 };
    let magnitude = i128::from(total).abs();
    let mut shares: Vec<i128> = weights.iter().map(|w| magnitude * w / sum).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(magnitude * weights[i] % sum));
    let mut rest = magnitude - shares.iter().sum::<i128>();
    for index in order {
        if rest == 0 {
            break;
        }
        shares[index] += 1;
        rest -= 1;
    }
    // Each share is at most |total|, which came from an i64.
    shares.into_iter().map(|s| (sign * s) as i64).collect()
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.decimal(), self.currency.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn money_shows_its_currency_and_only_needed_digits() {
        let yen = |micros| Money { micros, currency: Currency::Jpy };
        assert_eq!(yen(1_500_000).to_string(), "1.5 JPY");
        assert_eq!(yen(-2_000_000).to_string(), "-2 JPY");
        assert_eq!(Money { micros: 123_000_000, currency: Currency::Eur }.to_string(), "1.23 EUR");
        assert_eq!((yen(499_999).round_to_minor(), yen(500_000).round_to_minor()), (0, 1));
        assert_eq!(yen(-500_000).round_to_minor(), -1);
        assert_eq!(Money { micros: 7_000_000, currency: Currency::Xdz }.to_string(), "7 XDZ");
        assert!(yen(1).checked_add(Money::zero(Currency::Eur)).is_err());
        assert_eq!(yen(i64::MAX).checked_add(yen(1)), Err(MoneyError::Overflow));
    }

    #[test]
    fn currencies_are_read_by_their_codes() {
        for currency in Currency::ALL {
            assert_eq!(currency.code().parse(), Ok(currency));
            assert_eq!(serde_json::to_value(currency).unwrap(), currency.code());
        }
        let unknown = "GBP".parse::<Currency>().unwrap_err();
        assert_eq!(unknown.to_string(), "currency \"GBP\" is not known: use JPY, EUR, USD or XDZ");
    }

    proptest! {
        #[test]
        fn shares_sum_exactly_and_stay_within_one_unit(total in any::<i64>(), weights in prop::collection::vec(0u32..10_001, 1..8)) {
            prop_assume!(total != i64::MIN && weights.iter().any(|w| *w > 0));
            let shares = split_largest_remainder(total, &weights);
            prop_assert_eq!(shares.iter().map(|s| i128::from(*s)).sum::<i128>(), i128::from(total));
            let sum: i128 = weights.iter().map(|w| i128::from(*w)).sum();
            for (share, weight) in shares.iter().zip(&weights) {
                let exact_times_sum = i128::from(total) * i128::from(*weight);
                prop_assert!((i128::from(*share) * sum - exact_times_sum).abs() < sum);
            }
        }
    }
}
