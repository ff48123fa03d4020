//! Home authentication (patent: module 140): this site, as the home of a client that is elsewhere, asks the client's card
//! and says to the site that the client visits who it is.
//!
//! Any gateway may make a challenge and any other take the answer: the challenge carries the cluster's seal, and that it was
//! answered is a row in the client's slot, written only for an answer that is right in all else.
//!
//! # Who learns what
//! A challenge is made for everybody and every name, and nothing is looked up for it. An answer is looked up only once its
//! signature is right under the key that the challenge names. So who has no card of ours learns nothing about clients: a
//! name that is nobody's and a card that is not that client's give the same refusal. Only who has proved to hold a card
//! that is known here is told that the card or its client is disabled, lives elsewhere, or that the challenge was used.

use std::time::Duration;

use common::api::mobile_access::{
    AnsweredChallenge, CardAnswer, ChallengeAnswer, PeerChallengeRequest, PeerVisit,
};
use common::api::search::CardHolder;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::placement::Slot;
use common::visit::{Challenge, Nonce, Visitor, check_answer};

use crate::server::Gateway;

impl Gateway {
    /// Asks a card for its signature.
    pub fn challenge(&self, request: PeerChallengeRequest) -> ChallengeAnswer {
        let PeerChallengeRequest { client, card, mobile_access, site } = request;
        let (home, issued, nonce) = (self.site.id.clone(), self.clock.now(), Nonce::generate());
        let challenge = Challenge { home, client, card, mobile_access, site, issued, nonce };
        ChallengeAnswer { challenge: challenge.seal(&self.visitors.secret) }
    }

    /// Takes a card's answer, and says to the visited site who is there.
    pub async fn take_answer(&self, answer: CardAnswer) -> ApiResult<PeerVisit> {
        let outcome = self.authenticate_card(answer).await;
        self.metrics.authentication(outcome.as_ref().map_or_else(|error| error.code.as_str(), |_| "granted"));
        outcome
    }

    async fn authenticate_card(&self, answer: CardAnswer) -> ApiResult<PeerVisit> {
        let (secret, home) = (&self.visitors.secret, &self.site.id);
        let CardAnswer { challenge: text, session, signature } = answer;
        let challenge = Challenge::open(&text, secret, home, self.clock.now())?;
        check_answer(&challenge, &text, &session, &signature)?;
        let holder = self.directory.card(&challenge.card).await?;
        let holder = holder.filter(|holder| holder.client.client == challenge.client);
        let CardHolder { client, .. } = admitted(holder.ok_or_else(|| unknown(&challenge))?)?;
        if &client.site != home {
            let message = format!("the home of client {} is {}, not {home}", client.client, client.site);
            return Err(ApiError::new(ErrorCode::WrongSite, message));
        }
        self.note_answered(&challenge).await?;
        let issued = self.clock.now();
        let visitor = Visitor {
            home: challenge.home,
            client: challenge.client,
            card: challenge.card,
            session,
            site: challenge.site,
            mobile_access: challenge.mobile_access,
            issued,
            expires: issued.saturating_add(Duration::from_millis(self.config.visit_ms.get())),
            limits: client.limits,
        };
        tracing::info!(client = %visitor.client, card = visitor.card.short(), site = %visitor.site, mobile_access = %visitor.mobile_access, "a client visits another site");
        Ok(PeerVisit { token: visitor.seal(secret), issued, expires: visitor.expires })
    }

    /// Notes durably that the challenge is answered; `ChallengeReplayed` when it was before.
    async fn note_answered(&self, challenge: &Challenge) -> ApiResult<()> {
        let answered = AnsweredChallenge {
            client: challenge.client.clone(),
            nonce: challenge.nonce,
            attempt: Nonce::generate(),
            expires: challenge.remembered_until(),
        };
        let (slot, answered) = (Slot::of_client(&challenge.client), &answered);
        self.site.ask_owner(slot, |node| async move { node.answer_challenge(answered).await }).await
    }
}

fn unknown(challenge: &Challenge) -> ApiError {
    ApiError::new(
        ErrorCode::CardUnknown,
        format!("site {} knows no such card of a client {}", challenge.home, challenge.client),
    )
}

/// The holder of a card, unless it is shut out.
pub fn admitted(holder: CardHolder) -> ApiResult<CardHolder> {
    let client = &holder.client.client;
    if holder.client.disabled {
        return Err(ApiError::new(ErrorCode::ClientDisabled, format!("client {client} is disabled")));
    }
    if holder.card.disabled {
        let message = format!("card {} of client {client} is disabled", holder.card.card.short());
        return Err(ApiError::new(ErrorCode::CardDisabled, message));
    }
    Ok(holder)
}
