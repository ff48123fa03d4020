//! Delivering: `resolve → begin → send → end`. The one place where content leaves for a client.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use common::api::gateway::{CLASS, DELIVERY, METADATA_PREFIX, SOURCE, SOURCE_SITE};
use common::api::node::{BeginAnswer, BeginRequest, Holding, HoldingState, ResolveRequest};
use common::client::encode;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{ClientId, DeliveryId, ServerName, SiteId};
use common::manifest::{ChunkRef, slices};
use common::name::ContentName;
use common::placement::Slot;
use common::range::{RangeError, Wanted};
use common::record::{DeliveryClass, DeliveryPath, Source};
use common::time::UnixMillis;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::body::{Opening, Supply};
use crate::directory::may_read;
use crate::ends::EndGuard;
use crate::server::Gateway;

/// A client's wish for a content.
pub struct Wish {
    pub client: ClientId,
    pub name: ContentName,
    /// Only the head of the answer is wanted: nothing is delivered or recorded.
    pub head_only: bool,
    pub conditions: Conditions,
    pub range: Option<String>,
    /// For a client that is served away from home.
    pub surrogate: Option<SiteId>,
    pub mobile_access: Option<ServerName>,
}

/// The conditional headers of RFC 9110, section 13.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub if_modified_since: Option<UnixMillis>,
    pub if_range: Option<String>,
}

impl Conditions {
    pub fn of(headers: &HeaderMap) -> ApiResult<Self> {
        let since = text(headers, &IF_MODIFIED_SINCE)?;
        Ok(Self {
            if_match: text(headers, &IF_MATCH)?,
            if_none_match: text(headers, &IF_NONE_MATCH)?,
            // A date that is not one is ignored, as the RFC demands.
            if_modified_since: since.as_deref().and_then(UnixMillis::parse_http_date),
            if_range: text(headers, &IF_RANGE)?,
        })
    }

    fn any(&self) -> bool {
        self.if_match.is_some() || self.if_none_match.is_some() || self.if_modified_since.is_some()
    }

    fn verdict(&self, etag: &str, modified: UnixMillis) -> Verdict {
        if self.if_match.as_deref().is_some_and(|tags| !matches_any(tags, etag)) {
            return Verdict::Failed;
        }
        match (&self.if_none_match, self.if_modified_since) {
            (Some(tags), _) if matches_any(tags, etag) => Verdict::NotModified,
            (None, Some(since)) if modified.0 / 1000 <= since.0 / 1000 => Verdict::NotModified,
            _ => Verdict::Proceed,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Proceed,
    NotModified,
    Failed,
}

/// Whether a list of entity tags (or `*`) names this one. Weak tags never match: our bytes are exact.
pub fn matches_any(tags: &str, etag: &str) -> bool {
    tags.split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag == etag || tag.trim_matches('"') == etag.trim_matches('"'))
}

/// A header as text; not text → `InvalidRequest` that names it.
pub fn text(headers: &HeaderMap, name: &HeaderName) -> ApiResult<Option<String>> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str().map_err(|_| {
        ApiError::new(ErrorCode::InvalidRequest, format!("the header {name} is not plain text"))
    })?;
    Ok(Some(text.to_owned()))
}

/// What the site has (or is collecting) of a content, ready to be sent.
pub struct Held {
    pub holding: Holding,
    list: Arc<[ChunkRef]>,
    path: DeliveryPath,
    source: Option<Source>,
    supply: Supply,
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
}

impl Gateway {
    /// Answers a client of this site.
    pub async fn deliver(&self, wish: Wish) -> ApiResult<Response> {
        let started = Instant::now();
        match self.plan(&wish).await? {
            Plan::Answer(response) => Ok(*response),
            Plan::Deliver(delivery) => {
                let (class, guard) = self.begin(&wish, &delivery.held, &delivery.part).await?;
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
        let held = self.resolve(wish, !wish.head_only && !wish.conditions.any()).await?;
        if wish.head_only || wish.conditions.any() && self.verdict(wish, &held) != Verdict::Proceed {
            return Ok((held.holding, None));
        }
        let held = if wish.conditions.any() { self.resolve(wish, true).await? } else { held };
        match part_of(wish, &held.holding) {
            Ok(part) => {
                let begin = self.record(wish, &held, &part, delivery).await?;
                Ok((held.holding, Some(begin)))
            }
            // The visited site reads the same header and gives the same refusal.
            Err(_) => Ok((held.holding, None)),
        }
    }

    fn verdict(&self, wish: &Wish, held: &Held) -> Verdict {
        wish.conditions.verdict(&etag(&held.holding), held.holding.version.time.millis())
    }

    async fn plan(&self, wish: &Wish) -> ApiResult<Plan> {
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
        let headers = head_of(&held);
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
        let mut headers = headers;
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
        Ok(Plan::Deliver(Box::new(Delivery { held, part, headers, opening })))
    }

    /// The plan of a delivery whose possession home has confirmed.
    pub fn plan_visited(
        &self,
        wish: &Wish,
        holding: Holding,
        list: Arc<[ChunkRef]>,
        supply: Supply,
    ) -> ApiResult<Plan> {
        let home = match &supply {
            Supply::Home { home, .. } => Some(Source::Site(home.clone())),
            _ => None,
        };
        let held = Held { holding, list, path: DeliveryPath::Peer, source: home, supply };
        let verdict = self.verdict(wish, &held);
        self.plan_for(wish, held, verdict)
    }

    /// *resolve*: what the site holds of the name for this client; collects what it does not hold. With `note` the
    /// client is, durably, a holder of it from now on.
    async fn resolve(&self, wish: &Wish, note: bool) -> ApiResult<Held> {
        let (client, name) = (&wish.client, &wish.name);
        self.authorise(client, name).await?;
        let holding = self.ask_holding(name, note.then_some(client)).await?;
        match holding {
            Some(holding) if holding.state == HoldingState::Complete => self.held(holding).await,
            Some(holding) if holding.state == HoldingState::Superseded => {
                match Box::pin(self.collect(name, None, note.then_some(client))).await {
                    // Withdrawn, or nobody answers: who holds it keeps it; to others it is not to be had.
                    Err(error) if self.holds(client, name).await? => {
                        tracing::debug!(content = %name, %error, "serving the version that the client holds");
                        self.held(holding).await
                    }
                    collected => collected,
                }
            }
            unfinished => Box::pin(self.collect(name, unfinished, note.then_some(client))).await,
        }
    }

    /// A client reads its own buckets, public ones, and what is in its library.
    async fn authorise(&self, client: &ClientId, name: &ContentName) -> ApiResult<()> {
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

    async fn holds(&self, client: &ClientId, name: &ContentName) -> ApiResult<bool> {
        let row = self
            .site
            .ask_owner(Slot::of_client(client), |node| async move { node.library_row(client, name).await })
            .await?;
        Ok(row.is_some())
    }

    async fn ask_holding(&self, name: &ContentName, client: Option<&ClientId>) -> ApiResult<Option<Holding>> {
        let request = ResolveRequest { name: name.clone(), client: client.cloned() };
        let request = &request;
        let answer = self
            .site
            .ask_owner(Slot::of_name(name), |node| async move { node.resolve(request).await })
            .await?;
        Ok(answer.holding)
    }

    async fn held(&self, holding: Holding) -> ApiResult<Held> {
        let list = self.chunks.list(&holding.manifest).await?;
        let supply = Supply::Site {
            chunks: self.chunks.clone(),
            collector: self.collector.clone(),
            name: holding.name.clone(),
        };
        Ok(Held { holding, list, path: DeliveryPath::Hit, source: None, supply })
    }

    async fn collect(
        &self,
        name: &ContentName,
        unfinished: Option<Holding>,
        client: Option<&ClientId>,
    ) -> ApiResult<Held> {
        let collection = self.collector.collect(name, unfinished).await?;
        if let Some(client) = client {
            self.ask_holding(name, Some(client)).await?;
        }
        Ok(Held {
            holding: collection.holding.clone(),
            list: collection.chunks.clone(),
            path: collection.path,
            source: Some(collection.source.clone()),
            supply: Supply::Collection { collection, chunks: self.chunks.clone() },
        })
    }

    /// *begin*: library row and record, durable when this answers. The guard reports the end.
    async fn begin(&self, wish: &Wish, held: &Held, part: &Part) -> ApiResult<(DeliveryClass, EndGuard)> {
        let delivery = DeliveryId::generate(self.clock.now());
        let slot = Slot::of_client(&wish.client);
        let (owner, _) = self.site.owner(slot).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NodeUnavailable,
                "the site has no storage node yet; start one and try again",
            )
        })?;
        let mut guard = EndGuard::new(owner, delivery, self.ends.clone());
        let begin = self.record(wish, held, part, delivery).await?;
        guard.begun(&begin);
        Ok((begin.class, guard))
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
        };
        let request = &request;
        let slot = Slot::of_client(&wish.client);
        let begin = self.site.ask_owner(slot, |node| async move { node.begin(request).await }).await?;
        self.metrics.delivery(held.path);
        Ok(begin)
    }

    /// *send*: the answer, its first byte at hand. From here on the end is reported whatever happens.
    pub async fn send(
        &self,
        delivery: Delivery,
        class: DeliveryClass,
        guard: EndGuard,
        started: Instant,
    ) -> ApiResult<Response> {
        let Delivery { held, part, mut headers, opening } = delivery;
        headers.insert(DELIVERY, header(&guard.delivery().to_string()));
        headers.insert(CLASS, HeaderValue::from_static(class_text(class)));
        let ready = opening.ready().await?;
        self.metrics.first_byte(held.path, started.elapsed().as_secs_f64());
        let mut response = Response::new(ready.into_body(guard));
        *response.status_mut() = part.status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

fn class_text(class: DeliveryClass) -> &'static str {
    match class {
        DeliveryClass::Purchase => "purchase",
        DeliveryClass::Reference => "reference",
    }
}

fn path_text(path: DeliveryPath) -> &'static str {
    match path {
        DeliveryPath::Hit => "hit",
        DeliveryPath::Peer => "peer",
        DeliveryPath::Origin => "origin",
    }
}

pub fn etag(holding: &Holding) -> String {
    format!("\"{}\"", holding.manifest.hash)
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

/// Headers that describe a content, whole or in part.
fn head_of(held: &Held) -> HeaderMap {
    let manifest = &held.holding.manifest;
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(ETAG, header(&etag(&held.holding)));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, header(&manifest.media_type));
    headers.insert(LAST_MODIFIED, header(&held.holding.version.time.millis().http_date()));
    // The provider chose the media type; a browser shall not guess another.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(SOURCE, HeaderValue::from_static(path_text(held.path)));
    match &held.source {
        Some(Source::Site(site)) => headers.insert(SOURCE_SITE, header(site.as_str())),
        Some(Source::Origin(origin)) => headers.insert(SOURCE_SITE, header(origin.as_str())),
        None => None,
    };
    for (key, value) in &manifest.metadata {
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(format!("{METADATA_PREFIX}{key}").as_bytes()),
            HeaderValue::from_str(value),
        ) {
            headers.insert(name, value);
        }
    }
    headers
}

/// A header value from text of ours; what a header cannot carry is percent-encoded.
fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text)
        .or_else(|_| HeaderValue::from_str(&encode(text).to_string()))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn empty(status: StatusCode, headers: HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The conditional and range headers of a request for `name`.
pub fn wish_of(client: ClientId, name: ContentName, head_only: bool, headers: &HeaderMap) -> ApiResult<Wish> {
    Ok(Wish {
        client,
        name,
        head_only,
        conditions: Conditions::of(headers)?,
        range: text(headers, &RANGE)?,
        surrogate: None,
        mobile_access: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_follow_the_order_of_the_rfc() {
        let etag = "\"abc\"";
        let now = UnixMillis(10_000);
        let verdict = |c: Conditions| c.verdict(etag, now);
        let with = |tags: &str| Some(tags.to_owned());
        assert_eq!(verdict(Conditions::default()), Verdict::Proceed);
        assert_eq!(
            verdict(Conditions { if_match: with("\"x\", \"abc\""), ..Default::default() }),
            Verdict::Proceed
        );
        assert_eq!(verdict(Conditions { if_match: with("\"x\""), ..Default::default() }), Verdict::Failed);
        assert_eq!(
            verdict(Conditions { if_none_match: with("*"), ..Default::default() }),
            Verdict::NotModified
        );
        assert_eq!(
            verdict(Conditions { if_none_match: with("W/\"abc\""), ..Default::default() }),
            Verdict::Proceed
        );
        let since = Conditions { if_modified_since: Some(now), ..Default::default() };
        assert_eq!(verdict(since.clone()), Verdict::NotModified);
        assert_eq!(verdict(Conditions { if_none_match: with("\"other\""), ..since }), Verdict::Proceed);
    }
}
