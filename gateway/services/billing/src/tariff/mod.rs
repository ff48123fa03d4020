//! Terms: what deliveries cost and how fees are shared, as people write them (TOML in a file, JSON in
//! `PUT /v1/tariffs|splits|parties`), and their checked form that rating uses.
//!
//! Versions hold from `valid_from`, a local time in their zone, until the next version begins. Prices are
//! decimal texts in the currency's major unit. Ratios are basis points (10,000 = all).
//!
//! ```toml
//! [[service.tariffs]]
//! valid_from = "2026-01-01"          # midnight in the zone
//! zone = "Asia/Tokyo"                # or UTC, or an offset: "+09:00"; months are counted in it
//! currency = "JPY"                   # JPY, EUR, USD, or XDZ: see below
//! per_delivery = "0.10"
//! per_megabyte = "0.02"              # per 1,000,000 bytes of the content
//! surrogate_surcharge = "0.05"       # when the client was served away from home; default 0
//! partial = "billed"                 # or "free": a delivery that broke off; default billed, in full
//! tax_basis_points = 1000            # default 1000 (10 %)
//! free_deliveries = 100              # of a client and month, taken off when the month is closed; default 0
//! tiers = [                          # deliveries beyond `from`: so much off; in rising order; default none
//!     { from_deliveries = 1000, discount_basis_points = 500 },
//!     { from_deliveries = 10000, discount_basis_points = 1000 },
//! ]
//! payment_days = 30                  # invoices are due so many days after their issue; default 30
//! payout = { minimum = "1000", basis = "invoiced" } # see below; default 0 and invoiced
//!
//! [[service.splits]]                 # each line sums to 10,000
//! valid_from = "2026-01-01"
//! zone = "Asia/Tokyo"
//! hit = { home = 8000, billing = 2000 }
//! peer = { home = 5000, source = 3000, search = 1000, billing = 1000 }
//! origin = { home = 5000, origin = 3000, search = 1000, billing = 1000 }
//! surcharge = { surrogate = 6000, mobile_access = 3000, billing = 1000 }
//!
//! [[content.tariffs]]
//! valid_from = "2026-01-01"
//! zone = "Asia/Tokyo"
//! currency = "JPY"
//! purchase = "10"                    # the client did not hold the content
//! reference = "1"                    # it did
//! [[content.tariffs.prices]]         # exceptions; the most specific wins: content, bucket, provider
//! content = "studio/film.mp4"        # one of content, bucket, provider
//! purchase = "300"
//! reference = "0"
//!
//! [[content.splits]]                 # commissions; each line and `surrogate` together below 10,000
//! valid_from = "2026-01-01"
//! zone = "Asia/Tokyo"
//! hit = { home = 1000, billing = 500 }
//! peer = { home = 800, source = 400, search = 200, billing = 500 }
//! origin = { home = 800, origin = 400, search = 200, billing = 500 }
//! surrogate = 300
//!
//! [[parties]]
//! party = "client:bob"
//! valid_from = "2026-01-01"
//! name = "Bob Ltd."
//! address = "1-1 Chiyoda, Tokyo"     # optional
//! registration_number = "T1234567890123"  # optional, for qualified invoices
//! country = "JP"                     # optional, ISO 3166
//! email = "bills@bob.example"        # optional
//! payout = "bank"                    # or "wallet": credit in the system, which pays the same name's invoices
//! [parties.bank]                     # optional; for bank files. Or scheme = "sepa" with iban, holder, bic, mandate
//! scheme = "zengin"
//! bank_code = "0001"
//! bank_name = "ミズホ"
//! branch_code = "110"
//! branch_name = "マルノウチ"
//! kind = "ordinary"                  # or current, savings
//! number = "1234567"
//! holder = "カ)ボブ"
//! ```
//!
//! **Discounts** are computed when a month is closed. A client's deliveries of that month, in the order of none in
//! particular, cost the month's average each; the free ones cost nothing, those beyond a tier's `from_deliveries` cost so
//! much less. The parties bear a discount in proportion to their shares of these charges.
//!
//! **Payouts**: the whole minor units of a party's balance, if it has reached `minimum`; the rest is carried forward. With
//! the basis `collected` no more is paid out by bank than came in: a month that is short is shared in proportion.
//!
//! **XDZ** is the in-system currency: credit in wallets, in whole numbers. No bank and no tax office takes it, so amounts in it
//! are in no bank file and no e-invoice. A party with `payout = "wallet"` is paid out in credit, and credit in XDZ pays the
//! invoices in XDZ of the same name.

mod checked;

use common::id::{BucketName, ClientId};
use common::name::ContentName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::bank::BankAccount;
use crate::config::Fee;
use crate::documents::PayoutMethod;

pub use checked::{AMOUNT_MICROS_MAX, Away, Discounts, InvalidTerms, Prices, Split, Tariff, UsePrice};
pub(crate) use checked::{canonical, canonical_split, canonical_tariff};

/// Whether a delivery that broke off is billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PartialPolicy {
    /// In full: the client holds the content now.
    #[default]
    Billed,
    Free,
}

/// Deliveries beyond a number in a month cost less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    pub from_deliveries: u64,
    pub discount_basis_points: u32,
}

/// What limits the payouts of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PayoutBasis {
    /// All that was invoiced, whether it is paid or not.
    #[default]
    Invoiced,
    /// What came in.
    Collected,
}

/// When parties are paid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Payout {
    /// In the currency's major unit.
    #[serde(default = "nothing")]
    pub minimum: String,
    #[serde(default)]
    pub basis: PayoutBasis,
}

impl Default for Payout {
    fn default() -> Self {
        Self { minimum: nothing(), basis: PayoutBasis::default() }
    }
}

/// One version of the service fee's prices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceTariff {
    pub valid_from: String,
    #[serde(default = "tokyo")]
    pub zone: String,
    pub currency: String,
    pub per_delivery: String,
    pub per_megabyte: String,
    #[serde(default = "nothing")]
    pub surrogate_surcharge: String,
    #[serde(default)]
    pub partial: PartialPolicy,
    #[serde(default = "ten_percent")]
    pub tax_basis_points: u32,
    #[serde(default)]
    pub free_deliveries: u64,
    #[serde(default)]
    pub tiers: Vec<Tier>,
    #[serde(default = "a_month")]
    pub payment_days: u32,
    #[serde(default)]
    pub payout: Payout,
}

/// One version of the content fee's prices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContentTariff {
    pub valid_from: String,
    #[serde(default = "tokyo")]
    pub zone: String,
    pub currency: String,
    pub purchase: String,
    pub reference: String,
    #[serde(default)]
    pub partial: PartialPolicy,
    #[serde(default = "ten_percent")]
    pub tax_basis_points: u32,
    #[serde(default = "a_month")]
    pub payment_days: u32,
    #[serde(default)]
    pub payout: Payout,
    #[serde(default)]
    pub prices: Vec<SpecificPrice>,
}

/// Prices of one content, bucket or provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecificPrice {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<ContentName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<BucketName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ClientId>,
    pub purchase: String,
    pub reference: String,
}

/// Ratios by who took part; 0 where absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HitRatios {
    pub home: u32,
    pub billing: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PeerRatios {
    pub home: u32,
    pub source: u32,
    pub search: u32,
    pub billing: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OriginRatios {
    pub home: u32,
    pub origin: u32,
    pub search: u32,
    pub billing: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SurchargeRatios {
    pub surrogate: u32,
    /// Goes to the surrogate where no mobile access server took part.
    pub mobile_access: u32,
    pub billing: u32,
}

/// One version of how the service fee is shared: fully.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSplit {
    pub valid_from: String,
    #[serde(default = "tokyo")]
    pub zone: String,
    pub hit: HitRatios,
    pub peer: PeerRatios,
    pub origin: OriginRatios,
    pub surcharge: SurchargeRatios,
}

/// One version of the commissions on the content fee; the remainder is the provider's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContentSplit {
    pub valid_from: String,
    #[serde(default = "tokyo")]
    pub zone: String,
    pub hit: HitRatios,
    pub peer: PeerRatios,
    pub origin: OriginRatios,
    #[serde(default)]
    pub surrogate: u32,
}

/// One version of who a party is, for documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Party {
    /// `site:S`, `origin:O`, `mobile:M`, `client:C`, `provider:C`, `billing:service`, `billing:content`, `search`.
    pub party: String,
    pub valid_from: String,
    #[serde(default = "tokyo")]
    pub zone: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration_number: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    #[serde(default)]
    pub payout: PayoutMethod,
    /// Where it is paid, and collected from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bank: Option<BankAccount>,
}

/// Versions of one fee's tariffs and splits, each list in order of `valid_from`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeeTerms<T, S> {
    #[serde(default = "Vec::new")]
    pub tariffs: Vec<T>,
    #[serde(default = "Vec::new")]
    pub splits: Vec<S>,
}

impl<T, S> Default for FeeTerms<T, S> {
    fn default() -> Self {
        Self { tariffs: Vec::new(), splits: Vec::new() }
    }
}

/// A whole file of terms, for both servers; each takes its part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Terms {
    pub service: FeeTerms<ServiceTariff, ServiceSplit>,
    pub content: FeeTerms<ContentTariff, ContentSplit>,
    pub parties: Vec<Party>,
}

/// What a document of terms is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    Tariff,
    Split,
    Party,
}

/// One version of a tariff, a split or a party, as servers take it.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its place in the file of terms, counted from 1, as in `service.tariffs number 2`.
    pub place: String,
    pub kind: DocumentKind,
    pub value: Value,
}

impl Terms {
    /// The documents for the server of `fee`: splits, then tariffs, so that what waits can be shared once it is rated.
    pub fn documents(&self, fee: Fee) -> Vec<Document> {
        let (splits, tariffs) = match fee {
            Fee::Service => (values(&self.service.splits), values(&self.service.tariffs)),
            Fee::Content => (values(&self.content.splits), values(&self.content.tariffs)),
        };
        let lists = [
            (DocumentKind::Split, format!("{fee}.splits"), splits),
            (DocumentKind::Tariff, format!("{fee}.tariffs"), tariffs),
            (DocumentKind::Party, "parties".to_owned(), values(&self.parties)),
        ];
        let numbered = lists.into_iter().flat_map(|(kind, list, values)| {
            let numbered = values.into_iter().enumerate();
            numbered.map(move |(n, value)| Document {
                place: format!("{list} number {}", n + 1),
                kind,
                value,
            })
        });
        numbered.collect()
    }
}

fn values<T: Serialize>(terms: &[T]) -> Vec<Value> {
    let value = |t| serde_json::to_value(t).expect("terms are texts, numbers and lists, which JSON has");
    terms.iter().map(value).collect()
}

/// The terms that the demonstration runs on.
pub fn demo_tariffs() -> Terms {
    let (valid_from, zone) = ("2020-01-01".to_owned(), tokyo());
    let service_tariff = ServiceTariff {
        valid_from: valid_from.clone(),
        zone: zone.clone(),
        currency: "JPY".into(),
        per_delivery: "0.10".into(),
        per_megabyte: "0.02".into(),
        surrogate_surcharge: "0.05".into(),
        partial: PartialPolicy::Billed,
        tax_basis_points: ten_percent(),
        free_deliveries: 0,
        tiers: Vec::new(),
        payment_days: a_month(),
        payout: Payout::default(),
    };
    let service_split = ServiceSplit {
        valid_from: valid_from.clone(),
        zone: zone.clone(),
        hit: HitRatios { home: 8000, billing: 2000 },
        peer: PeerRatios { home: 5000, source: 3000, search: 1000, billing: 1000 },
        origin: OriginRatios { home: 5000, origin: 3000, search: 1000, billing: 1000 },
        surcharge: SurchargeRatios { surrogate: 6000, mobile_access: 3000, billing: 1000 },
    };
    let content_tariff = ContentTariff {
        valid_from: valid_from.clone(),
        zone: zone.clone(),
        currency: "JPY".into(),
        purchase: "10".into(),
        reference: "1".into(),
        partial: PartialPolicy::Billed,
        tax_basis_points: ten_percent(),
        payment_days: a_month(),
        payout: Payout::default(),
        prices: Vec::new(),
    };
    let content_split = ContentSplit {
        valid_from,
        zone,
        hit: HitRatios { home: 1000, billing: 500 },
        peer: PeerRatios { home: 800, source: 400, search: 200, billing: 500 },
        origin: OriginRatios { home: 800, origin: 400, search: 200, billing: 500 },
        surrogate: 300,
    };
    Terms {
        service: FeeTerms { tariffs: vec![service_tariff], splits: vec![service_split] },
        content: FeeTerms { tariffs: vec![content_tariff], splits: vec![content_split] },
        parties: Vec::new(),
    }
}

fn tokyo() -> String {
    "Asia/Tokyo".into()
}

fn nothing() -> String {
    "0".into()
}

fn a_month() -> u32 {
    30
}

fn ten_percent() -> u32 {
    1000
}
