//! Events: the facts of delivery records as columns, and back.

use std::sync::LazyLock;

use common::hash::{ContentHash, RecordDigest};
use common::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use common::record::{ChainedRecord, DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus, Source};
use common::time::UnixMillis;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use super::LedgerError;
use super::chains::digest;
use super::rows::Insert;
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
pub(crate) struct NewEvent<'a> {
    pub id: i64,
    pub chain: i64,
    pub link: &'a ChainedRecord,
    pub usage_period: Period,
    pub booked_period: Period,
    pub outcome: &'static str,
    pub journal: Option<i64>,
}

static INSERT: LazyLock<Insert> = LazyLock::new(|| {
    let head = "INSERT INTO events (id, chain, seq, digest, delivery, begin_ms, end_ms, client, content, hash, \
         provider, class, path, home, source_site, source_origin, searched, surrogate, mobile_access, status, \
         bytes_total, bytes_sent, usage_period, booked_period, outcome, journal)";
    Insert::new(head, 26, "")
});

/// The first free id.
pub(crate) async fn next_id(connection: &mut SqliteConnection) -> Result<i64, LedgerError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(id), 0) + 1 FROM events").fetch_one(connection).await?)
}

pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    events: &[NewEvent<'_>],
) -> Result<(), LedgerError> {
    let bind = |query: super::rows::Bound, event: &NewEvent<'_>| {
        let record = &event.link.record;
        let (site, origin) = match &record.source {
            None => (None, None),
            Some(Source::Site(site)) => (Some(site.as_str()), None),
            Some(Source::Origin(name)) => (None, Some(name.as_str())),
        };
        query
            .bind(event.id)
            .bind(event.chain)
            .bind(event.link.seq.cast_signed())
            .bind(&event.link.digest.as_bytes()[..])
            .bind(&record.delivery.as_bytes()[..])
            .bind(record.begin.0.cast_signed())
            .bind(record.end.0.cast_signed())
            .bind(record.client.as_str())
            .bind(record.content.as_str())
            .bind(&record.hash.as_bytes()[..])
            .bind(record.provider.as_str())
            .bind(class_text(record.class))
            .bind(path_text(record.path))
            .bind(record.home.as_str())
            .bind(site)
            .bind(origin)
            .bind(record.searched)
            .bind(record.surrogate.as_ref().map(SiteId::as_str))
            .bind(record.mobile_access.as_ref().map(ServerName::as_str))
            .bind(status_text(record.status))
            .bind(record.bytes_total.cast_signed())
            .bind(record.bytes_sent.cast_signed())
            .bind(event.usage_period.number())
            .bind(event.booked_period.number())
            .bind(event.outcome)
            .bind(event.journal)
    };
    INSERT.run(connection, events, bind).await?;
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
    pub journal: Option<i64>,
    /// Of the journal: its versions, currency and the charge.
    pub tariff: Option<i64>,
    pub split: Option<i64>,
    pub currency: Option<String>,
    pub charge: Option<i64>,
}

/// Reads [`StoredEvent`]s from `events e`; conditions follow it.
const SELECT: &str = "SELECT e.id, e.chain, c.node, c.epoch, e.seq, e.digest, e.delivery, e.begin_ms, e.end_ms, \
     e.client, e.content, e.hash, e.provider, e.class, e.path, e.home, e.source_site, e.source_origin, \
     e.searched, e.surrogate, e.mobile_access, e.status, e.bytes_total, e.bytes_sent, e.usage_period, \
     e.booked_period, coalesce(x.resolved_outcome, e.outcome) AS outcome, x.reason, j.id AS journal, j.tariff, \
     j.split, j.currency, p.amount AS charge \
     FROM events e JOIN chains c ON c.id = e.chain LEFT JOIN exceptions x ON x.event = e.id \
     LEFT JOIN journals j ON j.id = coalesce(e.journal, x.journal) \
     LEFT JOIN postings p ON p.journal = j.id AND p.line = 0 ";

/// The statement that selects events by `conditions`.
pub(crate) fn select(conditions: &'static str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!("{SELECT}{conditions}"))
}

impl StoredEvent {
    pub fn from_row(row: &SqliteRow) -> Result<Self, LedgerError> {
        let text = |name: &str| row.try_get::<String, _>(name);
        let optional = |name: &str| row.try_get::<Option<String>, _>(name);
        let unsigned = |name: &str| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
        let period = |name: &str| -> Result<Period, LedgerError> {
            let number = row.try_get(name)?;
            Period::from_number(number).ok_or_else(|| LedgerError::corrupt(format!("period {number}")))
        };
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
            searched: row.try_get("searched")?,
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
            journal: row.try_get("journal")?,
            tariff: row.try_get("tariff")?,
            split: row.try_get("split")?,
            currency: optional("currency")?,
            charge: row.try_get("charge")?,
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
