//! The checked form of terms: prices as integers, times as instants, ratios that add up.

use std::collections::HashMap;

use common::id::{BucketName, ClientId};
use common::money::{Currency, MICROS_PER_MINOR, UnknownCurrency};
use common::name::ContentName;
use common::time::UnixMillis;
use serde::Serialize;

use super::{
    ContentSplit, ContentTariff, HitRatios, OriginRatios, PartialPolicy, Party, Payout, PayoutBasis,
    PeerRatios, ServiceSplit, ServiceTariff, SurchargeRatios, Tier,
};
use crate::bank::InvalidAccount;
use crate::config::Fee;
use crate::period::{InvalidTime, Zone};
use crate::rating::Part;

/// The greatest price and the greatest charge, in millionths of the minor unit (a billion yen). Sums of
/// thousands of such charges still fit 64 bits.
pub const AMOUNT_MICROS_MAX: i64 = 1_000_000_000_000_000;
const BASIS_POINTS: u32 = 10_000;

/// Terms that break a rule: says which, the bound and the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTerms {
    #[error(transparent)]
    Time(#[from] InvalidTime),
    #[error(transparent)]
    Currency(#[from] UnknownCurrency),
    #[error("bank: {0}")]
    Bank(#[from] InvalidAccount),
    #[error("{field} {given:?} is not a price: digits with at most {digits} after a point, at most {max}")]
    Price { field: &'static str, given: String, digits: u32, max: String },
    #[error("the ratios of {line} sum to {sum} basis points, they must sum to 10000")]
    NotWhole { line: &'static str, sum: u64 },
    #[error(
        "the commissions of {line} with the surrogate's sum to {sum} basis points, they must stay below 10000"
    )]
    NothingLeft { line: &'static str, sum: u64 },
    #[error("a price needs exactly one of content, bucket and provider")]
    PriceTarget,
    #[error("two prices are for {0}")]
    PriceTwice(String),
    #[error("tiers must rise in from_deliveries, with discount_basis_points of at most 10000")]
    Tiers,
    #[error("payment_days {0} is more than 366")]
    PaymentDays(u32),
    #[error("country {0:?} is not two capital letters of ISO 3166")]
    Country(String),
    #[error("tax_basis_points {0} is more than 10000")]
    Tax(u32),
    #[error(
        "party {0:?} is not valid: KIND:NAME with kind site, origin, mobile, client, provider or billing, or search"
    )]
    Party(String),
    #[error("name must have 1 to 200 characters")]
    PartyName,
    #[error("the document is not of its form: {0}")]
    Form(String),
}

/// Purchase and reference price, in millionths of the minor unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsePrice {
    pub purchase: i64,
    pub reference: i64,
}

/// Checked prices, in millionths of the minor unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prices {
    Service {
        per_delivery: i64,
        per_megabyte: i64,
        surcharge: i64,
    },
    Content {
        default: UsePrice,
        contents: HashMap<ContentName, UsePrice>,
        buckets: HashMap<BucketName, UsePrice>,
        providers: HashMap<ClientId, UsePrice>,
    },
}

/// A checked version of a tariff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tariff {
    pub valid_from: UnixMillis,
    pub zone: Zone,
    pub currency: Currency,
    pub partial: PartialPolicy,
    pub tax_basis_points: u32,
    pub discounts: Discounts,
    /// Invoices are due so many days after their issue.
    pub payment_days: u32,
    /// In whole minor units.
    pub payout_minimum: i64,
    pub payout_basis: PayoutBasis,
    pub prices: Prices,
}

/// What is taken off a client's charges of a month.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discounts {
    free_deliveries: u64,
    tiers: Vec<Tier>,
}

impl Discounts {
    fn new(free_deliveries: u64, tiers: &[Tier]) -> Result<Self, InvalidTerms> {
        let rising = tiers.windows(2).all(|pair| pair[0].from_deliveries < pair[1].from_deliveries);
        let bounded = tiers.iter().all(|tier| tier.discount_basis_points <= BASIS_POINTS);
        if !rising || !bounded {
            return Err(InvalidTerms::Tiers);
        }
        Ok(Self { free_deliveries, tiers: tiers.to_vec() })
    }

    /// Millionths off charges of `micros` for `deliveries`, rounded down: every delivery costs the average; the free
    /// ones cost nothing, those beyond a tier's begin so much less.
    pub fn of(&self, deliveries: u64, micros: i64) -> i64 {
        if deliveries == 0 || micros <= 0 {
            return 0;
        }
        let mut begin = self.free_deliveries.min(deliveries);
        let mut weighted = u128::from(begin) * u128::from(BASIS_POINTS);
        for (n, tier) in self.tiers.iter().enumerate() {
            let end = self.tiers.get(n + 1).map_or(deliveries, |next| next.from_deliveries.min(deliveries));
            begin = begin.max(tier.from_deliveries);
            let count = end.saturating_sub(begin);
            weighted += u128::from(count) * u128::from(tier.discount_basis_points);
            begin = begin.max(end);
        }
        // At most the charges themselves. Counts of deliveries and charges are both below 2^63.
        let (whole, parts) = (u128::from(deliveries) * u128::from(BASIS_POINTS), weighted);
        let off = u128::from(micros.unsigned_abs()).saturating_mul(parts.min(whole)) / whole;
        i64::try_from(off).unwrap_or(micros)
    }
}

/// A checked version of a split: for each path who gets how much, in the order that breaks ties. For the
/// content fee the provider comes last with what is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    pub valid_from: UnixMillis,
    pub hit: Vec<(Part, u32)>,
    pub peer: Vec<(Part, u32)>,
    pub origin: Vec<(Part, u32)>,
    pub away: Away,
}

/// What changes when a client is served away from home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Away {
    /// The service fee has a surcharge of its own, shared by these ratios.
    Surcharge(SurchargeRatios),
    /// The surrogate gets this commission of the content fee.
    Commission(u32),
}

impl Tariff {
    /// Checks a document of `fee`, as JSON.
    pub fn from_json(fee: Fee, document: &serde_json::Value) -> Result<Self, InvalidTerms> {
        match fee {
            Fee::Service => Self::service(&form(document)?),
            Fee::Content => Self::content(&form(document)?),
        }
    }

    fn service(doc: &ServiceTariff) -> Result<Self, InvalidTerms> {
        let currency: Currency = doc.currency.parse()?;
        let prices = Prices::Service {
            per_delivery: price("per_delivery", &doc.per_delivery, currency)?,
            per_megabyte: price("per_megabyte", &doc.per_megabyte, currency)?,
            surcharge: price("surrogate_surcharge", &doc.surrogate_surcharge, currency)?,
        };
        let discounts = Discounts::new(doc.free_deliveries, &doc.tiers)?;
        let common = Common {
            valid_from: &doc.valid_from,
            zone: &doc.zone,
            currency,
            partial: doc.partial,
            tax_basis_points: doc.tax_basis_points,
            payment_days: doc.payment_days,
            payout: &doc.payout,
        };
        common.tariff(discounts, prices)
    }

    fn content(doc: &ContentTariff) -> Result<Self, InvalidTerms> {
        let currency: Currency = doc.currency.parse()?;
        let (mut contents, mut buckets, mut providers) = (HashMap::new(), HashMap::new(), HashMap::new());
        for specific in &doc.prices {
            let price = use_price(&specific.purchase, &specific.reference, currency)?;
            let (earlier, target) = match (&specific.content, &specific.bucket, &specific.provider) {
                (Some(name), None, None) => (contents.insert(name.clone(), price), name.to_string()),
                (None, Some(name), None) => (buckets.insert(name.clone(), price), name.to_string()),
                (None, None, Some(name)) => (providers.insert(name.clone(), price), name.to_string()),
                _ => return Err(InvalidTerms::PriceTarget),
            };
            if earlier.is_some() {
                return Err(InvalidTerms::PriceTwice(target));
            }
        }
        let default = use_price(&doc.purchase, &doc.reference, currency)?;
        let prices = Prices::Content { default, contents, buckets, providers };
        let common = Common {
            valid_from: &doc.valid_from,
            zone: &doc.zone,
            currency,
            partial: doc.partial,
            tax_basis_points: doc.tax_basis_points,
            payment_days: doc.payment_days,
            payout: &doc.payout,
        };
        common.tariff(Discounts::default(), prices)
    }
}

/// What tariffs of both fees say.
struct Common<'a> {
    valid_from: &'a str,
    zone: &'a str,
    currency: Currency,
    partial: PartialPolicy,
    tax_basis_points: u32,
    payment_days: u32,
    payout: &'a Payout,
}

impl Common<'_> {
    fn tariff(self, discounts: Discounts, prices: Prices) -> Result<Tariff, InvalidTerms> {
        let Self { currency, partial, tax_basis_points, payment_days, .. } = self;
        if tax_basis_points > BASIS_POINTS {
            return Err(InvalidTerms::Tax(tax_basis_points));
        }
        if payment_days > 366 {
            return Err(InvalidTerms::PaymentDays(payment_days));
        }
        let zone: Zone = self.zone.parse()?;
        let minimum = price("payout.minimum", &self.payout.minimum, currency)?;
        Ok(Tariff {
            valid_from: zone.parse_local(self.valid_from)?,
            zone,
            currency,
            partial,
            tax_basis_points,
            discounts,
            payment_days,
            // A part of a minor unit cannot be paid.
            payout_minimum: minimum.div_euclid(MICROS_PER_MINOR) + i64::from(minimum % MICROS_PER_MINOR != 0),
            payout_basis: self.payout.basis,
            prices,
        })
    }
}

impl Split {
    /// Checks a document of `fee`, as JSON.
    pub fn from_json(fee: Fee, document: &serde_json::Value) -> Result<Self, InvalidTerms> {
        match fee {
            Fee::Service => Self::service(&form(document)?),
            Fee::Content => Self::content(&form(document)?),
        }
    }

    fn service(doc: &ServiceSplit) -> Result<Self, InvalidTerms> {
        let SurchargeRatios { surrogate, mobile_access, billing } = doc.surcharge;
        let surcharge =
            [(Part::Surrogate, surrogate), (Part::MobileAccess, mobile_access), (Part::Billing, billing)];
        let (hit, peer, origin) = (hit(doc.hit), peer(doc.peer), origin(doc.origin));
        for (line, ratios) in
            [("hit", &hit[..]), ("peer", &peer[..]), ("origin", &origin[..]), ("surcharge", &surcharge[..])]
        {
            let sum = sum(ratios);
            if sum != u64::from(BASIS_POINTS) {
                return Err(InvalidTerms::NotWhole { line, sum });
            }
        }
        let valid_from = doc.zone.parse::<Zone>()?.parse_local(&doc.valid_from)?;
        Ok(Self { valid_from, hit, peer, origin, away: Away::Surcharge(doc.surcharge) })
    }

    fn content(doc: &ContentSplit) -> Result<Self, InvalidTerms> {
        let (hit, peer, origin) = (hit(doc.hit), peer(doc.peer), origin(doc.origin));
        for (line, ratios) in [("hit", &hit), ("peer", &peer), ("origin", &origin)] {
            let sum = sum(ratios) + u64::from(doc.surrogate);
            if sum >= u64::from(BASIS_POINTS) {
                return Err(InvalidTerms::NothingLeft { line, sum });
            }
        }
        let valid_from = doc.zone.parse::<Zone>()?.parse_local(&doc.valid_from)?;
        Ok(Self { valid_from, hit, peer, origin, away: Away::Commission(doc.surrogate) })
    }
}

impl Party {
    /// Checks a document; answers with it and the time it holds from.
    pub fn from_json(document: &serde_json::Value) -> Result<(Self, UnixMillis), InvalidTerms> {
        let party: Self = form(document)?;
        let valid = match party.party.split_once(':') {
            None => party.party == "search",
            Some(("billing", name)) => name == "service" || name == "content",
            Some(("site" | "origin" | "mobile" | "client" | "provider", name)) => ClientId::new(name).is_ok(),
            Some(_) => false,
        };
        if !valid {
            return Err(InvalidTerms::Party(party.party));
        }
        if party.name.is_empty() || party.name.chars().count() > 200 {
            return Err(InvalidTerms::PartyName);
        }
        if let Some(country) = &party.country
            && !(country.len() == 2 && country.bytes().all(|b| b.is_ascii_uppercase()))
        {
            return Err(InvalidTerms::Country(country.chars().take(40).collect()));
        }
        if let Some(bank) = &party.bank {
            bank.check()?;
        }
        let valid_from = party.zone.parse::<Zone>()?.parse_local(&party.valid_from)?;
        Ok((party, valid_from))
    }
}

/// The document with its defaults filled in, as it is stored: equal terms give equal text.
pub(crate) fn canonical_tariff(fee: Fee, document: &serde_json::Value) -> Result<String, InvalidTerms> {
    match fee {
        Fee::Service => canonical::<ServiceTariff>(document),
        Fee::Content => canonical::<ContentTariff>(document),
    }
}

pub(crate) fn canonical_split(fee: Fee, document: &serde_json::Value) -> Result<String, InvalidTerms> {
    match fee {
        Fee::Service => canonical::<ServiceSplit>(document),
        Fee::Content => canonical::<ContentSplit>(document),
    }
}

pub(crate) fn canonical<T>(document: &serde_json::Value) -> Result<String, InvalidTerms>
where
    T: serde::de::DeserializeOwned + Serialize,
{
    serde_json::to_string(&form::<T>(document)?).map_err(|error| InvalidTerms::Form(error.to_string()))
}

fn form<T: serde::de::DeserializeOwned>(document: &serde_json::Value) -> Result<T, InvalidTerms> {
    T::deserialize(document).map_err(|error| InvalidTerms::Form(error.to_string()))
}

fn hit(ratios: HitRatios) -> Vec<(Part, u32)> {
    vec![(Part::Home, ratios.home), (Part::Billing, ratios.billing)]
}

fn peer(ratios: PeerRatios) -> Vec<(Part, u32)> {
    let PeerRatios { home, source, search, billing } = ratios;
    vec![(Part::Home, home), (Part::Source, source), (Part::Search, search), (Part::Billing, billing)]
}

fn origin(ratios: OriginRatios) -> Vec<(Part, u32)> {
    let OriginRatios { home, origin, search, billing } = ratios;
    vec![(Part::Home, home), (Part::Origin, origin), (Part::Search, search), (Part::Billing, billing)]
}

fn sum(ratios: &[(Part, u32)]) -> u64 {
    ratios.iter().map(|(_, ratio)| u64::from(*ratio)).sum()
}

fn use_price(purchase: &str, reference: &str, currency: Currency) -> Result<UsePrice, InvalidTerms> {
    let purchase = price("purchase", purchase, currency)?;
    Ok(UsePrice { purchase, reference: price("reference", reference, currency)? })
}

/// Reads a decimal text in the major unit as millionths of the minor unit, exactly.
fn price(field: &'static str, text: &str, currency: Currency) -> Result<i64, InvalidTerms> {
    let digits = 6 + currency.exponent();
    let scale = 10i128.pow(digits);
    let invalid = || InvalidTerms::Price {
        field,
        given: text.chars().take(40).collect(),
        digits,
        max: (i128::from(AMOUNT_MICROS_MAX) / scale).to_string(),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |t: &str| !t.is_empty() && t.len() <= 20 && t.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > digits as usize {
        return Err(invalid());
    }
    let number = |t: &str| t.parse::<i128>().map_err(|_| invalid());
    let micros = number(whole)? * scale + number(&format!("{fraction:0<width$}", width = digits as usize))?;
    i64::try_from(micros).ok().filter(|m| *m <= AMOUNT_MICROS_MAX).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tariff::{Terms, demo_tariffs};

    fn json<T: Serialize>(document: &T) -> serde_json::Value {
        serde_json::to_value(document).unwrap()
    }

    #[test]
    fn prices_are_read_exactly_or_refused() {
        let yen = |text| price("per_delivery", text, Currency::Jpy);
        assert_eq!(yen("0.10"), Ok(100_000));
        assert_eq!(yen("12"), Ok(12_000_000));
        assert_eq!(yen("0.000001"), Ok(1));
        assert_eq!(price("purchase", "0.01", Currency::Eur), Ok(1_000_000), "a cent is one minor unit");
        for bad in ["0.0000001", "-1", "1e3", "", ".", "1.", "1000000001", "99999999999999999999", "１"] {
            assert!(yen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_demonstration_s_terms_and_the_documented_file_are_valid() {
        let source = include_str!("mod.rs");
        let lines = source.lines().skip_while(|l| *l != "//! ```toml").skip(1);
        let text: Vec<&str> =
            lines.take_while(|l| *l != "//! ```").map(|l| l.trim_start_matches("//!")).collect();
        let documented: Terms = toml::from_str(&text.join("\n")).unwrap();
        assert_eq!((documented.content.tariffs[0].prices.len(), documented.parties.len()), (1, 1));
        for terms in [documented, demo_tariffs()] {
            assert!(Tariff::from_json(Fee::Service, &json(&terms.service.tariffs[0])).is_ok());
            assert!(Tariff::from_json(Fee::Content, &json(&terms.content.tariffs[0])).is_ok());
            assert!(Split::from_json(Fee::Service, &json(&terms.service.splits[0])).is_ok());
            assert!(Split::from_json(Fee::Content, &json(&terms.content.splits[0])).is_ok());
            for party in &terms.parties {
                assert!(Party::from_json(&json(party)).is_ok());
            }
        }
    }

    #[test]
    fn a_discount_by_hand() {
        let tier = |from_deliveries, discount_basis_points| Tier { from_deliveries, discount_basis_points };
        let discounts = Discounts::new(2, &[tier(10, 500), tier(20, 1000)]).unwrap();
        // 25 deliveries for 25 yen: 2 free, 8 in full, 10 less 5 %, 5 less 10 %: 2 + 0.5 + 0.5 yen off
        assert_eq!(discounts.of(25, 25_000_000), 3_000_000);
        assert_eq!(discounts.of(2, 2_000_001), 2_000_001, "all are free");
        assert_eq!(discounts.of(3, 10), 6, "2/3 of 10, rounded down");
        assert_eq!((discounts.of(0, 0), discounts.of(5, -1)), (0, 0));
        let all = Discounts::new(0, &[tier(0, 10_000)]).unwrap();
        assert_eq!(all.of(7, i64::MAX), i64::MAX);
        assert_eq!(
            Discounts::new(50, &[tier(10, 5_000)]).unwrap().of(60, 60),
            55,
            "free ones are not halved too"
        );
        assert!(Discounts::new(0, &[tier(5, 1), tier(5, 2)]).is_err());
        assert!(Discounts::new(0, &[tier(5, 10_001)]).is_err());
    }

    #[test]
    fn terms_that_do_not_add_up_are_refused_with_the_sum() {
        let mut split = demo_tariffs().service.splits[0].clone();
        split.peer.search = 999;
        let error = Split::from_json(Fee::Service, &json(&split)).unwrap_err();
        assert_eq!(error, InvalidTerms::NotWhole { line: "peer", sum: 9_999 });
        let mut split = demo_tariffs().content.splits[0].clone();
        split.surrogate = 8_500;
        let error = Split::from_json(Fee::Content, &json(&split)).unwrap_err();
        assert_eq!(error, InvalidTerms::NothingLeft { line: "hit", sum: 10_000 });
        let mut tariff = demo_tariffs().service.tariffs[0].clone();
        tariff.currency = "XXX".into();
        assert!(Tariff::from_json(Fee::Service, &json(&tariff)).unwrap_err().to_string().contains("XXX"));
        let wrong_fee = json(&demo_tariffs().content.tariffs[0]);
        assert!(matches!(Tariff::from_json(Fee::Service, &wrong_fee), Err(InvalidTerms::Form(_))));
    }
}
