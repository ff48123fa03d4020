//! Scanning a source: all of it, at an interval, and when much may have changed. What is new or changed is
//! registered; what is gone goes to [`crate::withdraw`].
//!
//! A scan's memory is bounded whatever the source holds: groups of facts stream from the listing through the
//! registry. Each group is committed, and an object that the registry knows unchanged is not read, so after a
//! restart the next scan goes on where this one stopped.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use common::api::origin::{ScanProgress, SourceState};
use common::api::search::{NewBucket, Visibility};
use common::backoff::Backoff;
use common::error::{ErrorCode, chain};
use common::name::ContentName;

use crate::error::Failure;
use crate::register::{Item, register};
use crate::server::App;
use crate::source::{Facts, Listing};
use crate::sources::OpenSource;
use crate::{registry, watch, withdraw};

/// Groups of facts listed ahead of the reading.
const GROUPS_AHEAD: usize = 2;
/// A commit registers objects of at most so many bytes, or a single one.
const COMMIT_BYTES: u64 = 16 << 20;

/// Scans a source for as long as the server runs.
pub async fn run(app: &App, open: &OpenSource) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
    let mut watch = None;
    loop {
        app.tell(open, SourceState::Scanning, None);
        // First the watch: what changes behind the scan's back is then told.
        watch = watch::renewed(open, watch).await;
        let began = Instant::now();
        let wait = match scan(app, open).await {
            Ok(problem) => {
                backoff.reset();
                app.tell(open, SourceState::Scanned, problem);
                app.rescan()
            }
            Err(failure) => {
                let reason = chain(&failure);
                tracing::warn!(bucket = %open.source.bucket, reason, "the source was not scanned to its end");
                app.metrics.failed_scans.increment(1);
                app.tell(open, SourceState::Failing, Some(reason));
                backoff.next_delay().min(app.rescan().max(Duration::from_millis(50)))
            }
        };
        // Changes that keep coming must not make it scan all the time.
        let rest = app.settle().max(began.elapsed() * 2).min(wait);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = open.scan_now.notified() => {}
            () = async {
                open.scan_soon.notified().await;
                tokio::time::sleep(rest).await;
            } => {}
        }
    }
}

/// One scan; answers what people should know although it came to its end.
async fn scan(app: &App, open: &OpenSource) -> Result<Option<String>, Failure> {
    let bucket = &open.source.bucket;
    let started = Some(app.now());
    open.change(|progress| progress.scan = ScanProgress { started, ..ScanProgress::default() });
    ensure_bucket(app, open).await?;
    let mut tx = app.db.write().await?;
    let number = registry::begin_scan(&mut tx, bucket).await?;
    tx.commit().await?;
    let (sender, mut groups) = mpsc::channel(GROUPS_AHEAD);
    let listing = open.store.list(sender);
    let registering = async {
        // Returning drops the receiver, which ends the listing.
        while let Some(group) = groups.recv().await {
            register_group(app, open, number, group).await?;
        }
        drop(groups);
        Ok::<(), Failure>(())
    };
    let (listed, registered) = tokio::join!(listing, registering);
    registered?;
    let Listing { left_out, unreadable } = listed?;
    open.change(|progress| {
        progress.scan.left_out += left_out;
        progress.scan.unreadable += unreadable;
    });
    let problem = if unreadable == 0 {
        withdraw::vanished(app, open, number).await?
    } else {
        Some(format!("{unreadable} files or folders cannot be read; what is missing is not withdrawn"))
    };
    open.withdrawn.store(0, Ordering::Relaxed);
    open.change(|progress| progress.scan.ended = Some(app.now()));
    Ok(problem)
}

/// Makes the bucket if search does not know it. One that belongs to another client is not touched.
async fn ensure_bucket(app: &App, open: &OpenSource) -> Result<(), Failure> {
    let source = &open.source;
    let unavailable =
        |e: common::client::CallError| e.to_api(ErrorCode::SearchUnavailable, "search does not answer");
    let provider = match app.search.bucket(&source.bucket).await {
        Ok(record) => record.provider,
        Err(error) if error.code() == Some(ErrorCode::BucketNotFound) => {
            let new = NewBucket { provider: source.provider.clone(), visibility: Visibility::Public };
            app.search.put_bucket(&source.bucket, &new).await.map_err(unavailable)?.provider
        }
        Err(error) => return Err(unavailable(error).into()),
    };
    if provider == source.provider {
        return Ok(());
    }
    let message = format!("bucket {} belongs to {provider}, not to {}", source.bucket, source.provider);
    Err(Failure::refused(ErrorCode::Conflict, message))
}

async fn register_group(app: &App, open: &OpenSource, scan: i64, group: Vec<Facts>) -> Result<(), Failure> {
    let bucket = &open.source.bucket;
    open.change(|progress| progress.scan.listed += group.len() as u64);
    let mut items = Vec::with_capacity(group.len());
    for facts in group {
        match ContentName::new(bucket, &facts.location) {
            Ok(name) => items.push(Item { name, facts }),
            Err(error) => {
                tracing::debug!(%bucket, %error, "an object whose name cannot be a key; left out");
                open.change(|progress| progress.scan.left_out += 1);
            }
        }
    }
    if items.is_empty() {
        return Ok(());
    }
    let mut conn = app.db.read().await?;
    let names: Vec<&ContentName> = items.iter().map(|item| &item.name).collect();
    let known = registry::facts(&mut conn, &names).await?;
    drop(conn);
    let is_unchanged =
        |item: &Item| known.get(item.name.as_str()).is_some_and(|known| known.same_object(&item.facts));
    let (unchanged, changed): (Vec<Item>, Vec<Item>) = items.into_iter().partition(is_unchanged);
    let (settled, unsettled): (Vec<Item>, Vec<Item>) =
        changed.into_iter().partition(|item| app.is_settled(open, &item.facts));
    for commit in commits(&settled).collect::<Vec<_>>() {
        register(app, open, commit).await?;
    }
    for item in &unsettled {
        open.look_later(&item.facts.location);
    }
    let seen = unchanged.iter().chain(&settled).chain(&unsettled);
    let seen: Vec<&ContentName> = seen.map(|item| &item.name).collect();
    let mut tx = app.db.write().await?;
    registry::mark_seen(&mut tx, &seen, scan).await?;
    tx.commit().await?;
    Ok(())
}

/// Splits items where a commit would become too long.
fn commits(items: &[Item]) -> impl Iterator<Item = &[Item]> {
    let mut bytes = items.first().map_or(0, |item| item.facts.size);
    items.chunk_by(move |_, next| {
        bytes = bytes.saturating_add(next.facts.size);
        let is_short = bytes <= COMMIT_BYTES;
        if !is_short {
            bytes = next.facts.size;
        }
        is_short
    })
}
