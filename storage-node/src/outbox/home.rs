//! Ends of visitors' deliveries that their home did not take: handed over when it is back.
//!
//! A gateway reports an end to home itself; what home does not take at that moment comes here, so that it outlives the
//! gateway. Home takes an end once, however often it is told ([`common::api::node::EndRequest::request`]).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use common::api::node::EndRequest;
use common::api::peer::{PeerClient, PeerEnds};
use common::api::temporary::KeepEndsRequest;
use common::backoff::Backoff;
use common::error::{ApiResult, chain};
use common::id::{NodeId, SiteId};
use common::time::UnixMillis;

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{HomeEnd, Row};
use crate::catalog::txn::{Rows, Txn};
use crate::shard::Shard;

/// Most ends in one call.
const BATCH_LEN: usize = 512;
/// How often it is looked for ends that nobody told of.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// So long a home is waited for. It gives up a delivery by itself soon after it is back, so nothing is billed wrongly.
const KEPT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Queues ends.
pub fn keep(txn: &mut Txn<'_>, request: &KeepEndsRequest, now: UnixMillis) {
    for end in &request.ends {
        let row = HomeEnd { end: end.clone(), since: now };
        txn.put(Key::HomeEnd(&request.shard, &end.request), &row);
    }
}

/// The shards that ends wait for, and the oldest of each, at most a batch.
fn waiting(rows: &(impl Rows + ?Sized)) -> ApiResult<Vec<(NodeId, Vec<HomeEnd>)>> {
    let mut waiting: Vec<(NodeId, Vec<HomeEnd>)> = Vec::new();
    rows.scan(&key::all(Tag::HomeEnd), &mut |key, value| {
        let Some(shard) = key::home_shard(key) else { return Ok(ControlFlow::Continue(())) };
        match waiting.last_mut().filter(|(last, _)| *last == shard) {
            Some((_, ends)) if ends.len() == BATCH_LEN => {}
            Some((_, ends)) => ends.push(HomeEnd::decode(value)?),
            None => waiting.push((shard, vec![HomeEnd::decode(value)?])),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(waiting)
}

/// Hands ends over, for ever.
pub async fn send(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut maps = shard.node.maps.watch();
    loop {
        maps.mark_unchanged();
        match pass(&shard).await {
            Ok(Pass::Empty) => {
                backoff.reset();
                let _either = tokio::time::timeout(LOOK_INTERVAL, shard.signals.end_kept.notified()).await;
            }
            Ok(Pass::Sent) => backoff.reset(),
            // A home that is back shows in the map.
            Ok(Pass::Unreached) => {
                let _either = tokio::time::timeout(backoff.next_delay(), maps.changed()).await;
            }
            Err(error) => {
                tracing::warn!(shard = %shard.id, error = chain(&error), "ends of visitors' deliveries are not handed over");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// What a pass came to.
enum Pass {
    Empty,
    Sent,
    /// Some home took none.
    Unreached,
}

async fn pass(shard: &Shard) -> ApiResult<Pass> {
    let waiting = shard.read_settled(waiting).await?;
    let mut pass = if waiting.is_empty() { Pass::Empty } else { Pass::Sent };
    let now = shard.node.clock.now();
    for (home, ends) in waiting {
        let requests: Vec<EndRequest> = ends.iter().map(|kept| kept.end.clone()).collect();
        if !hand_over(shard, &home, &requests).await {
            let is_over = ends.iter().all(|kept| now.since(kept.since) > KEPT_MAX);
            if !is_over {
                pass = Pass::Unreached;
                continue;
            }
            tracing::error!(shard = %shard.id, %home, ends = ends.len(), "a home site took no ends for a week; they are given up");
        }
        let delete = move |txn: &mut Txn<'_>| {
            requests.iter().for_each(|end| txn.delete(Key::HomeEnd(&home, &end.request)));
            Ok(())
        };
        shard.catalog.commit(delete).await?;
    }
    Ok(pass)
}

/// Tells a gateway of the site that the shard belongs to. Answers whether one took the ends.
async fn hand_over(shard: &Shard, home: &NodeId, ends: &[EndRequest]) -> bool {
    let Ok(site) = SiteId::new(home.site()) else { return false };
    let view = shard.node.maps.view();
    let gateways = view.map.site(&site).map_or(&[][..], |site| &site.gateways);
    let request = PeerEnds { shard: home.clone(), ends: ends.to_vec() };
    for gateway in gateways.iter().filter(|gateway| gateway.alive) {
        match PeerClient::gateway(shard.node.client.clone(), &gateway.http).ends(&request).await {
            Ok(()) => return true,
            Err(error) => {
                tracing::debug!(shard = %shard.id, %home, error = chain(&error), "home takes no ends");
            }
        }
    }
    false
}
