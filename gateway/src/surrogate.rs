//! Clients of other sites: the content comes through the client's home site, which decides whether it is a
//! purchase, records the delivery, and gives the bytes that this site lacks.

use std::time::Instant;

use axum::response::Response;
use common::api::peer::{PeerClient, PossessionRequest};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{DeliveryId, SiteId};
use common::manifest::{ChunkList, ChunkRef, Manifest};
use common::name::ContentName;
use std::sync::Arc;

use crate::body::Supply;
use crate::chunks::decode_list;
use crate::deliver::Plan;
use crate::ends::EndGuard;
use crate::server::Gateway;
use crate::wish::Wish;

impl Gateway {
    /// Answers a client whose home is another site.
    pub async fn deliver_visited(&self, wish: Wish, home: &SiteId) -> ApiResult<Response> {
        let started = Instant::now();
        let peer = Arc::new(self.gateway_of(home)?);
        let request = PossessionRequest {
            client: wish.client.clone(),
            name: wish.name.clone(),
            delivery: DeliveryId::generate(self.clock.now()),
            range: wish.range.clone(),
            if_none_match: wish.conditions.if_none_match.clone(),
            surrogate: self.site.id.clone(),
            mobile_access: wish.mobile_access.clone(),
            head_only: wish.head_only,
            quota: wish.quota,
        };
        let unavailable = "your home site does not answer; try again in a moment";
        let answer = peer
            .possession(&request)
            .await
            .map_err(|error| error.to_api(ErrorCode::SourceUnavailable, unavailable))?;
        // From here on a delivery that home recorded ends with what was sent, be it nothing.
        let begun = answer.begin.map(|begin| {
            let mut guard = EndGuard::new(request.delivery, self.ends.clone());
            guard.begun(&begin);
            (begin.class, guard)
        });
        let list = self.visited_list(&answer.holding.manifest, &wish.name, &peer).await?;
        let (chunks, name) = (self.chunks.clone(), wish.name.clone());
        let supply = Supply::Home { home: home.clone(), peer, chunks, name };
        match (self.plan_visited(&wish, answer.holding, list, supply)?, begun) {
            (Plan::Deliver(delivery), Some((class, guard))) => {
                self.send(*delivery, class, guard, started).await
            }
            (Plan::Answer(response), _) => Ok(*response),
            (Plan::Deliver(_), None) => Err(ApiError::new(
                ErrorCode::SourceUnavailable,
                "your home site recorded no delivery; try again in a moment",
            )),
        }
    }

    /// A gateway of another site.
    pub fn gateway_of(&self, site: &SiteId) -> ApiResult<PeerClient> {
        let map = self.site.map();
        let gateway = map.site(site).and_then(|s| s.gateways.iter().find(|g| g.alive));
        gateway.map(|g| PeerClient::gateway(self.server.clone(), &g.http)).ok_or_else(|| {
            ApiError::new(
                ErrorCode::SourceUnavailable,
                format!("no gateway of site {site} is running; try again later"),
            )
        })
    }

    async fn visited_list(
        &self,
        manifest: &Manifest,
        name: &ContentName,
        peer: &PeerClient,
    ) -> ApiResult<Arc<[ChunkRef]>> {
        match &manifest.chunks {
            ChunkList::Inline(chunks) => Ok(chunks.as_slice().into()),
            ChunkList::Stored { list, .. } => {
                let bytes = peer.chunk(name, list, 0).await.map_err(|error| {
                    error.to_api(
                        ErrorCode::SourceUnavailable,
                        "your home site does not answer; try again in a moment",
                    )
                })?;
                decode_list(manifest, &bytes)
            }
        }
    }
}
