//! `/v1/audit`: which contents of a shard the site no longer has whole.

use std::sync::Arc;

use axum::extract::State;
use common::api::extract::{ApiJson, ApiQuery};
use common::api::node::AuditPage;
use common::error::ApiResult;
use common::id::NodeId;
use common::name::ContentName;

use crate::audit;
use crate::node::Node;

#[derive(serde::Deserialize)]
pub struct AuditQuery {
    shard: NodeId,
    #[serde(default)]
    after: Option<ContentName>,
    #[serde(default)]
    limit: Option<u32>,
}

pub async fn page(
    State(node): State<Arc<Node>>,
    ApiQuery(query): ApiQuery<AuditQuery>,
) -> ApiResult<ApiJson<AuditPage>> {
    let shard = node.shard(&query.shard)?;
    let limit = query.limit.unwrap_or(audit::PAGE_LEN_MAX);
    audit::page(&shard, query.after.as_ref(), limit).await.map(ApiJson)
}
