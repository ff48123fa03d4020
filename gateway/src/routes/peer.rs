//! What other servers ask: as a source of content (`/v1/peer/holding`, `/v1/peer/chunks`), as the home of a roaming
//! client (`possession`, `ends`), and for the operator (`who-holds`, `usage`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use common::api::extract::{ApiJson, ApiQuery};
use common::api::node::{
    ChunkRefsRequest, EndBatch, HoldingClient, HoldingState, NodeClient, ResolveRequest,
};
use common::api::peer::{Holder, NodeShare, PeerEnds, PeerLoad, PossessionRequest, SiteHolders};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::ChunkHash;
use common::id::ClientId;
use common::manifest::{ChunkList, ChunkRef};
use common::name::ContentName;
use common::placement::Slot;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use serde::Deserialize;

use super::counted;
use crate::chunks::OpenChunk;
use crate::metrics::Op;
use crate::server::Gateway;

/// Holders of a content on one page.
const HOLDERS_DEFAULT: u32 = 100;
const HOLDERS_MAX: u32 = 1000;
/// Libraries that are asked at once.
const HISTORIES_AT_ONCE: usize = 16;

pub async fn ping(State(gateway): State<Arc<Gateway>>) -> Json<PeerLoad> {
    Json(PeerLoad { outstanding_bytes: gateway.owed.load(Ordering::Relaxed) })
}

/// Bytes of a chunk that a peer asked for, until they are sent or given up.
struct Owed {
    gateway: Arc<Gateway>,
    bytes: u64,
}

impl Owed {
    fn new(gateway: &Arc<Gateway>, bytes: u64) -> Self {
        gateway.owed.fetch_add(bytes, Ordering::Relaxed);
        Self { gateway: gateway.clone(), bytes }
    }

    fn sent(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.gateway.owed.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.sent(self.bytes);
    }
}

#[derive(Debug, Deserialize)]
pub struct NameQuery {
    pub name: ContentName,
}

pub async fn holding(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<NameQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(NameQuery { name }) = query?;
        let request = ResolveRequest { name: name.clone(), client: None };
        let request = &request;
        let answer = gateway
            .site
            .ask_owner(Slot::of_name(&name), |node| async move { node.resolve(request).await })
            .await?;
        match answer.holding {
            Some(holding) if holding.state == HoldingState::Complete => Ok(Json(holding).into_response()),
            _ => Err(ApiError::new(ErrorCode::ContentNotFound, format!("this site does not hold {name}"))),
        }
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct ChunkQuery {
    name: ContentName,
    offset: u64,
    len: u32,
}

pub async fn chunk(
    State(gateway): State<Arc<Gateway>>,
    Path(hash): Path<String>,
    query: Result<ApiQuery<ChunkQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(ChunkQuery { name, offset, len }) = query?;
        let chunk = ChunkRef { hash: hash.parse()?, len };
        let owed = Owed::new(&gateway, u64::from(len));
        let open = open_chunk(&gateway, &name, chunk, offset).await?;
        let stream = stream::unfold((open, owed), |(mut open, mut owed)| async move {
            let piece = open.next().await?;
            owed.sent(piece.as_ref().map_or(0, |bytes| bytes.len() as u64));
            Some((piece, (open, owed)))
        });
        Ok(([(CONTENT_LENGTH, len.to_string())], Body::from_stream(stream)).into_response())
    })
    .await
}

/// A chunk that the site has, or that a collection is fetching at this moment.
async fn open_chunk(
    gateway: &Gateway,
    name: &ContentName,
    chunk: ChunkRef,
    offset: u64,
) -> ApiResult<OpenChunk> {
    if let Some(collection) = gateway.collector.at_work(name)
        && collection.is_held()
        && let Some(place) = collection.place_at(offset)
        && collection.chunks[place].hash == chunk.hash
        && let Some(bytes) = collection.chunk(place).await?
    {
        return Ok(OpenChunk::whole(bytes));
    }
    gateway.chunks.open(&chunk).await
}

pub async fn possession(
    State(gateway): State<Arc<Gateway>>,
    body: Result<ApiJson<PossessionRequest>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiJson(request) = body?;
        Ok(Json(gateway.confirm(request).await?).into_response())
    })
    .await
}

pub async fn ends(
    State(gateway): State<Arc<Gateway>>,
    body: Result<ApiJson<PeerEnds>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiJson(PeerEnds { shard, ends }) = body?;
        let primary = gateway.site.shard_primary(&shard).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NodeUnavailable,
                format!("node {shard} is not of site {}", gateway.site.id),
            )
        })?;
        let batch = EndBatch { shard, ends };
        let call = primary.client.end(&batch);
        let ended = gateway.site.unless_down(&primary.node, primary.client.base(), call).await;
        ended.map_err(|error| {
            error.to_api(
                ErrorCode::NodeUnavailable,
                "the storage node that recorded the delivery does not answer",
            )
        })?;
        Ok(StatusCode::OK.into_response())
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct HoldersQuery {
    name: ContentName,
    #[serde(default)]
    after: String,
    limit: Option<u32>,
}

pub async fn who_holds(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<HoldersQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(HoldersQuery { name, after, limit }) = query?;
        let limit = limit.unwrap_or(HOLDERS_DEFAULT).clamp(1, HOLDERS_MAX);
        Ok(Json(gateway.holders(&name, &after, limit).await?).into_response())
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct ClientQuery {
    client: ClientId,
}

/// A client's usage, asked by the operator.
pub async fn usage(
    State(gateway): State<Arc<Gateway>>,
    query: Result<ApiQuery<ClientQuery>, ApiError>,
) -> Response {
    counted(&gateway, Op::Peer, async {
        let ApiQuery(ClientQuery { client }) = query?;
        Ok(Json(gateway.usage(&client).await?).into_response())
    })
    .await
}

/// What all clients of the site hold, asked by the operator.
pub async fn usages(State(gateway): State<Arc<Gateway>>) -> Response {
    counted(&gateway, Op::Peer, async { Ok(Json(gateway.site_usage().await?).into_response()) }).await
}

impl Gateway {
    /// Who holds a content at this site, and which nodes have its chunks.
    async fn holders(&self, name: &ContentName, after: &str, limit: u32) -> ApiResult<SiteHolders> {
        let page = |node: NodeClient| async move { node.holding_clients(name, after, limit).await };
        let answer = self.site.ask_owner(Slot::of_name(name), page).await?;
        let histories = stream::iter(answer.clients).map(|holder| self.history(name, holder));
        let listed: Vec<Holder> = histories.buffered(HISTORIES_AT_ONCE).try_collect().await?;
        let mut holders = SiteHolders {
            site: self.site.id.clone(),
            hash: answer.holding.as_ref().map(|h| h.manifest.hash),
            provider: answer.holding.as_ref().map(|h| h.provider.clone()),
            clients: listed.iter().map(|holder| holder.client.clone()).collect(),
            holders: listed,
            clients_total: answer.clients_total,
            next: answer.next,
            nodes: Vec::new(),
            chunks: 0,
            chunks_shared: 0,
        };
        let Some(holding) = answer.holding else { return Ok(holders) };
        let mut chunks = self.chunks.list(&holding.manifest).await?.to_vec();
        if let ChunkList::Stored { list, .. } = &holding.manifest.chunks {
            chunks.push(*list);
        }
        holders.chunks = chunks.len() as u64;
        let (shares, shared) = self.chunk_places(&chunks).await;
        holders.nodes = shares;
        holders.chunks_shared = shared;
        Ok(holders)
    }

    /// What a holder's library says of the content.
    async fn history(&self, name: &ContentName, holder: HoldingClient) -> ApiResult<Holder> {
        let HoldingClient { client, since } = holder;
        let (id, slot) = (&client, Slot::of_client(&client));
        let row = self.site.ask_owner(slot, |node| async move { node.library_row(id, name).await }).await?;
        let (deliveries, recent) = row.map_or((0, Vec::new()), |row| (row.deliveries, row.recent));
        Ok(Holder { client, since, deliveries, recent })
    }

    /// Which nodes have these chunks, and how many of the chunks more than one holding refers to.
    async fn chunk_places(&self, chunks: &[ChunkRef]) -> (Vec<NodeShare>, u64) {
        let mut shares = Vec::new();
        let mut refs: BTreeMap<ChunkHash, u64> = BTreeMap::new();
        for (node, client) in self.site.nodes() {
            let request = ChunkRefsRequest { chunks: chunks.iter().map(|c| c.hash).collect() };
            let answer = match client.chunk_refs(&request).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::warn!(%node, error = %common::error::chain(&error), "node left out of who-holds");
                    continue;
                }
            };
            let mut share = NodeShare { node, chunks: 0, bytes: 0 };
            for (chunk, count) in chunks.iter().zip(answer.refs) {
                if let Some(count) = count {
                    share.chunks += 1;
                    share.bytes += u64::from(chunk.len);
                    let most = refs.entry(chunk.hash).or_default();
                    *most = count.max(*most);
                }
            }
            if share.chunks > 0 {
                shares.push(share);
            }
        }
        let shared = chunks.iter().filter(|c| refs.get(&c.hash).is_some_and(|count| *count > 1)).count();
        (shares, shared as u64)
    }
}
