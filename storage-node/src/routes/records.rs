//! `/v1/records/…`: how far the delivery records of this node's shards go, for the reconciliation of the books.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::{ApiJson, ApiQuery};
use common::api::node::RecordHead;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::RecordDigest;
use common::id::NodeId;
use common::record::{ChainedRecord, RecordNumber};

use crate::catalog::key::Key;
use crate::catalog::rows::ChainHead;
use crate::catalog::txn::Rows;
use crate::node::Node;

type Shared = State<Arc<Node>>;

/// The newest record of each shard that this node serves.
pub async fn heads(State(node): Shared) -> ApiResult<ApiJson<Vec<RecordHead>>> {
    let mut heads = Vec::new();
    for shard in node.shards.all() {
        let head = shard.read_settled(|rows| rows.get::<ChainHead>(Key::ChainHead)).await?;
        heads.extend(head.map(|head| RecordHead {
            shard: shard.id.clone(),
            epoch: head.epoch,
            seq: head.seq,
            digest: head.digest,
        }));
    }
    Ok(ApiJson(heads))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigestQuery {
    shard: NodeId,
    epoch: u64,
    seq: u64,
}

/// The digest of one record.
pub async fn digest(
    State(node): Shared,
    ApiQuery(query): ApiQuery<DigestQuery>,
) -> ApiResult<ApiJson<RecordDigest>> {
    let DigestQuery { shard, epoch, seq } = query;
    let number = RecordNumber { epoch, seq };
    let record =
        node.shard(&shard)?.read_settled(|rows| rows.get::<ChainedRecord>(Key::Record(number))).await?;
    let none = || {
        let message = format!("shard {shard} has no record {seq} of epoch {epoch}");
        ApiError::new(ErrorCode::NotFound, message)
    };
    record.map(|record| ApiJson(record.digest)).ok_or_else(none)
}
