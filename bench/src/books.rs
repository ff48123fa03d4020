//! Deliveries against bookings: what clients received must be what both billing servers booked, to the last one.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use common::api::billing::Totals;
use common::client::{CallError, HttpClient, read_body, read_refusal};
use http::Request;
use http::header::AUTHORIZATION;
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::measure::Deliveries;
use crate::target::Books;

/// How long the books may take to agree after the last delivery.
pub const AGREE_TIME_MAX: Duration = Duration::from_secs(10);
const POLL_EVERY: Duration = Duration::from_millis(100);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// The totals of both servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booked {
    pub service: Totals,
    pub content: Totals,
}

/// Reads both servers' totals.
pub async fn totals(http: &HttpClient, books: &Books) -> Result<Booked, CallError> {
    let service = totals_of(http, &books.service, &books.admin_token).await?;
    let content = totals_of(http, &books.content, &books.admin_token).await?;
    Ok(Booked { service, content })
}

async fn totals_of(http: &HttpClient, base: &str, admin_token: &str) -> Result<Totals, CallError> {
    let url = format!("{base}/v1/totals");
    let request = Request::get(&url)
        .header(AUTHORIZATION, format!("Bearer {admin_token}"))
        .body(Full::new(Bytes::new()))
        .map_err(|error| CallError::Unreachable { url: url.clone(), source: error.into() })?;
    let response = http.send(request, ANSWER_TIME_MAX).await?;
    if !response.status().is_success() {
        return Err(read_refusal(&url, response).await);
    }
    let text = read_body(&url, response.into_body(), 1 << 20).await?;
    serde_json::from_slice(&text).map_err(|error| CallError::Answer { url, source: error.into() })
}

/// Reads the totals when nothing more comes in: twice the same, and both servers alike; or as they are after
/// [`AGREE_TIME_MAX`].
pub async fn settled(http: &HttpClient, books: &Books) -> Result<Booked, CallError> {
    let give_up = Instant::now() + AGREE_TIME_MAX;
    let mut before = totals(http, books).await?;
    let mut same = 0;
    loop {
        tokio::time::sleep(POLL_EVERY).await;
        let now = totals(http, books).await?;
        same = if now == before && now.service.records == now.content.records { same + 1 } else { 0 };
        if same >= 3 || Instant::now() >= give_up {
            return Ok(now);
        }
        before = now;
    }
}

/// What one server booked during the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BookedInRun {
    pub complete: u64,
    /// Records of every status.
    pub records: u64,
    pub by_status: BTreeMap<String, u64>,
    pub imbalance_micros: i64,
}

impl BookedInRun {
    fn between(before: &Totals, after: &Totals) -> Self {
        let since = |(status, count): (&String, &u64)| {
            let count = count.saturating_sub(before.records.get(status).copied().unwrap_or(0));
            (count > 0).then(|| (status.clone(), count))
        };
        let by_status: BTreeMap<String, u64> = after.records.iter().filter_map(since).collect();
        Self {
            complete: by_status.get("complete").copied().unwrap_or(0),
            records: by_status.values().sum(),
            by_status,
            imbalance_micros: after.imbalance_micros,
        }
    }
}

/// The comparison and its verdict.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reconciliation {
    /// Deliveries received whole, by distinct ids.
    pub delivered: u64,
    /// Deliveries that broke off.
    pub broken: u64,
    /// Deliveries of ranges of which not all bytes came: they stay open for the rest for a while.
    #[serde(default)]
    pub in_part: u64,
    /// Requests without an answer: each may have been recorded or not.
    pub unanswered: u64,
    pub service: BookedInRun,
    pub content: BookedInRun,
    pub agrees: bool,
    pub verdict: String,
}

impl Reconciliation {
    pub fn of(deliveries: &Deliveries, before: &Booked, after: &Booked) -> Self {
        let service = BookedInRun::between(&before.service, &after.service);
        let content = BookedInRun::between(&before.content, &after.content);
        // An id that was received whole once is whole, even if a range of it broke off.
        let delivered = deliveries.whole.len() as u64;
        let broken = deliveries.broken.difference(&deliveries.whole).count() as u64;
        let others = deliveries.in_part.difference(&deliveries.whole);
        let in_part = others.filter(|id| !deliveries.broken.contains(*id)).count() as u64;
        let unanswered = deliveries.unanswered;
        let mut faults = Vec::new();
        if service.by_status != content.by_status {
            faults.push("the two servers booked different records".to_owned());
        }
        for (name, booked) in [("service", &service), ("content", &content)] {
            // What broke off at the client may have been sent whole by the server; ranges that several asked for may
            // have made a whole.
            let most = delivered + broken + in_part + unanswered;
            if booked.complete < delivered || booked.complete > most {
                faults.push(format!("{name} billing booked {} complete deliveries", booked.complete));
            }
            // A delivery that broke off is recorded later: a resumed download still belongs to it.
            if booked.records > most {
                faults.push(format!("{name} billing booked {} records", booked.records));
            }
            if booked.imbalance_micros != 0 {
                faults.push(format!("{name} billing is out of balance by {}", booked.imbalance_micros));
            }
        }
        let agrees = faults.is_empty();
        let verdict = if agrees {
            let parts = if in_part > 0 { format!(", and {in_part} in part") } else { String::new() };
            format!(
                "{delivered} deliveries received{parts} = {} booked by both billing servers",
                service.complete
            )
        } else {
            format!(
                "{delivered} deliveries received, {in_part} in part, {broken} broken off, {unanswered} unanswered, but {}",
                faults.join(", ")
            )
        };
        Self { delivered, broken, in_part, unanswered, service, content, agrees, verdict }
    }
}

/// Compares, again and again until all is booked or [`AGREE_TIME_MAX`] is over.
pub async fn reconcile(
    http: &HttpClient,
    books: &Books,
    before: &Booked,
    deliveries: &Deliveries,
) -> Result<Reconciliation, CallError> {
    let give_up = Instant::now() + AGREE_TIME_MAX;
    loop {
        let comparison = Reconciliation::of(deliveries, before, &totals(http, books).await?);
        if comparison.agrees || Instant::now() >= give_up {
            return Ok(comparison);
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::id::DeliveryId;

    fn booked(complete: u64, partial: u64) -> Booked {
        let records = BTreeMap::from([("complete".to_owned(), complete), ("partial".to_owned(), partial)]);
        let totals = Totals { records, journals: 0, exceptions: 0, imbalance_micros: 0 };
        Booked { service: totals.clone(), content: totals }
    }

    fn received(whole: u8, broken: u8, unanswered: u64) -> Deliveries {
        let id = |i: u8| DeliveryId::from_bytes([i; 16]);
        Deliveries {
            whole: (0..whole).map(id).collect(),
            broken: (100..100 + broken).map(id).collect(),
            unanswered,
            ..Deliveries::default()
        }
    }

    #[test]
    fn one_record_too_few_or_too_many_is_seen() {
        let agrees = |deliveries: &Deliveries, complete: u64, partial: u64| {
            Reconciliation::of(deliveries, &booked(5, 1), &booked(5 + complete, 1 + partial)).agrees
        };
        let ten = received(10, 0, 0);
        assert!(agrees(&ten, 10, 0));
        assert!(!agrees(&ten, 9, 0) && !agrees(&ten, 11, 0) && !agrees(&ten, 10, 1));
        let torn = received(10, 2, 1);
        assert!(agrees(&torn, 10, 2) && agrees(&torn, 11, 1) && agrees(&torn, 10, 3));
        assert!(agrees(&torn, 10, 0), "what broke off may still be open");
        assert!(!agrees(&torn, 14, 0) && !agrees(&torn, 9, 3) && !agrees(&torn, 10, 4));
    }

    #[test]
    fn a_delivery_of_ranges_is_one_at_most_and_whole_only_if_all_came() {
        let id = |i: u8| DeliveryId::from_bytes([i; 16]);
        let mut deliveries = received(10, 0, 0);
        // One that is whole after its last range, two that are not.
        deliveries.in_part.extend([id(0), id(50), id(51)]);
        let of = |complete: u64, partial: u64| {
            Reconciliation::of(&deliveries, &booked(5, 1), &booked(5 + complete, 1 + partial))
        };
        assert_eq!(of(10, 0).in_part, 2);
        assert!(of(10, 0).agrees && of(10, 2).agrees && of(11, 1).agrees);
        assert!(!of(9, 2).agrees && !of(10, 3).agrees && !of(13, 0).agrees);
    }

    #[test]
    fn servers_that_differ_do_not_agree() {
        let mut after = booked(15, 1);
        after.content.records.insert("complete".into(), 14);
        after.content.records.insert("recovered".into(), 1);
        let comparison = Reconciliation::of(&received(10, 0, 0), &booked(5, 1), &after);
        assert!(!comparison.agrees);
        assert!(comparison.verdict.contains("different records"), "{}", comparison.verdict);
        let mut after = booked(15, 1);
        after.service.imbalance_micros = 3;
        assert!(!Reconciliation::of(&received(10, 0, 0), &booked(5, 1), &after).agrees);
    }
}
