//! What gateways that collect ask: the beginning of a content, and how a collection at work here goes.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use common::api::collect::{OpenHead, encode_open};
use common::api::extract::ApiQuery;
use common::api::node::{HoldingState, ResolveRequest};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::manifest::ChunkList;
use common::name::ContentName;
use common::placement::Slot;
use common::trace::{Stage, stage};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

use super::counted;
use super::peer::NameQuery;
use crate::collect::collection::Reader;
use crate::metrics::Op;
use crate::server::Gateway;

pub async fn open(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<NameQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(NameQuery { name }) = query?;
        let request = &ResolveRequest { name: name.clone(), client: None };
        let slot = Slot::of_name(&name);
        let answer = gateway.site.ask_owner(slot, |node| async move { node.resolve(request).await }).await?;
        let Some(holding) = answer.holding.filter(|holding| holding.state == HoldingState::Complete) else {
            let message = format!("this site does not hold {name}");
            return Err(ApiError::new(ErrorCode::ContentNotFound, message));
        };
        let chunks = gateway.chunks.list(&holding.manifest).await?;
        let list = matches!(holding.manifest.chunks, ChunkList::Stored { .. })
            .then(|| Bytes::from(ChunkList::encode(&chunks)));
        let first = chunks.first().copied();
        let head = OpenHead {
            holding,
            list_len: list.as_ref().map_or(0, |list| list.len() as u32),
            first_len: first.map_or(0, |first| first.len),
            collection: None,
        };
        let head = stream::iter([Ok(encode_open(&head, list.as_ref()))]);
        let Some(first) = first else { return Ok(Body::from_stream(head).into_response()) };
        // Behind the head, which is all that the other site needs to hold the content while this chunk is read.
        let chunks = gateway.chunks.clone();
        let open = stream::once(async move { chunks.open(&first).await });
        let pieces = open.map_ok(|open| {
            stream::unfold(open, |mut open| async move {
                let piece = open.next().await?;
                Some((piece, open))
            })
        });
        let pieces = pieces.try_flatten();
        Ok(Body::from_stream(head.chain(pieces)).into_response())
    })
    .await
}

pub async fn collection(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<NameQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(NameQuery { name }) = query?;
        let found = gateway.collector.at_work_or_beginning(&name).await;
        let collection = found.ok_or_else(|| not_at_work(&name))?;
        let list = collection.encoded_list();
        let head = OpenHead {
            holding: collection.holding.clone(),
            list_len: list.as_ref().map_or(0, |list| list.len() as u32),
            first_len: 0,
            collection: Some(collection.head()),
        };
        Ok(encode_open(&head, list.as_ref()).into_response())
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct ProgressQuery {
    name: ContentName,
    run: u64,
    after: usize,
}

pub async fn progress(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<ProgressQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(ProgressQuery { name, run, after }) = query?;
        let collection = run_of(&gateway, &name, run)?;
        let news = stage(Stage::Wait, collection.progress(after)).await;
        Ok(Json(news).into_response())
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct WantQuery {
    name: ContentName,
    run: u64,
    place: usize,
}

pub async fn want(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<WantQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(WantQuery { name, run, place }) = query?;
        run_of(&gateway, &name, run)?.want(place);
        Ok(Json(()).into_response())
    })
    .await
}

fn run_of(gateway: &Gateway, name: &ContentName, run: u64) -> ApiResult<Reader> {
    let collection = gateway.collector.at_work(name).filter(|collection| collection.run == run);
    collection.ok_or_else(|| not_at_work(name))
}

fn not_at_work(name: &ContentName) -> ApiError {
    ApiError::new(ErrorCode::ContentNotFound, format!("{name} is not being collected here"))
}
