//! Registering objects: each is read once, found to be what its facts tell of, and committed with its announcement.

use futures_util::{FutureExt, StreamExt};

use common::error::chain;
use common::name::ContentName;

use crate::error::Failure;
use crate::manifest::{Digest, digest};
use crate::registry::{self, Put};
use crate::server::App;
use crate::source::{Facts, SourceError};
use crate::sources::OpenSource;

/// An object that is new or changed.
pub struct Item {
    pub name: ContentName,
    pub facts: Facts,
}

/// Reads the objects and registers them in one commit. One that cannot be read stays as it was, and is looked at by
/// the next scan. Answers how many were registered.
pub async fn register(app: &App, open: &OpenSource, items: &[Item]) -> Result<u64, Failure> {
    let _alone = open.registering.lock().await;
    let reading: Vec<_> = items.iter().map(|item| read(app, open, &item.facts).boxed()).collect();
    let reading = futures_util::stream::iter(reading).buffered(open.store.read_ahead());
    let read: Vec<_> = reading.collect().await;
    let mut tx = app.db.write().await?;
    let (mut registered, mut contents, mut announced) = (0, 0, 0u64);
    for (Item { name, facts }, found) in items.iter().zip(read) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%name, reason = chain(&error), "an object was not registered");
                open.change(|progress| progress.scan.unreadable += 1);
                continue;
            }
        };
        match registry::put(&mut tx, &open.source, name, facts, &found, app.now()).await? {
            Put::NewContent => {
                contents += 1;
                announced += 1;
            }
            Put::NewVersion => announced += 1,
            Put::SameContent => {}
        }
        registered += 1;
    }
    tx.commit().await?;
    app.metrics.contents.increment(f64::from(contents));
    if announced > 0 {
        tracing::debug!(bucket = %open.source.bucket, announced, "registered");
        app.announce.notify_one();
    }
    Ok(registered)
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
