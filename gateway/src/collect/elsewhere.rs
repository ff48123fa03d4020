//! Chunks that the site should have and has not, one by one as they are asked for, from whoever else has them.

use std::sync::Arc;

use bytes::Bytes;
use common::api::node::{Holding, RefTag};
use common::api::search::ContentInfo;
use common::error::{ApiResult, ErrorCode};
use common::manifest::{ChunkList, ChunkRef, ChunkSlice, Manifest};
use common::name::ContentName;
use tokio::sync::OnceCell;

use super::Collector;
use super::holders::Holders;
use super::sought::Visit;
use crate::chunks::{OpenChunk, decode_list};

/// The other holders of a content; they are looked for when the first chunk is missing.
pub struct Elsewhere {
    name: ContentName,
    /// What is fetched is stored for it.
    stored_for: Option<RefTag>,
    confirmed: Option<ContentInfo>,
    holders: OnceCell<Holders>,
}

impl Elsewhere {
    /// Of a content that the site holds.
    pub fn of_holding(name: ContentName, tag: RefTag) -> Self {
        Self { name, stored_for: Some(tag), confirmed: None, holders: OnceCell::new() }
    }

    /// Of what home confirmed to a visitor. What is not kept is passed on alone.
    pub fn of_visit(visit: &Visit, is_kept: bool) -> Self {
        let Holding { name, ref_tag, .. } = &visit.holding;
        Self {
            name: name.clone(),
            stored_for: is_kept.then_some(*ref_tag),
            confirmed: Some(visit.confirmed.clone()),
            holders: OnceCell::new(),
        }
    }
}

impl Collector {
    /// Opens a chunk at the site; what is missing there, or damaged, is fetched.
    ///
    /// # Errors
    /// `SourceUnavailable` when nobody has it.
    pub async fn open_or_fetch(&self, elsewhere: &Elsewhere, slice: &ChunkSlice) -> ApiResult<OpenChunk> {
        match self.chunks.open(&slice.chunk).await {
            Err(error) if matches!(error.code, ErrorCode::ChunkNotFound | ErrorCode::Damaged) => {
                let bytes = self.fetch_missing(elsewhere, &slice.chunk, slice.offset).await?;
                Ok(OpenChunk::whole(bytes))
            }
            opened => opened,
        }
    }

    async fn fetch_missing(&self, elsewhere: &Elsewhere, chunk: &ChunkRef, offset: u64) -> ApiResult<Bytes> {
        let Elsewhere { name, stored_for, confirmed, holders } = elsewhere;
        let look = || self.holders_of(name, confirmed.as_ref());
        let bytes = self.fetch(holders.get_or_try_init(look).await?, chunk, offset).await?;
        if let Some(tag) = stored_for {
            tracing::warn!(content = %name, chunk = ?chunk.hash, "a chunk that was missing is fetched anew");
            self.chunks.write(&chunk.hash, name, *tag, bytes.clone()).await?;
            self.metrics.chunks_repaired.increment(1);
        }
        Ok(bytes)
    }

    /// The chunks of a content, of which the list may be elsewhere, too.
    pub async fn list(&self, elsewhere: &Elsewhere, manifest: &Manifest) -> ApiResult<Arc<[ChunkRef]>> {
        match (&manifest.chunks, self.chunks.list(manifest).await) {
            (ChunkList::Stored { list, .. }, Err(error))
                if matches!(error.code, ErrorCode::ChunkNotFound | ErrorCode::Damaged) =>
            {
                decode_list(manifest, &self.fetch_missing(elsewhere, list, 0).await?)
            }
            (_, listed) => listed,
        }
    }
}
