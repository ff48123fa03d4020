//! Reconciliation: do the nodes' logs, this server's books and the other server's agree? If not, where do they part?
//!
//! Records are chained by digests, so two sides that have the same digest under one number have the same records up to it.
//! Each chain is compared at the last number that both sides have; where the digests differ there, the first record that
//! differs is found by halving. What a month's records sum to is compared beside that.

use std::collections::BTreeMap;

use common::api::billing::{BillingClient, ChainView, MonthTotals};
use common::api::node::NodeClient;
use common::api::search::SearchClient;
use common::auth::Role;
use common::client::ServerClient;
use common::cluster::MapEpoch;
use common::error::{ErrorCode, chain};
use common::hash::RecordDigest;
use common::id::NodeId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::Fee;
use crate::ledger::Ledger;
use crate::period::Period;
use crate::sql::LedgerError;

/// Whom the books are compared with.
#[derive(Clone)]
pub(crate) struct Peers {
    pub http: ServerClient,
    pub search: SearchClient,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ReconciliationReport {
    pub period: Period,
    /// Everybody answered, nothing differs and nobody is behind.
    pub ok: bool,
    /// Chains that were compared.
    pub chains: usize,
    /// Records of the month by status here and at the other server.
    pub this: MonthTotals,
    pub other: Option<MonthTotals>,
    /// Where two sides contradict each other, or sums differ.
    pub differences: Vec<String>,
    /// Records that a side has not got yet; they are on their way.
    pub behind: Vec<String>,
    /// Who did not answer.
    pub unreachable: Vec<String>,
}

type ChainId = (NodeId, u64);

/// One side's newest record of a chain.
type Head = (u64, RecordDigest);

/// A side that is compared with this server.
enum Side {
    Books(BillingClient),
    Log(NodeClient),
}

impl Side {
    fn name(&self) -> &'static str {
        match self {
            Self::Books(_) => "the other server",
            Self::Log(_) => "the node's log",
        }
    }

    /// The digest of a record; `None` if the side has no such record.
    async fn digest(&self, (node, epoch): &ChainId, seq: u64) -> Result<Option<RecordDigest>, String> {
        let answer = match self {
            Self::Books(client) => client.record_digest(node, *epoch, seq).await,
            Self::Log(client) => client.record_digest(node, *epoch, seq).await,
        };
        match answer {
            Ok(digest) => Ok(Some(digest)),
            Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(None),
            Err(error) => Err(chain(&error)),
        }
    }
}

/// Compares the books of a month and all chains.
pub(crate) async fn reconcile(
    ledger: &Ledger,
    peers: &Peers,
    period: Period,
) -> Result<ReconciliationReport, LedgerError> {
    let mut report = ReconciliationReport {
        period,
        ok: false,
        chains: 0,
        this: ledger.month_totals(period).await?,
        other: None,
        differences: Vec::new(),
        behind: Vec::new(),
        unreachable: Vec::new(),
    };
    let own: BTreeMap<ChainId, Head> = heads(ledger.chains().await?);
    let map = match peers.search.map(MapEpoch(0), std::time::Duration::ZERO).await {
        Ok(map) => map,
        Err(error) => {
            report.unreachable.push(format!("search, which knows where all are: {}", chain(&error)));
            return Ok(report);
        }
    };
    let (entry, role, name) = match ledger.fee() {
        Fee::Service => (&map.content_billing, Role::ContentBilling, "content billing"),
        Fee::Content => (&map.service_billing, Role::ServiceBilling, "service billing"),
    };
    match entry {
        None => report.unreachable.push(format!("{name}: search does not know it")),
        Some(entry) => {
            let client = BillingClient::new(peers.http.clone(), &entry.http, role);
            let month = period.to_string();
            let answers = tokio::join!(client.chains(), client.month_totals(&month));
            match answers {
                (Ok(chains), Ok(totals)) => {
                    if totals != report.this {
                        report.differences.push(format!("{period} sums to {:?} here", report.this));
                        report.differences.push(format!("{period} sums to {totals:?} at {name}"));
                    }
                    report.other = Some(totals);
                    let (theirs, side) = (heads(chains), Side::Books(client));
                    compare_all(ledger, &own, &theirs, &side, true, &mut report).await?;
                }
                (Err(error), _) | (_, Err(error)) => {
                    report.unreachable.push(format!("{name}: {}", chain(&error)));
                }
            }
        }
    }
    report.chains = own.len();
    for entry in map.sites.iter().flat_map(|site| &site.nodes) {
        let client = NodeClient::new(peers.http.clone(), &entry.http);
        match client.record_heads().await {
            Ok(heads) => {
                let theirs =
                    heads.into_iter().map(|head| ((head.shard, head.epoch), (head.seq, head.digest)));
                let theirs: BTreeMap<ChainId, Head> = theirs.collect();
                compare_all(ledger, &own, &theirs, &Side::Log(client), false, &mut report).await?;
            }
            Err(error) => report.unreachable.push(format!("node {}: {}", entry.id, chain(&error))),
        }
    }
    report.ok = report.differences.is_empty() && report.behind.is_empty() && report.unreachable.is_empty();
    Ok(report)
}

fn heads(chains: Vec<ChainView>) -> BTreeMap<ChainId, Head> {
    let head = |chain: ChainView| ((chain.node, chain.epoch), (chain.last_seq, chain.last_digest));
    chains.into_iter().map(head).collect()
}

/// Compares this server's chains with a side's. A node's log has only the chains of its own shards.
async fn compare_all(
    ledger: &Ledger,
    own: &BTreeMap<ChainId, Head>,
    theirs: &BTreeMap<ChainId, Head>,
    side: &Side,
    has_all: bool,
    report: &mut ReconciliationReport,
) -> Result<(), LedgerError> {
    const NOTHING: Head = (0, RecordDigest::ZERO);
    let ids = theirs.keys().chain(own.keys().filter(|id| has_all && !theirs.contains_key(id)));
    for id in ids {
        let here = own.get(id).copied().unwrap_or(NOTHING);
        let there = theirs.get(id).copied().unwrap_or(NOTHING);
        compare(ledger, id, here, there, side, report).await?;
    }
    Ok(())
}

async fn compare(
    ledger: &Ledger,
    id: &ChainId,
    here: Head,
    there: Head,
    side: &Side,
    report: &mut ReconciliationReport,
) -> Result<(), LedgerError> {
    let ((node, epoch), name) = (id, side.name());
    if here.0 != there.0 {
        let ((less, low), (more, high)) = if here.0 < there.0 {
            (("this server", here.0), (name, there.0))
        } else {
            ((name, there.0), ("this server", here.0))
        };
        report
            .behind
            .push(format!("{less} has records of {node} in epoch {epoch} up to {low}, {more} up to {high}"));
    }
    let common = here.0.min(there.0);
    if common == 0 {
        return Ok(());
    }
    // The first number from which on the digests differ lies in (same, differs].
    let (mut same, mut differs) = (0, None);
    let mut probe = common;
    loop {
        let booked = ledger.digest_of(node, *epoch, probe).await?;
        let theirs = match side.digest(id, probe).await {
            Ok(digest) => digest,
            Err(error) => {
                report.unreachable.push(format!("{name} of {node}: {error}"));
                return Ok(());
            }
        };
        if booked.is_some() && booked == theirs {
            same = probe;
        } else {
            differs = Some(probe);
        }
        let Some(bad) = differs else { return Ok(()) };
        if bad == same + 1 {
            report
                .differences
                .push(format!("record {bad} of {node} in epoch {epoch} is not the same here and in {name}"));
            return Ok(());
        }
        probe = same + (bad - same) / 2;
    }
}
