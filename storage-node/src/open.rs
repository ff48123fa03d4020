//! Opening a delivery: *resolve* and *begin* as one rule, for the node that decides for the name and the client both.
//!
//! It does what the two do one after the other for a content that the site holds complete, and nothing otherwise.

use common::api::node::{BeginRequest, Holding, HoldingState, OpenRequest};
use common::error::ApiResult;
use common::range::{self, Wanted};
use common::record::DeliveryPath;
use common::time::UnixMillis;

use crate::catalog::key::Key;
use crate::catalog::txn::{Rows, Txn};
use crate::deliveries::{self, Beginning, Joining};
use crate::holdings;

/// What an open found, and what it led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub holding: Option<Holding>,
    /// `None`: nothing was changed.
    pub begun: Option<Beginning>,
}

/// Notes the client as a holder and begins the delivery, if the holding is there to be delivered.
pub fn open(
    txn: &mut Txn<'_>,
    request: &OpenRequest,
    joining: &Joining,
    now: UnixMillis,
) -> ApiResult<Opened> {
    let holding = txn.get::<Holding>(Key::Holding(&request.name))?;
    let Some(begin) = holding.as_ref().and_then(|holding| begin_request(request, holding)) else {
        return Ok(Opened { holding, begun: None });
    };
    holdings::add_client(txn, &request.name, &request.client, now)?;
    let begun = deliveries::begin(txn, &begin, joining, now)?;
    Ok(Opened { holding, begun: Some(begun) })
}

/// The begin that follows from finding this holding; `None` when there is something else to do first, or nothing to
/// deliver.
fn begin_request(request: &OpenRequest, holding: &Holding) -> Option<BeginRequest> {
    if holding.state != HoldingState::Complete {
        return None;
    }
    let range_start = match range::parse(request.range.as_deref(), holding.manifest.len).ok()? {
        Wanted::Whole => 0,
        Wanted::Part(range) => range.start,
    };
    Some(BeginRequest {
        delivery: request.delivery,
        client: request.client.clone(),
        name: request.name.clone(),
        hash: holding.manifest.hash,
        provider: holding.provider.clone(),
        bytes_total: holding.manifest.len,
        range_start,
        path: DeliveryPath::Hit,
        source: None,
        searched: false,
        surrogate: request.surrogate.clone(),
        mobile_access: request.mobile_access.clone(),
        quota: request.quota,
    })
}

#[cfg(test)]
mod tests;
