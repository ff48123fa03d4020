//! What a lost node takes with it: contents whose list entry only its shard had. They are found in search,
//! which still says that the site holds them, and withdrawn there, so that nobody is sent to where they are
//! not.

use common::api::search::{ListQuery, MissingAt, SearchClient};
use common::cluster::{NodeEntry, NodeState, SiteEntry};
use common::error::ErrorCode;
use common::id::SiteId;
use common::name::ContentName;
use common::placement::{SLOT_COUNT, Slot};
use common::version::Version;

use crate::error::Failure;

/// A content that a site held.
pub struct Lost {
    pub name: ContentName,
    version: Version,
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
