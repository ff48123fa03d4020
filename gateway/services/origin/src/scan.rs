//! Scanning a source: registers what is new or changed, and withdraws what is gone.
//!
//! Each source has one worker, so nothing of a source is registered by two at a time. Objects that cannot be read
//! are left as they are and tried again by the next scan; only a listing that came to its end withdraws anything.

use std::time::Duration;

use tokio::sync::mpsc;

use common::api::search::{NewBucket, Visibility};
use common::backoff::Backoff;
use common::error::{ErrorCode, chain};
use common::name::ContentName;

use crate::config::Source;
use crate::error::Failure;
use crate::manifest::digest;
use crate::registry;
use crate::server::App;
use crate::source::{Facts, SourceError, Store};

/// Groups of facts listed ahead of the reading.
const GROUPS_AHEAD: usize = 2;
const WITHDRAWN_AT_ONCE: i64 = 256;

/// Keeps one source registered for as long as the server runs. `reread` names objects whose bytes were found to
/// differ from what was registered.
pub async fn run(app: App, source: Source, store: Store, mut reread: mpsc::Receiver<String>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
    loop {
        app.tell_scan(&source.bucket, "scanning");
        let wait = match scan(&app, &source, &store).await {
            Ok(()) => {
                backoff.reset();
                app.tell_scan(&source.bucket, "scanned");
                app.rescan
            }
            Err(failure) => {
                let reason = chain(&failure);
                tracing::warn!(bucket = %source.bucket, url = source.url, reason, "the source was not scanned to its end");
                app.metrics.failed_scans.increment(1);
                app.tell_scan(&source.bucket, &format!("not scanned: {reason}"));
                backoff.next_delay().min(app.rescan.max(Duration::from_millis(50)))
            }
        };
        let next_scan = tokio::time::sleep(wait);
        tokio::pin!(next_scan);
        loop {
            tokio::select! {
                () = &mut next_scan => break,
                Some(location) = reread.recv() => {
                    if let Err(failure) = look_again(&app, &source, &store, &location).await {
                        tracing::warn!(bucket = %source.bucket, location, reason = chain(&failure), "an object was not read again");
                    }
                }
            }
        }
    }
}

async fn scan(app: &App, source: &Source, store: &Store) -> Result<(), Failure> {
    ensure_bucket(app, source).await?;
    let mut tx = app.db.write().await?;
    let number = registry::begin_scan(&mut tx, &source.bucket).await?;
    tx.commit().await?;
    let (sender, mut groups) = mpsc::channel(GROUPS_AHEAD);
    let listing = store.list(sender);
    let registering = async {
        while let Some(group) = groups.recv().await {
            register_group(app, source, store, number, &group).await?;
        }
        Ok::<(), Failure>(())
    };
    let (listed, registered) = tokio::join!(listing, registering);
    registered?;
    listed?;
    withdraw_vanished(app, source, number).await
}

/// Makes the bucket if search does not know it. One that belongs to another client is not touched.
async fn ensure_bucket(app: &App, source: &Source) -> Result<(), Failure> {
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

async fn register_group(
    app: &App,
    source: &Source,
    store: &Store,
    scan: i64,
    group: &[Facts],
) -> Result<(), Failure> {
    let mut seen = Vec::with_capacity(group.len());
    for facts in group {
        let name = match ContentName::new(&source.bucket, &facts.location) {
            Ok(name) => name,
            Err(error) => {
                tracing::warn!(bucket = %source.bucket, %error, "an object whose name cannot be a key; left out");
                continue;
            }
        };
        let mut conn = app.db.read().await?;
        let is_unchanged = registry::is_unchanged(&mut conn, &name, facts).await?;
        drop(conn);
        if !is_unchanged {
            match register(app, source, store, &name, facts).await {
                Ok(()) => {}
                // A matter of this object alone: it stays as it was, and the next scan tries again.
                Err(Failure::Source(error)) => {
                    tracing::warn!(%name, reason = chain(&error), "an object was not registered");
                }
                Err(failure) => return Err(failure),
            }
        }
        seen.push(name);
    }
    let mut tx = app.db.write().await?;
    for name in &seen {
        registry::mark_seen(&mut tx, name, scan).await?;
    }
    tx.commit().await?;
    app.count_contents().await
}

/// Reads one object and registers what it is.
async fn register(
    app: &App,
    source: &Source,
    store: &Store,
    name: &ContentName,
    facts: &Facts,
) -> Result<(), Failure> {
    let permit = app.digests.acquire().await.map_err(|_| SourceError::Changed)?;
    let found = digest(store.open_object(&facts.location).await?).await?;
    drop(permit);
    app.metrics.read_bytes.increment(found.len);
    // What was read must be what the facts tell of: a file may be written to while it is read.
    let now = store.facts(&facts.location).await?;
    if now.as_ref() != Some(facts) || found.len != facts.size {
        return Err(SourceError::Changed.into());
    }
    let mut tx = app.db.write().await?;
    let is_new = registry::put(&mut tx, source, name, facts, &found, app.clock.now()).await?;
    tx.commit().await?;
    if is_new {
        tracing::debug!(%name, len = found.len, chunks = found.chunks.len(), "registered");
        app.announce.notify_one();
    }
    Ok(())
}

/// Looks at one object again whose bytes were not what was registered.
async fn look_again(app: &App, source: &Source, store: &Store, location: &str) -> Result<(), Failure> {
    let name = ContentName::new(&source.bucket, location)?;
    match store.facts(location).await? {
        Some(facts) => {
            let mut conn = app.db.read().await?;
            // Many collectors may have met the same change.
            let was_done = registry::is_unchanged(&mut conn, &name, &facts).await?;
            drop(conn);
            if !was_done {
                register(app, source, store, &name, &facts).await?;
            }
        }
        None => {
            let mut tx = app.db.write().await?;
            registry::withdraw(&mut tx, &name).await?;
            tx.commit().await?;
            app.announce.notify_one();
        }
    }
    app.count_contents().await
}

async fn withdraw_vanished(app: &App, source: &Source, scan: i64) -> Result<(), Failure> {
    loop {
        let mut tx = app.db.write().await?;
        let names = registry::vanished(&mut tx, &source.bucket, scan, WITHDRAWN_AT_ONCE).await?;
        for name in &names {
            registry::withdraw(&mut tx, name).await?;
        }
        tx.commit().await?;
        if names.is_empty() {
            return Ok(());
        }
        tracing::info!(bucket = %source.bucket, count = names.len(), "objects are gone; withdrawn");
        app.announce.notify_one();
        app.count_contents().await?;
    }
}
