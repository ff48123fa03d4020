//! Withdrawing what is gone, with care: a disk that is not mounted, a folder that was moved for a moment or a key
//! with fewer rights look like a source that was emptied, and withdrawing makes every site forget whom to ask.
//!
//! - A few (up to [`FEW`], or a tenth of the source) are withdrawn as soon as they are found missing.
//! - More, or all, are withdrawn when a second scan, at least the rescan interval later, misses them too.
//! - If the folder moreover is another than the one in which they were seen (device or inode differ, as after an
//!   unmount), only the operator's word withdraws them: `dozo origin rescan BUCKET --withdraw`.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::api::origin::HeldWithdrawals;
use common::backoff::Backoff;
use common::error::chain;
use common::name::ContentName;

use crate::error::Failure;
use crate::registry;
use crate::server::App;
use crate::sources::OpenSource;

/// So many contents may go at once without being asked about.
const FEW: u64 = 10;
const WITHDRAWN_AT_ONCE: i64 = 256;

/// What a scan that found everything readable misses.
#[derive(Debug, Clone, Copy)]
struct Missing {
    known: u64,
    missing: u64,
    /// The folder is the one in which the contents were last seen; true for object stores.
    same_place: bool,
    /// An earlier scan missed too much to be believed, at least the rescan interval ago.
    confirmed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Withdraw,
    /// Not before the next scan finds the same.
    Wait,
    AskOperator,
}

fn judge(found: Missing) -> Verdict {
    let Missing { known, missing, same_place, confirmed } = found;
    let is_few = missing < known && missing <= FEW.max(known / 10);
    match (is_few, same_place, confirmed) {
        (true, _, _) | (_, true, true) => Verdict::Withdraw,
        (_, false, _) => Verdict::AskOperator,
        (_, true, false) => Verdict::Wait,
    }
}

/// Withdraws what this scan did not see, if that is to be believed; else answers why not.
pub async fn vanished(app: &App, open: &OpenSource, scan: i64) -> Result<Option<String>, Failure> {
    let bucket = &open.source.bucket;
    let may_all = open.take_allowance();
    let place = open.store.place()?;
    let mut conn = app.db.read().await?;
    let (known, missing) = registry::count_vanished(&mut conn, bucket, scan).await?;
    let place_before = registry::place(&mut conn, bucket).await?;
    drop(conn);
    let held_since = open.progress().held_since;
    let found = Missing {
        known,
        missing,
        same_place: place_before.is_empty() || place_before == place,
        confirmed: held_since.is_some_and(|since| since.elapsed() >= app.rescan()),
    };
    let verdict = if may_all { Verdict::Withdraw } else { judge(found) };
    if missing == 0 || verdict == Verdict::Withdraw {
        withdraw_all(app, open, scan).await?;
        open.change(|progress| (progress.held, progress.held_since) = (None, None));
        if place != place_before {
            let mut tx = app.db.write().await?;
            registry::put_place(&mut tx, bucket, &place).await?;
            tx.commit().await?;
        }
        return Ok(None);
    }
    let needs_word = verdict == Verdict::AskOperator;
    open.change(|progress| {
        progress.held = Some(HeldWithdrawals { contents: missing, needs_word });
        progress.held_since.get_or_insert_with(Instant::now);
    });
    let why = if needs_word {
        format!(
            "{missing} of {known} contents are missing and the folder is another than before (is a disk not \
             mounted?); they stay announced until they are back or `dozo origin rescan {bucket} --withdraw`"
        )
    } else {
        format!(
            "{missing} of {known} contents are missing; they are withdrawn if the next scan misses them too"
        )
    };
    tracing::warn!(%bucket, missing, known, needs_word, "too much is missing at once to be withdrawn");
    Ok(Some(why))
}

/// Withdraws one object that was found missing, or leaves it to a scan if many are.
pub async fn missing(app: &App, open: &OpenSource, name: &ContentName) -> Result<(), Failure> {
    let place = open.store.place()?;
    let bucket = &open.source.bucket;
    let mut conn = app.db.read().await?;
    let place_before = registry::place(&mut conn, bucket).await?;
    let is_known = !registry::facts(&mut conn, &[name]).await?.is_empty();
    let was_folder = !is_known && registry::has_folder(&mut conn, bucket, name.key()).await?;
    drop(conn);
    if !is_known && !was_folder {
        return Ok(());
    }
    let same_place = place_before.is_empty() || place_before == place;
    if was_folder || !same_place || open.withdrawn.fetch_add(1, Ordering::Relaxed) >= FEW {
        open.scan_soon.notify_one();
        return Ok(());
    }
    let mut tx = app.db.write().await?;
    let was_there = registry::withdraw(&mut tx, name).await?;
    tx.commit().await?;
    if was_there {
        app.metrics.contents.decrement(1.0);
        tracing::info!(%name, "the object is gone; withdrawn");
        app.announce.notify_one();
    }
    Ok(())
}

/// Withdraws all of a source and forgets it; tries for as long as the server runs.
pub async fn remove(app: &App, open: &OpenSource) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
    while let Err(failure) = remove_once(app, open).await {
        let reason = chain(&failure);
        tracing::warn!(bucket = %open.source.bucket, reason, "the source is not removed yet");
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn remove_once(app: &App, open: &OpenSource) -> Result<(), Failure> {
    let bucket = &open.source.bucket;
    withdraw_all(app, open, i64::MAX).await?;
    let mut tx = app.db.write().await?;
    registry::forget_source(&mut tx, bucket).await?;
    tx.commit().await?;
    app.sources.forget(bucket);
    tracing::info!(%bucket, "the source is removed");
    Ok(())
}

/// Withdraws every content of the source that was not seen since before this scan.
async fn withdraw_all(app: &App, open: &OpenSource, scan: i64) -> Result<(), Failure> {
    let bucket = &open.source.bucket;
    loop {
        let _alone = open.registering.lock().await;
        let mut tx = app.db.write().await?;
        let names = registry::vanished(&mut tx, bucket, scan, WITHDRAWN_AT_ONCE).await?;
        for name in &names {
            registry::withdraw(&mut tx, name).await?;
        }
        tx.commit().await?;
        if names.is_empty() {
            return Ok(());
        }
        app.metrics.contents.decrement(names.len() as f64);
        tracing::info!(%bucket, count = names.len(), "objects are gone; withdrawn");
        app.announce.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_go_at_once_many_need_a_second_scan_and_another_folder_needs_the_operator() {
        let judged =
            |known, missing, same_place, confirmed| judge(Missing { known, missing, same_place, confirmed });
        assert_eq!(judged(2, 1, true, false), Verdict::Withdraw);
        assert_eq!(judged(1000, 100, true, false), Verdict::Withdraw);
        assert_eq!(judged(1000, 100, false, false), Verdict::Withdraw);
        assert_eq!(judged(1000, 101, true, false), Verdict::Wait);
        assert_eq!(judged(1000, 101, true, true), Verdict::Withdraw);
        assert_eq!(judged(1, 1, true, false), Verdict::Wait, "all is never a few");
        assert_eq!(judged(1, 1, true, true), Verdict::Withdraw);
        assert_eq!(judged(5, 5, false, false), Verdict::AskOperator);
        assert_eq!(judged(5, 5, false, true), Verdict::AskOperator);
    }
}
