//! The HTTP resources of search: reading requests, running them on the database, publishing what they changed.
//!
//! What changes something runs in a task of its own: a caller that hangs up cannot cut a committed change off
//! from being published.

use std::future::Future;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;

use common::api::extract::{ApiJson, ApiQuery};
use common::api::search::{
    AnnounceAnswer, AnnounceBatch, BucketRecord, CardHolder, CardRecord, ChangePage, ClientKeys,
    ClientLimits, ClientRecord, ContentInfo, ContentPage, DisableCards, Fence, FenceRequest, FollowersChange,
    HandOver, HolderList, HolderName, Leave, LeaveAnswer, ListQuery, MissingAt, MissingReport, NewBucket,
    NewCard, NewClient, NodeAction, Registered, Registration, Resync, SiteDistance, SiteSettings, SiteZone,
    SlotMove, Suspicion, SuspicionAnswer,
};
use common::auth::{Guard, Role, require_server};
use common::cluster::MapEpoch;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::ContentHash;
use common::id::{BucketName, ClientId, NodeId, ServerName, SiteId};
use common::name::ContentName;
use common::server::bad_request;
use common::trace::{self, Stage, stage};

use crate::contents::{Effect, Holder};
use crate::error::Failure;
use crate::map::View;
use crate::server::App;
use crate::servers::ServerKey;
use crate::{
    announcements, buckets, can_stop, cards, changes, clients, contents, departure, listing, nodes, recovery,
    servers, shards, sites, slots, suspicion,
};

/// Longest time a caller may wait for a change; it asks again then.
const WAIT_MAX: Duration = Duration::from_secs(60);
const SMALL_BODY_MAX: usize = 64 << 10;
const BATCH_BODY_MAX: usize = 8 << 20;

/// The service listener's routes: for servers of the cluster and its operator, service discovery for anybody.
pub fn service(app: App, guard: Guard) -> Router {
    let guarded = Router::new()
        .route("/v1/servers", post(register))
        .route("/v1/servers/leave", post(leave))
        .route("/v1/map", get(cluster_map))
        .route("/v1/map/slots/fence", post(fence))
        .route("/v1/map/slots/move", post(move_slots))
        .route("/v1/map/shards/followers", post(change_followers))
        .route("/v1/map/shards/hand-over", post(hand_over))
        .route("/v1/nodes/suspect", post(suspect))
        .route("/v1/nodes/{node}/can-stop", get(can_stop))
        .route("/v1/nodes/{node}/{action}", post(change_node))
        .route("/v1/sites/{site}", put(set_site))
        .route("/v1/sites/{site}/zone", put(set_zone))
        .route("/v1/sites/{site}/distance", put(set_distance))
        .route("/v1/sites/{site}/resync", post(resync))
        .route("/v1/clients", get(list_clients).post(create_client))
        .route("/v1/clients/{client}/disable", post(disable_client))
        .route("/v1/clients/{client}/limits", post(limit_client))
        .route("/v1/clients/by-token/{hash}", get(client_by_token))
        .route("/v1/cards", get(list_cards).post(add_card))
        .route("/v1/cards/disable", post(disable_cards))
        .route("/v1/cards/{card}", get(card_holder))
        .route("/v1/buckets", get(list_buckets))
        .route("/v1/buckets/{bucket}", put(put_bucket).get(get_bucket))
        .route("/v1/contents/lookup", get(lookup))
        .route("/v1/contents/by-hash/{hash}", get(by_hash))
        .route("/v1/contents/by-provider/{client}", get(by_provider))
        .route("/v1/contents/holders", get(holders))
        .route("/v1/contents/list", get(list))
        .route("/v1/contents/search", get(find))
        .route("/v1/contents/missing", post(missing))
        .route("/v1/changes", get(change_feed))
        .layer(DefaultBodyLimit::max(SMALL_BODY_MAX))
        .merge(
            Router::new()
                .route("/v1/announcements", post(announce))
                .layer(DefaultBodyLimit::max(BATCH_BODY_MAX)),
        )
        .layer(from_fn_with_state(guard, require_server))
        .layer(map_response(not_to_be_cached));
    guarded.with_state(app.clone()).merge(discovery(app))
}

/// Prometheus' service discovery; it names addresses only, so it needs no token.
pub fn discovery(app: App) -> Router {
    Router::new().route("/v1/sd/prometheus", get(targets)).with_state(app)
}

async fn not_to_be_cached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Runs `change` to its end, whether or not the caller still waits.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> ApiResult<T> {
    match trace::spawn(change).await {
        Ok(result) => Ok(result?),
        Err(panicked) => Err(ApiError::internal(&panicked)),
    }
}

type PathOf = Result<Path<String>, PathRejection>;

fn path_text(path: PathOf) -> ApiResult<String> {
    path.map(|Path(text)| text).map_err(bad_request)
}

// --- Servers, map, slots ---

async fn register(
    State(app): State<App>,
    ApiJson(registration): ApiJson<Registration>,
) -> ApiResult<ApiJson<Registered>> {
    let key = servers::check(&registration)?;
    let heartbeat_ms = app.heartbeat_ms;
    let (map_epoch, node) = to_the_end(async move {
        recovery::catch_up(&app, &registration).await?;
        let mut conn = app.db.read().await?;
        let known = servers::find(&mut conn, &key).await?;
        let tells_zone = registration.zone.is_some() && sites::lacks_zone(&mut conn, &key.site).await?;
        drop(conn);
        let wanted = servers::wanted(&key, &registration, known.as_ref())?;
        app.leases.renew(key.clone());
        if known.as_ref() == Some(&wanted) && !tells_zone {
            return Ok((app.view.borrow().epoch(), wanted.node));
        }
        let mut tx = app.db.write().await?;
        // Read again: only here nobody else writes.
        let known = servers::find(&mut tx, &key).await?;
        let wanted = servers::wanted(&key, &registration, known.as_ref())?;
        if known.as_ref().is_some_and(|known| known.has_other_log(&wanted)) {
            // What it had is gone, as if it were down: whoever follows its shard serves that now.
            servers::mark_down(&mut tx, &key).await?;
            shards::settle(&mut tx, &key.site).await?;
            shards::forget_rows_of(&mut tx, &key.site, &key.name).await?;
        }
        servers::put(&mut tx, &wanted, registration.zone.as_deref()).await?;
        if key.role == Role::StorageNode && known.is_some_and(|known| !known.alive) {
            shards::settle(&mut tx, &key.site).await?;
        }
        let epoch = app.commit_map(tx).await?.epoch();
        tracing::info!(role = %key.role, site = key.site, name = key.name, epoch = epoch.0, "registered");
        Ok((epoch, wanted.node))
    })
    .await?;
    let record_epoch = node.and_then(|node| u64::try_from(node.record_epoch).ok());
    Ok(ApiJson(Registered { map_epoch, record_epoch, heartbeat_ms }))
}

async fn leave(State(app): State<App>, ApiJson(request): ApiJson<Leave>) -> ApiResult<ApiJson<LeaveAnswer>> {
    let left = to_the_end(async move { departure::leave(&app, &request).await }).await?;
    Ok(ApiJson(LeaveAnswer { left }))
}

#[derive(Deserialize)]
struct WaitParams {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_ms: u64,
}

impl WaitParams {
    fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms).min(WAIT_MAX)
    }
}

async fn cluster_map(State(app): State<App>, ApiQuery(params): ApiQuery<WaitParams>) -> Response {
    let mut view = app.view.subscribe();
    let newer = async { view.wait_for(|v| v.epoch() > MapEpoch(params.after)).await.map(drop) };
    let waiting = async {
        tokio::select! {
            _ = tokio::time::timeout(params.wait(), newer) => {}
            () = app.draining.cancelled() => {}
        }
    };
    stage(Stage::Wait, waiting).await;
    let json = app.view.borrow().map_json.clone();
    json_response(json)
}

fn json_response(json: bytes::Bytes) -> Response {
    let headers: [(HeaderName, HeaderValue); 1] =
        [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (headers, json).into_response()
}

async fn fence(State(app): State<App>, ApiJson(request): ApiJson<FenceRequest>) -> ApiResult<ApiJson<Fence>> {
    let fence = to_the_end(async move {
        let mut tx = app.db.write().await?;
        let fence = slots::fence(&mut tx, &request).await?;
        tx.commit().await?;
        Ok(fence)
    })
    .await?;
    Ok(ApiJson(Fence { fence }))
}

async fn move_slots(State(app): State<App>, ApiJson(request): ApiJson<SlotMove>) -> ApiResult<Response> {
    let view = to_the_end(async move {
        let mut tx = app.db.write().await?;
        if !slots::move_slots(&mut tx, &request).await? {
            return Ok(app.view.borrow().clone());
        }
        let view = app.commit_map(tx).await?;
        let (count, epoch) = (request.slots.len(), view.epoch().0);
        tracing::info!(site = %request.site, from = %request.from, to = %request.to, count, epoch, "slots moved");
        Ok(view)
    })
    .await?;
    Ok(json_response(view.map_json))
}

async fn change_followers(
    State(app): State<App>,
    ApiJson(change): ApiJson<FollowersChange>,
) -> ApiResult<Response> {
    let view = to_the_end(async move {
        let mut tx = app.db.write().await?;
        if !shards::change_followers(&mut tx, &change).await? {
            return Ok(app.view.borrow().clone());
        }
        let view = app.commit_map(tx).await?;
        let FollowersChange { shard, primary, add, remove, .. } = &change;
        tracing::info!(%shard, %primary, ?add, ?remove, epoch = view.epoch().0, "followers changed");
        Ok(view)
    })
    .await?;
    Ok(json_response(view.map_json))
}

async fn hand_over(State(app): State<App>, ApiJson(request): ApiJson<HandOver>) -> ApiResult<Response> {
    let view = to_the_end(async move {
        let mut tx = app.db.write().await?;
        if !shards::hand_over(&mut tx, &request).await? {
            return Ok(app.view.borrow().clone());
        }
        let view = app.commit_map(tx).await?;
        let HandOver { shard, primary, to, .. } = &request;
        tracing::info!(%shard, %primary, %to, epoch = view.epoch().0, "shard handed over");
        Ok(view)
    })
    .await?;
    Ok(json_response(view.map_json))
}

// --- Nodes and sites ---

async fn suspect(
    State(app): State<App>,
    ApiJson(Suspicion { node }): ApiJson<Suspicion>,
) -> ApiResult<ApiJson<SuspicionAnswer>> {
    let alive = to_the_end(async move { suspicion::suspect(&app, &node).await }).await?;
    Ok(ApiJson(SuspicionAnswer { alive }))
}

async fn can_stop(State(app): State<App>, node: PathOf) -> ApiResult<Response> {
    let verdict = can_stop::can_stop(&app, &NodeId::new(&path_text(node)?)?).await?;
    let status = if verdict.can_stop { StatusCode::OK } else { StatusCode::PRECONDITION_FAILED };
    Ok((status, Json(verdict)).into_response())
}

async fn change_node(
    State(app): State<App>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> ApiResult<Response> {
    let Path((node, action)) = path.map_err(bad_request)?;
    let node = NodeId::new(&node)?;
    let action = NodeAction::ALL.into_iter().find(|known| known.as_str() == action).ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("there is nothing to do to a node named {action:?}"))
    })?;
    let view = to_the_end(async move {
        if action == NodeAction::Remove {
            // Asked before the transaction, which keeps every other writer waiting; a draining node gets
            // nothing new.
            let mut conn = app.db.read().await?;
            let admin = nodes::check_leaves(&mut conn, &node).await?;
            drop(conn);
            if let Some(admin) = admin {
                nodes::check_empty(&app.server, &node, &admin).await?;
            }
        }
        let mut tx = app.db.write().await?;
        let changed = match action {
            NodeAction::Drain => nodes::drain(&mut tx, &node).await?,
            NodeAction::Undrain => nodes::undrain(&mut tx, &node).await?,
            NodeAction::Remove => nodes::remove(&mut tx, &node).await?,
            NodeAction::RemoveLost => nodes::remove_lost(&mut tx, &node).await?,
        };
        if !changed {
            return Ok(app.view.borrow().clone());
        }
        let view = app.commit_map(tx).await?;
        if matches!(action, NodeAction::Remove | NodeAction::RemoveLost) {
            app.leases.forget(&ServerKey::of_node(&node));
        }
        tracing::info!(%node, action = action.as_str(), epoch = view.epoch().0, "node changed");
        Ok(view)
    })
    .await?;
    Ok(json_response(view.map_json))
}

async fn set_site(
    State(app): State<App>,
    path: PathOf,
    ApiJson(settings): ApiJson<SiteSettings>,
) -> ApiResult<Response> {
    let site = SiteId::new(&path_text(path)?)?;
    let view = to_the_end(async move {
        let mut tx = app.db.write().await?;
        if !sites::set_replicas(&mut tx, &site, settings.replicas).await? {
            return Ok(app.view.borrow().clone());
        }
        let view = app.commit_map(tx).await?;
        tracing::info!(%site, replicas = settings.replicas, epoch = view.epoch().0, "site changed");
        Ok(view)
    })
    .await?;
    Ok(json_response(view.map_json))
}

async fn set_zone(
    State(app): State<App>,
    path: PathOf,
    ApiJson(SiteZone { zone }): ApiJson<SiteZone>,
) -> ApiResult<Response> {
    let site = SiteId::new(&path_text(path)?)?;
    let view = to_the_end(async move {
        let mut tx = app.db.write().await?;
        if !sites::set_zone(&mut tx, &site, zone.as_ref()).await? {
            return Ok(app.view.borrow().clone());
        }
        let view = app.commit_map(tx).await?;
        let zone = zone.as_ref().map(ServerName::as_str);
        tracing::info!(%site, zone, epoch = view.epoch().0, "site changed");
        Ok(view)
    })
    .await?;
    Ok(json_response(view.map_json))
}

async fn set_distance(
    State(app): State<App>,
    path: PathOf,
    ApiJson(SiteDistance { to, distance }): ApiJson<SiteDistance>,
) -> ApiResult<Response> {
    let site = SiteId::new(&path_text(path)?)?;
    let view = to_the_end(async move {
        let mut tx = app.db.write().await?;
        if !sites::set_distance(&mut tx, &site, &to, distance).await? {
            return Ok(app.view.borrow().clone());
        }
        let view = app.commit_map(tx).await?;
        tracing::info!(%site, %to, distance, epoch = view.epoch().0, "site changed");
        Ok(view)
    })
    .await?;
    Ok(json_response(view.map_json))
}

/// Asks a site's nodes for snapshots of what they hold; they send them with their next announcements.
async fn resync(State(app): State<App>, path: PathOf) -> ApiResult<ApiJson<Resync>> {
    let site = SiteId::new(&path_text(path)?)?;
    let nodes = to_the_end(async move {
        let mut tx = app.db.write().await?;
        let nodes = announcements::ask_for_snapshots(&mut tx, site.as_str()).await?;
        tx.commit().await?;
        Ok(nodes)
    })
    .await?;
    Ok(ApiJson(Resync { nodes }))
}

async fn targets(State(app): State<App>, headers: HeaderMap) -> Response {
    let View { targets, .. } = app.view.borrow().clone();
    let own = app.own_target.seen_under(headers.get(HOST).and_then(|host| host.to_str().ok()));
    let all: Vec<_> = std::iter::once(&own).chain(targets.iter()).collect();
    Json(all).into_response()
}

// --- Clients and buckets ---

async fn create_client(
    State(app): State<App>,
    ApiJson(new): ApiJson<NewClient>,
) -> ApiResult<ApiJson<ClientKeys>> {
    let keys = to_the_end(async move {
        let mut tx = app.db.write().await?;
        let keys = clients::create(&mut tx, &new, app.clock.now()).await?;
        tx.commit().await?;
        Ok(keys)
    })
    .await?;
    Ok(ApiJson(keys))
}

async fn list_clients(State(app): State<App>) -> ApiResult<ApiJson<Vec<ClientRecord>>> {
    let mut conn = app.db.read().await?;
    Ok(ApiJson(clients::list(&mut conn).await?))
}

async fn disable_client(State(app): State<App>, path: PathOf) -> ApiResult<ApiJson<ClientRecord>> {
    let client = ClientId::new(&path_text(path)?)?;
    let record = to_the_end(async move {
        let mut tx = app.db.write().await?;
        let record = clients::disable(&mut tx, &client).await?;
        tx.commit().await?;
        Ok(record)
    })
    .await?;
    Ok(ApiJson(record))
}

async fn limit_client(
    State(app): State<App>,
    path: PathOf,
    ApiJson(limits): ApiJson<ClientLimits>,
) -> ApiResult<ApiJson<ClientRecord>> {
    let client = ClientId::new(&path_text(path)?)?;
    let record = to_the_end(async move {
        let mut tx = app.db.write().await?;
        let record = clients::limit(&mut tx, &client, &limits).await?;
        tx.commit().await?;
        Ok(record)
    })
    .await?;
    Ok(ApiJson(record))
}

async fn client_by_token(State(app): State<App>, path: PathOf) -> ApiResult<ApiJson<ClientRecord>> {
    let hash = path_text(path)?;
    let mut conn = app.db.read().await?;
    Ok(ApiJson(clients::by_token(&mut conn, &hash).await?))
}

async fn add_card(State(app): State<App>, ApiJson(new): ApiJson<NewCard>) -> ApiResult<ApiJson<CardRecord>> {
    let record = to_the_end(async move {
        let mut tx = app.db.write().await?;
        let record = cards::add(&mut tx, &new, app.clock.now()).await?;
        tx.commit().await?;
        Ok(record)
    })
    .await?;
    Ok(ApiJson(record))
}

#[derive(Deserialize)]
struct CardsParams {
    client: Option<ClientId>,
}

async fn list_cards(
    State(app): State<App>,
    ApiQuery(params): ApiQuery<CardsParams>,
) -> ApiResult<ApiJson<Vec<CardRecord>>> {
    let mut conn = app.db.read().await?;
    Ok(ApiJson(cards::list(&mut conn, params.client.as_ref()).await?))
}

async fn card_holder(State(app): State<App>, path: PathOf) -> ApiResult<ApiJson<CardHolder>> {
    let card = path_text(path)?.parse()?;
    let mut conn = app.db.read().await?;
    Ok(ApiJson(cards::holder(&mut conn, &card).await?))
}

async fn disable_cards(
    State(app): State<App>,
    ApiJson(which): ApiJson<DisableCards>,
) -> ApiResult<ApiJson<Vec<CardRecord>>> {
    let records = to_the_end(async move {
        let mut tx = app.db.write().await?;
        let records = cards::disable(&mut tx, &which).await?;
        tx.commit().await?;
        Ok(records)
    })
    .await?;
    Ok(ApiJson(records))
}

async fn put_bucket(
    State(app): State<App>,
    path: PathOf,
    ApiJson(new): ApiJson<NewBucket>,
) -> ApiResult<ApiJson<BucketRecord>> {
    let bucket = BucketName::new(&path_text(path)?)?;
    let record = to_the_end(async move {
        let mut tx = app.db.write().await?;
        let record = buckets::put(&mut tx, &bucket, &new, app.clock.now()).await?;
        tx.commit().await?;
        Ok(record)
    })
    .await?;
    Ok(ApiJson(record))
}

async fn get_bucket(State(app): State<App>, path: PathOf) -> ApiResult<ApiJson<BucketRecord>> {
    let bucket = BucketName::new(&path_text(path)?)?;
    let mut conn = app.db.read().await?;
    Ok(ApiJson(buckets::get(&mut conn, &bucket).await?))
}

async fn list_buckets(State(app): State<App>) -> ApiResult<ApiJson<Vec<BucketRecord>>> {
    let mut conn = app.db.read().await?;
    Ok(ApiJson(buckets::list(&mut conn).await?))
}

// --- Contents ---

async fn announce(
    State(app): State<App>,
    ApiJson(batch): ApiJson<AnnounceBatch>,
) -> ApiResult<ApiJson<AnnounceAnswer>> {
    Ok(ApiJson(app.announcements.apply(batch).await?))
}

#[derive(Deserialize)]
struct NameParams {
    name: String,
}

async fn lookup(
    State(app): State<App>,
    ApiQuery(params): ApiQuery<NameParams>,
) -> ApiResult<ApiJson<ContentInfo>> {
    let name: ContentName = params.name.parse()?;
    let reading = async { listing::lookup(&mut *app.db.read().await?, &name).await };
    let found = stage(Stage::Index, reading).await;
    app.metrics.lookup(found.is_ok());
    let mut info = found?;
    let view = app.view.borrow().clone();
    info.sites.retain(|site| !view.is_silent(site));
    if info.sites.is_empty() && info.origins.is_empty() {
        let message = format!("no site that holds {name} is heard of; ask again later");
        return Err(ApiError::new(ErrorCode::SourceUnavailable, message));
    }
    Ok(ApiJson(info))
}

async fn holders(
    State(app): State<App>,
    ApiQuery(params): ApiQuery<NameParams>,
) -> ApiResult<ApiJson<HolderList>> {
    let name: ContentName = params.name.parse()?;
    let mut conn = app.db.read().await?;
    let mut list = listing::holders(&mut conn, &name).await?;
    let view = app.view.borrow().clone();
    for line in &mut list.holders {
        if let HolderName::Site(site) = &line.holder {
            line.is_silent = view.is_silent(site);
            line.heard_ms_ago = app.leases.heard_of_site(site.as_str()).map(|ago| ago.as_millis() as u64);
        }
    }
    Ok(ApiJson(list))
}

#[derive(Deserialize)]
struct PageParams {
    #[serde(default)]
    after: String,
    limit: Option<u32>,
}

async fn by_hash(
    State(app): State<App>,
    path: PathOf,
    ApiQuery(page): ApiQuery<PageParams>,
) -> ApiResult<ApiJson<ContentPage>> {
    let hash = path_text(path)?.parse::<ContentHash>()?;
    let mut conn = app.db.read().await?;
    Ok(ApiJson(listing::by_hash(&mut conn, hash, &page.after, page.limit).await?))
}

async fn by_provider(
    State(app): State<App>,
    path: PathOf,
    ApiQuery(page): ApiQuery<PageParams>,
) -> ApiResult<ApiJson<ContentPage>> {
    let provider = ClientId::new(&path_text(path)?)?;
    let mut conn = app.db.read().await?;
    Ok(ApiJson(listing::by_provider(&mut conn, &provider, &page.after, page.limit).await?))
}

#[derive(Deserialize)]
struct ListParams {
    bucket: String,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    limit: Option<u32>,
    delimiter: Option<String>,
}

async fn list(
    State(app): State<App>,
    ApiQuery(params): ApiQuery<ListParams>,
) -> ApiResult<ApiJson<ContentPage>> {
    let ListParams { bucket, prefix, after, limit, delimiter } = params;
    let bucket = BucketName::new(&bucket)?;
    let query = ListQuery { prefix, after, limit, delimiter };
    let mut conn = app.db.read().await?;
    Ok(ApiJson(listing::list(&mut conn, &bucket, &query).await?))
}

#[derive(Deserialize)]
struct FindParams {
    q: String,
    #[serde(default)]
    after: String,
    limit: Option<u32>,
}

async fn find(
    State(app): State<App>,
    ApiQuery(params): ApiQuery<FindParams>,
) -> ApiResult<ApiJson<ContentPage>> {
    let mut conn = app.db.read().await?;
    Ok(ApiJson(listing::find(&mut conn, app.db.dialect, &params.q, &params.after, params.limit).await?))
}

async fn missing(State(app): State<App>, ApiJson(report): ApiJson<MissingReport>) -> ApiResult<ApiJson<()>> {
    to_the_end(async move {
        let holder = match &report.at {
            MissingAt::Site(site) => Holder::site(site.as_str()),
            MissingAt::Origin(name) => Holder::origin(name.as_str()),
        };
        let mut tx = app.db.write().await?;
        let effect =
            contents::change(&mut tx, &report.name, &holder, |entry| entry.missing(&holder, report.version))
                .await?;
        tx.commit().await?;
        if effect != Effect::default() {
            app.metrics.missing_reports.increment(1);
            tracing::warn!(name = %report.name, at = ?report.at, "a holder did not have what it announced");
        }
        app.publish_effect(effect);
        Ok(())
    })
    .await?;
    Ok(ApiJson(()))
}

async fn change_feed(
    State(app): State<App>,
    ApiQuery(params): ApiQuery<WaitParams>,
) -> ApiResult<ApiJson<ChangePage>> {
    let mut last = app.last_change.subscribe();
    // A number beyond the end is of another feed and answered at once.
    let waited = async { last.wait_for(|last| *last != params.after).await.map(drop) };
    tokio::select! {
        _ = tokio::time::timeout(params.wait(), waited) => {}
        () = app.draining.cancelled() => {}
    }
    let mut conn = app.db.read().await?;
    Ok(ApiJson(changes::after(&mut conn, params.after).await?))
}
