//! Home's part in serving a client that visits another site: what it confirms, and the check that it did.

use std::time::Duration;

use common::api::peer::{PossessionAnswer, PossessionRequest};
use common::error::ApiResult;
use common::id::SiteId;
use common::possession::Possession;

use crate::limits::Pace;
use crate::server::Gateway;
use crate::wish::{Conditions, Wish};

impl Gateway {
    /// Decides about a client of this site that visits another, records the delivery, and says so with a proof.
    pub async fn confirm(&self, request: PossessionRequest) -> ApiResult<PossessionAnswer> {
        let wish = Wish {
            client: request.client,
            name: request.name,
            head_only: request.head_only,
            conditions: Conditions { if_none_match: request.if_none_match, ..Conditions::default() },
            range: request.range,
            surrogate: Some(request.surrogate.clone()),
            mobile_access: request.mobile_access.clone(),
            quota: request.quota,
            // The visited site, which sends the bytes, keeps to the pace.
            pace: Pace::default(),
        };
        let (holding, begin) = self.begin_for_visited_site(&wish, request.delivery).await?;
        let issued = self.clock.now();
        let keep_ms = request.keep_ms.min(self.config.temporary_ttl_ms.get());
        let possession = Possession {
            home: self.site.id.clone(),
            surrogate: request.surrogate,
            mobile_access: request.mobile_access,
            client: wish.client,
            name: wish.name,
            version: holding.version,
            provider: holding.provider,
            begin,
            issued,
            expires: issued.saturating_add(Duration::from_millis(keep_ms)),
        };
        let proof = self.possession_keys.sign(&possession, &holding.manifest);
        Ok(PossessionAnswer { possession, manifest: holding.manifest, proof })
    }

    /// Whether an answer is what home confirmed to this site about this request.
    pub(super) fn is_confirmed(
        &self,
        home: &SiteId,
        request: &PossessionRequest,
        answer: &PossessionAnswer,
    ) -> bool {
        let PossessionAnswer { possession, manifest, proof } = answer;
        possession.home == *home
            && possession.surrogate == self.site.id
            && possession.client == request.client
            && possession.name == request.name
            && possession.mobile_access == request.mobile_access
            && manifest.check().is_ok()
            && self.possession_keys.verify(possession, manifest, proof)
    }
}
