//! Chains of records, ledgers to book them in, and the whole of the books as text.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use billing::chain::CheckedBatch;
use billing::ledger::{BatchReport, Ledger};
use billing::{Fee, Terms, demo_tariffs};
use common::api::billing::RecordBatch;
use common::hash::{ContentHash, RecordDigest};
use common::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use common::record::{ChainedRecord, DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus, Source};
use common::time::{Clock, UnixMillis};
use database::Location;
use sqlx::{AnyConnection, Connection, Row};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// 2026-10-15 in Tokyo.
pub const OCTOBER: u64 = 1_792_000_000_000;
/// 2026-11-15 in Tokyo.
pub const NOVEMBER: u64 = OCTOBER + 31 * 86_400_000;

/// A ledger with its writer running.
pub struct Books {
    pub ledger: Ledger,
    pub dir: tempfile::TempDir,
    /// Milliseconds since 1970.
    pub clock: Arc<AtomicU64>,
    stop: CancellationToken,
    writer: JoinHandle<()>,
    fee: Fee,
}

/// The ledger that lives in this folder, or in a database of its name.
fn location(dir: &tempfile::TempDir) -> Location {
    match crate::database(dir.path()) {
        Some(url) => Location::at(&url, None).unwrap(),
        None => Location::in_folder(dir.path(), "books.db").unwrap(),
    }
}

impl Books {
    /// An empty ledger with the demonstration's terms, in December 2026.
    pub async fn open(fee: Fee) -> Self {
        Self::with_terms(fee, &demo_tariffs()).await
    }

    pub async fn with_terms(fee: Fee, terms: &Terms) -> Self {
        let books = Self::open_in(tempfile::tempdir().unwrap(), fee).await;
        books.ledger.put_terms(terms).await.unwrap();
        books
    }

    pub async fn open_in(dir: tempfile::TempDir, fee: Fee) -> Self {
        let clock = Arc::new(AtomicU64::new(NOVEMBER + 31 * 86_400_000));
        let (ledger, writer) =
            Ledger::open(&location(&dir), fee, Clock::Manual(clock.clone())).await.unwrap();
        let stop = CancellationToken::new();
        // Few together, so that what is told comes from sums and from what is not summed yet.
        let writer = tokio::spawn(writer.sum_after(7).run(stop.clone()));
        Self { ledger, dir, clock, stop, writer, fee }
    }

    /// Stops the writer in order and opens the ledger anew.
    pub async fn reopen(self) -> Self {
        self.stop.cancel();
        self.writer.await.unwrap();
        Self::open_in(self.dir, self.fee).await
    }

    pub async fn book(&self, node: &str, epoch: u64, records: &[ChainedRecord]) -> BatchReport {
        let batch =
            RecordBatch { node: NodeId::new(node).unwrap(), epoch, records: records.to_vec(), passed: None };
        self.ledger.book(CheckedBatch::new(batch).unwrap()).await.unwrap()
    }

    /// A connection past all of our code.
    pub async fn raw(&self) -> AnyConnection {
        sqlx::any::install_default_drivers();
        let url = crate::database(self.dir.path())
            .unwrap_or_else(|| format!("sqlite:{}", self.dir.path().join("books.db").display()));
        AnyConnection::connect(&url).await.unwrap()
    }

    pub async fn assert_verifies(&self) {
        let report = self.ledger.verify().await.unwrap();
        assert!(report.ok, "{:#?}", report.findings);
        assert_eq!(self.ledger.totals().await.unwrap().imbalance_micros, 0);
    }

    /// Everything that the books say, without the order in which it arrived.
    pub async fn dump(&self) -> Vec<String> {
        // When sums are made depends on how batches were cut.
        self.ledger.totals().await.unwrap();
        let statements = [
            "SELECT 'head ' || node || ' ' || epoch || ' ' || last_seq FROM chains",
            "SELECT 'balance ' || a.name || ' ' || a.currency || ' ' || b.amount FROM balances b \
             JOIN accounts a ON a.id = b.account",
            "SELECT 'usage ' || client || ' ' || booked_period || ' ' || usage_period || ' ' || outcome || ' ' || \
             status || ' ' || class || ' ' || path || ' ' || currency || ' ' || deliveries || ' ' || bytes_sent || \
             ' ' || amount FROM usage",
            "SELECT 'earnings ' || party || ' ' || booked_period || ' ' || usage_period || ' ' || kind || ' ' || part \
             || ' ' || class || ' ' || path || ' ' || currency || ' ' || deliveries || ' ' || amount FROM earnings",
            "SELECT 'charge ' || c.node || ' ' || c.epoch || ' ' || e.seq || ' ' || coalesce(x.resolved_outcome, \
             e.outcome) || ' ' || coalesce(e.amount, x.amount, 0) || ' ' || coalesce(e.currency, x.currency, '') \
             FROM events e JOIN chains c ON c.id = e.chain LEFT JOIN exceptions x ON x.event = e.id",
            "SELECT 'invoice ' || document FROM invoices",
            "SELECT 'statement ' || document FROM statements",
        ];
        let mut raw = self.raw().await;
        let mut lines = Vec::new();
        for statement in statements {
            let rows = sqlx::query(statement).fetch_all(&mut raw).await.unwrap();
            lines.extend(rows.iter().map(|row| row.get::<String, _>(0)));
        }
        lines.sort();
        lines
    }
}

/// The `n`th record of some node; kinds, parties and sizes vary with `n`.
pub fn record(n: u64) -> DeliveryRecord {
    let client = ["bob", "carol", "dave"][(n % 3) as usize];
    let (path, source) = match n % 5 {
        0 | 1 => (DeliveryPath::Hit, None),
        2 | 3 => (DeliveryPath::Peer, Some(Source::Site(SiteId::new("osaka").unwrap()))),
        _ => (DeliveryPath::Origin, Some(Source::Origin(ServerName::new("o1").unwrap()))),
    };
    let status = match n % 11 {
        7 => DeliveryStatus::Void,
        8 => DeliveryStatus::Recovered,
        9 => DeliveryStatus::Partial,
        _ => DeliveryStatus::Complete,
    };
    let mut delivery = [0u8; 16];
    delivery[..8].copy_from_slice(&n.to_be_bytes());
    DeliveryRecord {
        delivery: DeliveryId::from_bytes(delivery),
        begin: UnixMillis(OCTOBER + n),
        end: UnixMillis(OCTOBER + n + 5),
        client: ClientId::new(client).unwrap(),
        content: format!("alice/track-{}.wav", n % 7).parse().unwrap(),
        hash: ContentHash::of(&n.to_le_bytes()),
        provider: ClientId::new(if n.is_multiple_of(4) { "carol" } else { "alice" }).unwrap(),
        class: if n.is_multiple_of(2) { DeliveryClass::Purchase } else { DeliveryClass::Reference },
        path,
        home: SiteId::new("tokyo").unwrap(),
        source,
        searched: path != DeliveryPath::Hit,
        surrogate: (n % 6 == 5).then(|| SiteId::new("osaka").unwrap()),
        mobile_access: (n % 12 == 5).then(|| ServerName::new("m1").unwrap()),
        status,
        bytes_total: n * 7919 % 5_000_000,
        bytes_sent: n * 7919 % 5_000_000,
    }
}

/// `records` as the chain of a node's epoch.
pub fn chain(
    node: &str,
    epoch: u64,
    records: impl IntoIterator<Item = DeliveryRecord>,
) -> Vec<ChainedRecord> {
    let node = NodeId::new(node).unwrap();
    let mut chain: Vec<ChainedRecord> = Vec::new();
    for record in records {
        let previous = chain.last().map_or(RecordDigest::ZERO, |r| r.digest);
        chain.push(ChainedRecord::append(&node, epoch, chain.len() as u64, previous, record));
    }
    chain
}
