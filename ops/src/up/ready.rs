//! When a freshly started system can be used: conditions that are looked at until they hold. The caller bounds the
//! time.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use common::api::search::{ListQuery, SearchClient};
use common::cluster::{ClusterMap, MapEpoch, SiteEntry};
use common::error::ErrorCode;
use common::id::{BucketName, SiteId};
use common::placement::{SLOT_COUNT, Slot, preferred_owner};
use common::server::Running;

use super::directory::STUDIO;
use crate::demo;
use crate::error::Failure;

/// Between two looks at a condition that cannot be waited on.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// New nodes may take over slots for this long before the system is called ready; they go on afterwards.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);
/// The origin hashes all samples at the first start: a second in a release build.
const SAMPLES_TIME_MAX: Duration = Duration::from_secs(10);

/// Waits until every server's own conditions hold.
pub async fn wait_for_all<'a>(servers: impl Iterator<Item = &'a Running>) {
    for running in servers {
        while !running.health.is_ready() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

/// Names of the servers that are not ready.
pub fn pending<'a>(servers: impl Iterator<Item = &'a Running>) -> String {
    let names: Vec<&str> = servers.filter(|r| !r.health.is_ready()).map(|r| r.name.as_str()).collect();
    if names.is_empty() { "every server is, but not yet the whole".to_owned() } else { names.join(", ") }
}

/// Waits until every site has so many active nodes in the map and each slot has an owner; then, for a while, until each
/// slot is where placement wants it.
pub async fn wait_for_nodes(search: &SearchClient, sites: &[(SiteId, usize)]) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut map = search.map(MapEpoch(0), Duration::ZERO).await?;
    loop {
        let each = |holds: fn(&SiteEntry, usize) -> bool| {
            sites.iter().all(|(site, nodes)| map.site(site).is_some_and(|entry| holds(entry, *nodes)))
        };
        if each(is_settled) || each(can_serve) && begin.elapsed() >= SETTLE_TIME_MAX {
            return Ok(());
        }
        map = next_map(search, map).await?;
    }
}

/// The map when it changes, or the same one after a while.
async fn next_map(search: &SearchClient, map: ClusterMap) -> Result<ClusterMap, Failure> {
    Ok(search.map(map.epoch, Duration::from_millis(200)).await?)
}

fn can_serve(site: &SiteEntry, nodes: usize) -> bool {
    let active = site.nodes.iter().filter(|n| n.alive).count();
    active >= nodes && site.slot_owners.len() == usize::from(SLOT_COUNT)
}

fn is_settled(site: &SiteEntry, nodes: usize) -> bool {
    let at_home = |slot| match (site.slot_owner(slot), preferred_owner(site, slot)) {
        (Some(owner), Some(preferred)) => owner.id == preferred.id,
        _ => false,
    };
    can_serve(site, nodes) && (0..SLOT_COUNT).map(Slot).all(at_home)
}

/// Waits until search lists every sample that is in `folder`; gives up, with a word in the log, when hashing takes
/// too long: what is missing shows up later.
pub async fn wait_for_samples(search: &SearchClient, folder: &Path) -> Result<(), Failure> {
    let begin = Instant::now();
    let bucket = BucketName::new(STUDIO)?;
    let expected: BTreeSet<String> = demo::keys().into_iter().filter(|k| folder.join(k).exists()).collect();
    loop {
        let listed: BTreeSet<String> = match search.list(&bucket, &ListQuery::default()).await {
            Ok(page) => page.contents.iter().map(|c| c.name.key().to_owned()).collect(),
            Err(error) if error.code() == Some(ErrorCode::BucketNotFound) => BTreeSet::new(),
            Err(error) => return Err(error.into()),
        };
        let missing = expected.difference(&listed).count();
        if missing == 0 {
            return Ok(());
        }
        if begin.elapsed() >= SAMPLES_TIME_MAX {
            tracing::warn!(missing, "sample contents are still being registered");
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL * 5).await;
    }
}
