//! Clients of other sites: this site stands in for the client's home, its *surrogate*.
//!
//! ```text
//! visited site                                  home site
//!   possession check ─────────────────────────▶ authorise, collect if it must, record the delivery
//!   verify the proof ◀───────────────────────── manifest, purchase or reference, proof
//!   keep (temporary content, durable)
//!   send what is here, fetch the rest from the nearest that has it, home or another; store it
//!   end ──────────────────────────────────────▶ what was sent
//! ```
//! Home decides and records; its answer is out as soon as its own collection began, and the visited site's fetches wait
//! there for each chunk. What is fetched stays here as temporary content, so that a second request costs home its answer
//! and no bytes. It is a collection ([`crate::collect`]) as that of a client of this site is, and shared with it.
//!
//! When home does not answer, a client gets what is kept here whole for it, as long as home's last confirmation holds:
//! the delivery is recorded by this site ([`common::api::temporary::BeginAwayRequest`]). Should home have recorded it
//! too, and only its answer been lost, that record stays without an end there, which is never billed.
//!
//! | file | owns |
//! |---|---|
//! | `surrogate.rs` | the visited site's part |
//! | `confirm.rs` | home's part: what it confirms, and checking that it did |

pub mod confirm;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use common::api::node::{BeginAnswer, RefTag};
use common::api::peer::{PeerClient, PossessionAnswer, PossessionRequest};
use common::api::temporary::{
    BeginAwayRequest, KeepAnswer, KeepRequest, Kept, LeaveRequest, ListRequest, TemporaryContent,
    TemporaryPage,
};
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::{ClientId, DeliveryId, SiteId};
use common::manifest::ChunkRef;
use common::name::ContentName;
use common::placement::Slot;
use common::record::Source;

use crate::body::Supply;
use crate::collect::elsewhere::Elsewhere;
use crate::collect::sought::{Sought, Visit};
use crate::deliver::Plan;
use crate::ends::EndGuard;
use crate::server::Gateway;
use crate::wish::Wish;

/// How long home may take for its answer while there is something that can be served without it.
const HOME_PATIENCE: Duration = Duration::from_secs(3);

/// What became of a possession check.
enum Asked {
    Confirmed(Box<PossessionAnswer>),
    /// Nobody at home decides at the moment.
    Away(ApiError),
}

impl Gateway {
    /// Answers a client whose home is another site.
    pub async fn deliver_visited(&self, wish: Wish, home: &SiteId) -> ApiResult<Response> {
        let started = Instant::now();
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
            keep_ms: self.config.temporary_ttl_ms.get(),
        };
        let mut asking = pin!(self.ask_home(home, &request));
        let asked = match tokio::time::timeout(HOME_PATIENCE, &mut asking).await {
            Ok(asked) => asked?,
            Err(_) => match self.kept_whole(&wish, home).await? {
                Some(kept) => return self.deliver_kept(&wish, kept, request.delivery, started).await,
                None => asking.await?,
            },
        };
        match asked {
            Asked::Confirmed(answer) => {
                self.deliver_confirmed(&wish, *answer, request.delivery, started).await
            }
            Asked::Away(error) => match self.kept_whole(&wish, home).await? {
                Some(kept) => self.deliver_kept(&wish, kept, request.delivery, started).await,
                None => Err(error),
            },
        }
    }

    /// The possession check, at one gateway of home after the other.
    async fn ask_home(&self, home: &SiteId, request: &PossessionRequest) -> ApiResult<Asked> {
        let away = |cause: Option<&dyn std::error::Error>| {
            let name = &request.name;
            let message = format!(
                "your home site {home} does not answer, and {name} is not kept here for you; try again in a moment"
            );
            let error = ApiError::new(ErrorCode::SourceUnavailable, message);
            Asked::Away(match cause {
                Some(cause) => error.with_cause(cause),
                None => error,
            })
        };
        let mut last = None;
        for peer in self.gateways_of(home) {
            match peer.possession(request).await {
                Ok(answer) if self.is_confirmed(home, request, &answer) => {
                    return Ok(Asked::Confirmed(Box::new(answer)));
                }
                Ok(_) => {
                    tracing::error!(%home, client = %request.client, content = %request.name, "the home site's confirmation has no good proof; do both sites have the same cluster secret?");
                    let message = "your home site's confirmation is not valid; the operators must look";
                    return Err(ApiError::new(ErrorCode::SourceUnavailable, message));
                }
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%home, error = chain(&error), "the home site does not confirm");
                    last = Some(error);
                }
                Err(error) => {
                    if error.code().is_some_and(is_final) {
                        self.leave(request).await;
                    }
                    return Err(
                        error.to_api(ErrorCode::SourceUnavailable, "your home site's answer cannot be read")
                    );
                }
            }
        }
        Ok(away(last.as_ref().map(|error| error as &dyn std::error::Error)))
    }

    /// Home's last word counts: what it refuses is not kept any longer, to be served when home is away.
    async fn leave(&self, request: &PossessionRequest) {
        let leave = LeaveRequest { client: request.client.clone(), name: request.name.clone() };
        let (leave, slot) = (&leave, Slot::of_name(&request.name));
        let left = self.site.ask_owner(slot, |node| async move { node.leave_temporary(leave).await }).await;
        if let Err(error) = left {
            tracing::warn!(content = %request.name, %error, "what home refused stays until it expires");
        }
    }

    /// The gateways of another site that are there.
    fn gateways_of(&self, site: &SiteId) -> Vec<PeerClient> {
        let map = self.site.map();
        let gateways = map.site(site).map_or(&[][..], |site| &site.gateways);
        let there = gateways.iter().filter(|gateway| gateway.alive);
        there.map(|gateway| PeerClient::gateway(self.server.clone(), &gateway.http)).collect()
    }

    async fn deliver_confirmed(
        &self,
        wish: &Wish,
        answer: PossessionAnswer,
        request: DeliveryId,
        started: Instant,
    ) -> ApiResult<Response> {
        let Some(begin) = answer.possession.begin.clone() else {
            let PossessionAnswer { possession, manifest, .. } = answer;
            let source = Some(Source::Site(possession.home.clone()));
            let visit = Visit::new(&possession, manifest, RefTag(0));
            let nothing = self.of_site(Elsewhere::of_visit(&visit, false));
            return match self.plan_visited(wish, visit.holding, [].into(), nothing, source)? {
                Plan::Answer(response) => Ok(*response),
                Plan::Deliver(_) => Err(ApiError::new(
                    ErrorCode::SourceUnavailable,
                    "your home site recorded no delivery; try again in a moment",
                )),
            };
        };
        // From here on a delivery that home recorded ends with what was sent, be it nothing.
        let mut guard = EndGuard::new(request, wish.client.clone(), self.ends.clone());
        guard.begun(&begin);
        self.metrics.visited_confirmed.increment(1);
        let kept = self.keep(&answer).await;
        let PossessionAnswer { possession, manifest, .. } = answer;
        let is_whole = kept.as_ref().is_some_and(|kept| kept.complete);
        let source = (!is_whole).then(|| Source::Site(possession.home.clone()));
        let tag = kept.as_ref().map_or(RefTag(0), |kept| kept.ref_tag);
        let visit = Visit::new(&possession, manifest, tag);
        let (list, supply) = match kept {
            Some(kept) if !kept.complete => self.collect_visited(&visit).await?,
            kept => self.supply_visited(&visit, kept.is_some()).await?,
        };
        match self.plan_visited(wish, visit.holding, list, supply, source)? {
            Plan::Deliver(delivery) => self.send(*delivery, begin.class, guard, started).await,
            Plan::Answer(response) => Ok(*response),
        }
    }

    /// Collects what is kept for the visitor; what cannot be collected at the moment is passed on.
    async fn collect_visited(&self, visit: &Visit) -> ApiResult<(Arc<[ChunkRef]>, Supply)> {
        match self.collector.collect(Sought::Visited(visit)).await {
            Ok(joined) => {
                let (collection, chunks) = (joined.collection, self.chunks.clone());
                Ok((collection.chunks.clone(), Supply::Collection { collection, chunks }))
            }
            Err(error) if error.code == ErrorCode::Conflict => {
                tracing::debug!(content = %visit.holding.name, %error, "passed on");
                self.supply_visited(visit, false).await
            }
            Err(error) => Err(error),
        }
    }

    /// What the site has of it, the rest from elsewhere: stored if it is kept, passed on alone otherwise.
    async fn supply_visited(&self, visit: &Visit, is_kept: bool) -> ApiResult<(Arc<[ChunkRef]>, Supply)> {
        let elsewhere = Elsewhere::of_visit(visit, is_kept);
        let list = self.collector.list(&elsewhere, &visit.holding.manifest).await?;
        Ok((list, self.of_site(elsewhere)))
    }

    /// Notes, durably, that the content is kept for the client. `None` when it is not to be kept, or no node notes it at
    /// the moment: then it is served all the same.
    async fn keep(&self, answer: &PossessionAnswer) -> Option<KeepAnswer> {
        let PossessionAnswer { possession, manifest, proof } = answer.clone();
        if possession.expires <= possession.issued {
            return None;
        }
        let slot = Slot::of_name(&possession.name);
        let request = KeepRequest { possession, manifest, proof, ref_tag: RefTag::generate() };
        let request = &request;
        let kept = self.site.ask_owner(slot, |node| async move { node.keep_temporary(request).await }).await;
        kept.inspect_err(|error| {
            tracing::warn!(content = %request.possession.name, %error, "served from the home site without keeping it");
        })
        .ok()
    }

    /// What is kept here whole for a client, with a good proof that its home confirmed it.
    async fn kept_whole(&self, wish: &Wish, home: &SiteId) -> ApiResult<Option<Kept>> {
        let (client, name) = (&wish.client, &wish.name);
        let slot = Slot::of_name(name);
        let kept = self.site.ask_owner(slot, |node| async move { node.kept(client, name).await }).await?;
        let Some(kept) = kept.filter(|kept| kept.complete) else { return Ok(None) };
        let Kept { possession, manifest, proof, .. } = &kept;
        let is_about = possession.home == *home
            && possession.surrogate == self.site.id
            && possession.client == *client
            && possession.name == *name;
        if !is_about || !self.possession_keys.verify(possession, manifest, proof) {
            tracing::error!(%client, content = %name, "what is kept for a visitor has no good proof; it is not served");
            return Ok(None);
        }
        Ok(Some(kept))
    }

    /// Home is away: what is kept is delivered, and recorded here.
    async fn deliver_kept(
        &self,
        wish: &Wish,
        kept: Kept,
        delivery: DeliveryId,
        started: Instant,
    ) -> ApiResult<Response> {
        let Kept { possession, manifest, ref_tag, .. } = kept;
        let visit = Visit::new(&possession, manifest, ref_tag);
        let (list, supply) = self.supply_visited(&visit, true).await?;
        let plan = self.plan_visited(wish, visit.holding, list, supply, None)?;
        let planned = match plan {
            Plan::Answer(response) => return Ok(*response),
            Plan::Deliver(planned) => planned,
        };
        let request = BeginAwayRequest {
            delivery,
            client: wish.client.clone(),
            name: wish.name.clone(),
            ref_tag,
            range_start: planned.range_start(),
            mobile_access: wish.mobile_access.clone(),
        };
        let mut guard = EndGuard::new(delivery, wish.client.clone(), self.ends.clone());
        let begin = self.begin_away(&request, &mut guard).await?;
        guard.begun(&begin);
        self.metrics.visited_away.increment(1);
        self.send(*planned, begin.class, guard, started).await
    }

    async fn begin_away(&self, request: &BeginAwayRequest, guard: &mut EndGuard) -> ApiResult<BeginAnswer> {
        let slot = Slot::of_name(&request.name);
        if let Some(primary) = self.site.slot_primary(slot) {
            guard.asking(primary.shard);
        }
        let begun = self.site.ask_owner(slot, |node| async move { node.begin_away(request).await }).await;
        begun.inspect_err(|error| {
            if error.code == ErrorCode::ContentNotFound {
                guard.not_begun();
            }
        })
    }

    /// What is kept here at this moment for visitors, or for one of them.
    pub async fn temporary(
        &self,
        client: Option<&ClientId>,
        after: Option<(ContentName, ClientId)>,
        limit: u32,
    ) -> ApiResult<TemporaryPage> {
        let limit = limit.clamp(1, 1000);
        let asked = self.site.ask_all_owners(|node, slots| {
            let request = ListRequest { slots, client: client.cloned(), after: after.clone(), limit };
            async move { node.list_temporary(&request).await }
        });
        let mut contents: Vec<TemporaryContent> = asked.await?.into_iter().flatten().collect();
        contents.sort_by_cached_key(|content| {
            (Slot::of_name(&content.name), content.name.clone(), content.client.clone())
        });
        contents.truncate(limit as usize);
        let last = contents.last().filter(|_| contents.len() == limit as usize);
        let next = last.map(|last| (last.name.clone(), last.client.clone()));
        Ok(TemporaryPage { contents, next })
    }
}

/// Whether home says that the client may not have the content, now or in a moment.
fn is_final(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Forbidden | ErrorCode::ContentNotFound | ErrorCode::BucketNotFound)
}
