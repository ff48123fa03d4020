//! What a client asks for: the name, the range, and the conditions under which it wants it.

use common::api::node::Quota;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{ClientId, ServerName, SiteId};
use common::name::ContentName;
use common::time::UnixMillis;
use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderName};

use crate::limits::Pace;

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
    /// What the client's library may hold: a purchase beyond it is refused.
    pub quota: Quota,
    pub pace: Pace,
}

impl Wish {
    /// Whether it is for the bytes, whatever they are.
    pub fn is_plain(&self) -> bool {
        !self.head_only && !self.conditions.any() && self.conditions.if_range.is_none()
    }
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

    pub fn any(&self) -> bool {
        self.if_match.is_some() || self.if_none_match.is_some() || self.if_modified_since.is_some()
    }

    pub fn verdict(&self, etag: &str, modified: UnixMillis) -> Verdict {
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

/// What the conditions say about a content.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
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

/// The conditional and range headers of a request for `name`, by a client without limits.
pub fn wish_of(client: ClientId, name: ContentName, head_only: bool, headers: &HeaderMap) -> ApiResult<Wish> {
    Ok(Wish {
        client,
        name,
        head_only,
        conditions: Conditions::of(headers)?,
        range: text(headers, &RANGE)?,
        surrogate: None,
        mobile_access: None,
        quota: Quota::default(),
        pace: Pace::default(),
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
