//! What clients ask: `POST /v1/challenge`, `POST /v1/answer`. They have shown nothing yet, so they are bounded.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use common::api::extract::ApiJson;
use common::api::mobile_access::{
    CardAnswer, ChallengeAnswer, ChallengeRequest, PeerChallengeRequest, PeerVisit, Visit,
};
use common::cluster::ClusterMap;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::server::PeerAddress;
use common::visit::{Challenge, VisitError};

use crate::nearby::Near;
use crate::server::App;

const BODY_BYTES_MAX: usize = 8 << 10;

pub fn service(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/challenge", post(challenge))
        .route("/v1/answer", post(answer))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

type Shared = State<Arc<App>>;
type Peer = Extension<PeerAddress>;

async fn challenge(
    State(app): Shared,
    Extension(peer): Peer,
    body: Result<ApiJson<ChallengeRequest>, ApiError>,
) -> Response {
    counted(&app, peer, "challenge", async {
        let ApiJson(request) = body?;
        Ok(Json(app.challenge(request).await?).into_response())
    })
    .await
}

async fn answer(
    State(app): Shared,
    Extension(peer): Peer,
    body: Result<ApiJson<CardAnswer>, ApiError>,
) -> Response {
    counted(&app, peer, "answer", async {
        let ApiJson(answer) = body?;
        Ok(Json(app.answer(answer).await?).into_response())
    })
    .await
}

/// Admits a question, or refuses it, and counts what became of it.
async fn counted(
    app: &App,
    PeerAddress(peer): PeerAddress,
    op: &'static str,
    answer: impl Future<Output = ApiResult<Response>>,
) -> Response {
    let answered = match app.admit(peer.ip()) {
        Ok(_permit) => answer.await,
        Err(refused) => Err(refused),
    };
    app.metrics.question(op, answered.as_ref().map_or_else(|error| error.code.as_str(), |_| "ok"));
    answered.unwrap_or_else(IntoResponse::into_response)
}

impl App {
    fn map(&self) -> ApiResult<Arc<ClusterMap>> {
        self.map.borrow().clone().ok_or_else(|| {
            let message = "this mobile access server has not heard of search yet; try again in a moment";
            ApiError::new(ErrorCode::SearchUnavailable, message)
        })
    }

    /// Has the home site ask the card, for a visit of the nearest site.
    async fn challenge(&self, request: ChallengeRequest) -> ApiResult<ChallengeAnswer> {
        let map = self.map()?;
        let ChallengeRequest { client, home, card } = request;
        let near = self.nearby.gateways(&map).await;
        let site = near.first().ok_or_else(nobody_near)?.site.clone();
        let question = PeerChallengeRequest { client, card, mobile_access: self.name.clone(), site };
        let question = &question;
        self.homes.ask(&map, &home, |gateway| async move { gateway.challenge(question).await }).await
    }

    /// Has the home site judge the card's answer, and tells the client where it may go.
    async fn answer(&self, answer: CardAnswer) -> ApiResult<Visit> {
        let map = self.map()?;
        let challenge = Challenge::read(&answer.challenge).ok_or(VisitError::ChallengeInvalid)?;
        if challenge.mobile_access != self.name {
            return Err(VisitError::ChallengeInvalid.into());
        }
        let near = self.nearby.gateways(&map).await;
        let of_site = |near: &&Near| near.site == challenge.site;
        let gateways: Vec<_> = near.iter().filter(of_site).map(|near| near.gateway.clone()).collect();
        if gateways.is_empty() {
            // Asked before the home site is: the answer is good only once.
            return Err(nobody_near());
        }
        let answer = &answer;
        let PeerVisit { token, issued, expires } = self
            .homes
            .ask(&map, &challenge.home, |gateway| async move { gateway.answer(answer).await })
            .await?;
        let Challenge { home, site, mobile_access, .. } = challenge;
        Ok(Visit { token, home, site, mobile_access, gateways, issued, expires })
    }
}

fn nobody_near() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "no gateway of a site near here answers; try again in a moment")
}
