//! Rating: from the facts of a delivery to the charge and who gets what of it. Pure: the same record under the
//! same versions gives the same numbers, on arrival and in every later check.
//!
//! - Complete and partial deliveries are billed in full (partial ones unless the tariff says free); void and
//!   recovered ones are not. The provider's own content costs no content fee.
//! - Amounts are whole millionths of the minor unit: half up where a price per 10^6 bytes does not come out even,
//!   128 bits in between. Shares follow the largest remainder, ties in the split's order, and sum to the charge.
//! - The version of tariff and split is the one that holds at the delivery's begin.

use common::id::ClientId;
use common::money::{Currency, split_largest_remainder};
use common::name::ContentName;
use common::record::{DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus, Source};
use common::time::UnixMillis;

use crate::config::Fee;
use crate::period::{Period, Zone};
use crate::tariff::{AMOUNT_MICROS_MAX, Away, PartialPolicy, Prices, Split, SurchargeRatios, Tariff};

/// Contents and times beyond this (9 PB, the year 287396) come from a broken server.
pub(crate) const PLAUSIBLE_MAX: u64 = 1 << 53;

/// What a party did for its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Home,
    Source,
    Origin,
    Search,
    Billing,
    Surrogate,
    MobileAccess,
    Provider,
}

impl Part {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Home => "home",
            Self::Source => "source",
            Self::Origin => "origin",
            Self::Search => "search",
            Self::Billing => "billing",
            Self::Surrogate => "surrogate",
            Self::MobileAccess => "mobile_access",
            Self::Provider => "provider",
        }
    }
}

/// Why a record cannot be rated now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exception {
    #[error("no tariff holds at the delivery's begin")]
    NoTariff,
    #[error("no split holds at the delivery's begin")]
    NoSplit,
    #[error("the record does not name the {} that has a share", .0.as_str())]
    NoParty(Part),
    #[error("the charge is beyond the greatest amount")]
    Overflow,
    #[error("the record's bytes or times are not plausible")]
    Implausible,
}

/// One party's part of a charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// `site:tokyo`, `origin:o1`, `search`, `billing:service`, `mobile:m1`, `provider:alice`.
    pub party: String,
    pub part: Part,
    pub micros: i64,
}

/// A charge and its shares, which sum to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    pub currency: Currency,
    pub micros: i64,
    pub shares: Vec<Share>,
    /// Versions that it was computed under.
    pub tariff: i64,
    pub split: i64,
}

/// What becomes of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rating {
    Charged(Charge),
    /// Billable, but it costs nothing.
    Free,
    /// Its status is not billed.
    Unbilled,
    /// Booked without money, and listed, until it can be rated.
    Exception(Exception),
}

impl Rating {
    /// As in the database.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Charged(_) => "charged",
            Self::Free => "free",
            Self::Unbilled => "unbilled",
            Self::Exception(_) => "exception",
        }
    }
}

/// A stored version.
#[derive(Debug, Clone)]
pub struct Version<T> {
    pub number: i64,
    pub value: T,
}

/// All versions of one fee's tariffs and splits, in order of their begin.
#[derive(Debug, Clone)]
pub struct RateBook {
    pub fee: Fee,
    pub tariffs: Vec<Version<Tariff>>,
    pub splits: Vec<Version<Split>>,
}

impl RateBook {
    pub fn tariff_at(&self, time: UnixMillis) -> Option<&Version<Tariff>> {
        let after = self.tariffs.partition_point(|v| v.value.valid_from <= time);
        self.tariffs[..after].last()
    }

    fn split_at(&self, time: UnixMillis) -> Option<&Version<Split>> {
        let after = self.splits.partition_point(|v| v.value.valid_from <= time);
        self.splits[..after].last()
    }

    /// The zone months are counted in at `time`.
    pub fn zone_at(&self, time: UnixMillis) -> Zone {
        self.tariff_at(time).or(self.tariffs.first()).map_or(Zone::TOKYO, |v| v.value.zone)
    }

    /// The version of a number; `None` if it is not in the book.
    pub fn tariff(&self, number: i64) -> Option<&Version<Tariff>> {
        self.tariffs.iter().find(|v| v.number == number)
    }

    /// The tariff that a month's documents are made under: the one at its last instant.
    pub fn tariff_of(&self, period: Period) -> Option<&Tariff> {
        let newest = self.tariffs.last()?;
        let last = UnixMillis(period.end(newest.value.zone).0.saturating_sub(1));
        Some(&self.tariff_at(last).unwrap_or(newest).value)
    }

    /// The month that a delivery belongs to.
    pub fn usage_period(&self, begin: UnixMillis) -> Period {
        Period::of(begin, self.zone_at(begin))
    }

    /// What a delivery that begins at `now` would be charged, in millionths.
    #[expect(clippy::too_many_arguments, reason = "the facts that a price depends on")]
    pub fn quote(
        &self,
        client: &ClientId,
        content: &ContentName,
        provider: &ClientId,
        bytes: u64,
        away: bool,
        class: DeliveryClass,
        now: UnixMillis,
    ) -> Result<i64, Exception> {
        let tariff = self.tariff_at(now).ok_or(Exception::NoTariff)?;
        let micros = match &tariff.value.prices {
            Prices::Service { per_delivery, per_megabyte, surcharge } => {
                let base = base_fee(*per_delivery, *per_megabyte, bytes)?;
                i128::from(base) + if away { i128::from(*surcharge) } else { 0 }
            }
            Prices::Content { .. } if provider == client => 0,
            prices @ Prices::Content { .. } => i128::from(use_price(prices, content, provider, class)),
        };
        bounded(micros)
    }

    /// Rates under the versions that hold at the record's begin.
    pub fn rate(&self, record: &DeliveryRecord) -> Rating {
        if matches!(record.status, DeliveryStatus::Void | DeliveryStatus::Recovered) {
            return Rating::Unbilled;
        }
        let Some(tariff) = self.tariff_at(record.begin) else {
            return Rating::Exception(Exception::NoTariff);
        };
        let Some(split) = self.split_at(record.begin) else {
            return Rating::Exception(Exception::NoSplit);
        };
        self.rate_under(record, tariff, split)
    }

    /// Rates again under the versions that a journal names; `None` if they are not in the book.
    pub fn rate_again(&self, record: &DeliveryRecord, tariff: i64, split: i64) -> Option<Rating> {
        let tariff = self.tariff(tariff)?;
        let split = self.splits.iter().find(|v| v.number == split)?;
        Some(self.rate_under(record, tariff, split))
    }

    fn rate_under(
        &self,
        record: &DeliveryRecord,
        tariff: &Version<Tariff>,
        split: &Version<Split>,
    ) -> Rating {
        let facts = [record.bytes_total, record.bytes_sent, record.begin.0, record.end.0];
        if facts.iter().any(|fact| *fact > PLAUSIBLE_MAX) {
            return Rating::Exception(Exception::Implausible);
        }
        if record.status == DeliveryStatus::Partial && tariff.value.partial == PartialPolicy::Free {
            return Rating::Unbilled;
        }
        let rated = match &tariff.value.prices {
            Prices::Service { per_delivery, per_megabyte, surcharge } => {
                service_shares(record, *per_delivery, *per_megabyte, *surcharge, &split.value)
            }
            Prices::Content { .. } if record.provider == record.client => return Rating::Free,
            prices @ Prices::Content { .. } => {
                let price = use_price(prices, &record.content, &record.provider, record.class);
                content_shares(record, price, &split.value)
            }
        };
        match rated {
            Err(exception) => Rating::Exception(exception),
            Ok((0, _)) => Rating::Free,
            Ok((micros, shares)) => Rating::Charged(Charge {
                currency: tariff.value.currency,
                micros,
                shares,
                tariff: tariff.number,
                split: split.number,
            }),
        }
    }
}

/// The fee for delivery without surcharge.
fn base_fee(per_delivery: i64, per_megabyte: i64, bytes_total: u64) -> Result<i64, Exception> {
    let bytes = i128::from(per_megabyte) * i128::from(bytes_total);
    bounded(i128::from(per_delivery) + (bytes + 500_000) / 1_000_000)
}

/// The fee for delivery, its surcharge if the client was away, and the shares of both.
fn service_shares(
    record: &DeliveryRecord,
    per_delivery: i64,
    per_megabyte: i64,
    surcharge: i64,
    split: &Split,
) -> Result<(i64, Vec<Share>), Exception> {
    let base = base_fee(per_delivery, per_megabyte, record.bytes_total)?;
    let mut shares = share_out(Fee::Service, record, base, by_path(record, split))?;
    let mut charge = i128::from(base);
    if let (true, Away::Surcharge(ratios)) = (record.surrogate.is_some(), &split.away) {
        shares.extend(share_out(Fee::Service, record, surcharge, &surcharge_ratios(record, *ratios))?);
        charge += i128::from(surcharge);
    }
    Ok((bounded(charge)?, shares))
}

/// Without a mobile access server its ratio goes to the surrogate.
fn surcharge_ratios(record: &DeliveryRecord, ratios: SurchargeRatios) -> Vec<(Part, u32)> {
    let SurchargeRatios { surrogate, mobile_access, billing } = ratios;
    if record.mobile_access.is_some() {
        vec![(Part::Surrogate, surrogate), (Part::MobileAccess, mobile_access), (Part::Billing, billing)]
    } else {
        vec![(Part::Surrogate, surrogate + mobile_access), (Part::Billing, billing)]
    }
}

/// The fee for use, less commissions, and the provider's remainder.
fn content_shares(
    record: &DeliveryRecord,
    price: i64,
    split: &Split,
) -> Result<(i64, Vec<Share>), Exception> {
    let charge = bounded(i128::from(price))?;
    let mut ratios = by_path(record, split).to_vec();
    if let (true, Away::Commission(ratio)) = (record.surrogate.is_some(), &split.away) {
        ratios.push((Part::Surrogate, *ratio));
    }
    let taken: u32 = ratios.iter().map(|(_, ratio)| ratio).sum();
    ratios.push((Part::Provider, 10_000 - taken)); // a checked split takes less than 10,000
    Ok((charge, share_out(Fee::Content, record, charge, &ratios)?))
}

/// The most specific price: content, bucket, provider, default.
fn use_price(prices: &Prices, content: &ContentName, provider: &ClientId, class: DeliveryClass) -> i64 {
    let Prices::Content { default, contents, buckets, providers } = prices else { return 0 };
    let bucket = || if buckets.is_empty() { None } else { buckets.get(&content.bucket_name()) };
    let price = contents.get(content).or_else(bucket).or_else(|| providers.get(provider)).unwrap_or(default);
    match class {
        DeliveryClass::Purchase => price.purchase,
        DeliveryClass::Reference => price.reference,
    }
}

fn by_path<'a>(record: &DeliveryRecord, split: &'a Split) -> &'a [(Part, u32)] {
    match record.path {
        DeliveryPath::Hit => &split.hit,
        DeliveryPath::Peer => &split.peer,
        DeliveryPath::Origin => &split.origin,
    }
}

fn bounded(micros: i128) -> Result<i64, Exception> {
    i64::try_from(micros).ok().filter(|m| *m <= AMOUNT_MICROS_MAX).ok_or(Exception::Overflow)
}

fn share_out(
    fee: Fee,
    record: &DeliveryRecord,
    total: i64,
    ratios: &[(Part, u32)],
) -> Result<Vec<Share>, Exception> {
    let weights: Vec<u32> = ratios.iter().map(|(_, ratio)| *ratio).collect();
    let amounts = split_largest_remainder(total, &weights);
    let mut shares = Vec::with_capacity(ratios.len() + 3);
    for ((part, _), micros) in ratios.iter().zip(amounts) {
        if micros != 0 {
            shares.push(Share { party: party(fee, record, *part)?, part: *part, micros });
        }
    }
    Ok(shares)
}

/// Who took part in this delivery as `part`.
fn party(fee: Fee, record: &DeliveryRecord, part: Part) -> Result<String, Exception> {
    let missing = || Exception::NoParty(part);
    Ok(match part {
        Part::Home => format!("site:{}", record.home),
        Part::Source => match &record.source {
            Some(Source::Site(site)) => format!("site:{site}"),
            _ => return Err(missing()),
        },
        Part::Origin => match &record.source {
            Some(Source::Origin(name)) => format!("origin:{name}"),
            _ => return Err(missing()),
        },
        Part::Search => "search".to_owned(),
        Part::Billing => format!("billing:{fee}"),
        Part::Surrogate => format!("site:{}", record.surrogate.as_ref().ok_or_else(missing)?),
        Part::MobileAccess => format!("mobile:{}", record.mobile_access.as_ref().ok_or_else(missing)?),
        Part::Provider => format!("provider:{}", record.provider),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tariff::{SpecificPrice, Terms, demo_tariffs};
    use common::hash::ContentHash;
    use common::id::{ClientId, DeliveryId, ServerName, SiteId};
    use proptest::prelude::*;

    fn book(fee: Fee, terms: &Terms) -> RateBook {
        let json = |value: serde_json::Result<serde_json::Value>| value.unwrap();
        let (tariffs, splits) = match fee {
            Fee::Service => (
                terms.service.tariffs.iter().map(|t| json(serde_json::to_value(t))).collect::<Vec<_>>(),
                terms.service.splits.iter().map(|t| json(serde_json::to_value(t))).collect::<Vec<_>>(),
            ),
            Fee::Content => (
                terms.content.tariffs.iter().map(|t| json(serde_json::to_value(t))).collect(),
                terms.content.splits.iter().map(|t| json(serde_json::to_value(t))).collect(),
            ),
        };
        let tariff = |(i, doc)| Version { number: i as i64 + 1, value: Tariff::from_json(fee, doc).unwrap() };
        let split = |(i, doc)| Version { number: i as i64 + 1, value: Split::from_json(fee, doc).unwrap() };
        RateBook {
            fee,
            tariffs: tariffs.iter().enumerate().map(tariff).collect(),
            splits: splits.iter().enumerate().map(split).collect(),
        }
    }

    fn record() -> DeliveryRecord {
        DeliveryRecord {
            delivery: DeliveryId::from_bytes([7; 16]),
            begin: UnixMillis(1_790_000_000_000),
            end: UnixMillis(1_790_000_001_000),
            client: ClientId::new("bob").unwrap(),
            content: "alice/song.wav".parse().unwrap(),
            hash: ContentHash::of(b"song"),
            provider: ClientId::new("alice").unwrap(),
            class: DeliveryClass::Purchase,
            path: DeliveryPath::Peer,
            home: SiteId::new("tokyo").unwrap(),
            source: Some(Source::Site(SiteId::new("osaka").unwrap())),
            searched: true,
            surrogate: None,
            mobile_access: None,
            status: DeliveryStatus::Complete,
            bytes_total: 1_234_567,
            bytes_sent: 1_234_567,
        }
    }

    fn charged(rating: Rating) -> (i64, Vec<(String, i64)>) {
        let Rating::Charged(charge) = rating else { panic!("{rating:?}") };
        (charge.micros, charge.shares.into_iter().map(|s| (s.party, s.micros)).collect())
    }

    fn named(shares: &[(&str, i64)]) -> Vec<(String, i64)> {
        shares.iter().map(|(party, micros)| ((*party).to_owned(), *micros)).collect()
    }

    #[test]
    fn a_service_fee_by_hand() {
        let book = book(Fee::Service, &demo_tariffs());
        // 0.10 + 1.234567 MB x 0.02 = 0.12469134 -> 0.124691 (half up at a millionth of a yen)
        // tokyo 5000, osaka 3000, search 1000, billing 1000:
        // 62345.5, 37407.3, 12469.1, 12469.1 -> the missing unit goes to tokyo
        let expected =
            [("site:tokyo", 62_346), ("site:osaka", 37_407), ("search", 12_469), ("billing:service", 12_469)];
        assert_eq!(charged(book.rate(&record())), (124_691, named(&expected)));

        let hit = DeliveryRecord { path: DeliveryPath::Hit, source: None, bytes_total: 0, ..record() };
        let expected = [("site:tokyo", 80_000), ("billing:service", 20_000)];
        assert_eq!(charged(book.rate(&hit)), (100_000, named(&expected)));

        let source = Some(Source::Origin(ServerName::new("o1").unwrap()));
        let origin = DeliveryRecord { path: DeliveryPath::Origin, source, bytes_total: 0, ..record() };
        let expected =
            [("site:tokyo", 50_000), ("origin:o1", 30_000), ("search", 10_000), ("billing:service", 10_000)];
        assert_eq!(charged(book.rate(&origin)), (100_000, named(&expected)));
    }

    #[test]
    fn a_surcharge_pays_the_surrogate_and_mobile_access() {
        let book = book(Fee::Service, &demo_tariffs());
        let home_hit = DeliveryRecord { path: DeliveryPath::Hit, bytes_total: 0, ..record() };
        let away = DeliveryRecord { surrogate: Some(SiteId::new("osaka").unwrap()), ..home_hit };
        let expected = [
            ("site:tokyo", 80_000),
            ("billing:service", 20_000),
            ("site:osaka", 45_000),
            ("billing:service", 5_000),
        ];
        assert_eq!(charged(book.rate(&away)), (150_000, named(&expected)));
        let mobile = DeliveryRecord { mobile_access: Some(ServerName::new("m1").unwrap()), ..away };
        let expected = [
            ("site:tokyo", 80_000),
            ("billing:service", 20_000),
            ("site:osaka", 30_000),
            ("mobile:m1", 15_000),
            ("billing:service", 5_000),
        ];
        assert_eq!(charged(book.rate(&mobile)), (150_000, named(&expected)));
    }

    #[test]
    fn a_content_fee_by_hand() {
        let book = book(Fee::Content, &demo_tariffs());
        let expected = [
            ("site:tokyo", 800_000),
            ("site:osaka", 400_000),
            ("search", 200_000),
            ("billing:content", 500_000),
            ("provider:alice", 8_100_000),
        ];
        assert_eq!(charged(book.rate(&record())), (10_000_000, named(&expected)));
        let again = DeliveryRecord { class: DeliveryClass::Reference, path: DeliveryPath::Hit, ..record() };
        let expected = [("site:tokyo", 100_000), ("billing:content", 50_000), ("provider:alice", 850_000)];
        assert_eq!(charged(book.rate(&again)), (1_000_000, named(&expected)));
        let own = DeliveryRecord { client: ClientId::new("alice").unwrap(), ..record() };
        assert_eq!(book.rate(&own), Rating::Free);
    }

    #[test]
    fn the_most_specific_price_wins() {
        let mut terms = demo_tariffs();
        let price = |purchase: &str| SpecificPrice {
            content: None,
            bucket: None,
            provider: None,
            purchase: purchase.into(),
            reference: "0".into(),
        };
        let provider = SpecificPrice { provider: Some(ClientId::new("alice").unwrap()), ..price("4") };
        let bucket = SpecificPrice { bucket: Some("alice".parse().unwrap()), ..price("3") };
        let content = SpecificPrice { content: Some("alice/song.wav".parse().unwrap()), ..price("2") };
        for (specific, micros) in [(provider, 4_000_000), (bucket, 3_000_000), (content, 2_000_000)] {
            terms.content.tariffs[0].prices.push(specific);
            assert_eq!(charged(book(Fee::Content, &terms).rate(&record())).0, micros);
        }
        let reference = DeliveryRecord { class: DeliveryClass::Reference, ..record() };
        assert_eq!(book(Fee::Content, &terms).rate(&reference), Rating::Free);
    }

    #[test]
    fn what_cannot_be_rated_is_an_exception_and_what_is_not_billed_is_unbilled() {
        let book = book(Fee::Service, &demo_tariffs());
        let early = DeliveryRecord { begin: UnixMillis(0), ..record() };
        assert_eq!(book.rate(&early), Rating::Exception(Exception::NoTariff));
        let sourceless = DeliveryRecord { source: None, ..record() };
        assert_eq!(book.rate(&sourceless), Rating::Exception(Exception::NoParty(Part::Source)));
        let huge = DeliveryRecord { bytes_total: u64::MAX, ..record() };
        assert_eq!(book.rate(&huge), Rating::Exception(Exception::Implausible));
        for status in [DeliveryStatus::Void, DeliveryStatus::Recovered] {
            assert_eq!(book.rate(&DeliveryRecord { status, ..record() }), Rating::Unbilled);
        }
        let partial = DeliveryRecord { status: DeliveryStatus::Partial, bytes_sent: 1, ..record() };
        assert_eq!(charged(book.rate(&partial)).0, 124_691, "billed in full");
    }

    #[test]
    fn a_version_holds_from_its_first_instant_in_its_zone() {
        let mut terms = demo_tariffs();
        let dearer = crate::tariff::ServiceTariff {
            valid_from: "2026-10-01".into(),
            per_delivery: "1".into(),
            ..terms.service.tariffs[0].clone()
        };
        terms.service.tariffs.push(dearer);
        let book = book(Fee::Service, &terms);
        let boundary = Zone::TOKYO.parse_local("2026-10-01").unwrap();
        let at = |ms| DeliveryRecord { begin: UnixMillis(ms), bytes_total: 0, ..record() };
        assert_eq!(charged(book.rate(&at(boundary.0 - 1))).0, 100_000);
        assert_eq!(charged(book.rate(&at(boundary.0))).0, 1_000_000);
    }

    proptest! {
        #[test]
        fn shares_always_sum_to_the_charge(
            bytes in 0u64..1 << 50,
            delivery in 0u64..1_000_000,
            megabyte in 0u64..1_000_000,
            cuts in prop::array::uniform3(0u32..3334),
            away in any::<bool>(),
            mobile in any::<bool>(),
        ) {
            let mut terms = demo_tariffs();
            let tariff = &mut terms.service.tariffs[0];
            tariff.per_delivery = format!("0.{delivery:06}");
            tariff.per_megabyte = format!("0.{megabyte:06}");
            let rest = 10_000 - cuts.iter().sum::<u32>();
            let peer = &mut terms.service.splits[0].peer;
            (peer.home, peer.source, peer.search, peer.billing) = (cuts[0], cuts[1], cuts[2], rest);
            let commissions = &mut terms.content.splits[0].peer;
            (commissions.home, commissions.source, commissions.search) = (cuts[0], cuts[1], cuts[2] / 2);
            (commissions.billing, terms.content.splits[0].surrogate) = (0, 1);
            terms.content.tariffs[0].purchase = format!("0.{delivery:06}");
            let record = DeliveryRecord {
                bytes_total: bytes,
                surrogate: away.then(|| SiteId::new("osaka").unwrap()),
                mobile_access: mobile.then(|| ServerName::new("m1").unwrap()),
                ..record()
            };
            for fee in [Fee::Service, Fee::Content] {
                match book(fee, &terms).rate(&record) {
                    Rating::Charged(charge) => {
                        let sum: i64 = charge.shares.iter().map(|s| s.micros).sum();
                        prop_assert_eq!(sum, charge.micros);
                        prop_assert!(charge.shares.iter().all(|s| s.micros > 0));
                    }
                    Rating::Free => {}
                    Rating::Exception(Exception::Overflow) => prop_assert!(bytes > 1 << 40),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}
