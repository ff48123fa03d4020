//! The HTTP resources of an origin: what collecting gateways ask of a source, and adding sources.

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};

use common::api::extract::{ApiJson, ApiQuery};
use common::api::node::Holding;
use common::auth::{Guard, require_server};
use common::chunker::CHUNK_LEN_MAX;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::ChunkHash;
use common::name::ContentName;
use common::server::bad_request;

use crate::config::Source;
use crate::error::Failure;
use crate::metrics::count;
use crate::registry::{self, Known};
use crate::server::App;
use crate::source::Store;

const BODY_MAX: usize = 64 << 10;

pub fn service(app: App, guard: Guard) -> Router {
    let op = |name, route: MethodRouter<App>| route.layer(from_fn_with_state(app.metrics.op(name), count));
    Router::new()
        .route("/v1/peer/holding", op("holding", get(holding)))
        .route("/v1/peer/chunks/{hash}", op("chunk", get(chunk)))
        .route("/v1/peer/ping", op("ping", get(ping)))
        .route("/v1/sources", op("sources", get(sources).post(add_source)))
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
        read_chunk(&app, &name, &hash, &known, &params).await?
    };
    app.metrics.sent_bytes.increment(bytes.len() as u64);
    Ok(([(CONTENT_TYPE, "application/octet-stream")], Body::from(bytes)).into_response())
}

async fn read_chunk(
    app: &App,
    name: &ContentName,
    hash: &ChunkHash,
    known: &Known,
    params: &ChunkParams,
) -> ApiResult<Bytes> {
    let end = params.offset.checked_add(params.len).filter(|end| *end <= known.len);
    let end = end.ok_or_else(|| not_here(name, hash))?;
    let open = app.open_source(name.bucket()).ok_or_else(|| {
        ApiError::new(
            ErrorCode::SourceUnavailable,
            format!("the source of bucket {} is not open", name.bucket()),
        )
    })?;
    let location = &known.facts.location;
    let _permit = app.reads.acquire().await.map_err(|closed| ApiError::internal(&closed))?;
    let read = open.store.read(location, params.offset..end).await;
    if let Ok(bytes) = &read
        && hash_of(bytes.clone()).await? == *hash
    {
        return Ok(bytes.clone());
    }
    if open.store.facts(location).await.map_err(Failure::from)?.as_ref() != Some(&known.facts) {
        tracing::warn!(%name, offset = params.offset, "the object changed since it was registered; it is read again");
        // A full queue means that the next scan will find it.
        let _full = open.reread.try_send(location.clone());
        return Err(not_here(name, hash));
    }
    // The object is what it was: the store failed, or the caller asks for what never was there.
    read.map_err(Failure::from)?;
    Err(not_here(name, hash))
}

async fn hash_of(bytes: Bytes) -> ApiResult<ChunkHash> {
    Ok(tokio::task::spawn_blocking(move || ChunkHash::of(&bytes)).await.map_err(Failure::from)?)
}

fn not_here(name: &ContentName, hash: &ChunkHash) -> ApiError {
    ApiError::new(ErrorCode::ChunkNotFound, format!("{name} has no chunk {} here", hash.short()))
}

/// A source, and how its scan goes.
#[derive(Serialize)]
struct SourceState {
    #[serde(flatten)]
    source: Source,
    state: String,
}

async fn sources(State(app): State<App>) -> ApiJson<Vec<SourceState>> {
    let state = |open: crate::server::OpenSource| SourceState { source: open.source, state: open.state };
    ApiJson(app.open_sources().into_iter().map(state).collect())
}

/// Adds a source, or changes the one that the bucket has. Durable when answered; its scan goes on behind.
async fn add_source(State(app): State<App>, ApiJson(source): ApiJson<Source>) -> ApiResult<ApiJson<Source>> {
    let store = Store::open(&source.url).map_err(Failure::from)?;
    let mut tx = app.db.write().await?;
    registry::put_source(&mut tx, &source).await?;
    tx.commit().await.map_err(Failure::from)?;
    app.run_source(source.clone(), store);
    Ok(ApiJson(source))
}
