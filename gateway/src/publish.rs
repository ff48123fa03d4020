//! Publishing: a client puts its own content into its home site; others may then get it.
//!
//! stream → chunk → hash → store what the site lacks → hold → library row. Each step is durable before the next, so
//! a crash leaves at most chunks that nothing refers to. The library row is in the commit of the hold where one node
//! decides for both; otherwise it is added while search is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, BodyDataStream};
use common::api::gateway::Published;
use common::api::node::{
    AddRequest, HoldAnswer, HoldRequest, HoldingState, NodeClient, Precondition, RefTag, ReleaseRequest,
};
use common::api::search::ClientRecord;
use common::chunker::{CHUNK_LEN_MIN, Chunker};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::{ChunkHash, ContentHash};
use common::manifest::{ChunkList, ChunkRef, Manifest};
use common::name::ContentName;
use common::placement::Slot;
use common::trace::{self, Stage, stage};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use crate::limits::Pace;
use crate::server::Gateway;

/// Chunks on their way to their nodes at once.
const IN_FLIGHT: usize = 4;
/// How long an answer waits for search to know the new content, so that lists show it; while search cannot be reached it
/// does not wait. Long enough for a node to be lost in between.
const ANNOUNCE_WAIT_MS: u64 = 5_000;

/// What a PUT says about its content.
pub struct Publication {
    pub name: ContentName,
    pub media_type: String,
    pub metadata: BTreeMap<String, String>,
    pub precondition: Precondition,
    /// Hash that the bytes must have.
    pub expected: Option<ContentHash>,
    /// Length that the client declared.
    pub declared_len: Option<u64>,
}

/// A published content and whether it took the place of another version.
pub struct Outcome {
    pub published: Published,
    pub replaced: bool,
}

impl Gateway {
    pub async fn publish(
        self: &Arc<Self>,
        client: &ClientRecord,
        publication: Publication,
        body: Body,
    ) -> ApiResult<Outcome> {
        self.check_provider(client, &publication.name).await?;
        let room = self.room(client, &publication.name).await?;
        publication.declared_len.map_or(Ok(()), |len| room.check(len))?;
        let (tag, pace) = (RefTag::generate(), self.limits.pace(client));
        let received =
            stage(Stage::Receive, self.receive(&publication, tag, body.into_data_stream(), &room, &pace))
                .await?;
        self.metrics.published_size.record(received.len as f64);
        if publication.expected.is_some_and(|hash| hash != received.hash) {
            return Err(ApiError::new(
                ErrorCode::ContentMismatch,
                format!(
                    "the bytes received have the hash {}, not the promised one; nothing was stored",
                    received.hash
                ),
            ));
        }
        // As a task of its own: a client that goes away now still gets all of it or nothing.
        let finish = Arc::clone(self).finish(client.clone(), publication, tag, received);
        trace::spawn(finish).await.unwrap_or_else(|error| Err(ApiError::internal(&error)))
    }

    /// Holds what was received and enters it into the provider's library.
    async fn finish(
        self: Arc<Self>,
        client: ClientRecord,
        publication: Publication,
        tag: RefTag,
        received: Received,
    ) -> ApiResult<Outcome> {
        let manifest = self.manifest(&publication, tag, &received).await?;
        let hold = self.hold_publication(&client, &publication, manifest, tag, &received);
        let answer = stage(Stage::Hold, hold).await?;
        if !answer.in_library {
            self.add_to_library(&client, &publication.name, &received).await?;
        }
        let published = Published {
            name: publication.name.to_string(),
            hash: received.hash,
            len: received.len,
            chunks: received.chunks.len() as u64,
            new_bytes: received.new_bytes,
        };
        Ok(Outcome { published, replaced: answer.replaced.is_some() })
    }

    /// Only the provider, at its home site, changes a bucket's contents.
    async fn check_provider(&self, client: &ClientRecord, name: &ContentName) -> ApiResult<()> {
        self.check_home(client)?;
        let bucket = self.directory.bucket(&name.bucket_name()).await?;
        if bucket.provider != client.client {
            return Err(ApiError::new(
                ErrorCode::Forbidden,
                format!(
                    "bucket {} belongs to another client; only its provider changes what is in it",
                    bucket.bucket
                ),
            ));
        }
        Ok(())
    }

    /// What changes a client's library is done at its home site.
    pub fn check_home(&self, client: &ClientRecord) -> ApiResult<()> {
        if client.site == self.site.id {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::WrongSite,
            format!("client {} is at home at site {}; ask a gateway there", client.client, client.site),
        ))
    }

    async fn receive(
        &self,
        publication: &Publication,
        tag: RefTag,
        mut body: BodyDataStream,
        room: &Room,
        pace: &Pace,
    ) -> ApiResult<Received> {
        let mut chunker = Chunker::new();
        let mut received = Received::default();
        let mut content_hash = blake3::Hasher::new();
        let mut stores = FuturesOrdered::new();
        let store = |chunk: bytes::Bytes| {
            let hash = ChunkHash::of(&chunk);
            let reference = ChunkRef { hash, len: chunk.len() as u32 }; // at most 4 MiB
            let task = self.chunks.clone().write_owned(hash, publication.name.clone(), tag, chunk);
            (reference, tokio_util::task::AbortOnDropHandle::new(trace::spawn(task)))
        };
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| {
                ApiError::new(
                    ErrorCode::InvalidRequest,
                    "the body broke off before its end; nothing was stored",
                )
                .with_cause(&error)
            })?;
            received.len += piece.len() as u64;
            room.check(received.len)?;
            pace.take(piece.len()).await;
            self.metrics.received_bytes.increment(piece.len() as u64);
            chunker.push(&piece);
            while let Some(chunk) = chunker.next_chunk() {
                content_hash.update(&chunk);
                if stores.len() == IN_FLIGHT {
                    received.stored(stores.next().await)?;
                }
                let (reference, task) = store(chunk);
                received.add(reference)?;
                stores.push_back(task);
            }
        }
        for chunk in chunker.finish() {
            if received.chunks.is_empty() && chunk.len() <= CHUNK_LEN_MIN {
                // The only chunk is the content: one hash serves for both.
                let (reference, task) = store(chunk);
                received.add(reference)?;
                received.hash = ContentHash::from_bytes(*reference.hash.as_bytes());
                received.stored(Some(task.await))?;
                return Ok(received);
            }
            content_hash.update(&chunk);
            if stores.len() == IN_FLIGHT {
                received.stored(stores.next().await)?;
            }
            let (reference, task) = store(chunk);
            received.add(reference)?;
            stores.push_back(task);
        }
        while let Some(done) = stores.next().await {
            received.stored(Some(done))?;
        }
        received.hash = content_hash.finalize().into();
        Ok(received)
    }

    async fn manifest(
        &self,
        publication: &Publication,
        tag: RefTag,
        received: &Received,
    ) -> ApiResult<Manifest> {
        let chunks = if received.chunks.len() <= ChunkList::INLINE_MAX {
            ChunkList::Inline(received.chunks.clone())
        } else {
            let bytes = bytes::Bytes::from(ChunkList::encode(&received.chunks));
            let list = ChunkRef { hash: ChunkHash::of(&bytes), len: bytes.len() as u32 };
            self.chunks.write(&list.hash, &publication.name, tag, bytes).await?;
            ChunkList::Stored { list, count: received.chunks.len() as u32 }
        };
        Ok(Manifest {
            hash: received.hash,
            len: received.len,
            media_type: publication.media_type.clone(),
            metadata: publication.metadata.clone(),
            chunks,
        })
    }

    async fn hold_publication(
        &self,
        client: &ClientRecord,
        publication: &Publication,
        manifest: Manifest,
        ref_tag: RefTag,
        received: &Received,
    ) -> ApiResult<HoldAnswer> {
        let list = match &manifest.chunks {
            ChunkList::Inline(_) => None,
            ChunkList::Stored { list, .. } => Some(*list),
        };
        let request = HoldRequest {
            name: publication.name.clone(),
            manifest,
            provider: client.client.clone(),
            state: HoldingState::Complete,
            ref_tag,
            version_time: None,
            client: Some(client.client.clone()),
            add_to_library: true,
            quota: client.limits.quota(),
            precondition: publication.precondition,
            announce_wait_ms: ANNOUNCE_WAIT_MS,
        };
        let request = &request;
        let slot = Slot::of_name(&publication.name);
        let hold = |node: NodeClient| async move { node.hold(request).await };
        let (answer, asked) = self.site.ask_owner_counting(slot, hold).await?;
        if asked > 1 {
            // Held the first time, replaced, and held again by the second, its references may have been released.
            let chunks: Vec<ChunkRef> = received.chunks.iter().copied().chain(list).collect();
            let missing = self.chunks.claim(&chunks, &publication.name, ref_tag).await?;
            if !missing.is_empty() {
                return Err(ApiError::new(
                    ErrorCode::Unavailable,
                    "parts of the content went while it was stored; put it again",
                ));
            }
        }
        Ok(answer)
    }

    async fn add_to_library(
        &self,
        client: &ClientRecord,
        name: &ContentName,
        received: &Received,
    ) -> ApiResult<()> {
        let request = AddRequest {
            client: client.client.clone(),
            name: name.clone(),
            hash: received.hash,
            len: received.len,
            provider: client.client.clone(),
            quota: client.limits.quota(),
        };
        let request = &request;
        let slot = Slot::of_client(&client.client);
        let added = self.site.ask_owner(slot, |node| async move { node.library_add(request).await }).await;
        if let Err(error) = &added
            && error.code == ErrorCode::QuotaExceeded
        {
            // Another upload took the room meanwhile: the hold is given up.
            self.release(&client.client, name).await?;
        }
        added
    }

    /// How long the content may become.
    async fn room(&self, client: &ClientRecord, name: &ContentName) -> ApiResult<Room> {
        let (site, quota) = (self.config.content_bytes_max.get(), client.limits.quota());
        if !quota.is_bounded() {
            return Ok(Room { site, quota: None });
        }
        let (id, slot) = (&client.client, Slot::of_client(&client.client));
        let (account, row) = tokio::try_join!(
            self.site.ask_owner(slot, |node| async move { node.account(id).await }),
            self.site.ask_owner(slot, |node| async move { node.library_row(id, name).await }),
        )?;
        if let Some(max) = quota.contents.filter(|max| row.is_none() && account.contents >= *max) {
            return Err(ApiError::new(
                ErrorCode::QuotaExceeded,
                format!(
                    "client {id} holds {} contents of the {max} that its quota allows; {QUOTA_ADVICE}",
                    account.contents
                ),
            ));
        }
        let replaced = row.map_or(0, |row| row.len);
        let quota = quota.bytes.map(|max| QuotaRoom {
            left: max.saturating_sub(account.logical_bytes.saturating_sub(replaced)).max(replaced),
            used: account.logical_bytes,
            max,
        });
        Ok(Room { site, quota })
    }

    /// The provider takes its content back: not to be found or bought any more; who holds it keeps it.
    pub async fn withdraw(
        &self,
        client: &ClientRecord,
        name: &ContentName,
        precondition: Precondition,
    ) -> ApiResult<()> {
        self.check_provider(client, name).await?;
        let request = ReleaseRequest {
            name: name.clone(),
            client: client.client.clone(),
            precondition,
            announce_wait_ms: ANNOUNCE_WAIT_MS,
        };
        let request = &request;
        let slot = Slot::of_name(name);
        let withdraw = |node: NodeClient| async move { node.withdraw(request).await };
        let (answer, asked) = self.site.ask_owner_counting(slot, withdraw).await?;
        let dropped = self.drop_from_library(client, name).await?;
        // Nothing left at the second time: the first did it, and its answer was lost with a node.
        if answer.released || dropped || asked > 1 {
            return Ok(());
        }
        Err(ApiError::new(ErrorCode::ContentNotFound, format!("there is no content {name}")))
    }
}

/// How long a content may be, and why.
struct Room {
    /// By the site's configuration.
    site: u64,
    /// By the client's quota. The commit that makes the library row has the last word: other uploads may be under way.
    quota: Option<QuotaRoom>,
}

struct QuotaRoom {
    left: u64,
    used: u64,
    max: u64,
}

const QUOTA_ADVICE: &str = "drop contents from the library, or ask the operator for more";

impl Room {
    fn check(&self, len: u64) -> ApiResult<()> {
        if len > self.site {
            return Err(too_large(self.site));
        }
        match &self.quota {
            Some(quota) if len > quota.left => Err(ApiError::new(
                ErrorCode::QuotaExceeded,
                format!(
                    "your library has {} bytes of the {} that its quota allows, and room for a content of {} bytes here; \
                     {QUOTA_ADVICE}",
                    quota.used, quota.max, quota.left
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// What came in with a body.
struct Received {
    hash: ContentHash,
    len: u64,
    chunks: Vec<ChunkRef>,
    new_bytes: u64,
    /// Chunks known to be durable so far; they come in order.
    stored: usize,
}

impl Default for Received {
    fn default() -> Self {
        Self { hash: ContentHash::of(b""), len: 0, chunks: Vec::new(), new_bytes: 0, stored: 0 }
    }
}

impl Received {
    fn add(&mut self, chunk: ChunkRef) -> ApiResult<()> {
        if self.chunks.len() == ChunkList::COUNT_MAX {
            return Err(ApiError::new(
                ErrorCode::TooLarge,
                format!("a content may have {} chunks, this one has more", ChunkList::COUNT_MAX),
            ));
        }
        self.chunks.push(chunk);
        Ok(())
    }

    fn stored(&mut self, done: Option<Result<ApiResult<bool>, tokio::task::JoinError>>) -> ApiResult<()> {
        let Some(done) = done else { return Ok(()) };
        let is_new = done.unwrap_or_else(|error| Err(ApiError::internal(&error)))?;
        if is_new && let Some(chunk) = self.chunks.get(self.stored) {
            self.new_bytes += u64::from(chunk.len);
        }
        self.stored += 1;
        Ok(())
    }
}

fn too_large(max: u64) -> ApiError {
    ApiError::new(
        ErrorCode::TooLarge,
        format!("the content is longer than this site takes, which is {}", common::config::show_bytes(max)),
    )
}
