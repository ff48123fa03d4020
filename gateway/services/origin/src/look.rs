//! Looking at single objects: files that may have changed, once they have settled, and objects whose bytes were not
//! what was registered, at once.
//!
//! A file that is being written to is not registered half: it is looked at when nothing was heard of it for the
//! settling time, and registered if its last change is as old, or it is what it was when it was looked at before
//! (files may be dated in the future).

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio::time::Instant;

use common::error::chain;
use common::name::ContentName;

use crate::error::Failure;
use crate::register::{Item, register};
use crate::server::App;
use crate::source::Facts;
use crate::sources::OpenSource;
use crate::watch::Change;
use crate::{registry, watch, withdraw};

/// An object that is waited for.
struct Settling {
    due: Instant,
    /// What it was when it was looked at last.
    seen: Option<Facts>,
}

/// Looks at objects of a source for as long as the server runs.
pub async fn run(
    app: &App,
    open: &OpenSource,
    mut rereads: mpsc::Receiver<String>,
    mut changes: mpsc::Receiver<Change>,
) {
    let mut settling: HashMap<String, Settling> = HashMap::new();
    loop {
        let next_due = settling.values().map(|s| s.due).min();
        tokio::select! {
            Some(location) = rereads.recv() => {
                look(app, open, &mut settling, location, None).await;
            }
            Some(change) = changes.recv() => {
                let overflowed = watch::was_full(&changes) || settling.len() >= changes.max_capacity();
                match change {
                    Change::File(location) if !overflowed => {
                        let due = Instant::now() + app.settle();
                        settling.insert(location, Settling { due, seen: None });
                    }
                    Change::File(_) | Change::Everything => open.scan_soon.notify_one(),
                }
            }
            () = until(next_due) => {
                let now = Instant::now();
                let due: Vec<String> =
                    settling.iter().filter(|(_, s)| s.due <= now).map(|(location, _)| location.clone()).collect();
                for location in due {
                    let seen = settling.remove(&location).and_then(|s| s.seen);
                    look(app, open, &mut settling, location, seen).await;
                }
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn look(
    app: &App,
    open: &OpenSource,
    settling: &mut HashMap<String, Settling>,
    location: String,
    seen: Option<Facts>,
) {
    match look_at(app, open, &location, seen).await {
        Ok(None) => {}
        Ok(unsettled) => {
            settling.insert(location, Settling { due: Instant::now() + app.settle(), seen: unsettled });
        }
        Err(failure) => {
            let bucket = &open.source.bucket;
            tracing::warn!(%bucket, location, reason = chain(&failure), "an object was not looked at");
        }
    }
}

/// Registers an object that changed or withdraws one that is gone; answers its facts if it may still be changing.
async fn look_at(
    app: &App,
    open: &OpenSource,
    location: &str,
    seen: Option<Facts>,
) -> Result<Option<Facts>, Failure> {
    let name = ContentName::new(&open.source.bucket, location)?;
    let Some(facts) = open.store.facts(location).await? else {
        withdraw::missing(app, open, &name).await?;
        return Ok(None);
    };
    let mut conn = app.db.read().await?;
    let known = registry::facts(&mut conn, &[&name]).await?;
    drop(conn);
    // Many collectors may have met the same change.
    if known.get(name.as_str()).is_some_and(|known| known.same_object(&facts)) {
        return Ok(None);
    }
    if seen.as_ref() != Some(&facts) && !app.is_settled(open, &facts) {
        return Ok(Some(facts));
    }
    register(app, open, &[Item { name, facts }]).await?;
    Ok(None)
}
