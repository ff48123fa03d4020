//! Announcements: batches of storage nodes and origins, applied exactly once and in order.

use std::collections::HashMap;

use common::api::search::{AnnounceBatch, Announcement, Announcer};
use common::error::ErrorCode;
use common::id::{BucketName, ClientId};
use common::name::ContentName;

use crate::buckets;
use crate::changes;
use crate::contents::{self, Effect, Held, Holder};
use crate::db::Connection;
use crate::error::{Failure, integer};

const MEDIA_TYPE_LEN_MAX: usize = 255;

/// What a batch did.
#[derive(Debug, Default)]
pub struct Applied {
    pub next_seq: i64,
    /// Announcements applied; those known before are not counted.
    pub items: u64,
    pub contents: i64,
    pub holders: i64,
    /// Last number of the change feed after the batch.
    pub last_change: i64,
}

/// Applies the part of a batch that is new. A batch that leaves a gap changes nothing.
pub async fn apply(conn: &mut Connection, batch: &AnnounceBatch) -> Result<Applied, Failure> {
    let (key, holder) = match &batch.announcer {
        Announcer::Node(node) => (format!("node:{node}"), Holder::site(node.site())),
        Announcer::Origin(name) => (format!("origin:{name}"), Holder::origin(name.as_str())),
    };
    let epoch = integer(batch.epoch, "epoch")?;
    let first = integer(batch.first_seq, "first_seq")?;
    if first == 0 {
        return Err(Failure::refused(ErrorCode::InvalidRequest, "announcements are numbered from 1"));
    }
    let next_seq = expected(conn, &key, epoch).await?;
    let last_change = changes::last_seq(conn).await?;
    let mut applied = Applied { next_seq, last_change, ..Applied::default() };
    if first > next_seq {
        return Ok(applied);
    }
    let known = usize::try_from(next_seq - first).unwrap_or(usize::MAX);
    let mut providers = HashMap::new();
    for item in batch.items.iter().skip(known) {
        let effect = apply_item(conn, &mut providers, &holder, item).await?;
        if let Some((kind, version)) = effect.change {
            applied.last_change += 1;
            changes::append(conn, applied.last_change, kind, name_of(item).as_str(), version).await?;
        }
        applied.contents += effect.contents;
        applied.holders += effect.holders;
        applied.items += 1;
        applied.next_seq += 1;
    }
    sqlx::query(
        "INSERT INTO announcers (announcer, epoch, next_seq) VALUES ($1, $2, $3)
         ON CONFLICT (announcer) DO UPDATE SET epoch = excluded.epoch, next_seq = excluded.next_seq",
    )
    .bind(&key)
    .bind(epoch)
    .bind(applied.next_seq)
    .execute(conn)
    .await?;
    Ok(applied)
}

/// The number that the announcer's next announcement must have. A higher epoch begins at 1 again.
async fn expected(conn: &mut Connection, announcer: &str, epoch: i64) -> Result<i64, Failure> {
    let row: Option<(i64, i64)> =
        sqlx::query_as("SELECT epoch, next_seq FROM announcers WHERE announcer = $1")
            .bind(announcer)
            .fetch_optional(conn)
            .await?;
    match row {
        Some((known, next_seq)) if known == epoch => Ok(next_seq),
        Some((known, _)) if known > epoch => {
            let message =
                format!("{announcer} announces in epoch {epoch}, but has announced in epoch {known} before");
            Err(Failure::refused(ErrorCode::Conflict, message))
        }
        _ => Ok(1),
    }
}

fn name_of(item: &Announcement) -> &ContentName {
    match item {
        Announcement::Hold { name, .. }
        | Announcement::Release { name, .. }
        | Announcement::Withdraw { name, .. } => name,
    }
}

/// Providers of the buckets that a batch names.
type Providers = HashMap<BucketName, Option<ClientId>>;

async fn apply_item(
    conn: &mut Connection,
    providers: &mut Providers,
    holder: &Holder,
    item: &Announcement,
) -> Result<Effect, Failure> {
    match item {
        Announcement::Hold { name, version, len, media_type, provider } => {
            if !is_provider(conn, providers, name, provider).await? {
                tracing::warn!(%name, %provider, ?holder, "announced with a provider that the bucket does not have; skipped");
                return Ok(Effect::default());
            }
            let media_type = if media_type.len() <= MEDIA_TYPE_LEN_MAX { media_type } else { "" };
            contents::hold(conn, holder, Held { name, version: *version, len: *len, media_type, provider })
                .await
        }
        Announcement::Release { name, version } => contents::release(conn, holder, name, *version).await,
        Announcement::Withdraw { name, version } => contents::withdraw(conn, name, *version).await,
    }
}

/// Whoever is named as provider is paid, so an announcement cannot name another than the bucket's.
async fn is_provider(
    conn: &mut Connection,
    providers: &mut Providers,
    name: &ContentName,
    claimed: &ClientId,
) -> Result<bool, Failure> {
    let bucket = name.bucket_name();
    if let Some(provider) = providers.get(&bucket) {
        return Ok(provider.as_ref().is_none_or(|p| p == claimed));
    }
    let provider = buckets::find(conn, &bucket).await?.map(|record| record.provider);
    let same = provider.as_ref().is_none_or(|p| p == claimed);
    providers.insert(bucket, provider);
    Ok(same)
}
