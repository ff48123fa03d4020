//! The HTTP resources of an origin: what collecting gateways ask of a source, and what the operator does with sources.

use std::convert::Infallible;
use std::ops::Range;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use serde::Deserialize;

use common::api::collect::{OpenHead, encode_open};
use common::api::extract::{ApiJson, ApiQuery};
use common::api::node::Holding;
use common::api::origin::{OriginStatus, Rescan, ScanProgress, Source, SourceState, SourceStatus};
use common::auth::{Guard, require_server};
use common::chunker::CHUNK_LEN_MAX;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::ChunkHash;
use common::id::BucketName;
use common::manifest::ChunkList;
use common::name::ContentName;
use common::server::bad_request;

use crate::error::Failure;
use crate::outbox;
use crate::registry::{self, KeptSource, Known};
use crate::server::App;
use crate::source::{SourceError, Store};
use crate::sources::{self, OpenSource, Progress};

const BODY_MAX: usize = 64 << 10;

pub fn service(app: App, guard: Guard) -> Router {
    Router::new()
        .route("/v1/peer/holding", get(holding))
        .route("/v1/peer/open", get(open))
        .route("/v1/peer/chunks/{hash}", get(chunk))
        .route("/v1/peer/ping", get(ping))
        .route("/v1/status", get(status))
        .route("/v1/sources", get(sources).post(add_source))
        .route("/v1/sources/{bucket}", delete(remove_source))
        .route("/v1/sources/{bucket}/rescan", post(rescan))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(from_fn_with_state(guard, require_server))
        .with_state(app)
}

async fn ping() -> ApiJson<()> {
    ApiJson(())
}

#[derive(Deserialize)]
struct NameParams {
    name: String,
}

async fn holding(
    State(app): State<App>,
    ApiQuery(params): ApiQuery<NameParams>,
) -> ApiResult<ApiJson<Holding>> {
    let name: ContentName = params.name.parse()?;
    let mut conn = app.db.read().await?;
    let holding = registry::holding(&mut conn, &name).await?;
    holding
        .map(ApiJson)
        .ok_or_else(|| ApiError::new(ErrorCode::ContentNotFound, format!("this origin does not have {name}")))
}

/// The beginning of a content: holding, stored chunk list, first chunk.
async fn open(State(app): State<App>, ApiQuery(params): ApiQuery<NameParams>) -> ApiResult<Response> {
    let name: ContentName = params.name.parse()?;
    let mut conn = app.db.read().await?;
    let holding = registry::holding(&mut conn, &name).await?;
    let known = registry::find(&mut conn, &name).await?.filter(|k| !k.gone);
    drop(conn);
    let missing = || ApiError::new(ErrorCode::ContentNotFound, format!("this origin does not have {name}"));
    let (Some(holding), Some(known)) = (holding, known) else { return Err(missing()) };
    if holding.version != known.version {
        // It was registered anew between the two looks.
        return Err(Failure::from(SourceError::Changed).into());
    }
    let list = matches!(holding.manifest.chunks, ChunkList::Stored { .. })
        .then(|| Bytes::from(known.chunks.clone()));
    let chunks = ChunkList::decode(&known.chunks).map_err(|error| ApiError::internal(&error))?;
    let first = match chunks.first() {
        Some(first) => read_chunk(&app, &name, &first.hash, &known, 0, u64::from(first.len)).await?,
        None => Bytes::new(),
    };
    app.metrics.sent_bytes.increment(first.len() as u64);
    let head = OpenHead {
        holding,
        list_len: list.as_ref().map_or(0, |list| list.len() as u32),
        first_len: first.len() as u32,
        collection: None,
    };
    let parts = [encode_open(&head, list.as_ref()), first];
    let body = Body::from_stream(stream::iter(parts.map(Ok::<_, Infallible>)));
    Ok(([(CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

#[derive(Deserialize)]
struct ChunkParams {
    name: String,
    offset: u64,
    len: u64,
}

/// One chunk of a content, verified, or its stored chunk list.
async fn chunk(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
    ApiQuery(params): ApiQuery<ChunkParams>,
) -> ApiResult<Response> {
    let hash: ChunkHash = path.map_err(bad_request)?.0.parse()?;
    let name: ContentName = params.name.parse()?;
    if params.len == 0 || params.len > CHUNK_LEN_MAX as u64 {
        let message = format!("len is {}; it must be 1 to {CHUNK_LEN_MAX}", params.len);
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    let mut conn = app.db.read().await?;
    let known = registry::find(&mut conn, &name).await?.filter(|k| !k.gone);
    drop(conn);
    let known = known.ok_or_else(|| not_here(&name, &hash))?;
    let bytes = if registry::stored_list(&known.chunks).is_some_and(|list| list.hash == hash) {
        known.chunks.into()
    } else {
        read_chunk(&app, &name, &hash, &known, params.offset, params.len).await?
    };
    app.metrics.sent_bytes.increment(bytes.len() as u64);
    Ok(([(CONTENT_TYPE, "application/octet-stream")], Body::from(bytes)).into_response())
}

async fn read_chunk(
    app: &App,
    name: &ContentName,
    hash: &ChunkHash,
    known: &Known,
    offset: u64,
    len: u64,
) -> ApiResult<Bytes> {
    let end = offset.checked_add(len).filter(|end| *end <= known.len);
    let end = end.ok_or_else(|| not_here(name, hash))?;
    let open = app.sources.get(name.bucket()).ok_or_else(|| {
        ApiError::new(
            ErrorCode::SourceUnavailable,
            format!("the source of bucket {} is not open", name.bucket()),
        )
    })?;
    let turn = open.read_turn(app, name).await.map_err(|busy| {
        app.metrics.busy_reads.increment(1);
        Failure::from(busy)
    })?;
    let read = read_verified(&open, hash, known, offset..end).await;
    drop(turn);
    open.show_reads();
    if let Ok(Some(bytes)) = read {
        return Ok(bytes);
    }
    let is_changed = match &read {
        Err(Failure::Source(SourceError::Changed)) => true,
        _ => !open
            .store
            .facts(&known.facts.location)
            .await
            .map_err(Failure::from)?
            .is_some_and(|now| now.same_object(&known.facts)),
    };
    if is_changed {
        tracing::warn!(%name, offset, "the object changed since it was registered; it is read again");
        app.metrics.changed_reads.increment(1);
        // A full queue means that the next scan will find it.
        let _full = open.reread.try_send(known.facts.location.clone());
        return Err(Failure::from(SourceError::Changed).into());
    }
    // The object is what it was: the store failed, or the caller asks for what never was there.
    read?;
    Err(not_here(name, hash))
}

/// Reads a part; `None` if it is not what was asked for.
async fn read_verified(
    open: &OpenSource,
    hash: &ChunkHash,
    known: &Known,
    range: Range<u64>,
) -> Result<Option<Bytes>, Failure> {
    let bytes = open.store.read(&known.facts, range).await?;
    let is_right = hash_of(bytes.clone()).await? == *hash;
    Ok(is_right.then_some(bytes))
}

async fn hash_of(bytes: Bytes) -> Result<ChunkHash, Failure> {
    Ok(tokio::task::spawn_blocking(move || ChunkHash::of(&bytes)).await?)
}

fn not_here(name: &ContentName, hash: &ChunkHash) -> ApiError {
    ApiError::new(ErrorCode::ChunkNotFound, format!("{name} has no chunk {} here", hash.short()))
}

async fn status(State(app): State<App>) -> ApiResult<ApiJson<OriginStatus>> {
    let mut conn = app.db.read().await?;
    let pending = outbox::pending(&mut conn, 0).await?;
    drop(conn);
    let sources = source_states(&app).await?;
    let announcements_pending = pending.end_seq - pending.first_seq;
    Ok(ApiJson(OriginStatus { name: app.name.to_string(), sources, announcements_pending }))
}

async fn sources(State(app): State<App>) -> ApiResult<ApiJson<Vec<SourceStatus>>> {
    Ok(ApiJson(source_states(&app).await?))
}

async fn source_states(app: &App) -> Result<Vec<SourceStatus>, Failure> {
    let mut conn = app.db.read().await?;
    let totals = registry::totals(&mut conn).await?;
    drop(conn);
    let total = |bucket: &BucketName| totals.get(bucket.as_str()).copied().unwrap_or_default();
    let open = app.sources.open().into_iter().map(|open| {
        let Progress { state, problem, watched, scan, held, .. } = open.progress();
        let ((contents, bytes), (inflight, waiting)) = (total(&open.source.bucket), open.reads());
        SourceStatus {
            source: open.source.clone(),
            state,
            problem,
            watched,
            contents,
            bytes,
            scan,
            held,
            reads_inflight: inflight as u64,
            reads_waiting: waiting as u64,
        }
    });
    let closed = app.sources.closed().into_iter().map(|(source, reason)| {
        let (contents, bytes) = total(&source.bucket);
        SourceStatus {
            source,
            state: SourceState::Closed,
            problem: Some(reason),
            watched: false,
            contents,
            bytes,
            scan: ScanProgress::default(),
            held: None,
            reads_inflight: 0,
            reads_waiting: 0,
        }
    });
    Ok(open.chain(closed).collect())
}

/// Adds a source, or changes provider and limit of the one that the bucket has. Durable when answered; its scan goes
/// on behind.
async fn add_source(State(app): State<App>, ApiJson(source): ApiJson<Source>) -> ApiResult<ApiJson<Source>> {
    let url = source.url.clone();
    let store = tokio::task::spawn_blocking(move || Store::open(&url)).await.map_err(Failure::from)?;
    let store = store.map_err(Failure::from)?;
    refuse_foreign_bucket(&app, &source).await?;
    let mut tx = app.db.write().await?;
    let kept = registry::sources(&mut tx).await?.into_iter().find(|k| k.source.bucket == source.bucket);
    if let Some(KeptSource { source: other, removing }) = kept {
        let bucket = &source.bucket;
        let message = if removing {
            Some(format!("bucket {bucket} loses its source just now; add the new one when that is done"))
        } else if other.url != source.url {
            let url = other.url;
            Some(format!(
                "bucket {bucket} has the source {url}; a bucket has one: remove that, or take another bucket"
            ))
        } else {
            None
        };
        if let Some(message) = message {
            return Err(ApiError::new(ErrorCode::Conflict, message));
        }
    }
    registry::put_source(&mut tx, &source).await?;
    tx.commit().await.map_err(Failure::from)?;
    sources::run(&app, source.clone(), store, false);
    Ok(ApiJson(source))
}

/// A bucket has one provider. When search is away, the first scan finds out.
async fn refuse_foreign_bucket(app: &App, source: &Source) -> ApiResult<()> {
    match app.search.bucket(&source.bucket).await {
        Ok(record) if record.provider != source.provider => {
            let message = format!(
                "bucket {} belongs to {}, not to {}; take that provider or another bucket",
                source.bucket, record.provider, source.provider
            );
            Err(ApiError::new(ErrorCode::Conflict, message))
        }
        _ => Ok(()),
    }
}

async fn remove_source(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
) -> ApiResult<ApiJson<()>> {
    let bucket = BucketName::new(&path.map_err(bad_request)?.0)?;
    if app.configured.contains(&bucket) {
        let message = format!(
            "the source of bucket {bucket} is in the origin's configuration; take it out there, start the origin \
             again, then remove it"
        );
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    let mut tx = app.db.write().await?;
    let kept = registry::sources(&mut tx).await?.into_iter().find(|k| k.source.bucket == bucket);
    let kept = kept.ok_or_else(|| no_source(&bucket))?;
    registry::begin_removing(&mut tx, &bucket).await?;
    tx.commit().await.map_err(Failure::from)?;
    if !kept.removing {
        // What the source holds no longer matters: its contents are withdrawn even if it cannot be reached.
        sources::run(&app, kept.source, Store::nothing(), true);
    }
    Ok(ApiJson(()))
}

async fn rescan(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
    ApiJson(rescan): ApiJson<Rescan>,
) -> ApiResult<ApiJson<()>> {
    let bucket = BucketName::new(&path.map_err(bad_request)?.0)?;
    let open = app.sources.get(bucket.as_str()).ok_or_else(|| no_source(&bucket))?;
    if rescan.withdraw {
        open.allow_withdrawals();
    }
    open.scan_now.notify_one();
    Ok(ApiJson(()))
}

fn no_source(bucket: &BucketName) -> ApiError {
    let message =
        format!("this origin has no open source of bucket {bucket}; `dozo origin list` shows what it has");
    ApiError::new(ErrorCode::BucketNotFound, message)
}
