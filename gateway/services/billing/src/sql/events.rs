//! Events: the facts of delivery records as columns, and back.

use std::sync::LazyLock;

use common::hash::{ContentHash, RecordDigest};
use common::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use common::money::Currency;
use common::record::{ChainedRecord, DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus, Source};
use common::time::UnixMillis;
use database::{Column, Connection, Dialect, Insert};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

use super::LedgerError;
use super::chains::digest;
use crate::period::Period;

pub(crate) fn class_text(class: DeliveryClass) -> &'static str {
    match class {
        DeliveryClass::Purchase => "purchase",
        DeliveryClass::Reference => "reference",
    }
}

pub(crate) fn path_text(path: DeliveryPath) -> &'static str {
    match path {
        DeliveryPath::Hit => "hit",
        DeliveryPath::Peer => "peer",
        DeliveryPath::Origin => "origin",
    }
}

pub(crate) fn status_text(status: DeliveryStatus) -> &'static str {
    match status {
        DeliveryStatus::Complete => "complete",
        DeliveryStatus::Partial => "partial",
        DeliveryStatus::Void => "void",
        DeliveryStatus::Recovered => "recovered",
    }
}

/// An event to be booked.
pub(crate) struct NewEvent {
    pub id: i64,
    pub chain: i64,
    pub link: ChainedRecord,
    pub usage_period: Period,
    pub booked_period: Period,
    pub outcome: &'static str,
    pub charge: Option<Booked>,
}

/// What a charge came to, under which versions, and the journal it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Booked {
    pub tariff: i64,
    pub split: i64,
    pub currency: Currency,
    pub micros: i64,
    pub journal: i64,
}

const COLUMNS: &[Column] = &[
    Column::Integer("id"),
    Column::Integer("chain"),
    Column::Integer("seq"),
    Column::Bytes("digest"),
    Column::Bytes("delivery"),
    Column::Integer("begin_ms"),
    Column::Integer("end_ms"),
    Column::Text("client"),
    Column::Text("content"),
    Column::Bytes("hash"),
    Column::Text("provider"),
    Column::Text("class"),
    Column::Text("path"),
    Column::Text("home"),
    Column::Text("source_site"),
    Column::Text("source_origin"),
    Column::Integer("searched"),
    Column::Text("surrogate"),
    Column::Text("mobile_access"),
    Column::Text("status"),
    Column::Integer("bytes_total"),
    Column::Integer("bytes_sent"),
    Column::Integer("usage_period"),
    Column::Integer("booked_period"),
    Column::Text("outcome"),
    Column::Integer("tariff"),
    Column::Integer("split"),
    Column::Text("currency"),
    Column::Integer("amount"),
    Column::Integer("journal"),
];
static INSERT: LazyLock<Insert> = LazyLock::new(|| Insert::new("events", COLUMNS, ""));

pub(crate) async fn insert(
    connection: &mut Connection,
    dialect: Dialect,
    events: &[NewEvent],
) -> Result<(), LedgerError> {
    INSERT
        .run(connection, dialect, events, |event, values| {
            let record = &event.link.record;
            let (site, origin) = match &record.source {
                None => (None, None),
                Some(Source::Site(site)) => (Some(site.as_str()), None),
                Some(Source::Origin(name)) => (None, Some(name.as_str())),
            };
            let charge = event.charge.as_ref();
            values.extend([
                event.id.into(),
                event.chain.into(),
                event.link.seq.cast_signed().into(),
                (&event.link.digest.as_bytes()[..]).into(),
                (&record.delivery.as_bytes()[..]).into(),
                record.begin.0.cast_signed().into(),
                record.end.0.cast_signed().into(),
                record.client.as_str().into(),
                record.content.as_str().into(),
                (&record.hash.as_bytes()[..]).into(),
                record.provider.as_str().into(),
                class_text(record.class).into(),
                path_text(record.path).into(),
                record.home.as_str().into(),
                site.into(),
                origin.into(),
                i64::from(record.searched).into(),
                record.surrogate.as_ref().map(SiteId::as_str).into(),
                record.mobile_access.as_ref().map(ServerName::as_str).into(),
                status_text(record.status).into(),
                record.bytes_total.cast_signed().into(),
                record.bytes_sent.cast_signed().into(),
                event.usage_period.number().into(),
                event.booked_period.number().into(),
                event.outcome.into(),
                charge.map(|c| c.tariff).into(),
                charge.map(|c| c.split).into(),
                charge.map(|c| c.currency.code()).into(),
                charge.map(|c| c.micros).into(),
                charge.map(|c| c.journal).into(),
            ]);
        })
        .await?;
    Ok(())
}

/// A booked event with its place in its chain.
#[derive(Debug, Clone)]
pub(crate) struct StoredEvent {
    pub id: i64,
    pub chain: i64,
    pub node: NodeId,
    pub epoch: u64,
    pub seq: u64,
    pub digest: RecordDigest,
    pub record: DeliveryRecord,
    pub usage_period: Period,
    pub booked_period: Period,
    /// As booked on arrival or, if it was an exception then, as resolved.
    pub outcome: String,
    /// Why it was an exception on arrival.
    pub reason: Option<String>,
    pub charge: Option<Booked>,
    /// Why the charge was taken back, if it was.
    pub corrected: Option<String>,
}

/// Reads [`StoredEvent`]s from `events e`; conditions follow it.
pub(crate) const SELECT: &str = "SELECT e.id, e.chain, c.node, c.epoch, e.seq, e.digest, e.delivery, e.begin_ms, e.end_ms, \
     e.client, e.content, e.hash, e.provider, e.class, e.path, e.home, e.source_site, e.source_origin, \
     e.searched, e.surrogate, e.mobile_access, e.status, e.bytes_total, e.bytes_sent, e.usage_period, \
     coalesce(x.resolved_period, e.booked_period) AS booked_period, \
     coalesce(x.resolved_outcome, e.outcome) AS outcome, x.reason, coalesce(e.journal, x.journal) AS journal, \
     coalesce(e.tariff, x.tariff) AS tariff, coalesce(e.split, x.split) AS split, \
     coalesce(e.currency, x.currency) AS currency, coalesce(e.amount, x.amount) AS amount, k.reason AS corrected \
     FROM events e JOIN chains c ON c.id = e.chain LEFT JOIN exceptions x ON x.event = e.id \
     LEFT JOIN corrections k ON k.event = e.id ";

/// The statement that selects events by `conditions`.
pub(crate) fn select(conditions: &'static str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("{SELECT}{conditions}"))
}

impl StoredEvent {
    pub fn from_row(row: &AnyRow) -> Result<Self, LedgerError> {
        let text = |name: &str| row.try_get::<String, _>(name);
        let optional = |name: &str| row.try_get::<Option<String>, _>(name);
        let unsigned = |name: &str| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
        let period = |name: &str| super::period(row, name);
        let site = |name: &str| -> Result<Option<SiteId>, LedgerError> {
            optional(name)?.map(|t| SiteId::new(&t).map_err(LedgerError::corrupt)).transpose()
        };
        let server = |name: &str| -> Result<Option<ServerName>, LedgerError> {
            optional(name)?.map(|t| ServerName::new(&t).map_err(LedgerError::corrupt)).transpose()
        };
        let client = |name: &str| ClientId::new(row.try_get(name)?).map_err(LedgerError::corrupt);
        let record = DeliveryRecord {
            delivery: delivery(row.try_get("delivery")?)?,
            begin: UnixMillis(unsigned("begin_ms")?),
            end: UnixMillis(unsigned("end_ms")?),
            client: client("client")?,
            content: text("content")?.parse().map_err(LedgerError::corrupt)?,
            hash: ContentHash::from_bytes(
                row.try_get::<&[u8], _>("hash")?.try_into().map_err(LedgerError::corrupt)?,
            ),
            provider: client("provider")?,
            class: word(&[DeliveryClass::Purchase, DeliveryClass::Reference], class_text, &text("class")?)?,
            path: word(
                &[DeliveryPath::Hit, DeliveryPath::Peer, DeliveryPath::Origin],
                path_text,
                &text("path")?,
            )?,
            home: SiteId::new(row.try_get("home")?).map_err(LedgerError::corrupt)?,
            source: match site("source_site")? {
                Some(site) => Some(Source::Site(site)),
                None => server("source_origin")?.map(Source::Origin),
            },
            searched: row.try_get::<i64, _>("searched")? != 0,
            surrogate: site("surrogate")?,
            mobile_access: server("mobile_access")?,
            status: word(
                &[
                    DeliveryStatus::Complete,
                    DeliveryStatus::Partial,
                    DeliveryStatus::Void,
                    DeliveryStatus::Recovered,
                ],
                status_text,
                &text("status")?,
            )?,
            bytes_total: unsigned("bytes_total")?,
            bytes_sent: unsigned("bytes_sent")?,
        };
        let charge = match row.try_get::<Option<i64>, _>("journal")? {
            None => None,
            Some(journal) => Some(Booked {
                tariff: row.try_get("tariff")?,
                split: row.try_get("split")?,
                currency: super::currency(row, "currency")?,
                micros: row.try_get("amount")?,
                journal,
            }),
        };
        Ok(Self {
            id: row.try_get("id")?,
            chain: row.try_get("chain")?,
            node: NodeId::new(row.try_get("node")?).map_err(LedgerError::corrupt)?,
            epoch: unsigned("epoch")?,
            seq: unsigned("seq")?,
            digest: digest(row.try_get("digest")?)?,
            record,
            usage_period: period("usage_period")?,
            booked_period: period("booked_period")?,
            outcome: text("outcome")?,
            reason: optional("reason")?,
            charge,
            corrected: optional("corrected")?,
        })
    }
}

fn delivery(bytes: &[u8]) -> Result<DeliveryId, LedgerError> {
    bytes.try_into().map(DeliveryId::from_bytes).map_err(LedgerError::corrupt)
}

/// The value whose text is stored.
fn word<T: Copy>(all: &[T], text_of: fn(T) -> &'static str, text: &str) -> Result<T, LedgerError> {
    let found = all.iter().copied().find(|value| text_of(*value) == text);
    found.ok_or_else(|| LedgerError::corrupt(format!("word {text:?}")))
}
