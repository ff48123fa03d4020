//! Deliveries against bookings, one by one: every delivery that an answer named is booked at both billing servers
//! exactly once, and nothing else of these clients is.
//!
//! The records are read along the nodes' chains, from where each chain ended before the load began.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use common::api::billing::Totals;
use common::client::CallError;
use common::cluster::ClusterMap;
use common::id::{ClientId, DeliveryId, NodeId};
use common::record::DeliveryStatus;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::operator::Operator;

const PAGE: u64 = 1000;
const POLL_EVERY: Duration = Duration::from_millis(300);
/// Record epochs without a record, after which no more are looked for.
const EMPTY_EPOCHS_MAX: u64 = 2;
/// Faults that are told by their ids.
const EXAMPLES_MAX: usize = 5;

/// Where the books are, and the map that tells which nodes write in them.
#[derive(Debug, Clone)]
pub struct Ledgers {
    pub search: String,
    pub service: String,
    pub content: String,
    pub admin_token: String,
}

/// What the load knows of its deliveries.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Every id that an answer named.
    pub begun: HashSet<DeliveryId>,
    /// Those of which every byte arrived.
    pub whole: HashSet<DeliveryId>,
    /// Downloads in two ranges, one right after the other, that were recorded as two deliveries.
    pub split: u64,
    /// Requests without an answer: each may have begun a delivery that nobody was told of.
    pub unanswered: u64,
}

/// The comparison and its verdict.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub begun: u64,
    pub whole: u64,
    pub unanswered: u64,
    pub split: u64,
    /// Deliveries that did not arrive whole and are not booked yet: they stay open until the nodes' join window is over.
    pub still_open: u64,
    /// Records by status, at the service and at the content billing server.
    pub service: BTreeMap<String, u64>,
    pub content: BTreeMap<String, u64>,
    /// Records by the node that wrote them.
    pub by_node: BTreeMap<String, u64>,
    pub faults: Vec<String>,
    pub agrees: bool,
}

#[derive(Deserialize)]
struct Page {
    records: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    seq: u64,
    delivery: DeliveryId,
    client: ClientId,
    status: DeliveryStatus,
}

/// How far the chains have been read at one server.
struct Reader {
    base: String,
    read_to: BTreeMap<(NodeId, u64), u64>,
    booked: HashMap<DeliveryId, Vec<DeliveryStatus>>,
    by_node: BTreeMap<String, u64>,
}

/// The books from a certain point on.
pub struct Bookings {
    operator: Operator,
    ledgers: Ledgers,
    clients: HashSet<ClientId>,
    readers: [Reader; 2],
}

impl Bookings {
    /// The books of these clients from now on.
    pub async fn from_now(ledgers: &Ledgers, clients: HashSet<ClientId>) -> Result<Self, CallError> {
        let reader = |base: &str| Reader {
            base: base.to_owned(),
            read_to: BTreeMap::new(),
            booked: HashMap::new(),
            by_node: BTreeMap::new(),
        };
        let readers = [reader(&ledgers.service), reader(&ledgers.content)];
        let operator = Operator::new(&ledgers.admin_token);
        let mut bookings = Self { operator, ledgers: ledgers.clone(), clients, readers };
        let nodes = bookings.nodes().await?;
        for index in 0..bookings.readers.len() {
            for node in &nodes {
                let mut epoch = 1;
                let mut empty = 0;
                while empty < EMPTY_EPOCHS_MAX {
                    let end = bookings.end_of(index, node, epoch).await?;
                    empty = if end == 0 { empty + 1 } else { 0 };
                    bookings.readers[index].read_to.insert((node.clone(), epoch), end);
                    epoch += 1;
                }
            }
        }
        Ok(bookings)
    }

    /// Compares again and again, until all agrees or `limit` is over.
    pub async fn compare(&mut self, expected: &Expected, limit: Duration) -> Result<Comparison, CallError> {
        let give_up = Instant::now() + limit;
        let mut agreed = false;
        loop {
            let comparison = self.compare_once(expected).await;
            let over = Instant::now() >= give_up;
            let agrees = comparison.as_ref().is_ok_and(|found| found.agrees && found.still_open == 0);
            // Once more after it agreed: what is booked twice may come with the next batch.
            if over || agrees && agreed {
                return comparison;
            }
            agreed = agrees;
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    async fn compare_once(&mut self, expected: &Expected) -> Result<Comparison, CallError> {
        self.read().await?;
        let mut comparison = self.comparison(expected);
        for (name, base) in [("service", &self.ledgers.service), ("content", &self.ledgers.content)] {
            let totals: Totals = self.operator.get(&format!("{base}/v1/totals")).await?;
            if totals.imbalance_micros != 0 {
                let by = totals.imbalance_micros;
                comparison.faults.push(format!("{name} billing is out of balance by {by}"));
            }
        }
        comparison.agrees = comparison.faults.is_empty();
        Ok(comparison)
    }

    fn comparison(&self, expected: &Expected) -> Comparison {
        let by_status = |reader: &Reader| {
            let mut counts = BTreeMap::new();
            for status in reader.booked.values().flatten() {
                *counts.entry(word(*status)).or_default() += 1;
            }
            counts
        };
        let [service, content] = &self.readers;
        let mut faults = faults("service", expected, &service.booked);
        faults.extend(self::faults("content", expected, &content.booked));
        Comparison {
            begun: expected.begun.len() as u64,
            whole: expected.whole.len() as u64,
            unanswered: expected.unanswered,
            split: expected.split,
            still_open: self.readers.iter().map(|reader| open_at(expected, reader)).max().unwrap_or(0),
            service: by_status(service),
            content: by_status(content),
            by_node: service.by_node.clone(),
            agrees: faults.is_empty(),
            faults,
        }
    }

    /// Reads on in every chain, also in those that are new.
    async fn read(&mut self) -> Result<(), CallError> {
        let nodes = self.nodes().await?;
        for index in 0..self.readers.len() {
            for node in &nodes {
                let mut epoch = 1;
                let mut empty = 0;
                while empty < EMPTY_EPOCHS_MAX {
                    empty = if self.read_chain(index, node, epoch).await? == 0 { empty + 1 } else { 0 };
                    epoch += 1;
                }
            }
        }
        Ok(())
    }

    /// Answers with the number of the chain's last record.
    async fn read_chain(&mut self, index: usize, node: &NodeId, epoch: u64) -> Result<u64, CallError> {
        let chain = (node.clone(), epoch);
        loop {
            let after = self.readers[index].read_to.get(&chain).copied().unwrap_or(0);
            let page = self.page(index, node, epoch, after, PAGE).await?;
            let Some(last) = page.records.last().map(|record| record.seq) else { return Ok(after) };
            let reader = &mut self.readers[index];
            reader.read_to.insert(chain.clone(), last);
            for record in page.records.into_iter().filter(|record| self.clients.contains(&record.client)) {
                reader.booked.entry(record.delivery).or_default().push(record.status);
                *reader.by_node.entry(node.to_string()).or_default() += 1;
            }
        }
    }

    /// Number of the last record of a chain: numbers have no gaps, so it is found by doubling and halving.
    async fn end_of(&self, index: usize, node: &NodeId, epoch: u64) -> Result<u64, CallError> {
        let mut beyond = 1;
        while !self.page(index, node, epoch, beyond - 1, 1).await?.records.is_empty() {
            beyond *= 2;
        }
        // Record `low` exists (or is 0), record `beyond` does not.
        let mut low = beyond / 2;
        while low + 1 < beyond {
            let middle = low + (beyond - low) / 2;
            if self.page(index, node, epoch, middle - 1, 1).await?.records.is_empty() {
                beyond = middle;
            } else {
                low = middle;
            }
        }
        Ok(low)
    }

    async fn page(
        &self,
        index: usize,
        node: &NodeId,
        epoch: u64,
        after: u64,
        limit: u64,
    ) -> Result<Page, CallError> {
        let base = &self.readers[index].base;
        self.operator
            .get(&format!("{base}/v1/records?node={node}&epoch={epoch}&after={after}&limit={limit}"))
            .await
    }

    async fn nodes(&self) -> Result<Vec<NodeId>, CallError> {
        let map: ClusterMap =
            self.operator.get(&format!("{}/v1/map?after=0&wait_ms=0", self.ledgers.search)).await?;
        Ok(map.sites.into_iter().flat_map(|site| site.nodes).map(|node| node.id).collect())
    }
}

fn open_at(expected: &Expected, reader: &Reader) -> u64 {
    let open = |id: &&DeliveryId| !expected.whole.contains(*id) && !reader.booked.contains_key(*id);
    expected.begun.iter().filter(open).count() as u64
}

fn word(status: DeliveryStatus) -> String {
    let word = match status {
        DeliveryStatus::Complete => "complete",
        DeliveryStatus::Partial => "partial",
        DeliveryStatus::Void => "void",
        DeliveryStatus::Recovered => "recovered",
    };
    word.to_owned()
}

/// What is wrong in the books of one server.
fn faults(name: &str, expected: &Expected, booked: &HashMap<DeliveryId, Vec<DeliveryStatus>>) -> Vec<String> {
    let is_void = |statuses: &[DeliveryStatus]| statuses.iter().all(|s| *s == DeliveryStatus::Void);
    let missing: Vec<&DeliveryId> = expected.whole.iter().filter(|id| !booked.contains_key(*id)).collect();
    let (mut twice, mut not_whole, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for (id, statuses) in booked {
        if statuses.len() > 1 {
            twice.push(id);
        }
        let whole = matches!(statuses[..], [DeliveryStatus::Complete | DeliveryStatus::Recovered]);
        if expected.whole.contains(id) && statuses.len() == 1 && !whole {
            not_whole.push(id);
        }
        // A delivery of no bytes costs nothing, and may be what is left of a request that was repeated.
        if !expected.begun.contains(id) && !is_void(statuses) {
            unknown.push(id);
        }
    }
    if unknown.len() as u64 <= expected.unanswered {
        unknown.clear();
    }
    let cases = [
        (missing, "were delivered and are not booked"),
        (twice, "are booked more than once"),
        (not_whole, "arrived whole and are booked as something else"),
        (unknown, "are booked and nobody was told of them"),
    ];
    let tell = |(mut ids, what): (Vec<&DeliveryId>, &str)| {
        if ids.is_empty() {
            return None;
        }
        ids.sort();
        let shown: Vec<String> = ids.iter().take(EXAMPLES_MAX).map(ToString::to_string).collect();
        Some(format!("{name} billing: {} deliveries {what}: {}", ids.len(), shown.join(", ")))
    };
    cases.into_iter().filter_map(tell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeliveryStatus::{Complete, Partial, Recovered, Void};

    fn id(i: u8) -> DeliveryId {
        DeliveryId::from_bytes([i; 16])
    }

    fn found(unanswered: u64, booked: &[(u8, &[DeliveryStatus])]) -> String {
        let expected = Expected {
            begun: (0..4).map(id).collect(),
            whole: (0..3).map(id).collect(),
            unanswered,
            split: 0,
        };
        let booked = booked.iter().map(|(i, statuses)| (id(*i), statuses.to_vec())).collect();
        faults("service", &expected, &booked).join("; ")
    }

    #[test]
    fn every_wrong_booking_is_found() {
        let right: [(u8, &[DeliveryStatus]); 4] =
            [(0, &[Complete]), (1, &[Complete]), (2, &[Recovered]), (3, &[Partial])];
        assert_eq!(found(0, &right), "");
        assert_eq!(found(0, &right[..3]), "", "what did not arrive whole may still be open");
        assert!(found(0, &right[1..]).contains("1 deliveries were delivered and are not booked: 0000"));
        let with = |more: (u8, &'static [DeliveryStatus])| {
            let mut booked: Vec<(u8, &[DeliveryStatus])> = right.to_vec();
            booked.retain(|(i, _)| *i != more.0);
            booked.push(more);
            booked
        };
        assert!(found(0, &with((1, &[Complete, Complete]))).contains("more than once"));
        assert!(found(0, &with((1, &[Partial]))).contains("something else"));
        assert!(found(0, &with((1, &[Void]))).contains("something else"));
        assert!(found(0, &with((9, &[Complete]))).contains("nobody was told"));
        assert_eq!(found(1, &with((9, &[Recovered]))), "", "a request without an answer may have begun one");
        assert_eq!(found(0, &with((9, &[Void]))), "");
    }
}
