//! Who may ask for what. The table of routes names for each who may; here is told who a caller is, and what becomes of
//! one who may not.
//!
//! A server is believed the name that its token carries: all servers share one secret. So roles guard against mistakes and
//! against what a server can be talked into; against a stolen secret nothing here does.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use common::auth::{Caller, Guard, Role};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::NodeId;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};

use crate::metrics::Metrics;

/// As what somebody calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Without any token.
    Anybody,
    /// A storage node.
    Node,
    /// A gateway, for the client or provider that asks it: only for that one's own.
    Gateway,
    /// The other billing server.
    Billing,
    Operator,
    Auditor,
}

impl Who {
    /// `None` for servers that have no business here.
    fn of(caller: &Caller) -> Option<Self> {
        match caller {
            Caller::Operator => Some(Self::Operator),
            Caller::Auditor => Some(Self::Auditor),
            Caller::Server(_) => match caller.role()? {
                Role::StorageNode => Some(Self::Node),
                Role::Gateway => Some(Self::Gateway),
                Role::ServiceBilling | Role::ContentBilling => Some(Self::Billing),
                Role::Search | Role::Origin | Role::MobileAccess => None,
            },
        }
    }

    /// What a call by these needs, as the API's description says it.
    pub fn requirement(self) -> SecurityRequirement {
        let server = |role: Role| SecurityRequirement::new(SERVER, [role.as_str()]);
        match self {
            Self::Anybody => SecurityRequirement::default(),
            Self::Node => server(Role::StorageNode),
            Self::Gateway => server(Role::Gateway),
            Self::Billing => SecurityRequirement::new(
                SERVER,
                [Role::ServiceBilling.as_str(), Role::ContentBilling.as_str()],
            ),
            Self::Operator => SecurityRequirement::new::<_, _, &str>(OPERATOR, []),
            Self::Auditor => SecurityRequirement::new::<_, _, &str>(AUDITOR, []),
        }
    }
}

/// Names of the kinds of tokens in the API's description.
const SERVER: &str = "server";
const OPERATOR: &str = "operator";
const AUDITOR: &str = "auditor";

/// The kinds of tokens, as the API's description has them.
pub(super) fn security_schemes() -> [(&'static str, SecurityScheme); 3] {
    let bearer = |what: &str| {
        SecurityScheme::Http(
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(what)).build(),
        )
    };
    let signed = ApiKeyValue::with_description(
        "Authorization",
        "`Dozo CALLER TIME NONCE MAC`, made with the cluster's secret for one call. CALLER is ROLE/NAME; the roles \
         that may call are named with each route.",
    );
    [
        (SERVER, SecurityScheme::ApiKey(ApiKey::Header(signed))),
        (OPERATOR, bearer("The operator's token (`admin_token` in endpoints.json).")),
        (AUDITOR, bearer("Reads everything and changes nothing (`dozo billing auditor-token`).")),
    ]
}

/// What the calls of one route are checked against.
#[derive(Clone)]
pub(super) struct Gate {
    pub guard: Guard,
    pub metrics: Metrics,
    pub who: &'static [Who],
}

/// Axum middleware: lets those pass who may, with their [`Caller`].
pub(super) async fn admit(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    if gate.who.contains(&Who::Anybody) {
        return next.run(request).await;
    }
    let caller = match gate.guard.caller(&request) {
        Ok(caller) => caller,
        Err(error) => return ApiError::new(ErrorCode::Unauthenticated, error.to_string()).into_response(),
    };
    let who = Who::of(&caller).filter(|who| gate.who.contains(who));
    let refusal = match who {
        Some(Who::Gateway) if !is_about_one(&request) => {
            "a gateway asks for one client or provider, not for all"
        }
        Some(_) => {
            request.extensions_mut().insert(caller);
            return next.run(request).await;
        }
        None => "it is not for this role to ask for it",
    };
    let (method, path) = (request.method(), request.uri().path());
    forbidden(&gate.metrics, &caller, &format!("{method} {path}: {refusal}")).into_response()
}

/// Whether a call is about one client or party, by its path or query.
fn is_about_one(request: &Request) -> bool {
    let path = request.extensions().get::<MatchedPath>();
    let names = |pair: &str| pair.starts_with("client=") || pair.starts_with("party=");
    path.is_some_and(|path| path.as_str().contains("{party}"))
        || request.uri().query().is_some_and(|query| query.split('&').any(names))
}

/// A batch comes from its node, or from the node of the same site that has followed it and stands in for it.
///
/// # Errors
/// `forbidden`, with an alarm, for a batch from anywhere else.
pub(super) fn check_sender(caller: &Caller, metrics: &Metrics, node: &NodeId) -> ApiResult<()> {
    if caller.site() == Some(node.site()) {
        return Ok(());
    }
    Err(forbidden(metrics, caller, &format!("records of {node} come from nodes of site {}", node.site())))
}

/// The refusal of a caller who is known and may not. That does not happen by itself, so it is told and counted.
fn forbidden(metrics: &Metrics, caller: &Caller, reason: &str) -> ApiError {
    tracing::warn!(%caller, reason, "a call is forbidden");
    metrics.calls_forbidden.increment(1);
    ApiError::new(ErrorCode::Forbidden, format!("{caller} may not do this; {reason}"))
}
