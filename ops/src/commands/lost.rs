//! What a lost node takes with it. Contents whose list entry only its shard had are found in search, which still
//! says that the site holds them, and withdrawn there, so that nobody is sent to where they are not. Contents
//! that are still listed, but of which it had the only copy of some chunk, are found by the nodes that are left.

use std::time::{Duration, Instant};

use common::api::node::{AuditPage, Incomplete, NodeClient};
use common::api::search::{ListQuery, MissingAt, SearchClient};
use common::client::CallError;
use common::cluster::{MapEpoch, NodeEntry, NodeState, SiteEntry};
use common::error::ErrorCode;
use common::id::{NodeId, SiteId};
use common::name::ContentName;
use common::placement::{SLOT_COUNT, Slot};
use common::version::Version;

use crate::error::Failure;
use crate::session::Operator;

/// How long a shard may take to be served again.
const TAKE_OVER_TIME_MAX: Duration = Duration::from_secs(15);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A content that a site held.
pub struct Lost {
    pub name: ContentName,
    version: Version,
}

/// What the nodes of a site found to be not whole.
#[derive(Default)]
pub struct Audit {
    pub checked: u64,
    pub incomplete: Vec<Incomplete>,
}

/// Has every shard of a site look at its contents. Waits for shards that are being taken over.
pub async fn audit(operator: &Operator, site: &SiteId) -> Result<Audit, Failure> {
    let (mut audit, give_up) = (Audit::default(), Instant::now() + TAKE_OVER_TIME_MAX);
    let map = operator.search().map(MapEpoch(0), Duration::ZERO).await?;
    let shards = map.site(site).map(|site| site.nodes.iter().map(|node| node.id.clone()).collect::<Vec<_>>());
    for shard in shards.unwrap_or_default() {
        let mut after = None;
        loop {
            match audit_page(operator, site, &shard, after.as_ref()).await {
                Ok(Some(page)) => {
                    audit.checked += page.checked;
                    audit.incomplete.extend(page.incomplete);
                    let Some(next) = page.next else { break };
                    after = Some(next);
                }
                Ok(None) => break,
                Err(error) if error.is_retryable() && Instant::now() < give_up => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(audit)
}

/// The next contents of a shard; `None` for one that nobody serves, and that has no slots.
async fn audit_page(
    operator: &Operator,
    site: &SiteId,
    shard: &NodeId,
    after: Option<&ContentName>,
) -> Result<Option<AuditPage>, CallError> {
    // Anew each time: who serves it may change.
    let map = operator.search().map(MapEpoch(0), Duration::ZERO).await?;
    let Some(entry) = map.site(site) else { return Ok(None) };
    let Some(primary) = entry.shard_primary(shard) else { return Ok(None) };
    if !primary.alive && entry.slots_owned_by(shard).next().is_none() {
        return Ok(None);
    }
    let node = NodeClient::new(operator.server.clone(), &primary.http);
    node.audit(shard, after).await.map(Some)
}

/// The slots that nobody has the rows of once a node is given up: those of its own shard and of removed
/// nodes' shards, where it alone serves them.
pub fn slots(site: &SiteEntry, node: &NodeEntry) -> Vec<Slot> {
    // Of a shard with followers one would be the primary by now.
    if node.alive || node.state == NodeState::Removed {
        return Vec::new();
    }
    let is_lost = |slot: &Slot| {
        let served_by_it = site.slot_primary(*slot).is_some_and(|primary| primary.id == node.id);
        let is_gone = |shard: &NodeEntry| shard.id == node.id || shard.state == NodeState::Removed;
        served_by_it && site.slot_owner(*slot).is_some_and(is_gone)
    };
    (0..SLOT_COUNT).map(Slot).filter(is_lost).collect()
}

/// Contents that search shows as held by a site, with their names in one of the slots.
pub async fn contents(search: &SearchClient, site: &SiteId, slots: &[Slot]) -> Result<Vec<Lost>, Failure> {
    let mut lost = Vec::new();
    if slots.is_empty() {
        return Ok(lost);
    }
    for bucket in search.buckets().await? {
        let mut query = ListQuery::default();
        loop {
            let page = search.list(&bucket.bucket, &query).await?;
            for content in page.contents.iter().filter(|c| slots.contains(&Slot::of_name(&c.name))) {
                if let Some(version) = held_version(search, site, &content.name).await? {
                    lost.push(Lost { name: content.name.clone(), version });
                }
            }
            let Some(next) = page.next else { break };
            query.after = next;
        }
    }
    Ok(lost)
}

/// The version of a name that the site holds, as far as it is the newest.
async fn held_version(
    search: &SearchClient,
    site: &SiteId,
    name: &ContentName,
) -> Result<Option<Version>, Failure> {
    match search.lookup(name).await {
        Ok(info) => Ok(info.sites.contains(site).then_some(info.version)),
        Err(error) if error.code() == Some(ErrorCode::ContentNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes the site out of search as a holder of the contents.
pub async fn withdraw(search: &SearchClient, site: &SiteId, lost: &[Lost]) -> Result<(), Failure> {
    let at = MissingAt::Site(site.clone());
    for Lost { name, version } in lost {
        search.report_missing(name, *version, &at).await?;
    }
    Ok(())
}
