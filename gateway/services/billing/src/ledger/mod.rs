//! The ledger: one database, one writer task, any number of readers.
//!
//! Everything that changes the books goes through the writer's queue and is answered after its transaction has
//! committed and is durable (`synchronous=FULL`). A caller that goes away does not undo what it asked for; the
//! same batch again is recognised and changes nothing.

mod booking;
mod close;
mod correct;
mod export;
mod pay;
mod payout;
mod writer;

use common::api::billing::{BatchAnswer, ChainView, MonthTotals, Quote, Totals, Usage};
use common::hash::RecordDigest;
use common::id::{ClientId, DeliveryId, NodeId};
use common::name::ContentName;
use common::record::DeliveryClass;
use common::server::StartError;
use common::telemetry::MetricsRegistry;
use common::time::Clock;
use database::{Db, Location};
use serde::Serialize;
use serde_json::Value;
use sqlx::Any;
use sqlx::pool::PoolConnection;
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

pub use crate::sql::LedgerError;
pub use crate::sql::journals::AccountView;
pub use crate::sql::periods::ClosedPeriod;
pub use crate::sql::requests::RequestKey;
pub use crate::sql::terms::StoredVersion;
pub use close::{CloseReport, CloseRequest};
pub use correct::{CorrectionReport, CorrectionRequest, DeliveryNumber};
pub use export::{Direction, ExportRequest, ImportReport, Scheme};
pub use pay::{PaymentReport, PaymentRequest};
pub use writer::Writer;

use crate::chain::CheckedBatch;
use crate::config::Fee;
use crate::metrics::Metrics;
use crate::period::Period;
use crate::rating::Exception;
use crate::sql;
use crate::sql::events::StoredEvent;
use crate::sql::figures::Figures;
use crate::sql::invoices::InvoiceQuery;
use crate::sql::terms::Table;
use crate::tariff::{
    Document, DocumentKind, Party, Split, Tariff, Terms, canonical, canonical_split, canonical_tariff,
};
use crate::verify::{VerifyReport, verify};

/// Changes that may wait for the writer; more make their callers wait.
const QUEUE_LEN: usize = 64;

/// What became of a batch, for the caller and for the metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchReport {
    pub answer: BatchAnswer,
    /// Records booked now: charged, free or unbilled.
    pub booked: u64,
    /// Records that were booked before.
    pub duplicates: u64,
    /// Records booked now without money, because they cannot be rated yet.
    pub exceptions: u64,
    /// Records of a batch that is a fork.
    pub refused: u64,
}

type Reply<T> = oneshot::Sender<Result<T, LedgerError>>;

/// What the writer can be asked to do.
enum Command {
    Book(CheckedBatch, Reply<BatchReport>),
    AddVersion { table: Table, document: Value, reply: Reply<i64> },
    AddParty { document: Value, reply: Reply<()> },
    Close { period: Period, missing: Vec<String>, reply: Reply<()> },
    Correct { request: CorrectionRequest, key: Option<RequestKey>, reply: Reply<Value> },
    Pay { request: PaymentRequest, key: Option<RequestKey>, reply: Reply<Value> },
    SumUp(Reply<()>),
}

/// A booked record as it is shown to auditors.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RecordView {
    /// Number of the booking, for paging.
    pub id: i64,
    pub node: NodeId,
    pub epoch: u64,
    pub seq: u64,
    pub digest: String,
    #[serde(flatten)]
    pub record: common::record::DeliveryRecord,
    pub usage_period: Period,
    pub booked_period: Period,
    /// `charged`, `free`, `unbilled` or `exception`.
    pub outcome: String,
    /// Why the record was an exception when it arrived.
    pub reason: Option<String>,
    pub charge_micros: Option<i64>,
    pub currency: Option<String>,
    /// Why the charge was taken back, if it was.
    pub corrected: Option<String>,
}

impl From<StoredEvent> for RecordView {
    fn from(event: StoredEvent) -> Self {
        Self {
            id: event.id,
            node: event.node,
            epoch: event.epoch,
            seq: event.seq,
            digest: event.digest.to_string(),
            record: event.record,
            usage_period: event.usage_period,
            booked_period: event.booked_period,
            outcome: event.outcome,
            reason: event.reason,
            charge_micros: event.charge.map(|charge| charge.micros),
            currency: event.charge.map(|charge| charge.currency.code().to_owned()),
            corrected: event.corrected,
        }
    }
}

/// How long after its end a month waits for nodes that have not passed it.
pub const CLOSE_GRACE: std::time::Duration = std::time::Duration::from_secs(3 * 86_400);

/// Handle of one ledger. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    fee: Fee,
    commands: mpsc::Sender<Command>,
    db: Db,
    clock: Clock,
    close_grace_ms: u64,
}

impl Ledger {
    /// Opens or makes the ledger at `location`. Nothing is booked until the [`Writer`] runs.
    pub async fn open(location: &Location, fee: Fee, clock: Clock) -> Result<(Self, Writer), StartError> {
        Self::open_metered(location, fee, clock, Metrics::new(&MetricsRegistry::new(), fee)).await
    }

    pub(crate) async fn open_metered(
        location: &Location,
        fee: Fee,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<(Self, Writer), StartError> {
        let db = sql::open(location, fee).await?;
        let failed = |error: LedgerError| StartError::failed(format!("reading the ledger {location}"), error);
        let mut connection = db.read().await.map_err(|error| failed(error.into()))?;
        let rates = sql::terms::rate_book(&mut connection, fee).await.map_err(failed)?;
        let accounts = sql::journals::Accounts::read(&mut connection).await.map_err(failed)?;
        drop(connection);
        let (commands, queue) = mpsc::channel(QUEUE_LEN);
        let writer = Writer::new(db.clone(), rates, accounts, queue, clock.clone(), metrics);
        let close_grace_ms = u64::try_from(CLOSE_GRACE.as_millis()).unwrap_or(u64::MAX);
        Ok((Self { fee, commands, db, clock, close_grace_ms }, writer))
    }

    /// The same ledger with another grace than [`CLOSE_GRACE`].
    pub fn with_close_grace(self, grace: std::time::Duration) -> Self {
        Self { close_grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), ..self }
    }

    pub fn fee(&self) -> Fee {
        self.fee
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| LedgerError::Stopping)?;
        answer.await.map_err(|_| LedgerError::Stopping)?
    }

    pub(crate) async fn read(&self) -> Result<PoolConnection<Any>, LedgerError> {
        Ok(self.db.read().await?)
    }

    /// Sees to it that what is read next from the sums tells of all that is booked by now.
    async fn sum_up(&self) -> Result<(), LedgerError> {
        if sql::usage::is_summed_up(&mut *self.read().await?).await? {
            return Ok(());
        }
        self.ask(Command::SumUp).await
    }

    /// Books a batch; durable when it answers.
    pub async fn book(&self, batch: CheckedBatch) -> Result<BatchReport, LedgerError> {
        self.ask(|reply| Command::Book(batch, reply)).await
    }

    /// Stores a version of the tariff and rates open exceptions anew. Answers with the version's number.
    pub async fn put_tariff(&self, document: Value) -> Result<i64, LedgerError> {
        self.ask(|reply| Command::AddVersion { table: Table::Tariffs, document, reply }).await
    }

    /// Stores a version of the split and rates open exceptions anew. Answers with the version's number.
    pub async fn put_split(&self, document: Value) -> Result<i64, LedgerError> {
        self.ask(|reply| Command::AddVersion { table: Table::Splits, document, reply }).await
    }

    pub async fn put_party(&self, document: Value) -> Result<(), LedgerError> {
        self.ask(|reply| Command::AddParty { document, reply }).await
    }

    /// Stores this fee's part of `terms`. Versions that contradict stored ones are logged and left out: what is
    /// stored holds.
    pub async fn put_terms(&self, terms: &Terms) -> Result<(), LedgerError> {
        for document in terms.documents(self.fee) {
            kept(self.put_document(document).await)?;
        }
        Ok(())
    }

    /// Stores one version of its kind.
    pub async fn put_document(&self, document: Document) -> Result<(), LedgerError> {
        let Document { kind, value, .. } = document;
        match kind {
            DocumentKind::Tariff => self.put_tariff(value).await.map(drop),
            DocumentKind::Split => self.put_split(value).await.map(drop),
            DocumentKind::Party => self.put_party(value).await,
        }
    }

    pub(crate) async fn versions(&self, table: Table) -> Result<Vec<StoredVersion>, LedgerError> {
        let mut connection = self.read().await?;
        sql::terms::list(&mut connection, table).await
    }

    pub(crate) async fn parties(&self, after: &str, limit: i64) -> Result<Vec<Value>, LedgerError> {
        let mut connection = self.read().await?;
        sql::terms::parties(&mut connection, after, limit).await
    }

    pub async fn usage(&self, client: &ClientId, period: Period) -> Result<Usage, LedgerError> {
        self.sum_up().await?;
        let mut connection = self.read().await?;
        sql::usage::of_client(&mut connection, client, period).await
    }

    /// The month that it is now, in the tariff's zone.
    pub async fn present_period(&self) -> Result<Period, LedgerError> {
        let mut connection = self.read().await?;
        Ok(sql::terms::rate_book(&mut connection, self.fee).await?.usage_period(self.clock.now()))
    }

    pub async fn totals(&self) -> Result<Totals, LedgerError> {
        self.sum_up().await?;
        let mut connection = self.read().await?;
        sql::usage::totals(&mut connection).await
    }

    pub(crate) async fn figures(&self) -> Result<Figures, LedgerError> {
        let mut connection = self.read().await?;
        sql::figures::figures(&mut connection).await
    }

    /// The issued invoice of this number, if it is of `client` or that does not matter.
    pub async fn invoice(
        &self,
        number: i64,
        client: Option<&ClientId>,
    ) -> Result<Option<Value>, LedgerError> {
        let mut connection = self.read().await?;
        sql::invoices::document(&mut connection, number, client).await
    }

    pub(crate) async fn invoices(&self, query: InvoiceQuery<'_>) -> Result<Vec<Value>, LedgerError> {
        let mut connection = self.read().await?;
        sql::invoices::documents(&mut connection, &query).await
    }

    pub(crate) async fn invoice_deliveries(
        &self,
        number: i64,
        client: Option<&ClientId>,
        after: i64,
        limit: i64,
    ) -> Result<Option<Vec<RecordView>>, LedgerError> {
        let mut connection = self.read().await?;
        let events = sql::invoices::deliveries(&mut connection, number, client, after, limit).await?;
        Ok(events.map(|events| events.into_iter().map(RecordView::from).collect()))
    }

    /// The records booked for one delivery.
    pub async fn records_of_delivery(&self, delivery: DeliveryId) -> Result<Vec<RecordView>, LedgerError> {
        let mut connection = self.read().await?;
        let query = sqlx::query(sql::events::select("WHERE e.delivery = $1 ORDER BY e.id LIMIT 100"))
            .bind(delivery.as_bytes().to_vec());
        views(query.fetch_all(&mut *connection).await?)
    }

    /// Records of a node's chain, by number from after `after`.
    pub async fn records_of_node(
        &self,
        node: &NodeId,
        epoch: u64,
        after: u64,
        limit: i64,
    ) -> Result<Vec<RecordView>, LedgerError> {
        let mut connection = self.read().await?;
        let conditions = "WHERE e.chain = (SELECT id FROM chains WHERE node = $1 AND epoch = $2) \
             AND e.seq > $3 ORDER BY e.seq LIMIT $4";
        let query = sqlx::query(sql::events::select(conditions))
            .bind(node.to_string())
            .bind(epoch.cast_signed())
            .bind(i64::try_from(after).unwrap_or(i64::MAX))
            .bind(limit);
        views(query.fetch_all(&mut *connection).await?)
    }

    /// All chains and how far they are booked.
    pub async fn chains(&self) -> Result<Vec<ChainView>, LedgerError> {
        let mut connection = self.read().await?;
        sql::chains::all(&mut connection).await
    }

    /// The digest of a booked record.
    pub(crate) async fn digest_of(
        &self,
        node: &NodeId,
        epoch: u64,
        seq: u64,
    ) -> Result<Option<RecordDigest>, LedgerError> {
        let mut connection = self.read().await?;
        sql::chains::digest_of(&mut connection, node, epoch, seq).await
    }

    /// What the records of a month sum to, by the month of the deliveries.
    pub async fn month_totals(&self, period: Period) -> Result<MonthTotals, LedgerError> {
        self.sum_up().await?;
        let mut connection = self.read().await?;
        sql::usage::of_month(&mut connection, period).await
    }

    /// What a delivery of a content would be charged now.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] if it could not be rated now.
    pub async fn quote(
        &self,
        client: ClientId,
        content: ContentName,
        provider: ClientId,
        bytes: u64,
        away: bool,
    ) -> Result<Quote, LedgerError> {
        let now = self.clock.now();
        let mut connection = self.read().await?;
        let rates = sql::terms::rate_book(&mut connection, self.fee).await?;
        let Some(tariff) = rates.tariff_at(now) else {
            return Err(LedgerError::Conflict("no tariff holds now; put one".into()));
        };
        let micros = |class| rates.quote(&client, &content, &provider, bytes, away, class, now);
        let unrated = |reason: Exception| LedgerError::Conflict(format!("it cannot be rated: {reason}"));
        Ok(Quote {
            currency: tariff.value.currency,
            purchase_micros: micros(DeliveryClass::Purchase).map_err(unrated)?,
            reference_micros: micros(DeliveryClass::Reference).map_err(unrated)?,
            tax_basis_points: tariff.value.tax_basis_points,
            tariff: tariff.number,
        })
    }

    /// Accounts by name after `after`.
    pub async fn accounts(&self, after: &str, limit: i64) -> Result<Vec<AccountView>, LedgerError> {
        let mut connection = self.read().await?;
        sql::journals::accounts(&mut connection, after, limit).await
    }

    /// The closed months, the first one first.
    pub async fn periods(&self) -> Result<Vec<ClosedPeriod>, LedgerError> {
        let mut connection = self.read().await?;
        sql::periods::all(&mut connection).await
    }

    /// Computes everything anew and compares; reads the whole ledger.
    pub async fn verify(&self) -> Result<VerifyReport, LedgerError> {
        let mut connection = self.read().await?;
        verify(&mut connection, self.fee).await
    }
}

fn views(rows: Vec<sqlx::any::AnyRow>) -> Result<Vec<RecordView>, LedgerError> {
    rows.iter().map(|row| StoredEvent::from_row(row).map(RecordView::from)).collect()
}

/// What is stored holds against what a configuration file says.
fn kept(result: Result<(), LedgerError>) -> Result<(), LedgerError> {
    match result {
        Err(LedgerError::Conflict(message)) => {
            tracing::warn!(message, "configured terms differ from the stored ones, which hold");
            Ok(())
        }
        other => other,
    }
}

/// A checked document with the time it holds from and its stored text.
fn checked_version(
    fee: Fee,
    table: Table,
    document: &Value,
) -> Result<(common::time::UnixMillis, String), LedgerError> {
    Ok(match table {
        Table::Tariffs => (Tariff::from_json(fee, document)?.valid_from, canonical_tariff(fee, document)?),
        Table::Splits => (Split::from_json(fee, document)?.valid_from, canonical_split(fee, document)?),
    })
}

fn checked_party(document: &Value) -> Result<(Party, common::time::UnixMillis, String), LedgerError> {
    let (party, valid_from) = Party::from_json(document)?;
    Ok((party, valid_from, canonical::<Party>(document)?))
}
