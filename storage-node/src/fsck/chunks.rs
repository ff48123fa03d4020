//! Chunks against their hashes, and against the rows of the catalog.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use common::error::{ApiError, ApiResult};
use common::hash::ChunkHash;
use futures_util::{StreamExt, stream};

use super::Progress;
use super::report::{ChunkFigures, TOLD_MAX};
use crate::catalog::key::{self, Key, Tag};
use crate::catalog::txn::{Reader, Rows};
use crate::chunks;
use crate::store::{ChunkStore, StoreError};

/// Chunks that are read at once.
const READS: usize = 8;
/// Rows whose chunks are looked for at once.
const PAGE_LEN: usize = 256;

/// What became of the chunks of a store.
#[derive(Default)]
pub(super) struct Checked {
    pub figures: ChunkFigures,
    /// All of them.
    pub damaged: Vec<ChunkHash>,
    /// Some of them.
    pub unreadable: Vec<ChunkHash>,
}

/// Goes over the store's list. Reads every chunk unless `fast`.
pub(super) async fn check(
    store: &dyn ChunkStore,
    rows: &Reader,
    fast: bool,
    progress: Progress<'_>,
) -> Result<Checked, StoreError> {
    let total_bytes = store.stats().used_bytes;
    let (mut checked, mut next, mut done_bytes) = (Checked::default(), Some(0), 0);
    while let Some(page) = next {
        let page = store.list(page).await?;
        next = page.next;
        checked.figures.live += page.hashes.len() as u64;
        for hash in &page.hashes {
            let has_row = rows.has(Key::Chunk(hash)).map_err(store_error)?;
            checked.figures.without_row += u64::from(!has_row);
        }
        if fast {
            continue;
        }
        let read = |hash: ChunkHash| async move { (hash, verify(store, &hash).await) };
        let mut reads = stream::iter(page.hashes).map(read).buffer_unordered(READS);
        while let Some((hash, verdict)) = reads.next().await {
            match verdict {
                Ok(bytes) => {
                    checked.figures.verified += 1;
                    checked.figures.verified_bytes += bytes;
                    done_bytes += bytes;
                    progress(done_bytes, total_bytes);
                }
                Err(StoreError::Damaged { .. }) => {
                    checked.figures.damaged += 1;
                    checked.damaged.push(hash);
                }
                Err(error) => {
                    tracing::debug!(chunk = %hash, %error, "a chunk cannot be read");
                    checked.figures.unreadable += 1;
                    if checked.unreadable.len() < TOLD_MAX {
                        checked.unreadable.push(hash);
                    }
                }
            }
        }
    }
    Ok(checked)
}

fn store_error(error: ApiError) -> StoreError {
    StoreError::Io { source: std::sync::Arc::new(error) }
}

/// Reads a chunk, a damaged one twice; answers its length.
async fn verify(store: &dyn ChunkStore, hash: &ChunkHash) -> Result<u64, StoreError> {
    let read = match store.get(hash).await {
        Err(StoreError::Damaged { .. }) => store.get(hash).await,
        read => read,
    };
    read.map(|bytes| bytes.len() as u64)
}

/// Rows by their kind.
pub(super) fn count_rows(rows: &Reader) -> ApiResult<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    rows.scan(&[], &mut |key, _| {
        let kind = Tag::of(key).map_or_else(|| "unknown".to_owned(), |tag| format!("{tag:?}"));
        *counts.entry(kind).or_default() += 1;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(counts)
}

/// Chunks that contents refer to and the store does not have: how many, and some of them.
pub(super) async fn missing(
    store: &dyn ChunkStore,
    rows: &Reader,
) -> Result<(u64, Vec<ChunkHash>), StoreError> {
    let (mut count, mut named, mut after) = (0, Vec::new(), None);
    loop {
        let page = chunks::rows_after(rows, after.as_ref(), PAGE_LEN).map_err(store_error)?;
        let Some(last) = page.last() else { return Ok((count, named)) };
        after = Some(*last);
        let look = |hash: ChunkHash| async move { (hash, store.contains(&hash).await) };
        let mut looks = stream::iter(page).map(look).buffered(READS);
        while let Some((hash, found)) = looks.next().await {
            if found? || rows.is_empty(&key::chunk_refs(&hash)).map_err(store_error)? {
                continue;
            }
            count += 1;
            if named.len() < TOLD_MAX {
                named.push(hash);
            }
        }
    }
}
