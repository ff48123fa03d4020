//! The node's HTTP routes: one file per resource. Each handler checks what it was sent, runs one rule in one
//! commit, and answers when it is durable.

mod audit;
mod challenges;
mod chunks;
mod collections;
mod deliveries;
mod holdings;
mod library;
mod records;
mod scrub;
mod shards;
mod slots;
mod status;
mod tally;
mod temporary;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
use common::auth::{Guard, require_server};

use crate::node::Node;

/// Longest JSON body: a claim or release of all chunks of the largest content.
const JSON_BYTES_MAX: usize = 16 << 20;

/// The service listener: for servers of the cluster alone.
pub fn service(node: Arc<Node>, guard: Guard) -> Router {
    let json = Router::new()
        .route("/v1/holdings/resolve", post(holdings::resolve))
        .route("/v1/holdings/hold", post(holdings::hold))
        .route("/v1/holdings/withdraw", post(holdings::withdraw))
        .route("/v1/holdings/release", post(holdings::release))
        .route("/v1/holdings/clients", get(holdings::clients))
        .route("/v1/holdings/check-refs", post(holdings::check_refs))
        .route("/v1/collections/lease", post(collections::lease))
        .route("/v1/collections/release", post(collections::release))
        .route("/v1/chunks/claim", post(chunks::claim))
        .route("/v1/chunks/refs", post(chunks::refs))
        .route("/v1/chunks/adopt", post(chunks::adopt))
        .route("/v1/chunks/release", post(chunks::release))
        .route("/v1/deliveries/begin", post(deliveries::begin))
        .route("/v1/deliveries/open", post(deliveries::open))
        .route("/v1/deliveries/join", post(deliveries::join))
        .route("/v1/deliveries/end", post(deliveries::end))
        .route("/v1/library/add", post(library::add))
        .route("/v1/library/drop", post(library::drop_row))
        .route("/v1/library", get(library::page))
        .route("/v1/library/row", get(library::row))
        .route("/v1/library/account", get(library::account))
        .route("/v1/temporary/keep", post(temporary::keep))
        .route("/v1/temporary/leave", post(temporary::leave))
        .route("/v1/temporary/complete", post(temporary::complete))
        .route("/v1/temporary/kept", get(temporary::kept))
        .route("/v1/temporary/begin", post(temporary::begin))
        .route("/v1/temporary/ends", post(temporary::keep_ends))
        .route("/v1/temporary/list", post(temporary::list))
        .route("/v1/challenges/answer", post(challenges::answer))
        .route("/v1/tally", post(tally::apply))
        .route("/v1/tally/sums", post(tally::sums))
        .route("/v1/slots/export", post(slots::export))
        .route("/v1/slots/export-anew", post(slots::export_anew))
        .route("/v1/slots/release", post(slots::release))
        .route("/v1/records/heads", get(records::heads))
        .route("/v1/records/digest", get(records::digest))
        .route("/v1/audit", get(audit::page))
        .route("/v1/map", get(status::map).put(status::take_map))
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX));
    let bytes = Router::new()
        .route("/v1/chunks/{hash}", get(chunks::read).put(chunks::store))
        .layer(DefaultBodyLimit::max(common::chunker::CHUNK_LEN_MAX));
    let shipments = Router::new()
        .route("/v1/shards/{shard}/ship", post(shards::ship))
        .layer(DefaultBodyLimit::max(shards::SHIPMENT_BYTES_MAX));
    json.merge(bytes)
        .merge(shipments)
        .layer(middleware::from_fn_with_state(guard, require_server))
        .with_state(node)
}

/// The admin listener, beside health and metrics.
pub fn admin(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/node", get(status::node))
        .route("/v1/map", get(status::map))
        .route("/v1/scrub", get(scrub::status).post(scrub::start))
        .with_state(node)
}
