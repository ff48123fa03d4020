//! `/v1/chunks/…`: bytes by hash, and who refers to them. Any node takes any chunk; where it belongs is the
//! gateway's to know.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use common::api::extract::{ApiJson, ApiQuery};
use common::api::node::{
    AdoptAnswer, AdoptRequest, ChunkRefsAnswer, ChunkRefsRequest, ChunkReleaseRequest, ClaimAnswer,
    ClaimRequest, RefTag,
};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::ChunkHash;
use common::name::ContentName;
use common::trace::{Stage, stage, timed};
use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::catalog::key;
use crate::catalog::txn::Rows;
use crate::chunks::{self, store_error};
use crate::node::Node;
use crate::store::{PutOutcome, StoreError};
use crate::{mover, reaper};

type Shared = State<Arc<Node>>;

/// Chunks that are claimed in one commit.
const PIECE_LEN: usize = 512;

fn hash_of(text: &str) -> ApiResult<ChunkHash> {
    text.parse()
        .map_err(|error: common::id::InvalidId| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))
}

#[derive(serde::Deserialize)]
pub struct PutQuery {
    tag: RefTag,
    name: ContentName,
}

/// `PUT /v1/chunks/{hash}?tag=&name=`
pub async fn store(
    State(node): Shared,
    Path(hash): Path<String>,
    ApiQuery(query): ApiQuery<PutQuery>,
    body: Result<Bytes, BytesRejection>,
) -> ApiResult<StatusCode> {
    let hash = hash_of(&hash)?;
    let bytes = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(ErrorCode::TooLarge, "a chunk has at most 4 MiB"),
        _ => ApiError::new(ErrorCode::InvalidRequest, rejection.body_text()),
    })?;
    if timed(Stage::Hash, || ChunkHash::of(&bytes)) != hash {
        return Err(ApiError::new(ErrorCode::ContentMismatch, "the body does not have the hash in its path"));
    }
    let PutQuery { tag, name } = query;
    let _kept = stage(Stage::Queue, node.chunk_locks.using(&hash)).await;
    let (len, reference) = (bytes.len() as u32, name.clone());
    let stored = stage(Stage::Disk, node.chunks.put(hash, bytes));
    let noted = node.catalog.commit(move |txn| chunks::add_ref(txn, &hash, len, tag, &reference));
    let (stored, noted) = tokio::join!(stored, noted);
    if let Ok(bytes) = &noted {
        node.metrics.add_logical_bytes(*bytes as i64);
    }
    match stored {
        Ok(outcome) => {
            noted?;
            mover::note_stray(&node, &hash);
            Ok(if outcome == PutOutcome::Stored { StatusCode::CREATED } else { StatusCode::OK })
        }
        Err(error) => {
            if matches!(error, StoreError::Full { .. }) {
                node.signals.refused(node.clock.now());
            }
            if noted.is_ok() {
                let surplus = ChunkReleaseRequest { name, ref_tag: tag, chunks: vec![hash] };
                // Should this fail too, a surplus reference stays, which harms nobody.
                let _either = reaper::release_here(&node, surplus).await;
            }
            Err(store_error(&error))
        }
    }
}

/// `GET /v1/chunks/{hash}`
pub async fn read(State(node): Shared, Path(hash): Path<String>) -> ApiResult<Response> {
    let bytes = chunks::read(&node, &hash_of(&hash)?).await?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

pub async fn claim(
    State(node): Shared,
    ApiJson(request): ApiJson<ClaimRequest>,
) -> ApiResult<ApiJson<ClaimAnswer>> {
    let ClaimRequest { name, ref_tag, chunks: hashes } = request;
    let mut missing = Vec::new();
    for piece in hashes.chunks(PIECE_LEN) {
        let _kept = stage(Stage::Queue, node.chunk_locks.using_all(piece)).await;
        let mut present = Vec::with_capacity(piece.len());
        for hash in piece {
            if node.chunks.contains(hash).await.map_err(|error| store_error(&error))? {
                present.push(*hash);
            }
        }
        let name = name.clone();
        let (unknown, bytes, present) = node
            .catalog
            .commit(move |txn| {
                let (unknown, bytes) = chunks::claim(txn, &present, ref_tag, &name)?;
                Ok((unknown, bytes, present))
            })
            .await?;
        node.metrics.add_logical_bytes(bytes as i64);
        node.metrics.dedup_saved_bytes.increment(bytes);
        let (present, unknown): (HashSet<_>, HashSet<_>) =
            (present.into_iter().collect(), unknown.into_iter().collect());
        let is_missing = |hash: &&ChunkHash| !present.contains(*hash) || unknown.contains(*hash);
        piece.iter().filter(|hash| !is_missing(hash)).for_each(|hash| mover::note_stray(&node, hash));
        missing.extend(piece.iter().filter(is_missing));
    }
    Ok(ApiJson(ClaimAnswer { missing }))
}

/// Takes references from another node for chunks that both have, or are to have.
pub async fn adopt(
    State(node): Shared,
    ApiJson(request): ApiJson<AdoptRequest>,
) -> ApiResult<ApiJson<AdoptAnswer>> {
    let count: usize = request.chunks.iter().map(|chunk| chunk.refs.len()).sum();
    if count > AdoptRequest::REFS_MAX {
        let message =
            format!("{count} references are too many, {} can be sent at once", AdoptRequest::REFS_MAX);
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    let hashes: Vec<ChunkHash> = request.chunks.iter().map(|chunk| chunk.hash).collect();
    let _kept = node.chunk_locks.using_all(&hashes).await;
    // Asked while the chunks cannot be given away: a node that drops its copy relies on it that this one keeps its own.
    if !hashes.iter().all(|hash| mover::belongs_here(&node, hash)) {
        let message = "a chunk does not belong to this node under the map that it knows";
        return Err(ApiError::new(ErrorCode::WrongNode, message));
    }
    let (mut missing, mut present) = (HashSet::new(), Vec::new());
    for chunk in request.chunks {
        if !node.chunks.contains(&chunk.hash).await.map_err(|error| store_error(&error))? {
            missing.insert(chunk.hash);
        } else if !node.catalog.read(|rows| chunks::is_adopted(rows, &chunk))? {
            present.push(chunk);
        }
    }
    if !present.is_empty() {
        let (unknown, bytes) = node.catalog.commit(move |txn| chunks::adopt(txn, &present)).await?;
        node.metrics.add_logical_bytes(bytes as i64);
        missing.extend(unknown);
    }
    let missing = hashes.into_iter().filter(|hash| missing.contains(hash)).collect();
    Ok(ApiJson(AdoptAnswer { missing }))
}

pub async fn refs(
    State(node): Shared,
    ApiJson(request): ApiJson<ChunkRefsRequest>,
) -> ApiResult<ApiJson<ChunkRefsAnswer>> {
    let mut refs = Vec::with_capacity(request.chunks.len());
    for hash in &request.chunks {
        refs.push(match node.chunks.contains(hash).await.map_err(|error| store_error(&error))? {
            true => Some(node.catalog.read(|rows| rows.count(&key::chunk_refs(hash)))?),
            false => None,
        });
    }
    Ok(ApiJson(ChunkRefsAnswer { refs }))
}

pub async fn release(
    State(node): Shared,
    ApiJson(request): ApiJson<ChunkReleaseRequest>,
) -> ApiResult<ApiJson<()>> {
    reaper::release_here(&node, request).await.map(ApiJson)
}
