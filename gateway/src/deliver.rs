//! Delivering: `resolve → begin → send → end`. The one place where content leaves for a client.
//!
//! When one node decides for the name and the client, *open* is resolve and begin in one call.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use common::api::gateway::{CLASS, DELIVERY, RANKING};
use common::api::node::{BeginAnswer, BeginRequest, Holding, HoldingState, OpenRequest, ResolveRequest};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{ClientId, DeliveryId};
use common::manifest::{ChunkRef, slices};
use common::name::ContentName;
use common::placement::Slot;
use common::range::{RangeError, Wanted};
use common::record::{DeliveryClass, DeliveryPath, Source};
use common::trace::{Stage, stage};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::body::{Opening, Supply};
use crate::collect::elsewhere::Elsewhere;
use crate::collect::sought::Sought;
use crate::directory::may_read;
use crate::ends::EndGuard;
use crate::head::{class_text, etag, head_of, header};
use crate::limits::Pace;
use crate::server::Gateway;
use crate::wish::{Verdict, Wish};

/// What the site has (or is collecting) of a content, ready to be sent.
pub struct Held {
    pub holding: Holding,
    list: Arc<[ChunkRef]>,
    path: DeliveryPath,
    source: Option<Source>,
    supply: Supply,
    /// Set when *open* began the delivery already.
    begun: Option<DeliveryClass>,
}

/// A part of a content that is to be sent.
struct Part {
    status: StatusCode,
    range: std::ops::Range<u64>,
}

/// What comes before a begin: the answer may already be clear.
pub enum Plan {
    /// `304`, a HEAD, or a range beyond the end: nothing is delivered.
    Answer(Box<Response>),
    Deliver(Box<Delivery>),
}

/// A delivery that may begin.
pub struct Delivery {
    held: Held,
    part: Part,
    headers: HeaderMap,
    opening: Opening,
    pace: Pace,
}

impl Delivery {
    /// First byte that is to be sent.
    pub fn range_start(&self) -> u64 {
        self.part.range.start
    }
}

impl Gateway {
    /// Answers a client of this site.
    pub async fn deliver(&self, wish: Wish) -> ApiResult<Response> {
        let started = Instant::now();
        let mut guard =
            EndGuard::new(DeliveryId::generate(self.clock.now()), wish.client.clone(), self.ends.clone());
        match self.plan(&wish, &mut guard).await? {
            Plan::Answer(response) => Ok(*response),
            Plan::Deliver(delivery) => {
                let class = match delivery.held.begun {
                    Some(class) => class,
                    None => self.begin(&wish, &delivery.held, &delivery.part, &mut guard).await?,
                };
                self.send(*delivery, class, guard, started).await
            }
        }
    }

    /// Everything up to the record, for a delivery that another site will make: home's part of serving a roaming
    /// client. `None` when nothing is to be delivered.
    pub async fn begin_for_visited_site(
        &self,
        wish: &Wish,
        delivery: DeliveryId,
    ) -> ApiResult<(Holding, Option<BeginAnswer>)> {
        self.authorise(&wish.client, &wish.name).await?;
        let held = self.resolve(wish, !wish.head_only && !wish.conditions.any()).await?;
        if wish.head_only || wish.conditions.any() && self.verdict(wish, &held) != Verdict::Proceed {
            return Ok((held.holding, None));
        }
        let held = if wish.conditions.any() { self.resolve(wish, true).await? } else { held };
        match part_of(wish, &held.holding) {
            Ok(part) => {
                let begin = self.record(wish, &held, &part, delivery).await?;
                if let Supply::Collection { collection, .. } = &held.supply {
                    // The visited site asks for its chunks, now and perhaps later.
                    collection.need();
                }
                Ok((held.holding, Some(begin)))
            }
            // The visited site reads the same header and gives the same refusal.
            Err(_) => Ok((held.holding, None)),
        }
    }

    fn verdict(&self, wish: &Wish, held: &Held) -> Verdict {
        wish.conditions.verdict(&etag(&held.holding), held.holding.version.time.millis())
    }

    async fn plan(&self, wish: &Wish, guard: &mut EndGuard) -> ApiResult<Plan> {
        stage(Stage::Auth, self.authorise(&wish.client, &wish.name)).await?;
        if wish.is_plain() {
            let held = self.open(wish, guard).await?;
            return self.plan_for(wish, held, Verdict::Proceed);
        }
        // A conditional request may come to nothing, so the client is noted as a holder only when it does not.
        let held = self.resolve(wish, !wish.head_only && !wish.conditions.any()).await?;
        let verdict = self.verdict(wish, &held);
        let held = match verdict {
            Verdict::Proceed if !wish.head_only && wish.conditions.any() => self.resolve(wish, true).await?,
            _ => held,
        };
        self.plan_for(wish, held, verdict)
    }

    fn plan_for(&self, wish: &Wish, held: Held, verdict: Verdict) -> ApiResult<Plan> {
        let mut headers = head_of(&held.holding, held.path, held.source.as_ref());
        if let Supply::Collection { .. } = &held.supply
            && let Some(ranking) = self.sources.last_ranking(&wish.name)
        {
            headers.insert(RANKING, header(&ranking));
        }
        match verdict {
            Verdict::NotModified => {
                return Ok(Plan::Answer(Box::new(empty(StatusCode::NOT_MODIFIED, headers))));
            }
            Verdict::Failed => {
                return Err(ApiError::new(
                    ErrorCode::PreconditionFailed,
                    "the content is not the one that If-Match names",
                ));
            }
            Verdict::Proceed => {}
        }
        let part = match part_of(wish, &held.holding) {
            Ok(part) => part,
            Err(RangeError::Unsatisfiable { len }) => {
                let mut response = axum::response::IntoResponse::into_response(range_refusal(len));
                response.headers_mut().insert(CONTENT_RANGE, header(&format!("bytes */{len}")));
                return Ok(Plan::Answer(Box::new(response)));
            }
            Err(error @ RangeError::Malformed(_)) => {
                return Err(ApiError::new(ErrorCode::InvalidRange, error.to_string()));
            }
        };
        headers.insert(CONTENT_LENGTH, HeaderValue::from(part.range.end - part.range.start));
        if part.status == StatusCode::PARTIAL_CONTENT {
            let text =
                format!("bytes {}-{}/{}", part.range.start, part.range.end - 1, held.holding.manifest.len);
            headers.insert(CONTENT_RANGE, header(&text));
        }
        if wish.head_only {
            return Ok(Plan::Answer(Box::new(empty(part.status, headers))));
        }
        let opening = Opening::new(held.supply.clone(), slices(&held.list, part.range.clone()));
        Ok(Plan::Deliver(Box::new(Delivery { held, part, headers, opening, pace: wish.pace.clone() })))
    }

    /// The plan of a delivery whose possession home has confirmed; `source` is the site that has what this one lacks.
    pub fn plan_visited(
        &self,
        wish: &Wish,
        holding: Holding,
        list: Arc<[ChunkRef]>,
        supply: Supply,
        source: Option<Source>,
    ) -> ApiResult<Plan> {
        let path = if source.is_some() { DeliveryPath::Peer } else { DeliveryPath::Hit };
        let held = Held { holding, list, path, source, supply, begun: None };
        let verdict = self.verdict(wish, &held);
        self.plan_for(wish, held, verdict)
    }

    /// *open*: resolve and begin in one call, if one node can do both; otherwise resolve alone.
    async fn open(&self, wish: &Wish, guard: &mut EndGuard) -> ApiResult<Held> {
        let slots = (Slot::of_name(&wish.name), Slot::of_client(&wish.client));
        let Some(primary) = self.site.primary_of_both(slots.0, slots.1) else {
            return self.resolve(wish, true).await;
        };
        let request = OpenRequest {
            delivery: guard.delivery(),
            client: wish.client.clone(),
            name: wish.name.clone(),
            range: wish.range.clone(),
            surrogate: wish.surrogate.clone(),
            mobile_access: wish.mobile_access.clone(),
            quota: wish.quota,
        };
        guard.asking(primary.shard);
        let (node, base) = (&primary.node, primary.client.base());
        let opening = self.site.unless_down(node, base, self.opens.open(&primary.client, request));
        let answer = match stage(Stage::Open, opening).await {
            Ok(answer) => answer,
            Err(error) if error.code() == Some(ErrorCode::QuotaExceeded) => {
                guard.not_begun();
                return Err(error.to_api(ErrorCode::QuotaExceeded, "the quota is used up"));
            }
            // A slot moves, or the node is away: the two calls have the patience for it. Should it have begun all the
            // same, the begin that follows is the same delivery, and without one the guard ends it.
            Err(error) => {
                tracing::debug!(content = %wish.name, error = %common::error::chain(&error), "not opened at once");
                return self.resolve(wish, true).await;
            }
        };
        match &answer.begin {
            Some(begin) => {
                guard.begun(begin);
                self.metrics.delivery(DeliveryPath::Hit);
            }
            None => guard.not_begun(),
        }
        let held = self.provide(wish, answer.holding, true).await?;
        Ok(Held { begun: answer.begin.map(|begin| begin.class), ..held })
    }

    /// *resolve*: what the site holds of the name for this client; collects what it does not hold. With `note` the
    /// client is, durably, a holder of it from now on.
    async fn resolve(&self, wish: &Wish, note: bool) -> ApiResult<Held> {
        let holding = self.ask_holding(&wish.name, note.then_some(&wish.client)).await?;
        self.provide(wish, holding, note).await
    }

    /// Makes a holding ready to be sent; collects what it lacks, unless only its head is of interest so far (without
    /// `note`).
    async fn provide(&self, wish: &Wish, holding: Option<Holding>, note: bool) -> ApiResult<Held> {
        let (client, name) = (&wish.client, &wish.name);
        let superseded = match holding {
            Some(holding) if holding.state == HoldingState::Complete => return self.held(holding).await,
            Some(holding) if holding.state == HoldingState::Superseded => Some(holding),
            _ => None,
        };
        let newest =
            if note { Box::pin(self.collect(name, client)).await } else { Box::pin(self.look(name)).await };
        match (newest, superseded) {
            // Withdrawn, or nobody answers: who holds it keeps it; to others it is not to be had.
            (Err(error), Some(superseded)) if self.holds(client, name).await? => {
                tracing::debug!(content = %name, %error, "serving the version that the client holds");
                self.held(superseded).await
            }
            (newest, _) => newest,
        }
    }

    /// A client reads its own buckets, public ones, and what is in its library.
    pub async fn authorise(&self, client: &ClientId, name: &ContentName) -> ApiResult<()> {
        let bucket = self.directory.bucket(&name.bucket_name()).await?;
        if may_read(client, &bucket) || self.holds(client, name).await? {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::Forbidden,
            format!(
                "bucket {} is private to its provider; ask the provider to make it public",
                bucket.bucket
            ),
        ))
    }

    /// Whether a content is in a client's library.
    pub async fn holds(&self, client: &ClientId, name: &ContentName) -> ApiResult<bool> {
        let row = self
            .site
            .ask_owner(Slot::of_client(client), |node| async move { node.library_row(client, name).await })
            .await?;
        Ok(row.is_some())
    }

    async fn ask_holding(&self, name: &ContentName, client: Option<&ClientId>) -> ApiResult<Option<Holding>> {
        let request = ResolveRequest { name: name.clone(), client: client.cloned() };
        let request = &request;
        let resolving =
            self.site.ask_owner(Slot::of_name(name), |node| async move { node.resolve(request).await });
        let answer = stage(Stage::Resolve, resolving).await?;
        Ok(answer.holding)
    }

    async fn held(&self, holding: Holding) -> ApiResult<Held> {
        let list = self.chunks.list(&holding.manifest).await?;
        let supply = self.of_site(Elsewhere::of_holding(holding.name.clone(), holding.ref_tag));
        Ok(Held { holding, list, path: DeliveryPath::Hit, source: None, supply, begun: None })
    }

    /// What the site has, or `elsewhere`.
    pub fn of_site(&self, elsewhere: Elsewhere) -> Supply {
        let (chunks, collector) = (self.chunks.clone(), self.collector.clone());
        Supply::Site { chunks, collector, elsewhere: Arc::new(elsewhere) }
    }

    /// The head of a content that the site does not hold: nothing is collected for it.
    async fn look(&self, name: &ContentName) -> ApiResult<Held> {
        let (holding, candidate) = self.collector.look(name).await?;
        let (path, source) = (candidate.path(), Some(candidate.source));
        let supply = self.of_site(Elsewhere::of_holding(name.clone(), holding.ref_tag));
        Ok(Held { holding, list: Arc::default(), path, source, supply, begun: None })
    }

    async fn collect(&self, name: &ContentName, client: &ClientId) -> ApiResult<Held> {
        let collecting = self.collector.collect(Sought::Held { name, client });
        let joined = match stage(Stage::Collect, collecting).await {
            Err(error) if error.code == ErrorCode::Conflict => {
                let holding = self.ask_holding(name, Some(client)).await?;
                return match holding.filter(|holding| holding.state == HoldingState::Complete) {
                    Some(holding) => self.held(holding).await,
                    None => Err(ApiError::new(ErrorCode::SourceUnavailable, error.message)),
                };
            }
            joined => joined?,
        };
        if !joined.is_noted {
            self.ask_holding(name, Some(client)).await?;
        }
        let collection = joined.collection;
        Ok(Held {
            holding: collection.holding.clone(),
            list: collection.chunks.clone(),
            path: collection.path,
            source: Some(collection.source.clone()),
            supply: Supply::Collection { collection, chunks: self.chunks.clone() },
            begun: None,
        })
    }

    /// *begin*: library row and record, durable when this answers. The guard reports the end.
    async fn begin(
        &self,
        wish: &Wish,
        held: &Held,
        part: &Part,
        guard: &mut EndGuard,
    ) -> ApiResult<DeliveryClass> {
        let slot = Slot::of_client(&wish.client);
        let primary = self.site.slot_primary(slot).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NodeUnavailable,
                "the site has no storage node yet; start one and try again",
            )
        })?;
        guard.asking(primary.shard);
        let begin = self.record(wish, held, part, guard.delivery()).await.inspect_err(|error| {
            if error.code == ErrorCode::QuotaExceeded {
                guard.not_begun();
            }
        })?;
        guard.begun(&begin);
        Ok(begin.class)
    }

    async fn record(
        &self,
        wish: &Wish,
        held: &Held,
        part: &Part,
        delivery: DeliveryId,
    ) -> ApiResult<BeginAnswer> {
        let request = BeginRequest {
            delivery,
            client: wish.client.clone(),
            name: wish.name.clone(),
            hash: held.holding.manifest.hash,
            provider: held.holding.provider.clone(),
            bytes_total: held.holding.manifest.len,
            range_start: part.range.start,
            path: held.path,
            source: held.source.clone(),
            searched: held.path != DeliveryPath::Hit,
            surrogate: wish.surrogate.clone(),
            mobile_access: wish.mobile_access.clone(),
            quota: wish.quota,
        };
        let request = &request;
        let slot = Slot::of_client(&wish.client);
        let begin = self.site.ask_owner(slot, |node| async move { node.begin(request).await });
        let begin = stage(Stage::Begin, begin).await;
        if let Err(error) = &begin
            && error.code == ErrorCode::QuotaExceeded
        {
            // *resolve* noted a holder who is to be none.
            self.release(&wish.client, &wish.name).await?;
        }
        let begin = begin?;
        self.metrics.delivery(held.path);
        Ok(begin)
    }

    /// *send*: the answer, its first byte at hand. From here on the end is reported whatever happens.
    pub async fn send(
        &self,
        delivery: Delivery,
        class: DeliveryClass,
        mut guard: EndGuard,
        started: Instant,
    ) -> ApiResult<Response> {
        let Delivery { held, part, mut headers, opening, pace } = delivery;
        guard.from(held.path);
        headers.insert(DELIVERY, header(&guard.delivery().to_string()));
        headers.insert(CLASS, HeaderValue::from_static(class_text(class)));
        let ready = stage(Stage::FirstChunk, opening.ready()).await?;
        self.metrics.first_byte(held.path, started.elapsed());
        self.metrics.delivered_size.record((part.range.end - part.range.start) as f64);
        let mut response = Response::new(ready.into_body(guard, pace));
        *response.status_mut() = part.status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

fn range_refusal(len: u64) -> ApiError {
    ApiError::new(ErrorCode::RangeNotSatisfiable, RangeError::Unsatisfiable { len }.to_string())
}

fn part_of(wish: &Wish, holding: &Holding) -> Result<Part, RangeError> {
    let len = holding.manifest.len;
    // If-Range that names another version: the whole of this one.
    let same = wish.conditions.if_range.as_deref().is_none_or(|tag| tag == etag(holding));
    let range = wish.range.as_deref().filter(|_| same);
    Ok(match common::range::parse(range, len)? {
        Wanted::Whole => Part { status: StatusCode::OK, range: 0..len },
        Wanted::Part(range) => Part { status: StatusCode::PARTIAL_CONTENT, range },
    })
}

fn empty(status: StatusCode, headers: HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
