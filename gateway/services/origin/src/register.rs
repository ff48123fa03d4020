//! Registering objects: each is read once, found to be what its facts tell of, and committed with its announcement.

use futures_util::{FutureExt, StreamExt};

use common::error::chain;
use common::name::ContentName;

use crate::error::Failure;
use crate::manifest::{Digest, digest};
use crate::registry::{self, Found, Registered};
use crate::server::App;
use crate::source::{Facts, SourceError};
use crate::sources::OpenSource;

/// An object that is new or changed.
pub struct Item {
    pub name: ContentName,
    pub facts: Facts,
}

/// Reads the objects and registers them in one commit. One that cannot be read stays as it was, and is looked at by
/// the next scan.
pub async fn register(app: &App, open: &OpenSource, items: &[Item]) -> Result<(), Failure> {
    let _alone = open.registering.lock().await;
    let reading: Vec<_> = items.iter().map(|item| read(app, open, &item.facts).boxed()).collect();
    let reading = futures_util::stream::iter(reading).buffered(open.store.read_ahead());
    let read: Vec<_> = reading.collect().await;
    let mut found = Vec::with_capacity(items.len());
    for (Item { name, facts }, digest) in items.iter().zip(read) {
        match digest {
            Ok(digest) => found.push(Found { name, facts, digest }),
            Err(error) => {
                tracing::warn!(%name, reason = chain(&error), "an object was not registered");
                open.change(|progress| progress.scan.unreadable += 1);
            }
        }
    }
    let mut tx = app.db.write().await?;
    let Registered { new, announced } = registry::put(&mut tx, &open.source, &found, app.now()).await?;
    tx.commit().await?;
    app.metrics.contents.increment(new as f64);
    if announced > 0 {
        tracing::debug!(bucket = %open.source.bucket, announced, "registered");
        app.announce.notify_one();
    }
    Ok(())
}

async fn read(app: &App, open: &OpenSource, facts: &Facts) -> Result<Digest, SourceError> {
    let permit = app.digests.acquire().await.map_err(|_closed| SourceError::Changed)?;
    let found = digest(open.store.open_object(facts).await?).await?;
    drop(permit);
    app.metrics.read_bytes.increment(found.len);
    open.change(|progress| {
        progress.scan.read += 1;
        progress.scan.read_bytes += found.len;
    });
    // What was read must be what the facts tell of. A store was asked for that very object; a file may be written to
    // while it is read.
    let is_same =
        open.store.folder().is_none() || open.store.facts(&facts.location).await?.as_ref() == Some(facts);
    if !is_same || found.len != facts.size {
        return Err(SourceError::Changed);
    }
    Ok(found)
}
