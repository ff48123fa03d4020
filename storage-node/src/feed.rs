//! Follows search's change feed: what is held here but outdated or withdrawn elsewhere is marked, so that new
//! deliveries take the newest version.

use std::sync::Arc;
use std::time::Duration;

use common::api::search::Change;
use common::backoff::Backoff;
use common::error::{ApiResult, chain};

use crate::catalog::key::Key;
use crate::catalog::rows::ChangeCursor;
use crate::catalog::txn::{Rows, Txn};
use crate::holdings;
use crate::shard::Shard;

const POLL_WAIT: Duration = Duration::from_secs(25);

/// Applies changes as they come, for ever.
pub async fn follow(shard: Arc<Shard>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match step(&shard).await {
            Ok(true) => backoff.reset(),
            Ok(false) => tokio::time::sleep(backoff.next_delay()).await,
            Err(error) => {
                tracing::warn!(shard = %shard.id, error = chain(&error), "changes cannot be applied");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Last change that was applied.
pub fn cursor(rows: &(impl Rows + ?Sized)) -> ApiResult<u64> {
    Ok(rows.get::<ChangeCursor>(Key::ChangeCursor)?.map_or(0, |cursor| cursor.0))
}

/// Goes back to `to`, so that rows which came from another node see the changes that node had not applied.
pub fn rewind(txn: &mut Txn<'_>, to: u64) -> ApiResult<()> {
    if cursor(txn)? > to {
        txn.put(Key::ChangeCursor, &ChangeCursor(to));
    }
    Ok(())
}

/// One page of the feed. Answers whether there is reason to ask again at once.
async fn step(shard: &Shard) -> ApiResult<bool> {
    let after = shard.catalog.read(cursor)?;
    let answer = tokio::select! {
        answer = shard.node.search.changes(after, POLL_WAIT) => answer,
        () = shard.signals.feed_rewound.notified() => return Ok(true),
    };
    let page = match answer {
        Ok(page) => page,
        Err(error) => {
            tracing::debug!(shard = %shard.id, error = chain(&error), "search gives no changes");
            return Ok(false);
        }
    };
    if page.last == after {
        return Ok(false);
    }
    let (changes, last) = (page.changes, page.last);
    let marked = shard.catalog.commit(move |txn| apply(txn, after, &changes, last)).await?;
    if marked > 0 {
        tracing::debug!(shard = %shard.id, marked, "holdings superseded");
    }
    Ok(true)
}

/// Applies a page that was asked for behind `after`; it ends before that if search has lost its feed and begins again. A
/// cursor that was rewound meanwhile stays where it is.
fn apply(txn: &mut Txn<'_>, after: u64, changes: &[Change], last: u64) -> ApiResult<usize> {
    let mut marked = 0;
    for change in changes {
        marked += usize::from(holdings::supersede(txn, change)?);
    }
    if cursor(txn)? >= after {
        txn.put(Key::ChangeCursor, &ChangeCursor(last));
    }
    Ok(marked)
}
