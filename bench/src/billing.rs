//! The ledger alone: how many deliveries a second it books, at what cost, how that changes as it grows; what comes twice;
//! the close of a month. In this process, without HTTP: batches are checked and booked as a billing server does it, durably.
//! Each node has one batch on the way at a time; batches that wait together share a transaction.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use billing::chain::{CheckedBatch, MalformedBatch};
use billing::ledger::{BatchReport, CloseRequest, Ledger};
use billing::{Fee, demo_tariffs};
use common::api::billing::RecordBatch;
use common::hash::{ContentHash, RecordDigest};
use common::id::{ClientId, DeliveryId, InvalidId, NodeId, SiteId};
use common::record::{ChainedRecord, DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus, Source};
use common::server::StartError;
use common::time::{Clock, UnixMillis};
use database::Location;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::process;

/// 2026-10-15 in Tokyo.
const OCTOBER: u64 = 1_792_000_000_000;
const DAY_MS: u64 = 86_400_000;
/// Batches of each node that are made before they are sent: making them is not measured.
const ROUND: u64 = 16;
/// Batches of each node that are sent a second time.
const REPEATED: usize = 50;

#[derive(Debug, Clone)]
pub struct BillingPlan {
    pub fee: Fee,
    /// An empty PostgreSQL database; an SQLite file in a temporary folder if none is given.
    pub database: Option<String>,
    /// Folder for the SQLite file instead of a temporary one.
    pub data_dir: Option<PathBuf>,
    pub deliveries: u64,
    pub clients: u64,
    /// Records in a batch.
    pub batch: u64,
    /// Nodes that send batches at the same time.
    pub nodes: u16,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BillingResult {
    pub fee: &'static str,
    pub database: &'static str,
    pub deliveries: u64,
    pub clients: u64,
    pub nodes: u16,
    pub per_s: f64,
    /// Of this process for one delivery; a database server's is not in it.
    pub cpu_us: f64,
    /// Of the first and of the last tenth.
    pub first_per_s: f64,
    pub last_per_s: f64,
    pub duplicates_per_s: f64,
    pub close_s: f64,
    pub invoices: i64,
    pub peak_memory_mib: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BillingBenchError {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Ledger(#[from] billing::ledger::LedgerError),
    #[error(transparent)]
    Batch(#[from] MalformedBatch),
    #[error("a folder for the ledger cannot be made")]
    Folder(#[from] std::io::Error),
    #[error("the ledger answered {0}")]
    Answer(String),
}

/// Records of one node, made as they are needed.
struct Node {
    id: NodeId,
    clients: Vec<ClientId>,
    provider: ClientId,
    sites: [SiteId; 2],
    last: (u64, RecordDigest),
    made: u64,
}

impl Node {
    fn new(number: u16, clients: u64) -> Result<Self, InvalidId> {
        let client = |n| ClientId::new(&format!("client-{n}"));
        Ok(Self {
            id: NodeId::new(&format!("tokyo.n{number}"))?,
            clients: (0..clients).map(client).collect::<Result<_, _>>()?,
            provider: ClientId::new("provider")?,
            sites: [SiteId::new("tokyo")?, SiteId::new("osaka")?],
            last: (0, RecordDigest::ZERO),
            made: 0,
        })
    }

    fn record(&mut self) -> DeliveryRecord {
        let n = self.made;
        self.made += 1;
        let (path, source) = match n % 4 {
            0 => (DeliveryPath::Peer, Some(Source::Site(self.sites[1].clone()))),
            _ => (DeliveryPath::Hit, None),
        };
        let begin = UnixMillis(OCTOBER + n % DAY_MS);
        // A multiplier without a common factor with the number of clients spreads them.
        let client = usize::try_from(n.wrapping_mul(2_654_435_761) % self.clients.len() as u64).unwrap_or(0);
        let content = format!("bucket/content-{}.bin", n % 10_007);
        DeliveryRecord {
            delivery: DeliveryId::generate(begin),
            begin,
            end: UnixMillis(begin.0 + 5),
            client: self.clients[client].clone(),
            hash: ContentHash::of(content.as_bytes()),
            content: content.parse().expect("a name of plain characters"),
            provider: self.provider.clone(),
            class: if n.is_multiple_of(3) { DeliveryClass::Purchase } else { DeliveryClass::Reference },
            path,
            home: self.sites[0].clone(),
            source,
            searched: path == DeliveryPath::Peer,
            surrogate: None,
            mobile_access: None,
            status: DeliveryStatus::Complete,
            bytes_total: 1_000 + n % 5_000_000,
            bytes_sent: 1_000 + n % 5_000_000,
        }
    }

    fn batch(&mut self, len: u64) -> RecordBatch {
        let mut records = Vec::new();
        for _ in 0..len {
            let record = self.record();
            let link = ChainedRecord::append(&self.id, 1, self.last.0, self.last.1, record);
            self.last = (link.seq, link.digest);
            records.push(link);
        }
        RecordBatch { node: self.id.clone(), epoch: 1, records, passed: None }
    }
}

/// Runs the plan on an empty ledger.
pub async fn run(plan: BillingPlan) -> Result<BillingResult, BillingBenchError> {
    let folder = tempfile::tempdir()?;
    let location = match &plan.database {
        Some(url) => Location::at(url, None)?,
        None => Location::in_folder(plan.data_dir.as_deref().unwrap_or(folder.path()), "bench.db")?,
    };
    let clock = Clock::Manual(Arc::new(AtomicU64::new(OCTOBER + 60 * DAY_MS)));
    let (ledger, writer) = Ledger::open(&location, plan.fee, clock).await?;
    let stop = CancellationToken::new();
    let writer = tokio::spawn(writer.run(stop.clone()));
    let result = measure(&plan, &ledger).await;
    stop.cancel();
    // What is measured was answered; how the writer ends says nothing about it.
    let _ended = writer.await;
    result
}

async fn measure(plan: &BillingPlan, ledger: &Ledger) -> Result<BillingResult, BillingBenchError> {
    ledger.put_terms(&demo_tariffs()).await?;
    let nodes = 1..=plan.nodes.max(1);
    let mut nodes = nodes.map(|number| Node::new(number, plan.clients)).collect::<Result<Vec<_>, _>>()?;
    let pid = std::process::id();
    let (mut made, mut spent, mut cpu) = (0, Duration::ZERO, Duration::ZERO);
    let mut marks = vec![(0u64, Duration::ZERO)];
    let mut repeated: Vec<Vec<RecordBatch>> = vec![Vec::new(); nodes.len()];
    while made < plan.deliveries {
        let mut round: Vec<Vec<RecordBatch>> = vec![Vec::new(); nodes.len()];
        for _ in 0..ROUND {
            for (node, batches) in nodes.iter_mut().zip(&mut round) {
                let len = plan.batch.min(plan.deliveries - made);
                if len > 0 {
                    batches.push(node.batch(len));
                    made += len;
                }
            }
        }
        for (repeated, batches) in repeated.iter_mut().zip(&round) {
            repeated.extend(batches.iter().take(REPEATED.saturating_sub(repeated.len())).cloned());
        }
        let before = process::cpu_time(pid).unwrap_or_default();
        spent += send(ledger, round, |report| (report.booked, 0)).await?;
        cpu += process::cpu_time(pid).unwrap_or_default().saturating_sub(before);
        marks.push((made, spent));
    }
    let duplicates: usize = repeated.iter().flatten().map(|batch| batch.records.len()).sum();
    let duplicates_s = send(ledger, repeated, |report| (report.duplicates, report.booked)).await?;
    let duplicates_per_s = duplicates as f64 / duplicates_s.as_secs_f64();
    let begin = Instant::now();
    let period = "2026-10".parse().map_err(|error| BillingBenchError::Answer(format!("{error}")))?;
    let closed = ledger.close(&CloseRequest { period, dry_run: false, after: String::new() }).await?;
    let tenth = plan.deliveries / 10;
    let rate_between = |low: u64, high: u64| {
        let at = |n: u64| marks.iter().find(|(made, _)| *made >= n).copied().unwrap_or_default();
        let ((from, begin), (to, end)) = (at(low), at(high));
        (to - from) as f64 / (end - begin).as_secs_f64()
    };
    Ok(BillingResult {
        fee: plan.fee.as_str(),
        database: if plan.database.is_some() { "postgresql" } else { "sqlite" },
        deliveries: plan.deliveries,
        clients: plan.clients,
        nodes: plan.nodes,
        per_s: plan.deliveries as f64 / spent.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / plan.deliveries as f64,
        first_per_s: rate_between(0, tenth),
        last_per_s: rate_between(plan.deliveries - tenth, plan.deliveries),
        duplicates_per_s,
        close_s: begin.elapsed().as_secs_f64(),
        invoices: closed.issued,
        peak_memory_mib: process::peak_memory_mib(),
    })
}

/// Sends the batches of each node one after the other, all nodes at the same time; answers how long that took. `of` gives
/// of a report how many records became what they should, and how many did not.
async fn send(
    ledger: &Ledger,
    batches: Vec<Vec<RecordBatch>>,
    of: fn(&BatchReport) -> (u64, u64),
) -> Result<Duration, BillingBenchError> {
    let begin = Instant::now();
    let mut nodes = JoinSet::new();
    for batches in batches {
        let ledger = ledger.clone();
        nodes.spawn(async move {
            for batch in batches {
                let len = batch.records.len() as u64;
                let report = ledger.book(CheckedBatch::new(batch)?).await?;
                if of(&report) != (len, 0) {
                    return Err(BillingBenchError::Answer(format!("{report:?}")));
                }
            }
            Ok(())
        });
    }
    while let Some(done) = nodes.join_next().await {
        done.map_err(|panicked| BillingBenchError::Answer(panicked.to_string()))??;
    }
    Ok(begin.elapsed())
}
