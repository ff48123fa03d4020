//! Gives up collections that no gateway carries on, so that what came in of them takes no space for ever.

use std::sync::Arc;
use std::time::Duration;

use common::error::{ApiResult, chain};
use common::placement::Slot;
use common::time::UnixMillis;

use crate::holdings;
use crate::shard::Shard;

/// How often it is looked for them; longer than collectors need to renew their leases after the shard was taken over.
const LOOK_INTERVAL: Duration = Duration::from_secs(20);
const PAGE_LEN: usize = 256;

/// Looks for ever.
pub async fn run(shard: Arc<Shard>) {
    let interval = LOOK_INTERVAL.min(shard.node.limits.collecting_grace);
    loop {
        tokio::time::sleep(interval).await;
        if let Err(error) = look(&shard).await {
            tracing::debug!(shard = %shard.id, error = chain(&error), "unfinished collections stay for now");
        }
    }
}

async fn look(shard: &Shard) -> ApiResult<()> {
    let now = shard.node.clock.now();
    let before = UnixMillis(now.0.saturating_sub(shard.node.limits.collecting_grace.as_millis() as u64));
    let mut after = None;
    loop {
        let page = shard.catalog.read(|rows| holdings::collecting(rows, after.as_ref(), before, PAGE_LEN))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        for name in page {
            let slot = Slot::of_name(&name);
            if !shard.slots.owns(slot) || shard.node.leases.is_collected(&name, shard.node.clock.now()) {
                continue;
            }
            let given_up = name.clone();
            if shard.commit_in(slot, move |txn| holdings::give_up(txn, &given_up, before)).await? {
                tracing::info!(shard = %shard.id, content = %name, "nobody went on collecting it; what came in goes");
                shard.signals.reap_queued.notify_one();
            }
        }
    }
}
